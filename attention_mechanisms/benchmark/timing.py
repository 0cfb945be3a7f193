"""How this benchmark measures: contenders in turn, again and again, and only those that give equal outputs."""

import json
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.files import InputError, write_atomically
from utils.hardware import describe
from utils.peaks import Work, measured_peaks, seconds

log = logging.getLogger(__name__)

Row = dict[str, Any]

LONG_ENOUGH = 0.005  # seconds of a single measurement; below, several calls make one
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the norm


def interleaved(contenders: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender, once a round, so that another program's load falls on all of them.

    A call of each, which fills caches, does not count; what compiles should have been called before.

    Args:
        contenders: what is compared.
        rounds: how often.
        device: where they work.
    """
    repeats = {}
    for name, work in contenders.items():
        once = seconds(work, device)
        repeats[name] = min(100, math.ceil(LONG_ENOUGH / once)) if once < LONG_ENOUGH else 1
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            measured[name].append(seconds(work, device, repeats[name]))
    return measured


def spread(values: Sequence[float]) -> Row:
    """Median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "q1": values[0], "q3": values[0], "n": len(values)}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "n": len(values)}


def rate(amount: float, seconds_each: Sequence[float]) -> Row:
    """How much of something a second, as median and quartiles."""
    return spread([amount / second for second in seconds_each])


def shares(flops: float, nbytes: float, second: float, peaks: Row, dtype: torch.dtype) -> Row:
    """What is reached of the measured peaks."""
    flops_per_second, bytes_per_second = flops / second, nbytes / second
    return {
        "flops_per_second": flops_per_second,
        "flops_share": flops_per_second / peaks["flops_per_second"][dtype_name(dtype)],
        "bytes_per_second": bytes_per_second,
        "bytes_share": bytes_per_second / peaks["bytes_per_second"],
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power of size with which values grow: 1 is linear, 2 quadratic."""
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


def assert_equal(what: str, output: Tensor, reference: Tensor) -> float:
    """The difference as a share of the reference's norm.

    Raises:
        RuntimeError: if it is more than rounding explains: what gives other outputs is not worth timing.
    """
    difference, norm = (output.float() - reference.float()).norm(), reference.float().norm()
    error = (difference / norm).item() if difference or norm else 0.0  # all zeros are equal, too
    if not error < TOLERANCE[output.dtype]:
        raise RuntimeError(f"{what}: the outputs differ by {error:.1e} of their norm")
    return error


def dtype_name(dtype: torch.dtype) -> str:
    """As in "float32"."""
    return str(dtype).removeprefix("torch.")


def measure_parts(
    parts: Mapping[str, Callable[[Row], Row]],
    results: Path,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    quick: bool,
) -> None:
    """Measure the device's peaks, then each part, given these, and store it as results/NAME.json once it is done."""
    results.mkdir(parents=True, exist_ok=True)  # should that fail, then before anything is measured
    with torch.no_grad():
        peaks = measured_peaks(device, dtypes)
        log.info("peaks: %s", peaks)
        for name, measure in parts.items():
            result = {"machine": machine(device), "peaks": peaks, "quick": quick, **measure(peaks)}
            with write_atomically(results / f"{name}.json") as file:
                file.write(json.dumps(result, indent=1).encode())
            log.info("%s -> %s", name, results / f"{name}.json")


def read_results(results: Path, parts: Iterable[str]) -> dict[str, Row]:
    """Those of the parts that have been measured and have something to show.

    Raises:
        InputError: if a file is damaged.
    """
    found = {}
    for part in parts:
        if (path := results / f"{part}.json").exists():
            try:
                found[part] = json.loads(path.read_bytes())
            except ValueError as error:
                raise InputError(f"{path} is damaged: {error}") from error
    return {part: result for part, result in found.items() if result.get("rows", True)}


def machine(device: torch.device) -> Row:
    """The machine, with what else decides a speed."""
    try:
        theirs = version("transformers")
    except PackageNotFoundError:
        theirs = None
    return {**describe(), "device": device.type, "threads": torch.get_num_threads(), "transformers": theirs}
