"""Examples for a language model: a stretch of tokens, and for each of them the one that follows.

`WindowDataset` is the textbook view, a window that slides over one text. `BlockDataset` is the same for
corpora that fill a disk: shards of tokens, cut into blocks. Documents stand in them one after another,
each behind an end-of-text token, and a block begins and ends anywhere; `document_ids` and
`document_positions` find the documents again. `utils.data_loading` makes batches of either.

Shapes: B batch, T block length.
"""

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.files import InputError
from working_with_text_data.shards import open_shard


class WindowDataset(Dataset):
    """The windows of one token sequence: ids (T,) and, one token further on, their targets (T,), both int64.

    With T = 4 and a stride of 2, the sequence 0 1 2 3 4 5 6 7 has two windows, and 7 is left out:

        ids 0 1 2 3, targets 1 2 3 4
        ids 2 3 4 5, targets 3 4 5 6

    Args:
        ids: N tokens, as a list or an array.
        length: T.
        stride: from one window's first token to the next one's. With 1 a window begins at every token;
            with T none overlap and each token is a target once, as in `BlockDataset`.

    Raises:
        InputError: for a length below 1, a stride outside 1 to T, or fewer than T + 1 tokens.
    """

    def __init__(self, ids: Sequence[int] | np.ndarray, length: int, stride: int) -> None:
        if length < 1:
            raise InputError(f"length must be at least 1, got {length}")
        if not 1 <= stride <= length:
            raise InputError(f"stride must be from 1 to the window's length, {length}, got {stride}")
        if len(ids) <= length:
            raise InputError(
                f"the text has {len(ids):,} tokens, fewer than the {length + 1:,} of one window and its targets: "
                "give more text, or a shorter length"
            )
        self.ids = np.asarray(ids)
        self.length = length
        self.stride = stride

    def __len__(self) -> int:
        return (len(self.ids) - 1 - self.length) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return _ids_and_targets(self.ids, index * self.stride, self.length)


class BlockDataset(Dataset):
    """The blocks of a split: ids (T,) and, one token further on, their targets (T,), both int64.

    Neighbouring blocks of a shard share one token, so that each token but a shard's first is a target
    once; fewer than T at the end of a shard are left out. Where a document ends inside a block, the
    end-of-text token is the target of its last token, as it should be: this is how a model learns to stop.

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
            advice = "python -m working_with_text_data.prepare makes them"
            if split == "val" and any(folder.glob("*train_*.bin")):
                advice = "prepare held nothing out of so little text: run it again with a larger --held-out"
            raise InputError(f"{folder} holds no {split}_*.bin: {advice}")
        self.folder = folder
        self.split = split
        self.block_length = block_length
        self.shards = [open_shard(path) for path in paths]
        # the number of blocks up to and including each shard
        self.ends = np.cumsum([max(0, len(shard) - 1) // block_length for shard in self.shards]).tolist()
        if not self.ends[-1]:
            longest = max(len(shard) for shard in self.shards)
            advice = "give more text, or a shorter context"
            if split == "val":
                advice += ", or prepare the text with a larger --held-out"
            raise InputError(
                f"{folder} has {longest:,} {split} tokens in a row, fewer than the {block_length + 1:,} of one block: "
                f"{advice}"
            )

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        shard = bisect.bisect_right(self.ends, index)
        start = (index - (self.ends[shard - 1] if shard else 0)) * self.block_length
        return _ids_and_targets(self.shards[shard], start, self.block_length)

    def __reduce__(self) -> tuple[type, tuple[Path, str, int]]:
        # a worker that is not a fork gets its dataset pickled, and a pickled memory map is the whole file
        return type(self), (self.folder, self.split, self.block_length)

    def largest_id(self) -> int:
        """Return the largest token id there is, to be compared with a model's vocabulary."""
        return max(int(shard.max()) for shard in self.shards if len(shard))


def _ids_and_targets(tokens: np.ndarray, start: int, length: int) -> tuple[Tensor, Tensor]:
    chosen = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
    return chosen[:-1], chosen[1:]


def document_ids(ids: Tensor, end_of_text: int) -> Tensor:
    """Return the number of each token's document within its block, so that attention can be kept inside documents.

        ids, with 0 for end of text    7 7 0 8 0 9 9
        document ids                   0 0 1 1 2 2 2

    Args:
        ids: blocks of tokens, (T,) or (B, T).
        end_of_text: the token each document begins with.

    Returns:
        int64, of the shape of `ids`; each block counts from 0, also where it begins inside a document.
    """
    begun = (ids == end_of_text).cumsum(-1)
    return begun - begun[..., :1]


def document_positions(ids: Tensor, end_of_text: int) -> Tensor:
    """Return the place of each token in its document, for a model that is to read each document by itself.

        ids, with 0 for end of text    7 7 0 8 0 9 9
        document positions             0 1 0 1 0 1 2

    Args:
        ids: blocks of tokens, (T,) or (B, T).
        end_of_text: the token each document begins with.

    Returns:
        int64, of the shape of `ids`; where a block begins inside a document, it counts from the block's start.
    """
    places = torch.arange(ids.shape[-1], device=ids.device)
    starts = torch.where(ids == end_of_text, places, 0).cummax(-1).values
    return places - starts
