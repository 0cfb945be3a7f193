"""The baseline: a bag of words, in seconds, which everything larger has to beat.

    python -m finetuning.classification.baseline --data reviews.csv.gz --out runs/baseline
    python -m finetuning.classification.baseline --out runs/baseline        the sentences that come with the project

A classifier of 124 million numbers that is not held against one of 50,000 has not been measured. How strongly weights
are pulled toward zero is chosen on the validation texts; the test texts are looked at once, in the end.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from finetuning.classification.attribution import explain_words
from finetuning.classification.evaluation import measures
from finetuning.classification.linear import BagOfWords, fit_sklearn, fit_torch, make_vectorizer, probabilities
from finetuning.classification.report import REPORT_FILES, write_report
from finetuning.classification.reviews import SENTENCES, Reviews, Splits, read_reviews, split
from utils.command_line import show
from utils.extras import check_installed
from utils.hardware import describe
from utils.outputs import check_output_folder
from utils.ranges import Range, Seed, check_ranges

log = logging.getLogger(__name__)

INVERSE_PENALTIES = (0.3, 1, 3, 10, 30)
PAIRS_FACTOR = 6  # times as many features with pairs
SHARES_OF_THE_CURVE = (0.01, 0.03, 0.1, 0.25, 0.5)
ROUNDS = 3  # of measuring a speed
LONGEST_START = 300  # seconds that a process may take to start
USUAL_CLAIM = 0.823  # accuracy of a bag of words on IMDb, as comparisons with fine-tuned models often quote it


@dataclass(frozen=True)
class Config:
    """Train and test a bag of words on labelled texts."""

    data: Path = SENTENCES
    """A CSV file, or CSV.gz, with the columns text (or review) and label (or sentiment), UTF-8."""
    out: Path = Path("runs/baseline")
    """The folder for report.json, report.md, report.html and predictions.csv."""
    overwrite: bool = False
    """Replace the report that is there."""
    strong: bool = False
    """Count pairs of words, too, with six times as many features: slower, and better on long texts."""
    words: Annotated[int, Range(1, 10**7)] = 50_000
    """Features that are kept, the most frequent ones; six times as many with --strong."""
    stop_words: bool = False
    """Leave out words such as "the" and "not"."""
    learning_curve: bool = False
    """Also train on parts of the texts, from 1% on."""
    processes: Annotated[int, Range(1, 256)] = 2
    """Processes among which the speed of prediction is measured."""
    seed: Seed = 0
    """Decides the split."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Trained:
    """What training gives."""

    model: BagOfWords
    twin: BagOfWords
    """The same model, fitted by PyTorch."""
    facts: dict[str, Any]


def train(config: Config, texts: Reviews, val: Reviews) -> Trained:
    """Train with each penalty, and keep what does best on the validation texts."""
    started = time.perf_counter()
    n_features = config.words * (PAIRS_FACTOR if config.strong else 1)
    vectorizer = make_vectorizer(n_features, longest=2 if config.strong else 1, stop_words=config.stop_words)
    features_NF = vectorizer.fit_transform(texts.texts)
    val_features_NF = vectorizer.transform(val.texts)
    counted = time.perf_counter()
    fits = {inverse: fit_sklearn(features_NF, texts.labels, inverse) for inverse in INVERSE_PENALTIES}
    val_accuracy = {
        inverse: accuracy(probabilities(val_features_NF @ weights_FK + bias_K), val)
        for inverse, (weights_FK, bias_K) in fits.items()
    }
    best = max(val_accuracy, key=val_accuracy.__getitem__)
    fitted = time.perf_counter()
    twin = BagOfWords(vectorizer, *fit_torch(features_NF, texts.labels, best))
    model = BagOfWords(vectorizer, *fits[best])
    facts = {
        "features": features_NF.shape[1],
        "megabytes": model.nbytes / 1e6,
        "inverse_penalty": best,
        "val_accuracy": {str(inverse): value for inverse, value in val_accuracy.items()},
        "seconds": {
            "features": counted - started,
            "fitting": fitted - counted,
            "fitting_with_torch": time.perf_counter() - fitted,
        },
    }
    return Trained(model, twin, facts)


