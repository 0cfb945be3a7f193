"""Batches of tokens for a language model, from shards on disk.

The tokens of a split are cut into fixed blocks. An epoch visits each block once, in an order that
depends on nothing but the seed and the epoch's number, so that where training stands is two numbers.

Shapes: B batch, T block length.
"""

import bisect
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.files import InputError
from working_with_text_data.shards import open_shard


class BlockDataset(torch.utils.data.Dataset):
    """The blocks of a split: ids (T,) and, one token further on, their targets (T,), both int64.

    Neighbouring blocks of a shard share one token, so that each token but a shard's first is a target
    once; fewer than T at the end of a shard are left out.

    Args:
        folder: what `prepare` wrote, or any folder of `{split}_*.bin` shards.
        split: "train" or "val".
        block_length: T.

    Raises:
        InputError: if there are no shards, one is damaged, or all are shorter than one block.
    """

    def __init__(self, folder: Path, split: str, block_length: int) -> None:
        paths = sorted(folder.glob(f"*{split}_*.bin"))
        if not paths:
            raise InputError(
                f"{folder} holds no {split}_*.bin: make some with python -m working_with_text_data.prepare"
            )
        self.block_length = block_length
        self.shards = [open_shard(path) for path in paths]
        # the number of blocks up to and including each shard
        self.ends = np.cumsum([max(0, len(shard) - 1) // block_length for shard in self.shards]).tolist()
        if not self.ends[-1]:
            longest = max(len(shard) for shard in self.shards)
            raise InputError(
                f"{folder} has {longest:,} {split} tokens in a row, fewer than the {block_length + 1:,} of one block: "
                "give more text, or a shorter context"
            )

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        shard = bisect.bisect_right(self.ends, index)
        start = (index - (self.ends[shard - 1] if shard else 0)) * self.block_length
        tokens = torch.from_numpy(self.shards[shard][start : start + self.block_length + 1].astype(np.int64))
        return tokens[:-1], tokens[1:]

    def largest_id(self) -> int:
        """The largest token id there is, to be compared with a model's vocabulary."""
        return max(int(shard.max()) for shard in self.shards if len(shard))


@dataclass
class Cursor:
    """Where a stream of batches stands."""

    epoch: int = 0
    index: int = 0
    """Blocks already taken in this epoch."""


class BatchStream:
    """Batches without end, epoch after epoch; a batch may begin in one epoch and end in the next.

    Args:
        dataset: the blocks.
        batch_size: B.
        seed: decides the order.
    """

    def __init__(self, dataset: BlockDataset, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.cursor = Cursor()
        self._order = self._permutation(0)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))

    def next(self) -> tuple[Tensor, Tensor]:
        """The next ids (B, T) and targets (B, T)."""
        blocks = [self.dataset[self._next_block()] for _ in range(self.batch_size)]
        ids, targets = zip(*blocks, strict=True)
        return torch.stack(ids), torch.stack(targets)

    def _next_block(self) -> int:
        if self.cursor.index == len(self.dataset):
            self.cursor = Cursor(self.cursor.epoch + 1)
            self._order = self._permutation(self.cursor.epoch)
        self.cursor.index += 1
        return int(self._order[self.cursor.index - 1])

    def state_dict(self) -> dict[str, int]:
        return asdict(self.cursor)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.cursor = Cursor(**state)
        self._order = self._permutation(self.cursor.epoch)
