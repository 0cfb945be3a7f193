"""How far raters agree, beyond what chance alone would give.

kappa   of two raters (Cohen 1960): 1 - D / E, where D is how much they disagree, and E how much they would if each gave
        the same marks as often, but to other answers. Disagreement is 1 for different marks, or with weights the
        squared distance of the marks, so that 4 for 5 is a small one (Cohen 1968).
alpha   of any number of raters, of whom some may have skipped some (Krippendorff 1970): the same ratio over all pairs
        of marks of one answer. For marks in an order, the distance of two is the number of all marks given that lie
        between them, so that nobody has to believe that 1 to 2 is as far as 4 to 5.

Both are 1 for full agreement, and 0 for none beyond chance. Below about .67, conclusions are tentative at best
(Krippendorff 2004).

Shapes: R raters, N answers, K different marks.
"""

from collections.abc import Sequence

import numpy as np


def cohens_kappa(first: Sequence[float], second: Sequence[float], *, is_weighted: bool = True) -> float:
    """Return the kappa of two raters; NaN if one of them is missing, or both gave the same single mark only.

    Args:
        first: their marks; NaN for an answer that was skipped.
        second: the other's, of the same answers.
        is_weighted: whether a disagreement counts by the square of its distance, or always the same.
    """
    pairs_N2 = np.array([first, second], dtype=float).T
    pairs_N2 = pairs_N2[np.isfinite(pairs_N2).all(axis=1)]
    if not len(pairs_N2):
        return float("nan")
    one, other = pairs_N2.T

    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a - b) ** 2 if is_weighted else (a != b).astype(float)

    observed = distance(one, other).mean()
    expected = distance(one[:, None], other[None, :]).mean()  # each mark of one beside each of the other's
    return float(1 - observed / expected) if expected else float("nan")


def krippendorffs_alpha(marks_RN: np.ndarray) -> float:
    """Return the alpha of marks that are in an order; NaN if no answer has two marks, or all marks are the same.

    Args:
        marks_RN: NaN for an answer that a rater skipped.
    """
    values, coded = np.unique(marks_RN[np.isfinite(marks_RN)], return_inverse=True)
    counts_NK = np.zeros((marks_RN.shape[1], len(values)))
    answers = np.nonzero(np.isfinite(marks_RN))[1]
    np.add.at(counts_NK, (answers, coded), 1)
    counts_NK = counts_NK[counts_NK.sum(axis=1) > 1]
    if len(values) < 2 or not len(counts_NK):
        return float("nan")
    n_N = counts_NK.sum(axis=1)
    # how often mark c was given to the same answer as mark k, an answer with n marks counting n times
    together_KK = (counts_NK.T / (n_N - 1)) @ counts_NK - np.diag((counts_NK / (n_N - 1)[:, None]).sum(axis=0))
    totals_K = together_KK.sum(axis=0)
    distances_KK = _ordinal_distances(totals_K)
    observed = (together_KK * distances_KK).sum()
    expected = (np.outer(totals_K, totals_K) * distances_KK).sum() / (totals_K.sum() - 1)
    return float(1 - observed / expected) if expected else float("nan")


def _ordinal_distances(totals_K: np.ndarray) -> np.ndarray:
    """Return the squared number of marks from the middle of each mark's to the middle of each other's: (K, K)."""
    middles_K = np.cumsum(totals_K) - totals_K / 2
    return (middles_K[:, None] - middles_K[None, :]) ** 2
