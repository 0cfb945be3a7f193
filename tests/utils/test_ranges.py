"""A number outside its range is named before any work begins."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

import pytest

from utils.files import InputError
from utils.ranges import Count, Range, Seed, Share, check_ranges


@dataclass(frozen=True)
class Config:
    steps: Annotated[int, Range(1, 1000)] = 1
    size: Annotated[int, Range(2)] | None = None
    rate: Annotated[float, Range(0, open_below=True)] = 0.1
    share: Share = 0.0
    seed: Seed = 0
    workers: Count = 1
    lengths: tuple[Annotated[int, Range(1, 9)], ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("name", "number", "range_"),
    [
        ("steps", 0, "at least 1 and at most 1,000"),
        ("steps", 1001, "at least 1 and at most 1,000"),
        ("size", 1, "at least 2"),
        ("rate", 0, "above 0"),
        ("rate", math.nan, "above 0"),
        ("rate", math.inf, "above 0"),
        ("share", 1.0, "at least 0 and below 1"),
        ("seed", 2**64, f"at least 0 and at most {2**63 - 1:,}"),
        ("workers", -1, f"at least 1 and at most {2**31 - 1:,}"),
    ],
)
def test_the_message_names_field_range_and_number(name: str, number: float, range_: str) -> None:
    with pytest.raises(InputError) as refused:
        Config(**{name: number})
    assert str(refused.value) == f"{name} must be {range_}, got {number}"


def test_what_is_inside_passes() -> None:
    config = Config(steps=1000, size=2, rate=1e-300, share=0.999, seed=2**63 - 1)
    assert (config.steps, config.rate, config.seed) == (1000, 1e-300, 2**63 - 1)
    assert Config(size=None).size is None


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("steps", "1", "a whole number"),
        ("steps", 1.0, "a whole number"),
        ("steps", True, "a whole number"),
        ("steps", None, "a whole number"),
        ("size", "2", "a whole number"),
        ("rate", "0.1", "a number"),
        ("rate", [0.1], "a number"),
    ],
)
def test_what_is_no_number_is_named_too(name: str, value: object, kind: str) -> None:
    """Such as it may stand in a damaged config.json."""
    with pytest.raises(InputError, match=f"^{name} must be {kind}, .*, got {re.escape(repr(value))}$"):
        Config(**{name: value})


def test_a_number_that_no_float_can_hold() -> None:
    with pytest.raises(InputError, match="steps must be at least 1 and at most 1,000, got 1000"):
        Config(steps=10**400)


def test_each_number_of_a_tuple_is_checked() -> None:
    Config(lengths=(1, 9))
    with pytest.raises(InputError, match="^lengths must be at least 1 and at most 9, got 10$"):
        Config(lengths=(1, 10))
    with pytest.raises(InputError, match="^lengths must be a whole number, at least 1 and at most 9, got 1.5$"):
        Config(lengths=(1.5,))
