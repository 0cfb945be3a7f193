# ruff: noqa: RUF001 - quotation marks and dashes of all kinds are looked for
"""The words and sentences of a text, and a number for each stretch of words, by which stretches are compared.

Filters count words, and look for phrases that come again. What stands between two spaces is taken apart by rules
close to spaCy's for English, and remembered: most of it comes again and again, which makes this some fifty times as
fast. Phrases of n words are compared by a hash: with prefix sums

    P[i] = c[0] B^0 + c[1] B^1 + ... + c[i - 1] B^(i - 1)  mod 2^64

over the characters c, the hash of the stretch from a to b is (P[b] - P[a]) B^-a: a polynomial hash (Karp and Rabin
1987) that NumPy computes for all phrases at once. B is odd, so that it has an inverse.
"""

import re
from collections.abc import Sequence
from itertools import chain

import numpy as np

_MARKS = r"""…,:;!?¿¡()\[\]{}<>_#*&'"“”‘’„`«»"""
_OPENING = re.compile(rf"\.\.+|[§%=—–$£€¥{_MARKS}]|\+(?!\d)")
_CLOSING = re.compile(
    rf"(?:\.\.+|['’][sS]|[—–{_MARKS}]|(?<=\d)[+%$£€¥]|(?<=\d)(?:[kcm]?m|[km]?g|[KMGT]B)"
    rf"|(?<=[a-z0-9%²+\-{_MARKS}])\.|(?<=[A-Z][A-Z])\.)$"
)
_CLOSING_REACHES = 12  # characters before the end that decide about it, more than any mark has
_INNER = re.compile(
    r"\.\.+|…|(?<=\d)[+\-*^](?=[\d-])|(?<=[a-z'\"])\.(?=[A-Z'\"])|(?<=[^\W\d_]),(?=[^\W\d_])"
    r"|(?<=[^\W\d_])(?:-{1,3}|[–—~]+)(?=[^\W\d_])|(?<=[^\W_])[:<>=/](?=[^\W\d_])"
)
_CONTRACTION = re.compile(r"([a-z]+?)(n['’]t|['’](?:m|re|ve|ll|d))", re.IGNORECASE)
_WHOLE = frozenset(
    f"{word}."
    for word in (
        *"abcdefghijklmnopqrstuvwxyz",
        *("e.g", "i.e", "a.m", "p.m", "vs", "v.s", "ph.d", "mr", "mrs", "ms", "dr", "st", "mt", "jr", "sr", "prof"),
        *("gen", "rep", "sen", "gov", "inc", "co", "corp", "ltd", "bros", "jan", "feb", "mar", "apr", "jun", "jul"),
        *("aug", "sep", "sept", "oct", "nov", "dec"),
    )
)
_ADDRESS = re.compile(
    r"(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+\.[\w.]+|[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|gov|edu)(?:/\S*)?"
)
_MOST_KEPT = 200_000  # stretches between spaces
_LONGEST_KEPT = 40  # characters

SENTENCE_END = re.compile(r"(?:(?<![A-Z])|(?<=[A-Z]{2}))[.!?…]+[\"'”’)\]]*(?=\s|$)")
PLAIN_WORD = re.compile(r"\w+")
BASE = 0x9E37_79B9_7F4A_7C15  # odd; its inverse below
INVERSE = pow(BASE, -1, 2**64)
_SPREAD = np.uint64(0xD6E8_FEB8_6659_FD93)  # odd, and unlike the powers of BASE

