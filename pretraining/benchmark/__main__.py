"""Measure what this chapter claims, and store it in `results/` with hardware, versions and commit.

    python -m pretraining.benchmark                  # all of it: about half an hour on two idle cores
    python -m pretraining.benchmark --part gpu       # GPT-2 small's training step on a GPU: a few minutes

Each measurement is a process of its own, on an otherwise idle machine. The notebook and the README draw
and quote the stored results; a test compares the numbers.
"""

import functools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gpt_model import GPT, GPTConfig
from gpt_model.devices import find_device
from gpt_model.run_directory import load_tokenizer
from pretraining import demo, simple
from pretraining.benchmark.gpu_ladder import climb
from pretraining.benchmark.gpu_step import BATCH_SIZE, MODEL, measure_gpu_steps
from pretraining.benchmark.speed import measure_speed
from pretraining.config import Config as TrainingConfig
from pretraining.evaluate import read_split, score
from pretraining.metrics import read_metrics
from utils.files import InputError, write_atomically
from utils.hardware import describe, pick_device
from utils.measuring import check_folders, measure_parts

log = logging.getLogger(__name__)

RESULTS = Path(__file__).parent.parent / "results"
SEEDS = (0, 1, 2)
OPTIMIZER_STEPS = 300

# the demo, and the demo with one thing changed
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Muon, AdamW for the rest": {},
    "AdamW, learning rate 0.0005": {"optimizer": "adamw", "lr": 5e-4},
    "AdamW, learning rate 0.001": {"optimizer": "adamw", "lr": 1e-3},
    "AdamW, learning rate 0.002": {"optimizer": "adamw", "lr": 2e-3},
}


@dataclass(frozen=True)
class Config:
    """Measure the demo: its result for three seeds, what makes it fast, and what Muon brings; and a step on a GPU."""

    part: Literal["all", "demo", "speed", "optimizers", "gpu", "ladder"] = "all"
    """demo: three whole runs of `make demo`. speed: tokens per second with one thing changed at a time.
    optimizers: bits per byte after equally many steps. gpu: a training step of GPT-2 small, on a GPU. ladder: what
    makes it fast there, one thing at a time, each stored once it is measured. Both are left out of all where there is
    no GPU."""
    results: Path = RESULTS
    """Where the measurements are stored."""


def main(config: Config) -> None:
    """Measure the parts asked for, and store them.

    Raises:
        InputError: if results cannot be stored, or the part on GPUs is asked for where there is none.
    """
    if config.part in ("gpu", "ladder") and not torch.cuda.is_available():
        raise InputError(f"--part {config.part} needs a GPU that CUDA can use, and there is none here")
    check_folders(config.results, config.results)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "demo": functools.partial(measure_demo, folder),
            "speed": lambda: measure_speed(_prepared(folder / "speed").data),
            "optimizers": functools.partial(measure_optimizers, folder / "optimizers"),
        }
        if torch.cuda.is_available():
            parts["gpu"] = lambda: measure_gpu_steps(pick_device("cuda"))
        wanted = {part: measure for part, measure in parts.items() if config.part in (part, "all")}
        measure_parts(wanted, config.results, {"machine": describe()})
    if config.part == "ladder" or (config.part == "all" and torch.cuda.is_available()):
        measure_ladder(config.results / "ladder.json")


def measure_ladder(path: Path) -> None:
    """Measure what makes a step fast on a GPU, and store each row once it is measured.

    Raises:
        InputError: if the GPU's data sheet is not known here.
    """
    device = pick_device("cuda")
    peak = find_device(torch.cuda.get_device_name(device)).flops_per_second
    result: dict[str, Any] = {"machine": describe(), "model": MODEL, "peak_flops_per_second": peak, "rows": []}
    for row in climb(GPTConfig.preset(MODEL), BATCH_SIZE, device, peak):
        result["rows"].append(row)
        with write_atomically(path) as file:
            file.write(json.dumps(result, indent=1).encode())


def measure_demo(folder: Path) -> dict[str, Any]:
    """Make three demos from nothing, each as a user would start it; wall time includes everything."""
    runs = []
    for seed in SEEDS:
        out = folder / f"seed-{seed}"
        started = time.perf_counter()
        command = [sys.executable, "-m", "pretraining.demo", "--out", str(out), "--seed", str(seed)]
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        seconds = time.perf_counter() - started
        result = json.loads((out / "results.json").read_bytes())
        del result["machine"]
        runs.append({**result, "demo_seconds": round(seconds, 1), "metrics": read_metrics(out)})
        log.info("seed %s: %.4f bits per byte in %.0f s", seed, result["bits_per_byte"], seconds)
    values = [run["bits_per_byte"] for run in runs]
    return {"bits_per_byte_mean": statistics.mean(values), "bits_per_byte_worst": max(values), "runs": runs}


def measure_optimizers(folder: Path) -> dict[str, Any]:
    """Measure bits per byte after equally many steps.

    Raises:
        KeyboardInterrupt: if a training was asked to stop: half a measurement is none.
    """
    training = _prepared(folder)
    rows = {}
    for name, changes in OPTIMIZERS.items():
        config = replace(training, out=folder / name, steps=OPTIMIZER_STEPS, snapshot_every=None, **changes)
        if not simple.main(config):
            raise KeyboardInterrupt
        result = score(GPT.from_run(config.out), load_tokenizer(config.out), read_split(config.data, "val"))
        rows[name] = {"bits_per_byte": result.bits_per_byte, "validation_loss": result.loss}
        log.info("%s: %.4f bits per byte", name, result.bits_per_byte)
    return {"steps": OPTIMIZER_STEPS, "rows": rows}


def _prepared(folder: Path) -> TrainingConfig:
    """Make the demo's tokenizer and data in a folder, and return its training settings with them."""
    tokenizer, data = folder / "tokenizer.json", folder / "data"
    demo.train_tokenizer.main(replace(demo.train_tokenizer.PRESETS["demo"], out=tokenizer))
    demo.prepare.main(replace(demo.prepare.PRESETS["demo"], tokenizer=tokenizer, out=data))
    return replace(simple.PRESETS["demo"], data=data, out=folder / "run")


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
