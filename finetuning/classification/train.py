"""Turn a language model into a classifier.

    python -m finetuning.classification.train demo                          after `make demo`; some minutes on two cores
    python -m finetuning.classification.train imdb --data reviews.csv.gz    GPT-2 small on whole reviews; for a GPU

It ends with a report on test texts that it has not looked at before, beside the weights; see `report.py`. The same
command goes on with a run that was stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from finetuning.classification.attribution import explain
from finetuning.classification.augment import Method, augmented
from finetuning.classification.batches import Bucketed, Cut, in_order
from finetuning.classification.classifier import GPTClassifier, Pool, freeze_all_but, make_optimizers
from finetuning.classification.evaluation import measures
from finetuning.classification.objective import Classification, class_weights
from finetuning.classification.report import write_report
from finetuning.classification.reviews import SENTENCES, Reviews, Splits, read_reviews, split
from finetuning.classification.text_classifier import KEY, TextClassifier
from finetuning.config import FineTuning
from finetuning.run import Base, checksum, fine_tune, load_base, open_run
from gpt_model.config import Tokens
from pretraining.engine import World
from pretraining.metrics import read_metrics
from pretraining.open_run import training_in
from utils.command_line import show
from utils.extras import check_installed
from utils.files import InputError
from utils.hardware import describe
from utils.ranges import Count, Range, Share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(FineTuning):
    """Turn a language model into a classifier.

    Ctrl-C saves and stops; the same command resumes. Everything is written to one run directory.
    """

    not_the_run: ClassVar[frozenset[str]] = FineTuning.not_the_run | {"data", "copies"}  # its checksum counts

    out: Path = Path("runs/sentiment")
    """The run directory that is written. If it holds a run with the same settings, that run goes on."""
    data: Path = SENTENCES
    """A CSV file, or CSV.gz, with the columns text (or review) and label (or sentiment), UTF-8."""
    texts: Count | None = None
    """Learn from so many of the training texts only; by default from all."""
    split_seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Decides which texts train, validate and test; the same split as the baseline's with the same seed."""

    pool: Pool = "last"
    """Which vector the head reads: of the last real token, the mean over all, or, to see that it does not work, of the
    first."""
    dropout: Share = 0.1
    """Dropout in the head."""
    blocks: Annotated[int, Range(0, 1024)] | None = None
    """Blocks that learn, counted from the last; 0 for the head alone. By default everything learns."""
    layer_decay: Annotated[float, Range(0, 1, open_below=True)] = 0.9
    """The learning rate of each layer is that of the layer above it times this."""
    class_weights: bool = False
    """Have each class count the same, however many texts it has."""
    augment: tuple[Method, ...] = ()
    """Learn from changed copies of the training texts, too, one for each method: synonyms, insert, swap, delete,
    sentences, translate. The first two need WordNet, the last --translators."""
    translators: tuple[str, str] | None = None
    """Two models of `transformers`, into another language and back, such as Helsinki-NLP/opus-mt-en-de and
    Helsinki-NLP/opus-mt-de-en."""
    copies: Path = Path("runs/augmented")
    """Folder in which changed copies are kept for the next run."""
    most_tokens: Tokens | None = None
    """Tokens of a text that are read at most; by default as many as the model's context."""
    cut: Cut = "both"
    """What is kept of longer texts: their head, their tail, or a quarter from the head and the rest from the tail."""
    early_stopping: Count | None = 5
    """End the run after as many evaluations without a new lowest validation loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None and self.lora_rank is not None:
            raise InputError(f"give either --blocks {self.blocks} or --lora-rank {self.lora_rank}, not both")


PRESETS = {
    "demo": Config(base=Path("runs/demo"), epochs=2, batch_size=32, lr=5e-4, most_tokens=128),
    "imdb": Config(
        pretrained="gpt2", out=Path("runs/imdb"), epochs=3, batch_size=32, micro_batch_size=8, lr=1e-4, most_tokens=512,
        eval_every=200, checkpoint_every=200,
    ),
}  # fmt: skip


def main(config: Config) -> bool:
    """Train from the run's newest checkpoint, or from the base. Return False if it was stopped before the last step.

    Raises:
        InputError: for data, settings, a base or a run directory that cannot be used; if another process trains in it;
            without scikit-learn.
    """
    check_installed("sklearn", "finetune", "measuring a classifier")
    with training_in(config.out, config.device) as world:
        splits = split(read_reviews(config.data), config.split_seed)
        base = load_base(config, world)
        check_fits(config, base)
        return train(config, splits, base, world)


def check_fits(config: Config, base: Base) -> None:
    """Check that the settings suit the model."""
    context, n_layers = base.model.config.context_length, base.model.config.n_layers
    if (config.most_tokens or 0) > context:
        raise InputError(f"most_tokens must be at most the model's context, {context}, got {config.most_tokens}")
    if (config.blocks or 0) > n_layers:
        raise InputError(f"blocks must be at most the model's, {n_layers}, got {config.blocks}")


def train(config: Config, splits: Splits, base: Base, world: World) -> bool:
    """Put data, objective and model together, train, and report.

    Args:
        config: what the user asked for.
        splits: the texts.
        base: what the run begins with.
        world: the processes.
    """
    most_tokens = config.most_tokens or base.model.config.context_length
    names = splits.train.names
    facts = {"classes": list(names), "pool": config.pool, "most_tokens": most_tokens, "cut": config.cut}
    world.from_main(lambda: open_run(config, base, {"sha256": checksum(config.data)}, **{KEY: facts}))
    torch.manual_seed(config.seed)  # the head is new
    classifier = TextClassifier(
        GPTClassifier(base.model, len(names), pool=config.pool, dropout=config.dropout),
        base.tokenizer, names, most_tokens, config.cut,
    )  # fmt: skip
    learned = with_copies(
        config, splits.train.take(np.arange(min(config.texts or len(splits.train), len(splits.train))))
    )
    batches = Bucketed(
        classifier.encode(learned.texts), learned.labels, config.batch_size, config.seed,
        rank=world.rank, n_ranks=world.size,
    )  # fmt: skip
    val_rows = classifier.encode(splits.val.texts)

    def validation() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size = config.micro_batch_size or config.batch_size
        for chosen, ids_BT, lengths_B in in_order(val_rows, size):
            yield ids_BT, lengths_B, torch.from_numpy(splits.val.labels[chosen])

    objective = Classification(class_weights(learned.labels, len(names)) if config.class_weights else None)
    steps = config.epochs * len(batches)
    finished = fine_tune(
        config, classifier.model, objective, batches, validation, steps, world,
        make_optimizers=lambda model: what_moves(config, model),
    )  # fmt: skip
    if finished and world.is_main:
        report(config, classifier, splits)
    return finished


def with_copies(config: Config, learned: Reviews) -> Reviews:
    """Return the texts that are learned from, and a changed copy of each for each method of augmentation."""
    texts = list(learned.texts)
    for method in config.augment:
        texts += augmented(learned.texts, method, config.seed, config.copies, config.translators)
    return Reviews(tuple(texts), np.tile(learned.labels, 1 + len(config.augment)), learned.names)


def what_moves(config: Config, model: GPTClassifier) -> list[Optimizer]:
    """Freeze what is not to learn, and return the optimizers of the rest."""
    freeze_all_but(model, config.blocks)
    model.head.requires_grad_(True)  # LoRA has frozen all but its own
    return make_optimizers(model, lr=config.lr, layer_decay=config.layer_decay, weight_decay=config.weight_decay)


def report(config: Config, classifier: TextClassifier, splits: Splits) -> None:
    """Classify the test texts, once, and write the report beside the weights."""
    test_NK = classifier.probabilities(splits.test.texts, config.micro_batch_size or config.batch_size)
    content: dict[str, Any] = {
        "kind": "GPT",
        "settings": {name: value.name if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "machine": describe(),
        "data": splits.statistics,
        "model": {"parameters": sum(parameter.numel() for parameter in classifier.model.parameters())},
        "seconds": read_metrics(config.out)[-1]["seconds"],
        "gpu_megabytes": torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None,
        "test": measures(test_NK, splits.test.labels, splits.test.names),
    }
    write_report(config.out, content, splits.test, test_NK, partial(explain, classifier))
    show(f"accuracy on {len(splits.test):,} test texts: {content['test']['accuracy']:.4f}; {config.out}\n")


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
