"""How well a model predicts text it has never seen, in a unit that does not depend on the tokenizer.

    python -m pretraining.evaluate --run runs/demo --data runs/demo-data

A loss per token cannot be compared between tokenizers: longer tokens are harder to guess. Bits per
byte can: the bits that an arithmetic coder would need with the model's probabilities, divided by the
UTF-8 bytes of the text. That makes a language model comparable with gzip, bzip2 and xz as well
(Shannon 1951, "Prediction and Entropy of Printed English"; Delétang et al. 2023,
https://arxiv.org/abs/2309.10668).

Shapes: B batch, T time.
"""

import bz2
import gzip
import json
import logging
import lzma
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from gpt_model import GPT
from gpt_model.run_directory import load_tokenizer
from utils.files import InputError, write_atomically
from utils.hardware import pick_device
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.shards import open_shard
from working_with_text_data.train_tokenizer import END_OF_TEXT

log = logging.getLogger(__name__)

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "bzip2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}
NOT_SCORED = -100


@dataclass(frozen=True)
class Config:
    """Score a trained model on held-out text, in nats a token and bits a byte."""

    run: Path
    """The run directory that a trainer wrote."""
    data: Path
    """The folder of shards whose val_*.bin are scored."""
    weights: str = "model.safetensors"
    """Which weights of the run: the last, or an earlier snapshot such as snapshots/step_000100.safetensors."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""


PRESETS = {"demo": Config(run=Path("runs/demo"), data=Path("runs/demo-data"))}


@dataclass(frozen=True)
class Score:
    """What a model makes of a text."""

    nats: float
    """Minus the natural logarithm of the probability it gives the whole text."""
    n_tokens: int
    """Tokens scored, each once; <|endoftext|> is given, not scored."""
    n_bytes: int
    """UTF-8 bytes that these tokens spell."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.n_tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.n_bytes


def read_split(folder: Path, split: str) -> np.ndarray:
    """All tokens of a split, one shard after the other.

    Raises:
        InputError: if there are no shards, or one is damaged.
    """
    paths = sorted(folder.glob(f"*{split}_*.bin"))
    if not paths:
        raise InputError(f"{folder} holds no {split}_*.bin: make some with python -m working_with_text_data.prepare")
    return np.concatenate([open_shard(path) for path in paths])


def windows(document: np.ndarray, context: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets, each (context,), that score every token of a document but the first exactly once.

    Windows overlap by half: each scores what the one before it did not, so that past the first window
    every token is guessed from at least context / 2 tokens before it. The last window is moved back to
    end with the document. Targets already scored, and padding where a document is short, are -100.
    """
    n_targets = len(document) - 1
    padding = max(0, context - n_targets)
    scored = 0
    while scored < n_targets:
        start = max(0, min(scored - context // 2, n_targets - context))
        targets = document[start + 1 : start + context + 1].astype(np.int64)
        inputs = document[start : start + len(targets)].astype(np.int64)
        targets[: scored - start] = NOT_SCORED
        scored = start + len(targets)
        yield np.pad(inputs, (0, padding)), np.pad(targets, (0, padding), constant_values=NOT_SCORED)


@torch.inference_mode()
def score(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray, *, batch_size: int = 16, progress: bool = False
) -> Score:
    """Score documents, each of which begins with <|endoftext|>, every byte of them exactly once.

    Args:
        model: in evaluation mode.
        tokenizer: the one that made the tokens.
        tokens: documents end to end.
        batch_size: windows that go through the model at once.
        progress: show a progress bar.

    Raises:
        InputError: if there is nothing to score.
    """
    end_of_text = tokenizer.special_tokens[END_OF_TEXT]
    starts = np.flatnonzero(tokens == end_of_text).tolist()
    if not starts or starts[0] != 0:
        starts = [0, *starts]
    documents = [tokens[a:b] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    pairs = [pair for document in documents for pair in windows(document, model.config.context_length)]
    if not pairs:
        raise InputError("there are no held-out tokens to score")
    device = model.token_embedding.weight.device
    nats = 0.0
    for at in tqdm(range(0, len(pairs), batch_size), desc="scoring", unit="batch", disable=not progress, leave=False):
        inputs, targets = zip(*pairs[at : at + batch_size], strict=True)
        ids_BT, targets_BT = (torch.from_numpy(np.stack(part)).to(device) for part in (inputs, targets))
        logits_BTV, _ = model(ids_BT)
        losses = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=NOT_SCORED, reduction="none"
        )
        nats += losses.double().sum().item()
    scored = np.concatenate([document[1:] for document in documents])
    return Score(nats, len(scored), len(tokenizer.decode_bytes(scored.tolist())))


def compression(held_out: bytes, training: bytes) -> dict[str, dict[str, float]]:
    """Bits per byte of general compressors on the held-out text: alone, and when given the training text.

    Given the training text means: how much longer the compressed training text gets when the held-out
    text is put after it.
    """
    result = {}
    for name, compress in COMPRESSORS.items():
        alone, before, both = (len(compress(data)) for data in (held_out, training, training + held_out))
        result[name] = {"alone": 8 * alone / len(held_out), "given_training_text": 8 * (both - before) / len(held_out)}
    return result


def main(config: Config) -> Score:
    """Score, print and store the result as `evaluation.json` in the run directory.

    Raises:
        InputError: for a run or data that cannot be used.
    """
    model = GPT.from_run(config.run, config.weights).to(pick_device(config.device))
    result = score(model, load_tokenizer(config.run), read_split(config.data, "val"), progress=True)
    values = {**asdict(result), "loss": result.loss, "bits_per_byte": result.bits_per_byte, "weights": config.weights}
    with write_atomically(config.run / "evaluation.json") as file:
        file.write(json.dumps(values, indent=1).encode())
    log.info(
        "%s: %.4f bits a byte, %.4f nats a token (%s bytes in %s tokens, each scored once)",
        config.run / config.weights, result.bits_per_byte, result.loss, f"{result.n_bytes:,}", f"{result.n_tokens:,}",
    )  # fmt: skip
    return result


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
