"""The feed-forward layer: what happens to each position on its own, between two rounds of attention.

    x (C) -> expand (4 C) -> GELU -> out (C)

Two thirds of a block's parameters are here. GELU (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415,
section 2) multiplies x by the share of a normal distribution that lies below x; GPT-2 was trained with the
approximation by tanh that the section gives, so its weights want that one.

Shapes: B batch, T time, C model width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.config import GPTConfig


class FeedForward(nn.Module):
    """Widen four times, apply the non-linearity, narrow: (..., C) to (..., C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.d_model, 4 * config.d_model, bias=config.bias)
        self.out = nn.Linear(4 * config.d_model, config.d_model, bias=config.bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.out(F.gelu(self.expand(x_BTC), approximate="tanh"))
