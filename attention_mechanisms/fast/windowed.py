"""Sliding-window attention that never looks at the keys outside the window: time O(T W) instead of O(T^2).

Queries are cut into blocks of t. The queries of one block together see at most W - 1 + t keys, so each block is a
small attention of its own, and several are computed in one call. With blocks of W / 8, an eighth more scores than
necessary are computed; blocks of W, which one finds most often, compute twice as many (Beltagy et al.
2020, https://arxiv.org/abs/2004.05150, section 3.1 and appendix A).

    keys     . . . . . . . . . . . .        W = 4, blocks of 2: the queries at 6 and 7 ask keys 3 to 7
    block 3        [- - - - -]

Shapes: B batch, H query heads, G key/value heads, T query length, S key length, D head size, X = B * G;
c blocks, t queries per block, N = H / G * t, K keys per block.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_mechanisms.masks import Mask

FEWEST_QUERIES = 64  # per block: smaller ones are no faster
BLOCKS_PER_CALL = 16


def block_size(window: int) -> int:
    """Return how many queries share their keys."""
    return max(FEWEST_QUERIES, window // 8)


def blocks_pay(mask: Mask, query_length: int, key_length: int) -> bool:
    """Return whether blocks can skip enough keys to be worth making."""
    if mask.window is None or not isinstance(mask.query_offset, int) or mask.key_positions is not None:
        return False
    if mask.left_padding is not None and mask.n_sinks:
        return False  # each row has its sinks at another place
    block = block_size(mask.window)
    long = query_length >= block and key_length >= 2 * (mask.window + block + mask.n_sinks)
    return long and mask.query_offset + query_length == key_length


def attend_in_blocks(
    whole: Callable[..., Tensor],
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    mask: Mask,
    dropout: float,
    scale: float,
) -> Tensor:
    """Return attention's output (B, H, T, D), for a mask for which `blocks_pay`.

    The first queries, whose windows would begin before the first key that is not a sink, are left to the kernel
    `whole`. All blocks then look alike, and without documents and padding they share one small mask.

    Args:
        whole: a kernel, called with all that follows.
        q_BHTD: the queries.
        k_BGSD: the keys.
        v_BGSD: the values.
        mask: who may look at whom.
        dropout: probability with which an attention weight is dropped.
        scale: what scores are multiplied by.
    """
    H, T, G, t = q_BHTD.shape[1], q_BHTD.shape[2], k_BGSD.shape[1], block_size(mask.window)
    lead = max(0, mask.window - 1 + mask.n_sinks - mask.query_offset)
    lead += (T - lead) % t  # the rest is whole blocks: padding one would copy all queries, keys and values
    q_BHlD, q_BHTD = q_BHTD[:, :, :lead], q_BHTD[:, :, lead:]
    outputs = []
    if lead:
        seen = mask.query_offset + lead
        outputs.append(whole(q_BHlD, k_BGSD[:, :, :seen], v_BGSD[:, :, :seen], mask, dropout, scale))
    offset = mask.query_offset + lead
    blocks = (_blocks(q_BHTD, G, t), *(_windows(x, offset, mask, t) for x in (k_BGSD, v_BGSD)))
    for i, (q_XcND, k_XcKD, v_XcKD) in enumerate(zip(*(x.split(BLOCKS_PER_CALL, dim=1) for x in blocks), strict=True)):
        visible, empty = _visible(mask, offset + i * BLOCKS_PER_CALL * t, q_XcND.shape[1], t, q_BHTD.device)
        visible, empty = (_for_groups(x, G, H // G) for x in (visible, empty))
        y_XcND = F.scaled_dot_product_attention(
            q_XcND, k_XcKD, v_XcKD, attn_mask=visible, dropout_p=dropout, scale=scale
        )
        y_XcND = y_XcND if mask.left_padding is None else y_XcND.masked_fill(empty, 0)
        outputs.append(_unblocked(y_XcND, G, H // G, t))
    return torch.cat(outputs, dim=2)


def _blocks(q_BHTD: Tensor, n_groups: int, t: int) -> Tensor:
    """Return queries in blocks, those of a group's heads one after the other, (B G, c, N, D)."""
    q_BGnctD = q_BHTD.unflatten(1, (n_groups, -1)).unflatten(3, (-1, t))
    return q_BGnctD.transpose(2, 3).flatten(3, 4).flatten(0, 1)


def _unblocked(y_XcND: Tensor, n_groups: int, group_size: int, t: int) -> Tensor:
    """Undo `_blocks`: return (B, H, T, D)."""
    y_BGcntD = y_XcND.unflatten(0, (-1, n_groups)).unflatten(3, (group_size, t))
    return y_BGcntD.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _windows(x_BGSD: Tensor, offset: int, mask: Mask, t: int) -> Tensor:
    """Return the sinks and the window of each block, (B G, c, K, D).

    One `unfold` makes views that overlap; the gradient of a slice for each block would be as long as x.
    """
    x_XSD = x_BGSD.flatten(0, 1)
    windows_XcKD = x_XSD[:, offset - mask.window + 1 :].unfold(1, mask.window - 1 + t, t).mT
    if not mask.n_sinks:
        return windows_XcKD
    sinks_XcKD = x_XSD[:, None, : mask.n_sinks].expand(-1, windows_XcKD.shape[1], -1, -1)
    return torch.cat([sinks_XcKD, windows_XcKD], dim=2)


def _visible(mask: Mask, position: int, n_blocks: int, t: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `Mask.opened` for blocks from `position` on: (t, K) if they are alike, else (c, t, K) or (B, c, t, K)."""
    origins_c11 = position + torch.arange(1 if mask.is_plain else n_blocks, device=device)[:, None, None] * t
    positions_ct1 = origins_c11 + torch.arange(t, device=device)[:, None]
    keys_c1K = origins_c11 + torch.arange(1 - mask.window, t, device=device)
    sinks_c1n = torch.arange(mask.n_sinks, device=device).expand(len(keys_c1K), 1, -1)
    keys_c1K = torch.cat([sinks_c1n, keys_c1K], dim=-1)
    rows = 0 if mask.batch_size is None else torch.arange(mask.batch_size, device=device)[:, None, None, None]
    visible = mask.rule(device)(rows, 0, positions_ct1 - mask.query_offset, keys_c1K)
    if mask.is_plain:
        visible = visible[0]
    empty = ~visible.any(dim=-1, keepdim=True)
    return visible | empty, empty


def _for_groups(visible: Tensor, n_groups: int, group_size: int) -> Tensor:
    """Repeat a mask for the queries of all heads of a group: (N, K), (c, N, K) or (B G, c, N, K)."""
    visible = visible.repeat(*(1 for _ in visible.shape[:-2]), group_size, 1)
    return visible.repeat_interleave(n_groups, dim=0) if visible.dim() == 4 else visible
