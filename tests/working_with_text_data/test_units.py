"""Cutting a text into units and numbering them, against the pattern itself and a plain dictionary."""

import functools
import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from working_with_text_data.minbpe import GPT2_PATTERN, GPT2Tokenizer, RankTokenizer, RegexTokenizer
from working_with_text_data.minbpe import regex as regex_module
from working_with_text_data.minbpe.fast import counting
from working_with_text_data.minbpe.fast import units as units_module
from working_with_text_data.minbpe.fast.counting import PieceCounter
from working_with_text_data.minbpe.fast.unit_encoder import UnitEncoder
from working_with_text_data.minbpe.fast.units import CHUNK, GPT2_CUTS, GPT4_CUTS, LONGEST, MAX_UNITS, TOO_LONG, Units
from working_with_text_data.minbpe.regex import CACHE_SIZE, CUTS
from working_with_text_data.minbpe.unicode_classes import compile_pattern

PATTERNS = pytest.mark.parametrize("pattern", CUTS, ids=["gpt2", "gpt2 as in tiktoken", "gpt4"])
SPLIT = {pattern: compile_pattern(pattern).findall for pattern in CUTS}

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# letters, numbers and signs whose first or last byte some white space has too
NEIGHBOURS = (
    "\x80\x84\x86\x9f\xa1\xaf\xc5\xe0\xe9\u0160\u1681\u1690\u180e\u200b\u200d\u2010\u201f\u2020\u205e\u3001\u3042\u30ea"
)
NEIGHBOURS += "\u0120\u0429\u0660\u06f5\u0f20\uac00\ufeff\U0001f600\U0001f185\U000103a0\U0010ffff\u0558"
PLAIN = "abBsSlLvVeErRdDmMtT\u017f''''0123.,!-_(<\x00\x1c\x1f\x7f"
TROUBLE = st.text(
    st.sampled_from(WHITE_SPACE)
    | st.sampled_from(PLAIN)
    | st.sampled_from(NEIGHBOURS)
    | st.characters(exclude_categories=["Cs"])
)
# one character of each kind that the patterns or the cuts tell apart
KINDS = "as'0. \t\n\r\x1c\x85\xa0\u3000é\u0660\u200b한"


def assert_cut_between_pieces(pattern: str, text: str) -> None:
    split, data = SPLIT[pattern], text.encode("utf-8")
    bounds = CUTS[pattern].bounds(data).tolist()
    pieces = split(text)
    ends = set(itertools.accumulate((len(piece.encode("utf-8")) for piece in pieces), initial=0))
    assert (bounds[0], bounds[-1]) == (0, len(data))
    assert ends.issuperset(bounds), (text, bounds)
    units = [data[start:end].decode("utf-8") for start, end in itertools.pairwise(bounds)]
    assert [piece for unit in units for piece in split(unit)] == pieces, (text, units)


# -- cutting ---------------------------------------------------------------------------------------------


@PATTERNS
@given(text=TROUBLE)
@example(text="it's")
@example(text="a \t\n b\r\n\r\n c!\n\n\nd")
@example(text="1\u3000 2\xa0\n'S'\u017f !'LL")
@settings(deadline=None, max_examples=300)
def test_units_one_by_one_give_the_pieces_of_the_whole(pattern: str, text: str) -> None:
    assert_cut_between_pieces(pattern, text)


