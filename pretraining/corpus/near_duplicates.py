"""Documents that are nearly the same as another one, found without comparing all pairs: MinHash and its bands.

A document is the set of its shingles, here all phrases of five words. Under a random order of all shingles, two
documents have the same first one with a probability equal to their Jaccard similarity J, the share of all their
shingles that they have in common (Broder 1997). 112 such orders give each document 112 numbers, cut into 14 bands of
8. Two documents become candidates if all 8 numbers of any band agree, with probability

    1 - (1 - J^8)^14        .053 at J = .5, .77 at .75, .92 at .8, .99 at .85

which are the numbers of FineWeb (https://arxiv.org/abs/2406.17557). Candidates count as duplicates, also of all that
their candidates resemble, and of such a group the first document is kept. `rensa` computes the numbers.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from pretraining.corpus.words import Phrases, mixed
from utils.extras import missing

SHINGLE = 5  # words
N_BANDS = 14
ROWS = 8  # numbers per band
SEED = 42


def match_probability(similarity: float) -> float:
    """Return how likely two documents of a Jaccard similarity are to agree in a band.

    >>> round(match_probability(0.8), 2)
    0.92
    """
    return 1 - (1 - similarity**ROWS) ** N_BANDS


def exact_key(words: Sequence[str]) -> bytes:
    """Return 16 bytes that are the same for the same words, from `plain_words`: case and punctuation do not count."""
    return hashlib.blake2b(" ".join(words).encode("utf-8"), digest_size=16).digest()


def shingles(words: Sequence[str]) -> np.ndarray:
    """Return a number for each phrase of five words; a shorter text is one phrase, and one without words has none."""
    return mixed(Phrases(words).hashes(min(SHINGLE, max(len(words), 1))))


def band_keys(documents: Sequence[np.ndarray]) -> np.ndarray:
    """Return what two documents must agree in to be candidates, for each band: uint64 (documents, bands).

    Args:
        documents: the shingles of each. One without any has keys of 0, which agree with nothing.
    """
    numbers = signatures(documents)
    with np.errstate(over="ignore"):
        multipliers = np.uint64(0x9E37_79B9_7F4A_7C15) ** np.arange(1, ROWS + 1, dtype=np.uint64)
        keys = (numbers.reshape(len(documents), N_BANDS, ROWS) * multipliers).sum(axis=2, dtype=np.uint64)
    keys[[not len(document) for document in documents]] = 0
    return keys


def signatures(documents: Sequence[np.ndarray]) -> np.ndarray:
    """Return the 112 MinHash numbers of each document, from its shingles: uint64 (documents, 112).

    Raises:
        InputError: if rensa is not installed.
    """
    try:
        from rensa import RMinHash  # here only: nothing else needs it
    except ImportError as error:
        raise missing("rensa", "data", "finding near-duplicates") from error
    if not documents:
        return np.empty((0, N_BANDS * ROWS), dtype=np.uint64)
    ends = np.cumsum([0, *map(len, documents)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(documents), ends, N_BANDS * ROWS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint64)


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """Return whether each document is the first with its key.

    Args:
        keys: uint64 (documents, 2), from `exact_key`.
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable, so that the first of equals stays the first
    is_first = np.ones(len(keys), dtype=bool)
    is_first[order[1:]] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    return is_first


class Groups:
    """Documents that belong together, directly or through others: union-find, where the first of a group stands for it.

    Args:
        n: documents, from 0 on.
    """

    def __init__(self, n: int) -> None:
        self.parents = np.arange(n)

    def join_equal(self, keys: np.ndarray) -> None:
        """Join the documents with the same key; a key of 0 joins nothing.

        Args:
            keys: uint64 (n,).
        """
        order = np.argsort(keys, kind="stable")
        in_order = keys[order]
        same = np.flatnonzero((in_order[1:] == in_order[:-1]) & (in_order[1:] != 0))
        for one, other in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            self._join(one, other)

    def firsts(self) -> np.ndarray:
        """Return the first document of each document's group."""
        while not np.array_equal(above := self.parents[self.parents], self.parents):
            self.parents = above
        return self.parents

    def _join(self, one: int, other: int) -> None:
        one, other = sorted((self._find(one), self._find(other)))
        self.parents[other] = one

    def _find(self, document: int) -> int:
        parents = self.parents
        while (parent := parents[document]) != document:
            parents[document] = parents[parent]  # shorter for the next one
            document = parent
        return int(document)
