"""Packing documents into rows that each begin with the beginning of one.

Laid end to end, documents are cut wherever a row happens to end, and most rows begin in the middle of one. Here each
row is filled with whole documents, always the longest of those at hand that fits (best fit); where none fits, the
shortest is cropped, and its end is lost. Ding et al. 2024, "Fewer Truncations Improve Language Modeling",
https://arxiv.org/abs/2404.10830, has the idea; nanochat crops in this way.

What follows a row in a shard is the next row, so that a cropped document seems to end where it was cropped.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

AT_HAND = 1000  # documents to choose from: more crop less


class Packing:
    """Packs documents, and counts what it crops.

    Args:
        length: tokens of a row.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.n_tokens = 0
        self.n_cropped = 0

    def rows(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield full rows. What is left at the end, less than a row, is cropped too.

        Args:
            documents: tokens of each, in a random order.
        """
        coming = iter(documents)
        at_hand: list[tuple[int, int]] = []  # lengths and numbers, in order
        tokens: dict[int, np.ndarray] = {}
        n_seen = 0
        row: list[np.ndarray] = []
        left = self.length
        while True:
            for document in islice(coming, AT_HAND - len(at_hand)):
                self.n_tokens += len(document)
                insort(at_hand, (len(document), n_seen))
                tokens[n_seen] = document
                n_seen += 1
            if not at_hand:
                break
            place = max(bisect_right(at_hand, (left, n_seen)) - 1, 0)
            size, number = at_hand.pop(place)
            row.append(tokens.pop(number)[:left])
            self.n_cropped += max(0, size - left)
            left -= min(size, left)
            if not left:
                yield np.concatenate(row)
                row = []
                left = self.length
        self.n_cropped += self.length - left if row else 0

    def report(self) -> dict[str, float]:
        """Return how many tokens there were, and which share of them was cropped."""
        share = self.n_cropped / self.n_tokens if self.n_tokens else 0.0
        return {"row": self.length, "n_tokens": self.n_tokens, "cropped_share": share}
