"""Encode a long text unit by unit: each distinct unit once, all its occurrences by array indexing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, takewhile
from typing import NamedTuple

import numpy as np

from working_with_text_data.minbpe.fast.units import CHUNK, TOO_LONG, Cuts, Units

WIDTH = 4  # ids a unit may have to be looked up by indexing; the rare longer ones are put in afterwards


class Entries(NamedTuple):
    """Units and their ids that one process has found out, and another need not find out again."""

    units: list[bytes]
    ids: np.ndarray
    """(len(units), WIDTH)"""
    many: dict[int, Sequence[int]]
    """The ids of those that have more, by their place in `units`."""


class UnitEncoder:
    """Encodes UTF-8 text to the ids that `encode_new_unit` gives for the whole of it.

    Args:
        cuts: of the pattern that `encode_new_unit` splits by.
        encode_new_unit: returns the ids of any UTF-8 text, the slow way.
        largest_id: the largest id that `encode_new_unit` can return.
    """

    def __init__(self, cuts: Cuts, encode_new_unit: Callable[[bytes], Sequence[int]], largest_id: int) -> None:
        self.units = Units(cuts)
        self.encode_new_unit = encode_new_unit
        self.dtype = np.dtype(np.uint16 if largest_id < 2**16 - 1 else np.uint32)
        self.absent = int(np.iinfo(self.dtype).max)  # stands where a unit has fewer than WIDTH ids
        self._forget()

    def _forget(self) -> None:
        self.units.forget()
        self._ids = np.empty((2**14, WIDTH), dtype=self.dtype)  # one row per unit; all absent if it has more ids
        self._ids[TOO_LONG] = self.absent
        self._many: dict[int, Sequence[int]] = {}  # the ids of those
        self._n_ids = np.zeros(len(self._ids), dtype=np.int64)  # in each row
        self._known = self._told = 1

    def encode(self, text: bytes) -> np.ndarray:
        """Return the ids of a UTF-8 text: uint16 or uint32, as `largest_id` demands."""
        parts = [self._encode_chunk(chunk, bounds)[0] for chunk, bounds in self.units.chunks(text)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype=self.dtype)

    def encode_many(self, texts: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yield the ids of each text; short ones are joined, since a chunk takes hardly longer than a line of it."""
        joined: list[bytes] = []
        size = 0
        for text in texts:
            if joined and size + len(text) > CHUNK:
                yield from self._encode_joined(joined)
                joined = []
                size = 0
            if len(text) > CHUNK:
                yield self.encode(text)
            else:
                joined.append(text)
                size += len(text)
        yield from self._encode_joined(joined)

    def _encode_joined(self, texts: list[bytes]) -> list[np.ndarray]:
        """Return the ids of each of a few texts, which together are a chunk."""
        chunk = b"".join(texts)
        if not chunk:
            return [np.empty(0, dtype=self.dtype) for _ in texts]
        ends = [*accumulate(map(len, texts))]
        bounds = self.units.cuts.bounds_of_several(chunk, ends)
        ids, n_ids = self._encode_chunk(chunk, bounds)
        n_before = np.concatenate([[0], np.cumsum(n_ids)])  # ids before each bound
        return np.split(ids, n_before[np.searchsorted(bounds, ends[:-1])])

    def _encode_chunk(self, text: bytes, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of a chunk, and how many each of its units has."""
        if len(text) > CHUNK and len(bounds) == 2:  # a huge unit, of which there should be no copy
            ids = np.asarray(self.encode_new_unit(text), dtype=self.dtype)
            return ids, np.array([len(ids)])
        if self.units.full:
            self._forget()
        numbers = self.units.number(text, bounds)
        self._learn()
        rows = self._ids.take(numbers, axis=0)
        ids = rows[rows != self.absent]
        n_ids = self._n_ids[numbers]
        many = np.flatnonzero(n_ids == 0)
        if not len(many):
            return ids, n_ids
        found = []
        for i in many.tolist():
            number = int(numbers[i])
            if number == TOO_LONG:
                found.append(self.encode_new_unit(text[bounds[i] : bounds[i + 1]]))
            else:
                found.append(self._many[number])
        n_found = np.array([len(unit) for unit in found])
        ends = np.cumsum(n_ids)[many] + np.cumsum(n_found)  # in the result, which is a mixture of both
        steps = np.zeros(len(ids) + n_found.sum() + 1, dtype=np.int8)
        steps[ends] -= 1
        steps[ends - n_found] += 1
        is_found = np.cumsum(steps[:-1], dtype=np.int8).view(bool)
        del steps
        mixture = np.empty(len(is_found), dtype=self.dtype)
        mixture[is_found] = np.fromiter(chain.from_iterable(found), dtype=self.dtype, count=n_found.sum())
        mixture[~is_found] = ids
        n_ids[many] = n_found
        return mixture, n_ids

    def _learn(self) -> None:
        """Encode the units numbered since the last time."""
        new = self.units.spelling[self._known :]
        if not new:
            return
        encoded = [self.encode_new_unit(unit) for unit in new]
        n_ids = np.fromiter(map(len, encoded), dtype=np.int64, count=len(new))
        many = {i: encoded[i] for i in np.flatnonzero(n_ids > WIDTH).tolist()}
        for i in many:
            n_ids[i], encoded[i] = 0, []
        rows = np.full((len(new), WIDTH), self.absent, dtype=self.dtype)
        rows[np.arange(WIDTH) < n_ids[:, None]] = list(chain.from_iterable(encoded))
        self._store(rows, n_ids, many)

    def _store(self, rows: np.ndarray, n_ids: np.ndarray, many: dict[int, Sequence[int]]) -> None:
        """Keep the ids of the units numbered since the last time."""
        start = self._known
        self._known += len(rows)
        while self._known > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._n_ids = np.concatenate([self._n_ids, np.zeros_like(self._n_ids)])
        self._ids[start : self._known] = rows
        self._n_ids[start : self._known] = n_ids
        self._many |= {start + i: ids for i, ids in many.items()}

    # -- several processes ---------------------------------------------------------------------------

    def new_entries(self) -> Entries:
        """Return the units that were added here since the last call, or the last call of `add_entries`."""
        start, self._told = self._told, self._known
        recent = takewhile(lambda number: number >= start, reversed(self._many))  # they were added in order
        many = {number - start: self._many[number] for number in recent}
        return Entries(self.units.spelling[start : self._known], self._ids[start : self._known].copy(), many)

    def add_entries(self, entries: Entries) -> None:
        """Add the units that another encoder of the same tokenizer has met."""
        if self.units.full:
            self._forget()
        fresh = self.units.add_all(entries.units)
        many = {place: entries.many[i] for place, i in enumerate(fresh) if i in entries.many} if entries.many else {}
        rows = entries.ids[fresh]
        self._store(rows, np.count_nonzero(rows != self.absent, axis=1), many)
        self._told = self._known
