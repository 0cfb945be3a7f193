"""Who may look at whom, as a small value that each kernel turns into its own form.

Shapes: B batch, T query length, S key length (cached and new).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """Which keys each query sees.

    Raises:
        ValueError: if a query offset is negative: its queries would stand before the first key.
    """

    causal: bool = True
    """A query sees no key that stands after it."""
    query_offset: int | tuple[int, ...] = 0
    """Position of the first query among the keys: how many tokens the cache held before them. A tuple
    gives each row of the batch its own. Causal attention against a cache needs it: without, the mask
    would align to the top left, and one new query would see only the very first key."""

    def __post_init__(self) -> None:
        offsets = (self.query_offset,) if isinstance(self.query_offset, int) else self.query_offset
        if any(offset < 0 for offset in offsets):
            raise ValueError(f"query_offset must not be negative, got {self.query_offset}")

    def hides_nothing(self, query_length: int, key_length: int) -> bool:
        """Whether every query sees every key, so that a kernel needs no mask at all."""
        if not self.causal:
            return True
        return isinstance(self.query_offset, int) and query_length == 1 and self.query_offset >= key_length - 1

    def is_square_causal(self, query_length: int, key_length: int) -> bool:
        """Whether it is the plain triangle of training, for which kernels have a fast path."""
        return self.causal and self.query_offset == 0 and query_length == key_length

    def dense(self, query_length: int, key_length: int, device: torch.device | None = None) -> Tensor:
        """True where a query may look: (T, S), or (B, 1, T, S) where rows have offsets of their own."""
        if not self.causal:
            return torch.ones(query_length, key_length, dtype=torch.bool, device=device)
        queries_T = torch.arange(query_length, device=device)
        keys_S = torch.arange(key_length, device=device)
        if isinstance(self.query_offset, int):
            return keys_S <= queries_T[:, None] + self.query_offset
        offsets_B = torch.tensor(self.query_offset, device=device)
        return keys_S <= (queries_T + offsets_B[:, None])[:, None, :, None]
