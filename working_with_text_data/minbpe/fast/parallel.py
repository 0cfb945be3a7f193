"""Encode many texts with several processes, in order and in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

import numpy as np

from utils.files import InputError
from working_with_text_data.minbpe.fast.processes import JOB_SIZE, map_in_order, worker_pool


class Encoder(Protocol):
    """What is needed of a tokenizer here; see `Tokenizer` for what each does."""

    def normalize(self, text: str) -> str: ...
    def split_for_workers(self, text: str, size: int) -> Iterator[str]: ...
    def encode_to_arrays(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def new_entries(self) -> Any: ...
    def add_entries(self, entries: Any) -> None: ...


def encode_stream(tokenizer: Encoder, texts: Iterable[str | np.ndarray], workers: int = 1) -> Iterator[np.ndarray]:
    """Yield `encode_to_array` of each text, in order. Texts are read only as fast as results are taken.

    Args:
        tokenizer: each worker has a copy.
        texts: in any number. A long one is shared out among the workers if its tokenizer knows where a
            text can be cut. An array is one that is encoded already, and is yielded in its turn.
        workers: processes; 1 encodes in this one.

    Raises:
        InputError: if workers is below 1, or for a text with a lone surrogate.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    unfinished: list[np.ndarray] = []  # the parts so far of a text that was cut
    with contextlib.ExitStack() as stack:
        jobs = _jobs(tokenizer, texts)
        if workers == 1:
            done = (_encode_job(job, tokenizer) for job in jobs)
        else:
            pool = stack.enter_context(worker_pool(workers, _begin_encoding, tokenizer))
            done = _encode_together(tokenizer, pool, jobs, workers)
        for ids, is_last in itertools.chain.from_iterable(done):
            unfinished.append(ids)
            if is_last:
                yield unfinished[0] if len(unfinished) == 1 else np.concatenate(unfinished)
                unfinished = []


Job = list[tuple[str | np.ndarray, bool]]  # parts of texts, and whether each is its text's last
Encoded = list[tuple[np.ndarray, bool]]  # their ids


def _jobs(tokenizer: Encoder, texts: Iterable[str | np.ndarray]) -> Iterator[Job]:
    job: Job = []
    size = 0

    def split(text: str | np.ndarray) -> Iterator[str | np.ndarray]:
        if isinstance(text, str):
            return tokenizer.split_for_workers(tokenizer.normalize(text), JOB_SIZE)
        return iter([text])

    try:
        for parts in map(split, texts):  # so that no variable keeps the text while its parts are encoded
            part = next(parts)
            for following in parts:
                yield [*job, (part, False)]
                job = []
                size = 0
                part = following
            job.append((part, True))
            size += len(part)
            if size >= JOB_SIZE:
                yield job
                job = []
                size = 0
    except Exception:  # a text cannot be read: those before it are not lost
        if job:
            yield job
        raise
    if job:
        yield job


def _encode_job(job: Job, tokenizer: Encoder) -> Encoded:
    arrays = iter(tokenizer.encode_to_arrays([part for part, _ in job if isinstance(part, str)]))
    return [(next(arrays) if isinstance(part, str) else part, is_last) for part, is_last in job]


def _encode_together(
    tokenizer: Encoder, pool: ProcessPoolExecutor, jobs: Iterator[Job], workers: int
) -> Iterator[Encoded]:
    """Yield the ids of jobs done by workers that tell one another, and `tokenizer`, what their caches have gained.

    Each new word costs a hundred times what a known one does, and the workers meet mostly the same ones.
    With each job come the cache entries that not every worker is known to have; a worker skips those it has.
    """
    gained: list[bytes] = []  # entries of one job each, pickled: this process hands most of them on unread
    n_dropped = 0  # how many came before those; every worker has them by now
    n_known: dict[int, int] = {}  # by process id: how many it has

    def with_entries() -> Iterator[tuple[Job, int, list[bytes]]]:
        nonlocal n_dropped
        for job in jobs:
            if len(n_known) == workers:
                while n_dropped < min(n_known.values()):
                    tokenizer.add_entries(pickle.loads(gained.pop(0)))
                    n_dropped += 1
            yield job, n_dropped, list(gained)

    for encoded, worker, n_of_worker, entries in map_in_order(pool, _work, with_entries(), ahead=2 * workers):
        n_known[worker] = n_of_worker
        gained.append(entries)
        yield encoded
    for entries in gained:
        tokenizer.add_entries(pickle.loads(entries))


_tokenizer: Encoder  # a worker's own
_n_known = 0


def _begin_encoding(tokenizer: Encoder) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    tokenizer.new_entries()  # every worker begins with those that it has already


def _work(task: tuple[Job, int, list[bytes]]) -> tuple[Encoded, int, int, bytes]:
    global _n_known
    job, start, gained = task
    for entries in gained[max(0, _n_known - start) :]:
        _tokenizer.add_entries(pickle.loads(entries))
    _n_known = max(_n_known, start + len(gained))
    encoded = _encode_job(job, _tokenizer)
    return encoded, os.getpid(), _n_known, pickle.dumps(_tokenizer.new_entries())
