"""What a GPT costs, by formula: parameters, operations, and bytes to train it, to remember a text, to write a token.

A product of (m, k) and (k, n) counts 2 m k n operations; softmax, norms and the like count nothing, as is the
custom. Attention counts every pair of a query and a key, those that a mask hides included. That is how the plain
formula computes it, how `torch.utils.flop_counter` counts it, and how model FLOP utilisation is defined (Chowdhery et
al. 2022, "PaLM", https://arxiv.org/abs/2204.02311, appendix B). Fused kernels skip half of them.

Memory of training after Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
https://arxiv.org/abs/2205.05198, section 4, for this model. Every formula is checked against the model: its
parameters, PyTorch's own count, what autograd holds, what a cache takes.

Letters: B batch, T new tokens, S tokens looked at, C model width, L layers, H query heads, G key/value heads, D head
size, R latent size, Q query latent size, P rotary channels of latent attention, W window, V vocabulary with padding.
"""

from dataclasses import dataclass, replace

import torch

from gpt_model.config import GPTConfig

GROUPS = (16, 8, 4, 2)
LATENTS = (1024, 512, 256, 128)
WINDOW = 512
FLOAT32 = 4  # bytes
INT64 = 8


def variants(config: GPTConfig) -> dict[str, GPTConfig]:
    """Return the same model with each kind of attention: MHA; GQA, 16 to 2 groups; MLA, R of 1024 to 128; SWA.

    Groups must divide the heads, and be fewer. Where none of them does, as with the 25 heads of gpt2-xl, it is the
    most groups that do. Latents must remember less than keys and values do, and a window must hide something.
    """
    H = config.n_heads
    groups = [g for g in GROUPS if g < H and H % g == 0] or [g for g in range(H - 1, 0, -1) if H % g == 0][:1]
    found = {"MHA": replace(config, attention="mha")}
    for g in groups:
        found[f"GQA, {g} groups"] = replace(config, attention="gqa", n_kv_groups=g)
    for r in LATENTS:
        if r < 2 * config.d_model:
            found[f"MLA, R = {r}"] = replace(config, attention="mla", latent_dim=r)
    if config.context_length > WINDOW:
        found[f"SWA, W = {WINDOW}"] = replace(config, attention="swa", window_size=WINDOW)
    return found


# -- parameters --------------------------------------------------------------------------------------------


def parameters(config: GPTConfig) -> dict[str, int]:
    """Return the number of parameters of each part; the output layer is the token embedding, and counts once."""
    C, L, E = config.d_model, config.n_layers, config.n_experts
    bias = config.bias
    feed_forward = 4 * C * C + 4 * C * C + bias * (4 * C + C)
    return {
        "token embedding": config.padded_vocab_size * C,
        "position embedding": config.context_length * C if config.position == "learned" else 0,
        "attention": L * (_numbers(_attention_shapes(config)) + _attention_vectors(config)),
        "feed-forward": L * (E * feed_forward + C * E if E else feed_forward),
        "norms": (2 * L + 1) * (C + bias * C),
    }


def n_parameters(config: GPTConfig) -> int:
    """Return how many numbers training changes."""
    return sum(parameters(config).values())


def _heads(config: GPTConfig) -> tuple[int, int, int]:
    """Return query heads, key/value heads, and channels per head."""
    groups = config.n_kv_groups if config.attention == "gqa" else config.n_heads
    return config.n_heads, groups, config.d_model // config.n_heads


def _rotary(config: GPTConfig) -> int:
    """Return the rotary channels that latent attention adds to each head."""
    return config.rope_dim if config.position == "rope" else 0


def _attention_shapes(config: GPTConfig) -> list[tuple[int, int]]:
    """Return the rows and columns of each matrix of one attention layer."""
    C = config.d_model
    H, G, D = _heads(config)
    if config.attention == "mha":
        return [(3 * C, C), (C, C)]
    if config.attention != "mla":
        return [(C, C), (G * D, C), (G * D, C), (C, C)]
    R, Q, P = config.latent_dim, config.query_latent_dim, _rotary(config)
    queries = [(H * (D + P), C)] if Q is None else [(Q, C), (H * (D + P), Q)]
    return [*queries, (R + P, C), (2 * C, R), (C, C)]


