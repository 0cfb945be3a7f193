"""The numbers of a run, a line of JSON every few steps, and their curve."""

import json
import logging
from pathlib import Path
from typing import Any

from utils.figures import BLUE, ORANGE, figure, save_svg
from utils.files import InputError, write_atomically
from utils.tracking import METRICS, append_line, read_lines

log = logging.getLogger(__name__)

EACH = {"step", "seconds", "loss", "tokens_per_second"}  # in every line


def append_metrics(run: Path, **values: Any) -> None:
    """Add a line to the run's metrics.jsonl."""
    append_line(run / METRICS, values)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl; damaged ones, such as a power cut leaves, are left out with a warning.

    Each has a "step", its "loss", "tokens_per_second" and "seconds" since the beginning, and some a "val_loss".
    """
    path = run / METRICS
    entries, damaged = read_lines(path, EACH)
    if damaged:
        log.warning("%s: damaged lines are left out, %s of %s", path, damaged, damaged + len(entries))
    return entries


def finished_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a finished run, of which there is at least one.

    Raises:
        InputError: if they are gone.
    """
    metrics = read_metrics(run)
    if not metrics:
        raise InputError(f"{run / 'metrics.jsonl'} is empty or gone, so how long the run took is not known")
    return metrics


def forget_metrics_after(run: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run is going to take again."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    with write_atomically(run / METRICS) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


def draw_loss(run: Path, per: str = "token") -> None:
    """Draw the run's training and validation loss as loss.svg; `per` says what the loss is the mean over."""
    metrics = read_metrics(run)
    training = [(line["step"], line["loss"]) for line in metrics]
    validation = [(line["step"], line["val_loss"]) for line in metrics if "val_loss" in line]
    with figure() as (drawing, axes):
        if training:
            axes.plot(*zip(*training, strict=True), color=BLUE, alpha=0.8, linewidth=1.2, label="training")
        if validation:
            axes.plot(*zip(*validation, strict=True), color=ORANGE, marker="o", markersize=4, label="held out")
        axes.set(xlabel="step", ylabel=f"loss (nats per {per})", title=f"Loss of {run.name}")
        if training or validation:
            axes.legend()
        save_svg(drawing, run / "loss.svg")
