"""Multi-head attention: H small attentions side by side, each with its own queries, keys and values.

    query heads   q1 q2 q3 q4
                   |  |  |  |      every query head has a key/value head of its own
    key/value     k1 k2 k3 k4

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2.

Shapes: B batch, T time, C model width, H heads, D = C / H head size.
"""

from torch import Tensor, nn

from attention_mechanisms.kernels import CAUSAL, attend
from attention_mechanisms.kv_cache import LayerCache
from attention_mechanisms.masks import Mask


class MultiHeadAttention(nn.Module):
    """Self-attention with one projection that makes queries, keys and values together, as GPT-2 stores it.

    Raises:
        ValueError: if n_heads does not divide d_model.
    """

    def __init__(
        self, d_model: int, n_heads: int, *, dropout: float = 0.0, bias: bool = True, kernel: str = "auto"
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"n_heads must divide d_model, got {n_heads} heads for width {d_model}")
        self.n_heads = n_heads
        self.dropout = dropout
        self.kernel = kernel
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
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
            x_BTC: one vector a position.
            mask: who may look at whom; causal by default. With a cache, the caller's mask has its offset.
            positions: of no use here: learned positions are already in x.
            cache: keys and values of earlier tokens; the new ones are appended.
        """
        B, T, C = x_BTC.shape
        qkv_3BHTD = self.qkv(x_BTC).view(B, T, 3, self.n_heads, C // self.n_heads).permute(2, 0, 3, 1, 4)
        q_BHTD, k_BHSD, v_BHSD = qkv_3BHTD.unbind()
        if cache is not None:
            k_BHSD, v_BHSD = cache.append(k_BHSD, v_BHSD)
        dropout = self.dropout if self.training else 0.0
        y_BHTD = attend(q_BHTD, k_BHSD, v_BHSD, mask=mask or CAUSAL, kernel=self.kernel, dropout=dropout)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, C))
