"""Near-duplicates: MinHash finds what it should by its formula, and planted ones are found."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from pretraining.corpus.near_duplicates import (
    N_BANDS,
    Groups,
    band_keys,
    exact_key,
    first_of_each,
    match_probability,
    shingles,
    signatures,
)
from pretraining.corpus.words import plain_words


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    return len(np.intersect1d(one, other)) / len(np.union1d(one, other))


def candidates(documents: list[np.ndarray]) -> np.ndarray:
    """The first document of each one's group."""
    groups = Groups(len(documents))
    keys = band_keys(documents)
    for band in range(N_BANDS):
        groups.join_equal(keys[:, band])
    return groups.firsts()


@pytest.mark.parametrize("similarity", [0.5, 0.75, 0.85])
def test_the_numbers_agree_as_often_as_the_sets_do(similarity: float) -> None:
    rng = np.random.default_rng(0)
    n_pairs, n = 300, 400
    n_common = round(2 * n * similarity / (1 + similarity))
    pairs = []
    for _ in range(n_pairs):
        drawn = rng.integers(0, 2**64, 2 * n - n_common, dtype=np.uint64)
        pairs += [drawn[:n], drawn[n - n_common :]]
    numbers = signatures(pairs).reshape(n_pairs, 2, -1)
    assert (numbers[:, 0] == numbers[:, 1]).mean() == pytest.approx(similarity, abs=0.02)
    keys = band_keys(pairs).reshape(n_pairs, 2, N_BANDS)
    matched = (keys[:, 0] == keys[:, 1]).any(axis=1).mean()
    assert matched == pytest.approx(match_probability(similarity), abs=0.08)


def test_the_formula_is_that_of_the_literature() -> None:
    assert [round(match_probability(j), 3) for j in (0.5, 0.75, 0.8, 0.85)] == [0.053, 0.772, 0.924, 0.988]


def test_planted_duplicates_are_found(persuasion: str, rng: random.Random, say: Callable[[str], None]) -> None:
    """Recall from a similarity of 0.85 on; and how many of those found are as similar as 0.6."""
    words = plain_words(persuasion)
    originals = [words[start : start + 300] for start in range(0, 60_000, 300)]
    planted = []
    for document in originals:
        changed = list(document)
        for _ in range(rng.choice([1, 2, 3, 4, 6, 10, 20, 40])):
            changed[rng.randrange(len(changed))] = f"other{rng.random()}"
        planted.append(changed)
    documents = [shingles(document) for document in (*originals, *planted)]
    firsts = candidates(documents)
    n = len(originals)
    similar = np.array([jaccard(documents[i], documents[n + i]) for i in range(n)])
    found = firsts[n:] == np.arange(n)
    near = similar >= 0.85
    assert near.sum() > 60
    recall = found[near].mean()
    dropped = firsts != np.arange(2 * n)
    precision = (similar[found] >= 0.6).sum() / dropped.sum()
    say(f"near-duplicates: recall {recall:.3f} at a similarity of .85, precision {precision:.3f} at .6")
    assert recall >= 0.95
    assert precision >= 0.95
    assert not dropped[:n].any()
    assert not found[similar < 0.3].any()


def test_short_and_empty_documents_are_not_all_the_same() -> None:
    texts = ["one two", "one two", "one three", "", "", "a b c d e f"]
    firsts = candidates([shingles(plain_words(text)) for text in texts])
    assert firsts.tolist() == [0, 0, 2, 3, 4, 5]


def test_groups_reach_through_others_and_begin_with_the_first() -> None:
    groups = Groups(6)
    groups.join_equal(np.array([9, 1, 0, 2, 1, 0], dtype=np.uint64))
    groups.join_equal(np.array([9, 7, 8, 8, 9, 0], dtype=np.uint64))
    assert groups.firsts().tolist() == [0, 0, 2, 2, 0, 5]


def test_the_first_of_equal_texts_stays() -> None:
    texts = ["A cat, a hat.", "Another", "a CAT\na hat", "another", "the last"]
    keys = np.frombuffer(b"".join(exact_key(plain_words(text)) for text in texts), dtype=np.uint64).reshape(-1, 2)
    assert first_of_each(keys).tolist() == [True, True, False, False, True]
