"""Measure what this chapter claims, and store it in `results/` with hardware, versions, commit and measured peaks.

    python -m attention_mechanisms.benchmark           # all of it: a quarter of an hour on two idle cores
    python -m attention_mechanisms.benchmark --quick   # a minute, to see that it works

What is compared runs in turn, round after round, in one process, and is checked to give equal outputs first.
The tables in the README and the figures are made from the stored results.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from attention_mechanisms.benchmark.decode import DTYPES, N_LAYERS, measure_decoding
from attention_mechanisms.benchmark.figures import draw_all, tables
from attention_mechanisms.benchmark.sweep import Sweep, measure_sweep
from attention_mechanisms.benchmark.window import measure_windows
from utils.files import InputError
from utils.hardware import pick_device
from utils.measuring import Row, check_folders, measure_with_peaks, run_benchmark, show_results
from utils.ranges import Range, check_ranges

log = logging.getLogger(__name__)

CHAPTER = Path(__file__).parent.parent
QUICK = Path("runs/quick") / CHAPTER.name
Length = Annotated[int, Range(1, 2**24)]


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
    """Small sizes and few rounds: a minute on two cores. The numbers are not for quoting."""
    rounds: Annotated[int, Range(1, 10_000)] | None = None
    """How often each thing is measured; by default 20 times for decoding, 7 for windows, 3 in the sweep."""
    device: str = "auto"
    """Where: cpu, cuda, cuda:1; auto is a GPU if there is one."""
    contexts: tuple[Length, ...] = ()
    """Tokens in the caches when decoding; by default 1,024 and 4,096."""
    lengths: tuple[Length, ...] = ()
    """Tokens of a text, in the sweep and for windows; by default 128 to 8,192, on a GPU to 32,768."""
    widths: tuple[Annotated[int, Range(256, 2**16)], ...] = ()
    """Model widths of the sweep, multiples of 256; by default 512 to 4,096."""
    batches: tuple[Annotated[int, Range(1, 2**16)], ...] = ()
    """Batch sizes of the sweep; by default 1 to 128."""
    budget: Annotated[float, Range(0, 3600, open_below=True)] | None = None
    """Seconds that one call of the sweep may take, ten times as many for the rows that the tables show. What is
    bound to take longer is left out, and counted. By default 0.15 on a CPU, 0.02 if quick, 1 on a GPU."""
    results: Path | None = None
    """Where the measurements are stored; by default the chapter's results/, if quick in runs/quick/."""
    figures: Path | None = None
    """Where the figures are stored; by default the chapter's figures/, if quick in runs/quick/."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for width in self.widths:
            if width % 256:
                raise InputError(f"widths must be multiples of 256, for groups of four heads of 64, got {width}")


def main(config: Config) -> None:
    """Measure the parts asked for, store and show them.

    Raises:
        InputError: if there is no such device, results cannot be stored, or there is nothing to show.
    """
    device = pick_device(config.device)
    place = QUICK if config.quick else CHAPTER
    results = config.results or place / "results"
    figures = config.figures or place / "figures"
    check_folders(results, figures)
    parts: dict[str, Callable[[Config, torch.device, Row], Row]] = {
        "decode": measure_decode_part, "window": measure_window_part, "sweep": measure_sweep_part,
    }  # fmt: skip
    wanted = {
        name: functools.partial(measure, config, device)
        for name, measure in parts.items()
        if config.part in (name, "all")
    }
    if wanted:
        measure_with_peaks(wanted, results, device, DTYPES, config.quick)
    show_results(results, figures, tables, draw_all)


def measure_decode_part(config: Config, device: torch.device, peaks: Row) -> Row:
    """Measure one token more for each of eight rows."""
    contexts = config.contexts or ((1024,) if config.quick else (1024, 4096))
    rounds = config.rounds or (5 if config.quick else 20)
    n_layers = 3 if config.quick else N_LAYERS
    return measure_decoding(contexts, DTYPES, n_layers, rounds, device, peaks)


def measure_window_part(config: Config, device: torch.device, peaks: Row) -> Row:
    """Measure long texts, read with a window and without."""
    last = 32_768 if device.type == "cuda" else 8192
    lengths = config.lengths or ((2048, 4096) if config.quick else _doubling(1024, last))
    return measure_windows(lengths, config.rounds or (3 if config.quick else 7), device, _dtype(device), peaks)


def measure_sweep_part(config: Config, device: torch.device, peaks: Row) -> Row:
    """Measure kernels and layers over length, width and batch."""
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


def _doubling(first: int, last: int) -> tuple[int, ...]:
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


if __name__ == "__main__":
    run_benchmark(main, Config)
