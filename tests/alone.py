"""A new process, for measuring memory."""

import ctypes
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from tests.forked import SERVER

P = ParamSpec("P")
T = TypeVar("T")


def alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the function returns in a process of its own: it and its arguments must be picklable.

    Trainers have their process keep what is freed, and those that other tests ran in this one would hide what is
    taken, or have it taken in another place each time. There, what is freed goes back at once.
    """
    with ProcessPoolExecutor(1, SERVER, initializer=_hand_back_what_is_freed) as process:
        return process.submit(function, *args, **kwargs).result()


def _hand_back_what_is_freed() -> None:
    if platform.libc_ver()[0] == "glibc":
        M_MMAP_THRESHOLD = -3  # malloc.h: from this size on, blocks are mapped, and do not leave gaps
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
