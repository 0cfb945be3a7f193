"""Keys and values of the tokens already seen, so that a new token costs one step and not a whole pass.

The memory is taken once. Per token and layer it holds 2 G D numbers.

Shapes: B batch, G key/value heads, T new tokens, S cached tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_mechanisms.masks import Mask


class LayerCache:
    """Keys and values of one layer; each row of the batch may hold a different number of tokens."""

    def __init__(
        self, batch_size: int, n_heads: int, max_length: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.k_BGSD = torch.zeros(batch_size, n_heads, max_length, head_dim, dtype=dtype, device=device)
        self.v_BGSD = torch.zeros_like(self.k_BGSD)
        self.lengths = [0] * batch_size

    @property
    def max_length(self) -> int:
        return self.k_BGSD.shape[2]

    @property
    def nbytes(self) -> int:
        """2 B G S D numbers."""
        return self.k_BGSD.nbytes + self.v_BGSD.nbytes

    def append(self, k_BGTD: Tensor, v_BGTD: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens to every row; return keys and values up to the longest row, old and new.

        What stands past the end of a shorter row is rubbish, hidden by a mask with the rows' offsets.

        Raises:
            ValueError: if a row would grow past the cache's length, or the batch is of another size.
        """
        B, _, T, _ = k_BGTD.shape
        if len(self.lengths) != B:
            raise ValueError(f"the cache was made for a batch of {len(self.lengths)}, got {B} rows")
        longest = max(self.lengths) + T
        if longest > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens a row: {T} more than {longest - T} do not fit")
        if len(set(self.lengths)) == 1:
            self.k_BGSD[:, :, longest - T : longest] = k_BGTD
            self.v_BGSD[:, :, longest - T : longest] = v_BGTD
        else:
            for row, length in enumerate(self.lengths):
                self.k_BGSD[row, :, length : length + T] = k_BGTD[row]
                self.v_BGSD[row, :, length : length + T] = v_BGTD[row]
        self.lengths = [length + T for length in self.lengths]
        return self.k_BGSD[:, :, :longest], self.v_BGSD[:, :, :longest]

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the tokens of some rows, or of all; the memory stays."""
        for row in range(len(self.lengths)) if rows is None else rows:
            self.lengths[row] = 0


class KVCache:
    """The caches of all layers of a model.

    Args:
        n_layers: how many layers.
        batch_size: rows, each a sequence of its own.
        n_heads: key/value heads.
        max_length: tokens a row can hold.
        head_dim: size of one head.
    """

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        max_length: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        self.layers = [LayerCache(batch_size, n_heads, max_length, head_dim, dtype, device) for _ in range(n_layers)]

    @property
    def max_length(self) -> int:
        return self.layers[0].max_length

    @property
    def lengths(self) -> list[int]:
        """Tokens held by each row."""
        return self.layers[0].lengths

    @property
    def nbytes(self) -> int:
        """2 L B G S D numbers."""
        return sum(layer.nbytes for layer in self.layers)

    def mask(self) -> Mask:
        """Causal attention for tokens that are appended next."""
        first, *others = self.lengths
        return Mask(query_offset=first if all(length == first for length in others) else tuple(self.lengths))

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the tokens of some rows, or of all; the memory stays."""
        for layer in self.layers:
            layer.reset(rows)
