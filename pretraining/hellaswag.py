"""HellaSwag: which of four endings does a model find likeliest? A test of common sense that small models learn slowly.

    python -m pretraining.hellaswag --run runs/mine --data hellaswag_val.jsonl
    python -m pretraining.hellaswag --pretrained gpt2 --data hellaswag_val.jsonl

Zellers et al. 2019, https://arxiv.org/abs/1905.07830. Every example is the beginning of a description, with one ending
that a person wrote and three that a language model made up, so chance is right in 25% of them. Nothing is generated and
no letter is chosen: the endings are scored as text, as in Karpathy's build-nanogpt and llm.c, to the token.

- The context is the field "ctx" as it is; an ending is encoded by itself, behind a space.
- `acc` takes the ending with the lowest loss, summed over its tokens. The longer an ending, the more it has to pay.
- `acc_norm` takes the one with the lowest mean loss per token. It is the number that build-nanogpt and llm.c report.

EleutherAI's lm-evaluation-harness reports other numbers under the same names. Its context begins with the activity's
label, has the field "ctx_b" capitalised, and loses WikiHow's marks, such as [step]. Its acc takes the lowest sum, too;
its acc_norm divides the sum by the characters of the ending, not by its tokens. Compare like with like.

Shapes: R rows, one per ending; T time.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gpt_model import GPT
from gpt_model.run_directory import load
from pretraining.engine.callbacks import Callback
from pretraining.engine.engine import Engine
from pretraining.engine.world import World
from pretraining.evaluate import NOT_SCORED, padded, token_losses
from utils.files import InputError, refuse_lfs_pointer, write_atomically
from utils.hardware import pick_device
from utils.ranges import Count, check_ranges
from working_with_text_data import json_lines
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.minbpe.special_tokens import check_surrogates

log = logging.getLogger(__name__)

SOURCE = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
ALONE = World(torch.device("cpu"))


@dataclass(frozen=True)
class Config:
    """Let a model choose among HellaSwag's endings, and say how often it is right."""

    data: Path
    """hellaswag_val.jsonl, from the folder data of https://github.com/rowanz/hellaswag; or compressed, as .jsonl.gz."""
    run: Path | None = None
    """The run directory that a trainer wrote."""
    pretrained: str | None = None
    """Instead of a run: gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder in Hugging Face layout."""
    weights: str = "model.safetensors"
    """Which weights of the run: the last, or an earlier snapshot such as snapshots/step_000100.safetensors."""
    limit: Count | None = None
    """Take only as many examples, spread evenly over the file; None means all."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Example:
    """The beginning of a description, and how it might go on."""

    ctx: str
    endings: tuple[str, ...]
    label: int
    """Which of the endings a person wrote."""


@dataclass(frozen=True)
class Score:
    """How often a model chose the right ending."""

    n_examples: int
    n_right: int
    """By the sum of the losses."""
    n_right_norm: int
    """By their mean."""
    n_cut: int
    """Examples that were longer than the model's context, and lost tokens from the left."""

    @property
    def acc(self) -> float:
        """The share of examples in which the right ending has the lowest loss, summed over its tokens."""
        return self.n_right / self.n_examples

    @property
    def acc_norm(self) -> float:
        """The share of examples in which the right ending has the lowest mean loss per token."""
        return self.n_right_norm / self.n_examples


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a file in the form of the original repository: JSON lines, compressed if named .gz.

    Raises:
        InputError: if there is no such file, or none in it; for the first line that holds no example, which is named.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: HellaSwag's is at {SOURCE}")
    refuse_lfs_pointer(path)
    examples = [_example(json_lines.parse(line), line.where) for line in json_lines.read_lines(path)]
    if not examples:
        raise InputError(f"{path} is empty: HellaSwag's examples are at {SOURCE}")
    return examples


def _example(content: Any, where: str) -> Example:
    if not isinstance(content, dict):
        raise InputError(f"{where} is not an object with ctx, endings and label")
    ctx, endings, label = (content.get(name) for name in ("ctx", "endings", "label"))
    if not _is_text(ctx):
        raise InputError(f"{where} has no text as ctx")
    if not isinstance(endings, list) or len(endings) < 2 or not all(map(_is_text, endings)):
        raise InputError(f"{where} has no list of two or more texts as endings")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(endings):
        raise InputError(f"{where} has no number from 0 to {len(endings) - 1} as label; HellaSwag's test set has none")
    for text in (ctx, *endings):
        check_surrogates(text, where)
    return Example(ctx, tuple(endings), label)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def spread(examples: Sequence[Example], n: int) -> list[Example]:
    """Return n examples, or all if there are fewer, spread evenly: the file has those of one source first."""
    return [examples[i] for i in np.linspace(0, len(examples) - 1, min(n, len(examples))).astype(int)]


@dataclass(frozen=True)
class _Rows:
    """An example's endings in tokens, each behind the context: inputs and targets of (T,) as in `evaluate.py`."""

    rows: list[tuple[np.ndarray, np.ndarray]]
    label: int
    cut: bool

    @property
    def length(self) -> int:
        return max(len(inputs) for inputs, _ in self.rows)


