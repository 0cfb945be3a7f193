"""Round trips, special tokens, files, and equality with independent encoders."""

import json
import math
import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.files import InputError
from working_with_text_data.minbpe import GPT2_PATTERN, GPT4_PATTERN, BasicTokenizer, RegexTokenizer, Tokenizer, merging
from working_with_text_data.minbpe.fast import long_pieces
from working_with_text_data.minbpe.fast.long_pieces import PieceEncoder
from working_with_text_data.minbpe.merging import NEVER, _merge_with_heap, merge
from working_with_text_data.text_files import CORPUS

HOSTILE = [
    "", " ", "\n\n\x1ca", "a  b   c    ", "\r\n\r\n", "don't DON'T 'LL", "12345678", "\0\x01\x7f",
    "é e\u0301 한국어 שלום", "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈", "日本語のテキスト", "\u0558's", "<|endoftext|",
    "x" * 500, " " * 300, "ab" * 300, "!?" * 200 + "\n" * 99,
]  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    text = (CORPUS / "emma.txt").read_text(encoding="utf-8")[:100_000] + "".join(HOSTILE)
    tokenizers = {
        "basic": BasicTokenizer(),
        "gpt2": RegexTokenizer(GPT2_PATTERN),
        "gpt4": RegexTokenizer(GPT4_PATTERN),
    }
    for tokenizer in tokenizers.values():
        tokenizer.train(text, 600)
    return tokenizers


