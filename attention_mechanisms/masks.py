"""Who may look at whom, as a small value that each kernel turns into its own form.

A query at position p sees the key at position s if every rule that applies allows it:

    causal          s <= p
    window          p - s < window, or s is one of the pinned first tokens (Longformer, Beltagy et al. 2020,
                    https://arxiv.org/abs/2004.05150, section 3.1; sinks: Xiao et al. 2023,
                    https://arxiv.org/abs/2309.17453, section 3.2)
    left padding    s is not padding
    documents       both belong to the same document

A query that sees nothing at all, such as a padding token's, gets zeros from every kernel.

Shapes: B batch, T query length, S key length (cached and new).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Any, Any, Any, Any], Tensor]


@dataclass(frozen=True)
class Mask:
    """Which keys each query sees.

    Two masks are equal if their numbers are equal and they hold the very same tensors, which must not be changed.

    Raises:
        ValueError: if a number is out of range, a window is not causal, or two fields speak of batches
            of different sizes.
    """

    causal: bool = True
    """A query sees no key that stands after it."""
    window: int | None = None
    """A query sees this many keys, the one at its own position included; None: no limit."""
    n_sinks: int = 0
    """How many of a row's first tokens are seen from beyond the window too."""
    query_offset: int | tuple[int, ...] = 0
    """Position of the first query among the keys: how many tokens the cache held before them. A tuple
    gives each row of the batch its own. Causal attention against a cache needs it: without it, the mask
    would align to the top left, and one new query would see only the very first key."""
    left_padding: tuple[int, ...] | None = None
    """How many of each row's first tokens are padding."""
    document_ids: Tensor | None = field(default=None, compare=False)
    """(S,) or (B, S): which document the token at each position belongs to."""
    key_positions: Tensor | None = field(default=None, compare=False)
    """(S,) or (B, S): the position of each key, negative where there is none; by default 0 to S - 1."""
    _tensors: tuple[int, int] = field(init=False, repr=False)
    _made: dict[Any, Any] = field(init=False, repr=False, compare=False)  # forms of this mask, to use again

    def __post_init__(self) -> None:
        # a compiler has no identities to give, and there nothing is kept by them
        tensors = (0, 0) if torch.compiler.is_compiling() else (id(self.document_ids), id(self.key_positions))
        object.__setattr__(self, "_tensors", tensors)
        object.__setattr__(self, "_made", {})
        if min(_numbers(self.query_offset)) < 0:
            raise ValueError(f"query_offset must not be negative, got {self.query_offset}")
        if min(_numbers(self.left_padding or 0)) < 0:
            raise ValueError(f"left_padding must not be negative, got {self.left_padding}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, the query's own position, got {self.window}")
        if self.n_sinks < 0:
            raise ValueError(f"n_sinks must not be negative, got {self.n_sinks}")
        if self.window is not None and not self.causal:
            raise ValueError("a window looks back from each query, so it must be causal")
        if len(sizes := self._batch_sizes()) > 1:
            raise ValueError(f"the mask's fields speak of batches of different sizes: {sorted(sizes)}")

    def _batch_sizes(self) -> set[int]:
        sizes = {len(value) for value in (self.query_offset, self.left_padding) if isinstance(value, tuple)}
        return sizes | {len(t) for t in (self.document_ids, self.key_positions) if t is not None and t.dim() == 2}

    @property
    def batch_size(self) -> int | None:
        """The number of rows that it is made for; None if it is the same for all."""
        return next(iter(self._batch_sizes()), None)

    @property
    def is_plain(self) -> bool:
        """Whether only position decides, the same in every row, and keys stand in order."""
        special = (self.left_padding, self.document_ids, self.key_positions)
        return isinstance(self.query_offset, int) and all(value is None for value in special)

    def hides_nothing(self, query_length: int, key_length: int) -> bool:
        """Return whether every query sees every key, so that a kernel needs no mask at all."""
        if not self.is_plain or not self.causal:
            return self.is_plain
        near = self.window is None or self.query_offset + query_length - 1 - self.n_sinks < self.window
        return near and self.query_offset >= key_length - 1

    def is_square_causal(self, query_length: int, key_length: int) -> bool:
        """Return whether it is the plain triangle of training, for which kernels have a fast path."""
        # An `if` turns the comparison into a bool, which kernels want; with symbolic lengths, under torch.compile, a
        # comparison alone is not one.
        if query_length != key_length or (self.window is not None and self.window < key_length):
            return False
        return self.causal and self.is_plain and self.query_offset == 0

    def windowed(self, window: int, n_sinks: int = 0) -> Mask:
        """Return this mask with a window: the same object for the same window, so that its forms are made once."""
        if (self.window, self.n_sinks) == (window, n_sinks):
            return self
        return self._once(("window", window, n_sinks), lambda: replace(self, window=window, n_sinks=n_sinks))

    def positions(self, query_length: int, device: torch.device | None = None) -> Tensor:
        """Return the positions of the queries: (T,), or (B, T) where rows have offsets or padding of their own.

        A row's first token that is not padding has position 0, and so does all padding.
        """
        offsets = _per_row(self.query_offset, device)
        padding = _per_row(self.left_padding or 0, device)
        start = offsets - padding
        queries_T = torch.arange(query_length, device=device)
        return queries_T + start if isinstance(start, int) else (queries_T + start[:, None]).clamp(min=0)

    def rule(self, device: torch.device | None = None) -> Rule:
        """Return the rules above as one function of (row, head, query, key), which broadcast; True where seen.

        The dense form and FlexAttention's block masks are both made from it.
        """
        offset = _per_row(self.query_offset, device)
        padding = _per_row(self.left_padding or 0, device)

        def visible(row: Any, head: Any, query: Any, key: Any) -> Tensor:
            position = query + (offset if isinstance(offset, int) else offset[row])
            first = padding if isinstance(padding, int) else padding[row]
            key = key if self.key_positions is None else _at(self.key_positions, row, key)
            seen = (key <= position) | (not self.causal)
            if self.window is not None:
                seen = seen & ((position - key < self.window) | (key - first < self.n_sinks))
            if self.key_positions is not None or self.left_padding is not None:
                seen = seen & (key >= first)
            if self.document_ids is not None:
                # a key that is not there has position -1: it is already hidden, whatever is read here
                seen = seen & (_at(self.document_ids, row, position) == _at(self.document_ids, row, key))
            return seen

        return visible

    def dense(self, query_length: int, key_length: int, device: torch.device | None = None) -> Tensor:
        """Return a tensor that is True where a query may look: (T, S), or (B, 1, T, S) where rows differ."""

        def make() -> Tensor:
            queries_T1 = torch.arange(query_length, device=device)[:, None]
            keys_S = torch.arange(key_length, device=device)
            rows = 0 if self.batch_size is None else torch.arange(self.batch_size, device=device)[:, None, None, None]
            return self.rule(device)(rows, 0, queries_T1, keys_S)

        return self._once(("dense", query_length, key_length, device), make)

    def opened(
        self, query_length: int, key_length: int, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the dense form, with queries that see nothing looking everywhere, and which these are, (..., T, 1).

        A softmax over nothing is 0 / 0: kernels answer it differently, and its gradient is NaN. So these
        queries look everywhere, and the caller sets their output to zero. The second is None if there are none.
        """
        visible = self.dense(query_length, key_length, device)
        # in a plain mask each query sees the key at its own position, and without a window the first one
        if self.is_plain and (self.window is None or self.query_offset + query_length <= key_length):
            return visible, None

        def make() -> tuple[Tensor, Tensor]:
            empty = ~visible.any(dim=-1, keepdim=True)
            return visible | empty, empty

        return self._once(("opened", query_length, key_length, device), make)

    def _once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` returns, kept for all layers of a model; of each kind of form only the latest."""
        if torch.compiler.is_compiling():
            return make()
        kind = name[0]
        if kind not in self._made or self._made[kind][0] != name:
            with torch.inference_mode(False):  # a later call may need gradients through what is kept
                self._made[kind] = (name, make())
        return self._made[kind][1]


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else value


def _per_row(value: int | tuple[int, ...], device: torch.device | None) -> Any:
    return value if isinstance(value, int) else torch.tensor(value, device=device)


def _at(values: Tensor, row: Any, index: Any) -> Tensor:
    return values[index] if values.dim() == 1 else values[row, index]


CAUSAL = Mask()
EVERYTHING = Mask(causal=False)
