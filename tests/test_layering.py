"""The house has an order: a chapter imports earlier chapters and `utils`, never later ones, and nothing in circles.

CONTRIBUTING.md tells these rules to people.
"""

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "utils", "working_with_text_data", "attention_mechanisms", "gpt_model", "pretraining", "finetuning", "chat_ui",
    "deployment",
]  # fmt: skip
MODULES = [path for chapter in ORDER for path in sorted((ROOT / chapter).rglob("*.py"))]
NOTEBOOKS = [path for chapter in ORDER for path in sorted((ROOT / chapter).rglob("[0-9]*.ipynb"))]
MOST_LINES_OF_A_MODULE = 400
MOST_LINES_OF_A_FUNCTION = 50


# What may break the rules, each with its reason; an exception that is no longer needed fails its test.
LONG_FUNCTIONS: dict[str, str] = {}
CIRCLES = {
    frozenset({"gpt_model.gpt", "gpt_model.pretrained", "gpt_model.run_directory"}): (
        "GPT.from_run, GPT.from_pretrained and export_to_hf: an idiom that people know"
    ),
}
LOOKING_AHEAD = {
    "attention_mechanisms/04_windows_and_sinks.ipynb": "sinks need a model that is trained and streams; it says so",
    "attention_mechanisms/05_the_kv_cache.ipynb": "a cache is for a whole model that writes; it says so",
    "gpt_model/04_generating_text.ipynb": "samples from a trained model, and training is the next chapter; it says so",
    "gpt_model/06_looking_inside.ipynb": "looks into a trained model, and training is the next chapter; it says so",
    "gpt_model/solutions/04_generating_text.ipynb": "as its lesson",
    "gpt_model/solutions/06_looking_inside.ipynb": "as its lesson",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in MODULES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full names of all that is imported, inside functions too, but not for type checking only.

    Of `from a import b` it yields "a.b", whether b is a module or something inside a.
    """
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        children = tree.orelse
    else:
        children = list(ast.iter_child_nodes(tree))
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        assert not tree.level, "imports are absolute"
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    for child in children:
        yield from imports(child)


def chapters(tree: ast.AST) -> set[str]:
    """Return the chapters that something imports from, for type checking too."""
    names = [
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom)
            else []
        )
    ]  # fmt: skip
    return {name.split(".")[0] for name in names} & set(ORDER)


def later_than(path: Path) -> set[str]:
    """Return the chapters that a file may not import: none may be imported by `utils`."""
    place = ORDER.index(path.relative_to(ROOT).parts[0])
    return set(ORDER[1:] if place == 0 else ORDER[place + 1 :])


def code_of(notebook: Path) -> ast.Module:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    return ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_what_comes_before(path: Path) -> None:
    assert not chapters(ast.parse(path.read_text(encoding="utf-8"))) & later_than(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_notebook_imports_only_what_was_taught(path: Path) -> None:
    ahead = chapters(code_of(path)) & later_than(path)
    excepted = path.relative_to(ROOT).as_posix() in LOOKING_AHEAD
    assert not ahead or excepted, f"it looks ahead at {', '.join(sorted(ahead))}"
    assert ahead or not excepted, "it no longer looks ahead: take it out of LOOKING_AHEAD"


def circles(graph: Mapping[str, Collection[str]]) -> set[frozenset[str]]:
    """Return the groups of nodes of which each can be reached from each other."""

    def reached_from(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            if (node := waiting.pop()) not in seen:
                seen.add(node)
                waiting += graph[node]
        return seen

    reached = {node: reached_from(node) for node in graph}
    groups = {frozenset(other for other in reached[node] if node in reached[other]) for node in graph}
    return {group for group in groups if group}


def test_circles_are_found() -> None:
    graph = {"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": [], "e": ["e"]}
    assert circles(graph) == {frozenset("bc"), frozenset("e")}


def test_imports_inside_functions_count_and_those_for_type_checking_do_not() -> None:
    code = "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\ndef f():\n    from d.e import g\n"
    assert list(imports(ast.parse(code))) == ["a", "c", "d.e.g"]


def test_modules_form_no_circle() -> None:
    """An import inside a function hides a circle from Python, but not from a reader who looks for a place to begin."""
    graph = {}
    for name, path in NAMES.items():
        found = imports(ast.parse(path.read_text(encoding="utf-8")))
        modules = (full if full in NAMES else full.rpartition(".")[0] for full in found)
        graph[name] = {module for module in modules if module in NAMES and module != name}
    assert circles(graph) == CIRCLES.keys(), "CIRCLES has one that is no longer there, or lacks a new one"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_say_what_they_are_and_shadow_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= MOST_LINES_OF_A_MODULE
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), "a module opens with a docstring"
        # notebooks run inside their folder, where such a name would hide the standard library's module
        assert path.stem not in sys.stdlib_module_names


def test_functions_are_short() -> None:
    long = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MOST_LINES_OF_A_FUNCTION:
                long.add(f"{path.relative_to(ROOT).as_posix()}: {node.name}")
    assert long == LONG_FUNCTIONS.keys(), f"more than {MOST_LINES_OF_A_FUNCTION} lines hold two ideas"


@pytest.mark.parametrize("name", [name for name, path in NAMES.items() if ">>> " in path.read_text(encoding="utf-8")])
def test_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed


CALQUES = re.compile(
    r"\b(tokens|bytes|bits|numbers|operations|FLOPs?|MB|GB|seconds|ms|milliseconds|steps?|tokens/s|heads|vectors?) an? "
    r"(token|second|row|step|byte|head|call|block|group|layer|batch|character|round|epoch)\b(?! (looks|sees|can|has)\b)"
    r"|is no (bool|number|tensor|list|string)\b|\bbut so [A-Z]"
)


@pytest.mark.parametrize(
    ("text", "found"),
    [("2 bytes a token", True), ("it is no bool", True), ("bytes per token", False), ("tokens a token sees", False)],
)
def test_calques_are_found(text: str, found: bool) -> None:
    assert bool(CALQUES.search(text)) == found


def test_english_says_per_and_not() -> None:
    """What a second holds is counted per second, and what is not a number is not a number."""
    found = [f"{path}: {match[0]}" for path in MODULES for match in CALQUES.finditer(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_people_are_told_the_rules() -> None:
    told = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert f"A module has at most {MOST_LINES_OF_A_MODULE} lines" in told
    assert f"A function has at most {MOST_LINES_OF_A_FUNCTION} lines" in told
    there = [chapter for chapter in ORDER if (ROOT / chapter).exists()]
    assert f"order of chapters** is {', '.join(f'`{chapter}`' for chapter in there)}." in told


def test_every_package_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in MODULES}
    assert set(setuptools["packages"]) == folders | set(setuptools["package-data"])


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
