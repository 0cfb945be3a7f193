"""What a device can do at most, measured, and what a piece of work takes of it: time, memory, power.

A number of operations a second says little by itself. As a share of the most that this very device does,
in a big matrix product, and of the most that it reads, in a big sum, it says how much there is left to gain
(Williams, Waterman and Patterson 2009, "Roofline", https://doi.org/10.1145/1498765.1498785).
"""

import ctypes
import gc
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], object]

LONG_ENOUGH = 0.05  # seconds, for a matrix product to be called big
SIDES = (512, 1024, 2048, 4096, 8192)
READ = {"cpu": 2**28, "cuda": 2**31}  # bytes, many times what a cache holds


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to do; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(work: Work, device: torch.device, repeats: int = 1) -> float:
    """How long one of `repeats` calls takes, the last of them finished."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def measured_peaks(device: torch.device, dtypes: Sequence[torch.dtype], rounds: int = 5) -> dict[str, Any]:
    """The most operations a second in each dtype, and the most bytes a second read, in a few seconds.

    The best round counts: whatever else ran meanwhile can only have slowed the others down.
    """
    flops = {str(dtype).removeprefix("torch."): _most_flops(device, dtype, rounds) for dtype in dtypes}
    return {"flops_per_second": flops, "bytes_per_second": _most_bytes(device, rounds)}


def _most_flops(device: torch.device, dtype: torch.dtype, rounds: int) -> float:
    best = 0.0
    for side in SIDES:
        a = torch.randn(side, side, device=device).to(dtype)  # zeros would need less power, and be faster
        a @ a
        took = min(seconds(lambda a=a: a @ a, device) for _ in range(rounds))
        best = max(best, 2 * side**3 / took)
        if took > LONG_ENOUGH:
            break
    return best


def _most_bytes(device: torch.device, rounds: int) -> float:
    x = torch.ones(READ.get(device.type, READ["cpu"]) // 4, device=device)
    x.sum()
    return x.nbytes / min(seconds(x.sum, device) for _ in range(2 * rounds))


def free_memory(device: torch.device) -> float:
    """Bytes that can still be taken; infinity where nobody says."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min([machine, *_left_in_container()])


def _left_in_container() -> list[int]:
    """What a container may still take, if it is limited."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        reclaimable = next(
            line for line in (folder / "memory.stat").read_text().splitlines() if "inactive_file" in line
        )
    except (OSError, StopIteration):
        return []
    return [int(limit) - int(used) + int(reclaimable.split()[1])] if limit.isdigit() else []


def peak_memory(work: Work, device: torch.device) -> int | None:
    """The most bytes that work holds at once, beyond what was held before it; None where nobody says.

    On a GPU PyTorch's allocator counts them. On Linux it is how far the process grows at most, in pages:
    exact for megabytes, blind for kilobytes, and wrong after `hardware.keep_freed_memory`. Work that is done for the
    first time also grows it by the code it loads.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or sys.platform != "linux":
        return None
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # or the work would take freed memory again, and nothing would show
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _resident("VmRSS")
        work()
        return max(0, _resident("VmHWM") - before)
    except (OSError, StopIteration):
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def watts(device: torch.device) -> float | None:
    """The power the device draws just now; None if it does not say."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # the package that asks the driver may be missing, the driver or a virtual machine may forbid it
        return None


def mean_watts(work: Work, device: torch.device, duration: float = 2.0) -> float | None:
    """The power drawn while the same work is done again and again; None if the device does not say.

    Drivers report a mean over the last second, so only the second half of the time counts.
    """
    if watts(device) is None:
        return None
    readings: list[float | None] = []
    started = time.perf_counter()
    repeats = max(1, int(duration / 20 / seconds(work, device)))  # the device should not wait for us in between
    while (elapsed := time.perf_counter() - started) < duration:
        seconds(work, device, repeats)
        if elapsed > duration / 2:
            readings.append(watts(device))
    seen = [reading for reading in readings or [watts(device)] if reading is not None]
    return statistics.mean(seen) if seen else None
