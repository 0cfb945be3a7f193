"""A new process for what this one would disturb."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the function returns when nothing ran before it: it and its arguments must be picklable.

    Memory is measured like this. Trainers have their process keep what is freed, and those that other tests
    ran in this one would hide what is taken, or have it taken in another place each time.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *args, **kwargs).result()