def _attention_vectors(config: GPTConfig) -> int:
    """Return how many numbers are in the biases of one attention layer, and in the norms of its latents."""
    C = config.d_model
    H, G, D = _heads(config)
    if config.attention != "mla":
        return config.bias * ((H + 2 * G) * D + C)
    norms = config.latent_norm * (config.latent_dim + (config.query_latent_dim or 0))
    return norms + config.bias * (H * (D + _rotary(config)) + C)


def _block_shapes(config: GPTConfig, experts: int) -> list[tuple[int, int]]:
    """Return the rows and columns of each matrix of one block, of whose experts only `experts` count."""
    C, E = config.d_model, config.n_experts
    feed_forward = [(4 * C, C), (C, 4 * C)]
    return _attention_shapes(config) + (experts * feed_forward + [(E, C)] if E else feed_forward)


def _numbers(shapes: list[tuple[int, int]]) -> int:
    """Return how many numbers are in matrices of these shapes."""
    return sum(rows * columns for rows, columns in shapes)


# -- operations --------------------------------------------------------------------------------------------


def forward_flops(config: GPTConfig, batch: int, length: int, *, cached: int = 0, last_only: bool = False) -> int:
    """Return the operations of `model(ids_BT, cache=cache, last_only=last_only)`.

    Args:
        config: of the model.
        batch: rows.
        length: new tokens of each.
        cached: tokens that each row has in its cache already.
        last_only: logits of the last position alone.
    """
    answers = 1 if last_only else length
    head = 2 * batch * answers * config.d_model * config.padded_vocab_size
    return config.n_layers * _block_flops(config, batch, length, cached) + head


def training_flops(config: GPTConfig, batch: int, length: int) -> int:
    """Return the operations of a training step, forward and backward.

    Backward has two products for each one of forward: the gradient of either factor. With `checkpoint_activations`
    it computes each block again before, all but the last product, whose result no gradient needs (experts' are
    needed: for the gradient of the weights they are summed with).
    """
    flops = 3 * forward_flops(config, batch, length)
    if config.checkpoint_activations:
        last = 0 if config.n_experts else 2 * batch * length * 4 * config.d_model**2
        flops += config.n_layers * (_block_flops(config, batch, length, 0) - last)
    return flops


def mfu(config: GPTConfig, tokens_per_second: float, peak_flops: float, length: int | None = None) -> float:
    """Return the model FLOP utilisation: the share of a device's peak that becomes operations the model needs.

    What is computed twice, to save memory, counts once.

    Args:
        config: of the model.
        tokens_per_second: speed of training.
        peak_flops: operations per second, as in `find_device(name).flops_per_second` or `measured_peaks`.
        length: tokens of a row; by default the context.
    """
    length = config.context_length if length is None else length
    return 3 * forward_flops(config, 1, length) / length * tokens_per_second / peak_flops


def _block_flops(config: GPTConfig, B: int, T: int, cached: int) -> int:
    H, _, D = _heads(config)
    S = _looked_at(config, T, cached)
    matrices = 2 * B * T * _numbers(_block_shapes(config, config.n_active_experts))
    if config.attention != "mla":
        return matrices + 2 * B * H * T * S * 2 * D
    R, P = config.latent_dim, _rotary(config)
    # The layer chooses: new keys and values for all S tokens, or queries brought to the latents, twice as wide.
    if T * R * 2 * D + T * S * (2 * R + P) < S * R * 2 * D + T * S * (2 * D + P):
        return matrices + 2 * B * H * T * S * 2 * (R + P)
    return matrices + 2 * B * (S - T) * R * 2 * H * D + 2 * B * H * T * S * (2 * D + P)


def _looked_at(config: GPTConfig, T: int, cached: int) -> int:
    """Return how many keys are multiplied with each query, hidden ones included."""
    if config.attention != "swa" or not cached:
        return cached + T
    ring = config.window_size + config.n_sinks
    return min(cached + 1, ring) if T == 1 else ring + T


# -- a cache, and writing from it --------------------------------------------------------------------------


