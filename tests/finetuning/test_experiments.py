"""The experiments on fewer examples, small: trained, graded, stored, drawn, and not trained twice."""

import json
from pathlib import Path

import pytest

from finetuning.instruction import experiments
from finetuning.instruction.corpus import load_conversations
from utils.files import InputError


def test_they_compare_bases_and_numbers_of_examples(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiments, "PARTS", (1 / 64,))
    monkeypatch.setattr(experiments, "LONGEST_ANSWER", 4)
    config = experiments.Config(base=finished_run, out=tmp_path / "runs", results=tmp_path / "results.json", epochs=1)
    experiments.main(config)
    rows = json.loads(config.results.read_bytes())["rows"]
    assert [row["base"] for row in rows] == ["the demo's model", "random weights"]
    assert rows[0]["val_loss"] < rows[1]["val_loss"]
    assert (tmp_path / "results.svg").exists()
    n_examples = round(len(load_conversations("train")) / 64)
    assert f"| the demo's model | {n_examples} |" in capsys.readouterr().out
    curve = (tmp_path / "runs" / f"demo-{n_examples}" / "metrics.jsonl").read_bytes()
    experiments.main(config)
    assert json.loads(config.results.read_bytes())["rows"] == rows
    assert (tmp_path / "runs" / f"demo-{n_examples}" / "metrics.jsonl").read_bytes() == curve


def test_without_a_base_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        experiments.main(experiments.Config(base=tmp_path, out=tmp_path / "runs", results=tmp_path / "r.json"))
    assert not (tmp_path / "runs").exists()
