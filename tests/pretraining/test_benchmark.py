"""The parts of the benchmark run, on a tiny model, and return the numbers that the README quotes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from gpt_model import GPTConfig
from gpt_model.costs import mfu, training_memory
from pretraining import simple
from pretraining.benchmark import __main__ as benchmark
from pretraining.benchmark import gpu_ladder, gpu_step, speed
from tests.tiny_run import tiny
from utils.files import InputError

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


def test_a_step_as_on_a_gpu_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the GPU itself: tiny, and where PyTorch counts no memory of a GPU."""
    monkeypatch.setattr(gpu_step, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(gpu_step, "TIMED_STEPS", 2)
    monkeypatch.setattr(gpu_step, "TRAINING_TOKENS", 5000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10**9)
    data = gpu_step.write_random_tokens(tmp_path, vocab_size=512)
    model_config = GPTConfig(vocab_size=512, context_length=32, d_model=32, n_layers=2, n_heads=2)
    row = gpu_step.measure_step(tiny(data, tmp_path / "run", optimizer="muon"), model_config, peak=1e12)
    stored = json.loads((RESULTS / "gpu.json").read_bytes())
    assert row.keys() == stored["rows"][0].keys()
    speed = row["tokens_per_second"]
    assert speed["worst"] <= speed["median"] <= speed["best"]
    assert 0 < row["mfu"] < 1
    assert 5 < row["losses"][0] < 8, "about the logarithm of 512"
    assert gpu_step.gpu_table({"rows": [row]}).splitlines()[2].startswith("| muon | ")


def test_the_stored_step_on_a_gpu_is_of_the_model_and_formulas_as_they_are() -> None:
    stored = json.loads((RESULTS / "gpu.json").read_bytes())
    config = GPTConfig.preset(stored["model"], vocab_multiple=gpu_step.VOCAB_MULTIPLE)
    assert [row["optimizer"] for row in stored["rows"]] == list(gpu_step.PEAK_RATES)
    for row in stored["rows"]:
        speed = row["tokens_per_second"]["median"]
        assert row["mfu"] == pytest.approx(mfu(config, speed, stored["peak_flops_per_second"]))
        formula = training_memory(config, stored["batch_size"], stored["context_length"], optimizer=row["optimizer"])
        assert row["memory_formula"] == formula.total > row["memory"], "which is without torch.compile"


def test_the_ladder_is_climbed_and_a_rung_that_fails_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_ladder, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(gpu_ladder, "STEPS_PER_ROUND", 1)
    broken = gpu_ladder.Rung("broken", lambda *arguments: 1 / 0)
    monkeypatch.setattr(gpu_ladder, "RUNGS", (broken, *gpu_ladder.RUNGS))
    config = GPTConfig(vocab_size=500, context_length=32, d_model=32, n_layers=2, n_heads=2)
    rows = list(gpu_ladder.climb(config, 4, torch.device("cpu"), 1e12, compiled=False))
    assert rows[0] == {"rung": "broken", "failed": "ZeroDivisionError: division by zero"}
    assert [row["batch_size"] for row in rows[1:-1]] == [4, 4, 4, 4, 4, 8, 4, 4]
    assert rows[-1]["rung"] == "engine, AdamW, attention by cuDNN"
    assert rows[-1]["failed"].startswith("RuntimeError: No viable backend"), "there is no cuDNN on a CPU"
    for row in rows[1:-1]:
        speed = row["tokens_per_second"]
        assert 0 < speed["worst"] <= speed["median"] <= speed["best"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("part", ["gpu", "ladder"])
def test_without_a_gpu_its_part_is_refused(tmp_path: Path, part: Literal["gpu", "ladder"]) -> None:
    with pytest.raises(InputError, match=f"--part {part} needs a GPU"):
        benchmark.main(benchmark.Config(part=part, results=tmp_path / "results"))
    assert not list(tmp_path.iterdir())
