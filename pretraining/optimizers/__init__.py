"""The optimizers of a GPT, and which of its parameters each one moves."""

from typing import Literal

import torch

from gpt_model import GPT
from gpt_model.costs import default_rank
from pretraining.optimizers.galore import GaLore
from pretraining.optimizers.muon import Muon

__all__ = ["GaLore", "Muon", "make_optimizers"]

BETAS = (0.9, 0.95)  # the second is 0.95 instead of 0.999: usual for language models, steadier after a jump in the loss


def make_optimizers(
    model: GPT,
    name: Literal["adamw", "muon", "galore"],
    *,
    lr: float,
    matrix_lr: float,
    weight_decay: float,
    bfloat16: bool,
    galore_rank: int | None = None,
    galore_every: int = 200,
    galore_scale: float = 0.25,
) -> list[torch.optim.Optimizer]:
    """Return AdamW for everything; or Muon or GaLore for the matrices of the blocks, and AdamW for the rest.

    Weight decay pulls matrices only: a bias or the gain of a norm has no reason to be near zero. Frozen parameters are
    left out.

    Args:
        model: the model whose parameters they move.
        name: "adamw", "muon" or "galore".
        lr: the peak learning rate of AdamW, and of GaLore.
        matrix_lr: the peak learning rate of Muon.
        weight_decay: the pull of all of them toward zero.
        bfloat16: whether Muon may compute in bfloat16.
        galore_rank: directions that GaLore keeps of each gradient; by default a quarter of the model's width. Matrices
            whose smaller side is no larger have nothing to gain by it, and stay with AdamW.
        galore_every: steps between two choices of these directions.
        galore_scale: share of its steps that GaLore takes.
    """
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2 and parameter.requires_grad]
    rank = default_rank(model.config) if galore_rank is None else galore_rank
    if name == "galore":
        matrices = [matrix for matrix in matrices if min(matrix.shape) > rank]
    elif name == "adamw":
        matrices = []
    apart = set(matrices)
    by_adamw = [parameter for parameter in model.parameters() if parameter not in apart and parameter.requires_grad]
    groups = [
        {"params": [p for p in by_adamw if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in by_adamw if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)]
    if matrices and name == "muon":
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        optimizers.append(Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, dtype=dtype))
    elif matrices:
        settings = {"rank": rank, "every": galore_every, "scale": galore_scale}
        optimizers.append(GaLore(matrices, lr=lr, betas=BETAS, weight_decay=weight_decay, **settings))
    return optimizers