def cache_bytes_per_token(config: GPTConfig, dtype: torch.dtype) -> int:
    """Return the bytes that all layers keep per token; a window keeps the last W tokens and the sinks only."""
    _, G, D = _heads(config)
    numbers = config.latent_dim + _rotary(config) if config.attention == "mla" else 2 * G * D
    return config.n_layers * numbers * dtype.itemsize


def cache_bytes(config: GPTConfig, batch: int, length: int, dtype: torch.dtype) -> int:
    """Return the bytes of `model.new_cache(batch, length)`. A ring has the same size for every length."""
    slots = config.window_size + config.n_sinks if config.attention == "swa" else length
    return batch * slots * cache_bytes_per_token(config, dtype)


def weight_bytes(config: GPTConfig, dtype: torch.dtype) -> int:
    """Return the bytes of the model's parameters."""
    return n_parameters(config) * dtype.itemsize


def decoding_bytes(config: GPTConfig, batch: int, length: int, dtype: torch.dtype) -> int:
    """Return the bytes that are read to write one more token for each of `batch` rows.

    These are all weights, but of the positions only one row each, and what `length` tokens left in the cache. The
    memory's bytes per second, divided by them, are the most steps per second.
    """
    asked = min(config.n_experts, batch * config.n_active_experts)  # if each row asks other experts
    unasked = config.n_layers * (config.n_experts - asked) * 8 * config.d_model**2
    unread = (parameters(config)["position embedding"] + unasked) * dtype.itemsize
    if config.attention == "swa":
        length = min(length, config.window_size + config.n_sinks)
    return weight_bytes(config, dtype) - unread + batch * length * cache_bytes_per_token(config, dtype)


