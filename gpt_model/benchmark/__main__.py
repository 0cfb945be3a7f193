"""Measure what this chapter claims, and store it in `results/` with hardware, versions, commit and measured peaks.

    python -m gpt_model.benchmark              # all of it: about half an hour on two idle cores
    python -m gpt_model.benchmark --quick      # two minutes, to see that it works

What is compared runs in turn, round after round, in one process, and is checked to give equal outputs first.
"""

import functools
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from gpt_model.benchmark.figures import draw_all, tables
from gpt_model.benchmark.sizes import SIZES, check_sizes, measure_sizes
from gpt_model.benchmark.writing import NEW_TOKENS, PROMPT_TOKENS, measure_quality, measure_writing
from gpt_model.config import PRESETS, GPTConfig
from gpt_model.run_directory import load_tokenizer, read_config
from utils.files import InputError
from utils.hardware import pick_device
from utils.measuring import Row, check_folders, measure_with_peaks, run_benchmark, show_results
from utils.ranges import Count, Range, check_ranges

log = logging.getLogger(__name__)

CHAPTER = Path(__file__).parent.parent
QUICK = Path("runs/quick") / CHAPTER.name


@dataclass(frozen=True)
class Config:
    """Measure the model: writing a text, against transformers and the speed of memory, and every size and variant.

    Prints tables, writes results/*.json, and draws figures/*.svg from them.
    """

    part: Literal["all", "writing", "quality", "sizes", "figures"] = "all"
    """writing: tokens per second of the model, of FastDecoder in each precision, and of transformers. quality: the
    perplexity of a trained model in each precision. sizes: GPT-2's four sizes with each kind of attention.
    figures: show the stored results again."""
    quick: bool = False
    """Small models and few rounds. The numbers are not for quoting."""
    rounds: Annotated[int, Range(1, 10_000)] | None = None
    """How often each thing is measured; by default 9 times for writing, 3 for the sizes."""
    device: str = "auto"
    """Where: cpu, cuda, cuda:1; auto is a GPU if there is one."""
    sizes: tuple[str, ...] = ()
    """Presets to measure; by default gpt2-small for writing (on a GPU gpt2-xl too), all four for the sizes."""
    context: Count = 1024
    """Tokens of the text, in the part on sizes."""
    run: Path = Path("runs/demo")
    """A trained model, for the quality; `make demo` makes this one."""
    results: Path | None = None
    """Where the measurements are stored; by default the chapter's results/, if quick in runs/quick/."""
    figures: Path | None = None
    """Where the figures are stored; by default the chapter's figures/, if quick in runs/quick/."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> None:
    """Measure the parts asked for, store and show them.

    Raises:
        InputError: if a size or the context is impossible, the run is missing, results cannot be stored, or there is
            nothing to show.
    """
    parts: dict[str, Callable[[Config, torch.device, Row], Row]] = {
        "writing": _measure_writing, "quality": _measure_quality, "sizes": _measure_sizes,
    }  # fmt: skip
    if config.part == "all" and config.quick and not config.run.exists():
        log.warning("there is no %s, so the quality is left out; make demo makes runs/demo", config.run)
        del parts["quality"]
    device = pick_device(config.device)
    wanted = {
        name: functools.partial(measure, config, device)
        for name, measure in parts.items()
        if config.part in (name, "all")
    }
    _check(config, wanted)
    place = QUICK if config.quick else CHAPTER
    results = config.results or place / "results"
    figures = config.figures or place / "figures"
    check_folders(results, figures)
    if wanted:
        measure_with_peaks(wanted, results, device, (torch.float32, torch.bfloat16), config.quick)
    show_results(results, figures, tables, draw_all)


def _measure_writing(config: Config, device: torch.device, peaks: Row) -> Row:
    full = ("gpt2-small", "gpt2-xl") if device.type == "cuda" else ("gpt2-small",)
    return measure_writing(config.sizes or full, config.rounds or (2 if config.quick else 9), device, peaks)


def _measure_quality(config: Config, device: torch.device, peaks: Row) -> Row:
    return measure_quality(config.run)


def _measure_sizes(config: Config, device: torch.device, peaks: Row) -> Row:
    sizes, new = _sizes(config)
    rounds = config.rounds or (1 if config.quick else 3)
    return measure_sizes(sizes, (torch.bfloat16,), config.context, new, rounds, device, peaks, fast=True)


def _sizes(config: Config) -> tuple[tuple[str, ...], int]:
    """Return which sizes are measured, and how many tokens each writes."""
    sizes = config.sizes or (("gpt2-small",) if config.quick else SIZES)
    return sizes, 4 if config.quick else 16


def _check(config: Config, wanted: Collection[str]) -> None:
    needed = PROMPT_TOKENS + NEW_TOKENS
    for size in config.sizes:
        if size not in PRESETS:
            raise InputError(f"--sizes must be among {', '.join(PRESETS)}, got {size!r}")
        if "writing" in wanted and GPTConfig.preset(size).context_length < needed:
            raise InputError(f"--sizes must read {needed} tokens to be measured at writing, {size} does not")
    if "sizes" in wanted:
        check_sizes(_sizes(config)[0], config.context, _sizes(config)[1])
    if "quality" in wanted:
        read_config(config.run)
        load_tokenizer(config.run)


if __name__ == "__main__":
    run_benchmark(main, Config)
