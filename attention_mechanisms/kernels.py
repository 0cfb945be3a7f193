"""Scaled dot-product attention, softmax(q k^T / sqrt(D)) v, by several kernels behind one signature.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1. Keys and values may have fewer
heads than queries: each then serves a group of H / G query heads (Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245, section 2.2).

Shapes: B batch, H query heads, G key/value heads, T query length, S key length, D head size, E value
size, N = H / G * T queries per group.
"""

import functools
import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_mechanisms.fast import flex
from attention_mechanisms.fast.windowed import attend_in_blocks, blocks_pay
from attention_mechanisms.masks import CAUSAL, Mask

log = logging.getLogger(__name__)

KERNELS = ("auto", "manual", "sdpa", "flex")
# With up to so many keys, bfloat16 training on a CPU is faster by plain products.
MOST_KEYS_FOR_PLAIN_PRODUCTS = 512


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
    """Return attention's output (B, H, T, E): for each query the mean of the values, weighted by its softmax scores.

    A query that may see no key gets zeros.

    Args:
        q_BHTD: the queries.
        k_BGSD: the keys; G divides H.
        v_BGSE: the values.
        mask: who may look at whom.
        kernel: "manual" to read and check against, "sdpa" for PyTorch's fused kernels, "flex" for
            FlexAttention, which skips what the mask hides, or "auto" for the fastest; see `explain_kernel`.
            Where the kernel asked for cannot work, sdpa takes its place, with one warning.
        dropout: probability with which an attention weight is dropped; the caller sets 0 in evaluation.
        scale: what scores are multiplied by; 1 / sqrt(D) by default.

    Raises:
        ValueError: for an unknown kernel, head counts that do not divide, or a mask for another batch size.
    """
    B, H, _, D = q_BHTD.shape
    if H % k_BGSD.shape[1]:
        raise ValueError(f"{H} query heads cannot share {k_BGSD.shape[1]} key/value heads evenly")
    if mask.batch_size not in (None, B):
        raise ValueError(f"the mask was made for a batch of {mask.batch_size}, got {B} rows")
    name, reason = choose_kernel(q_BHTD, k_BGSD, v_BGSE, mask=mask, kernel=kernel, dropout=dropout)
    if name != kernel != "auto" and not torch.compiler.is_compiling():
        _warn_once(f"attention falls back from {kernel} to {name}: {reason}")
    scale = 1 / math.sqrt(D) if scale is None else scale
    if name == "flex":
        return flex.attend(q_BHTD, k_BGSD, v_BGSE, mask, scale)
    return (_manual if name == "manual" else _sdpa)(q_BHTD, k_BGSD, v_BGSE, mask, dropout, scale)


def explain_kernel(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    *,
    mask: Mask = CAUSAL,
    kernel: str = "auto",
    dropout: float = 0.0,
) -> str:
    """Say which kernel `attend` would take for these arguments, and why, in one line."""
    name, reason = choose_kernel(q_BHTD, k_BGSD, v_BGSE, mask=mask, kernel=kernel, dropout=dropout)
    return f"{name}: {reason}"


def choose_kernel(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, *, mask: Mask, kernel: str, dropout: float
) -> tuple[str, str]:
    """Return the kernel that `attend` takes, and the reason.

    Raises:
        ValueError: for an unknown kernel.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    device, T, S = q_BHTD.device.type, q_BHTD.shape[2], k_BGSD.shape[2]
    training = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BHTD, k_BGSD, v_BGSE))
    obstacle = flex.obstacle(device, min(q_BHTD.shape[-1], v_BGSE.shape[-1]), training, dropout)
    if kernel == "flex" and obstacle:
        return "sdpa", obstacle
    if kernel != "auto":
        return kernel, "it was asked for"
    skips = (mask.window or S) < S or mask.document_ids is not None
    if device == "cuda" and skips and T >= flex.BLOCK and not obstacle:
        return "flex", "it skips blocks of keys that the mask hides"
    if blocks_pay(mask, T, S):
        return "sdpa", "in blocks, it skips the keys outside the window"
    half = q_BHTD.dtype in (torch.bfloat16, torch.float16)
    if device == "cpu" and half and (S <= MOST_KEYS_FOR_PLAIN_PRODUCTS if training else T == 1):
        return "manual", "in half precision on a CPU, plain products beat the fused kernel in training and decoding"
    return "sdpa", "PyTorch's fused kernels do not store the scores"


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _manual(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, mask: Mask, dropout: float, scale: float) -> Tensor:
    B, H, T, _ = q_BHTD.shape
    G, S = v_BGSE.shape[1:3]
    # Scaling the queries, not the scores, keeps float16's scores in range. The queries of a group
    # become one longer list of queries: keys and values need no copies.
    scores_BGNS = _fold(q_BHTD * scale, G) @ _packed(k_BGSD).mT
    scores_BHTS = scores_BGNS.view(B, H, T, S)
    empty = None
    if not mask.hides_nothing(T, S):
        visible, empty = mask.opened(T, S, q_BHTD.device)
        scores_BHTS = scores_BHTS.masked_fill(~visible, -math.inf)
    # float16 and bfloat16 lack the range or the digits for a sum over S; float64 stays as it is
    wide = torch.promote_types(scores_BHTS.dtype, torch.float32)
    weights_BHTS = scores_BHTS.softmax(dim=-1, dtype=wide).to(v_BGSE.dtype)
    weights_BHTS = F.dropout(weights_BHTS, dropout)
    y_BHTE = (_fold(weights_BHTS, G) @ v_BGSE).view(B, H, T, -1)
    return y_BHTE if empty is None else y_BHTE.masked_fill(empty, 0)


def _packed(k_BGSD: Tensor) -> Tensor:
    """Return the same keys, copied where that makes the product faster.

    The product needs them transposed. From a slice of a cache, a CPU makes a transposed copy in bfloat16, which takes
    several times as long as a plain one.
    """
    half = k_BGSD.dtype in (torch.bfloat16, torch.float16)
    return k_BGSD.contiguous() if half and k_BGSD.device.type == "cpu" else k_BGSD


def _sdpa(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, mask: Mask, dropout: float, scale: float) -> Tensor:
    B, H, T, D = q_BHTD.shape
    G, S, E = v_BGSE.shape[1:]
    if E < D:  # the fused kernels want one size
        v_BGSE = F.pad(v_BGSE, (0, D - E))
    if blocks_pay(mask, T, S):
        return attend_in_blocks(_sdpa, q_BHTD, k_BGSD, v_BGSE, mask, dropout, scale)[..., :E]
    square = mask.is_square_causal(T, S)
    visible = empty = None
    if not square and not mask.hides_nothing(T, S):
        visible, empty = mask.opened(T, S, q_BHTD.device)
    if T == 1:  # all query heads of a group become queries with the same mask
        q_BHTD = _fold(q_BHTD, G)
    shared = {"enable_gqa": True} if q_BHTD.shape[1] != G else {}  # a branch: torch.compile may have no bool to hand on
    y = F.scaled_dot_product_attention(
        q_BHTD, k_BGSD, v_BGSE, attn_mask=visible, is_causal=square, dropout_p=dropout, scale=scale, **shared
    )  # fmt: skip
    y_BHTE = y.reshape(B, H, T, -1)[..., :E]
    return y_BHTE if empty is None else y_BHTE.masked_fill(empty, 0)


def _fold(x_BHTD: Tensor, n_groups: int) -> Tensor:
    """Return (B, G, N, D): the queries of a group's heads, one after the other."""
    return x_BHTD.reshape(x_BHTD.shape[0], n_groups, -1, x_BHTD.shape[3])
