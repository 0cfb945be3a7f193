"""FlexAttention: a kernel generated for each mask, which skips every block of scores that the mask hides.

https://pytorch.org/blog/flexattention/. The mask comes as a function of indices; evaluated once per shape,
it gives a `BlockMask`: which blocks of 128 x 128 scores are hidden whole, seen whole, or mixed.

Shapes: B batch, H query heads, G key/value heads, T query length, S key length, D head size, E value size.
"""

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attention_mechanisms.masks import Mask
from utils.hardware import compiler_works

BLOCK = 128
SCORES_WORTH_COMPILING = 2**24  # on a CPU; with fewer, compiling takes longer than it will ever save
MOST_BLOCK_MASKS = 64  # that are kept
# All kinds of calls share one compiled function. New lengths alone soon cost nothing, but each kind of mask, dtype and
# number of heads is compiled up to four times: for the first length, any length, more than 128, and one. PyTorch's own
# limit is 8, and whatever comes after runs unfused.
MOST_COMPILATIONS = 64

_block_masks: OrderedDict[tuple[Any, ...], BlockMask] = OrderedDict()


def obstacle(device: str, head_dim: int, training: bool, dropout: float) -> str | None:
    """Return why FlexAttention cannot be used, or None; head_dim is the smaller of D and E."""
    if dropout:
        return "FlexAttention has no dropout"
    if training and device != "cuda":
        return f"FlexAttention has no gradients on {'a CPU' if device == 'cpu' else device}"
    if device == "cuda" and head_dim < 16:
        return "FlexAttention needs heads of at least 16 channels on a GPU"
    if device == "cuda" and not torch.compiler.is_compiling() and not compiler_works(device):
        return "FlexAttention needs torch.compile on a GPU"
    return None


def block_mask(mask: Mask, query_length: int, key_length: int, device: torch.device) -> BlockMask:
    """Return the mask as a BlockMask, built once for each mask, shape and device, and kept while among the latest 64.

    A compiled graph builds its own each time, since it does not know the mask's tensors.
    """

    def make() -> BlockMask:
        return create_block_mask(mask.rule(device), mask.batch_size, None, query_length, key_length, device=device)

    if torch.compiler.is_compiling():
        return make()
    key = (mask, query_length, key_length, device)
    if key not in _block_masks:
        with torch.inference_mode(False):  # a later call may need gradients
            _block_masks[key] = make()
        if len(_block_masks) > MOST_BLOCK_MASKS:
            _block_masks.popitem(last=False)
    _block_masks.move_to_end(key)
    return _block_masks[key]


def attend(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, mask: Mask, scale: float) -> Tensor:
    """Return attention's output (B, H, T, E)."""
    if not torch.is_grad_enabled():  # on a CPU it refuses whatever could have a gradient
        q_BHTD, k_BGSD, v_BGSE = (x.detach() for x in (q_BHTD, k_BGSD, v_BGSE))
    v_BGSE = v_BGSE.view_as(v_BGSE)  # Dynamo, which traces it even when eager, stumbles over one tensor given twice
    (B, H, T, _), (G, S) = q_BHTD.shape, k_BGSD.shape[1:3]
    blocks = None if mask.hides_nothing(T, S) else block_mask(mask, T, S, q_BHTD.device)
    kernel = functools.partial(
        _kernel(q_BHTD.device.type, B * H * T * S), block_mask=blocks, scale=scale, enable_gqa=H != G
    )
    if torch.compiler.is_compiling():
        return kernel(q_BHTD, k_BGSD, v_BGSE)
    with warnings.catch_warnings():
        # run eagerly, it warns that it stores the scores: there are few enough of them
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return kernel(q_BHTD, k_BGSD, v_BGSE)


def _kernel(device: str, n_scores: int) -> Callable[..., Any]:
    if torch.compiler.is_compiling():
        return flex_attention
    if device == "cpu" and (n_scores < SCORES_WORTH_COMPILING or not compiler_works(device)):
        return flex_attention
    return _compiled()


@functools.cache
def _compiled() -> Callable[..., Any]:
    if "recompile_limit" in signature(torch.compile).parameters:
        return torch.compile(flex_attention, recompile_limit=MOST_COMPILATIONS)
    # an older PyTorch has one limit for all functions, and setting it costs each call 30 microseconds
    return torch.compiler.config.patch(recompile_limit=MOST_COMPILATIONS)(torch.compile(flex_attention))
