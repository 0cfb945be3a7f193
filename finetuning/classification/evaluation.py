"""What to know of a classifier besides its accuracy, and how sure to be of that.

precision, recall     of what it calls positive, how much is; of what is positive, how much it finds
ROC-AUC               how often a random positive text gets a higher score than a random negative one
average precision     the mean of the precision over all thresholds, weighted by the recall that each adds
calibration           whether it is right as often as it says (Guo et al. 2017, https://arxiv.org/abs/1706.04599)
bootstrap             how much a measure varies, had the test set been another of its kind (Efron 1979)
McNemar's test        whether two models differ: only texts on which exactly one of them is right say something

Shapes: N texts, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

BINS = 10  # of confidence
RESAMPLES = 1000
INTERVAL = 0.95


def measures(probabilities_NK: np.ndarray, labels_N: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Return all measures of predictions, as numbers that JSON can hold.

    Args:
        probabilities_NK: what the model gives each class; the largest is what it predicts.
        labels_N: the right classes.
        names: of the classes. Of two, the second is the one that is looked for.
    """
    from sklearn.metrics import (
        average_precision_score,
        confusion_matrix,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    classes = range(len(names))
    predicted_N = probabilities_NK.argmax(1)
    per_class = precision_recall_fscore_support(labels_N, predicted_N, labels=classes, zero_division=0)
    right_N = predicted_N == labels_N
    low, high = bootstrap(right_N)
    precision, recall, f1, counts = (values.tolist() for values in per_class)
    rows = zip(names, precision, recall, f1, counts, strict=True)
    return {
        "accuracy": float(right_N.mean()),
        "accuracy_interval": [low, high],
        "f1": f1[1] if len(names) == 2 else float(np.mean(f1)),
        "roc_auc": _over_classes(roc_auc_score, probabilities_NK, labels_N),
        "average_precision": _over_classes(average_precision_score, probabilities_NK, labels_N),
        "log_loss": float(-np.log(probabilities_NK[np.arange(len(labels_N)), labels_N].clip(1e-12)).mean()),
        "calibration_error": calibration_error(probabilities_NK, labels_N),
        "classes": {name: {"precision": p, "recall": r, "f1": f, "texts": n} for name, p, r, f, n in rows},
        "confusion": confusion_matrix(labels_N, predicted_N, labels=classes).tolist(),
        "reliability": reliability(probabilities_NK, labels_N),
    }


def _over_classes(
    score: Callable[[np.ndarray, np.ndarray], float], probabilities_NK: np.ndarray, labels_N: np.ndarray
) -> float | None:
    """Return a score of the second of two classes, or the mean over more, each against all others.

    None if the labels are all of one class, where the score is not defined.
    """
    K = probabilities_NK.shape[1]
    looked_for = [1] if K == 2 else [k for k in range(K) if (labels_N == k).any()]
    if len(np.unique(labels_N)) < 2:
        return None
    return float(np.mean([score(labels_N == k, probabilities_NK[:, k]) for k in looked_for]))


def reliability(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> list[dict[str, float]]:
    """Return, for each tenth of confidence in which there are predictions, how sure they were and how often right."""
    confidence_N = probabilities_NK.max(1)
    right_N = probabilities_NK.argmax(1) == labels_N
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    return [
        {
            "confidence": float(confidence_N[bin_N == b].mean()),
            "accuracy": float(right_N[bin_N == b].mean()),
            "texts": int((bin_N == b).sum()),
        }
        for b in np.unique(bin_N)
    ]


def calibration_error(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart, in the mean over all texts."""
    gaps = [row["texts"] * abs(row["confidence"] - row["accuracy"]) for row in reliability(probabilities_NK, labels_N)]
    return sum(gaps) / len(labels_N)


def bootstrap(values_N: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return where the mean lies for 95% of the test sets that are drawn from this one, with repetition.

    Args:
        values_N: a number for each text, such as whether the prediction is right.
        seed: decides the draws.
    """
    rng = np.random.default_rng(seed)
    N = len(values_N)
    means = [values_N[rng.integers(N, size=N)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)


def mcnemar(first_right_N: np.ndarray, second_right_N: np.ndarray) -> dict[str, float]:
    """Test whether two models are equally good on the same texts.

    If they were, each of the texts on which only one of them is right would be a toss of a coin. The p-value is how
    likely tosses as lopsided as these are: exact, from the binomial distribution (McNemar 1947).

    Returns:
        how many texts only the first got right, only the second, and the p-value.
    """
    only_first = int((first_right_N & ~second_right_N).sum())
    only_second = int((second_right_N & ~first_right_N).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return {"only_first": only_first, "only_second": only_second, "p": min(1.0, 2 * tail / 2**n)}
