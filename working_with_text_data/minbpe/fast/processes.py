"""Processes that work for this one: in order, in bounded memory, and never outliving it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from utils.files import InputError

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
JOB_SIZE = 2**20  # bytes that are sent to a worker together


def map_in_order(
    pool: ProcessPoolExecutor, function: Callable[[Any], Any], jobs: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """Yield what `map` would, done by the pool's workers; no more than `ahead` jobs are taken before their results."""
    futures: deque[Future] = deque()
    iterator = iter(jobs)
    failure = None
    while failure is None:
        try:
            futures.append(pool.submit(function, next(iterator)))
        except StopIteration:
            break
        except Exception as error:  # there is no next job: those under way are not lost
            failure = error
        if len(futures) > ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()
    if failure is not None:
        raise failure


@contextlib.contextmanager
def worker_pool(workers: int, initializer: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that have called `initializer(*arguments)`, and end them when the block is left.

    On Linux they are forks of this process, which start at once and share its memory. They run Python and
    NumPy only, so it does not matter that a fork leaves the threads of other libraries behind.

    Raises:
        InputError: if one of them is killed.
    """
    context = multiprocessing.get_context(START_METHOD)
    pool = ProcessPoolExecutor(workers, context, _begin, (initializer, arguments))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
            pool.submit(int).result()  # starts them
        yield pool
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, as the system does when memory runs out: give fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(initializer: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_parent() -> None:
    """End this process when its parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
