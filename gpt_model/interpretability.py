"""Looking inside a trained model: where its heads look, what it would say after each block, what each head is for.

    attention maps   whom each position looks at, and how much
    logit lens       the output layer applied to the residual stream between any two blocks (nostalgebraist 2020,
                     https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)
    ablation         take away what one head says, and see what gets worse (Michel et al. 2019,
                     https://arxiv.org/abs/1905.10650, section 3)

All is done by hooks, functions that PyTorch calls with what enters a module, and which may change it. So it works for
every kind of attention, and the model knows nothing of it.

Shapes: B batch, T query length, S key length, C model width, V vocabulary, L layers, H heads, G key/value heads,
D head size, R latent size, P rotary channels, X channels of a query.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_mechanisms import CAUSAL, MultiHeadLatentAttention, attend
from attention_mechanisms.rotary import rotate, rotation
from gpt_model.gpt import GPT
from utils.files import InputError


@torch.no_grad()
def attention_maps(model: GPT, ids_BT: Tensor) -> Tensor:
    """Return how much each position looks at each, (L, B, H, T, S) with S = T; each row sums to 1.

    Fused kernels never store these weights, so they are computed anew, from what enters each layer.
    """
    maps: list[Tensor] = []

    def look(attention: nn.Module, arguments: tuple[Tensor], options: dict[str, Any]) -> None:
        maps.append(_weights(attention, *arguments, options["positions"]))

    with _evaluating(model), ExitStack() as hooks:
        for block in model.blocks:
            hooks.enter_context(block.attention.register_forward_pre_hook(look, with_kwargs=True))
        model.hidden(ids_BT)
    return torch.stack(maps)


def _weights(attention: Any, x_BTC: Tensor, positions: Tensor) -> Tensor:
    """Return what a layer's softmax gives, (B, H, T, S): its outputs, if each position's value is its own channel."""
    if isinstance(attention, MultiHeadLatentAttention):
        mask = CAUSAL
        q_BHTX, k_BGSX = _latent_queries_and_keys(attention, x_BTC, positions)
    else:
        mask = attention.limit(CAUSAL)
        q_BHTX, k_BGSX, _ = attention.project(x_BTC)
        if attention.rope:
            angles = rotation(positions, attention.head_dim)
            q_BHTX, k_BGSX = rotate(q_BHTX, *angles), rotate(k_BGSX, *angles)
    B, G, S = k_BGSX.shape[:3]
    like = {"dtype": x_BTC.dtype, "device": x_BTC.device}
    return attend(q_BHTX, k_BGSX, torch.eye(S, **like).expand(B, G, S, S), mask=mask, kernel="manual")


def _latent_queries_and_keys(
    attention: MultiHeadLatentAttention, x_BTC: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return queries, and the keys made of the latents, both (B, H, T, D + P)."""
    q_BHTX, latent_B1SX = attention.project(x_BTC, positions)
    latent_B1SR, rotary_B1SP = latent_B1SX.split([attention.latent_dim, attention.rope_dim], dim=-1)
    key_up_HDR = attention.up.weight.unflatten(0, (attention.n_heads, -1))[:, : attention.head_dim]
    k_BHSD = latent_B1SR @ key_up_HDR.mT
    return q_BHTX, torch.cat([k_BHSD, rotary_B1SP.expand(-1, attention.n_heads, -1, -1)], dim=-1)


@torch.no_grad()
def logit_lens(model: GPT, ids_BT: Tensor) -> Tensor:
    """Return logits (L + 1, B, T, V), as if the model ended before its first block, after it, ..., after its last.

    The last entry is what the model says.
    """
    streams: list[Tensor] = []

    def look(module: nn.Module, arguments: tuple[Tensor]) -> None:
        streams.append(arguments[0])

    with _evaluating(model), ExitStack() as hooks:
        for module in (*model.blocks, model.final_norm):
            hooks.enter_context(module.register_forward_pre_hook(look))
        model.hidden(ids_BT)
    x_LBTC = model.final_norm(torch.stack(streams))
    return F.linear(x_LBTC, model.token_embedding.weight)[..., : model.config.vocab_size]


@contextmanager
def ablated(model: GPT, heads: Iterable[tuple[int, int]], how: Literal["zero", "mean"] = "zero") -> Iterator[None]:
    """Take away the outputs of some heads, inside the block.

    Args:
        model: changed only while the block runs.
        heads: (layer, head) of each, from 0.
        how: what stands in for an output: zeros, or its mean over all positions and rows of the batch, which takes
            away what the head says about this text and leaves what it always says.

    Raises:
        InputError: for a head that is not there, or another `how`.
    """
    config = model.config
    if how not in ("zero", "mean"):
        raise InputError(f"how must be 'zero' or 'mean', got {how!r}")
    with ExitStack() as hooks:
        for layer, head in heads:
            if not (0 <= layer < config.n_layers and 0 <= head < config.n_heads):
                raise InputError(
                    f"there is no head {head} in layer {layer}: there are {config.n_layers} layers of {config.n_heads}"
                )
            silence = _silencer(head, config.n_heads, how)
            hooks.enter_context(model.blocks[layer].attention.out.register_forward_pre_hook(silence))
        yield


def _silencer(head: int, n_heads: int, how: str) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    """Return a hook before the projection `out`, which gets the outputs of all heads side by side, (B, T, H D)."""

    def silence(out: nn.Module, arguments: tuple[Tensor]) -> Tensor:
        y_BTHD = arguments[0].unflatten(-1, (n_heads, -1)).clone()
        y_BTHD[:, :, head] = 0 if how == "zero" else y_BTHD[:, :, head].mean(dim=(0, 1))
        return y_BTHD.flatten(2)

    return silence


@torch.no_grad()
def ablate_each_head(model: GPT, ids_BT: Tensor, targets_BT: Tensor, how: Literal["zero", "mean"] = "zero") -> Tensor:
    """Return how much the loss grows when each head alone is taken away, (L, H).

    Args:
        targets_BT: the ids that come next; -100 does not count.
        how: see `ablated`.
    """
    config = model.config
    with _evaluating(model):
        whole = model(ids_BT, targets_BT)[1]
        losses_LH = whole.new_empty(config.n_layers, config.n_heads)
        for layer in range(config.n_layers):
            for head in range(config.n_heads):
                with ablated(model, [(layer, head)], how):
                    losses_LH[layer, head] = model(ids_BT, targets_BT)[1]
    return losses_LH - whole


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    """Switch dropout off, inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
