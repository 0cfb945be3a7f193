"""The cache of sliding-window attention: a ring of the last W tokens, and a few sinks at its beginning.

    W = 4, one sink    slot   0 | 1 2 3 4
    after 5 tokens            0 | 1 2 3 4
    after 7 tokens            0 | 5 6 3 4        5 took the slot of 1, which is outside its window

A row's token i, not counting padding, goes to slot i if it is a sink, else to n_sinks + (i - n_sinks) mod W. The
slots are out of order then, which attention does not mind as long as the mask knows each key's position. New tokens
look at the ring before they overwrite it: if they came first, a prompt longer than the window would find its own
past gone.

Shapes: B batch, T new tokens, S slots, D head size, W window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attention_mechanisms.kv_cache import LayerCache
from attention_mechanisms.masks import CAUSAL, EVERYTHING, Mask


class RingCache(LayerCache):
    """Remembers the last W tokens of each row in a ring, and its first few for ever: memory that does not grow.

    Args:
        batch_size: rows, each a sequence of its own.
        n_heads: key/value heads.
        window: how many keys a query sees, its own included.
        n_sinks: how many first tokens are kept for ever.
        head_dims: channels of each tensor that is kept of a token: (D, D) for a key and a value.
        dtype: of the numbers.
        device: where they lie.
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
        self.window = window
        self.n_sinks = n_sinks
        # the position of the token in each slot; negative where there is none
        self._positions_BS = torch.full((batch_size, n_sinks + window), -1, device=device)

    def append(self, *new_BGTD: Tensor, mask: Mask = CAUSAL) -> tuple[list[Tensor], Mask]:
        """Add T tokens to every row; return everything that there is to look at, and the mask for it.

        Raises:
            ValueError: if the batch is of another size.
        """
        T = self._check(new_BGTD)
        mask = self.mask(mask.windowed(self.window, self.n_sinks))
        positions_BT = (self._lengths_B[:, None] + torch.arange(T)).to(self._positions_BS.device)
        seen = list(new_BGTD)
        if T > 1 and self._lengths_B.any():  # look at the ring as it is, and at the new ones
            mask = replace(mask, key_positions=torch.cat([self._positions_BS, positions_BT], dim=1))
            seen = [torch.cat(pair, dim=2) for pair in zip(self.buffers, new_BGTD, strict=True)]
        self._write(new_BGTD, positions_BT, mask.left_padding)
        self._lengths_B += T
        if T > 1:
            return seen, mask
        # what a single token has replaced was outside its window, so it looks at the ring alone
        if mask.is_plain:  # all rows are alike, and nothing that the ring holds is hidden
            held = min(self.lengths[0], self.buffers[0].shape[2])
            return [buffer[:, :, :held] for buffer in self.buffers], EVERYTHING
        return self.buffers, replace(mask, key_positions=self._positions_BS.clone())

    def slots(self, positions_T: Tensor) -> Tensor:
        """Return the slot of `buffers` for the token at each position, in rows without padding."""
        ring_T = self.n_sinks + (positions_T - self.n_sinks) % self.window
        return torch.where(positions_T < self.n_sinks, positions_T, ring_T)

    def advance(self, n_tokens: int) -> None:
        """Note that so many tokens were added to every row by code that wrote them into `buffers` itself."""
        added_BT = self._lengths_B[:, None] + torch.arange(n_tokens)
        added_BT = added_BT.to(self._positions_BS.device)
        self._positions_BS.scatter_(1, self.slots(added_BT), added_BT)
        super().advance(n_tokens)

    def _write(self, new_BGTD: Sequence[Tensor], positions_BT: Tensor, left_padding: tuple[int, ...] | None) -> None:
        """Store those of the new tokens that later ones will see."""
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
        """Refuse to forget the newest tokens of a row: what they have overwritten is gone.

        Raises:
            ValueError: if a row holds more than `length`.
        """
        if max(self.lengths) > length:
            raise ValueError(f"a ring cannot be cut back to {length} tokens: older ones have been overwritten")

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row i continue what row rows[i] has seen, for every row. The memory stays."""
        super().reorder(rows)
        self._positions_BS[:] = self._positions_BS[list(rows)]

    def rows(self, start: int, stop: int) -> RingCache:
        """Return some rows as a cache of their own, in the same memory."""
        part = super().rows(start, stop)
        assert isinstance(part, RingCache)
        part._positions_BS = self._positions_BS[start:stop]
        return part

    def read_row(self, row: int, length: int | None = None) -> list[Tensor]:
        """Return the ring of a row, and the positions of its tokens, as views.

        Raises:
            ValueError: if the row holds another number of tokens than `length`: the rest has been overwritten.
        """
        if length not in (None, self.lengths[row]):
            raise ValueError(f"a ring of {self.lengths[row]} tokens cannot be read as one of {length}")
        return [*(buffer[row] for buffer in self.buffers), self._positions_BS[row]]

    def write_row(self, row: int, content: Sequence[Tensor], length: int) -> None:
        """Let a row hold the ring that `read_row` returned."""
        *rings, positions_S = content
        super().write_row(row, rings, length)
        self._positions_BS[row] = positions_S
