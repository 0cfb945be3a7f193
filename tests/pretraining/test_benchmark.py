"""The parts of the benchmark run, on a tiny model, and return the numbers that the README quotes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretraining import simple
from pretraining.benchmark import __main__ as benchmark
from pretraining.benchmark import speed
from tests.tiny_run import tiny

RESULTS = Path(__file__).parent.parent.parent / "pretraining" / "results"


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> Path:
    """Make the demo a tiny one, and return its data."""
    settings = tiny(data, tmp_path / "run")
    monkeypatch.setitem(simple.PRESETS, "demo", settings)
    monkeypatch.setattr(benchmark, "_prepared", lambda folder: settings)
    return data


def test_speed_is_that_of_the_steps_after_the_first(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(speed, "TIMED_STEPS", 2)
    monkeypatch.setattr(speed, "keep_freed_memory", lambda: None)
    for changes in ({}, {"kernel": "sdpa", "optimizer": "adamw", "keep_memory": False}):
        assert 100 < speed.tokens_per_second(str(tiny_demo), changes) < 1e7


def test_speeds_are_compared_with_the_demos(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {(name,): [100.0 * (i + 1), 100.0 * (i + 1), 7.0] for i, name in enumerate(speed.CHANGES)}
    monkeypatch.setattr(speed, "in_processes", lambda calls, rounds: measured)
    result = speed.measure_speed(Path("data"))
    assert result["tokens_per_second"]["as it is"] == 100
    assert result["share_of_the_demos"]["float32"] == 2
    assert result.keys() == json.loads((RESULTS / "speed.json").read_bytes()).keys() - {"machine"}


def test_optimizers_are_scored_after_equally_many_steps(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "OPTIMIZER_STEPS", 2)
    monkeypatch.setattr(benchmark, "OPTIMIZERS", {"Muon": {}, "AdamW": {"optimizer": "adamw"}})
    result = benchmark.measure_optimizers(tmp_path)
    assert result["steps"] == 2
    assert 1 < result["rows"]["Muon"]["bits_per_byte"] != result["rows"]["AdamW"]["bits_per_byte"] > 1


def test_only_the_part_asked_for_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure_demo", lambda folder: {"runs": []})
    benchmark.main(replace(benchmark.Config(), part="demo", results=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]
    assert json.loads((tmp_path / "demo.json").read_bytes())["machine"]["torch"]
