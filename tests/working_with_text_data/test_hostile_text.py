"""GPT-2's and GPT-4's tokenizers against tiktoken's "gpt2" and "cl100k_base", on text made to trip them up.

Short texts go through both ways of encoding: piece by piece, and by units (see `units.py`).
"""

import itertools
import random
import time
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.working_with_text_data.test_parity import EVERY_CHARACTER, NAMES, both
from working_with_text_data.minbpe.regex import SHORT_TEXT

TEXTS_A_DRAW = 20

# What the patterns, Unicode or the cuts between units make something of, or are tempted to.
WHITE_SPACE = [*"\t\n\v\f\r \x85\xa0\u1680\u2000\u2004\u200a\u2028\u2029\u202f\u205f\u3000", "  ", "\r\n", " \n"]
ALMOST_WHITE_SPACE = [*"\x1c\x1d\x1e\x1f\x00\x01\x7f\x84\u180e\u200b\u2060\ufeff\u2800\u3164"]
CONTRACTIONS = [
    "'", "'s", "'S", "'ll", "'LL", "'lL", "'ve", "'re", "'Re", "'d", "'M", "'t", "don't", "'\u017f", "\u2019s", "'l",
]  # fmt: skip
UNASSIGNED = [*"\u0558\u05c8\u0378\u1c89\ua7cb\U000323b0\U0010ffff\ufdd0\ue000", "\u0558's"]
EMOJI = [
    "\U0001f600", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3", "\u200d", "\ufe0f",
]  # fmt: skip
COMBINING = ["e\u0301", "\u0301", "Z\u0351\u036b\u0343", "\u1100\u1161\u11a8", "\u0915\u094d\u0937", "\u0e19\u0e49"]
RIGHT_TO_LEFT = ["שלום", "مرحبا", "\u202e", "\u200f", "\u2067", "\u0660\u0661"]
NUMBERS = ["0", "12", "123", "4567", "3.14", "²", "½", "Ⅷ", "一", "\U0001d7d9"]
PUNCTUATION = ["!", "...", "?!", "-", "_", "(", '"', "¿", "。", "\\", "#", "<|endoftext|>"]
WORDS = ["a", "A", "the", " the", " Hello", "ing", "é", "Straße", "Ünïcödé", "日本語", " 한국어", "return x", "x" * 30]
SNIPPETS = [
    *WHITE_SPACE, *ALMOST_WHITE_SPACE, *CONTRACTIONS, *UNASSIGNED, *EMOJI, *COMBINING, *RIGHT_TO_LEFT, *NUMBERS,
    *PUNCTUATION, *WORDS,
]  # fmt: skip
PLANES = [0x80, 0x300, 0x3100, 0x10000, 0x20000, 0x110000]  # a random character is below one of these
SNIPPET = st.sampled_from(SNIPPETS) | st.characters(exclude_categories=["Cs"])


def hostile_texts(snippets: list[str], rng: random.Random) -> list[str]:
    """TEXTS_A_DRAW texts made of the snippets given, runs of them, and others."""

    def stretch() -> str:
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(snippets)
        if kind < 0.7:
            return rng.choice(snippets) * rng.choice((2, 3, 4, 7, 8, 15, 16, 40, 70))
        if kind < 0.9:
            return rng.choice(SNIPPETS)
        code_point = rng.randrange(rng.choice(PLANES))
        return "\ufffd" if 0xD800 <= code_point < 0xE000 else chr(code_point)

    return ["".join(stretch() for _ in range(rng.randint(1, 9))) for _ in range(TEXTS_A_DRAW)]


def differs(name: str, text: str) -> str:
    """What is wrong with the ids of a text; empty if nothing."""
    ours, theirs = both(name)
    expected = theirs.encode_ordinary(text)
    if (found := ours._encode_by_pieces(text)) != expected:
        return f"piece by piece {found}, tiktoken {expected}"
    if (found := ours._encode_by_units(text).tolist()) != expected:
        return f"by units {found}, tiktoken {expected}"
    if ours.encode(text, disallowed_special=()) != expected:
        return f"tiktoken {expected}, `encode` neither"
    return "" if ours.decode(expected) == text else f"decoded {ours.decode(expected)!r}"


def shortest(text: str, fails: Callable[[str], object]) -> str:
    """Of a text that fails, what is left when no stretch of it can be left out any more."""
    size = len(text)
    while size:
        at = 0
        while at < len(text):
            if fails(shorter := text[:at] + text[at + size :]):
                text = shorter
            else:
                at += size
        size //= 2
    return text


def assert_same(name: str, text: str) -> None:
    if differs(name, text):
        fail(name, text)


def fail(name: str, text: str) -> NoReturn:
    if differs(name, text):
        text = shortest(text, lambda part: differs(name, part))
    raise AssertionError(f"{name}, {text!r}: {differs(name, text) or 'not the second time'}")


