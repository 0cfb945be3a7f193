r"""Multi-head latent attention: remember one short vector per token, from which all heads get keys and values.

    token x ---> latent c (R numbers) ---> keys and values of every head      the cache holds c
            \--> rotary key (D_r numbers), the same for every head            and the rotary key

    naive:     k_h = U_h c for each cached token, score = q_h . k_h           2 S R H D multiplications per step
    absorbed:  q_h . (U_h c) = (U_h^T q_h) . c                                the query moves, the cache stays

Absorbed, decoding is multi-query attention over the latents: H query heads of R + D_r channels look at one
key, which is its own value. Begin with `naive`, which says what is computed; `absorbed` computes the same.

DeepSeek-AI 2024 (DeepSeek-V2), https://arxiv.org/abs/2405.04434, section 2.1 and appendix C.

Shapes: B batch, T time, S key length, C model width, H heads, D = C / H head size, R latent size,
Q query latent size, P = D_r rotary channels.
"""

import torch
from torch import Tensor, nn

from attention_mechanisms.kernels import attend
from attention_mechanisms.kv_cache import LayerCache
from attention_mechanisms.masks import CAUSAL, Mask
from attention_mechanisms.rotary import rotate, rotation

FORMS = ("auto", "naive", "absorbed")


class MultiHeadLatentAttention(nn.Module):
    """Attends through a latent. Each head has D channels without position, for keys and for values.

    The projection to keys and values has no bias, and loses nothing: a key's bias adds the same to all
    scores of a query, which softmax ignores, and a value's bias is a constant that `out` can add.

    Args:
        d_model: width C of input and output.
        n_heads: how many heads.
        latent_dim: R, what is remembered of a token besides the rotary key.
        query_latent_dim: size of a latent through which queries are made too; None: they are made directly.
        latent_norm: whether latents are normalised (RMSNorm), as in DeepSeek's models.
        rope_dim: D_r, the channels in which queries and keys are rotated by their positions; 0: none.
        dropout: probability with which an attention weight is dropped in training.
        bias: whether queries and output add a learned offset.
        kernel: see `attend`.
        form: "naive", "absorbed", or "auto" for whichever takes fewer multiplications.

    Raises:
        ValueError: if n_heads does not divide d_model, rope_dim is odd, or a size or form is impossible.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        latent_dim: int,
        *,
        query_latent_dim: int | None = None,
        latent_norm: bool = True,
        rope_dim: int = 0,
        dropout: float = 0.0,
        bias: bool = True,
        kernel: str = "auto",
        form: str = "auto",
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"n_heads must divide d_model, got {n_heads} heads for width {d_model}")
        if latent_dim < 1 or (query_latent_dim is not None and query_latent_dim < 1):
            raise ValueError(f"latents need at least one number, got {latent_dim} and {query_latent_dim}")
        if rope_dim < 0 or rope_dim % 2:
            raise ValueError(f"rope_dim must be even to rotate channels in pairs, got {rope_dim}")
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.n_heads = n_heads
        self.head_dim = d_model // n_heads
        self.latent_dim = latent_dim
        self.rope_dim = rope_dim
        self.dropout = dropout
        self.kernel = kernel
        self.form = form
        query_dim = n_heads * (self.head_dim + rope_dim)
        self.direct_queries = query_latent_dim is None
        if query_latent_dim is None:
            self.query = nn.Linear(d_model, query_dim, bias=bias)
        else:
            self.query_down = nn.Linear(d_model, query_latent_dim, bias=False)
            self.query_norm = LatentNorm(query_latent_dim, eps=1e-6) if latent_norm else nn.Identity()
            self.query_up = nn.Linear(query_latent_dim, query_dim, bias=bias)
        self.down = nn.Linear(d_model, latent_dim + rope_dim, bias=False)
        self.latent_norm = LatentNorm(latent_dim, eps=1e-6) if latent_norm else nn.Identity()
        self.up = nn.Linear(latent_dim, n_heads * 2 * self.head_dim, bias=False)
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
            positions: (T,) or (B, T), for the rotary channels; by default those the mask gives.
            cache: latents of earlier tokens; the new ones are appended.

        Raises:
            ValueError: if the cache is full or made for another batch.
        """
        T = x_BTC.shape[1]
        mask = mask or CAUSAL
        if cache is not None:
            mask = cache.mask(mask)
        q_BHTX, latent_B1SX = self.project(x_BTC, mask.positions(T, x_BTC.device) if positions is None else positions)
        if cache is not None:
            (latent_B1SX,), mask = cache.append(latent_B1SX, mask=mask)
        attend_latent = self.absorbed if self._absorbs(T, latent_B1SX.shape[2]) else self.naive
        return self.out(attend_latent(q_BHTX, latent_B1SX, mask).transpose(1, 2).flatten(2))

    def project(self, x_BTC: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (B, H, T, D + D_r) and what is remembered, (B, 1, T, R + D_r), both rotated."""
        q_BTX = self.query(x_BTC) if self.direct_queries else self.query_up(self.query_norm(self.query_down(x_BTC)))
        q_BHTX = q_BTX.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        latent_BTR, rotary_BTP = self.down(x_BTC).split([self.latent_dim, self.rope_dim], dim=-1)
        latent_BTR = self.latent_norm(latent_BTR)
        if not self.rope_dim:
            return q_BHTX, latent_BTR[:, None]
        angles = rotation(positions, self.rope_dim)
        q_BHTD, q_BHTP = q_BHTX.split([self.head_dim, self.rope_dim], dim=-1)
        q_BHTX = torch.cat([q_BHTD, rotate(q_BHTP, *angles)], dim=-1)
        return q_BHTX, torch.cat([latent_BTR[:, None], rotate(rotary_BTP[:, None], *angles)], dim=-1)

    def naive(self, q_BHTX: Tensor, latent_B1SX: Tensor, mask: Mask) -> Tensor:
        """Make keys and values of all tokens, then attend as usual; return (B, H, T, D)."""
        latent_BSR, rotary_BSP = latent_B1SX[:, 0].split([self.latent_dim, self.rope_dim], dim=-1)
        k_BHSD, v_BHSD = self.up(latent_BSR).unflatten(-1, (self.n_heads, -1)).transpose(1, 2).chunk(2, dim=-1)
        if self.rope_dim:
            k_BHSD = torch.cat([k_BHSD, rotary_BSP[:, None].expand(-1, self.n_heads, -1, -1)], dim=-1)
        dropout = self.dropout if self.training else 0.0
        return attend(q_BHTX, k_BHSD, v_BHSD, mask=mask, kernel=self.kernel, dropout=dropout)

    def absorbed(self, q_BHTX: Tensor, latent_B1SX: Tensor, mask: Mask) -> Tensor:
        """Let the queries look at the latents themselves; return (B, H, T, D)."""
        up_HXR = self.up.weight.unflatten(0, (self.n_heads, -1))
        key_up_HDR, value_up_HDR = up_HXR.chunk(2, dim=1)
        q_BHTD, q_BHTP = q_BHTX.split([self.head_dim, self.rope_dim], dim=-1)
        # einsum, since a product that broadcasts over the batch would copy the weights for each row
        q_BHTX = torch.einsum("bhtd,hdr->bhtr", q_BHTD, key_up_HDR)
        if self.rope_dim:
            q_BHTX = torch.cat([q_BHTX, q_BHTP], dim=-1)
        dropout = self.dropout if self.training else 0.0
        # the scale stays that of the keys; the rotary key is among the values to spare a copy without it
        scale = (self.head_dim + self.rope_dim) ** -0.5
        y_BHTX = attend(q_BHTX, latent_B1SX, latent_B1SX, mask=mask, kernel=self.kernel, dropout=dropout, scale=scale)
        return torch.einsum("bhtr,hdr->bhtd", y_BHTX[..., : self.latent_dim], value_up_HDR)

    def _absorbs(self, query_length: int, key_length: int) -> bool:
        """Return whether the absorbed form takes fewer multiplications; those of one head and one row are compared."""
        if self.form != "auto":
            return self.form == "absorbed"
        T, S, D, R, P = query_length, key_length, self.head_dim, self.latent_dim, self.rope_dim
        naive = S * R * 2 * D + T * S * (2 * D + P)  # keys and values of S tokens, then scores and weighted means
        absorbed = T * R * 2 * D + T * S * (2 * R + P)  # T queries in and out, then the same over latents
        return absorbed < naive

    def new_cache(self, batch_size: int, max_length: int) -> LayerCache:
        """Make an empty cache for this layer, B S (R + D_r) numbers, of its dtype and on its device."""
        weight = self.out.weight  # looked up once: quantized layers compute it each time
        return LayerCache(
            batch_size,
            1,
            max_length,
            (self.latent_dim + self.rope_dim,),
            dtype=weight.dtype,
            device=weight.device,
        )


class LatentNorm(nn.RMSNorm):
    """RMSNorm in its weight's precision: under autocast latents are bfloat16, and the fused kernel wants one dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, and return the result in the dtype of x."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)
