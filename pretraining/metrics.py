"""The numbers of a run, a line of JSON each few steps, and their curve."""

import json
from pathlib import Path
from typing import Any

from utils.figures import BLUE, ORANGE, figure, save_svg
from utils.files import write_atomically


def append_metrics(run: Path, **values: Any) -> None:
    """Add a line to the run's metrics.jsonl."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one cut short by a kill is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def forget_metrics_after(run: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run is going to take again."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    with write_atomically(run / "metrics.jsonl") as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


def draw_loss(run: Path) -> None:
    """Draw the run's training and validation loss as loss.svg."""
    metrics = read_metrics(run)
    training = [(line["step"], line["loss"]) for line in metrics if "loss" in line]
    validation = [(line["step"], line["val_loss"]) for line in metrics if "val_loss" in line]
    with figure() as (drawing, axes):
        if training:
            axes.plot(*zip(*training, strict=True), color=BLUE, alpha=0.8, linewidth=1.2, label="training")
        if validation:
            axes.plot(*zip(*validation, strict=True), color=ORANGE, marker="o", markersize=4, label="held out")
        axes.set(xlabel="step", ylabel="loss (nats a token)", title=f"Loss of {run.name}")
        if training or validation:
            axes.legend()
        save_svg(drawing, run / "loss.svg")
