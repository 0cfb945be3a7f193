"""Scaled dot-product attention, softmax(q k^T / sqrt(D)) v, by several kernels behind one signature.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1. Keys and values may have fewer
heads than queries: each then serves a group of H / G query heads (Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245, section 2.2).

Shapes: B batch, H query heads, G key/value heads, T query length, S key length, D head size, E value size.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_mechanisms.masks import Mask

CAUSAL = Mask()
SHORT = 512  # keys


def attend(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    *,
    mask: Mask = CAUSAL,
    kernel: str = "auto",
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention's output (B, H, T, E): for each query the mean of the values, weighted by its softmax scores.

    Args:
        q_BHTD: queries.
        k_BGSD: keys; G divides H.
        v_BGSE: values.
        mask: who may look at whom.
        kernel: "manual" to read and check against, "sdpa" for PyTorch's fused kernels, or "auto",
            which takes sdpa except where manual is faster.
        dropout: probability with which an attention weight is dropped; the caller sets 0 in evaluation.
        scale: what scores are multiplied by; 1 / sqrt(D) by default.

    Raises:
        ValueError: for an unknown kernel, or head counts that do not divide.
    """
    if q_BHTD.shape[1] % k_BGSD.shape[1]:
        raise ValueError(f"{q_BHTD.shape[1]} query heads cannot share {k_BGSD.shape[1]} key/value heads evenly")
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    return KERNELS[kernel](q_BHTD, k_BGSD, v_BGSE, mask, dropout, scale)


def _manual(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, mask: Mask, dropout: float, scale: float | None) -> Tensor:
    B, H, T, D = q_BHTD.shape
    G, S, E = v_BGSE.shape[1:]
    scale = 1 / math.sqrt(D) if scale is None else scale
    # The queries of a group become one longer list of queries: keys and values need no copies.
    q_BGND = q_BHTD.reshape(B, G, (H // G) * T, D)
    scores_BGNS = q_BGND @ k_BGSD.mT * scale
    scores_BHTS = scores_BGNS.view(B, H, T, S)
    if not mask.hides_nothing(T, S):
        scores_BHTS = scores_BHTS.masked_fill(~mask.dense(T, S, q_BHTD.device), -math.inf)
    # float16 and bfloat16 lack the range or the digits for a sum over S; float64 stays as it is
    wide = torch.promote_types(scores_BHTS.dtype, torch.float32)
    weights_BHTS = scores_BHTS.softmax(dim=-1, dtype=wide).to(v_BGSE.dtype)
    weights_BHTS = F.dropout(weights_BHTS, dropout)
    y_BGNE = weights_BHTS.view(B, G, (H // G) * T, S) @ v_BGSE
    return y_BGNE.view(B, H, T, E)


def _sdpa(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, mask: Mask, dropout: float, scale: float | None) -> Tensor:
    H, G, T, S = q_BHTD.shape[1], k_BGSD.shape[1], q_BHTD.shape[2], k_BGSD.shape[2]
    square = mask.is_square_causal(T, S)
    dense = None if square or mask.hides_nothing(T, S) else mask.dense(T, S, q_BHTD.device)
    return F.scaled_dot_product_attention(
        q_BHTD, k_BGSD, v_BGSE, attn_mask=dense, is_causal=square, dropout_p=dropout, scale=scale, enable_gqa=H != G
    )


def _auto(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, mask: Mask, dropout: float, scale: float | None) -> Tensor:
    # PyTorch's fused CPU kernel is slow backwards: on short sequences the plain formula trains faster
    # (pretraining/results/speed.json). On long ones its T x S scores cost too much memory.
    training = torch.is_grad_enabled() and q_BHTD.requires_grad
    plain = training and q_BHTD.device.type == "cpu" and k_BGSD.shape[2] <= SHORT
    return (_manual if plain else _sdpa)(q_BHTD, k_BGSD, v_BGSE, mask, dropout, scale)


KERNELS: dict[str, Callable[..., Tensor]] = {"auto": _auto, "manual": _manual, "sdpa": _sdpa}