# -- memory of training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes in use when a training step needs most."""

    weights: int
    """In float32, which is what the trainers here keep, autocast or not."""
    gradients: int
    """In float32 too."""
    optimizer: int
    """AdamW keeps two numbers for each parameter; of those in the matrices of the blocks, Muon keeps one, and GaLore
    fewer: see `galore_numbers`."""
    bfloat16_copies: int
    """Autocast's bfloat16 copies of the matrices, which live until backward has used them. With checkpointing only
    the output layer's: the trainer has autocast keep none (cache_enabled=False), and blocks make theirs anew."""
    activations: int
    """What forward leaves behind for backward."""
    logits: int
    """At the worst moment, the first of backward: the logits, and two gradients of their size in float32."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def training_memory(
    config: GPTConfig,
    batch: int,
    length: int,
    *,
    autocast: bool = True,
    optimizer: str = "adamw",
    rank: int | None = None,
) -> TrainingMemory:
    """Return the memory of one training step without torch.compile, which needs less: see pretraining/README.md.

    With a vocabulary much larger than the model is wide, as GPT-2's is, and more tokens than that, the worst moment
    is when all logits have their gradients.

    Args:
        config: of the model.
        batch: rows that go through the model at once: a micro-batch, where gradients are accumulated.
        length: tokens of each.
        autocast: whether products are computed in bfloat16.
        optimizer: "adamw"; or "muon" or "galore" for the matrices of the blocks, and AdamW for the rest.
        rank: of GaLore; see `default_rank`.
    """
    N = n_parameters(config)
    matrices = config.n_layers * _numbers(_block_shapes(config, config.n_experts))
    head = config.padded_vocab_size * config.d_model
    return TrainingMemory(
        weights=N * FLOAT32,
        gradients=N * FLOAT32,
        optimizer=_optimizer_numbers(config, optimizer, rank) * FLOAT32,
        bfloat16_copies=autocast * 2 * (head if config.checkpoint_activations else matrices + head),
        activations=activation_bytes(config, batch, length, autocast=autocast),
        logits=batch * length * config.vocab_size * ((2 if autocast else FLOAT32) + 2 * FLOAT32),
    )


def default_rank(config: GPTConfig) -> int:
    """Return the rank of GaLore if none is asked for: a quarter of the model's width, as in the paper."""
    return max(1, config.d_model // 4)


def galore_numbers(rows: int, columns: int, rank: int) -> int:
    """Return how many numbers GaLore keeps for a matrix: a projector from the smaller side, and two narrow moments.

    A matrix whose smaller side is no larger than the rank has nothing to gain by it, and is AdamW's.
    """
    small, large = sorted((rows, columns))
    return small * rank + 2 * rank * large if rank < small else 2 * rows * columns


def _optimizer_numbers(config: GPTConfig, optimizer: str, rank: int | None) -> int:
    """Return how many numbers an optimizer keeps; its counters of steps, one for each parameter, are left out."""
    shapes = config.n_layers * _block_shapes(config, config.n_experts)
    rest = 2 * (n_parameters(config) - _numbers(shapes))
    if optimizer == "muon":
        return rest + _numbers(shapes)
    if optimizer == "galore":
        rank = default_rank(config) if rank is None else rank
        return rest + sum(galore_numbers(rows, columns, rank) for rows, columns in shapes)
    return rest + 2 * _numbers(shapes)


def activation_bytes(config: GPTConfig, batch: int, length: int, *, autocast: bool = True) -> int:
    """Return the bytes that autograd keeps from forward to backward, weights and their copies not counted.

    Attention is taken to be a fused kernel's, which keeps no scores, unless the config says "manual". Masks of
    dropout are not counted.

    Args:
        config: of the model.
        batch: rows.
        length: tokens of each.
        autocast: whether products are computed in bfloat16; the residual stream stays float32.
    """
    block = batch * length * _block_activations(config, length, autocast)
    if config.checkpoint_activations:
        block = batch * length * FLOAT32 * config.d_model  # what enters it
    elif config.kernel == "manual":
        block += length * length  # the mask, a byte for each score of a head
    return config.n_layers * block + batch * length * _head_activations(config, autocast)


def _head_activations(config: GPTConfig, autocast: bool) -> int:
    """Return the bytes per token after the last block.

    They hold what enters the norm, its mean and spread, what leaves it, all log probabilities, token and target.
    """
    C = config.d_model
    narrow = 2 if autocast else FLOAT32
    return FLOAT32 * (C + 2) + narrow * C + FLOAT32 * config.vocab_size + 2 * INT64


def _block_activations(config: GPTConfig, length: int, autocast: bool) -> int:
    """Return the bytes per token of a block: what enters each norm, its mean and spread, what enters each product."""
    C = config.d_model
    narrow = 2 if autocast else FLOAT32
    residual = FLOAT32 * 2 * (C + 2)
    feed_forward = narrow * (C + 4 * C + 4 * C)  # before expanding, before GELU, after
    if config.n_experts:  # of each expert that is asked, with its answer, plain and weighted; what enters the router
        feed_forward = config.n_active_experts * (feed_forward + narrow * C + FLOAT32 * C) + narrow * C
    # autocast makes a copy of what enters for each of the first projections
    entering = {"mha": 1, "mla": 2}.get(config.attention, 3) if autocast else 1
    return residual + narrow * entering * C + _attention_activations(config, length, autocast) + feed_forward


def _attention_activations(config: GPTConfig, length: int, autocast: bool) -> int:
    """Return the bytes per token between the first projections and the last: queries, keys, values, output, scores."""
    H, G, D = _heads(config)
    narrow = 2 if autocast else FLOAT32
    scores = H * FLOAT32  # the logarithm of each query's sum
    if config.kernel == "manual":  # weights in float32, and rounded for the product with the values
        scores = H * length * (FLOAT32 + (narrow if autocast else 0))
    if config.attention != "mla":
        rotated = (H + G) * D if config.position == "rope" and config.attention == "mha" else 0
        return scores + narrow * (H * D + 2 * G * D + H * D + rotated)
    P = _rotary(config)
    latents = [config.latent_dim] + ([] if config.query_latent_dim is None else [config.query_latent_dim])
    # what enters a latent's norm, its spread, what leaves it
    normed = sum(FLOAT32 * (n + 1) * config.latent_norm + narrow * n for n in latents)
    # with rotary channels, fused kernels have values as wide as keys, and their output is cut
    heads = 4 * H * D if not P else 4 * H * (D + P) + H * D
    return scores + normed + narrow * heads
