"""The most that a device can do, measured, and what a piece of work takes of it: time, memory, power.

A number of operations per second says little by itself. As a share of the most that this very device does, in a
big matrix product, and of the most that it reads, in a big sum, it says how much there is left to gain
(Williams, Waterman and Patterson 2009, "Roofline", https://doi.org/10.1145/1498765.1498785).
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from utils.memory import PeakMemory, available_memory

Work = Callable[[], object]

LONG_PRODUCT = 0.05  # seconds; a matrix product that takes as long keeps the whole device busy
MATRIX_SIDES = (512, 1024, 2048, 4096, 8192)
BYTES_TO_READ = {"cpu": 2**28, "cuda": 2**31}  # many times what a cache holds


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to do; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(work: Work, device: torch.device, repeats: int = 1) -> float:
    """Measure how many seconds one call takes: the mean of `repeats` calls, the last of them finished."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def measured_peaks(device: torch.device, dtypes: Sequence[torch.dtype], rounds: int = 5) -> dict[str, Any]:
    """Measure the most operations per second in each dtype, and the most bytes per second read, in a few seconds.

    The best round counts: whatever else ran meanwhile can only have slowed the others down.

    Returns:
        "flops_per_second", a dictionary with a number for each dtype's name, and the number "bytes_per_second".
    """
    flops = {str(dtype).removeprefix("torch."): _most_flops(device, dtype, rounds) for dtype in dtypes}
    return {"flops_per_second": flops, "bytes_per_second": _most_bytes(device, rounds)}


def _most_flops(device: torch.device, dtype: torch.dtype, rounds: int) -> float:
    best = 0.0
    for side in MATRIX_SIDES:
        a = torch.randn(side, side, device=device).to(dtype)  # zeros would need less power, and be faster
        a @ a
        took = min(seconds(lambda a=a: a @ a, device) for _ in range(rounds))
        best = max(best, 2 * side**3 / took)
        if took > LONG_PRODUCT:
            break
    return best


def _most_bytes(device: torch.device, rounds: int) -> float:
    x = torch.ones(BYTES_TO_READ.get(device.type, BYTES_TO_READ["cpu"]) // 4, device=device)
    x.sum()
    return x.nbytes / min(seconds(x.sum, device) for _ in range(2 * rounds))


def free_memory(device: torch.device) -> float:
    """Return how many bytes can still be taken on the device; infinity where the system does not say."""
    if device.type != "cuda":
        return available_memory()
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Measure the most bytes that work holds at once, beyond what was held before it; None where that is not known.

    On a GPU PyTorch's allocator counts them. On Linux it is how far the process grows at most, in pages:
    exact for megabytes, blind for kilobytes, and wrong after `hardware.keep_freed_memory`. Work that is done for
    the first time also grows the process by the code it loads.
    """
    if device.type == "cuda":
        gc.collect()
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or sys.platform != "linux":
        return None
    try:
        peak = PeakMemory()
        work()
        return peak.growth
    except (OSError, StopIteration):
        return None


def watts(device: torch.device) -> float | None:
    """Return the power that the device draws just now; None if it does not say."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # the package that asks the driver may be missing, the driver or a virtual machine may forbid it
        return None


def mean_watts(work: Work, device: torch.device, duration: float = 2.0) -> float | None:
    """Measure the power drawn while the same work is done again and again; None if the device does not say.

    Drivers report a mean over the last second, so only the second half of the time counts.

    Args:
        work: what is repeated.
        device: where it works.
        duration: seconds in all.
    """
    if watts(device) is None:
        return None
    readings: list[float | None] = []
    started = time.perf_counter()
    repeats = max(1, int(duration / 20 / seconds(work, device)))  # so many that the device does not wait for us
    while (elapsed := time.perf_counter() - started) < duration:
        seconds(work, device, repeats)
        if elapsed > duration / 2:
            readings.append(watts(device))
    seen = [reading for reading in readings or [watts(device)] if reading is not None]
    return statistics.mean(seen) if seen else None
