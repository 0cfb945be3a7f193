"""Which part of the recipe brings what: one thing changed at a time, three seeds each.

    python -m finetuning.classification.ablations                              the demo's model: some 20 minutes
    python -m finetuning.classification.ablations gpu --data reviews.csv.gz    GPT-2 small on whole reviews

A difference smaller than that between two seeds is none. So each row is a mean with its spread, and the table says how
far it is from the recipe as it is. Runs that are there are not made again: the same command goes on.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetuning.classification import train
from finetuning.classification.report import REPORT
from finetuning.classification.reviews import SENTENCES
from gpt_model.run_directory import read_config
from utils.command_line import show
from utils.figures import INK, figure, save_svg
from utils.files import InputError, read_json, write_atomically
from utils.hardware import describe
from utils.locks import alone
from utils.measuring import markdown_table
from utils.outputs import check_output_file, check_writable
from utils.ranges import Count, check_ranges

log = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "ablations.json"
AS_IT_IS = "the recipe"
CHANGES: Mapping[str, Mapping[str, Any]] = {
    AS_IT_IS: {},
    "no layer-wise decay": {"layer_decay": 1.0},
    "stronger layer-wise decay, 0.7": {"layer_decay": 0.7},
    "mean of all tokens": {"pool": "mean"},
    "first position": {"pool": "first"},
    "head only": {"blocks": 0},
    "last block and head": {"blocks": 1},
    "LoRA, rank 2": {"lora_rank": 2, "lr": 2e-3},
    "LoRA, rank 8": {"lora_rank": 8, "lr": 2e-3},
    "no clipping": {"clip": 0.0},
    "float32": {"precision": "float32"},
    "words swapped": {"augment": ("swap",), "epochs": 1},
    "words deleted": {"augment": ("delete",), "epochs": 1},
}
"""Augmentation doubles the texts, so one epoch of it takes as many steps as two without."""


@dataclass(frozen=True)
class Config:
    """Train the same classifier with one thing changed at a time, and compare."""

    base: Path | None = Path("runs/demo")
    """The run directory of the base."""
    pretrained: str | None = None
    """Instead of a base: gpt2 or another size, or a folder in Hugging Face layout."""
    data: Path = SENTENCES
    """The labelled texts, as for training."""
    out: Path = Path("runs/classification-ablations")
    """Where the runs are kept."""
    results: Path = RESULTS
    """Where the comparison is stored; its figure goes into the folder figures beside that of results."""
    changes: tuple[str, ...] = tuple(CHANGES)
    """Which rows are made."""
    seeds: Count = 3
    """Runs per row."""
    texts: Count | None = 2500
    """Training texts; fewer make the comparison faster, and coarser. By default 2,500 of the sentences."""
    epochs: Count = 2
    """How often each is learned from."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if unknown := set(self.changes) - set(CHANGES):
            raise InputError(f"there is no change {min(unknown)!r}; there are: {', '.join(CHANGES)}")


PRESETS = {"gpu": Config(base=None, pretrained="gpt2", out=Path("runs/imdb-ablations"), texts=None, epochs=3)}


def main(config: Config) -> dict[str, Any] | None:
    """Train, compare, store and draw; return the comparison, or None if it was asked to stop.

    Raises:
        InputError: if there is no base, or a folder or file cannot be written.
    """
    if config.base is not None:
        read_config(config.base)
    check_writable(config.out)
    check_output_file(config.results, overwrite=True, is_ours=_is_comparison, flag="--results")
    rows = []
    with alone(config.out, "training in"):
        for name in config.changes:
            found = [_one_run(config, name, seed) for seed in range(config.seeds)]
            if None in found:
                return None
            rows.append({"change": name, "runs": found})
            log.info("%s: %s", name, ", ".join(f"{run['accuracy']:.4f}" for run in found))
    base = config.pretrained or str(config.base.name)
    settings = {"base": base, "data": config.data.name, "texts": config.texts, "epochs": config.epochs}
    result = {"machine": describe(), **settings, "rows": rows}
    with write_atomically(config.results) as file:
        file.write(json.dumps(result, indent=1).encode())
    draw(result, config.results.parent.parent / "figures" / config.results.with_suffix(".svg").name)
    show(f"{table(result)}\n")
    return result


def _one_run(config: Config, name: str, seed: int) -> dict[str, float] | None:
    """Train one classifier, or find it trained; return its accuracy, or None if it was stopped."""
    run = config.out / f"{name.replace(' ', '_').replace(',', '').replace('.', '')}-{seed}"
    if not (run / REPORT).exists():
        settings = train.PRESETS["demo" if config.pretrained is None else "imdb"]
        settings = replace(
            settings, base=config.base, pretrained=config.pretrained, data=config.data, out=run, texts=config.texts,
            epochs=config.epochs, device=config.device, early_stopping=None,
        )  # fmt: skip
        settings = replace(settings, **{"seed": seed, **CHANGES[name]})
        if not train.main(settings):
            return None
    report = read_json(run / REPORT)
    return {"accuracy": report["test"]["accuracy"]}


def _is_comparison(path: Path) -> bool:
    """Return whether a file holds an earlier comparison."""
    try:
        table(read_json(path))
    except (InputError, LookupError, TypeError, ValueError, AttributeError):
        return False
    return True


def summary(result: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Return the mean accuracy of each row, and its standard deviation, None of a single run."""
    found = {}
    for row in result["rows"]:
        accuracies = [run["accuracy"] for run in row["runs"]]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        found[row["change"]] = (statistics.mean(accuracies), spread)
    return found


def table(result: dict[str, Any]) -> str:
    """Return the comparison as a table in Markdown."""
    means = summary(result)
    start = means.get(AS_IT_IS, (None,))[0]
    rows = []
    for name, (mean, spread) in means.items():
        change = "" if start is None or name == AS_IT_IS else f"{100 * (mean - start):+.1f}"
        sd = "" if spread is None else f"{100 * spread:.1f}"
        rows.append([name, f"{100 * mean:.1f}", sd, change])
    return markdown_table(("one thing changed", "accuracy, %:", "sd:", "points:"), rows)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the accuracy of each run, and the recipe's mean as a line."""
    means = summary(result)
    with figure(figsize=(7, 0.35 * len(means) + 1)) as (drawing, axes):
        for place, row in enumerate(result["rows"]):
            axes.plot([100 * run["accuracy"] for run in row["runs"]], [place] * len(row["runs"]), "o", alpha=0.8)
        if AS_IT_IS in means:
            axes.axvline(100 * means[AS_IT_IS][0], color=INK, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(means)), list(means))
        axes.invert_yaxis()
        axes.set(xlabel="accuracy on test texts, %")
        drawing.tight_layout()
        save_svg(drawing, path)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
