"""Longest match against a slow twin, and against merging by rank."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.files import InputError
from working_with_text_data.minbpe import (
    GPT2_PATTERN,
    BasicTokenizer,
    GPT2Tokenizer,
    GPT4Tokenizer,
    RankTokenizer,
    RegexTokenizer,
    Tokenizer,
)
from working_with_text_data.minbpe.trie import Difference, LongestMatchEncoder, Trie, compare, pieces

HOSTILE = [
    "", " ", "\n\n\x1ca", "a  b   c    ", "\r\n\r\n", "don't DON'T 'LL", "12345678", "\0\x01\x7f", "<|endoftext|>",
    "é e\u0301 한국어 שלום", "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈", "日本語", "\u0558's",
    "x" * 500, " " * 300, "!?" * 99 + "\n" * 9,
]  # fmt: skip
TOKENS = st.sets(st.binary(min_size=1, max_size=6).map(lambda token: bytes(b"abc"[byte % 3] for byte in token)))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def encoders(persuasion: str) -> dict[str, LongestMatchEncoder]:
    basic, normal = BasicTokenizer(), RegexTokenizer(GPT2_PATTERN, "NFD")
    for tokenizer in (basic, normal):
        tokenizer.train(persuasion[:50_000], 500)
    tokenizers = {"gpt2": GPT2Tokenizer(), "gpt4": GPT4Tokenizer(), "basic": basic, "NFD": normal}
    return {name: LongestMatchEncoder(tokenizer) for name, tokenizer in tokenizers.items()}


@pytest.fixture(scope="module")
def gpt2(encoders: dict[str, LongestMatchEncoder]) -> LongestMatchEncoder:
    return encoders["gpt2"]


KINDS = ["gpt2", "gpt4", "basic", "NFD"]


def longest_match_slowly(tokens: set[bytes], text: bytes) -> list[bytes]:
    found = []
    while text:
        found.append(max((token for token in tokens if text.startswith(token)), key=len))
        text = text[len(found[-1]) :]
    return found


def fewest_tokens(tokens: set[bytes], text: bytes) -> int:
    """By dynamic programming: the fewest for the first byte, the first two, ..."""
    fewest = [0]
    for end in range(1, len(text) + 1):
        fewest.append(1 + min(fewest[start] for start in range(end) if text[start:end] in tokens))
    return fewest[-1]


def spell(tokenizer: Tokenizer, ids: list[int]) -> str:
    return "|".join(tokenizer.vocab[id_].decode() for id_ in ids)


class TestTrie:
    @given(tokens=TOKENS, data=st.text("abcd", max_size=12), start=st.integers(0, 12))
    def test_finds_the_longest_token_and_no_other(self, tokens: set[bytes], data: str, start: int) -> None:
        trie, ids = Trie(), {token: i for i, token in enumerate(sorted(tokens))}
        for token, id_ in ids.items():
            trie.insert(token, id_)
        rest = data.encode()[start:]
        longest = max((token for token in tokens if rest.startswith(token)), key=len, default=None)
        expected = None if longest is None else (ids[longest], start + len(longest))
        assert trie.longest_match(data.encode(), start) == expected

    def test_the_hundred_thousand_tokens_of_gpt4_take_less_than_100_megabytes(self) -> None:
        tokenizer = GPT4Tokenizer()
        tracemalloc.start()
        LongestMatchEncoder(tokenizer)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size < 100e6


class TestEncoder:
    @given(tokens=TOKENS, text=st.text("abc", max_size=40))
    def test_takes_the_longest_token_again_and_again(self, tokens: set[bytes], text: str) -> None:
        all_tokens = tokens | {bytes([byte]) for byte in range(256)}
        tokenizer = RankTokenizer({token: i for i, token in enumerate(sorted(all_tokens))}, ".+", {})
        ids = LongestMatchEncoder(tokenizer).encode_ordinary(text)
        assert [tokenizer.vocab[id_] for id_ in ids] == longest_match_slowly(all_tokens, text.encode())
        assert len(ids) >= fewest_tokens(all_tokens, text.encode())

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_text_comes_back(self, encoders: dict[str, LongestMatchEncoder], kind: str, text: str) -> None:
        tokenizer = encoders[kind].tokenizer
        assert tokenizer.decode(encoders[kind].encode_ordinary(text)) == tokenizer.normalize(text)

    @pytest.mark.parametrize("kind", KINDS)
    @given(text=ANY_TEXT)
    @settings(deadline=None)
    def test_any_text_comes_back(self, encoders: dict[str, LongestMatchEncoder], kind: str, text: str) -> None:
        tokenizer = encoders[kind].tokenizer
        assert tokenizer.decode(encoders[kind].encode_ordinary(text)) == tokenizer.normalize(text)

    def test_a_lone_surrogate_is_named(self, gpt2: LongestMatchEncoder) -> None:
        with pytest.raises(InputError, match=r"lone surrogate, '\\udc80', at position 3"):
            gpt2.encode_ordinary("abc\udc80")

    @pytest.mark.parametrize("kind", ["gpt2", "gpt4"])
    def test_pieces_that_are_tokens_get_the_ids_of_bpe(
        self, encoders: dict[str, LongestMatchEncoder], kind: str, persuasion: str
    ) -> None:
        tokenizer = encoders[kind].tokenizer
        words = {piece for piece in pieces(tokenizer, persuasion) if piece in tokenizer.ranks}
        assert len(words) > 1000
        for word in words:
            assert list(encoders[kind].encode_piece(word)) == [tokenizer.ranks[word]]

    @pytest.mark.parametrize(
        ("word", "merged", "longest"),
        [
            (" attentions", " attent|ions", " attention|s"),
            ("understand", "under|stand", "unders|tan|d"),
            (" pianoforte", " pian|of|ort|e", " piano|fort|e"),
        ],
    )
    def test_words_of_gpt2_that_it_divides_otherwise(
        self, gpt2: LongestMatchEncoder, word: str, merged: str, longest: str
    ) -> None:
        assert spell(gpt2.tokenizer, gpt2.tokenizer.encode(word)) == merged
        assert spell(gpt2.tokenizer, gpt2.encode_ordinary(word)) == longest

    def test_what_was_learned_first_decides_for_bpe(self, gpt2: LongestMatchEncoder) -> None:
        ranks = gpt2.tokenizer.ranks
        assert ranks[b"ions"] < ranks[b" attention"]
        assert ranks[b"stand"] < ranks[b"unders"]

    def test_it_does_not_find_the_fewest_tokens(self, gpt2: LongestMatchEncoder) -> None:
        assert len(gpt2.encode_ordinary("understand")) > fewest_tokens(set(gpt2.tokenizer.ranks), b"understand")


class TestCompare:
    @pytest.mark.parametrize("kind", KINDS)
    def test_counts_what_both_ways_really_give(
        self, encoders: dict[str, LongestMatchEncoder], kind: str, persuasion: str
    ) -> None:
        text, encoder = persuasion[:20_000], encoders[kind]
        comparison = compare(encoder.tokenizer, text)
        assert comparison.tokens_merged == len(encoder.tokenizer.encode_ordinary(text))
        assert comparison.tokens_longest == len(encoder.encode_ordinary(text))
        assert 0 < comparison.differing_pieces <= comparison.pieces
        saved = sum(each.count * (len(each.merged) - len(each.longest)) for each in comparison.differences)
        assert comparison.tokens_merged - comparison.tokens_longest == saved

    def test_the_most_frequent_difference_comes_first(self, gpt2: LongestMatchEncoder) -> None:
        comparison = compare(gpt2.tokenizer, "understand the attentions, their attentions")
        assert (comparison.pieces, comparison.distinct_pieces, comparison.differing_pieces) == (6, 5, 3)
        assert comparison.differences == (
            Difference(b" attentions", 2, (b" attent", b"ions"), (b" attention", b"s")),
            Difference(b"understand", 1, (b"under", b"stand"), (b"unders", b"tan", b"d")),
        )

    @given(text=ANY_TEXT)
    @settings(deadline=None, max_examples=30)
    def test_each_spelling_is_one_of_the_piece(self, encoders: dict[str, LongestMatchEncoder], text: str) -> None:
        for each in compare(encoders["NFD"].tokenizer, text).differences:
            assert each.piece == b"".join(each.merged) == b"".join(each.longest)
            assert each.merged != each.longest

    def test_an_empty_text_has_no_pieces(self, gpt2: LongestMatchEncoder) -> None:
        comparison = compare(gpt2.tokenizer, "")
        assert (comparison.pieces, comparison.tokens_merged, comparison.differences) == (0, 0, ())
