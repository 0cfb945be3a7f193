"""Splitting by any pattern: nothing is lost, all ways to encode and to count agree, and it ends."""

import functools
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.working_with_text_data.test_parity import EVERY_CHARACTER
from utils.files import InputError
from working_with_text_data.minbpe import RegexTokenizer, Tokenizer, splitting, to_huggingface, to_tiktoken, trie
from working_with_text_data.minbpe.regex import CUTS
from working_with_text_data.minbpe.splitting import splitter

ODD_PATTERNS = [
    r"\w+",  # leaves out white space and punctuation
    r"(\w)(\w*)|\s+",  # groups: findall would give those
    r"(?<word>\w+)\s",  # the last word has no space after it
    r"x*",  # matches nothing, everywhere
    r"(?=a)|b+",
    r"\P{L}+",  # one wrong bit in \p{L}
    r"\s+(?=\w)|\S+",
    r"(?i)the|[a-z]+",
    r"^abc",
    r"(?!)",  # never matches
]
MATCH_NOTHING = [r"x*", r"(?=a)|b+"]
TRUSTED = {pattern: splitter(pattern, covers_all=True) for pattern in CUTS}
careful = functools.cache(functools.partial(splitter, covers_all=False))
TEXT = st.text(
    st.sampled_from("aAbcx the\n\r\t.,!'1\u0301é한\U0001f600\x00") | st.characters(exclude_categories=["Cs"])
)


@pytest.mark.parametrize("pattern", ODD_PATTERNS)
@given(text=TEXT)
@settings(deadline=None, max_examples=50)
def test_what_a_pattern_leaves_out_is_kept(pattern: str, text: str) -> None:
    assert "".join(careful(pattern)(text)) == text


@pytest.mark.parametrize("pattern", CUTS, ids=["gpt2", "gpt2 as in tiktoken", "gpt4"])
@given(text=TEXT)
@settings(deadline=None, max_examples=100)
def test_our_patterns_leave_nothing_out_and_are_not_extended(pattern: str, text: str) -> None:
    pieces = TRUSTED[pattern](text)
    assert "".join(pieces) == text
    assert pieces == careful(pattern)(text)


@pytest.mark.parametrize("pattern", CUTS, ids=["gpt2", "gpt2 as in tiktoken", "gpt4"])
def test_our_patterns_match_every_character(pattern: str) -> None:
    assert "".join(TRUSTED[pattern](EVERY_CHARACTER)) == EVERY_CHARACTER


@pytest.mark.parametrize("pattern", ODD_PATTERNS)
def test_training_encoding_and_others_agree_on_it(pattern: str, tmp_path: Path) -> None:
    text = "The theatre, the then -- there!  abc\n\n\txxx bbb 한국어 e\u0301 \U0001f600 the the\r\n" * 100
    tokenizer = RegexTokenizer(pattern)
    pieces = [piece.encode() for piece in tokenizer.split(text)]
    assert b"".join(pieces).decode() == text
    counted = tokenizer._count_pieces([text], workers=1)
    assert {piece: pieces.count(piece) for piece in set(pieces)} == counted
    tokenizer.train(text, 290)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_to_array(text).tolist() == ids == tokenizer.encode_batch([text])[0]
    assert b"".join(trie.pieces(tokenizer, text)).decode() == text
    if pattern in MATCH_NOTHING:
        for export in (to_tiktoken, lambda tokenizer: to_huggingface(tokenizer, tmp_path / "out")):
            with pytest.raises(InputError, match="can match the empty string, where others lose text"):
                export(tokenizer)
        assert not (tmp_path / "out").exists()
        return
    assert to_tiktoken(tokenizer).encode_ordinary(text) == ids
    to_huggingface(tokenizer, tmp_path)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == ids


def test_a_pattern_that_tiktoken_does_not_know() -> None:
    tokenizer = RegexTokenizer(r"(?<word>\w+)(?&word)|\s+")
    with pytest.raises(InputError, match="tiktoken cannot split by the pattern"):
        to_tiktoken(tokenizer)


def test_pieces_that_are_not_the_text_are_refused() -> None:
    with pytest.raises(InputError, match="gives pieces that are not the text"):
        RegexTokenizer(r"ab\Kc|.").split("abc abc")


@pytest.mark.parametrize("pattern", ["(?:a|a)+b", r"(?:\w|\w\w)+!"])
def test_a_pattern_with_too_many_ways_to_match_comes_to_an_end(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "SECONDS", 0.05)
    started = time.process_time()  # not the clock's: others may be at work on this machine
    for use in (RegexTokenizer(pattern).encode, lambda text: RegexTokenizer(pattern).train(text, 300)):
        with pytest.raises(InputError, match="takes more than 0 s to split 61 characters"):
            use("a" * 60 + "?")
    assert time.process_time() - started < 5


def test_a_pattern_that_is_none() -> None:
    for pattern in ("(", "a)|(b", "[", r"\p{Nonsense}", "(?P<a", "x{2,1}", "\ud800", None, 3, ["a"], r"(?x) a # note"):
        with pytest.raises(InputError, match="the splitting pattern .* is not a regular expression"):
            RegexTokenizer(pattern)  # type: ignore[arg-type]


def test_a_saved_tokenizer_with_such_a_pattern_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = RegexTokenizer(r"\w+")
    tokenizer.train("one, two; one, two", 270)
    tokenizer.save(tmp_path / "t.json")
    loaded = Tokenizer.load(tmp_path / "t.json")
    assert loaded.encode("one -- two") == tokenizer.encode("one -- two")
