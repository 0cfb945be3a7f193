"""Supervised fine-tuning: next-token prediction on conversations, where only the assistant's tokens count.

Conversations are short, and a row of the batch is as long as the context. So each row holds several, one behind the
other, and a mask keeps them from seeing one another; nothing is padded but the rest of a row.

    ids         <s> hi  <a> hello </a> | <s> 2+2? <a> 4  </a> | . .
    targets      -   -  hello </a>  -  |  -   -    4  </a> -  | - -         "-" does not count
    documents    0   0   0    0     0  |  1   1    1   1   1  | 2 2
    positions    0   1   2    3     4  |  0   1    2   3   4  | 0 1

The loss is summed over what counts and divided once, by the engine: a row without any answer adds zero to both.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.hooks import RemovableHandle

from attention_mechanisms import Mask
from finetuning.instruction.templates import Encoded
from gpt_model.gpt import NOT_COUNTED
from pretraining.engine.objective import Batch


@dataclass(frozen=True)
class Fitted:
    """Encoded conversations that fit into a length, and what had to be done for it."""

    kept: list[Encoded]
    n_cut: int
    """How many lost the beginning of their prompt."""
    n_dropped: int
    """How many are left out: their answers alone do not fit, or nothing of them counts."""


def fit_into(encoded: Iterable[Encoded], length: int) -> Fitted:
    """Cut what is too long at its beginning, and leave out what has nothing to learn within `length` tokens.

    No part of an answer is learned: a model that has learned from the first half of one would have learned to stop in
    the middle, and from the second half, to begin there. So an answer that is cut is only read.
    """
    kept, n_cut, n_dropped = [], 0, 0
    for each in encoded:
        start = max(0, len(each.ids) - length)
        weights = each.weights[start:]
        if start:
            whole = next((index for index, weight in enumerate(weights) if weight == 0), len(weights))
            weights = [0.0] * whole + weights[whole:]
        if any(weight > 0 for weight in weights[1:]):  # the first token has none before it to be guessed from
            kept.append(Encoded(each.ids[start:], weights))
            n_cut += start > 0
        else:
            n_dropped += 1
    return Fitted(kept, n_cut, n_dropped)


def pack(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Return which examples share a row: the longest first, each into the fullest row that has room (best fit).

    Args:
        lengths: of the examples, none above `length`.
        length: of a row.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows with that much room left
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        room = next((room for room in range(lengths[index], length + 1) if by_room[room]), None)
        if room is None:
            rows.append([])
            by_room[length].append(len(rows) - 1)
            room = length
        row = by_room[room].pop()
        rows[row].append(index)
        by_room[room - lengths[index]].append(row)
    return rows


class PackedConversations(Dataset):
    """Rows of several conversations: ids, targets, documents, positions (T,), int64, and weights (T,), float32.

    Args:
        encoded: conversations of at most `length` tokens.
        length: T.
    """

    def __init__(self, encoded: Sequence[Encoded], length: int) -> None:
        self.encoded = encoded
        self.length = length
        self.rows = pack([len(each.ids) for each in encoded], length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        ids, documents, positions = np.zeros((3, self.length), np.int64)
        targets = np.full(self.length, NOT_COUNTED, np.int64)
        weights = np.zeros(self.length, np.float32)
        start = 0
        for document, each in enumerate(self.encoded[example] for example in self.rows[index]):
            end = start + len(each.ids)
            ids[start:end] = each.ids
            weights[start : end - 1] = each.weights[1:]
            targets[start : end - 1] = np.where(np.array(each.weights[1:]) > 0, each.ids[1:], NOT_COUNTED)
            documents[start:end] = document
            positions[start:end] = np.arange(len(each.ids))
            start = end
        documents[start:] = len(self.rows[index])  # what fills the row up
        positions[start:] = np.arange(self.length - start)
        return tuple(torch.from_numpy(array) for array in (ids, targets, documents, positions, weights))


class Answers:
    """The objective: guess each next token of the answers. A batch is what `PackedConversations` has, each (B, T).

    Args:
        weighted: whether answers have weights other than 0 and 1. The count stays the number of tokens, so that an
            answer of weight 0.5 moves the model half as far.
    """

    def __init__(self, *, weighted: bool = False) -> None:
        self.weighted = weighted

    def count(self, batch: Batch) -> int:
        """Return the number of tokens that are learned."""
        return int((batch[1] != NOT_COUNTED).sum())

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed cross-entropy of the answers, in nats, each token times its weight."""
        ids_BT, targets_BT, documents_BT, positions_BT, weights_BT = batch
        where = {"mask": Mask(document_ids=documents_BT), "positions": positions_BT}
        if not self.weighted:
            return model.loss_sum(ids_BT, targets_BT, **where)
        logits_BTV, _ = model(ids_BT, **where)
        logits_NV = logits_BTV.flatten(0, 1).to(torch.promote_types(logits_BTV.dtype, torch.float32))
        losses_N = F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=NOT_COUNTED, reduction="none")
        return (losses_N * weights_BT.flatten()).sum()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean loss per token of an answer, in nats, and e to its power, the perplexity."""
        total, count = 0.0, 0
        for batch in batches:
            total += self.loss_sum(model, batch).item()
            count += self.count(batch)
        loss = total / max(1, count)
        return {"val_loss": loss, "val_perplexity": math.exp(min(loss, 700))}


def add_noise(model: nn.Module, alpha: float) -> RemovableHandle:
    """Add noise to the embeddings while the model trains (NEFTune), which keeps it from learning answers by heart.

    Jain et al. 2023, https://arxiv.org/abs/2310.05914: uniform in +- alpha / sqrt(T C), with T the length of a row. The
    output layer shares the embedding's weight, but not its forward pass, so it is not touched.

    Args:
        model: a GPT.
        alpha: 5 to 15 in the paper.

    Returns:
        what removes it.
    """

    def noisy(module: nn.Module, arguments: tuple[Tensor], embedded_BTC: Tensor) -> Tensor:
        if not model.training:
            return embedded_BTC
        most = alpha / math.sqrt(embedded_BTC.shape[-2] * embedded_BTC.shape[-1])
        return embedded_BTC + torch.empty_like(embedded_BTC).uniform_(-most, most)

    return model.token_embedding.register_forward_hook(noisy)
