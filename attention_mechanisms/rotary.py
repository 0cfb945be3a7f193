"""Rotary position embeddings: rotate each pair of query/key channels by an angle that grows with position.

The dot product of two rotated vectors depends only on their distance, so position enters attention
without being added to the residual stream. Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.2.2.

Shapes: B batch, H heads, T time, D head size (even).
"""

import torch
from torch import Tensor

BASE = 10_000.0


def rotation(positions: Tensor, head_dim: int, base: float = BASE) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of every angle, float32: (T, D / 2) for positions (T,), (B, 1, T, D / 2) for (B, T).

    They are computed when needed and never stored in a module: a stored table would be rounded when the model is
    cast to bfloat16, and distant positions would become the same.

    Raises:
        ValueError: if head_dim is odd, since channels are rotated in pairs.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even to rotate channels in pairs, got {head_dim}")
    channels = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[..., None] * base ** (-channels / head_dim)
    if positions.dim() == 2:
        angles = angles[:, None]  # one for all heads
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[d], x[d + D/2]) of every position by that position's angles."""
    left, right = x_BHTD.chunk(2, dim=-1)  # halves, as GPT-NeoX and Llama checkpoints store them
    turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return turned.to(x_BHTD.dtype)  # the angles are float32; attention wants one dtype for q, k and v
