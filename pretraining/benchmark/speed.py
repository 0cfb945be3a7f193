"""What makes the demo's training fast: its speed as it is, and with one thing changed at a time."""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretraining import simple
from pretraining.open_run import open_run
from utils.hardware import keep_freed_memory
from utils.measuring import in_processes

ROUNDS = 3
WARM_UP_STEPS = 5  # compilation happens in the first one
TIMED_STEPS = 25

CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "float32": {"precision": "float32"},
    "compiled": {"compile": "on"},
    "AdamW": {"optimizer": "adamw"},
    "sdpa kernel": {"kernel": "sdpa"},
    "memory handed back": {"keep_memory": False},
}


def measure_speed(data: Path) -> dict[str, Any]:
    """Measure the tokens per second of a training step: medians over rounds, in which the cases take turns.

    Args:
        data: the demo's prepared data.
    """
    calls = {(name,): (tokens_per_second, (str(data), changes)) for name, changes in CHANGES.items()}
    speeds = {name: measured for (name,), measured in in_processes(calls, ROUNDS).items()}
    medians = {name: round(statistics.median(measured)) for name, measured in speeds.items()}
    return {
        "tokens_per_second": medians,
        "share_of_the_demos": {name: round(median / medians["as it is"], 2) for name, median in medians.items()},
        "rounds": {name: [round(speed) for speed in measured] for name, measured in speeds.items()},
    }


def tokens_per_second(data: str, changes: dict[str, Any]) -> float:
    """Train the demo for a few steps, and return the median speed of those after compilation and warm-up."""
    changes = dict(changes)
    kernel = changes.pop("kernel", "auto")
    if changes.pop("keep_memory", True):
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(simple.PRESETS["demo"], data=Path(data), out=Path(folder) / "run", **changes)
        config, model_config, splits = open_run(settings)
        trainer = simple.Trainer(config, replace(model_config, kernel=kernel), splits)
        seconds = []
        for _ in range(WARM_UP_STEPS + TIMED_STEPS):
            started = time.perf_counter()
            trainer.step()
            seconds.append(time.perf_counter() - started)
    return config.batch_size * config.context_length / statistics.median(seconds[WARM_UP_STEPS:])
