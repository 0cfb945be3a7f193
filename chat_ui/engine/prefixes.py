"""Keys and values of texts that were read before: the next turn of a conversation begins with the last one's tokens.

A text that is finished leaves a copy of its row of the KV cache here. A new prompt takes over as many of its first
tokens as the most similar stored text has in common with it, and reads the rest alone. Tokens are compared, not
conversations: users whose prompts begin with the same instructions share them, too.

Shapes: G key/value heads, S tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from attention_mechanisms import KVCache

Content = list[list[Tensor]]  # of each layer, (G, S, D) for keys and for values; see `KVCache.read_row`
LEAST_REUSED = 16  # tokens; fewer are read as quickly as they are copied


def common_prefix(ids: Sequence[int] | np.ndarray, others: Sequence[int] | np.ndarray) -> int:
    """Return how many tokens two texts have in common at their beginning.

    >>> common_prefix([5, 6, 7, 8], [5, 6, 9])
    2
    """
    n = min(len(ids), len(others))
    different = np.flatnonzero(np.asarray(ids[:n]) != np.asarray(others[:n]))
    return int(different[0]) if len(different) else n


@dataclass(eq=False)
class _Entry:
    """A text that was read."""

    ids: np.ndarray
    content: Content
    nbytes: int


class PrefixCache:
    """Remembers the rows of a KV cache, as many as `max_bytes` hold; the least recently used is forgotten first.

    Args:
        max_bytes: 0 remembers nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: list[_Entry] = []  # the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, ids: Sequence[int], cache: KVCache, row: int) -> None:
        """Remember what a row holds: the keys and values of `ids`. Texts that these begin with are now superfluous."""
        known = np.array(ids)
        content: Content = [[tensor.clone() for tensor in layer] for layer in cache.read_row(row, len(ids))]
        nbytes = sum(tensor.nbytes for layer in content for tensor in layer)
        if nbytes > self.max_bytes:
            return
        self._entries = [e for e in self._entries if common_prefix(e.ids, known) < len(e.ids)]
        self._entries.append(_Entry(known, content, nbytes))
        self.nbytes = sum(entry.nbytes for entry in self._entries)
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._entries.pop(0).nbytes

    def find(self, ids: Sequence[int], *, whole: bool) -> tuple[int, Content | None]:
        """Return how many tokens of the beginning of `ids` are known, and what a row that holds them holds.

        At least the last token is left to be read, since its output is what comes next.

        Args:
            ids: a prompt.
            whole: use a stored text whole or not at all, since a ring has overwritten what a part of it needs.
        """
        wanted = np.array(ids[:-1])
        best: _Entry | None = None
        length = LEAST_REUSED - 1
        for entry in self._entries:
            n = common_prefix(entry.ids, wanted)
            if n > length and (n == len(entry.ids) or not whole):
                best, length = entry, n
        if best is None:
            return 0, None
        self._entries.remove(best)
        self._entries.append(best)
        return length, best.content
