"""The benchmark runs on any text, from the command line, and what it stores can be shown."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from utils.files import InputError
from utils.measuring import Call, Case
from working_with_text_data.benchmark import __main__ as benchmark
from working_with_text_data.benchmark import cases, figures
from working_with_text_data.benchmark.figures import PARTS

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_it_runs_on_any_text(
    tmp_path: Path, persuasion: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole in this process, without the fifty others it begins; one of its parts as it is."""
    (tmp_path / "english.txt").write_text(persuasion[:8_000], encoding="utf-8")
    (tmp_path / "greek.txt").write_text("Ἄνδρα μοι ἔννεπε, Μοῦσα, πολύτροπον, ὃς μάλα πολλὰ\n" * 50, encoding="utf-8")
    results, drawn = tmp_path / "results", tmp_path / "figures"
    texts = (tmp_path / "english.txt", tmp_path / "greek.txt")
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "in_processes", in_this_process)
        patch.setattr(os, "environ", os.environ.copy())  # where measurements say how many threads others may have
        benchmark.main(benchmark.Config(rounds=1, results=results, figures=drawn, texts=texts))
    printed = capsys.readouterr().out
    stored = figures.load(results)
    assert list(stored) == list(PARTS)
    for part in PARTS:
        assert stored[part]["machine"]["torch"]
        assert getattr(figures, f"{part}_table")(stored[part]) in printed
    rows = stored["encoding"]["rows"]
    assert {(row["text"], row["tokenizer"]) for row in rows} >= {("greek", "textbook"), ("english", "tokenizers")}
    assert all(row["bytes"] == (tmp_path / f"{row['text']}.txt").stat().st_size for row in rows)
    assert {path.name for path in drawn.iterdir()} == {"encoding.svg", "steps.svg", "training.svg"}

    before = stored["steps"]
    flags = ["--part", "steps", "--rounds", 1, "--results", results, "--figures", drawn, "--texts", *texts]
    run = commands.run("working_with_text_data.benchmark", *flags)
    assert run.returncode == 0, run.stderr[-2000:]
    after = figures.load(results)["steps"]
    assert after != before
    assert [row["checksum"] for row in after["rows"]] == [row["checksum"] for row in before["rows"]]
    assert figures.steps_table(after) in run.stdout


def in_this_process(calls: Mapping[Case, Call], rounds: int) -> dict[Case, list[Any]]:
    return {
        case: [json.loads(json.dumps(function(*arguments))) for _ in range(rounds)]
        for case, (function, arguments) in calls.items()
    }


def test_contenders_that_disagree_are_not_compared() -> None:
    rows = [{"text": "a", "tokenizer": name, "checksum": name} for name in ("ours", "tiktoken")]
    with pytest.raises(RuntimeError, match="differ in their ids"):
        benchmark._check_equal(rows, ("text",), "checksum")
    benchmark._check_equal(rows, ("text",), "checksum", skip=("tiktoken",))


def test_texts_are_read_whole_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, persuasion: str) -> None:
    monkeypatch.setattr(cases, "PART_CHARACTERS", 10_000)
    (tmp_path / "a.txt").write_text(persuasion, encoding="utf-8")
    parts = list(cases.texts(tmp_path))
    assert len(parts) > 40
    assert "".join(parts) == persuasion
    first = list(cases.first_bytes(tmp_path / "a.txt", 25_001))
    assert len("".join(first).encode()) == 25_001


def test_growth_is_the_exponent() -> None:
    times = [{"median": 3 * x**1.5} for x in (1, 10, 100)]
    assert benchmark._growth([1, 10, 100], times)["exponent"] == pytest.approx(1.5)


def test_texts_that_cannot_be_measured(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text('{"text": "a"}')
    for path, message in [
        (tmp_path / "none.txt", f"there is no file or folder {tmp_path / 'none.txt'}"),
        (Path("/dev/zero"), "/dev/zero is a pipe, a device or the like"),
        (tmp_path / "empty.txt", "empty.txt holds no text"),
        (tmp_path / "lines", "lines holds no text: give .* a folder of .txt"),
    ]:
        with pytest.raises(InputError, match=message):
            benchmark.main(benchmark.Config(texts=(path,)))


def test_committed_results_meet_what_the_chapter_claims() -> None:
    """The targets, as far as they are met; a new measurement that falls short shows here."""
    results = {part: json.loads((ROOT / f"working_with_text_data/results/{part}.json").read_bytes()) for part in PARTS}
    rows = {(row["text"], row["encoding"], row["tokenizer"]): row for row in results["encoding"]["rows"]}
    ours = rows["english", "gpt2", "ours"]
    assert ours["bytes"] > 40e6
    assert ours["cold_of_tiktoken"] >= 1.0
    assert ours["warm_of_tiktoken"] >= 1.3
    assert rows["english", "gpt2", "ours, as array"]["cold_of_tiktoken"] >= 1.0
    assert results["training"]["versus"]["times_as_fast"] >= 1.0
    steps = {(row["what"], row["step"]): row for row in results["steps"]["rows"]}
    assert steps["training", "with a heap"]["times_the_textbook"] >= 100
