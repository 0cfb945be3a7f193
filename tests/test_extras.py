"""Each part of the project starts with the packages that its extra installs, and with no others.

The environment of the tests has the packages of all extras. So each part is imported by a Python of its own, whose
only packages are links to those of one extra.
"""

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
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(f"{name}: {error}")
"""


def distributions(extra: str | None) -> set[str]:
    """Return the names of the distributions that an installation with an extra brings along."""
    asked = PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else [])
    todo = [Requirement(text) for text in asked]
    found: dict[tuple[str, frozenset[str]], None] = {}
    while todo:
        wanted = todo.pop()
        key = (re.sub(r"[-_.]+", "-", wanted.name).lower(), frozenset(wanted.extras))
        if key in found:
            continue
        try:
            needs = metadata.requires(wanted.name) or []
        except metadata.PackageNotFoundError:  # for another system, or another kind of PyTorch
            continue
        found[key] = None
        todo += [need for need in map(Requirement, needs) if _applies(need, wanted.extras)]
    return {name for name, _ in found}


def _applies(need: Requirement, extras: set[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def link(names: set[str], folder: Path) -> None:
    """Fill a folder with links to all that these distributions installed."""
    for name in names:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


def modules(*folders: str) -> list[str]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize(
    ("extra", "folders"),
    [
        (
            None,
            ["utils", "working_with_text_data", "attention_mechanisms", "gpt_model", "pretraining",
             "finetuning/instruction"],
        ),
        ("finetune", ["finetuning"]),
        ("chat", ["chat_ui"]),
        ("cloud", ["deployment"]),
    ],
)  # fmt: skip
def test_a_part_needs_no_more_than_its_extra_brings(extra: str | None, folders: list[str], tmp_path: Path) -> None:
    link(distributions(extra), tmp_path)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-S", "-c", IMPORT, *modules(*folders)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == ""