@PATTERNS
@pytest.mark.parametrize("length", [1, 2, 3, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_so_do_all_short_texts_of_each_kind_of_character(pattern: str, length: int) -> None:
    for characters in itertools.product(KINDS, repeat=length):
        assert_cut_between_pieces(pattern, "".join(characters))
        assert_parts_are_whole_pieces(pattern, "".join(characters), 1)


@PATTERNS
def test_so_do_all_neighbours_of_all_white_space(pattern: str) -> None:
    for characters in itertools.product(WHITE_SPACE + "a.", repeat=3):
        assert_cut_between_pieces(pattern, "".join(characters))


@PATTERNS
def test_so_does_all_that_looks_like_a_contraction(pattern: str) -> None:
    for first, second in itertools.product("sdmtlvreaSDMTLVREA\u017f'. ", repeat=2):
        assert_cut_between_pieces(pattern, f"x'{first}{second} '{first}{second}'{first}")


@PATTERNS
@pytest.mark.parametrize("one_in", [16, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_so_does_every_character_beside_each_kind(pattern: str, one_in: int) -> None:
    """Of those that UTF-8 spells with up to three bytes; the four bytes of others are in `test_hostile_text`.

    Day by day, those below U+0400 and one block of 64 in 16 of the others; exhaustively all.
    """
    for start in [*range(0, 0x400, 64), *range(0x400, 0x10000, 64 * one_in)]:
        characters = [chr(i) for i in range(start, start + 64) if not 0xD800 <= i < 0xE000]
        assert_cut_between_pieces(pattern, "".join(a + b + a for a in characters for b in KINDS))


@PATTERNS
def test_a_novel_is_cut_about_once_a_word(pattern: str, persuasion: str) -> None:
    """Units that are far too long would be right, and slow."""
    lengths = np.diff(CUTS[pattern].bounds(persuasion.encode("utf-8")))
    assert lengths.mean() < 6
    assert lengths.max() < LONGEST


def assert_parts_are_whole_pieces(pattern: str, text: str, size: int) -> None:
    cuts, split = CUTS[pattern], SPLIT[pattern]
    parts = list(cuts.parts(text.encode("utf-8"), size))
    assert b"".join(parts).decode("utf-8") == text
    assert [piece for part in parts for piece in split(part.decode("utf-8"))] == split(text), (
        f"{text[:40]!r}, by {size}"
    )
    assert b"".join(again := list(cuts.text_parts(text, size))) == b"".join(parts)
    assert [piece for part in again for piece in split(part.decode("utf-8"))] == split(text)
    for part in parts:  # too long only if there is hardly anywhere to cut
        assert len(part) <= size or len(cuts.bounds(part[:size])) <= 4


@PATTERNS
@given(text=TROUBLE.map(lambda text: text * 3), size=st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_parts_are_the_text_cut_between_pieces(pattern: str, text: str, size: int) -> None:
    assert_parts_are_whole_pieces(pattern, text, size)


@PATTERNS
def test_lines_without_spaces_are_parted_too(pattern: str) -> None:
    """Or a book in Chinese would be one huge part."""
    text = "今天天气很好。我们去公园散步吧。\n" * 1000
    assert_parts_are_whole_pieces(pattern, text, 1000)
    assert max(map(len, CUTS[pattern].parts(text.encode("utf-8"), 1000))) <= 1000


@PATTERNS
def test_a_part_ends_before_a_long_word_and_not_in_it(pattern: str) -> None:
    text = "word " * 2000 + "x" * 7000 + " word" * 2000 + "y" * 50_000 + "\n" * 5000 + "z\r\n\r\n" * 20_000
    assert_parts_are_whole_pieces(pattern, text, 10_000)


@PATTERNS
def test_spans_have_the_bounds_of_the_whole(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["".join(characters) for characters in itertools.product("as'0. \n\u3000", repeat=4)]
    text = "".join(texts).encode("utf-8")
    whole = CUTS[pattern].bounds(text).tolist()
    for span in (1, 2, 3, 7, 1000, len(text) - 1):
        monkeypatch.setattr(units_module, "SPAN", span)
        assert CUTS[pattern].bounds(text).tolist() == whole
    assert CUTS[pattern].bounds(b"").tolist() == [0]


# -- numbering -------------------------------------------------------------------------------------------


def assert_each_number_is_one_unit(units: Units, texts: list[list[bytes]]) -> None:
    """The obvious twin: a list of distinct units, in which each unit's number finds it again."""
    for text in texts:
        bounds = np.cumsum([0, *map(len, text)])
        found = [units.spelling[number] for number in units.number(b"".join(text), bounds).tolist()]
        assert found == [unit if len(unit) <= LONGEST else units.spelling[TOO_LONG] for unit in text]
    assert len(units.spelling) == len(set(units.spelling))
    assert set(units.spelling[1:]) == {unit for text in texts for unit in text if len(unit) <= LONGEST}


LENGTHS = st.sampled_from([1, 2, 3, 7, 8, 9, 14, 15, 16, 17, 63, 64, 65, 100])
UNIT = st.binary(min_size=1, max_size=20) | st.builds(
    lambda first, filler, length, last: (first + filler * length)[: length - 1] + last,
    st.sampled_from([b"", b"\0", b"a", b"\xff"]),
    st.sampled_from([b"\0", b"a", b"ab", b"\xff"]),
    LENGTHS,
    st.sampled_from([b"\0", b"a", b"b"]),
)


@pytest.mark.parametrize("table_bits", [1, 3, 18])
@given(texts=st.lists(st.lists(UNIT, min_size=1, max_size=30), max_size=4), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_two_units_have_one_number_only_if_they_are_equal(table_bits: int, texts: list[list[bytes]], seed: int) -> None:
    rng = random.Random(seed)
    texts = [text + rng.choices(text, k=20) for text in texts]  # all come again, and then from the table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units_module, "TABLE_BITS", table_bits)  # 1: nearly all units collide
        assert_each_number_is_one_unit(Units(GPT2_CUTS), texts + texts)


def test_units_of_all_lengths_and_with_nuls_at_their_ends_are_told_apart() -> None:
    units = [spelling for n in range(130) for spelling in (bytes(n + 1), bytes(n) + b"a", b"a" + bytes(n + 1))]
    assert_each_number_is_one_unit(Units(GPT4_CUTS), [units, units[::-1], units])


# -- ids -------------------------------------------------------------------------------------------------


@PATTERNS
@given(texts=st.lists(TROUBLE, max_size=5), size=st.integers(1, 200))
@settings(deadline=None, max_examples=100)
def test_small_chunks_give_the_ids_of_large_ones(pattern: str, texts: list[str], size: int) -> None:
    text = "".join(texts) * 3
    encoder = unit_encoder(pattern)
    chunks = encoder.units.chunks(text.encode("utf-8"), size)
    ids = [i for chunk, bounds in chunks for i in encoder._encode_chunk(chunk, bounds)[0].tolist()]
    assert ids == encoder.encode(text.encode("utf-8")).tolist() == trained(pattern)._encode_by_pieces(text)


@PATTERNS
@pytest.mark.parametrize("max_units", [20, MAX_UNITS])
@given(texts=st.lists(TROUBLE, max_size=6))
@settings(deadline=None, max_examples=50)
def test_what_one_encoder_learns_another_takes_over(pattern: str, max_units: int, texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units_module, "MAX_UNITS", max_units)
        encoders = [unit_encoder(pattern) for _ in range(2)]
        for i, text in enumerate(texts + texts):
            learner, listener = encoders[i % 2], encoders[1 - i % 2]
            for encoder in (learner, listener):
                assert encoder.encode(text.encode("utf-8")).tolist() == trained(pattern)._encode_by_pieces(text)
                listener.add_entries(learner.new_entries())


def unit_encoder(pattern: str) -> UnitEncoder:
    return UnitEncoder(CUTS[pattern], trained(pattern)._encode_new_unit, largest_id=299)


@functools.cache
def trained(pattern: str) -> RegexTokenizer:
    tokenizer = RegexTokenizer(pattern)
    tokenizer.train("the cat's mat is on the other mat \u3000\u3000 1234 ééé's\n\n\t\tend!!!\r\n" * 3, 300)
    return tokenizer


@pytest.mark.parametrize("n_tokens", [65_535, 65_536, 65_537])
def test_the_largest_ids_of_16_bits_are_ids_like_others(n_tokens: int) -> None:
    """One number stands for "no id" inside."""
    words = ["".join(letters) for letters in itertools.product("abcdefghijklmnopqrst", repeat=4)][: n_tokens - 256]
    ranks = {bytes([i]): i for i in range(256)} | {word.encode(): 256 + i for i, word in enumerate(words)}
    tokenizer = RankTokenizer(ranks, GPT2_PATTERN, {})
    ids = tokenizer.encode_to_array("\n".join(words[-2000:]))
    assert ids[::2].tolist() == list(range(n_tokens - 2000, n_tokens))
    assert ids.dtype == (np.uint16 if n_tokens <= 2**16 else np.uint32)


# -- forgetting ------------------------------------------------------------------------------------------


def test_of_a_huge_piece_only_the_beginning_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "LONGEST_PIECE", 1000)
    for pattern in (GPT2_PATTERN, r"\s+|\S+"):
        counted = RegexTokenizer(pattern)._count_pieces(["word" + "\n" * 50_500, "é" * 1001], workers=1)
        assert counted == {b"word": 1, b"\n" * 1000: 1, "é".encode() * 500: 1}


def new_words(rng: random.Random, n_words: int) -> str:
    letters = str.maketrans("0123456789", "ghijklmnop")
    return " ".join(f"{rng.getrandbits(50):x}".translate(letters) for _ in range(n_words))


@PATTERNS
def test_forgetting_changes_no_id(pattern: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units_module, "MAX_UNITS", 100)
    tokenizer = RegexTokenizer(pattern)
    tokenizer._set_merges(trained(pattern).merges)
    monkeypatch.setattr(regex_module, "CACHE_SIZE", 50)
    known: list[str] = []
    forgotten = units_before = 0
    for _ in range(300):
        text = " ".join([*rng.choices(known, k=5), *new_words(rng, 10).split(" ")]) if known else "the first"
        known += text.split(" ")
        ids = trained(pattern)._encode_by_pieces(text)
        assert tokenizer._encode_by_units(text).tolist() == tokenizer._encode_by_pieces(text) == ids
        assert tokenizer._units is not None
        n_units = len(tokenizer._units.units.spelling)
        assert n_units <= 100 + len(text)
        assert len(tokenizer._cache) <= 50
        forgotten += n_units < units_before
        units_before = n_units
    assert forgotten > 10


@PATTERNS
def test_counting_forgets_units_and_loses_no_piece(
    pattern: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units_module, "MAX_UNITS", 100)
    texts = [f"it's {new_words(rng, 30)} the cat's\r\n" + "x" * 70 for _ in range(50)]
    counter = PieceCounter(SPLIT[pattern], CUTS[pattern])
    for text in texts:
        counter.add(text.encode("utf-8"))
    assert counter.result() == Counter(piece.encode("utf-8") for text in texts for piece in SPLIT[pattern](text))


@pytest.mark.exhaustive
def test_a_stream_of_ever_new_words_fills_no_more_than_the_caches(rng: random.Random) -> None:
    """Day by day, `test_forgetting_changes_no_id` shows the same of small caches."""
    tokenizer = GPT2Tokenizer()
    for _ in range(60):
        text = new_words(rng, 10_000)
        assert tokenizer._encode_by_units(text).tolist() == tokenizer._encode_by_pieces(text)
        assert tokenizer._units is not None
        assert len(tokenizer._cache) <= CACHE_SIZE
        assert len(tokenizer._units.units.spelling) <= MAX_UNITS + CHUNK
