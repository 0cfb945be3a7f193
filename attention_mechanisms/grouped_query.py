r"""Grouped-query attention: several query heads share one key/value head, so the cache shrinks by H / G.

    query heads   q1 q2 q3 q4        q1 q2 q3 q4        q1 q2 q3 q4
                   |  |  |  |          \/    \/           \  \/  /
    key/value     k1 k2 k3 k4          k1    k2              k1
                   G = H: MHA         G = 2: GQA         G = 1: MQA

Ainslie et al. 2023, https://arxiv.org/abs/2305.13245, section 2.2; G = 1: Shazeer 2019,
https://arxiv.org/abs/1911.02150, section 3.

Shapes: B batch, T time, C model width, H query heads, G key/value heads, D = C / H head size.
"""

from torch import nn

from attention_mechanisms.multi_head import MultiHeadAttention


class GroupedQueryAttention(MultiHeadAttention):
    """Multi-head attention whose query heads share n_kv_groups key/value heads.

    Args:
        d_model: width C of input and output.
        n_heads: query heads.
        n_kv_groups: key/value heads.
        rope: rotate queries and keys by their positions.
        dropout: probability with which an attention weight is dropped in training.
        bias: whether projections add a learned offset.
        kernel: see `attend`.

    Raises:
        ValueError: if n_heads does not divide d_model, or n_kv_groups does not divide n_heads.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_groups: int,
        *,
        rope: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        kernel: str = "auto",
    ) -> None:
        super().__init__(d_model, n_heads, fused=False, rope=rope, dropout=dropout, bias=bias, kernel=kernel)
        if n_kv_groups < 1 or n_heads % n_kv_groups:
            raise ValueError(f"n_kv_groups must divide n_heads, got {n_kv_groups} groups for {n_heads} heads")
        self.n_kv_groups = n_kv_groups
        self.key = nn.Linear(d_model, n_kv_groups * self.head_dim, bias=bias)
        self.value = nn.Linear(d_model, n_kv_groups * self.head_dim, bias=bias)
