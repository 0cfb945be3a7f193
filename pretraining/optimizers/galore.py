"""GaLore: AdamW that remembers a narrow shadow of each weight matrix's gradient.

AdamW keeps two numbers for each weight. But the gradient of a matrix lies, for the most part, in a few directions:
its leading singular vectors. GaLore takes r of them as the columns of a projector P, keeps AdamW's two moments for
P^T G alone, and brings each step back to full size. The directions change as training goes on, so every few hundred
steps P is found anew. Zhao et al. 2024, https://arxiv.org/abs/2403.03507, algorithm 2.

Finding P by a full singular value decomposition would be slow. A randomised one (Halko, Martinsson and Tropp 2009,
https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1) multiplies G by a few random vectors more than r instead.

Shapes: M the smaller side of a matrix and N the larger one, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

OVERSAMPLING = 8  # random vectors beyond the rank
POWER_ITERATIONS = 2  # each makes the leading directions stand out more


def find_projector(gradient_MN: Tensor, rank: int, seed: int) -> Tensor:
    """Return about the leading left singular vectors of a matrix, as the orthonormal columns of (M, R).

    The random vectors are drawn on the CPU, from a generator of their own: the same seed gives the same ones on every
    device and every rank, and no other random number changes.

    Args:
        gradient_MN: with M <= N. Where M is at most `OVERSAMPLING` more than the rank, the result is exact.
        rank: at most M.
        seed: of the random vectors.
    """
    wide = torch.promote_types(gradient_MN.dtype, torch.float32)  # there is no decomposition in bfloat16
    gradient_MN = gradient_MN.to(wide)
    M, N = gradient_MN.shape
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(N, min(M, rank + OVERSAMPLING), generator=generator).to(gradient_MN)
    basis, _ = torch.linalg.qr(gradient_MN @ sample)
    for _ in range(POWER_ITERATIONS):
        basis, _ = torch.linalg.qr(gradient_MN.mT @ basis)
        basis, _ = torch.linalg.qr(gradient_MN @ basis)
    # what is left to decompose has only as many rows as there are random vectors
    directions, _, _ = torch.linalg.svd(basis.mT @ gradient_MN, full_matrices=False)
    return basis @ directions[:, :rank]


class GaLore(torch.optim.Optimizer):
    """AdamW whose moments live in the space of the gradient's leading directions.

    What it keeps for a matrix is tensors alone: the projector (M, R) and two moments (R, N), where AdamW has two of
    (M, N). Every rank of a distributed training finds the same projector, since all have the same gradient.

    Args:
        params: matrices only.
        lr: the size of a step, before `scale`.
        rank: directions that are kept of each matrix; of a matrix with fewer, all.
        every: steps between two projectors of a matrix. Matrices take turns, so that no step finds many.
        scale: what steps are multiplied by once they are back at full size; weight decay is not.
        betas: how slowly the means of the gradient and of its square change.
        eps: keeps the division by the root of the latter from one by zero.
        weight_decay: share of a weight, times lr, that each step takes off.

    Raises:
        ValueError: if a parameter is not a matrix.
    """

    needs_whole_matrices = True  # so that processes cannot each update a part of one

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        *,
        rank: int,
        every: int = 200,
        scale: float = 0.25,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"rank": rank, "every": every, "scale": scale, "betas": betas, "eps": eps}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **settings})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for weight in weights:
            if weight.ndim != 2:
                raise ValueError(f"GaLore is for matrices, got a parameter of shape {tuple(weight.shape)}")
        # decides turns and seeds, and stays the same if later each process of many updates some of them only
        self.order = {weight: index for index, weight in enumerate(weights)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    gradient_MN = _lying(weight.grad)
                    self._refresh(weight, gradient_MN, group)
                    self._update(weight, gradient_MN, group)

    def _refresh(self, weight: Tensor, gradient_MN: Tensor, group: dict[str, Any]) -> None:
        """Find a projector for a matrix if it has none or it is its turn."""
        state = self.state[weight]
        index, count = self.order[weight], len(self.order)
        if not state:
            rank = min(group["rank"], len(gradient_MN))
            state["step"] = torch.tensor(0)
            state["mean"] = gradient_MN.new_zeros(rank, gradient_MN.shape[1])
            state["square"] = torch.zeros_like(state["mean"])
        step = int(state["step"])
        turn = index * group["every"] // count
        if step == 0 or step % group["every"] == turn:
            # the seed says all that decides the random vectors, so that none of it has to be saved
            projector = find_projector(gradient_MN, len(state["mean"]), seed=step * count + index)
            state["projector"] = projector.to(weight.dtype)

    def _update(self, weight: Tensor, gradient_MN: Tensor, group: dict[str, Any]) -> None:
        """Take a step of AdamW in the projected space, and bring it back; the moments stay as they are there."""
        state = self.state[weight]
        state["step"] += 1
        (beta1, beta2), lr = group["betas"], group["lr"]
        projected_RN = state["projector"].mT @ gradient_MN
        state["mean"].lerp_(projected_RN, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(projected_RN, projected_RN, value=1 - beta2)
        # both means begin at zero, and are that much too small in the first steps
        unbiased1, unbiased2 = (1 - beta ** int(state["step"]) for beta in (beta1, beta2))
        root_RN = (state["square"].sqrt() / unbiased2**0.5).add_(group["eps"])
        step_RN = torch.zeros_like(root_RN).addcdiv_(state["mean"], root_RN, value=-lr / unbiased1)
        weight.mul_(1 - lr * group["weight_decay"])
        _lying(weight).addmm_(state["projector"], step_RN, alpha=group["scale"])


def _lying(matrix: Tensor) -> Tensor:
    """Return a matrix, or its transpose where it is higher than wide: a view (M, N)."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
