"""Count the pieces of a text, in one process or several, without ever holding all of it."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from working_with_text_data.minbpe.fast.processes import JOB_SIZE, START_METHOD, map_in_order, worker_pool
from working_with_text_data.minbpe.fast.units import TOO_LONG, Cuts, Units

Split = Callable[[str], list[str]]

LONGEST_PIECE = 2**18  # bytes; the trainer needs over a hundred times as much, and 50 MB of spaces are one piece


def count_pieces(documents: Iterable[str], split: Split, cuts: Cuts | None, workers: int) -> Counter[bytes]:
    """Return how often each piece occurs in the documents.

    Args:
        documents: read once, one after another.
        split: gives the pieces of a text.
        cuts: where its pieces surely end, if that is known, which makes counting several times as fast.
        workers: processes.

    Raises:
        UnicodeEncodeError: for a lone surrogate; its `object` is the document.
    """
    if workers == 1:
        counter = PieceCounter(split, cuts)
        for document in documents:
            for part in _parts(document, cuts):
                counter.add(part)
        return counter.result()
    barrier = multiprocessing.get_context(START_METHOD).Barrier(workers)
    with worker_pool(workers, _begin_counting, split, cuts, barrier) as pool:
        for _ in map_in_order(pool, _add, _jobs(documents, cuts), ahead=workers + 1):
            pass
        counts: Counter[bytes] = Counter()
        for result in [pool.submit(_result) for _ in range(workers)]:
            counts.update(result.result())
        return counts


_counter: "PieceCounter"  # a worker's own
_barrier: Any  # at which all workers meet


def _begin_counting(split: Split, cuts: Cuts | None, barrier: Any) -> None:
    global _counter, _barrier
    _counter = PieceCounter(split, cuts)
    _barrier = barrier


def _parts(document: str, cuts: Cuts | None) -> Iterable[bytes]:
    return cuts.text_parts(document, JOB_SIZE) if cuts else [document.encode("utf-8")]


def _jobs(documents: Iterable[str], cuts: Cuts | None) -> Iterator[list[bytes]]:
    """Yield documents, or parts of them, in lists of about JOB_SIZE bytes."""
    job: list[bytes] = []
    size = 0
    for document in documents:
        for part in _parts(document, cuts):
            job.append(part)
            size += len(part)
            if size >= JOB_SIZE:
                yield job
                job = []
                size = 0
    yield job


def _add(job: list[bytes]) -> None:
    for text in job:
        _counter.add(text)


def _result() -> Counter[bytes]:
    _barrier.wait()  # until each worker has taken one of these calls, so that none takes two
    return _counter.result()


class PieceCounter:
    """Counts units by number, and splits only the distinct ones."""

    def __init__(self, split: Split, cuts: Cuts | None) -> None:
        self.split = split
        self.units = Units(cuts) if cuts else None
        self.pieces: Counter[str] = Counter()
        self._counts = np.zeros(2**14, dtype=np.int64)

    def add(self, text: bytes) -> None:
        """Count the pieces of a UTF-8 text."""
        if self.units is None:
            self.pieces.update(self.split(text.decode("utf-8")))
            return
        for chunk, bounds in self.units.chunks(text):
            numbers = self.units.number(chunk, bounds)
            for i in np.flatnonzero(numbers == TOO_LONG).tolist():
                self.pieces.update(self.split(chunk[bounds[i] : bounds[i + 1]].decode("utf-8")))
            while len(self._counts) < len(self.units.spelling):
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._counts += np.bincount(numbers, minlength=len(self._counts))
            if self.units.full:
                self._split_units()

    def _split_units(self) -> None:
        pieces, split = self.pieces, self.split
        for unit, count in zip(self.units.spelling[1:], self._counts[1:].tolist(), strict=False):
            for piece in split(unit.decode("utf-8")):
                pieces[piece] += count
        self._counts[:] = 0
        self.units.forget()

    def result(self) -> Counter[bytes]:
        """Return how often each piece occurred; of one longer than LONGEST_PIECE only the beginning counts."""
        if self.units is not None:
            self._split_units()
        counts: Counter[bytes] = Counter()
        for piece, count in self.pieces.items():
            counts[piece[:LONGEST_PIECE].encode("utf-8")[:LONGEST_PIECE]] += count
        return counts
