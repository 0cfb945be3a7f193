"""The optimizers of a GPT, and which of its parameters each one moves."""

from typing import Literal

import torch

from gpt_model import GPT
from pretraining.optimizers.muon import Muon

__all__ = ["Muon", "make_optimizers"]


def make_optimizers(
    model: GPT, name: Literal["adamw", "muon"], *, lr: float, matrix_lr: float, weight_decay: float, bfloat16: bool
) -> list[torch.optim.Optimizer]:
    """Return AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.

    Weight decay pulls matrices only: a bias or the gain of a norm has no reason to be near zero.

    Args:
        model: the model whose parameters they move.
        name: "adamw" or "muon".
        lr: the peak learning rate of AdamW.
        matrix_lr: the peak learning rate of Muon.
        weight_decay: the pull of both toward zero.
        bfloat16: whether Muon may compute in bfloat16.
    """
    blocks = {parameter for parameter in model.blocks.parameters() if parameter.ndim == 2}
    by_muon = [p for p in model.parameters() if p in blocks] if name == "muon" else []
    by_adamw = [p for p in model.parameters() if name == "adamw" or p not in blocks]
    groups = [
        {"params": [p for p in by_adamw if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in by_adamw if p.ndim != 2], "weight_decay": 0.0},
    ]
    # beta2 of 0.95 instead of 0.999: the usual choice for language models, steadier after a jump in the loss
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)]
    if by_muon:
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        optimizers.append(Muon(by_muon, lr=matrix_lr, weight_decay=weight_decay, dtype=dtype))
    return optimizers
