"""A model with multi-head attention, made into one that remembers less of each token, without training.

    to GQA   each group of neighbouring heads shares the mean of their projections to keys and values
             (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245, section 2.1)
    to MLA   the projection to the keys and values of all heads, 2C x C, becomes x -> R numbers -> 2C by a singular
             value decomposition: no matrix of that rank is nearer to it (Eckart & Young 1936,
             https://doi.org/10.1007/BF02288367). At R = C nothing is lost, and half the cache is saved.

Both look at the weights alone, not at what passes through them. The result is a place to train on from, and until
then the way to see what each size of cache costs a model that was trained without one.

Shapes: C model width, H query heads, G key/value heads, D = C / H head size, R latent size, X = 2C.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attention_mechanisms import MultiHeadAttention
from gpt_model.config import GPTConfig
from gpt_model.gpt import GPT
from utils.files import InputError

Converted = tuple[nn.Module, int, float]  # a layer, its size, its error


@dataclass(frozen=True)
class LayerReport:
    """What a conversion did to one layer."""

    size: int
    """Key/value heads that it has now, or numbers in its latent."""
    error: float
    """How far the projection to keys and values has moved, relative to its size; both are Frobenius norms."""
    bytes_before: int
    """What a token took in the layer's cache, in the model's dtype."""
    bytes_after: int
    """What it takes now."""


def to_gqa(model: GPT, n_kv_groups: int) -> tuple[GPT, list[LayerReport]]:
    """Return a copy whose heads share keys and values in groups, and a report on each layer.

    Biases are averaged too; what the mean of the values' loses is a constant, and `out` adds it.

    Raises:
        InputError: if the model's attention is not mha, or n_kv_groups does not divide its heads.
    """
    _require(model, "gqa", attention="mha")
    config = replace(model.config, attention="gqa", n_kv_groups=n_kv_groups)
    converted, report = _replace_attention(model, lambda full: _mean_of_groups(full, config))
    converted.config = config
    return converted, report


def to_mla(
    model: GPT, latent_dim: int | None = None, tolerated_error: float | None = None
) -> tuple[GPT, list[LayerReport]]:
    """Return a copy that remembers a latent of each token, and a report on each layer.

    Latents are not normalised, and positions are the learned ones, already in x. Biases cost nothing: softmax ignores
    the keys', which add the same to all scores of a query, and `out` adds the values'.

    Args:
        model: with attention "mha" and position "learned".
        latent_dim: R, from 1 to d_model, the same in each layer. Or instead of it:
        tolerated_error: each layer gets the smallest R whose relative error is at most this. The layers, and their
            caches, then have sizes of their own, of which `config.latent_dim` is the largest.

    Raises:
        InputError: for another model, or if not exactly one of the two is given, and in its range.
    """
    _require(model, "mla", attention="mha", position="learned")
    if (latent_dim is None) == (tolerated_error is None):
        raise InputError(f"give latent_dim or tolerated_error, one of them, got {latent_dim} and {tolerated_error}")
    if latent_dim is not None and not 1 <= latent_dim <= model.config.d_model:
        raise InputError(f"latent_dim must be from 1 to d_model, {model.config.d_model}, got {latent_dim}")
    if tolerated_error is not None and not 0 <= tolerated_error < 1:
        raise InputError(f"tolerated_error must be at least 0 and below 1, got {tolerated_error}")
    config = replace(model.config, attention="mla", latent_norm=False, query_latent_dim=None)
    converted, report = _replace_attention(model, lambda full: _compress(full, config, latent_dim, tolerated_error))
    converted.config = replace(config, latent_dim=max(layer.size for layer in report))
    return converted, report


def describe(report: list[LayerReport]) -> str:
    """Return the report as a table, with the sum of the caches."""
    lines = [f"{'layer':>5} {'size':>6} {'error':>7} {'bytes of cache per token':>30}"]
    for i, layer in enumerate(report):
        change = f"{layer.bytes_before:,} -> {layer.bytes_after:,}"
        lines.append(f"{i:>5} {layer.size:>6,} {layer.error:>7.2%} {change:>30}")
    before, after = (sum(getattr(layer, name) for layer in report) for name in ("bytes_before", "bytes_after"))
    return "\n".join([*lines, f"{'sum':>5} {f'{before:,} -> {after:,}':>45}"])


def _require(model: GPT, kind: str, **fields: str) -> None:
    for field, right in fields.items():
        if (value := getattr(model.config, field)) != right:
            raise InputError(f"{field} must be {right!r} to make {kind} of a model, got {value!r}")


@torch.no_grad()
def _replace_attention(model: GPT, convert: Callable[[MultiHeadAttention], Converted]) -> tuple[GPT, list[LayerReport]]:
    """Return a copy of the model with another attention in each block."""
    converted = copy.deepcopy(model)
    report = []
    for block in converted.blocks:
        full = block.attention
        layer, size, error = convert(full)
        block.attention = layer.train(full.training)
        report.append(LayerReport(size, error, *(each.new_cache(1, 1).nbytes for each in (full, layer))))
    return converted, report


def _mean_of_groups(full: MultiHeadAttention, config: GPTConfig) -> Converted:
    """Return the layer with the mean of the keys and values in each group of heads."""
    weights = {"out.weight": full.out.weight}
    lost = {}
    for kind, parameter in full.qkv.named_parameters():  # weight (3C, C), and bias (3C,)
        weights[f"query.{kind}"], *keys_and_values = parameter.chunk(3)
        for name, heads in zip(("key", "value"), keys_and_values, strict=True):
            each_GND = heads.unflatten(0, (config.n_kv_groups, -1, full.head_dim))  # N heads in a group
            mean_G1D = each_GND.mean(dim=1, keepdim=True)
            weights[f"{name}.{kind}"] = mean_G1D.flatten(0, 2)
            lost[f"{name}.{kind}"] = (each_GND - mean_G1D).flatten(0, 2)
    if config.bias:
        weights["out.bias"] = full.out.bias + full.out.weight @ lost["value.bias"]
    moved_XC = torch.cat([lost["key.weight"], lost["value.weight"]])
    error = moved_XC.norm() / full.qkv.weight[-len(moved_XC) :].norm()
    return _layer(config, weights, full), config.n_kv_groups, error.item()


def _compress(
    full: MultiHeadAttention, config: GPTConfig, latent_dim: int | None, tolerated_error: float | None
) -> Converted:
    """Return the layer with keys and values through a latent, of the size given or the smallest tolerable."""
    query, key, value = full.qkv.weight.chunk(3)
    # `up` makes, for one head after the other, its keys and then its values
    both_XC = torch.cat([x.unflatten(0, (full.n_heads, -1)) for x in (key, value)], dim=1).flatten(0, 1)
    left_XC, singular_C, right_CC = torch.linalg.svd(both_XC.double().cpu(), full_matrices=False)
    lost = torch.cat([singular_C.square().flip(0).cumsum(0).flip(0), torch.zeros(1)])  # with 0, 1, ..., C numbers
    errors = lost.sqrt() / singular_C.norm()
    R = latent_dim or max(1, int((errors > tolerated_error).sum()))
    weights = {
        "query.weight": query,
        "down.weight": right_CC[:R],  # rows of length 1, at right angles: the latent is about as large as x
        "up.weight": left_XC[:, :R] * singular_C[:R],
        "out.weight": full.out.weight,
    }
    if config.bias:
        weights["query.bias"], _, value_bias = full.qkv.bias.chunk(3)
        weights["out.bias"] = full.out.bias + full.out.weight @ value_bias
    return _layer(replace(config, latent_dim=R), weights, full), R, errors[R].item()


def _layer(config: GPTConfig, weights: dict[str, Tensor], full: MultiHeadAttention) -> nn.Module:
    """Return a layer with these weights, of the dtype and on the device of `full`."""
    with torch.device("meta"):  # drawing weights would be in vain, and change what is drawn after it
        layer = config.attention_layer()
    weights = {name: w.to(full.out.weight).clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
    layer.load_state_dict(weights, assign=True)
    return layer
