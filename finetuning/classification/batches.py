"""Texts as token ids: cut to what the model can read, and put together in batches of similar length.

A batch is as long as its longest row, so a long text makes all others of its batch wait. Sorting everything by length
would cure that, and always show the same texts together, short ones first. So texts are shuffled, sorted within pools
of some batches, and the batches are shuffled again. The order depends on the seed and the epoch alone, so that a run
that was stopped goes on exactly.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from working_with_text_data.minbpe import Tokenizer

Cut = Literal["head", "tail", "both"]
BATCHES_OF_A_POOL = 32  # within which texts are sorted by length
SHARE_OF_HEAD = 0.25  # of what is kept, where both ends are


def encode(tokenizer: Tokenizer, text: str, most_tokens: int, cut: Cut) -> np.ndarray:
    """Return the ids of a text, at most so many.

    Args:
        tokenizer: special tokens in the text are read as text.
        text: of any length.
        most_tokens: how many ids the model can read.
        cut: what is kept of a longer text: its head, its tail, or a quarter from its head and the rest from its tail.
            A review often ends with its verdict (Sun et al. 2019, https://arxiv.org/abs/1905.05583, section 5.3.1).
    """
    ids = tokenizer.encode_to_array(text)
    if len(ids) <= most_tokens:
        return ids
    n_head = {"head": most_tokens, "tail": 0, "both": round(SHARE_OF_HEAD * most_tokens)}[cut]
    return np.concatenate([ids[:n_head], ids[len(ids) - (most_tokens - n_head) :]])


def collate(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return ids (B, T), padded on the right to the longest row, and lengths (B,), both int64."""
    lengths = [len(row) for row in rows]
    ids = np.zeros((len(rows), max(lengths)), np.int64)
    for row, into in zip(rows, ids, strict=True):
        into[: len(row)] = row
    return torch.from_numpy(ids), torch.tensor(lengths)


def in_order(rows: Sequence[np.ndarray], batch_size: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield batches for prediction, the longest rows first: where the rows stand, ids (B, T), and lengths (B,)."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, *collate([rows[index] for index in chosen])


class Bucketed:
    """Hands out batches for training, epoch after epoch: ids (B, T), lengths (B,) and labels (B,).

    Each epoch has every text once; its last batch may be smaller.

    Args:
        rows: ids of the texts.
        labels: their classes.
        batch_size: texts of a batch, over all processes.
        seed: decides the order.
        rank: which of `n_ranks` processes this is; each gets every n-th row of a batch.
        n_ranks: processes that share every batch.
    """

    def __init__(
        self,
        rows: Sequence[np.ndarray],
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self.rows = rows
        self.labels = torch.from_numpy(labels)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.n_ranks = rank, n_ranks
        self.epoch, self.index = 0, 0
        self._batches = self._of_epoch()

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self._batches)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return this process's part of the next batch."""
        if self.index == len(self._batches):
            self.epoch, self.index = self.epoch + 1, 0
            self._batches = self._of_epoch()
        chosen = self._batches[self.index][self.rank :: self.n_ranks]
        self.index += 1
        return *collate([self.rows[index] for index in chosen]), self.labels[chosen]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were handed out."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another one of the same texts, batch size and seed stood."""
        self.epoch, self.index = state["epoch"], state["index"]
        self._batches = self._of_epoch()

    def _of_epoch(self) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.rows))
        lengths = np.array([len(row) for row in self.rows])
        batches = []
        for start in range(0, len(order), BATCHES_OF_A_POOL * self.batch_size):
            pool = order[start : start + BATCHES_OF_A_POOL * self.batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[at : at + self.batch_size] for at in range(0, len(pool), self.batch_size)]
        # a process without a row would have nothing to compute
        return [batches[at] for at in rng.permutation(len(batches)) if len(batches[at]) >= self.n_ranks]
