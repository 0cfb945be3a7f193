"""The project's scripts, called as `python -m` calls them but in this process, which takes no seconds to start."""

import ast
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from utils import command_line

ROOT = Path(__file__).parent.parent
STARTS = "from utils.command_line import run"
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.glob("[a-z]*/**/*.py")
    if path.relative_to(ROOT).parts[0] != "tests" and STARTS in path.read_text(encoding="utf-8")
)


class Script(NamedTuple):
    """What a script gives to the command line."""

    main: Any
    config_class: type
    presets: Mapping[str, Any]


def find_script(name: str) -> Script:
    """Import a script, and find the arguments of its call of `run`, which it makes only as the main module."""
    module = importlib.import_module(name)
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if _is_start(node)]
    assert len(calls) == 1
    main, config_class, *presets = (getattr(module, argument.id) for argument in calls[0].args)
    return Script(main, config_class, presets[0] if presets else {})


def _is_start(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run"


def call(name: str, *arguments: object) -> int | str | None:
    """Run a script by its module's name; return None, or where it does not end well its last line or exit status."""
    return call_with(find_script(name), name, *arguments)


def call_with(script: Script, name: str, *arguments: object) -> int | str | None:
    """Do as `call`, with a script that may have been changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name=name))
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            command_line.run(*script)
        except SystemExit as end:
            return end.code
    return None
