"""The comparison of recipes: its rows are runs, and a run that is there is not made again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from finetuning.classification import ablations, train
from tests.finetuning.classification.test_train import write_reviews
from utils.files import InputError


def test_runs_are_compared_and_kept(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(train.PRESETS["demo"], most_tokens=32, batch_size=8, eval_every=5, precision="float32")
    monkeypatch.setitem(train.PRESETS, "demo", small)
    config = ablations.Config(
        base=finished_run, data=write_reviews(tmp_path / "data.csv"), out=tmp_path / "runs", seeds=1, epochs=1,
        texts=16, results=tmp_path / "results" / "ablations.json", changes=("the recipe", "words swapped"),
        device="cpu",
    )  # fmt: skip
    result = ablations.main(config)
    assert json.loads(config.results.read_bytes()) == result
    assert [row["change"] for row in result["rows"]] == ["the recipe", "words swapped"]
    assert (tmp_path / "figures" / "ablations.svg").exists()
    assert ablations.table(result).count("\n") == 3
    monkeypatch.setattr(train, "main", None)
    assert ablations.main(config)["rows"] == result["rows"]
    config.results.write_text("[]")
    with pytest.raises(InputError, match="was not written by this command"):
        ablations.main(config)
    with pytest.raises(InputError, match="there is no change 'luck'"):
        replace(config, changes=("luck",))
