"""Sliding-window attention that never looks at the keys outside the window: time O(T W) instead of O(T^2).

Queries are cut into blocks. The queries of one block see at most W + block keys, so each block is a small
attention of its own. With blocks of W / 4 a quarter more scores than necessary are computed; blocks of W,
which is what one finds most often, compute twice as many (Beltagy et al. 2020, https://arxiv.org/abs/2004.05150,
section 3.1 and appendix A).

    keys     . . . . . . . . . . . .        W = 4, blocks of 2: the queries at 6 and 7 ask keys 2 to 7
    block 3      [- - - - - -]

Shapes: B batch, H query heads, G key/value heads, T query length, S key length, D head size, E value size.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_mechanisms.masks import Mask

SMALLEST = 64  # queries a block: smaller ones are not worth a call


def block_size(window: int) -> int:
    """Queries that are computed together."""
    return max(SMALLEST, window // 4)


def blocks_pay(mask: Mask, query_length: int, key_length: int) -> bool:
    """Whether blocks can skip enough keys to be worth their calls."""
    if mask.window is None or not isinstance(mask.query_offset, int) or mask.key_positions is not None:
        return False
    if mask.left_padding is not None and mask.n_sinks:
        return False  # the sinks are at another place in each row
    reach = mask.window + block_size(mask.window) + mask.n_sinks
    return query_length > 1 and key_length >= 2 * reach and mask.query_offset + query_length == key_length


def attend_in_blocks(
    kernel: Callable[..., Tensor],
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    mask: Mask,
    dropout: float,
    scale: float,
) -> Tensor:
    """Attention's output (B, H, T, E), computed by `kernel` on one block of queries after the other."""
    offset, window, device = mask.query_offset, mask.window, q_BHTD.device
    assert isinstance(offset, int)
    assert window is not None
    block = block_size(window)
    S, size = k_BGSD.shape[2], window - 1 + block
    first = offset - window + 1  # the first key that the first query sees, if there is one
    overhang = -q_BHTD.shape[2] % block  # of the last block
    keys, values = (_windows(x, first, overhang, size, block) for x in (k_BGSD, v_BGSE))
    sinks, span = torch.arange(mask.n_sinks, device=device), torch.arange(size, device=device)
    outputs = []
    for i, q_BHtD in enumerate(q_BHTD.split(block, dim=2)):
        positions = first + i * block + span
        # neither overhang is a key, nor is a sink twice
        positions = positions.masked_fill((positions >= S) | (positions < mask.n_sinks), -1)
        k, v = keys[i].mT, values[i].mT
        if mask.n_sinks:
            k, v = torch.cat([k_BGSD[:, :, : mask.n_sinks], k], 2), torch.cat([v_BGSE[:, :, : mask.n_sinks], v], 2)
            positions = torch.cat([sinks, positions])
        part = replace(mask, query_offset=offset + i * block, key_positions=positions)
        outputs.append(kernel(q_BHtD, k, v, part, dropout, scale))
    return torch.cat(outputs, dim=2)


def _windows(x_BGSD: Tensor, first: int, overhang: int, size: int, step: int) -> tuple[Tensor, ...]:
    """Overlapping views (B, G, D, size), one every `step` keys from `first` on.

    One `unfold` and not a slice a block, since the gradient of each slice would be as long as x itself.
    """
    padded = F.pad(x_BGSD[:, :, max(0, first) :], (0, 0, max(0, -first), overhang))
    return padded.unfold(2, size, step).unbind(2)
