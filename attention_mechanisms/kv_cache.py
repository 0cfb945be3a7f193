"""What the tokens already seen left behind, so that a new token costs one step and not a whole pass.

The queries of new tokens look at the keys and values of all tokens so far, and those of the earlier ones do not
change. So they are kept, each in its slot:

    prompt       k0 k1 k2 .  .  .         `append` three: attention looks at slots 0 to 2
    one token    k0 k1 k2 k3 .  .         `append` one: its query looks at slots 0 to 3, three of them remembered

The memory is taken once. Per token and layer it is 2 G D numbers for the keys and values of G heads, or R + D_r
numbers for the latent of MLA. A window needs less: see ring_cache.py.

Shapes: B batch, G key/value heads, T new tokens, S cached tokens, D head size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attention_mechanisms.masks import CAUSAL, Mask


class LayerCache:
    """Remembers the tokens of one layer; each row of the batch may hold a different number of them.

    Args:
        batch_size: rows, each a sequence of its own.
        n_heads: key/value heads; 1 for a latent, which all heads share.
        max_length: tokens that a row can hold.
        head_dims: channels of each tensor that is kept of a token: (D, D) for a key and a value.
        dtype: of the numbers.
        device: where they lie.
    """

    def __init__(
        self,
        batch_size: int,
        n_heads: int,
        max_length: int,
        head_dims: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_length: int | None = max_length
        self.buffers = [
            torch.zeros(batch_size, n_heads, max_length, head_dim, dtype=dtype, device=device) for head_dim in head_dims
        ]
        self.looks_at_all = False  # at empty slots too, which the mask hides: products of one shape, whatever is stored
        # on the CPU, so that reading them never waits for a GPU
        self._lengths_B = torch.zeros(batch_size, dtype=torch.long, device="cpu")

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen, padding included."""
        return self._lengths_B.tolist()

    @property
    def nbytes(self) -> int:
        """The bytes taken: B G S D numbers for each of the head_dims."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def mask(self, base: Mask = CAUSAL) -> Mask:
        """Return `base` for the tokens that are appended next, which means with their offset."""
        first, *others = lengths = self.lengths
        offset = first if all(length == first for length in others) else tuple(lengths)
        return base if base.query_offset == offset else replace(base, query_offset=offset)

    def append(self, *new_BGTD: Tensor, mask: Mask = CAUSAL) -> tuple[list[Tensor], Mask]:
        """Add T tokens to every row; return everything that there is to look at, and the mask for it.

        Past the end of a shorter row there are meaningless numbers, which the mask hides.

        Args:
            new_BGTD: one tensor for each of the head_dims.
            mask: who may look at whom; its offset is ignored, since the cache knows.

        Raises:
            ValueError: if a row would grow past the cache's length, the batch is of another size, or nothing
                hides what stands past the end of a shorter row.
        """
        T = self._check(new_BGTD)
        lengths = self.lengths
        if not mask.causal and min(lengths) != max(lengths):
            raise ValueError(f"rows of different lengths need a causal mask, got lengths {lengths}")
        longest = max(lengths) + T
        if longest > self.buffers[0].shape[2]:
            raise ValueError(
                f"the cache holds {self.max_length} tokens per row: {T} more than {longest - T} do not fit"
            )
        mask = self.mask(mask)
        if min(lengths) == max(lengths):
            for buffer, new in zip(self.buffers, new_BGTD, strict=True):
                buffer[:, :, longest - T : longest] = new
        else:
            device = self.buffers[0].device
            slots_BT = (self._lengths_B[:, None] + torch.arange(T)).to(device)
            rows_B1 = torch.arange(len(lengths), device=device)[:, None]
            for buffer, new in zip(self.buffers, new_BGTD, strict=True):
                buffer[rows_B1, :, slots_BT] = new.transpose(1, 2).to(buffer.dtype)
        self._lengths_B += T
        seen = self.buffers[0].shape[2] if self.looks_at_all else longest
        return [buffer[:, :, :seen] for buffer in self.buffers], mask

    def slots(self, positions_T: Tensor) -> Tensor:
        """Return the slot of `buffers` for the token at each position, in rows without padding."""
        return positions_T

    def advance(self, n_tokens: int) -> None:
        """Note that so many tokens were added to every row by code that wrote them into `buffers` itself."""
        self._lengths_B += n_tokens

    def _check(self, new_BGTD: Sequence[Tensor]) -> int:
        """Check the batch size, and return how many tokens are new."""
        B, _, T, _ = new_BGTD[0].shape
        if len(self._lengths_B) != B:
            raise ValueError(f"the cache was made for a batch of {len(self._lengths_B)}, got {B} rows")
        return T

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the tokens of some rows, or of all; the memory stays."""
        self._lengths_B[slice(None) if rows is None else list(rows)] = 0

    def truncate(self, length: int) -> None:
        """Forget the newest tokens of every row that holds more than `length`; the memory stays."""
        self._lengths_B.clamp_(max=length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row i continue what row rows[i] has seen, for every row. The memory stays."""
        rows = list(rows)
        longest = max(self.lengths)
        for buffer in self.buffers:
            buffer[:, :, :longest] = buffer[rows, :, :longest]  # the index makes a copy first
        self._lengths_B[:] = self._lengths_B[rows]

    def rows(self, start: int, stop: int) -> LayerCache:
        """Return some rows as a cache of their own, in the same memory: one can read its prompt while others wait."""
        part = copy.copy(self)
        part.buffers = [buffer[start:stop] for buffer in self.buffers]
        part._lengths_B = self._lengths_B[start:stop]
        return part

    def read_row(self, row: int, length: int | None = None) -> list[Tensor]:
        """Return what a row holds of its first `length` tokens, or of all: (G, length, D) for each of the head_dims.

        They are views, which change as the row does: copy what is to be kept.
        """
        length = int(self._lengths_B[row]) if length is None else length
        return [buffer[row, :, :length] for buffer in self.buffers]

    def write_row(self, row: int, content: Sequence[Tensor], length: int) -> None:
        """Let a row hold `length` tokens, as `read_row` returned them, whatever it held before.

        Raises:
            ValueError: if they are more than fit.
        """
        if self.max_length is not None and length > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens per row: {length} do not fit")
        for buffer, tokens_GSD in zip(self.buffers, content, strict=True):
            buffer[row, :, : tokens_GSD.shape[1]] = tokens_GSD
        self._lengths_B[row] = length


class KVCache:
    """Holds the caches of all layers of a model."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)

    @property
    def max_length(self) -> int | None:
        """Tokens that a row can hold; None if that is not limited."""
        return self.layers[0].max_length

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen, padding included."""
        return self.layers[0].lengths

    @property
    def nbytes(self) -> int:
        """The bytes of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def mask(self, base: Mask | None = None) -> Mask:  # no mask as default: torch.compile 2.11 cannot take it from here
        """Return `base`, or the causal mask, for the tokens that are appended next, which means with their offset.

        Raises:
            ValueError: if a pass through the model was interrupted, so that only some layers hold its tokens.
        """
        first, *others = (layer.lengths for layer in self.layers)
        if any(lengths != first for lengths in others):
            raise ValueError("the layers hold different tokens, since a pass was interrupted: reset the cache")
        return self.layers[0].mask(base or CAUSAL)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the tokens of some rows, or of all; the memory stays."""
        for layer in self.layers:
            layer.reset(rows)

    def truncate(self, length: int) -> None:
        """Forget the newest tokens of every row that holds more than `length`.

        Raises:
            ValueError: if the layers hold rings.
        """
        for layer in self.layers:
            layer.truncate(length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row i continue what row rows[i] has seen, for every row. The memory stays."""
        for layer in self.layers:
            layer.reorder(rows)

    def rows(self, start: int, stop: int) -> KVCache:
        """Return some rows as a cache of their own, in the same memory."""
        return KVCache([layer.rows(start, stop) for layer in self.layers])

    def read_row(self, row: int, length: int | None = None) -> list[list[Tensor]]:
        """Return what a row holds of its first `length` tokens, or of all, layer by layer, as views.

        Raises:
            ValueError: if the layers hold rings, and the row more than `length` tokens.
        """
        return [layer.read_row(row, length) for layer in self.layers]

    def write_row(self, row: int, content: Sequence[Sequence[Tensor]], length: int) -> None:
        """Let a row hold `length` tokens, as `read_row` returned them, of this cache or of another one like it.

        Raises:
            ValueError: if they are more than fit.
        """
        for layer, tensors in zip(self.layers, content, strict=True):
            layer.write_row(row, tensors, length)
