"""Encode many texts with several processes, in order and in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.files import InputError

if TYPE_CHECKING:
    from working_with_text_data.minbpe.base import Tokenizer

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
JOB_SIZE = 2**20  # bytes that are sent to a worker together


def encode_stream(
    tokenizer: Tokenizer, texts: Iterable[str], workers: int = 1, on_part: Callable[[int], None] = lambda n: None
) -> Iterator[np.ndarray]:
    """`encode_to_array` of each text, in order. Texts are read only as fast as results are taken.

    Args:
        tokenizer: each worker has a copy.
        texts: in any number. A long one is shared out among the workers if its tokenizer knows where a
            text can be cut.
        workers: processes; 1 encodes in this one.
        on_part: called with the number of tokens of each text, or part of a long one, to show progress.

    Raises:
        InputError: if workers is below 1, or for a text with a lone surrogate.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    unfinished: list[np.ndarray] = []  # the parts so far of a text that was cut
    with contextlib.ExitStack() as stack:
        jobs = _jobs(tokenizer, texts)
        if workers == 1:
            done = (_encode(job, tokenizer) for job in jobs)
        else:
            pool = stack.enter_context(worker_pool(workers, _take_tokenizer, tokenizer))
            done = _encode_together(tokenizer, pool, jobs, workers)
        for ids, is_last in itertools.chain.from_iterable(done):
            on_part(len(ids))
            unfinished.append(ids)
            if is_last:
                yield unfinished[0] if len(unfinished) == 1 else np.concatenate(unfinished)
                unfinished = []


Job = list[tuple[str, bool]]  # parts of texts, and whether each is its text's last
Encoded = list[tuple[np.ndarray, bool]]  # their ids


def _jobs(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Job]:
    job: Job = []
    size = 0
    try:
        for text in texts:
            parts = tokenizer.parts(tokenizer.normalize(text), JOB_SIZE)
            part = next(parts)
            for following in parts:
                yield [*job, (part, False)]
                job, size, part = [], 0, following
            job.append((part, True))
            size += len(part)
            if size >= JOB_SIZE:
                yield job
                job, size = [], 0
    except Exception:  # a text cannot be read: those before it are not lost
        if job:
            yield job
        raise
    if job:
        yield job


def _encode(job: Job, tokenizer: Tokenizer) -> Encoded:
    return [(tokenizer.encode_to_array(part), is_last) for part, is_last in job]


def _encode_together(
    tokenizer: Tokenizer, pool: ProcessPoolExecutor, jobs: Iterator[Job], workers: int
) -> Iterator[Encoded]:
    """Jobs done by workers that tell one another, and `tokenizer`, what they have learned.

    Each new word costs a hundred times what a known one does, and the workers meet mostly the same ones.
    With each job come the lessons that not every worker is known to have taken; a worker skips those it has.
    """
    lessons: list[bytes] = []  # pickled: this process hands most of them on unread
    n_dropped = 0  # lessons before those, which all have taken
    taken: dict[int, int] = {}  # by process id: how many lessons

    def with_lessons() -> Iterator[tuple[Job, int, list[bytes]]]:
        nonlocal n_dropped
        for job in jobs:
            if len(taken) == workers:
                while n_dropped < min(taken.values()):
                    tokenizer.take(pickle.loads(lessons.pop(0)))
                    n_dropped += 1
            yield job, n_dropped, list(lessons)

    for encoded, worker, n_taken, lesson in map_in_order(pool, _work, with_lessons(), ahead=2 * workers):
        taken[worker] = n_taken
        lessons.append(lesson)
        yield encoded
    for lesson in lessons:
        tokenizer.take(pickle.loads(lesson))


_tokenizer: Tokenizer  # a worker's own
_n_taken = 0


def _take_tokenizer(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    tokenizer.lesson()  # what it has learned already, all have


def _work(task: tuple[Job, int, list[bytes]]) -> tuple[Encoded, int, int, bytes]:
    global _n_taken
    job, start, lessons = task
    for lesson in lessons[max(0, _n_taken - start) :]:
        _tokenizer.take(pickle.loads(lesson))
    _n_taken = max(_n_taken, start + len(lessons))
    encoded = _encode(job, _tokenizer)
    return encoded, os.getpid(), _n_taken, pickle.dumps(_tokenizer.lesson())


# -- processes ---------------------------------------------------------------------------------------------


def map_in_order(
    pool: ProcessPoolExecutor, function: Callable[[Any], Any], jobs: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """`map`, done by the pool's workers; no more than `ahead` jobs are taken before their results are."""
    futures: deque[Future] = deque()
    iterator, failure = iter(jobs), None
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
    """Processes that have called `initializer(*arguments)`, ended when the block is left.

    On Linux they are forks of this process, which start at once and share its memory. They run Python and
    NumPy only, so the threads of other libraries, which a fork leaves behind, are no danger to them.
    """
    context = multiprocessing.get_context(START_METHOD)
    pool = ProcessPoolExecutor(workers, context, _begin, (initializer, arguments))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
            pool.submit(int).result()  # starts them
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(initializer: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_parent() -> None:
    """Do not outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
