"""Where a classifier is good and where it is not: accuracy on parts of the test texts.

A mean hides what matters. Which texts have a negation, a turn or irony is told by cue words, not by reading: a slice
"irony" has texts that use words irony likes, and misses most irony.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from finetuning.classification.evaluation import bootstrap
from finetuning.classification.reviews import Reviews

FEWEST = 10  # texts of a slice; of fewer, an accuracy says nothing
CUES = {
    "negation": r"\b(not|no|never|nothing|nobody|neither|nor|without|hardly|barely|cannot)\b|n't\b",
    "a turn": r"\b(but|although|though|however|despite|yet|while|unless|nevertheless)\b",
    "irony": r"\b(supposedly|apparently|allegedly|obviously|so-called|of course|oh|wow|yeah|thanks to)\b|''|\"|\?!",
}


def slices(reviews: Reviews, right_N: np.ndarray) -> list[dict[str, Any]]:
    """Return the accuracy on each part of the texts that is large enough, with the interval of the bootstrap."""
    rows = []
    for name, chosen_N in _parts(reviews).items():
        if chosen_N.sum() >= FEWEST:
            low, high = bootstrap(right_N[chosen_N])
            accuracy = float(right_N[chosen_N].mean())
            rows.append({"slice": name, "texts": int(chosen_N.sum()), "accuracy": accuracy, "interval": [low, high]})
    return rows


def _parts(reviews: Reviews) -> dict[str, np.ndarray]:
    """Return which texts are in each slice."""
    words_N = np.array([len(text.split()) for text in reviews.texts])
    parts = {f"{name} texts": chosen for name, chosen in _thirds(words_N, ("short", "middling", "long")).items()}
    for name, cue in CUES.items():
        has_N = np.array([re.search(cue, text, re.IGNORECASE) is not None for text in reviews.texts])
        parts |= {f"with cues of {name}": has_N, f"without cues of {name}": ~has_N}
    if reviews.ratings is not None:
        from_middle_N = np.abs(reviews.ratings - np.nanmean(reviews.ratings))
        parts |= {f"{name} ratings": x for name, x in _thirds(from_middle_N, ("lukewarm", "clear", "extreme")).items()}
    return parts


def _thirds(values_N: np.ndarray, names: tuple[str, str, str]) -> dict[str, np.ndarray]:
    """Return which values are in the lowest third, the middle one, and the highest; NaN is in none."""
    low, high = np.nanquantile(values_N, [1 / 3, 2 / 3])
    return dict(zip(names, (values_N <= low, (values_N > low) & (values_N <= high), values_N > high), strict=True))
