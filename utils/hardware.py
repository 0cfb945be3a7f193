"""What this machine can do, found out by trying, and a description of it to keep with each measurement."""

import ctypes
import functools
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from utils.files import InputError

log = logging.getLogger(__name__)


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`: cpu, cuda, cuda:1, mps; "auto" is a GPU if there is one.

    Raises:
        InputError: if there is no such device here.
    """
    here = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if torch.cuda.is_available():
        here = ["cuda", *here, *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if device in here))
    if name not in here:
        raise InputError(f"device must be auto or one of this machine's, {', '.join(here)}; got {name!r}")
    return torch.device(name)


def bfloat16_pays(device: torch.device) -> bool:
    """Return whether bfloat16 matrix products are faster than float32 ones.

    On a CPU the answer is measured, in some tens of milliseconds: twice as fast or better where the
    processor has instructions for it, several times slower where it has not.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(7):  # interleaved, so that another program's load falls on both
        for dtype, seconds in times.items():
            a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
            started = time.perf_counter()
            for _ in range(4):
                a @ b
            seconds.append(time.perf_counter() - started)
    return statistics.median(times[torch.bfloat16]) < 0.8 * statistics.median(times[torch.float32])


@functools.cache
def compiler_works(device_type: str) -> bool:
    """Return whether torch.compile can build code here: with a C++ compiler for the CPU, with Triton for a GPU."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device_type))
    except Exception as error:  # a missing compiler shows in many ways
        log.warning("torch.compile does not work here (%s), so models run without it", type(error).__name__)
        return False
    return True


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for the next step instead of handing them back to the kernel.

    A training step on a CPU frees and takes the same hundreds of megabytes each time; without this
    the kernel zeroes them anew, page by page. Does nothing on other systems.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def describe() -> dict[str, Any]:
    """Describe hardware, versions and commit, to stand beside every measured number."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """Return the commit of this checkout, with a + if files differ from it; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
