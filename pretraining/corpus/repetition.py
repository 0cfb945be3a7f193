"""Gopher's rules on repetition: lines, paragraphs and phrases that come again and again.

Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1, as datatrove counts it. The phrases of ten lengths are
the dearest part of all filters, so they are compared as numbers, and most documents are let through by a bound.
"""

import re
from collections.abc import Sequence

import numpy as np

from pretraining.corpus.rules import repeated
from pretraining.corpus.words import Phrases

TOP_PHRASES = ((2, 0.20), (3, 0.18), (4, 0.16))  # words; the most characters in the commonest such phrase, as a share
REPEATED_PHRASES = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))  # in all phrases said before
PARAGRAPH_END = re.compile(r"\n{2,}")


def gopher_repetition(text: str, words: Sequence[str]) -> str | None:
    """Return which of Gopher's rules on repetition a document breaks, named as datatrove names it."""
    if not text:
        return "empty"
    for name, parts in (("para", PARAGRAPH_END.split(text.strip())), ("line", _lines(text))):
        n_parts, n_characters = repeated(parts)
        if n_parts / len(parts) > 0.3:
            return f"dup_{name}_frac"
        if n_characters / len(text) > 0.2:
            return f"dup_{name}_char_frac"
    phrases = Phrases(words)
    count = len(words)
    for n, share in TOP_PHRASES:
        n_characters, count = top_characters(phrases, n, share * len(text), count)
        if n_characters / len(text) > share:
            return f"top_{n}_gram"
    for n, share in REPEATED_PHRASES:
        if repeated_characters(phrases, n, share * len(text)) / len(text) > share:
            return f"duplicated_{n}_n_grams"
    return None


def _lines(text: str) -> list[str]:
    """Return the lines of a text that hold anything, and the empty ones at its ends: `re.split("\\n+", text)`."""
    lines = [line for line in text.split("\n") if line]
    return [""] * text.startswith("\n") + lines + [""] * text.endswith("\n")


def top_characters(phrases: Phrases, n: int, most: float = 0, most_common: int = 2**62) -> tuple[int, int]:
    """Return how many characters the commonest phrase of n words takes, and a bound on how often it comes.

    Of equally common phrases the first counts. Where they surely take no more than `most`, 0 stands for that.

    Args:
        phrases: of the text.
        n: words.
        most: characters that are of no interest.
        most_common: a bound on how often the commonest shorter phrase comes; no longer one comes more often.
    """
    sizes = phrases.sizes(n) + n - 1  # with the spaces between the words
    if not len(sizes) or most_common * int(sizes.max()) <= most:
        return 0, most_common
    hashes = phrases.hashes_word_by_word(n)
    if (bound := int(_runs(_halves(hashes))[1].max())) * int(sizes.max()) <= most:
        return 0, bound
    in_order = np.sort(hashes)
    starts, counts = _runs(in_order)
    count = int(counts.max())
    first = int(np.argmax(np.isin(hashes, in_order[starts[counts == count]])))
    return count * int(sizes[first]), count


def repeated_characters(phrases: Phrases, n: int, most: float = 0) -> int:
    """Return how many characters are in phrases of n words that were said before, each character counted once.

    As datatrove does, phrases are read from left to right: after one that was said before, reading goes on behind it;
    after a new one, at the next word. Where no more than `most` can be in them, 0 stands for that.
    """
    hashes = phrases.hashes(n)
    halves = _halves(hashes)
    n_again = int(np.count_nonzero(halves[1:] == halves[:-1]))
    if not n_again:
        return 0
    sizes = phrases.sizes(n)
    if n_again * int(sizes.max()) <= most:
        return 0
    again = np.ones(len(hashes), dtype=bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    inside = np.zeros(len(hashes) + n, dtype=np.int64)  # whether each word is in a phrase that was said before
    np.add.at(inside, np.flatnonzero(again), 1)
    np.add.at(inside, np.flatnonzero(again) + n, -1)
    if int(phrases.lengths[np.cumsum(inside)[: len(phrases.lengths)] > 0].sum()) <= most:
        return 0
    seen: set[int] = set()
    total = place = 0
    numbers = hashes.tolist()
    while place < len(numbers):
        if numbers[place] in seen:
            total += int(sizes[place])
            place += n
        else:
            seen.add(numbers[place])
            place += 1
    return total


def _halves(hashes: np.ndarray) -> np.ndarray:
    """Return the upper half of each hash, sorted: quicker, and never fewer are equal than of whole ones."""
    halves = (hashes >> np.uint64(32)).astype(np.uint32)
    halves.sort()
    return halves


def _runs(in_order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each run of equal numbers begins, and how long it is."""
    starts = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]]))
    return starts, np.diff(starts, append=len(in_order))
