"""How close an answer is to a reference: overlap of words and letters, and how sure a mean of it is.

BLEU-4      of the answer's stretches of 1 to 4 words, how many the reference has (Papineni et al. 2002); counts are
            added up over all answers, and then divided
ROUGE-L     the longest common subsequence of words, as F-measure (Lin 2004)
chrF        the same idea as BLEU with stretches of 1 to 6 letters, recall counted more (Popović 2015)
exact       the same words, where the reference is so short that there is hardly another way to say it

None of them knows what is true: "Emma was published in 1915" scores higher than "In the year 1815". They are for
comparing models on the same questions, before a person reads some of the answers.

Each measure is a sum of numbers per answer, and a formula over the sums. So a set drawn anew from the answers, with
repetition, costs one product of matrices, and a thousand of them give an interval: the bootstrap (Efron 1979).

Shapes: N answers, K numbers that are summed, R resamples.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
INTERVAL = 0.95
SHORT_REFERENCE = 5  # words: longer ones can be said in other ways
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class Measure:
    """A number over a set of answers."""

    name: str
    parts: np.ndarray
    """What is summed, (N, K); a row of zeros is an answer that does not count."""
    formula: Callable[[np.ndarray], float]
    """From the sums (K,) to the number; NaN if nothing counts."""

    def value(self, chosen_N: np.ndarray | None = None) -> float:
        """Return the number, over all answers or those that are chosen."""
        parts = self.parts if chosen_N is None else self.parts[chosen_N]
        return self.formula(parts.sum(axis=0))

    def count(self, chosen_N: np.ndarray) -> int:
        """Return how many of the chosen answers count."""
        return int(np.count_nonzero(self.parts[chosen_N].any(axis=1)))


def mean_of(name: str, values: Sequence[float | None], scale: float = 1.0) -> Measure:
    """Return the mean of one value per answer, without those that are None."""
    parts_N2 = np.array([(0.0, 0.0) if value is None else (scale * value, 1.0) for value in values]).reshape(-1, 2)
    return Measure(name, parts_N2, ratio)


def ratio(sums_2: np.ndarray) -> float:
    """Return the first sum divided by the second."""
    return float(sums_2[0] / sums_2[1]) if sums_2[1] else float("nan")


def bootstrap(measures: Sequence[Measure], chosen_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return each measure over R sets drawn anew from the chosen answers, the same ones for all: (R, measures).

    Since the same answers are drawn for all, the difference of two columns is that of two models on the same questions.
    """
    chosen = np.flatnonzero(chosen_N)
    if not len(chosen):
        return np.full((RESAMPLES, len(measures)), np.nan)
    chance = np.random.default_rng(seed)
    counts_RN = chance.multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), size=RESAMPLES)
    columns = []
    for measure in measures:
        sums_RK = counts_RN @ measure.parts[chosen]
        columns.append([measure.formula(sums_K) for sums_K in sums_RK])
    return np.array(columns).T


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """Return the middle 95% of values from the bootstrap; NaN where there is none."""
    values_R = values_R[np.isfinite(values_R)]
    if not len(values_R):
        return float("nan"), float("nan")
    outside = (1 - INTERVAL) / 2
    low, high = np.quantile(values_R, (outside, 1 - outside))
    return float(low), float(high)


def overlap(answers: Sequence[str], references: Sequence[str]) -> list[Measure]:
    """Return BLEU-4, ROUGE-L, chrF and exact match, each from 0 to 100."""
    from rouge_score.rouge_scorer import RougeScorer  # here only: it loads NLTK
    from rouge_score.tokenizers import DefaultTokenizer
    from sacrebleu.metrics import CHRF

    pairs = list(zip(answers, references, strict=True))
    rouge, chrf = RougeScorer(["rougeL"], tokenizer=DefaultTokenizer(use_stemmer=False)), CHRF()
    return [
        bleu(answers, references),
        mean_of("ROUGE-L", [100 * rouge.score(right, said)["rougeL"].fmeasure for said, right in pairs]),
        mean_of("chrF", [chrf.sentence_score(said, [right]).score for said, right in pairs]),
        mean_of("exact match", [exact_match(said, right) for said, right in pairs], scale=100),
    ]


def bleu(answers: Sequence[str], references: Sequence[str]) -> Measure:
    """Return BLEU-4 as sacrebleu computes it of a set: n-grams are counted in all answers, and then divided."""
    from sacrebleu.metrics import BLEU

    counter = BLEU()
    rows = []
    for said, right in zip(answers, references, strict=True):
        counted = counter.corpus_score([said], [[right]])
        rows.append([*counted.counts, *counted.totals, counted.sys_len, counted.ref_len])

    def formula(sums_10: np.ndarray) -> float:
        if not sums_10.any():
            return float("nan")
        numbers: list[Any] = sums_10.astype(int).tolist()
        return float(BLEU.compute_bleu(numbers[:4], numbers[4:8], *numbers[8:], smooth_method="exp").score)

    return Measure("BLEU-4", np.array(rows, dtype=float).reshape(-1, 10), formula)


def exact_match(answer: str, reference: str) -> float | None:
    """Return whether two texts have the same words, articles and punctuation aside; None for a long reference."""
    wanted = plain(reference)
    if not 0 < len(wanted) <= SHORT_REFERENCE:
        return None
    return float(plain(answer) == wanted)


def plain(text: str) -> list[str]:
    """Return the words of a text, without case, punctuation and articles.

    >>> plain("The moose!")
    ['moose']
    """
    return re.findall(r"\w+", _ARTICLE.sub(" ", text.lower()))
