"""Say of which class texts are, with a fine-tuned classifier.

python -m finetuning.classification.predict --run runs/sentiment --text "A film to remember." "Two hours of yawning."
python -m finetuning.classification.predict --run runs/sentiment --data more_reviews.csv
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetuning.classification.reviews import read_reviews
from finetuning.classification.text_classifier import TextClassifier, numbers_of
from utils.command_line import show
from utils.files import InputError
from utils.hardware import pick_device
from utils.ranges import Count, check_ranges


@dataclass(frozen=True)
class Config:
    """Classify texts: those of the command line, or labelled ones of a file, to see how many are right."""

    run: Path
    """The run directory of a classifier."""
    text: tuple[str, ...] = ()
    """Texts; each is answered with its class, the probability of that, and the text's beginning."""
    data: Path | None = None
    """A CSV file as for training, with labels that the classifier knows."""
    batch_size: Count = 32
    """Texts that go through the model at once; the result does not depend on it."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> np.ndarray:
    """Classify, print, and return the probabilities, (N, K).

    Raises:
        InputError: if the run is not a classifier's, or there is nothing to classify.
    """
    if bool(config.text) == (config.data is not None):
        raise InputError("say what to classify: either --text with one or more texts, or --data with a CSV file")
    reviews = None if config.data is None else read_reviews(config.data)
    classifier = TextClassifier.from_run(config.run)
    classifier.model.to(pick_device(config.device))
    if reviews is None:
        probabilities_NK = classifier.probabilities(config.text, config.batch_size)
        for text, row in zip(config.text, probabilities_NK, strict=True):
            show(f"{classifier.names[row.argmax()]}  {row.max():.3f}  {' '.join(text.split())[:60]}\n")
        return probabilities_NK
    labels_N = numbers_of([reviews.names[label] for label in reviews.labels], classifier.names)
    probabilities_NK = classifier.probabilities(reviews.texts, config.batch_size)
    right = int((probabilities_NK.argmax(1) == labels_N).sum())
    show(f"{right:,} of {len(labels_N):,} right: accuracy {right / len(labels_N):.4f}\n")
    return probabilities_NK


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
