"""Every notebook runs from top to bottom as it is, and is committed as it ran."""

import itertools
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import execute

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(path for path in ROOT.glob("[a-z]*/**/[0-9]*.ipynb") if ".ipynb_checkpoints" not in path.parts)
LESSONS = [path for path in NOTEBOOKS if path.parent.name != "solutions"]
# The tag of a cell whose text is another elsewhere or later: it prints times, or what came of training, or it counts
# the code of this repository.
VARIES = "varies"
DECIMAL = re.compile(r"-?\d[\d,]*(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)")


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind and "".join(cell["source"]).strip()]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


@pytest.mark.parametrize(
    ("chapter", "n_lessons"),
    [("working_with_text_data", 5), ("attention_mechanisms", 5), ("gpt_model", 6), ("pretraining", 8)],
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_hints_are_markdown(path: Path) -> None:
    """What stands on the line of an HTML tag is HTML to all who render it, with backticks and dollars as they are."""
    for cell in cells(path, "markdown"):
        source = "".join(cell["source"])
        assert not re.search(r"</summary>(?!\n\n)|(?<!\n\n)</details>", source), f"cell {cell['id']}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_every_figure_is_stored(path: Path) -> None:
    """A notebook that was executed where nothing is drawn has its text, and no pictures."""
    for cell in cells(path, "code"):
        if "plt.show()" in "".join(cell["source"]).splitlines():
            kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
            assert any(kind.startswith("image/") for kind in kinds), f"cell {cell['id']} shows no picture"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_what_a_cell_prints_is_stored_in_one_piece(path: Path) -> None:
    """A kernel sends it in pieces, and a page shows each as a paragraph: jupyter nbconvert --coalesce-streams."""
    for cell in cells(path, "code"):
        streams = [output.get("name") for output in cell["outputs"]]
        assert all(one is None or one != next_ for one, next_ in itertools.pairwise(streams)), f"cell {cell['id']}"


def printed(cell: dict[str, Any]) -> str:
    """Return all text among the outputs of a cell, without the pictures."""
    texts = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            texts.append("".join(output["text"]))
        elif not any(kind.startswith("image/") for kind in output.get("data", {})):
            texts.append("".join(output.get("data", {}).get("text/plain", "")) + "\n")
    return "".join(texts)


def differences(stored: dict[str, Any], executed: dict[str, Any]) -> list[str]:
    """Return where a notebook prints something else than what is stored.

    Words and whole numbers must be equal. Decimals may be 2% or 1e-5 apart, since the last digits of a sum depend
    on the processor. Cells with the tag "varies" are left out.
    """
    found = []
    for before, after in zip(stored["cells"], executed["cells"], strict=True):
        if before["cell_type"] != "code" or VARIES in before["metadata"].get("tags", []):
            continue
        texts = [printed(before), printed(after)]
        words = [DECIMAL.sub("0.0", text).split() for text in texts]
        numbers = [[float(number.replace(",", "")) for number in DECIMAL.findall(text)] for text in texts]
        close = (math.isclose(a, b, rel_tol=0.02, abs_tol=1e-5) for a, b in zip(*numbers, strict=False))
        if words[0] != words[1] or not all(close):
            found.append(f"cell {before['id']} has stored\n{texts[0]}and prints\n{texts[1]}")
    return found


def notebook_that_prints(*texts: str, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    outputs = [{"output_type": "stream", "name": "stdout", "text": text} for text in texts]
    return {"cells": [{"cell_type": "code", "id": "one", "metadata": {"tags": list(tags)}, "outputs": outputs}]}


@pytest.mark.parametrize(
    ("now", "equal"),
    [
        (["loss 3.44,\n", "1,024 tokens\n"], True),  # in two parts: streams arrive as they please
        (["loss 3.45,\n1,024 tokens\n"], True),
        (["loss 3.64,\n1,024 tokens\n"], False),
        (["loss 3.44,\n1,025 tokens\n"], False),
        (["less 3.44,\n1,024 tokens\n"], False),
        (["loss 3.44,\n"], False),
    ],
)
def test_what_counts_as_a_difference(now: list[str], equal: bool) -> None:
    stored = notebook_that_prints("loss 3.44,\n1,024 tokens\n")
    assert (differences(stored, notebook_that_prints(*now)) == []) == equal
    stored = notebook_that_prints("loss 3.44,\n1,024 tokens\n", tags=(VARIES,))
    assert not differences(stored, notebook_that_prints(*now))


def test_few_cells_vary() -> None:
    """A tag is an exception: it is for cells that print, and for few of them."""
    tagged = []
    printing = [(path, cell) for path in NOTEBOOKS for cell in cells(path, "code") if printed(cell)]
    for path in NOTEBOOKS:
        for cell in cells(path, "code"):
            if VARIES in cell["metadata"].get("tags", []):
                assert printed(cell), f"{ids(path)}: cell {cell['id']} prints nothing, so it needs no tag"
                tagged.append(cell)
    assert len(tagged) < len(printing) / 5


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_runs_from_top_to_bottom(path: Path, say: Callable[[str], None]) -> None:
    """Each in a kernel of its own, which ends with it."""
    started = time.monotonic()
    found = differences(json.loads(path.read_text(encoding="utf-8")), execute(path))
    assert not found, "execute it anew (make notebooks), or tag what depends on the machine:\n" + "\n".join(found)
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
def test_shows_the_same_whatever_the_reader_has_trained(path: Path) -> None:
    """A lesson that took a model from runs/ once broke after `make demo`, whose model is of another kind."""
    assert not any("../runs" in "".join(cell["source"]) for cell in cells(path, "code"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_is_prose_first(path: Path) -> None:
    code = cells(path, "code")
    assert len(cells(path, "markdown")) >= len(code)
    assert max("".join(cell["source"]).count("\n") for cell in code) < 25, "a wall of code belongs in a module"
