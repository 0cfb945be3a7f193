"""Texts of different lengths as one rectangle of ids, for models that want one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from utils.files import InputError

if TYPE_CHECKING:
    from torch import Tensor


def rectangle(
    batch: Sequence[Sequence[int]],
    pad_id: int,
    *,
    max_length: int | None = None,
    pad: Literal["right", "left"] = "right",
    tensors: bool = False,
) -> "tuple[np.ndarray, np.ndarray] | tuple[Tensor, Tensor]":
    """Pad, and cut, lists of token ids to one length.

    Args:
        batch: B lists of ids, as `encode_batch` gives them.
        pad_id: fills the places that are left; any id, since the mask tells which they are.
        max_length: of each list keep only the first so many ids.
        pad: on which side the filling goes: "right" to train, "left" to go on writing at the end.
        tensors: return PyTorch tensors, not NumPy arrays.

    Returns:
        ids (B, T), int64, and a mask (B, T), True where the ids are the texts'. T is the longest text's.

    Raises:
        InputError: if max_length is below 1, or pad is neither side.
    """
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length must be at least 1, got {max_length}")
    if pad not in ("right", "left"):
        raise InputError(f"pad must be 'right' or 'left', got {pad!r}")
    rows = [row[:max_length] for row in batch]
    length = max(map(len, rows), default=0)
    ids_BT = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask_BT = np.zeros((len(rows), length), dtype=bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if pad == "right" else slice(length - len(row), length)
        ids_BT[i, place] = row
        mask_BT[i, place] = True
    if tensors:
        import torch

        return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT)
    return ids_BT, mask_BT
