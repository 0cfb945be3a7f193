"""How well a model predicts text it has never seen, in a unit that does not depend on the tokenizer.

    python -m pretraining.evaluate --run runs/demo --data runs/demo-data

A loss per token cannot be compared between tokenizers: longer tokens are harder to guess. Bits per
byte can: the bits that an arithmetic coder would need with the model's probabilities, divided by the
UTF-8 bytes of the text. That makes a language model comparable with gzip, bzip2 and xz as well
(Shannon 1951, "Prediction and Entropy of Printed English"; Delétang et al. 2023,
https://arxiv.org/abs/2309.10668).

Shapes: B batch, T time, V vocabulary.
"""

import bz2
import gzip
import json
import logging
import lzma
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gpt_model import GPT
from gpt_model.run_directory import check_tokenizer, load_tokenizer
from pretraining.data_folder import check_same_tokenizer, open_data_tokenizer
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
    """Score a trained model on held-out text, in nats per token and bits per byte."""

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
        """The mean loss, in nats per token."""
        return self.nats / self.n_tokens

    @property
    def bits_per_byte(self) -> float:
        """What the text would take if it were coded with the model's probabilities."""
        return self.nats / math.log(2) / self.n_bytes


def read_split(folder: Path, split: str) -> np.ndarray:
    """Return all tokens of a split, one shard after the other.

    Raises:
        InputError: if there are no shards, or one is damaged.
    """
    paths = sorted(folder.glob(f"*{split}_*.bin"))
    if not paths:
        raise InputError(f"{folder} holds no {split}_*.bin: make some with python -m working_with_text_data.prepare")
    return np.concatenate([open_shard(path) for path in paths])


def windows(document: np.ndarray, context: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield inputs and targets that score every token of a document but the first exactly once.

    Windows overlap by half: each scores what the one before it did not, so that past the first window
    every token is guessed from at least context / 2 tokens before it. The last window is moved back to
    end with the document. Targets already scored are -100. A document no longer than the context is one
    window of its own length; all others are (context,).
    """
    n_targets = len(document) - 1
    scored = 0
    while scored < n_targets:
        start = max(0, min(scored - context // 2, n_targets - context))
        targets = document[start + 1 : start + context + 1].astype(np.int64)
        inputs = document[start : start + len(targets)].astype(np.int64)
        targets[: scored - start] = NOT_SCORED
        scored = start + len(targets)
        yield inputs, targets


def batches(documents: Iterable[np.ndarray], context: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the windows of documents in batches: inputs and targets (B, T), padded to the longest of the batch.

    Args:
        documents: the longest first, so that windows of a length come together and little is padded.
        context: tokens of a window at most.
        batch_size: windows of that length in a batch; of shorter ones there are more.
    """
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for window in (window for document in documents for window in windows(document, context)):
        if rows and (len(rows) + 1) * len(rows[0][0]) > batch_size * context:
            yield padded(rows)
            rows = []
        rows.append(window)
    if rows:
        yield padded(rows)


def padded(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets of rows of any length as (B, T), filled up on the right; filling is not scored."""
    shape = len(rows), max(len(inputs) for inputs, _ in rows)
    inputs_BT, targets_BT = np.zeros(shape, np.int64), np.full(shape, NOT_SCORED)
    for row, (inputs, targets) in enumerate(rows):
        inputs_BT[row, : len(inputs)] = inputs
        targets_BT[row, : len(targets)] = targets
    return inputs_BT, targets_BT


@torch.inference_mode()
def score(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray, *, batch_size: int = 16, progress: bool = False
) -> Score:
    """Score documents, each of which begins with <|endoftext|>, every byte of them exactly once.

    Args:
        model: in evaluation mode.
        tokenizer: the one that made the tokens; without <|endoftext|> they are one document.
        tokens: documents end to end.
        batch_size: windows of the model's context that go through it at once; of shorter ones there are more.
        progress: show a progress bar.

    Raises:
        InputError: if there is nothing to score.
    """
    starts = _document_starts(tokens, tokenizer)
    lengths = np.diff(starts, append=len(tokens))
    n_scored = len(tokens) - len(starts)
    if n_scored <= 0:
        raise InputError("there are no held-out tokens to score")
    longest_first = np.argsort(-lengths, kind="stable")
    documents = (tokens[starts[i] : starts[i] + lengths[i]] for i in longest_first)
    nats = 0.0
    with tqdm(total=n_scored, desc="scoring", unit="token", disable=not progress, leave=False) as bar:
        for inputs, targets in batches(documents, model.config.context_length, batch_size):
            nats += token_losses(model, inputs, targets).double().sum().item()
            bar.update(np.count_nonzero(targets != NOT_SCORED))
    return Score(nats, n_scored, _n_bytes(tokens, tokenizer) - _n_bytes(tokens[starts], tokenizer))


def token_losses(model: GPT, inputs: np.ndarray, targets: np.ndarray) -> Tensor:
    """Return the loss of each target, (B, T), in nats; 0 where it is not scored."""
    device = model.token_embedding.weight.device
    ids_BT, targets_BT = (torch.from_numpy(part).to(device) for part in (inputs, targets))
    logits_BTV, _ = model(ids_BT)
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)  # bfloat16 is too coarse for a sum over the vocabulary
    losses = F.cross_entropy(
        logits_BTV.flatten(0, 1).to(wide), targets_BT.flatten(), ignore_index=NOT_SCORED, reduction="none"
    )
    return losses.view_as(targets_BT)


def _document_starts(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Return where documents begin: at the first token, and at each <|endoftext|>."""
    end_of_text = tokenizer.special_tokens.get(END_OF_TEXT)
    begins = np.zeros(len(tokens), bool) if end_of_text is None else tokens == end_of_text
    begins[:1] = True
    return np.flatnonzero(begins)


def _n_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """Return how many bytes tokens spell."""
    ids, counts = np.unique(tokens, return_counts=True)
    return sum(len(tokenizer.decode_bytes([i])) * n for i, n in zip(ids.tolist(), counts.tolist(), strict=True))


def compression(held_out: bytes, training: bytes) -> dict[str, dict[str, float]]:
    """Return the bits per byte of general compressors on the held-out text: alone, and when given the training text.

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
        InputError: for a run or data that cannot be used, or that do not belong together.
        OSError: if the result cannot be stored, after it was printed.
    """
    device = pick_device(config.device)
    tokens = read_split(config.data, "val")
    if not len(tokens):
        raise InputError(f"{config.data} holds no held-out tokens")
    tokenizer = load_tokenizer(config.run)
    check_same_tokenizer(config.run, config.data, open_data_tokenizer(config.data, int(tokens.max())))
    model = GPT.from_run(config.run, config.weights)
    check_tokenizer(model.config, tokenizer, config.run)
    result = score(model.to(device), tokenizer, tokens, progress=True)
    log.info(
        "%s: %.4f bits per byte, %.4f nats per token (%s bytes in %s tokens, each scored once)",
        config.run / config.weights, result.bits_per_byte, result.loss, f"{result.n_bytes:,}", f"{result.n_tokens:,}",
    )  # fmt: skip
    values = {**asdict(result), "loss": result.loss, "bits_per_byte": result.bits_per_byte, "weights": config.weights}
    with write_atomically(config.run / "evaluation.json") as file:
        file.write(json.dumps(values, indent=1).encode())
    return result


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
