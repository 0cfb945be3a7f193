"""New processes that need not import PyTorch again: a server that has done so is forked.

It is a process of its own and runs no test, so that what it hands on is the same whatever tests have done.
"""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from typing import Any

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "tyro", "matplotlib.pyplot", "ipykernel.kernelapp"])  # what takes long


def fork(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Begin to call a function in a process of its own; it and its arguments must be picklable."""
    process = SERVER.Process(target=function, args=arguments)
    process.start()
    return process
