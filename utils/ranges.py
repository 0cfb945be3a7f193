"""The numbers that a setting may take, said once beside the setting and checked before any work begins.

    @dataclass(frozen=True)
    class Config:
        steps: Annotated[int, Range(1, 10**9)] = 1000

        def __post_init__(self) -> None:
            check_ranges(self)

A number that is not finite is never in a range: a learning rate of NaN would train for an hour, and learn nothing.
"""

import math
import numbers
import types
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from utils.files import InputError


@dataclass(frozen=True)
class Range:
    """All finite numbers from `least` to `most`, both included unless the range is open at that end."""

    least: float = -math.inf
    most: float = math.inf
    open_below: bool = False
    """Leave out `least` itself."""
    open_above: bool = False
    """Leave out `most` itself."""

    def __contains__(self, number: float) -> bool:
        if isinstance(number, float) and not math.isfinite(number):
            return False
        if not self.least <= number <= self.most:
            return False
        return not (self.open_below and number == self.least) and not (self.open_above and number == self.most)

    def __str__(self) -> str:
        ends = []
        if self.least > -math.inf:
            ends.append(f"{'above' if self.open_below else 'at least'} {_written(self.least)}")
        if self.most < math.inf:
            ends.append(f"{'below' if self.open_above else 'at most'} {_written(self.most)}")
        return " and ".join(ends) or "finite"


Count = Annotated[int, Range(1, 2**31 - 1)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Share = Annotated[float, Range(0, 1, open_above=True)]


def check_ranges(config: Any) -> None:
    """Check each field of a dataclass whose type is annotated with a `Range`, each element of a tuple; None passes.

    Raises:
        InputError: for the first value that is not a number of the field's type, or outside its range; the message
            names the field, what would be right, and the value.
    """
    for name, annotation in get_type_hints(type(config), include_extras=True).items():
        range_ = range_of(annotation)
        value = getattr(config, name)
        if range_ is None or (value is None and types.NoneType in get_args(annotation)):
            continue
        whole = int in _types(annotation)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, numbers.Integral if whole else numbers.Real):
                raise InputError(f"{name} must be a {'whole ' if whole else ''}number, {range_}, got {number!r}")
            if number not in range_:
                raise InputError(f"{name} must be {range_}, got {number}")


def range_of(annotation: Any) -> Range | None:
    """Return the `Range` in a type annotation such as `Annotated[int, Range(1)] | None`, if there is one."""
    if get_origin(annotation) is Annotated:
        return next((extra for extra in annotation.__metadata__ if isinstance(extra, Range)), None)
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return next((found for part in get_args(annotation) if (found := range_of(part))), None)
    return None


def _types(annotation: Any) -> set[Any]:
    """Return the types that a union or tuple, annotated or not, is made of."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple):
        return set().union(*map(_types, get_args(annotation)))
    return {annotation} if isinstance(annotation, type) else set()


def _written(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