KINDS = ["basic", "gpt2", "gpt4"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HOSTILE)
def test_round_trip_of_hostile_text(trained: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = trained[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_to_array(text).tolist() == ids
    assert tokenizer.encode_batch([text, "a"]) == [ids, tokenizer.encode("a")]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, max_examples=300)
def test_round_trip_of_any_text(trained: dict[str, Tokenizer], kind: str, text: str) -> None:
    assert trained[kind].decode(trained[kind].encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(ids=st.lists(st.integers(0, 700)))
@settings(deadline=None)
def test_decoding_any_ids_gives_text(trained: dict[str, Tokenizer], kind: str, ids: list[int]) -> None:
    assert isinstance(trained[kind].decode(ids), str)


@pytest.mark.parametrize("kind", ["gpt2", "gpt4"])
def test_ids_equal_tiktokens_with_the_same_merges(trained: dict[str, Tokenizer], kind: str, persuasion: str) -> None:
    ours = trained[kind]
    assert isinstance(ours, RegexTokenizer)
    ranks = {spelling: i for i, spelling in ours.vocab.items()}
    theirs = tiktoken.Encoding("ours", pat_str=ours.pattern, mergeable_ranks=ranks, special_tokens={})
    text = persuasion[:200_000]
    assert ours.encode(text) == theirs.encode_ordinary(text)
    for hostile in HOSTILE:
        assert ours.encode(hostile) == theirs.encode_ordinary(hostile), hostile


def test_merges_equal_hugging_faces_trainer_where_no_ties_decide(persuasion: str) -> None:
    """Their trainer breaks ties in another way, so compare up to the first merge that a tie decided."""
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator([persuasion], trainer)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    ours = RegexTokenizer(GPT2_PATTERN)
    ours.train(persuasion, 400)
    made = [ours.vocab[i].decode("utf-8").replace(" ", "Ġ").replace("\n", "Ċ") for i in range(256, 400)]
    agreed = sum(a == "".join(b) for a, b in zip(made, merges, strict=True))
    assert agreed > 130, "a tie may swap two neighbours, no more"
    assert set(made) == {"".join(pair) for pair in merges}


@given(learned_from=st.text("abc", max_size=80), text=st.text("abc", max_size=80), n_merges=st.integers(0, 30))
@settings(deadline=None, max_examples=200)
def test_merging_by_rank_is_the_textbooks_merging_by_pair(learned_from: str, text: str, n_merges: int) -> None:
    """What a token spells is enough to merge it, for any merges that training can learn; the heap agrees."""
    tokenizer = BasicTokenizer()
    tokenizer.train(learned_from, 256 + n_merges)
    expected = list(text.encode())
    for pair, new_id in tokenizer.merges.items():  # the obvious way: in the order they were learned
        expected = merge(expected, pair, new_id)
    assert tokenizer.encode(text) == expected
    spelled = [tokenizer.vocab[i] for i in expected]
    assert _merge_with_heap(text.encode(), tokenizer.ranks, NEVER) == spelled


@given(
    tokens=st.lists(st.text("abc", min_size=2, max_size=6).map(str.encode), unique=True, max_size=30),
    text=st.text("abc", max_size=60).map(str.encode),
    block_length=st.integers(1, 9),
)
@settings(deadline=None, max_examples=300)
@example([b"aa"], b"a" * 59, 3)
@example([b"cc", b"bc", b"ab"], b"abcc" * 9, 2)
def test_merging_block_by_block_gives_the_ids_of_the_whole(tokens: list[bytes], text: bytes, block_length: int) -> None:
    """For any tokens in any order, trained or not."""
    ranks = {token: i for i, token in enumerate([*merging.BYTES, *tokens])}
    vocab = {i: token for token, i in ranks.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_pieces, "BLOCK_LENGTH", block_length)
        ids = PieceEncoder(ranks, vocab, math.inf).encode(text, goes_on=False)
    assert [vocab[id_] for id_ in ids] == merging.merge_by_rank(text, ranks)


@given(
    learned_from=st.text("ab ", max_size=200),
    n_merges=st.integers(1, 8),
    text=st.text("ab ", max_size=300),
    length=st.integers(1, 50),
    block_length=st.integers(1, 9),
)
@settings(deadline=None)
@example("a" * 64, 3, "a" * 100, 7, 3)
@example("ab" * 20 + "ba", 4, "ab" * 50, 3, 2)
def test_ids_given_away_before_the_piece_ends_are_those_of_the_whole(
    learned_from: str, n_merges: int, text: str, length: int, block_length: int
) -> None:
    tokenizer = BasicTokenizer()
    tokenizer.train(learned_from, 256 + n_merges)
    look_ahead = sum(len(token) for token in tokenizer.ranks if len(token) > 1)
    encoder = PieceEncoder(tokenizer.ranks, tokenizer.vocab, look_ahead)
    ids: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_pieces, "BLOCK_LENGTH", block_length)
        for start in range(0, len(text), length):
            ids += encoder.encode(text[start : start + length].encode(), goes_on=True)
            n_waiting = start + length - len(tokenizer.decode_bytes(ids))
            assert n_waiting < look_ahead + length + max(map(len, tokenizer.ranks)), "no more is kept back than need be"
    ids += encoder.encode(b"", goes_on=False)
    assert [tokenizer.vocab[id_] for id_ in ids] == merging.merge_by_rank(text.encode(), tokenizer.ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_word_takes_the_memory_and_time_of_its_length(trained: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = trained[kind]
    tokenizer.encode_to_array("the table of units is made now " * 1000)
    for word in ("abcdefghij" * 20_000, " " * 1_000_000, "é" * 400_000):
        tracemalloc.start()
        ids = tokenizer.encode_to_array(word)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20e6, "about 80 bytes per byte, if all tokens of a piece were Python objects at once"
        assert tokenizer.decode(ids) == word
        end = word[-long_pieces.BLOCKS_LENGTH :]  # which is merged as a whole
        assert tokenizer.encode_ordinary(end)[-30:] == ids[-30:].tolist()


@pytest.mark.parametrize("kind", ["gpt2", "gpt4"])
def test_of_a_huge_piece_there_are_few_copies(trained: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = trained[kind]
    tokenizer.encode_to_array("the table of units is made now " * 1000)
    for text, most in (("^" * 1_000_000, 8), ("x " + "^" * 1_000_000 + "\n \nx", 12)):
        tracemalloc.start()
        ids = tokenizer.encode_to_array(text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(ids) >= 1_000_000, "each byte is a token"
        assert peak < most * len(ids), "a list of the ids alone takes eight bytes of each"
        assert tokenizer.decode(ids) == text


def test_a_lone_surrogate_in_training_is_named() -> None:
    for tokenizer in (BasicTokenizer(), RegexTokenizer(), RegexTokenizer(".")):
        for workers in (1, 2):
            with pytest.raises(InputError, match=r"the text holds a lone surrogate, '\\ud800', at position 3"):
                tokenizer.train(["ok", "abc\ud800"], 300, workers=workers)


def test_vocabulary_below_the_bytes_is_refused() -> None:
    for tokenizer in (BasicTokenizer(), RegexTokenizer()):
        with pytest.raises(InputError, match="at least 256, the number of bytes, got 255"):
            tokenizer.train("text", 255)


def test_training_stops_when_no_pair_is_left() -> None:
    tokenizer = RegexTokenizer()
    tokenizer.train("ab ab", 1000)
    assert tokenizer.vocab_size < 260
    assert tokenizer.decode(tokenizer.encode("ab ab")) == "ab ab"


def test_training_again_forgets_the_first_time() -> None:
    tokenizer = RegexTokenizer()
    tokenizer.add_special_tokens("<|end|>")
    tokenizer.train("aaaa bbbb", 260)
    assert tokenizer.encode("aaaa") != list(b"aaaa")
    tokenizer.train("cccc dddd", 260)
    assert tokenizer.encode("aaaa") == list(b"aaaa")
    assert tokenizer.encode("<|end|>", allowed_special="all") == [tokenizer.special_tokens["<|end|>"]]


def test_documents_are_never_joined() -> None:
    tokenizer = BasicTokenizer()
    tokenizer.train(["ab"] * 5, 300)
    assert list(tokenizer.merges) == [(ord("a"), ord("b"))]  # (b, a) would span two documents


def test_lone_surrogates_raise(trained: dict[str, Tokenizer]) -> None:
    for tokenizer in trained.values():
        with pytest.raises(InputError, match="lone surrogate, '.ud800', at position 1"):
            tokenizer.encode("a\ud800b")


class TestSpecialTokens:
    @pytest.fixture
    def tokenizer(self) -> RegexTokenizer:
        tokenizer = RegexTokenizer()
        tokenizer.train("some text, some more text", 270)
        tokenizer.add_special_tokens("<|a|>", "<|a|><|b|>", "<|end|>")
        return tokenizer

    def test_in_text_they_raise_by_default(self, tokenizer: RegexTokenizer) -> None:
        with pytest.raises(InputError, match=r"holds the special token '<\|end\|>'"):
            tokenizer.encode("text<|end|>")

    def test_allowed_ones_become_their_id(self, tokenizer: RegexTokenizer) -> None:
        end = tokenizer.special_tokens["<|end|>"]
        assert tokenizer.encode("<|end|>x<|end|>", allowed_special={"<|end|>"}) == [end, ord("x"), end]
        assert tokenizer.encode("<|end|>", allowed_special="all") == [end]

    def test_the_longest_wins(self, tokenizer: RegexTokenizer) -> None:
        assert tokenizer.encode("<|a|><|b|>", allowed_special="all") == [tokenizer.special_tokens["<|a|><|b|>"]]

    def test_as_plain_text(self, tokenizer: RegexTokenizer) -> None:
        ids = tokenizer.encode("<|end|>", disallowed_special=())
        assert tokenizer.special_tokens["<|end|>"] not in ids
        assert tokenizer.decode(ids) == "<|end|>"

    def test_decode_spells_them(self, tokenizer: RegexTokenizer) -> None:
        text = "text<|end|><|a|>"
        assert tokenizer.decode(tokenizer.encode(text, allowed_special="all")) == text

    def test_unknown_ones_are_refused(self, tokenizer: RegexTokenizer) -> None:
        with pytest.raises(InputError, match="unknown special token '<nope>'"):
            tokenizer.encode("x", allowed_special={"<nope>"})

    def test_an_id_of_ones_choice(self, tokenizer: RegexTokenizer, tmp_path: Path) -> None:
        tokenizer.add_special_tokens({"<far>": 50_300}, "<next>")
        assert tokenizer.vocab_size == 50_302
        assert tokenizer.encode("<next><far>", allowed_special="all") == [50_301, 50_300]
        tokenizer.add_special_tokens({"<far>": 50_300, "<gap>": 1000})
        tokenizer.save(tmp_path / "t.json")
        assert Tokenizer.load(tmp_path / "t.json").special_tokens == tokenizer.special_tokens
        assert tokenizer.decode([1000, 50_300]) == "<gap><far>"

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ("\udc80", r"the special token '\\udc80' holds a lone surrogate"),
            ("", "must not be empty"),
            ({"<x>": 97}, "'<x>' has the id 97, which b'a' has already"),
            ({"<x>": 5000, "<y>": 5000}, "'<y>' has the id 5000, which '<x>' has already"),
            ({"<|end|>": 5000}, "'<|end|>' has the id .* already, so it cannot have 5000"),
            ({"<x>": -1}, "'<x>' must have an id from 0 to 2,147,483,647, got -1"),
            ({"<x>": 2**31}, "must have an id from 0 to"),
            ({"<x>": 5000.0}, "must have an id from 0 to"),
            ({"<x>": True}, "must have an id from 0 to"),
        ],
    )
    def test_all_are_added_or_none(
        self, tokenizer: RegexTokenizer, wanted: str | dict[str, int], message: str, tmp_path: Path
    ) -> None:
        before = (dict(tokenizer.special_tokens), dict(tokenizer.vocab), tokenizer.vocab_size)
        with pytest.raises(InputError, match=message.replace("|", r"\|")):
            tokenizer.add_special_tokens("<first>", wanted)
        assert (tokenizer.special_tokens, tokenizer.vocab, tokenizer.vocab_size) == before
        tokenizer.save(tmp_path / "t.json")

    def test_adding_one_twice_changes_nothing(self, tokenizer: RegexTokenizer) -> None:
        before = dict(tokenizer.special_tokens)
        tokenizer.add_special_tokens("<|end|>")
        assert tokenizer.special_tokens == before
        assert sorted(before.values()) == list(range(tokenizer.vocab_size - 3, tokenizer.vocab_size))


class TestFiles:
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_saved_is_loaded(self, trained: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
        tokenizer = trained[kind]
        tokenizer.save(tmp_path / "t.json")
        loaded = Tokenizer.load(tmp_path / "t.json")
        assert type(loaded) is type(tokenizer)
        assert loaded.settings() == tokenizer.settings()
        assert list(loaded.merges.items()) == list(tokenizer.merges.items())
        assert loaded.vocab == tokenizer.vocab
        assert loaded.special_tokens == tokenizer.special_tokens
        loaded.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "t.json").read_bytes()

    def test_every_cut_is_noticed(self, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
        path = tmp_path / "t.json"
        trained["gpt4"].save(path)
        whole = path.read_bytes()
        for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"t\.json is damaged"):
                Tokenizer.load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 4}, "has version 4, this code reads versions up to 3"),
            ({"version": [3]}, r"has version [3], this code reads"),
            ({"format": "other"}, 'lacks the entry "format": "minbpe"'),
            ({"type": "NoSuchTokenizer"}, 'the entry "type" must be one of BasicTokenizer'),
            ({"type": ["RegexTokenizer"]}, 'the entry "type" must be a string'),
            ({"merges": [[1]]}, "the merge that makes the token 256 must be two ids, got [1]"),
            ({"merges": [[97, 1.9]]}, "the token 256 must be two ids, got [97, 1.9]"),
            ({"merges": [[97, True]]}, "the token 256 must be two ids, got [97, True]"),
            ({"merges": [[97, 98], [97, 257]]}, "the token 257 must be of ids below it, got [97, 257]"),
            ({"merges": [[97, -1]]}, "the token 256 must be of ids below it, got [97, -1]"),
            ({"merges": [[97, 98], [97, 98]]}, "the token 257, [97, 98], has made the token 256 already"),
            ({"merges": [[i, i] for i in [97, *range(256, 295)]]}, "make over 16,777,216 bytes"),
            ({"merges": None}, 'the entry "merges" must be a list, got None'),
            ({"special_tokens": None}, 'the entry "special_tokens" must be an object, got None'),
            ({"special_tokens": {"<x>": -1}}, "'<x>' must have an id from 0 to 2,147,483,647, got -1"),
            ({"special_tokens": {"<x>": 2**63}}, "'<x>' must have an id from 0 to"),
            ({"special_tokens": {"<x>": float("inf")}}, "'<x>' must have an id from 0 to 2,147,483,647, got inf"),
            ({"special_tokens": {"<x>": 700.5}}, "'<x>' must have an id from 0 to"),
            ({"special_tokens": {"<x>": 97}}, "'<x>' has the id 97, which b'a' has already"),
            ({"special_tokens": {"<x>": 900, "<y>": 900}}, "'<y>' has the id 900, which '<x>' has already"),
            ({"special_tokens": {"": 900}}, "a special token must not be empty"),
            ({"special_tokens": {"\ud800": 900}}, r"the special token '\ud800' holds a lone surrogate"),
            ({"settings": None}, 'the entry "settings" must be an object, got None'),
            ({"settings": {"pattern": "("}}, "is not a regular expression"),
            ({"settings": {"pattern": ["a"]}}, "['a'] is not a regular expression"),
            ({"settings": {"pattern": "\ud800"}}, "is not a regular expression"),
            ({"settings": {"pattern": ".", "colour": 1}}, "unexpected keyword argument 'colour'"),
            ({"settings": {"pattern": ".", "normalization": 3}}, "normalization must be NFC, NFD, NFKC or none, got 3"),
            ({"settings": {"pattern": "\x1b[31m("}}, r"\x1b"),
        ],
    )
    def test_damage_is_named(
        self, trained: dict[str, Tokenizer], tmp_path: Path, change: dict[str, object], message: str
    ) -> None:
        """Also in files of versions that have no checksum."""
        path = tmp_path / "t.json"
        trained["gpt4"].save(path)
        content = {**json.loads(path.read_bytes()), "version": 2, **change}
        del content["sha256"]
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            Tokenizer.load(path)
        assert str(caught.value).isprintable()

    def test_a_missing_entry_is_named(self, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
        path = tmp_path / "t.json"
        trained["gpt4"].save(path)
        content = {**json.loads(path.read_bytes()), "version": 2}
        del content["sha256"]
        for name in ("type", "settings", "merges", "special_tokens"):
            path.write_text(json.dumps({key: value for key, value in content.items() if key != name}))
            with pytest.raises(InputError, match=f'the entry "{name}" is missing'):
                Tokenizer.load(path)

    def test_every_wrong_bit_is_noticed(
        self, trained: dict[str, Tokenizer], tmp_path: Path, rng: random.Random
    ) -> None:
        """Or changes nothing, as where it makes "\u0041" of "\u0041"'s hexadecimal digits' other case."""
        path = tmp_path / "t.json"
        tokenizer = RegexTokenizer(GPT4_PATTERN)
        tokenizer.train("a few words, and a few more", 270)
        tokenizer.add_special_tokens("<|endoftext|>")
        tokenizer.save(path)
        whole = path.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(InputError) as caught:
                Tokenizer.load(path)
            assert str(caught.value).isprintable()

    def test_damage_without_a_checksum_loses_no_text(self, tmp_path: Path, rng: random.Random) -> None:
        """One wrong byte in a file of version 2, which had none: an error in one line, or all of a text is kept."""
        tokenizer = RegexTokenizer(GPT2_PATTERN)
        tokenizer.train("a few words, and a few more", 270)
        tokenizer.add_special_tokens("<|endoftext|>")
        path = tmp_path / "t.json"
        tokenizer.save(path)
        content = {**json.loads(path.read_bytes()), "version": 2}
        del content["sha256"]
        whole = json.dumps(content).encode()
        text = "A few more words:\r\n 한국어, 12 \U0001f600  \n"
        messages = []
        for _ in range(200):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(damaged))] = rng.choice(b'[]{}()",.0129eE-+*?|^\\Pp\x00\xff ')
            path.write_bytes(damaged)
            try:
                loaded = Tokenizer.load(path)
                assert loaded.decode(loaded.encode_ordinary(text)) == text
            except InputError as error:
                messages.append(str(error))
        assert all(message.isprintable() for message in messages)
        assert 10 < len(messages) < 190, "the pattern, where much is possible, is a third of the file"

    def test_brackets_within_brackets(self, tmp_path: Path) -> None:
        path = tmp_path / "t.json"
        for content in ("[" * 100_000, '{"format":"minbpe","version":2,"merges":' + "[" * 100_000):
            path.write_text(content)
            with pytest.raises(InputError, match="nested too deeply"):
                Tokenizer.load(path)

    def test_an_instance_does_not_load(self, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
        trained["gpt4"].save(tmp_path / "t.json")
        with pytest.raises(InputError, match=r"write tokenizer = Tokenizer.load\(path\)"):
            RegexTokenizer().load(tmp_path / "t.json")
        assert RegexTokenizer.load(tmp_path / "t.json").vocab == trained["gpt4"].vocab

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Tokenizer.load(tmp_path / "none.json")


def test_importing_is_cheap() -> None:
    """Tokenizers load neither torch nor transformers, and cost under 0.3 s beyond an empty Python."""
    timed = "import time; start = time.process_time(); {}; spent = time.process_time() - start; import sys; "
    timed += "print(spent, *{{'torch', 'transformers', 'tiktoken', 'tokenizers'}} & set(sys.modules))"
    runs = []
    for _ in range(3):  # the best of three: the first reads from a cold disk
        code = timed.format("import working_with_text_data.minbpe")
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        spent, *loaded = result.stdout.split()
        assert not loaded
        runs.append(float(spent))
    assert min(runs) < 0.3


def test_works_without_other_tokenizer_libraries() -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'tiktoken', 'tokenizers']));"
    use = (
        "from working_with_text_data.minbpe import RegexTokenizer; t = RegexTokenizer();"
        "t.train('to be or not to be', 260);"
        "assert t.decode(t.encode('to be')) == 'to be'"
    )
    subprocess.run([sys.executable, "-c", hidden + use], check=True)
