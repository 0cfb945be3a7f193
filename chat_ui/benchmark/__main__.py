"""Measure what this chapter claims of its engine, and store it in `results/` with hardware, versions and commit.

python -m chat_ui.benchmark              # some minutes on two idle cores
python -m chat_ui.benchmark --quick      # one minute, to see that it works
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from chat_ui.benchmark.figures import draw_all, tables
from chat_ui.benchmark.serving import measure_curve, measure_equality, measure_next_turn, models_of
from gpt_model.config import GPTConfig
from gpt_model.run_directory import read_config
from utils.measuring import Row, check_folders, machine, measure_parts, run_benchmark, show_results
from utils.ranges import Range, check_ranges

log = logging.getLogger(__name__)

CHAPTER = Path(__file__).parent.parent
QUICK = Path("runs/quick") / CHAPTER.name
KNOWN_TOKENS = 512  # of a first turn


@dataclass(frozen=True)
class Config:
    """Measure the engine: tokens per second by the number of texts written at once, and the second turn's first token.

    Prints tables, writes results/*.json, and draws figures/*.svg from them.
    """

    part: Literal["all", "equal", "curve", "turns", "figures"] = "all"
    """equal: whether a run's texts are the same alone and among others. curve: texts written at once, with that run
    and with GPT-2 small's shape. turns: a conversation's next turn. figures: show the stored results again."""
    quick: bool = False
    """A small model and few rounds. The numbers are not for quoting."""
    run: Path = Path("runs/demo")
    """A trained model; `make demo` makes this one."""
    rounds: Annotated[int, Range(2, 10_000)] | None = None
    """How often each thing is measured; by default 5 times."""
    device: str = "auto"
    """Where: cpu, cuda, cuda:1; auto is a GPU if there is one."""
    results: Path | None = None
    """Where the measurements are stored; by default the chapter's results/, if quick in runs/quick/."""
    figures: Path | None = None
    """Where the figures are stored; by default the chapter's figures/, if quick in runs/quick/."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> None:
    """Measure the parts asked for, store and show them.

    Raises:
        InputError: if the run is missing, results cannot be stored, or there is nothing to show.
    """
    place = QUICK if config.quick else CHAPTER
    results = config.results or place / "results"
    figures = config.figures or place / "figures"
    parts: dict[str, Callable[[Config], Row]] = {"equal": _equal, "curve": _curve, "turns": _turns}
    wanted = {name: partial(part, config) for name, part in parts.items() if config.part in (name, "all")}
    check_folders(results, figures)
    if wanted:
        read_config(config.run)
        models = models_of(None, [], config.device)
        about = {"machine": machine(models.device), "load": os.getloadavg()[0], "quick": config.quick}
        on_gpu = "_gpu" if models.device.type != "cpu" else ""
        measure_parts({f"{name}{on_gpu}": part for name, part in wanted.items()}, results, about)
    show_results(results, figures, tables, draw_all)


def _equal(config: Config) -> Row:
    models = models_of(config.run, [], config.device)
    loaded = models.load(models.available()[-1].name)
    return {"rows": [measure_equality(loaded, *((8, 20) if config.quick else (64, 50)))]}


def _curve(config: Config) -> Row:
    rounds = config.rounds or (2 if config.quick else 5)
    shapes = [] if config.quick else [("gpt2-small", GPTConfig.preset("gpt2-small"))]
    models = models_of(config.run, shapes, config.device)
    on_gpu = models.device.type != "cpu"
    rows = measure_curve(models, models.available()[-1].name, (1, 2, 4, 8, 16, 32), 20 if config.quick else 100, rounds)
    if not config.quick:
        numbers = (1, 2, 4, 8, 16, 32, 64) if on_gpu else (1, 2, 4, 8)
        rows += measure_curve(models, "gpt2-small", numbers, 100 if on_gpu else 48, rounds)
    return {"rows": rows}


def _turns(config: Config) -> Row:
    rounds = config.rounds or (2 if config.quick else 5)
    shapes = [("demo's shape, context 1,024", GPTConfig.preset("demo", context_length=1024))]
    shapes += [] if config.quick else [("gpt2-small", GPTConfig.preset("gpt2-small"))]
    models = models_of(None, shapes, config.device)
    return {"rows": [measure_next_turn(models, name, KNOWN_TOKENS, rounds) for name, _ in shapes]}


if __name__ == "__main__":
    run_benchmark(main, Config)
