"""Each part of the project starts with the packages that its extra installs, and with no others.

The environment of the tests has the packages of all extras. So each part is imported by a Python of its own, whose
only packages are links to those of one extra.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORT = """
import json, sys
for where, line in json.load(sys.stdin):
    try:
        exec(line, {})
    except ModuleNotFoundError as error:
        print(f"{where}: {error}")
"""


def distributions(extra: str | None) -> set[str]:
    """Return the names of the distributions that an installation with an extra brings along."""
    name = PROJECT["name"]
    asked = [f"{name}[{extra}]" if extra else name]
    todo = [Requirement(text) for text in asked]
    found: dict[tuple[str, frozenset[str]], None] = {}
    while todo:
        wanted = todo.pop()
        key = (re.sub(r"[-_.]+", "-", wanted.name).lower(), frozenset(wanted.extras))
        if key in found:
            continue
        if wanted.name == name:  # as it is written now, which may not be what is installed
            needs = PROJECT["dependencies"] + [
                need for each in wanted.extras for need in PROJECT["optional-dependencies"][each]
            ]
        else:
            try:
                needs = metadata.requires(wanted.name) or []
            except metadata.PackageNotFoundError:  # for another system, or another kind of PyTorch
                continue
        found[key] = None
        todo += [need for need in map(Requirement, needs) if _applies(need, wanted.extras)]
    return {each for each, _ in found} - {name}


def _applies(need: Requirement, extras: set[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def link(names: set[str], folder: Path) -> None:
    """Fill a folder with links to all that these distributions installed."""
    for name in names:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


def modules(*folders: str) -> list[tuple[str, str]]:
    """Return a line that imports each module below some folders, with its name."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [(name, f"import {name}") for name in names]


def lessons() -> list[tuple[str, str]]:
    """Return the imports of all lessons, each with the lesson's name."""
    found = []
    for path in sorted(path for path in ROOT.glob("[a-z]*/**/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in (cell for cell in cells if cell["cell_type"] == "code"):
            code = "".join(line for line in cell["source"] if not line.startswith("%"))
            nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
            found += [(path.relative_to(ROOT).as_posix(), ast.unparse(node)) for node in nodes]
    return found


def missing(extra: str | None, lines: list[tuple[str, str]], folder: Path) -> str:
    """Return which of the imports fail where nothing is installed but the core and an extra."""
    link(distributions(extra), folder)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    command = [sys.executable, "-S", "-c", IMPORT]
    return subprocess.run(
        command, input=json.dumps(lines), env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("extra", "folders"),
    [
        (
            None,
            ["utils", "working_with_text_data", "attention_mechanisms", "gpt_model", "pretraining", "finetuning"],
        ),
        ("chat", ["chat_ui"]),
        ("cloud", ["deployment"]),
    ],
)  # fmt: skip
def test_a_part_needs_no_more_than_its_extra_brings(extra: str | None, folders: list[str], tmp_path: Path) -> None:
    assert missing(extra, modules(*folders), tmp_path) == ""


def test_make_notebook_installs_what_lessons_import(tmp_path: Path) -> None:
    lines = lessons()
    assert len({lesson for lesson, _ in lines}) > 50
    assert missing("notebooks", lines, tmp_path) == ""