def accuracy(probabilities_NK: np.ndarray, reviews: Reviews) -> float:
    """Return the share of texts whose likeliest class is the right one."""
    return float((probabilities_NK.argmax(1) == reviews.labels).mean())


def learning_curve(config: Config, splits: Splits) -> list[dict[str, float]]:
    """Return the accuracy on the validation texts after training on the first part of the shuffled texts."""
    rows = []
    for share in SHARES_OF_THE_CURVE:
        n = round(share * len(splits.train))
        part = splits.train.take(np.arange(n))
        if np.bincount(
            part.labels, minlength=len(part.names)
        ).min():  # else there is a class to be learned from nothing
            model = train(config, part, splits.val).model
            rows.append(
                {
                    "share": share,
                    "texts": n,
                    "val_accuracy": accuracy(model.probabilities(splits.val.texts), splits.val),
                }
            )
    return rows


def speed(model: BagOfWords, texts: Sequence[str], processes: int) -> dict[str, float]:
    """Return how many texts processes classify per second, once they are ready: the best of some rounds.

    And how many per second of one processor, which does not depend on what else runs here.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    ready = context.Barrier(processes + 1)
    parts = [texts[start::processes] for start in range(processes)]
    rounds = []
    with context.Pool(processes, _get_ready, (model, ready)) as pool:
        ready.wait(LONGEST_START)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            processor_seconds = sum(pool.map(_classify, parts, chunksize=1))
            rounds.append((len(texts) / (time.perf_counter() - started), len(texts) / processor_seconds))
    measured, per_processor_second = (round(max(rates)) for rates in zip(*rounds, strict=True))
    return {"processes": processes, "measured": measured, "per_processor_second": per_processor_second}


def _get_ready(model: BagOfWords, ready: Any) -> None:
    """Keep the model, in a process of the pool, and wait until all have it."""
    global _model
    _model = model
    ready.wait(LONGEST_START)


def _classify(texts: Sequence[str]) -> float:
    """Classify texts, and return how many seconds of a processor it took."""
    started = time.process_time()
    _model.probabilities(texts)
    return time.process_time() - started


def main(config: Config) -> dict[str, Any]:
    """Train, test, and write the report; return what report.json holds.

    Raises:
        InputError: for data that cannot be used, a folder that holds something else, or without scikit-learn.
    """
    check_installed("sklearn", "finetune", "measuring a classifier")
    check_output_folder(config.out, REPORT_FILES, overwrite=config.overwrite, inputs=[config.data])
    started, processor = time.perf_counter(), time.process_time()
    splits = split(read_reviews(config.data), config.seed)
    read = time.perf_counter()
    trained = train(config, splits.train, splits.val)
    test_NK = trained.model.probabilities(splits.test.texts)
    seconds = {"reading": read - started, **trained.facts.pop("seconds"), "all": time.perf_counter() - started}
    seconds["all_of_processor"] = time.process_time() - processor  # what it takes where nothing else runs
    content = {
        "kind": "bag of words",
        "settings": {**asdict(config), "data": config.data.name, "out": config.out.name},
        "machine": describe(),
        "data": splits.statistics,
        "model": trained.facts,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "reviews_per_second": speed(trained.model, splits.test.texts, config.processes),
        "usual_claim": USUAL_CLAIM,
        "torch": {"test_accuracy": accuracy(trained.twin.probabilities(splits.test.texts), splits.test)},
        "test": measures(test_NK, splits.test.labels, splits.test.names),
    }
    if config.learning_curve:
        content["learning_curve"] = learning_curve(config, splits)
    write_report(config.out, content, splits.test, test_NK, partial(explain_words, trained.model))
    found = content["test"]["accuracy"]
    show(f"accuracy on {len(splits.test):,} test texts: {found:.4f}; {config.out / 'report.json'}\n")
    return content


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
