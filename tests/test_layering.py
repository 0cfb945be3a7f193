"""The house has an order: a chapter imports earlier chapters and `utils`, never later ones."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "utils", "working_with_text_data", "attention_mechanisms", "gpt_model", "pretraining", "finetuning", "chat_ui",
    "deployment",
]  # fmt: skip
MODULES = [path for chapter in ORDER for path in sorted((ROOT / chapter).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of all imports in a file, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_what_comes_before(path: Path) -> None:
    place = ORDER.index(path.relative_to(ROOT).parts[0])
    later = imported(path) & set(ORDER[1:] if place == 0 else ORDER[place + 1 :])
    assert not later


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_say_what_they_are_and_shadow_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= 400
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), "a module opens with a docstring"
        # notebooks run inside their folder, where such a name would hide the standard library's module
        assert path.stem not in sys.stdlib_module_names
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno <= 60, f"{node.name} is too long to be one idea"


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in MODULES}
    assert set(listed) == folders


def test_the_lock_pins_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    names = {re.split(r"[\[><=]", name)[0] for name in wanted} - {project["name"]}
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in lines}
    assert names <= pinned
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines), "plain pins, no local builds"


def test_importing_does_nothing() -> None:
    """No module downloads, writes, prints or starts anything when imported, and none needs tyro or a notebook."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES if path.name != "__init__.py"]
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['tyro', 'transformers', 'tiktoken', 'matplotlib', 'IPython']))"
    )
    code += "".join(f"; import {module}" for module in modules)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_style() -> None:
    for arguments in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "."], capture_output=True, text=True, cwd=ROOT
        )
        assert result.returncode == 0, result.stdout
