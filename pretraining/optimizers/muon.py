"""Muon: steps for weight matrices in which every direction counts the same.

A gradient matrix is mostly a few large singular directions. Muon takes the momentum's nearest
semi-orthogonal matrix (all singular values about 1) instead, found by a few matrix products.
Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Only for the matrices inside the
blocks: embeddings, norms and biases have no singular directions to balance and stay with AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# The quintic x -> a x + b x^3 + c x^5, applied five times, takes singular values from (0, 1] to about
# 0.7 to 1.2. The coefficients are the post's: steepest at zero, and precise enough in bfloat16.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5

NUMBERS_AT_ONCE = 2**25  # go through as one batch: with more, temporary memory grows and time does not shrink


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return roughly the nearest semi-orthogonal matrices of a stack (N, rows, columns), by Newton-Schulz iteration.

    Args:
        matrices: one or more matrices of the same shape.
        dtype: what the products are computed in; float32 on hardware that is slow in bfloat16.
    """
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the products are smaller on the short side
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # singular values at most 1
    for _ in range(STEPS):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; weight decay apart from the gradient, as in AdamW.

    Args:
        params: matrices only.
        lr: the size of a step. Each singular value of the update is about lr * sqrt(max(1, rows / columns)).
        momentum: how slowly the mean of the gradients changes; Nesterov's form is used.
        weight_decay: share of a weight, times lr, that each step takes off.
        dtype: what the orthogonalisation is computed in.

    Raises:
        ValueError: if a parameter is not a matrix.
    """

    needs_whole_matrices = True  # so that processes cannot each update a part of one

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.orthogonalize_all = self._as_one_batch  # of matrices of one shape; processes may share this work
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim != 2:
                    raise ValueError(f"Muon is for matrices, got a parameter of shape {tuple(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for (rows, columns), alike in by_shape.items():
                count = max(1, NUMBERS_AT_ONCE // (rows * columns))
                for start in range(0, len(alike), count):
                    self._update(alike[start : start + count], **group)

    def _update(self, weights: list[Tensor], *, lr: float, momentum: float, weight_decay: float, **_: object) -> None:
        """Update matrices of one shape, which go through as one batch."""
        updates = self.orthogonalize_all([self._momentum(weight, momentum) for weight in weights])
        rows, columns = weights[0].shape
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - lr * weight_decay)
            weight.sub_(update, alpha=lr * max(1, rows / columns) ** 0.5)

    def _as_one_batch(self, matrices: list[Tensor]) -> Iterable[Tensor]:
        return orthogonalize(torch.stack(matrices), self.dtype)

    def _momentum(self, weight: Tensor, beta: float) -> Tensor:
        """Fold the gradient into its running mean; return it as one more such gradient would make it (Nesterov)."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean = state["momentum"].lerp_(weight.grad, 1 - beta)
        return weight.grad.lerp(mean, beta)
