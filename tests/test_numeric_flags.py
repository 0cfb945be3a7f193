"""Every number that a script takes has a range, and is checked before anything is done: never a traceback."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tests.scripts import SCRIPTS, call_with, find_script
from utils.ranges import Range, range_of

NOT_YET = {  # still without ranges
    "gpt_model.generate",
    "working_with_text_data.prepare",
    "working_with_text_data.train_tokenizer",
}
VALUES = ("0", "-1", "nan", "inf", str(2**64), str(10**12), "1e308")


def types_in(annotation: Any) -> set[Any]:
    """All types that an annotation is made of: those of `tuple[int, ...] | None` are tuple, int and None's."""
    inside = get_args(annotation)
    return {annotation} if not inside else set().union(*map(types_in, inside))


def numbers(config_class: type) -> Iterator[tuple[str, Any]]:
    """The fields that hold a number, or several, with their types."""
    hints = get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        if types_in(hints[field.name]) & {int, float}:
            yield field.name, hints[field.name]


def required(config_class: type) -> list[str]:
    """Arguments for the fields that have no default."""
    missing = dataclasses.MISSING
    names = [f.name for f in dataclasses.fields(config_class) if f.default is f.default_factory is missing]
    return [part for name in names for part in (f"--{name.replace('_', '-')}", "nowhere")]


def is_in(range_: Range, value: str, annotation: Any) -> bool:
    try:
        return (float(value) if float in types_in(annotation) else int(value)) in range_
    except ValueError:  # a whole number was asked for
        return False


@pytest.mark.parametrize("script_name", SCRIPTS)
def test_every_number_has_a_range_that_is_checked_first(
    script_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if script_name in NOT_YET:
        pytest.skip("has no ranges yet")
    configs: list[Any] = []
    script = find_script(script_name)._replace(main=configs.append)
    monkeypatch.chdir(tmp_path)
    for name, annotation in numbers(script.config_class):
        range_ = range_of(annotation)
        if not types_in(annotation) & {tuple, list}:
            assert range_ is not None, f"{name} has no range: say Annotated[int, Range(...)], and call check_ranges"
        for value in VALUES:
            configs.clear()
            flag = f"--{name.replace('_', '-')}"
            end = call_with(script, script_name, *required(script.config_class), f"{flag}={value}")
            message = end if isinstance(end, str) else capsys.readouterr().err
            assert bool(configs) == (end is None), (flag, value)
            if range_ is not None and not is_in(range_, value, annotation):
                assert end is not None, f"{flag}={value} was accepted, but is not {range_}"
                assert name in message or flag in message, message
            assert not message.startswith("error: ") or "\n" not in message
    assert not list(tmp_path.iterdir())


def test_there_are_scripts() -> None:
    """The search for them would otherwise fail without a word."""
    assert len(SCRIPTS) >= 12
