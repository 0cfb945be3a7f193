"""Sliding-window attention: each token looks at the last W tokens only, and no more than these are kept.

    query     1 2 3 4 5 6 7 8          with one sink: 1 2 3 4 5 6 7 8
    key  1    x x x                                   x x x x x x x x
         2      x x x                                   x x x
         3        x x x                                   x x x
         4          x x x        W = 3                      x x x

Two things differ from attention to everything: the mask hides what is outside the window (`limit`), and the cache
forgets it (`new_cache`). The rest is inherited.

    >>> Mask(window=3).dense(5, 5).int()      # a row for each query, a column for each key
    tensor([[1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1]], dtype=torch.int32)

Through L layers information still travels L (W - 1) tokens. The first few tokens, "attention sinks", may stay
visible for ever: a trained model parks its attention there when it needs none. They keep their positions in the
text; StreamingLLM, which streams with models trained without a window, numbers them by their place in the cache.

Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, section 3.1; Jiang et al. 2023 (Mistral),
https://arxiv.org/abs/2310.06825, section 2; sinks: Xiao et al. 2023, https://arxiv.org/abs/2309.17453, section 3.2.

Shapes: B batch, T time, C model width, H query heads, G key/value heads, D head size, W window.
"""

from attention_mechanisms.grouped_query import GroupedQueryAttention
from attention_mechanisms.masks import Mask
from attention_mechanisms.ring_cache import RingCache


class SlidingWindowAttention(GroupedQueryAttention):
    """Grouped-query attention whose queries see the last few tokens only.

    Args:
        d_model: width C of input and output.
        n_heads: query heads.
        window_size: keys that a query sees, its own included.
        n_sinks: first tokens that are always seen.
        n_kv_groups: key/value heads; one for each query head by default.
        rope: rotate queries and keys by their positions.
        dropout: probability with which an attention weight is dropped in training.
        bias: whether projections add a learned offset.
        kernel: see `attend`.

    Raises:
        ValueError: if a window holds nothing, or head counts do not divide.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        window_size: int,
        *,
        n_sinks: int = 0,
        n_kv_groups: int | None = None,
        rope: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        kernel: str = "auto",
    ) -> None:
        groups = n_heads if n_kv_groups is None else n_kv_groups
        super().__init__(d_model, n_heads, groups, rope=rope, dropout=dropout, bias=bias, kernel=kernel)
        if window_size < 1:
            raise ValueError(f"window must be at least 1, the query's own position, got {window_size}")
        if n_sinks < 0:
            raise ValueError(f"n_sinks must not be negative, got {n_sinks}")
        self.window_size = window_size
        self.n_sinks = n_sinks

    def limit(self, mask: Mask) -> Mask:
        """Return `mask` with the window and the sinks."""
        return mask.windowed(self.window_size, self.n_sinks)

    def new_cache(self, batch_size: int, max_length: int) -> RingCache:
        """Make an empty ring, 2 B G (W + sinks) D numbers however long a row gets, of the layer's dtype and device."""
        weight = self.out.weight  # looked up once: quantized layers compute it each time
        return RingCache(
            batch_size,
            self.n_kv_groups,
            self.window_size,
            self.n_sinks,
            (self.head_dim, self.head_dim),
            dtype=weight.dtype,
            device=weight.device,
        )
