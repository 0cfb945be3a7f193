"""The bag of words: its report, its twin in PyTorch, and what it reaches on real reviews."""

import csv
import json
from pathlib import Path

import pytest

from finetuning.classification import baseline
from utils.files import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baseline") / "report"
    baseline.main(baseline.Config(out=out))
    return out


def test_the_report_has_what_it_should(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_bytes())
    assert report["test"]["accuracy"] > 0.74  # of 1,057 sentences; chance is 0.5
    assert abs(report["torch"]["test_accuracy"] - report["test"]["accuracy"]) < 0.01
    assert report["reviews_per_second"]["measured"] > 0
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    right = [row["label"] == max(("negative", "positive"), key=lambda name: float(row[f"p({name})"])) for row in rows]
    assert sum(right) / len(right) == pytest.approx(report["test"]["accuracy"], abs=1e-3)


def test_a_report_is_replaced_only_when_asked_for_and_only_if_it_is_one(folder: Path) -> None:
    with pytest.raises(InputError, match="--overwrite"):
        baseline.main(baseline.Config(out=folder))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt, which is not ours"):
        baseline.main(baseline.Config(out=folder, overwrite=True))
    (folder / "notes.txt").unlink()
