"""Measure what this chapter claims, and store it in `results/` with hardware, versions, commit and measured peaks.

    python -m gpt_model.benchmark              # all of it: about half an hour on two idle cores
    python -m gpt_model.benchmark --quick      # two minutes, to see that it works

What is compared runs in turn, round after round, in one process, and is checked to give equal outputs first.
"""

import functools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from attention_mechanisms.benchmark.timing import Row, measure_parts
from gpt_model.benchmark.decode import measure_quality, measure_writing
from gpt_model.benchmark.page import draw_all, tables
from gpt_model.benchmark.sizes import SIZES, measure_sizes
from gpt_model.config import PRESETS
from utils.files import InputError
from utils.hardware import pick_device

log = logging.getLogger(__name__)

CHAPTER = Path(__file__).parent.parent


@dataclass(frozen=True)
class Config:
    """Measure the model: writing a text, against transformers and the speed of memory, and every size and variant.

    Prints tables, writes results/*.json, and draws figures/*.svg from them.
    """

    part: Literal["all", "writing", "quality", "sizes", "figures"] = "all"
    """writing: tokens a second of the model, of FastDecoder in each precision, and of transformers. quality: the
    perplexity of a trained model in each precision. sizes: GPT-2's four sizes with each kind of attention.
    figures: show the stored results again."""
    quick: bool = False
    """Small models, few rounds. No numbers to quote."""
    rounds: int | None = None
    """How often each thing is measured; by default 9 times for writing, 3 for the sizes."""
    device: str = "auto"
    """Where: cpu, cuda, cuda:1; auto is a GPU if there is one."""
    sizes: tuple[str, ...] = ()
    """Presets to measure; by default gpt2-small for writing (on a GPU gpt2-xl too), all four for the sizes."""
    context: int = 1024
    """Tokens of the text, in the part on sizes."""
    run: Path = Path("runs/demo")
    """A trained model, for the quality; `make demo` makes this one."""
    results: Path = CHAPTER / "results"
    """Where the measurements are stored."""
    figures: Path = CHAPTER / "figures"
    """Where the figures are stored."""


def main(config: Config) -> None:
    """Measure the parts asked for, store and show them.

    Raises:
        InputError: if a number is out of range, the run is missing, or there is nothing to show.
    """
    _check(config)
    device = pick_device(config.device)
    parts: dict[str, Callable[[Config, torch.device, Row], Row]] = {
        "writing": _measure_writing, "quality": _measure_quality, "sizes": _measure_sizes,
    }  # fmt: skip
    wanted = {
        name: functools.partial(measure, config, device)
        for name, measure in parts.items()
        if config.part in (name, "all")
    }
    if wanted:
        measure_parts(wanted, config.results, device, (torch.float32, torch.bfloat16), config.quick)
    if not (shown := tables(config.results)):
        raise InputError(f"there are no results in {config.results}")
    print(shown)
    try:
        draw_all(config.results, config.figures)
    except ModuleNotFoundError as error:
        log.warning("%s is not installed, so there are no figures", error.name)


def _measure_writing(config: Config, device: torch.device, peaks: Row) -> Row:
    full = ("gpt2-small", "gpt2-xl") if device.type == "cuda" else ("gpt2-small",)
    return measure_writing(config.sizes or full, config.rounds or (2 if config.quick else 9), device, peaks)


def _measure_quality(config: Config, device: torch.device, peaks: Row) -> Row:
    return measure_quality(config.run)


def _measure_sizes(config: Config, device: torch.device, peaks: Row) -> Row:
    sizes, new = config.sizes or (("gpt2-small",) if config.quick else SIZES), 4 if config.quick else 16
    rounds = config.rounds or (1 if config.quick else 3)
    return measure_sizes(sizes, (torch.bfloat16,), config.context, new, rounds, device, peaks, fast=True)


def _check(config: Config) -> None:
    if config.rounds is not None and config.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {config.rounds}")
    for size in config.sizes:
        if size not in PRESETS:
            raise InputError(f"--sizes must be among {', '.join(PRESETS)}, got {size!r}")
    if config.part in ("all", "quality") and not (config.run / "config.json").exists():
        raise InputError(f"--run {config.run} is not a run directory; make demo makes runs/demo")


if __name__ == "__main__":
    if find_spec("tyro"):
        from utils.command_line import run

        run(main, Config)
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        log.warning("tyro is not installed, so of all flags only --quick is understood")
        main(Config(quick="--quick" in sys.argv))
