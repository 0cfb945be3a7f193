"""Measure what this chapter claims, and store it in `results/` with hardware, versions, commit and measured peaks.

    python -m attention_mechanisms.benchmark           # all of it: a quarter of an hour on two idle cores
    python -m attention_mechanisms.benchmark --quick   # a minute, to see that it works

What is compared runs in turn, round after round, in one process, and is checked to give equal outputs first.
The tables in the README and the figures are made from the stored results.
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

from attention_mechanisms.benchmark.decode import DTYPES, N_LAYERS, measure_decoding
from attention_mechanisms.benchmark.figures import draw_all, tables
from attention_mechanisms.benchmark.sweep import Sweep, measure_sweep
from attention_mechanisms.benchmark.timing import Row, measure_parts
from attention_mechanisms.benchmark.window import measure_windows
from utils.files import InputError
from utils.hardware import pick_device

log = logging.getLogger(__name__)

CHAPTER = Path(__file__).parent.parent
QUICK = Path("runs/quick") / CHAPTER.name


@dataclass(frozen=True)
class Config:
    """Measure attention: decoding with a cache, sliding windows, and every kernel and kind over all shapes.

    Prints tables, writes results/*.json, and draws figures/*.svg from them. On a GPU it works in bfloat16,
    on a CPU in float32; decoding is measured in both.
    """

    part: Literal["all", "decode", "window", "sweep", "figures"] = "all"
    """decode: MHA, GQA, MLA and SWA with a cache, against transformers. window: time of sliding-window and full
    attention as texts get longer. sweep: kernels and layers over length, width and batch, forward and backward.
    figures: show the stored results again."""
    quick: bool = False
    """Everything small and seldom: a minute on two cores. No numbers to quote."""
    rounds: int | None = None
    """How often each thing is measured; by default 20 times for decoding, 7 for windows, 3 in the sweep."""
    device: str = "auto"
    """Where: cpu, cuda, cuda:1; auto is a GPU if there is one."""
    contexts: tuple[int, ...] = ()
    """Tokens in the caches when decoding; by default 1,024 and 4,096."""
    lengths: tuple[int, ...] = ()
    """Tokens of a text, in the sweep and for windows; by default 128 to 8,192, on a GPU to 32,768."""
    widths: tuple[int, ...] = ()
    """Model widths of the sweep, multiples of 256; by default 512 to 4,096."""
    batches: tuple[int, ...] = ()
    """Rows of the sweep; by default 1 to 128."""
    budget: float | None = None
    """Seconds that one call of the sweep may take, ten times as many for the rows that the tables show. What must
    take longer is left out, and counted. By default 0.15 on a CPU, 0.02 if quick, 1 on a GPU."""
    results: Path | None = None
    """Where the measurements are stored; by default the chapter's results/, if quick in runs/quick/."""
    figures: Path | None = None
    """Where the figures are stored; by default the chapter's figures/, if quick in runs/quick/."""


def main(config: Config) -> None:
    """Measure the parts asked for, store and show them.

    Raises:
        InputError: if a number is out of range, or there is nothing to show.
    """
    _check(config)
    device = pick_device(config.device)
    place = QUICK if config.quick else CHAPTER
    results, figures = config.results or place / "results", config.figures or place / "figures"
    parts: dict[str, Callable[[Config, torch.device, Row], Row]] = {
        "decode": measure_decode_part, "window": measure_window_part, "sweep": measure_sweep_part,
    }  # fmt: skip
    wanted = {
        name: functools.partial(measure, config, device)
        for name, measure in parts.items()
        if config.part in (name, "all")
    }
    if wanted:
        measure_parts(wanted, results, device, DTYPES, config.quick)
    if not (shown := tables(results)):
        raise InputError(f"there are no results in {results}")
    print(shown)
    try:
        draw_all(results, figures)
    except ModuleNotFoundError as error:
        log.warning("%s is not installed, so there are no figures", error.name)


def measure_decode_part(config: Config, device: torch.device, peaks: Row) -> Row:
    """One token more for each of eight rows."""
    contexts = config.contexts or ((1024,) if config.quick else (1024, 4096))
    rounds, n_layers = config.rounds or (5 if config.quick else 20), 3 if config.quick else N_LAYERS
    return measure_decoding(contexts, DTYPES, n_layers, rounds, device, peaks)


def measure_window_part(config: Config, device: torch.device, peaks: Row) -> Row:
    """Long texts read with a window, and without."""
    last = 32_768 if device.type == "cuda" else 8192
    lengths = config.lengths or ((2048, 4096) if config.quick else _doubling(1024, last))
    return measure_windows(lengths, config.rounds or (3 if config.quick else 7), device, _dtype(device), peaks)


def measure_sweep_part(config: Config, device: torch.device, peaks: Row) -> Row:
    """Kernels and layers over length, width and batch."""
    gpu = device.type == "cuda"
    quick_or = (lambda quick, full: quick) if config.quick else (lambda quick, full: full)
    sweep = Sweep(
        lengths=config.lengths or quick_or((128, 512, 1024), _doubling(128, 32_768 if gpu else 8192)),
        widths=config.widths or quick_or((512,), _doubling(512, 4096)),
        batches=config.batches or quick_or((1, 8), (1, 8, 32, 128)),
        rounds=config.rounds or quick_or(2, 3),
        budget=config.budget or (1.0 if gpu else quick_or(0.02, 0.15)),
        compile_on_cpu=not config.quick,
        device=device,
        dtype=_dtype(device),
        peaks=peaks,
    )
    return measure_sweep(sweep)


def _check(config: Config) -> None:
    if config.rounds is not None and config.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {config.rounds}")
    if config.budget is not None and not config.budget > 0:
        raise InputError(f"--budget must be more than 0, got {config.budget}")
    for name in ("contexts", "lengths", "batches"):
        if min(getattr(config, name), default=1) < 1:
            raise InputError(f"--{name} must be at least 1, got {min(getattr(config, name))}")
    for width in config.widths:
        if width < 256 or width % 256:
            raise InputError(f"--widths must be multiples of 256, for groups of four heads of 64, got {width}")


def _doubling(first: int, last: int) -> tuple[int, ...]:
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


if __name__ == "__main__":
    if find_spec("tyro"):
        from utils.command_line import run

        run(main, Config)
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        log.warning("tyro is not installed, so of all flags only --quick is understood")
        main(Config(quick="--quick" in sys.argv))