def assert_same_when_long(name: str, text: str) -> None:
    ours, theirs = both(name)
    found, expected = ours.encode_to_array(text), theirs.encode_to_numpy(text, disallowed_special=())
    if not np.array_equal(found, expected):
        at = next(i for i, (a, b) in enumerate(itertools.zip_longest(found, expected)) if a != b)
        around = slice(max(at - 5, 0), at + 5)
        raise AssertionError(f"{name}, id {at:,}, in {ours.decode(expected[around])!r}: {found[around]}")
    assert ours.decode(found) == text


# -- any text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cases", [3_000, pytest.param(100_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", NAMES)
def test_ids_of_hostile_text_equal_tiktokens(name: str, cases: int, say: Callable[[str], None]) -> None:
    everything: list[str] = []

    @given(st.lists(SNIPPET, min_size=1, max_size=6), st.integers(0, 2**32))
    @settings(
        max_examples=cases // TEXTS_A_DRAW,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a text that fails is shortened by `shortest`
        suppress_health_check=list(HealthCheck),
    )
    def compare(snippets: list[str], seed: int) -> None:
        texts = hostile_texts(snippets, random.Random(seed))
        for text in texts:
            assert_same(name, text)
        assert_same(name, "".join(texts))
        everything.extend(texts)

    compare()
    assert len(everything) >= cases
    assert_same_when_long(name, "".join(everything))
    say(f"{name}: the ids of {len(everything):,} hostile texts equal tiktoken's")


def test_a_text_that_fails_is_shortened_to_what_matters() -> None:
    assert shortest("some text, in which x comes before y, and more", lambda s: "y" in s[s.find("x") :]) == "xy"


ALONE, SURROUNDED = "{}", "'{} a{}'s 1{}2  {}\n"


@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("around", [ALONE, SURROUNDED], ids=["alone", "surrounded"])
@pytest.mark.parametrize("name", NAMES)
def test_every_code_point_is_what_it_is_to_tiktoken(
    name: str, around: str, step: int, say: Callable[[str], None]
) -> None:
    """Assigned or not, alone and in places where it matters what kind of character it is.

    Day by day one code point in 37, exhaustively all of them.
    """
    ours, theirs = both(name)
    texts = [around.replace("{}", character) for character in EVERY_CHARACTER[::step]]
    for start in range(0, len(texts), 2**14):  # so few that the pieces are remembered the second time
        some = texts[start : start + 2**14]
        whole = "".join(some)
        expected = theirs.encode_ordinary(whole)
        if not expected == ours.encode_to_array(whole).tolist() == ours._encode_by_pieces(whole):
            fail(name, whole)
        if around == ALONE:
            for text in some:
                if ours.encode_ordinary(text) != theirs.encode_ordinary(text):
                    fail(name, text)
    say(f"{name}, {around!r}: {len(texts):,} code points give tiktoken's ids")


# -- one piece without end -------------------------------------------------------------------------------

ENDLESS = {
    "letter": "a", "letters": "abcdefghij", "accents": "é", "spaces": " ", "other spaces": "\xa0", "digits": "7",
    "newlines": "\n", "line ends": "\r\n", "spaces and newlines": " \n", "exclamation": "!", "emoji": "\U0001f600",
    "joined emoji": "\U0001f469\u200d", "apostrophes": "'", "NULs": "\0", "combining marks": "\u0301",
}  # fmt: skip


@pytest.mark.parametrize("size", [100_000, pytest.param(1_000_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("name", NAMES)
def test_text_without_a_cut_takes_seconds(name: str, kind: str, size: int) -> None:
    ours, theirs = both(name)
    text = ENDLESS[kind] * (size // len(ENDLESS[kind].encode("utf-8")))
    start = time.process_time()  # not the clock's: others may be at work on this machine
    found = ours.encode_to_array(text)
    assert time.process_time() - start < 20
    assert found.tolist() == theirs.encode_ordinary(text)
    assert ours.decode(found) == text


@pytest.mark.parametrize("n_spaces", [100_000, pytest.param(1_000_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", NAMES)
def test_spaces_before_a_word_are_all_but_one_a_piece(name: str, n_spaces: int) -> None:
    """At this length tiktoken's engine overflows its stack, so it gets the two pieces one by one."""
    ours, theirs = both(name)
    found = ours.encode_ordinary(" " * n_spaces + "word")
    assert found == theirs.encode_ordinary(" " * (n_spaces - 1)) + theirs.encode_ordinary(" word")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [SHORT_TEXT - 1, SHORT_TEXT, SHORT_TEXT + 1, 2**18 - 1, 2**18, 2**18 + 1])
def test_nothing_changes_where_the_way_of_encoding_does(name: str, length: int) -> None:
    ours, theirs = both(name)
    for sentence in ("It's  12345 o'clock!\n\n", "日本\u3000語、\xa0é 's\r\n"):
        text = (sentence * length)[:length]
        assert ours.encode(text) == ours.encode_to_array(text).tolist() == theirs.encode_ordinary(text)
