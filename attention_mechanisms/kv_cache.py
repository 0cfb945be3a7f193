"""What the tokens already seen left behind, so that a new token costs one step and not a whole pass.

The memory is taken once. Per token and layer

    LayerCache   keys and values of G heads       2 G D numbers
                 or the latent of MLA             R + D_r numbers
    RingCache    keys and values of G heads       2 G D numbers, but only for the last W tokens and the sinks

Shapes: B batch, G key/value heads, T new tokens, S cached tokens, D head size, W window.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attention_mechanisms.masks import CAUSAL, Mask

EVERYTHING = Mask(causal=False)


class LayerCache:
    """The cache of one layer; each row of the batch may hold a different number of tokens.

    Args:
        batch_size: rows, each a sequence of its own.
        n_heads: key/value heads; 1 for a latent, which all heads share.
        max_length: tokens a row can hold.
        head_dims: channels of each thing that is kept of a token: (D, D) for a key and a value.
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
        self._lengths_B = torch.zeros(batch_size, dtype=torch.long, device="cpu")  # asking never waits for a GPU

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen, padding included."""
        return self._lengths_B.tolist()

    @property
    def nbytes(self) -> int:
        """B G S D numbers for each of the head_dims."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def mask(self, base: Mask = CAUSAL) -> Mask:
        """`base` for tokens that are appended next: with their offset."""
        first, *others = lengths = self.lengths
        offset = first if all(length == first for length in others) else tuple(lengths)
        return base if base.query_offset == offset else replace(base, query_offset=offset)

    def append(self, *new_BGTD: Tensor, mask: Mask = CAUSAL) -> tuple[list[Tensor], Mask]:
        """Add T tokens to every row; return all there is to look at, and the mask for it.

        What stands past the end of a shorter row is rubbish, which the mask hides.

        Args:
            new_BGTD: one tensor for each of the head_dims.
            mask: who may look at whom; its offset is that of the cache, whatever it says.

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
            raise ValueError(f"the cache holds {self.max_length} tokens a row: {T} more than {longest - T} do not fit")
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
        return [buffer[:, :, :longest] for buffer in self.buffers], mask

    def slots(self, positions_T: Tensor) -> Tensor:
        """Which slot of `buffers` is for the token at each position, in rows without padding."""
        return positions_T

    def count(self, n_tokens: int) -> None:
        """Note that so many tokens were added to every row, by code that wrote them into `buffers` itself."""
        self._lengths_B += n_tokens

    def _check(self, new_BGTD: Sequence[Tensor]) -> int:
        """How many tokens are new."""
        B, _, T, _ = new_BGTD[0].shape
        if len(self._lengths_B) != B:
            raise ValueError(f"the cache was made for a batch of {len(self._lengths_B)}, got {B} rows")
        return T

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the tokens of some rows, or of all; the memory stays."""
        self._lengths_B[slice(None) if rows is None else list(rows)] = 0

    def truncate(self, length: int) -> None:
        """Take back the newest tokens of every row that holds more than `length`; the memory stays."""
        self._lengths_B.clamp_(max=length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Let each row go on from what another, or itself, has seen: row i from row rows[i]. The memory stays."""
        rows, longest = list(rows), max(self.lengths)
        for buffer in self.buffers:
            buffer[:, :, :longest] = buffer[rows, :, :longest]  # the index makes a copy first
        self._lengths_B[:] = self._lengths_B[rows]

    def rows(self, start: int, stop: int) -> LayerCache:
        """Some rows as a cache of their own, in the same memory: one row can read its prompt while others wait."""
        part = copy.copy(self)
        part.buffers = [buffer[start:stop] for buffer in self.buffers]
        part._lengths_B = self._lengths_B[start:stop]
        return part


class RingCache(LayerCache):
    """The last W tokens of each row in a ring, and its first few pinned: memory that does not grow.

    A row's token i, not counting padding, goes to slot i if it is a sink, else to n_sinks + (i - n_sinks) mod W.
    New tokens look at the ring before they overwrite it: if they came first, a prompt longer than the window
    would find its own past gone.

    Args:
        window: how many keys a query sees, its own included.
        n_sinks: how many first tokens are kept for ever.
    """

    def __init__(
        self,
        batch_size: int,
        n_heads: int,
        window: int,
        n_sinks: int,
        head_dims: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(batch_size, n_heads, n_sinks + window, head_dims, dtype=dtype, device=device)
        self.max_length = None  # it is never full
        self.window, self.n_sinks = window, n_sinks
        # which position each slot holds; negative: none
        self._positions_BS = torch.full((batch_size, n_sinks + window), -1, device=device)

    def append(self, *new_BGTD: Tensor, mask: Mask = CAUSAL) -> tuple[list[Tensor], Mask]:
        """Add T tokens to every row; return all there is to look at, and the mask for it.

        Raises:
            ValueError: if the batch is of another size.
        """
        T = self._check(new_BGTD)
        mask = self.mask(mask.windowed(self.window, self.n_sinks))
        positions_BT = (self._lengths_B[:, None] + torch.arange(T)).to(self._positions_BS.device)
        seen = list(new_BGTD)
        if T > 1 and self._lengths_B.any():  # what the ring holds now, and the new ones
            mask = replace(mask, key_positions=torch.cat([self._positions_BS, positions_BT], dim=1))
            seen = [torch.cat(pair, dim=2) for pair in zip(self.buffers, new_BGTD, strict=True)]
        self._write(new_BGTD, positions_BT, mask.left_padding)
        self._lengths_B += T
        if T > 1:
            return seen, mask
        # what a single token has replaced is outside its window, so it looks at the ring as it is
        if mask.is_plain:  # all rows alike: nothing that is held is hidden
            held = min(self.lengths[0], self.buffers[0].shape[2])
            return [buffer[:, :, :held] for buffer in self.buffers], EVERYTHING
        return self.buffers, replace(mask, key_positions=self._positions_BS.clone())

    def slots(self, positions_T: Tensor) -> Tensor:
        """Which slot of `buffers` is for the token at each position, in rows without padding."""
        ring_T = self.n_sinks + (positions_T - self.n_sinks) % self.window
        return torch.where(positions_T < self.n_sinks, positions_T, ring_T)

    def count(self, n_tokens: int) -> None:
        """Note that so many tokens were added to every row, by code that wrote them into `buffers` itself."""
        added_BT = self._lengths_B[:, None] + torch.arange(n_tokens)
        added_BT = added_BT.to(self._positions_BS.device)
        self._positions_BS.scatter_(1, self.slots(added_BT), added_BT)
        super().count(n_tokens)

    def _write(self, new_BGTD: Sequence[Tensor], positions_BT: Tensor, left_padding: tuple[int, ...] | None) -> None:
        """Store what later tokens will see of the new ones."""
        if left_padding is None:
            index_BT = positions_BT
        else:
            index_BT = positions_BT - torch.tensor(left_padding, device=positions_BT.device)[:, None]
        slots_BT = self.slots(index_BT)
        lasting = (index_BT < self.n_sinks) | (index_BT > index_BT[:, -1:] - self.window)
        rows_N, times_N = ((index_BT >= 0) & lasting).nonzero(as_tuple=True)
        slots_N = slots_BT[rows_N, times_N]
        for buffer, new in zip(self.buffers, new_BGTD, strict=True):
            buffer[rows_N, :, slots_N] = new[rows_N, :, times_N].to(buffer.dtype)
        self._positions_BS[rows_N, slots_N] = positions_BT[rows_N, times_N]

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the tokens of some rows, or of all; the memory stays."""
        super().reset(rows)
        self._positions_BS[slice(None) if rows is None else list(rows)] = -1

    def truncate(self, length: int) -> None:
        """Not possible.

        Raises:
            ValueError: if a row holds more than `length`: what came before its newest tokens is overwritten.
        """
        if max(self.lengths) > length:
            raise ValueError(f"a ring cannot be cut back to {length} tokens: older ones have been overwritten")

    def reorder(self, rows: Sequence[int]) -> None:
        """Let each row go on from what another, or itself, has seen: row i from row rows[i]. The memory stays."""
        super().reorder(rows)
        self._positions_BS[:] = self._positions_BS[list(rows)]

    def rows(self, start: int, stop: int) -> RingCache:
        """Some rows as a cache of their own, in the same memory."""
        part = super().rows(start, stop)
        assert isinstance(part, RingCache)
        part._positions_BS = self._positions_BS[start:stop]
        return part


class KVCache:
    """The caches of all layers of a model."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)

    @property
    def max_length(self) -> int | None:
        """Tokens a row can hold; None if that is not limited."""
        return self.layers[0].max_length

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen, padding included."""
        return self.layers[0].lengths

    @property
    def nbytes(self) -> int:
        """The sum over the layers."""
        return sum(layer.nbytes for layer in self.layers)

    def mask(self, base: Mask | None = None) -> Mask:  # no mask as default: torch.compile 2.11 cannot take it from here
        """`base`, or the causal mask, for tokens that are appended next: with their offset.

        Raises:
            ValueError: if a pass through the model was interrupted, and some layers hold its tokens.
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
        """Take back the newest tokens of every row that holds more than `length`.

        Raises:
            ValueError: if the layers hold rings.
        """
        for layer in self.layers:
            layer.truncate(length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Let each row go on from what another, or itself, has seen: row i from row rows[i]. The memory stays."""
        for layer in self.layers:
            layer.reorder(rows)

    def rows(self, start: int, stop: int) -> KVCache:
        """Some rows as a cache of their own, in the same memory."""
        return KVCache([layer.rows(start, stop) for layer in self.layers])
