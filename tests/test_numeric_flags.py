"""Every number that a script takes has a range, and is checked before anything is done: never a traceback."""

import ast
import dataclasses
import importlib
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from torch.distributed.run import get_args_parser

from utils import command_line
from utils.ranges import Range, range_of

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for path in ROOT.glob("[a-z]*/**/*.py")
    if path.relative_to(ROOT).parts[0] != "tests" and '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
)
VALUES = ("0", "-1", "nan", "inf", str(2**64), str(10**12), "1e308")


def types_in(annotation: Any) -> set[Any]:
    """All types that an annotation is made of: those of `tuple[int, ...] | None` are tuple, int and None's."""
    inside = get_args(annotation)
    return {annotation} if not inside else set().union(*map(types_in, inside))


def holds_several(annotation: Any) -> bool:
    """Whether a value is a container of numbers, whose elements are checked elsewhere."""
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Collection):
        return True
    return any(map(holds_several, get_args(annotation)))


def command(path: Path) -> tuple[ModuleType, type, Mapping[str, Any]]:
    """The module of a script, its configuration and its presets, as it gives them to the command line."""
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))) if is_start(node)]
    assert len(calls) == 1
    config_class, *presets = (getattr(module, argument.id) for argument in calls[0].args[1:])
    return module, config_class, presets[0] if presets else {}


def is_start(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("run", "run_benchmark")


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


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_every_number_has_a_range_that_is_checked_first(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, config_class, presets = command(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name=module.__name__))
    for name, annotation in numbers(config_class):
        range_ = range_of(annotation)
        if not holds_several(annotation):
            assert range_ is not None, f"{name} has no range: say Annotated[int, Range(...)], and call check_ranges"
        for value in VALUES:
            configs: list[Any] = []
            flag = f"--{name.replace('_', '-')}"
            monkeypatch.setattr(sys, "argv", [path.name, *required(config_class), f"{flag}={value}"])
            try:
                command_line.run(configs.append, config_class, presets)
                message = ""
            except SystemExit as end:
                message = end.code if isinstance(end.code, str) else capsys.readouterr().err
            assert bool(configs) == (not message), (flag, value)
            if configs and range_ is not None:
                assert is_in(range_, value, annotation), f"{flag}={value} was accepted, but is not {range_}"
            if message and range_ is not None and not is_in(range_, value, annotation):
                assert name in message or flag in message, message
            assert not message.startswith("error: ") or "\n" not in message
    assert not list(tmp_path.iterdir())


SHARED = [path for path in SCRIPTS if "with training_in(" in (ROOT / path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", SHARED, ids=str)
def test_torchrun_hands_every_flag_on(path: Path) -> None:
    """It reads a flag that begins two of its own, such as --run, as one of those, and ends with an error."""
    _, config_class, _ = command(path)
    flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config_class)]
    for flag in flags:
        given = get_args_parser().parse_args(["--nproc-per-node", "2", "-m", "a.module", flag, "value"])
        assert given.training_script_args == [flag, "value"]
    assert "--out" in flags


def test_there_are_scripts() -> None:
    """The search for them would otherwise fail without a word."""
    assert len(SCRIPTS) >= 12
    assert len(SHARED) >= 5
