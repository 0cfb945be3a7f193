"""What a model is trained for: the part of training that differs from task to task.

An objective counts what it supervises and sums its loss over that. It never divides. The engine does, once, by the
count of all micro-batches on all processes, so that every supervised token weighs the same, wherever it stands. Taking
the mean of each micro-batch and then the mean of those is the most famous mistake of published trainers: a token in a
short row then counts more than one in a long row.

Shapes: B batch, T time.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attention_mechanisms import Mask
from gpt_model.gpt import NOT_COUNTED
from working_with_text_data.dataset import document_ids, document_positions

Batch = Any  # a tensor, or a tuple or dict of batches; the first dimension of every tensor is the example's


class Objective(Protocol):
    """What a task writes.

    `loss_sum` is compiled, and called where gradients are recorded; it must depend on its arguments alone.
    """

    def count(self, batch: Batch) -> int:
        """Return how many things the batch supervises: tokens, for a language model."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss, summed over what `count` counts, as a scalar that is zero if that is nothing."""

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return what is to be known of a model in evaluation mode, by name; "val_loss" is what callbacks look at."""


class NextToken:
    """Guess each next token: pretraining. A batch is (ids, targets), both (B, T); targets of -100 do not count.

    Args:
        n_chunks: parts whose logits are computed one after the other; see `GPT.loss_sum`.
        end_of_text: the token that documents begin with, if each is to be read by itself: a token then sees its own
            document only, and counts its position from that document's start. None: documents see one another.
    """

    def __init__(self, *, n_chunks: int = 1, end_of_text: int | None = None) -> None:
        self.n_chunks = n_chunks
        self.end_of_text = end_of_text

    def count(self, batch: Batch) -> int:
        """Return the number of targets."""
        _, targets_BT = batch
        return int((targets_BT != NOT_COUNTED).sum())

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed cross-entropy, in nats."""
        ids_BT, targets_BT = batch
        if self.end_of_text is None:
            return model.loss_sum(ids_BT, targets_BT, n_chunks=self.n_chunks)
        mask = Mask(document_ids=document_ids(ids_BT, self.end_of_text))
        positions_BT = document_positions(ids_BT, self.end_of_text)
        return model.loss_sum(ids_BT, targets_BT, mask=mask, positions=positions_BT, n_chunks=self.n_chunks)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean loss per target, in nats."""
        total, count = 0.0, 0
        for batch in batches:
            total += self.loss_sum(model, batch).item()
            count += self.count(batch)
        return {"val_loss": total / max(1, count)}
