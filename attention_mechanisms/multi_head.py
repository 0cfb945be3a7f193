"""Multi-head attention: H small attentions side by side, each with its own queries, keys and values.

    query heads   q1 q2 q3 q4
                   |  |  |  |      every query head has a key/value head of its own
    key/value     k1 k2 k3 k4

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2.

Shapes: B batch, T time, S key length, C model width, H heads, G key/value heads (here G = H), D = C / H head size.
"""

from torch import Tensor, nn

from attention_mechanisms.kernels import attend
from attention_mechanisms.kv_cache import LayerCache
from attention_mechanisms.masks import CAUSAL, Mask
from attention_mechanisms.rotary import rotate, rotation


class MultiHeadAttention(nn.Module):
    """Lets each position gather information from others, by several attentions side by side.

    Args:
        d_model: width C of input and output.
        n_heads: how many attentions; each has d_model / n_heads channels.
        fused: make queries, keys and values by one projection, as GPT-2 stores them, or by three.
        rope: rotate queries and keys by their positions.
        dropout: probability with which an attention weight is dropped in training.
        bias: whether projections add a learned offset.
        kernel: see `attend`.

    Raises:
        ValueError: if n_heads does not divide d_model, or heads of odd size are to be rotated.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        fused: bool = True,
        rope: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"n_heads must divide d_model, got {n_heads} heads for width {d_model}")
        if rope and d_model // n_heads % 2:
            raise ValueError(f"rope needs heads of even size, got {d_model // n_heads}")
        self.n_heads = self.n_kv_groups = n_heads
        self.head_dim = d_model // n_heads
        self.rope = rope
        self.dropout = dropout
        self.kernel = kernel
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        else:
            self.query, self.key, self.value = (nn.Linear(d_model, d_model, bias=bias) for _ in range(3))
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self,
        x_BTC: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Mix information between positions.

        Args:
            x_BTC: one vector per position.
            mask: who may look at whom; causal by default. With a cache its offset is what the cache holds.
            positions: (T,) or (B, T), for rope; by default those the mask gives.
            cache: keys and values of earlier tokens; the new ones are appended.

        Raises:
            ValueError: if the cache is full or made for another batch.
        """
        mask = self.limit(mask or CAUSAL)
        if cache is not None:
            mask = cache.mask(mask)
        q_BHTD, k_BGSD, v_BGSD = self.project(x_BTC)
        if self.rope:
            if positions is None:
                positions = mask.positions(x_BTC.shape[1], x_BTC.device)
            angles = rotation(positions, self.head_dim)
            q_BHTD, k_BGSD = rotate(q_BHTD, *angles), rotate(k_BGSD, *angles)
        if cache is not None:
            (k_BGSD, v_BGSD), mask = cache.append(k_BGSD, v_BGSD, mask=mask)
        dropout = self.dropout if self.training else 0.0
        y_BHTD = attend(q_BHTD, k_BGSD, v_BGSD, mask=mask, kernel=self.kernel, dropout=dropout)
        return self.out(y_BHTD.transpose(1, 2).flatten(2))

    def project(self, x_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, T, D), keys and values (B, G, T, D)."""
        if self.fused:
            projected = self.qkv(x_BTC).chunk(3, dim=-1)
        else:
            projected = (self.query(x_BTC), self.key(x_BTC), self.value(x_BTC))
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projected)
        return q, k, v

    def limit(self, mask: Mask) -> Mask:
        """Return `mask` with what this kind of attention hides in addition: nothing."""
        return mask

    def new_cache(self, batch_size: int, max_length: int) -> LayerCache:
        """Make an empty cache for this layer, 2 B G S D numbers, of its dtype and on its device."""
        weight = self.out.weight  # looked up once: quantized layers compute it each time
        return LayerCache(
            batch_size,
            self.n_kv_groups,
            max_length,
            (self.head_dim, self.head_dim),
            dtype=weight.dtype,
            device=weight.device,
        )
