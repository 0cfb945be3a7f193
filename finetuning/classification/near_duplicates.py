"""Texts that are equal, or nearly so: found without comparing each with each.

Two texts are near duplicates if they share most of their shingles, runs of three words: if the Jaccard similarity of
the two sets, intersection over union, is at least 0.7. Of each set only the few smallest hash values are looked at
first: texts that share most shingles almost surely share some of these, and others hardly ever do (Broder 1997, "On the
resemblance and containment of documents"). Pairs that share two are then compared for real.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORDS_OF_A_SHINGLE = 3
SIMILAR = 0.7
SKETCH = 8  # smallest hash values of a text that are looked at first
SHARED = 2  # of these, in texts that are worth comparing; two of similarity 0.7 share fewer once in 800 times
MOST_NEIGHBOURS = 50  # texts that are remembered for a hash value: a phrase that thousands share proves nothing

WORD = re.compile(r"[^\W_]+")


def first_of_each(texts: Sequence[str]) -> list[int]:
    """Return the indices of the texts that no earlier kept text equals or nearly equals, in order."""
    shingles = shingle_hashes(texts)
    earlier: dict[int, list[int]] = {}  # the kept texts that have a hash value among their smallest
    kept = []
    for index, mine in enumerate(shingles):
        sketch = set((mine if len(mine) <= SKETCH else np.partition(mine, SKETCH)[:SKETCH]).tolist())
        shared = Counter(other for value in sketch for other in earlier.get(value, ()))
        others = [other for other, n in shared.items() if n >= min(SHARED, len(sketch))]
        if any(similarity(mine, shingles[other]) >= SIMILAR for other in others):
            continue
        kept.append(index)
        for value in sketch:
            neighbours = earlier.setdefault(value, [])
            if len(neighbours) < MOST_NEIGHBOURS:
                neighbours.append(index)
    return kept


def shingle_hashes(texts: Sequence[str]) -> list[np.ndarray]:
    """Return a hash value for each shingle of each text; case and punctuation do not count.

    A shingle begins at each word, so there are as many; the last ones have fewer words. A text without any word is a
    word of its own.
    """
    numbers: dict[str, int] = {}
    words: list[int] = []
    lengths = []
    for text in texts:
        found = WORD.findall(text.lower()) or [text]
        words += [numbers.setdefault(word, len(numbers) + 1) for word in found]
        words += [0] * (WORDS_OF_A_SHINGLE - 1)  # ends the text, so that no shingle goes on in the next one
        lengths.append(len(found))
    words_N = np.array(words, dtype=np.uint64)
    mixed = np.zeros(len(words_N), dtype=np.uint64)
    for place in range(WORDS_OF_A_SHINGLE):
        mixed = scatter(mixed + np.roll(words_N, -place))
    starts = np.cumsum([0, *lengths]) + (WORDS_OF_A_SHINGLE - 1) * np.arange(len(lengths) + 1)
    return [mixed[start : start + length] for start, length in zip(starts.tolist(), lengths, strict=False)]


def scatter(x: np.ndarray) -> np.ndarray:
    """Return 64-bit numbers that look random, a different one for each (the finalizer of splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jaccard similarity of two sets of hash values, in which values may stand several times."""
    a, b = set(a.tolist()), set(b.tolist())
    return len(a & b) / len(a | b)
