"""From a language model to a classifier: the vector of the last real token, and a small network on top.

    The film was a joy . <pad> <pad>        ids, padded to the longest row
     |   |    |  |  |  |
    [          GPT           ]              each position sees itself and what stands before it ...
                       |
                  [  head  ] --> logits     ... so only the last real one has seen the whole text

A model for both directions, such as BERT, is read at its first position, which there sees all. In a causal model the
first position sees the first token and nothing else; a padding token at the end has seen the text, and then padding,
which it never learned to read. Radford et al. 2018, "Improving language understanding by generative pre-training",
section 3.2.

Shapes: B batch, T time, C model width, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt_model import GPT, GPTConfig
from pretraining.optimizers import BETAS

Pool = Literal["last", "mean", "first"]


class GPTClassifier(nn.Module):
    """A GPT of any kind whose last real token says what kind of text it has read.

    Args:
        gpt: the model; it is kept, not copied.
        n_classes: K.
        pool: which vector the head reads: of the last real token, the mean over all real ones, or, to see that it
            does not work, of the first.
        dropout: of what the head reads, and of what its first layer gives.
    """

    def __init__(self, gpt: GPT, n_classes: int, *, pool: Pool = "last", dropout: float = 0.1) -> None:
        super().__init__()
        self.gpt = gpt
        self.pool = pool
        width = gpt.config.d_model
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, n_classes)
        )

    @property
    def config(self) -> GPTConfig:
        """The GPT's shape."""
        return self.gpt.config

    def forward(self, ids_BT: Tensor, lengths_B: Tensor, *, padded: Literal["right", "left"] = "right") -> Tensor:
        """Return the logits (B, K); neither the padding nor the other rows of the batch change those of a row.

        Args:
            ids_BT: token ids; those of padding do not matter.
            lengths_B: how many of each row are real, at least one.
            padded: on which side the padding is.
        """
        if padded == "left":
            ids_BT = padding_moved(ids_BT, lengths_B)
        return self.head(self.pooled(self.gpt.hidden(ids_BT), lengths_B))

    def pooled(self, x_BTC: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the vectors (B, C) that the head reads; padding is on the right."""
        if self.pool == "first":
            return x_BTC[:, 0]
        if self.pool == "last":
            return x_BTC[torch.arange(len(x_BTC), device=x_BTC.device), lengths_B - 1]
        real_BT1 = (torch.arange(x_BTC.shape[1], device=x_BTC.device) < lengths_B[:, None])[..., None]
        return (x_BTC * real_BT1).sum(1) / lengths_B[:, None]


def padding_moved(ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Return rows that are padded on the left as rows that are padded on the right.

    There no real token ever sees padding, and each has the position that it has without padding: no mask is needed.
    """
    T = ids_BT.shape[1]
    padding_B1 = (T - lengths_B)[:, None]
    return ids_BT.gather(1, (torch.arange(T, device=ids_BT.device) + padding_B1) % T)


def depths(model: GPTClassifier) -> dict[str, int]:
    """Return how many layers each parameter is below the head, by name: 0 for the head, most for the embeddings."""
    n_layers = len(model.gpt.blocks)

    def depth(name: str) -> int:
        part, _, rest = name.partition(".")
        if part == "head":
            return 0
        if rest.startswith("blocks."):
            return n_layers - int(rest.split(".")[1])
        return 1 if rest.startswith("final_norm") else n_layers + 1

    return {name: depth(name) for name, _ in model.named_parameters()}


def freeze_all_but(model: GPTClassifier, n_blocks: int | None) -> None:
    """Choose what learns: the head, and the last `n_blocks` blocks with the norm after them; None for everything."""
    if n_blocks is None:
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(depths(model)[name] <= n_blocks)


def make_optimizers(model: GPTClassifier, *, lr: float, layer_decay: float, weight_decay: float) -> list[Optimizer]:
    """Return AdamW with a lower learning rate for each layer further down.

    Low layers know the language, which stays as it is; high ones know how to guess the next token, which is no longer
    asked. Howard & Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.2; the factor of each layer is that of the
    layer above it times `layer_decay`, as in Clark et al. 2020, https://arxiv.org/abs/2003.10555.

    Args:
        model: frozen parameters are left out.
        lr: of the head.
        layer_decay: 1 for the same learning rate everywhere.
        weight_decay: pull of matrices toward zero.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    below = depths(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((below[name], parameter.ndim == 2), []).append(parameter)
    rows = [
        {
            "params": parameters,
            "lr": lr * layer_decay**depth,
            "weight_decay": weight_decay if is_matrix else 0.0,
        }
        for (depth, is_matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    return [torch.optim.AdamW(rows, betas=BETAS, fused=True)]
