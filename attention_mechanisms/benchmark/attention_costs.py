"""What attention must compute, read and hold, by formula: with these, speeds become shares of measured peaks.

A product of (m, k) and (k, n) counts 2 m k n operations. Softmax and the like count nothing, as is the custom, and
neither does what a mask hides: causal attention counts half of T S scores. Bytes are those that cannot be avoided:
each input is read once and each output written once. Whatever computes or moves more shows a smaller share.

Shapes: B batch, H query heads, G key/value heads, T query length, S key length, D head size, E value size,
C model width, R latent size.
"""

from dataclasses import dataclass

import torch
from torch import nn

from attention_mechanisms.latent import MultiHeadLatentAttention
from attention_mechanisms.multi_head import MultiHeadAttention
from attention_mechanisms.sliding_window import SlidingWindowAttention

HEAD_DIM = 64
Layer = MultiHeadAttention | MultiHeadLatentAttention

# Backward computes the scores anew and then four products of their size, where forward had two (Dao et al. 2022,
# "FlashAttention", https://arxiv.org/abs/2205.14135, appendix B.4); for a matrix it has two instead of one.
ATTENTION_TRAINING = 3.5
MATRIX_TRAINING = 3
# Forward reads q, k, v and writes y; backward reads these and dy, and writes dq, dk, dv: 12 tensors instead of 4.
BYTES_TRAINING = 3


@dataclass(frozen=True)
class Shape:
    """The input of attention: `batch` rows of `length` tokens, `d_model` numbers each, in heads of 64."""

    length: int
    d_model: int
    batch: int

    @property
    def n_heads(self) -> int:
        """The number of heads of 64 channels."""
        return self.d_model // HEAD_DIM

    @property
    def tokens(self) -> int:
        """The tokens of all rows."""
        return self.batch * self.length


@dataclass(frozen=True)
class Cost:
    """What one call of a kernel or a layer costs."""

    flops: float
    """Operations that are needed."""
    nbytes: float
    """Bytes that must be read and written."""
    memory: float
    """Bytes held at once beyond the inputs, roughly."""
    wasted_flops: float = 0.0
    """Further operations, on what the mask hides."""
    stored: float = 0.0
    """Further bytes: scores that are written, and read again."""

    def least_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Return how long it takes on a device that always works at its peaks."""
        return (self.flops + self.wasted_flops) / flops_per_second + (self.nbytes + self.stored) / bytes_per_second


def visible_pairs(query_length: int, key_length: int, window: int | None = None) -> int:
    """Count the scores that a causal mask leaves: S for a single query, T (T + 1) / 2 for a whole text."""
    T, S = query_length, key_length
    reach = min(window or S, S)
    first = S - T + 1  # keys that the first query could see
    growing = max(0, min(T, reach - first))  # queries that see fewer keys than the window has
    return growing * first + growing * (growing - 1) // 2 + (T - growing) * reach


def attention_flops(B: int, H: int, pairs: int, D: int, E: int) -> int:
    """Count the operations of scores and weighted means: 2 B H (D + E) for each pair of a query and a key it sees."""
    return 2 * B * H * pairs * (D + E)


def matrix_flops(layer: nn.Module, tokens: int) -> int:
    """Count the operations of a layer's matrices: each weight is multiplied and added once per token."""
    return 2 * tokens * sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2)


def kernel_cost(kernel: str, shape: Shape, dtype: torch.dtype, training: bool) -> Cost:
    """Return the cost of causal attention by one of the kernels.

    Args:
        kernel: "manual", or any other name for a kernel that does not store the scores.
        shape: of the input.
        dtype: of the input.
        training: whether the backward pass counts too.
    """
    B, H, T, D = shape.batch, shape.n_heads, shape.length, HEAD_DIM
    tensor = B * H * T * D * dtype.itemsize
    flops = attention_flops(B, H, visible_pairs(T, T), D, D) * (ATTENTION_TRAINING if training else 1)
    nbytes = 4 * tensor * (BYTES_TRAINING if training else 1)
    memory = tensor * (5 if training else 1)  # y; and dq, dk, dv and one more
    if kernel != "manual":
        return Cost(flops, nbytes, memory)
    # scores, masked scores and the softmax, which is float32 before it is rounded to less
    scores = B * H * T * T * (2 * dtype.itemsize + 4 + (dtype.itemsize if dtype.itemsize < 4 else 0))
    return Cost(flops, nbytes, memory + scores, wasted_flops=flops, stored=2 * scores * (3 if training else 1))


def layer_cost(layer: Layer, shape: Shape, dtype: torch.dtype, training: bool) -> Cost:
    """Return the cost of a whole layer, projections included, by a kernel that does not store the scores.

    Args:
        layer: its weights count as they are.
        shape: of the input.
        dtype: of the input.
        training: whether the backward pass counts too.
    """
    B, H, T, D = shape.batch, layer.n_heads, shape.length, layer.head_dim
    window = layer.window_size if isinstance(layer, SlidingWindowAttention) else None
    rotary = layer.rope_dim if isinstance(layer, MultiHeadLatentAttention) else 0
    attention = attention_flops(B, H, visible_pairs(T, T, window), D + rotary, D)
    matrices = matrix_flops(layer, shape.tokens)
    tensor = shape.tokens * shape.d_model * dtype.itemsize
    weights = sum(weight.nbytes for weight in layer.parameters())
    nbytes = 2 * tensor + weights  # x, the output
    if not training:
        return Cost(attention + matrices, nbytes, memory=6 * tensor)
    flops = ATTENTION_TRAINING * attention + MATRIX_TRAINING * matrices
    return Cost(flops, BYTES_TRAINING * nbytes, memory=12 * tensor + weights)


def decoding_flops(layer: Layer, batch: int, key_length: int) -> int:
    """Count the operations of one new token per row against a cache; `key_length` includes the new token.

    Latent attention's naive form makes all keys and values anew; absorbed, each head's query looks at the latents.
    """
    B, H, S, D = batch, layer.n_heads, key_length, layer.head_dim
    matrices = matrix_flops(layer, B)
    if not isinstance(layer, MultiHeadLatentAttention):
        seen = min(S, layer.window_size) if isinstance(layer, SlidingWindowAttention) else S
        return matrices + attention_flops(B, H, seen, D, D)
    R, P = layer.latent_dim, layer.rope_dim
    if layer.form == "absorbed":  # half of `up` is multiplied with the queries, half with what they gathered
        return matrices + attention_flops(B, H, S, R + P, R)
    return matrices + matrix_flops(layer.up, B * (S - 1)) + attention_flops(B, H, S, D + P, D)


def decoding_bytes(layers: list[Layer], cached_bytes: int) -> int:
    """Count the bytes that a step reads: every weight once, and every number that is remembered once."""
    return cached_bytes + sum(weight.nbytes for layer in layers for weight in layer.parameters())
