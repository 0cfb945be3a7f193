"""A small language model that says how surprising a text is: gibberish, tables and spam surprise it.

It guesses each character from the three before it, from counts, and so reads tens of megabytes per second. CCNet
(Wenzek et al. 2019, https://arxiv.org/abs/1911.00359) did the same with 5-grams of words: it trained them on
Wikipedia and kept the texts that surprised them least.

Characters are folded to 40 kinds. Probabilities of order n are those of order n - 1 corrected by counts (Witten and
Bell 1991): where a context was seen often, its counts decide; where it was not, the shorter context does.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.files import InputError, write_atomically

ORDER = 4  # characters: the one guessed and the three before it
KINDS = " etaoinshrdlcumwfgypbvkjxqz,.\n'-\"()"  # then digits, other marks, other letters
DIGIT = len(KINDS)
MARK = DIGIT + 1
LETTER = DIGIT + 2
N_KINDS = DIGIT + 3


def _kind(code: int) -> int:
    character = chr(code)
    place = KINDS.find(character.lower())
    if len(character.lower()) == 1 and place >= 0:
        return place
    if character.isdigit():
        return DIGIT
    if character.isspace():
        return 0
    return LETTER if character.isalpha() else MARK


_FOLD = np.array([_kind(code) for code in range(0x250)], dtype=np.uint8)


def fold(text: str) -> np.ndarray:
    """Return the kind of each character, uint8; beyond Latin scripts all are letters of one kind."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return np.where(codes < len(_FOLD), _FOLD[np.minimum(codes, len(_FOLD) - 1)], LETTER).astype(np.uint8)


class CharacterModel:
    """A model of characters, as a table.

    Args:
        bits: minus the binary logarithm of the probability of the last of each four kinds, float32
            (kinds, kinds, kinds, kinds).
    """

    def __init__(self, bits: np.ndarray) -> None:
        self._bits = bits.reshape(-1)

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharacterModel":
        """Count the characters of texts, and make a model of the counts.

        Raises:
            InputError: if there is no text.
        """
        counts = np.zeros(N_KINDS**ORDER, dtype=np.int64)
        for text in texts:
            for start in range(0, len(text), 2**20):
                counts += np.bincount(_places(fold(text[start : start + 2**20])), minlength=len(counts))
        if not counts.any():
            raise InputError("the reference text is empty: give some good prose, a megabyte or more")
        probabilities = np.full(N_KINDS, 1 / N_KINDS)
        for n in range(1, ORDER + 1):
            of_order = counts.reshape(-1, *[N_KINDS] * n).sum(axis=0)
            n_seen = of_order.sum(axis=-1, keepdims=True)
            n_different = np.maximum(np.count_nonzero(of_order, axis=-1, keepdims=True), 1)
            probabilities = (of_order + n_different * probabilities) / (n_seen + n_different)
        return cls(-np.log2(probabilities).astype(np.float32))

    def surprise(self, text: str) -> float:
        """Return the mean surprise at a character of a text, in bits; two to the power of it is the perplexity."""
        places = _places(fold(text))
        return float(self._bits[places].mean(dtype=np.float64)) if len(places) else 0.0

    def save(self, path: Path) -> None:
        """Write the table to a file, for `load`."""
        with write_atomically(path) as file:
            np.save(file, self._bits)

    @classmethod
    def load(cls, path: Path) -> "CharacterModel":
        """Read what `save` has written.

        Raises:
            InputError: if the file is something else.
        """
        try:
            bits = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} holds no model of characters: {error}") from error
        if bits.dtype != np.float32 or bits.size != N_KINDS**ORDER:
            raise InputError(f"{path} holds no model of characters, but numbers of another type or shape")
        return cls(bits)

    def identity(self) -> str:
        """Return what tells this model from others."""
        return hashlib.sha256(self._bits.tobytes()).hexdigest()


def _places(kinds: np.ndarray) -> np.ndarray:
    """Return where in the table each character from the fourth on is found, with the three before it."""
    if len(kinds) < ORDER:
        return np.empty(0, dtype=np.int64)
    wide = kinds.astype(np.int64)
    places = wide[: len(wide) - ORDER + 1]
    for n in range(1, ORDER):
        places = places * N_KINDS + wide[n : len(wide) - ORDER + 1 + n]
    return places