def _encode(example: Example, tokenizer: Tokenizer, context: int) -> _Rows:
    """Return the rows of an example; what does not fit into the context is cut off on the left.

    Only a context shorter than an ending loses tokens that would be scored.
    """
    ctx_ids = tokenizer.encode_ordinary(example.ctx)
    rows = []
    cut = False
    for ending in example.endings:
        ending_ids = tokenizer.encode_ordinary(f" {ending}")
        ids = np.array(ctx_ids + ending_ids, np.int64)
        cut |= len(ids) > context + 1  # the last token is guessed, but never read
        kept = ids[-context - 1 :]
        targets = kept[1:].copy()
        targets[: -len(ending_ids)] = NOT_SCORED
        rows.append((kept[:-1], targets))
    return _Rows(rows, example.label, cut)


@torch.no_grad()
def score_examples(
    model: GPT,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int = 8,
    *,
    world: World = ALONE,
    progress: bool = False,
) -> Score:
    """Return how often a model chooses the right ending; see the top of this file for how it chooses.

    Args:
        model: in evaluation mode.
        tokenizer: the one that the model was trained with.
        examples: at least one; the same in every process.
        batch_size: examples whose endings go through the model together, filled up on the right to the longest.
        world: processes that share the examples; each returns what all found. Each takes the same number of passes,
            as a model that is sharded over them needs.
        progress: show a progress bar.
    """
    mine = examples[world.rank :: world.size]
    share = math.ceil(len(examples) / world.size)
    taken = [*mine, *examples[: share - len(mine)]]  # a repeated one keeps a process with fewer in step; see `counts`
    encoded = [_encode(example, tokenizer, model.config.context_length) for example in taken]
    longest_first = sorted(range(share), key=lambda index: -encoded[index].length)
    counts = torch.zeros(3, dtype=torch.long)  # right, right by the mean, cut
    with tqdm(total=share, desc="scoring", unit="example", disable=not progress, leave=False) as bar:
        for start in range(0, share, batch_size):
            batch = longest_first[start : start + batch_size]
            found = _judge(model, [encoded[index] for index in batch])
            counts += sum(one for index, one in zip(batch, found, strict=True) if index < len(mine))
            bar.update(len(batch))
    return Score(len(examples), *world.sum(counts).tolist())


def _judge(model: GPT, examples: Sequence[_Rows]) -> list[torch.Tensor]:
    """Return of each example, as 0 or 1, whether the sum and the mean are right, and whether it was cut: (3,) each."""
    inputs, targets = padded([row for example in examples for row in example.rows])
    sums_R = token_losses(model, inputs, targets).double().sum(1).cpu()
    means_R = sums_R / torch.from_numpy(targets != NOT_SCORED).sum(1)
    n_rows = [len(example.rows) for example in examples]
    return [
        torch.tensor([int(sums.argmin()) == example.label, int(means.argmin()) == example.label, example.cut]).long()
        for example, sums, means in zip(examples, sums_R.split(n_rows), means_R.split(n_rows), strict=True)
    ]


class HellaSwag(Callback):
    """Add "hellaswag" and "hellaswag_norm" to an evaluation's measures: the shares that `acc` and `acc_norm` count.

    Args:
        examples: which the processes share.
        tokenizer: the model's.
    """

    def __init__(self, examples: Sequence[Example], tokenizer: Tokenizer) -> None:
        self.examples = examples
        self.tokenizer = tokenizer

    def after_evaluation(self, engine: Engine, measures: dict[str, float]) -> None:
        """Let the model choose."""
        with engine.evaluating():
            score = score_examples(engine.model, self.tokenizer, self.examples, world=engine.world)
        measures["hellaswag"] = score.acc
        measures["hellaswag_norm"] = score.acc_norm


def main(config: Config) -> Score:
    """Score and print; store the result of a run as `hellaswag.json` in its directory.

    Raises:
        InputError: for a model or data that cannot be used.
        OSError: if the result cannot be stored, after it was printed.
    """
    device = pick_device(config.device)
    examples = read_examples(config.data)
    examples = examples if config.limit is None else spread(examples, config.limit)
    model, tokenizer = load(config.run, config.pretrained, config.weights)
    score = score_examples(model.to(device), tokenizer, examples, progress=True)
    log.info(
        "%s: acc %.4f, acc_norm %.4f (%s examples; chance is 0.25)",
        config.pretrained or config.run / config.weights, score.acc, score.acc_norm, f"{score.n_examples:,}",
    )  # fmt: skip
    if score.n_cut:
        log.info(
            "%s of them were longer than the context of %s tokens and lost the start of it",
            f"{score.n_cut:,}", f"{model.config.context_length:,}",
        )  # fmt: skip
    if config.run is not None:
        values = {**asdict(score), "acc": score.acc, "acc_norm": score.acc_norm, "weights": config.weights}
        with write_atomically(config.run / "hellaswag.json") as file:
            file.write(json.dumps(values, indent=1).encode())
    return score


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
