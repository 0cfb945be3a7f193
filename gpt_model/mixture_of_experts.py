"""Mixture of experts: many feed-forward layers, of which each token visits only a few.

              .--> expert 1 -- x 0.7 --.
    x -> router    expert 2             + --> y        (4 experts, of which 2 are asked)
              |    expert 3             |
              '--> expert 4 -- x 0.3 --'

More parameters for the same arithmetic: a token pays for the experts it visits, not for those there are.
The router is one linear layer. It is trained with the rest, through the weights of the sum.

- The idea: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, section 2.
- Weights that are normalised over the chosen: Jiang et al. 2024 (Mixtral), https://arxiv.org/abs/2401.04088,
  section 2.1.
- A single choice, and the penalty on uneven use: Fedus et al. 2021 (Switch), https://arxiv.org/abs/2101.03961,
  sections 2.1 and 2.2. Unlike there, no expert is ever too full, and no token is dropped.

Shapes: B batch, T time, C model width, N = B T tokens, E experts, K experts per token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.config import GPTConfig
from gpt_model.feed_forward import FeedForward


class Routing(NamedTuple):
    """Where tokens go."""

    experts: Tensor
    """(N, K): those a token visits, the likeliest first."""
    weights: Tensor
    """(N, K): what their answers are multiplied by; float32 or wider."""
    probabilities: Tensor
    """(N, E): what the router thought of all of them; float32 or wider."""


class MixtureOfExperts(nn.Module):
    """A router and its experts, in the place of one `FeedForward`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_active = config.n_active_experts
        self.router = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(config.n_experts))

    def forward(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' answers (B, T, C), and how unevenly they were asked; see `imbalance`."""
        x_NC = x_BTC.flatten(0, -2)
        routing = self.route(x_NC)
        # each token's weight for each expert; 0 where it does not go
        weights_NE = torch.zeros_like(routing.probabilities).scatter(1, routing.experts, routing.weights)
        y_NC = torch.zeros_like(x_NC, dtype=weights_NE.dtype)
        for weights_N, expert in zip(weights_NE.unbind(1), self.experts, strict=True):
            if torch.compiler.is_compiling():
                # a graph cannot know how many tokens an expert will get, so each expert gets all of them
                y_NC = y_NC + weights_N[:, None] * expert(x_NC)
            else:
                rows = weights_N.nonzero()[:, 0]
                y_NC.index_add_(0, rows, weights_N[rows, None] * expert(x_NC[rows]))
        return y_NC.to(x_BTC.dtype).view_as(x_BTC), imbalance(routing)

    def route(self, x_NC: Tensor) -> Routing:
        """Choose the likeliest experts of each token, and their weights.

        Several are weighted by their probabilities among themselves, which add up to one. That would make
        the weight of a single one always 1, from which the router could learn nothing; so its weight is
        its plain probability.
        """
        logits_NE = self.router(x_NC)
        # float16 and bfloat16 are too coarse to tell close experts apart; float64 stays as it is
        wide = torch.promote_types(logits_NE.dtype, torch.float32)
        probabilities_NE = logits_NE.softmax(dim=-1, dtype=wide)
        weights_NK, experts_NK = probabilities_NE.topk(self.n_active, dim=-1)
        if self.n_active > 1:
            weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
        return Routing(experts_NK, weights_NK, probabilities_NE)


def imbalance(routing: Routing) -> Tensor:
    """Return 1 if experts are used evenly, up to E / K if always the same are: Switch, section 2.2, equation 4.

    The share of visits an expert gets, times the mean probability it is given, summed and times E. Visits
    are counted, which has no gradient; the probabilities have one, and it is largest where visits are many.
    """
    E = routing.probabilities.shape[1]
    visits_E = F.one_hot(routing.experts, E).flatten(0, 1).to(routing.probabilities.dtype).mean(dim=0)
    return E * (visits_E * routing.probabilities.mean(dim=0)).sum()
