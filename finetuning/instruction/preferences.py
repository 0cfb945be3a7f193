"""Direct preference optimisation (DPO): of two answers, make the one that people prefer likelier *than the other*.

    margin = [ log p(chosen) - log p_ref(chosen) ] - [ log p(rejected) - log p_ref(rejected) ]
    loss   = - log sigmoid(beta * margin)

p is the model that is trained, p_ref the one that training began with, which never changes: so its log-probabilities
are computed once, before the first step. beta says how far the model may go from it: the larger, the less.
Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, section 4.

**The chosen answer may become less likely, too**, and mostly does. The loss knows the margin alone, and two answers to
one question share most of their words: a step that makes "it is obviously joy" less likely takes "it is joy" along, as
long as the rejected one falls faster. Nobody sampled the chosen answer from the model, so nothing holds it up, either;
what both lose goes to answers that are in no pair. So both log-probabilities are logged. A chosen one that falls by
many nats says that beta is too small, or that training was too long.

Shapes: B pairs, T time.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from finetuning.instruction.conversation import Conversation
from finetuning.instruction.corpus import load_records
from finetuning.instruction.likelihood import log_likelihood
from finetuning.instruction.records import read_values, to_record
from finetuning.instruction.templates import Template
from gpt_model.gpt import NOT_COUNTED
from pretraining.engine.objective import Batch
from utils.files import InputError
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preference:
    """A question, and two answers to it."""

    question: Conversation
    """The user spoke last."""
    chosen: str
    rejected: str


@dataclass(frozen=True)
class EncodedPair:
    """Both answers as tokens, each behind the same prompt."""

    n_prompt: int
    chosen: list[int]
    rejected: list[int]


def read_preferences(path: Path) -> list[Preference]:
    """Return the pairs of a JSON list, or of JSON lines: an instruction, perhaps an input, chosen and rejected answers.

    Pairs whose answers are the same prefer nothing; they are left out, and counted in one message.

    Raises:
        InputError: if the file cannot be used; the message names the line or record, and what is wrong with it.
        OSError: if it cannot be read.
    """
    pairs = []
    for number, where, value in read_values(path):
        try:
            pairs.append(_to_preference(value))
        except InputError as error:
            raise InputError(f"{path}: {where} {number}: {error}") from error
    different = [pair for pair in pairs if pair.chosen != pair.rejected]
    if not different:
        raise InputError(f"{path} holds no pair of different answers")
    if len(different) < len(pairs):
        log.warning("%s: %s pairs of the same answer twice are left out", path, len(pairs) - len(different))
    return different


def _to_preference(value: Any) -> Preference:
    answers = {}
    for key in ("chosen", "rejected"):
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"it must be an object with the keys instruction, chosen and rejected, and has no {key}")
        record = to_record({"instruction": value.get("instruction"), "input": value.get("input"), "output": value[key]})
        if not record.is_answered:
            raise InputError(f"{key} is empty")
        answers[key] = record.response
    return Preference(record.conversation.question, **answers)


def corpus_preferences(split: Literal["train", "val"]) -> list[Preference]:
    """Return pairs made by rule of the project's own questions: the right answer, and that to another of the same kind.

    They are the same each time.
    """
    records = [record for record in load_records(split) if len(record.conversation.turns) == 2]
    others: dict[str | None, list[str]] = defaultdict(list)
    for record in records:
        others[record.category].append(record.response)
    rng = random.Random(split)
    pairs = []
    for record in records:
        wrong = sorted({answer for answer in others[record.category] if answer != record.response})
        if wrong:
            pairs.append(Preference(record.conversation.question, record.response, rng.choice(wrong)))
    return pairs


def encode_pair(pair: Preference, template: Template, tokenizer: Tokenizer, length: int) -> EncodedPair | None:
    """Return a pair as tokens; None if one of the answers leaves no room for any of the prompt.

    What is too long loses the beginning of its prompt, the same for both: else one answer would be judged by another
    question than its rival.

    Args:
        pair: what to encode.
        template: how conversations are written.
        tokenizer: with the template's tokens.
        length: tokens that the model can look at.
    """
    n_prompt = len(template.prompt(pair.question, tokenizer))
    rows = []
    for answer in (pair.chosen, pair.rejected):
        encoded = template.encode(pair.question.then("assistant", answer), tokenizer)
        end = len(encoded.ids) - encoded.supervised[::-1].index(True)  # what follows the answer's end is not its own
        rows.append(encoded.ids[:end])
    start = max(0, max(map(len, rows)) - length)
    if start >= n_prompt:
        return None
    return EncodedPair(n_prompt - start, rows[0][start:], rows[1][start:])


class Pairs(Dataset):
    """Examples of (ids (2, T), targets (2, T), reference (2,)): the chosen answer, then the rejected one.

    Args:
        encoded: the pairs.
        reference: (number of pairs, 2), the log-probabilities of the answers before training.
    """

    def __init__(self, encoded: Sequence[EncodedPair], reference: Tensor) -> None:
        self.encoded = encoded
        self.reference = reference
        self.length = max(max(len(pair.chosen), len(pair.rejected)) for pair in encoded)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        pair = self.encoded[index]
        ids = np.zeros((2, self.length), np.int64)
        targets = np.full((2, self.length), NOT_COUNTED, np.int64)
        for row, answer in enumerate((pair.chosen, pair.rejected)):
            ids[row, : len(answer)] = answer
            targets[row, pair.n_prompt - 1 : len(answer) - 1] = answer[pair.n_prompt :]
        return torch.from_numpy(ids), torch.from_numpy(targets), self.reference[index]


class DirectPreference:
    """The objective. A batch is what `Pairs` has: ids and targets (B, 2, T), reference (B, 2).

    The model must have no dropout: what is drawn at random would be taken for a change since the reference.

    Args:
        beta: how much a margin counts, per nat.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def count(self, batch: Batch) -> int:
        """Return the number of pairs."""
        return len(batch[0])

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss summed over the pairs, in nats."""
        return self._losses(*self._changes(model, batch)).sum()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean loss, and what it is made of.

        val_accuracy is the share of pairs whose chosen answer has gained on the rejected one since the reference, and
        val_chosen and val_rejected are the mean changes of their log-probabilities, in nats.
        """
        parts = [self._changes(model, batch) for batch in batches]
        chosen_N, rejected_N = (torch.cat(part) for part in zip(*parts, strict=True))
        return {
            "val_loss": self._losses(chosen_N, rejected_N).mean().item(),
            "val_accuracy": (chosen_N > rejected_N).double().mean().item(),
            "val_chosen": chosen_N.mean().item(),
            "val_rejected": rejected_N.mean().item(),
        }

    def _changes(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return by how much the log-probabilities of chosen and rejected answers have changed, each (B,)."""
        chosen_B, rejected_B = (pair_log_likelihoods(model, batch) - batch[2]).unbind(1)
        return chosen_B, rejected_B

    def _losses(self, chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
        return -F.logsigmoid(self.beta * (chosen_B - rejected_B))


def pair_log_likelihoods(model: nn.Module, batch: Batch) -> Tensor:
    """Return the log-probabilities of chosen and rejected answers, (B, 2), in nats."""
    ids_B2T, targets_B2T = batch[:2]
    return log_likelihood(model, ids_B2T.flatten(0, 1), targets_B2T.flatten(0, 1)).view(-1, 2)
