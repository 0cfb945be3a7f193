"""Encode a long text unit by unit: each distinct unit once, all its occurrences by array indexing."""

from collections.abc import Callable

import numpy as np

from working_with_text_data.minbpe.units import TOO_LONG, Cuts, Units

WIDTH = 4  # ids a unit may have to be looked up by indexing; the rare longer ones are put in afterwards


class UnitEncoder:
    """Token ids of UTF-8 text, equal to `encode_unit` of the whole.

    Args:
        cuts: of the pattern that `encode_unit` splits by.
        encode_unit: ids of any text, the slow way.
        largest_id: that `encode_unit` can give.
    """

    def __init__(self, cuts: Cuts, encode_unit: Callable[[str], list[int]], largest_id: int) -> None:
        self.units = Units(cuts)
        self.encode_unit = encode_unit
        self.dtype = np.dtype(np.uint16 if largest_id < 2**16 - 1 else np.uint32)
        self.absent = int(np.iinfo(self.dtype).max)  # stands where a unit has fewer than WIDTH ids
        self._forget()

    def _forget(self) -> None:
        self.units.forget()
        self._ids = np.empty((2**14, WIDTH), dtype=self.dtype)  # a row a unit; all absent if it has more ids
        self._ids[TOO_LONG] = self.absent
        self._many: dict[int, list[int]] = {}  # the ids of those
        self._n_ids = np.zeros(len(self._ids), dtype=np.int64)  # of these rows
        self._known = 1

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of a UTF-8 text: uint16 or uint32, as `largest_id` demands."""
        parts = [self._encode_chunk(chunk, bounds) for chunk, bounds in self.units.chunks(text)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=self.dtype)

    def _encode_chunk(self, text: bytes, bounds: np.ndarray) -> np.ndarray:
        if self.units.full:
            self._forget()
        numbers = self.units.number(text, bounds)
        self._learn()
        rows = self._ids.take(numbers, axis=0)
        ids = rows[rows != self.absent]
        n_ids = self._n_ids[numbers]
        many = np.flatnonzero(n_ids == 0)
        if not len(many):
            return ids
        found = []
        for i in many.tolist():
            number = int(numbers[i])
            if number == TOO_LONG:
                found.append(self.encode_unit(text[bounds[i] : bounds[i + 1]].decode("utf-8")))
            else:
                found.append(self._many[number])
        before = np.cumsum(n_ids)[many]
        inserted = np.array([i for unit in found for i in unit], dtype=self.dtype)
        return np.insert(ids, np.repeat(before, [len(unit) for unit in found]), inserted)

    def _learn(self) -> None:
        """Encode the units numbered since the last time."""
        total = len(self.units.spelling)
        if total == self._known:
            return
        while total > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._n_ids = np.concatenate([self._n_ids, np.zeros_like(self._n_ids)])
        rows = []
        for number in range(self._known, total):
            ids = self.encode_unit(self.units.spelling[number].decode("utf-8"))
            if len(ids) > WIDTH:
                self._many[number], ids = ids, []
            self._n_ids[number] = len(ids)
            rows.append(ids + [self.absent] * (WIDTH - len(ids)))
        self._ids[self._known : total] = rows
        self._known = total
