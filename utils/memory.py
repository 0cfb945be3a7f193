"""How much memory this process has held at most, how much more it can get, and whether an error says that it is full.

Nothing here needs PyTorch.
"""

import ctypes
import gc
import math
import platform
import re
import sys
from pathlib import Path


class PeakMemory:
    """Measures the most memory that the process holds from now on, beyond what it holds now.

    On Linux this is exact to the page. Elsewhere only the peak since the process began is known, so that work which
    stays below an earlier peak seems to need nothing.

    Raises:
        OSError: if Linux does not let the process reset its peak, as in some containers.
    """

    def __init__(self) -> None:
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # freed memory that is used again would not show
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # makes the kernel forget the peak so far
        self._before = _resident_bytes("VmRSS")

    @property
    def growth(self) -> int:
        """How many bytes more than at the beginning were held at once."""
        return max(0, _resident_bytes("VmHWM") - self._before)


def format_bytes(n_bytes: float) -> str:
    """Return a size as people say it.

    >>> format_bytes(24_300_000_000)
    '24.3 GB'
    >>> format_bytes(19_600_000)
    '20 MB'
    """
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


def _resident_bytes(field: str) -> int:
    """Return the process's memory now ("VmRSS") or at most ("VmHWM")."""
    if sys.platform != "linux":
        import resource  # here only: Windows does not have it

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def available_memory() -> float:
    """Return how many bytes this process can still take; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min(machine, _left_in_container())


def is_full(error: BaseException) -> bool:
    """Return whether an error says that memory is full: Python's own, or PyTorch's on a CPU or a GPU."""
    if isinstance(error, RuntimeError):
        return bool(re.search("out of memory|(can't allocate|not enough) memory", str(error)))
    return isinstance(error, MemoryError)


def _left_in_container() -> float:
    """Return how many bytes the container may still take; infinity if it has no limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return math.inf
    reclaimable = next((int(line.split()[1]) for line in statistics if line.startswith("inactive_file ")), 0)
    return int(limit) - int(used) + reclaimable if limit.isdigit() else math.inf
