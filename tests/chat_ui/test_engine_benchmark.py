"""What measures the engine works, and its page shows what is stored."""

import json
from pathlib import Path

import pytest

from chat_ui.benchmark import __main__ as benchmark
from chat_ui.benchmark.figures import tables
from chat_ui.load import table
from tests.chat_ui.small_runs import write_run

RESULTS = Path(benchmark.__file__).parent.parent / "results"


@pytest.mark.slow
def test_all_parts_are_measured_stored_and_shown(
    tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "small")
    benchmark.main(benchmark.Config(quick=True, run=run, results=tmp_path / "r", figures=tmp_path / "f", device="cpu"))
    (equal,) = json.loads((tmp_path / "r" / "equal.json").read_text())["rows"]
    assert equal["equal_texts"] == equal["texts"] == 8
    assert 0 < equal["largest_difference"] < 1e-3
    rows = json.loads((tmp_path / "r" / "curve.json").read_text())["rows"]
    assert [row["at_once"] for row in rows] == [0, 1, 2, 4, 8, 16, 32]
    assert rows[1]["times_one"]["median"] == 1
    (turn,) = json.loads((tmp_path / "r" / "turns.json").read_text())["rows"]
    assert turn["share"]["median"] < 0.8
    assert (tmp_path / "f" / "curve.svg").exists()
    assert capsys.readouterr().out.count("| small |") == 8


def test_the_page_shows_what_is_stored() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert tables(RESULTS) in page
    assert table(json.loads((RESULTS / "load.json").read_text())["rows"]) in page
