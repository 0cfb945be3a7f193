"""Every notebook runs from top to bottom as it is, and is committed as it ran."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
LESSONS = sorted(ROOT.glob("*/[0-9]*.ipynb"))
NOTEBOOKS = [*LESSONS, *sorted(ROOT.glob("*/solutions/[0-9]*.ipynb"))]


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind and "".join(cell["source"]).strip()]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


@pytest.mark.parametrize(
    ("chapter", "n_lessons"), [("working_with_text_data", 5), ("attention_mechanisms", 5), ("gpt_model", 6)]
)
def test_every_lesson_has_its_solutions(chapter: str, n_lessons: int) -> None:
    names = {path.name for path in LESSONS if path.parent.name == chapter}
    assert len(names) == n_lessons
    assert {path.name for path in (ROOT / chapter / "solutions").glob("*.ipynb")} == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\((?!http|#|attachment)([^)#]+)", "".join(cell["source"])):
            assert (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_runs_from_top_to_bottom(path: Path, say: Callable[[str], None]) -> None:
    """Each in a kernel of its own, which ends with it."""
    started = time.monotonic()
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # where there is a network, no lesson downloads gigabytes here
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": path.parent}}).execute(env=offline)
    say(f"{ids(path)}: {time.monotonic() - started:.0f} s")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_is_committed_with_its_outputs(path: Path) -> None:
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run it in one go"
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "".join(output["text"])
            text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
            assert text.count("\n") <= 40, "an output nobody will read"
            for folder in (ROOT, Path.home(), Path("/tmp")):
                assert f"{folder}/" not in text, "a path of one machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_is_prose_first(path: Path) -> None:
    code = cells(path, "code")
    assert len(cells(path, "markdown")) >= len(code)
    assert max("".join(cell["source"]).count("\n") for cell in code) < 25, "a wall of code belongs in a module"
