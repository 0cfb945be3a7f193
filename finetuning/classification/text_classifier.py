"""A fine-tuned classifier, from its run directory: texts in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetuning.classification.batches import Cut, encode, in_order
from finetuning.classification.classifier import GPTClassifier
from gpt_model import GPT, GPTConfig
from gpt_model.model_files import check_finite, read_tensors
from gpt_model.run_directory import check_tokenizer, check_weights, load_tokenizer, read_config
from pretraining.checkpoint import WEIGHTS
from utils.files import InputError, printable
from working_with_text_data.minbpe import Tokenizer

KEY = "classifier"  # of config.json


@dataclass(frozen=True)
class TextClassifier:
    """A model, and what is needed to use it."""

    model: GPTClassifier
    tokenizer: Tokenizer
    names: tuple[str, ...]
    """What the classes are called."""
    most_tokens: int
    cut: Cut

    @classmethod
    def from_run(cls, run: Path, weights: str = WEIGHTS) -> TextClassifier:
        """Return the classifier of a run directory, in evaluation mode, on the CPU.

        Raises:
            InputError: if the run is not a classifier's, something is missing or damaged, or the weights are those of
                another model, such as one for another number of classes.
        """
        if not (run / "config.json").exists():
            raise InputError(f"{run} holds no classifier: python -m finetuning.classification.train makes one")
        config = read_config(run)
        facts = facts_of(config, run)
        try:
            gpt_config = GPTConfig.from_dict(config["model"])
        except InputError as error:
            raise InputError(f"{run / 'config.json'}: {error}") from error
        tokenizer = load_tokenizer(run)
        check_tokenizer(gpt_config, tokenizer, run)
        tensors = read_tensors(run / weights)
        if gpt_config.n_layers > len(tensors):
            raise InputError(f"{run / weights} holds another model's weights: it has {len(tensors):,} tensors")
        with torch.device("meta"):  # names and shapes alone; the tensors themselves become the model's
            model = GPTClassifier(GPT(gpt_config), len(facts["classes"]), pool=facts["pool"])
        check_weights(model, tensors, run / weights)
        for name, tensor in tensors.items():
            check_finite(tensor, name, run / weights)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        return cls(model.eval(), tokenizer, tuple(facts["classes"]), facts["most_tokens"], facts["cut"])

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of texts, cut to what the model reads.

        Raises:
            InputError: if a text is empty; the message has its number, from 1 on.
        """
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise InputError(f"text {number:,} is empty: there is nothing to classify")
        return [encode(self.tokenizer, text, self.most_tokens, self.cut) for text in texts]

    def probabilities(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Return the probability of each class for each text, (N, K), whatever the batch size.

        Raises:
            InputError: if a text is empty.
        """
        return self.of_ids(self.encode(texts), batch_size)

    @torch.inference_mode()
    def of_ids(self, rows: Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """Return the probabilities (N, K) for texts that are encoded already."""
        device = next(self.model.parameters()).device
        result_NK = np.empty((len(rows), len(self.names)))
        for chosen, ids_BT, lengths_B in in_order(rows, batch_size):
            logits_BK = self.model(ids_BT.to(device), lengths_B.to(device))
            result_NK[chosen] = logits_BK.double().softmax(1).cpu().numpy()
        return result_NK


def facts_of(config: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return what a run's config.json says of its classifier: classes, pool, most_tokens and cut.

    Raises:
        InputError: if the run is not a classifier's, or what it says is damaged.
    """
    facts = config.get(KEY)
    if facts is None:
        raise InputError(f"{run} is a language model, not a classifier: python -m finetuning.classification.train")
    known = {"classes": list, "pool": str, "most_tokens": int, "cut": str}
    sound = isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in known.items())
    sound = sound and len(facts["classes"]) >= 2 and all(isinstance(name, str) for name in facts["classes"])
    if not sound or facts["most_tokens"] < 1 or facts["cut"] not in Cut.__args__:
        raise InputError(f"{run / 'config.json'} is damaged: '{KEY}' must name classes, pool, most_tokens and cut")
    return facts


def numbers_of(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return the numbers of classes that are given by name.

    Raises:
        InputError: for a name that the classifier has not seen.
    """
    if unseen := set(labels) - set(names):
        raise InputError(f"the classifier has no class {printable(min(unseen))!r}: it knows {', '.join(names)}")
    return np.array([names.index(label) for label in labels])
