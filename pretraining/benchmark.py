"""Measure what this chapter claims, and store it in `results/` with hardware, versions and commit.

    python -m pretraining.benchmark                  # all of it: about half an hour on two idle cores

Each measurement is a process of its own, on an otherwise idle machine. The notebook and the README draw
and quote the stored results; a test compares the numbers.
"""

import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gpt_model.run_directory import load_tokenizer
from pretraining import demo, simple
from pretraining.config import Config as TrainingConfig
from pretraining.evaluate import read_split, score
from pretraining.metrics import read_metrics
from pretraining.open_run import open_run
from utils.files import write_atomically
from utils.hardware import describe, keep_freed_memory

log = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
SPEED_STEPS, SPEED_ROUNDS = 25, 3
OPTIMIZER_STEPS = 300

# the demo, and the demo with one thing changed
SPEED_CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "float32": {"precision": "float32"},
    "compiled": {"compile": "on"},
    "AdamW": {"optimizer": "adamw"},
    "sdpa kernel": {"kernel": "sdpa"},
    "memory handed back": {"keep_memory": False},
}
OPTIMIZER_CASES: dict[str, dict[str, Any]] = {
    "Muon, AdamW for the rest": {},
    "AdamW, learning rate 0.0005": {"optimizer": "adamw", "lr": 5e-4},
    "AdamW, learning rate 0.001": {"optimizer": "adamw", "lr": 1e-3},
    "AdamW, learning rate 0.002": {"optimizer": "adamw", "lr": 2e-3},
}


@dataclass(frozen=True)
class Config:
    """Measure the demo: its result for three seeds, what makes it fast, and what Muon brings."""

    part: Literal["all", "demo", "speed", "optimizers"] = "all"
    """demo: three whole runs of `make demo`. speed: tokens a second with one thing changed at a time.
    optimizers: bits a byte after equally many steps."""
    results: Path = RESULTS
    """Where the measurements are stored."""


def main(config: Config) -> None:
    parts = {"demo": measure_demo, "speed": measure_speed, "optimizers": measure_optimizers}
    for name, measure in parts.items():
        if config.part in (name, "all"):
            with tempfile.TemporaryDirectory() as folder:
                result = {"machine": describe(), **measure(Path(folder))}
            with write_atomically(config.results / f"{name}.json") as file:
                file.write(json.dumps(result, indent=1).encode())
            log.info("%s -> %s", name, config.results / f"{name}.json")


def measure_demo(folder: Path) -> dict[str, Any]:
    """Three demos from nothing, each as a user would start it; wall time includes everything."""
    runs = []
    for seed in SEEDS:
        out = folder / f"seed-{seed}"
        started = time.perf_counter()
        command = [sys.executable, "-m", "pretraining.demo", "--out", str(out), "--seed", str(seed)]
        _run(command)
        seconds = time.perf_counter() - started
        result = json.loads((out / "results.json").read_bytes())
        del result["machine"]
        runs.append({**result, "demo_seconds": round(seconds, 1), "metrics": read_metrics(out)})
        log.info("seed %s: %.4f bits a byte in %.0f s", seed, result["bits_per_byte"], seconds)
    values = [run["bits_per_byte"] for run in runs]
    return {"bits_per_byte_mean": statistics.mean(values), "bits_per_byte_worst": max(values), "runs": runs}


def measure_speed(folder: Path) -> dict[str, Any]:
    """Median tokens a second of a training step, compilation left out, the cases interleaved over several rounds."""
    training = _prepared(folder)
    speeds: dict[str, list[float]] = {name: [] for name in SPEED_CASES}
    for round_ in range(SPEED_ROUNDS):
        for name, changes in SPEED_CASES.items():
            case = {"data": str(training.data), "out": str(folder / f"{round_}-{name}"), **changes}
            code = f"from pretraining.benchmark import time_steps; time_steps({case!r})"
            speeds[name].append(float(_run([sys.executable, "-c", code])))
        log.info("round %s of %s: %s", round_ + 1, SPEED_ROUNDS, speeds)
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    base = medians["as it is"]
    return {
        "tokens_per_second": medians,
        "share_of_the_demos": {name: round(value / base, 2) for name, value in medians.items()},
        "rounds": {name: [round(value) for value in values] for name, values in speeds.items()},
    }


def time_steps(case: dict[str, Any]) -> None:
    """Print the tokens a second of one case: the median over steps after compilation and warm-up."""
    case = dict(case)
    kernel, keep_memory = case.pop("kernel", "auto"), case.pop("keep_memory", True)
    paths = {name: Path(case.pop(name)) for name in ("data", "out")}
    config, model_config, data = open_run(replace(simple.PRESETS["demo"], **paths, **case))
    if keep_memory:
        keep_freed_memory()
    trainer = simple.Trainer(config, replace(model_config, kernel=kernel), data)
    seconds = []
    for _ in range(SPEED_STEPS + 5):
        started = time.perf_counter()
        trainer.step()
        seconds.append(time.perf_counter() - started)
    print(config.batch_size * config.context_length / statistics.median(seconds[5:]))


def measure_optimizers(folder: Path) -> dict[str, Any]:
    """Bits a byte after equally many steps."""
    training = _prepared(folder)
    rows = {}
    for name, changes in OPTIMIZER_CASES.items():
        config = replace(training, out=folder / name, steps=OPTIMIZER_STEPS, snapshot_every=None, **changes)
        if not simple.main(config):
            raise KeyboardInterrupt  # it was asked to stop: half a measurement is none
        model = simple.GPT.from_run(config.out)
        result = score(model, load_tokenizer(config.out), read_split(config.data, "val"))
        rows[name] = {"bits_per_byte": result.bits_per_byte, "validation_loss": result.loss}
        log.info("%s: %.4f bits a byte", name, result.bits_per_byte)
    return {"steps": OPTIMIZER_STEPS, "rows": rows}


def _prepared(folder: Path) -> TrainingConfig:
    """The demo's training settings, with its tokenizer and data made in a folder."""
    tokenizer, data = folder / "tokenizer.json", folder / "data"
    demo.train_tokenizer.main(replace(demo.train_tokenizer.PRESETS["demo"], out=tokenizer))
    demo.prepare.main(replace(demo.prepare.PRESETS["demo"], tokenizer=tokenizer, out=data))
    return replace(simple.PRESETS["demo"], data=data, out=folder / "run")


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