_powers = np.ones(1, dtype=np.uint64)
_inverses = np.ones(1, dtype=np.uint64)


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text.

    >>> split_words("It isn't over (3.5 to 1).")
    ['It', 'is', "n't", 'over', '(', '3.5', 'to', '1', ')', '.']
    """
    return list(chain.from_iterable(map(_known.__getitem__, text.split())))


class _Known(dict[str, tuple[str, ...]]):
    """The words in what stands between two spaces, found out once."""

    def __missing__(self, stretch: str) -> tuple[str, ...]:
        body, mark = stretch[:-1], stretch[-1:]
        if stretch.isalpha():
            words: tuple[str, ...] = (stretch,)
        elif body.isalpha() and (mark in ",;:!?" or (mark == "." and _ends_sentence(stretch))):
            words = (body, mark)  # as the rules would have it, sooner
        else:
            words = tuple(_take_apart(stretch))
        if len(stretch) <= _LONGEST_KEPT:
            if len(self) >= _MOST_KEPT:
                self.clear()
            self[stretch] = words
        return words


_known = _Known()


def _ends_sentence(stretch: str) -> bool:
    return "a" <= stretch[-2] <= "z" and stretch.lower() not in _WHOLE


def _take_apart(stretch: str) -> list[str]:
    """Return the words of a stretch without spaces: marks at both ends come off one by one, then it is cut inside."""
    start, end = 0, len(stretch)
    first: list[str] = []
    last: list[str] = []
    may_be_whole = "." in stretch
    while start < end and not (may_be_whole and _is_whole(stretch, start, end)):
        if mark := _OPENING.match(stretch, start, end):
            first.append(mark[0])
            start = mark.end()
        elif mark := _CLOSING.search(stretch[max(start, end - _CLOSING_REACHES) : end]):
            last.append(mark[0])
            end -= len(mark[0])
        else:
            break
    if start < end:
        first += _inside(stretch[start:end])
    return first + last[::-1]


def _is_whole(stretch: str, start: int, end: int) -> bool:
    if end - start <= _CLOSING_REACHES and stretch[start:end].lower() in _WHOLE:
        return True
    return end - start > 4 and stretch[start].isalnum() and bool(_ADDRESS.fullmatch(stretch, start, end))


def _inside(core: str) -> list[str]:
    if core.lower() in _WHOLE or _ADDRESS.fullmatch(core):
        return [core]
    if contraction := _CONTRACTION.fullmatch(core):
        return list(contraction.groups())
    words = []
    start = 0
    for cut in _INNER.finditer(core):
        words += [core[start : cut.start()], cut[0]]
        start = cut.end()
    return [word for word in (*words, core[start:]) if word]


def plain_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation: what is compared between documents.

    >>> plain_words("The cat's hat!")
    ['the', 'cat', 's', 'hat']
    """
    return PLAIN_WORD.findall(text.lower())


def count_sentences(text: str) -> int:
    """Return the number of sentences, counting what follows the last full stop.

    >>> count_sentences("Mr. U. S. Grant came. He saw! And then")
    4
    """
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + bool(rest.strip())


def lengths_of(words: Sequence[str]) -> np.ndarray:
    """Return the characters of each word, int64."""
    return np.fromiter(map(len, words), dtype=np.int64, count=len(words))


class Phrases:
    """The hashes of all phrases of a text.

    Args:
        words: the text's words, in order, without lone surrogates. They are compared as if there were nothing between
            them: "ab c" and "a bc" are the same phrase.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.lengths = lengths_of(words)
        """Characters of each word."""
        self._ends = np.cumsum(self.lengths)
        self._starts = self._ends - self.lengths
        characters = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32)
        _reach(len(characters))
        sums = np.zeros(len(characters) + 1, dtype=np.uint64)
        np.cumsum((characters + np.uint64(1)) * _powers[: len(characters)], out=sums[1:])
        self._sums_before = sums[self._starts]
        self._sums_after = sums[self._ends]
        self._shifts = _inverses[self._starts]

    def hashes(self, n: int) -> np.ndarray:
        """Return a uint64 for each of the phrases of n words, in order; none if there are fewer words.

        Only as a whole does it tell phrases apart: its lowest bits depend on little.
        """
        count = max(len(self.lengths) - n + 1, 0)
        return (self._sums_after[n - 1 :] - self._sums_before[:count]) * self._shifts[:count]

    def hashes_word_by_word(self, n: int) -> np.ndarray:
        """Return a uint64 for each phrase of n words, where "ab c" and "a bc" are not the same."""
        words = self.hashes(1)
        count = max(len(words) - n + 1, 0)
        result = words[:count].copy()
        for place in range(1, n):
            result *= _SPREAD
            result += words[place : place + count]
        return result

    def sizes(self, n: int) -> np.ndarray:
        """Return the characters of each phrase of n words."""
        return self._ends[n - 1 :] - self._starts[: max(len(self.lengths) - n + 1, 0)]


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Return hashes in which what differs is spread over all bits, as random numbers."""
    hashes = hashes ^ (hashes >> np.uint64(32))
    hashes *= _SPREAD
    hashes ^= hashes >> np.uint64(32)
    return hashes


def _reach(length: int) -> None:
    """Make the tables of powers long enough."""
    global _powers, _inverses
    while len(_powers) <= length:
        n = len(_powers)
        _powers = np.concatenate([_powers, _powers * np.uint64(pow(BASE, n, 2**64))])
        _inverses = np.concatenate([_inverses, _inverses * np.uint64(pow(INVERSE, n, 2**64))])
