"""The incremental trainer against its obvious twin: count every pair anew, merge the best, repeat."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from working_with_text_data.minbpe import textbook
from working_with_text_data.minbpe.fast.trainer import learn_merges
from working_with_text_data.minbpe.merging import Pair, count_pairs, merge

# few letters, so that runs, overlaps and ties are common
small_pieces = st.dictionaries(
    st.text("ab", max_size=24).map(str.encode) | st.text("abcé ", max_size=24).map(str.encode) | st.binary(max_size=12),
    st.integers(1, 5),
    max_size=8,
)


@given(small_pieces, st.integers(0, 40))
@example({b"aaaa": 1}, 3)
@example({b"abab": 2, b"ba": 2}, 5)
@example({}, 5)
@settings(max_examples=300, deadline=None)
def test_merges_equal_the_textbooks(pieces: dict[bytes, int], n_merges: int) -> None:
    # as lists: the order of the merges counts too
    assert list(learn_merges(pieces, n_merges).items()) == list(textbook.train(pieces, n_merges).items())


def test_merges_equal_the_textbooks_on_a_novel(persuasion: str) -> None:
    pieces = Counter(word.encode() for word in persuasion[:50_000].split())
    assert list(learn_merges(pieces, 150).items()) == list(textbook.train(pieces, 150).items())


@given(small_pieces)
@settings(deadline=None)
def test_order_of_the_pieces_does_not_matter(pieces: dict[bytes, int]) -> None:
    assert learn_merges(dict(reversed(pieces.items())), 30) == learn_merges(pieces, 30)


def test_ties_go_to_the_greater_byte_strings() -> None:
    assert next(iter(learn_merges({b"ab": 1, b"cd": 1, b"ca": 1}, 1))) == (ord("c"), ord("d"))


def test_a_longer_string_is_greater_than_its_prefix() -> None:
    # after "xy" is merged, (x, z) and (xy, z) are equally frequent: "xy" is the greater first half
    pieces = {b"xy": 9, b"xyz": 3, b"xz": 3}
    merges = list(learn_merges(pieces, 2))
    assert merges == [(ord("x"), ord("y")), (256, ord("z"))]


def test_stops_when_no_pair_is_left() -> None:
    merges = learn_merges({b"abc": 1}, 100)
    assert len(merges) == 2


@pytest.mark.parametrize("pieces", [{}, {b"": 3}, {b"a": 7}])
def test_nothing_to_merge(pieces: dict[bytes, int]) -> None:
    assert learn_merges(pieces, 5) == {}


def test_count_pairs_and_merge_do_what_their_docstrings_show() -> None:
    assert count_pairs([1, 2, 3, 1, 2]) == {(1, 2): 2, (2, 3): 1, (3, 1): 1}
    assert merge([1, 2, 3, 1, 2], (1, 2), 4) == [4, 3, 4]
    assert merge([1, 1, 1], (1, 1), 2) == [2, 1]


@given(st.lists(st.integers(0, 3), max_size=20), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_merge_leaves_no_such_pair_behind(ids: list[int], pair: Pair) -> None:
    merged = merge(ids, pair, 9)
    assert pair not in set(pairwise(merged))
