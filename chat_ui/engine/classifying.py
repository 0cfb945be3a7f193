"""What a classifier says of a text: how likely each class is, and which words weighed most."""

import re
from collections import defaultdict
from dataclasses import dataclass

from finetuning.classification.attribution import Pieces, explain
from finetuning.classification.text_classifier import TextClassifier

MOST_WORDS = 5
GOES_ON = re.compile("[\\w\ufffd]")  # a token that continues a word; U+FFFD stands for a part of a character


@dataclass(frozen=True)
class Opinion:
    """What a classifier says of a text."""

    chances: tuple[tuple[str, float], ...]
    """The classes, each with its probability, the most likely first."""
    words: tuple[str, ...]
    """Those that speak most for the first class, the weightiest first."""
    n_tokens: int
    """What was read, after a long text was cut."""


def opinion_of(classifier: TextClassifier, text: str) -> Opinion:
    """Return what a classifier says of a text.

    Raises:
        InputError: if the text is empty.
    """
    (ids,) = rows = classifier.encode([text])
    (chances,) = classifier.of_ids(rows).tolist()
    ranked = sorted(zip(classifier.names, chances, strict=True), key=lambda item: -item[1])
    return Opinion(tuple(ranked), weightiest(explain(classifier, text)), len(ids))


def weightiest(pieces: Pieces) -> tuple[str, ...]:
    """Return the words of a text in tokens that speak most for the predicted class; those that speak against it do not.

    A word weighs what its tokens weigh, wherever it stands.
    """
    worth_of: dict[str, float] = defaultdict(float)
    word, worth = "", 0.0
    for piece, share in [*pieces, (" ", 0.0)]:
        if not GOES_ON.match(piece):
            worth_of[word] += worth
            word, worth = "", 0.0
        word, worth = word + piece.strip(), worth + share
    words = [word for word in worth_of if worth_of[word] > 0 and word.isalnum()]
    return tuple(sorted(words, key=lambda word: -worth_of[word])[:MOST_WORDS])
