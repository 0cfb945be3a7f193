"""GPT-2's and GPT-4's tokenizers against tiktoken's "gpt2" and "cl100k_base": data, special tokens, real text.

Hostile text is in `test_hostile_text.py`.
"""

import csv
import functools
import gzip
import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext import openai_public

from utils.files import InputError, sha256
from working_with_text_data.minbpe import GPT2Tokenizer, GPT4Tokenizer, RankTokenizer, gpt2, gpt4
from working_with_text_data.minbpe.merging import merge_by_rank
from working_with_text_data.minbpe.ranks import DATA, read_ranks
from working_with_text_data.minbpe.regex import SHORT_TEXT
from working_with_text_data.minbpe.unicode_classes import UNASSIGNED, compile_pattern
from working_with_text_data.text_files import CORPUS

NAMES = ["gpt2", "cl100k_base"]
RANK_FILES = {"gpt2": DATA / "gpt2.tiktoken", "cl100k_base": DATA / "cl100k_base.tiktoken"}
EVERY_CHARACTER = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)  # of which text can be made

Pair = tuple[RankTokenizer, tiktoken.Encoding]


@functools.cache
def both(name: str) -> Pair:
    """Our tokenizer and tiktoken's. The latter has the pattern, the special tokens and the ranks' SHA-256 from
    tiktoken's code; only the ranks are read from the file that comes with us, where it would go to the network.
    """

    def here(_url: str, expected_hash: str) -> dict[bytes, int]:
        assert sha256(RANK_FILES[name]) == expected_hash
        return load_tiktoken_bpe(str(RANK_FILES[name]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # write none
        patch.setattr(openai_public, "load_tiktoken_bpe", here)
        if name == "gpt2":  # tiktoken has its ranks in two formats; r50k_base is the one that we have
            return GPT2Tokenizer(), tiktoken.Encoding(**openai_public.r50k_base())
        return GPT4Tokenizer(), tiktoken.Encoding(**openai_public.cl100k_base())


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return both(request.param)


# -- the data that comes with us -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_our_ranks_are_those_that_tiktoken_downloads(
    name: str, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(real_data / "tiktoken_cache", tmp_path, dirs_exist_ok=True)  # tiktoken deletes what it dislikes
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    theirs: dict[str, Any] = getattr(openai_public, name)()
    assert both(name)[0].ranks == theirs["mergeable_ranks"]
    assert both(name)[0].special_tokens == theirs["special_tokens"]
    assert both(name)[1]._pat_str == theirs["pat_str"]


def test_every_id_stands_for_the_same_bytes(pair: Pair) -> None:
    ours, theirs = pair
    assert ours.vocab_size == theirs.n_vocab
    assert ours.special_tokens == theirs._special_tokens
    for i in range(-1, theirs.n_vocab + 1):
        if i in ours.vocab:
            assert ours.decode_bytes([i]) == theirs.decode_bytes([i])
        else:
            with pytest.raises((KeyError, OverflowError)):
                theirs.decode_bytes([i])


def test_the_bytes_of_every_token_merge_back_into_it(pair: Pair) -> None:
    """So a piece that is a token need not be merged, as encoding takes for granted."""
    ranks = pair[0].ranks
    assert [token for token in ranks if merge_by_rank(token, ranks) != [token]] == []


@pytest.mark.parametrize(("name", "pinned"), [("gpt2", gpt2.SHA256), ("cl100k_base", gpt4.SHA256)])
def test_one_wrong_byte_in_the_ranks_is_noticed(
    name: str, pinned: str, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(RANK_FILES[name].read_bytes())
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    path = tmp_path / RANK_FILES[name].name
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"{path.name} is damaged: its SHA-256 is [0-9a-f]{{64}}, not {pinned}"):
        read_ranks(path, pinned)
    module = {"gpt2": gpt2, "cl100k_base": gpt4}[name]
    monkeypatch.setattr(module, "DATA", tmp_path)
    with pytest.raises(InputError, match="is damaged"):
        type(both(name)[0])()


# -- Unicode ---------------------------------------------------------------------------------------------


def in_tiktokens_class(class_: str) -> str:
    """Every character of a class, as tiktoken's engine has it: those that match become ids, others nothing."""
    single_bytes = {bytes([i]): i for i in range(256)}
    engine = tiktoken.Encoding("class", pat_str=class_, mergeable_ranks=single_bytes, special_tokens={})
    return bytes(engine.encode_ordinary(EVERY_CHARACTER)).decode("utf-8")


def test_the_list_of_unassigned_code_points_is_what_tiktokens_engine_says() -> None:
    code_points = list(map(ord, in_tiktokens_class(r"\p{Cn}")))
    breaks = [i for i in range(1, len(code_points)) if code_points[i] != code_points[i - 1] + 1]
    lines = [
        f"{code_points[start]:X} {code_points[end - 1]:X}\n"
        for start, end in itertools.pairwise([0, *breaks, len(code_points)])
    ]
    assert UNASSIGNED.read_text() == "".join(lines), "another version of tiktoken? then this is the new content"


@pytest.mark.parametrize("class_", [r"\p{L}", r"\p{N}", r"\s", r"[^\s\p{L}\p{N}]", r"[^\r\n\p{L}\p{N}]"])
def test_character_classes_are_tiktokens(class_: str) -> None:
    ours = "".join(compile_pattern(class_).findall(EVERY_CHARACTER))
    theirs = in_tiktokens_class(class_)
    assert set(ours) ^ set(theirs) == set()


def test_lone_surrogates_raise_and_are_named(pair: Pair) -> None:
    for length in (0, 10, SHORT_TEXT + 1, 300_000):
        text = "é " * (length // 2) + "\ud83d" + "\ude00x"  # the two halves of an emoji are no character in Python
        for encode in (pair[0].encode, pair[0].encode_ordinary, pair[0].encode_to_array):
            with pytest.raises(InputError, match=rf"lone surrogate, '\\ud83d', at position {length - length % 2:,}:"):
                encode(text)
        with pytest.raises(InputError, match="lone surrogate"):
            pair[0].encode_batch(["fine", text])
    with pytest.raises(InputError, match="at position 14:"):
        pair[0].encode("<|endoftext|>a\ud800", allowed_special="all")


# -- special tokens --------------------------------------------------------------------------------------

SPECIALS_IN_TEXT = [
    "<|endoftext|>", "a<|endoftext|>", "<|endoftext|><|endoftext|> b", "no special token", "", "<|endoftext|",
    "<<|endoftext|>>", " <|fim_prefix|>x<|fim_suffix|>\n<|fim_middle|>", "<|endofprompt|>'s<|endoftext|>  ",
    "<|ENDOFTEXT|>", "<|endoftext |>", "\n\n<|endoftext|>\n\n", "x" * 5000 + "<|endoftext|>" + " y" * 5000,
]  # fmt: skip
ALLOWED: list[Collection[str] | Literal["all"]] = [(), "all", {"<|endoftext|>"}]
DISALLOWED: list[Collection[str] | Literal["all"]] = ["all", (), {"<|endoftext|>"}, {"<|fim_prefix|>"}, {"b", "nope"}]


@pytest.mark.parametrize("allowed", ALLOWED)
@pytest.mark.parametrize("disallowed", DISALLOWED)
def test_special_tokens_are_allowed_and_refused_as_by_tiktoken(
    pair: Pair, allowed: Collection[str] | Literal["all"], disallowed: Collection[str] | Literal["all"]
) -> None:
    ours, theirs = pair
    theirs_allowed = allowed if allowed == "all" else set(allowed)  # they take sets only
    for text in SPECIALS_IN_TEXT:
        try:
            expected = theirs.encode(text, allowed_special=theirs_allowed, disallowed_special=disallowed)
        except ValueError:
            with pytest.raises(InputError, match="special token"):
                ours.encode(text, allowed_special=allowed, disallowed_special=disallowed)
        else:
            assert ours.encode(text, allowed_special=allowed, disallowed_special=disallowed) == expected
            assert ours.decode(expected) == text


# -- decoding --------------------------------------------------------------------------------------------

ANY_ID = st.one_of(
    st.integers(0, 100_300),
    st.integers(),
    st.sampled_from([-1, 50_255, 50_256, 50_257, 100_256, 100_261, 100_276, 100_277, 2**32, 2**64]),
)


@pytest.mark.parametrize("name", NAMES)
@given(ids=st.lists(ANY_ID))
@settings(deadline=None, max_examples=500)
def test_decoding_any_ids_gives_text(name: str, ids: list[int]) -> None:
    ours, theirs = both(name)
    text = ours.decode(ids)
    text.encode("utf-8")
    known = [i for i in ids if i in ours.vocab]
    assert ours.decode(known) == theirs.decode(known)
    if len(known) < len(ids):
        assert "\N{REPLACEMENT CHARACTER}" in text


def test_decoding_takes_arrays(pair: Pair) -> None:
    ids = pair[0].encode_to_array("naïve 日本語 \U0001f469\u200d\U0001f469")
    for array in (ids, ids.astype(np.int64), ids[::1], ids[:3]):
        assert pair[0].decode(array) == pair[1].decode(array.tolist())


# -- without other libraries -----------------------------------------------------------------------------

WITHOUT_LIBRARIES = """
import json, sys
hidden = ["torch", "transformers", "tiktoken", "tiktoken_ext", "tokenizers"]
sys.modules.update(dict.fromkeys(hidden))  # None: importing it raises
from pathlib import Path
from working_with_text_data.minbpe import GPT2Tokenizer, GPT4Tokenizer, Tokenizer
texts, path = json.load(sys.stdin)
found = {}
for name, type_ in (("gpt2", GPT2Tokenizer), ("cl100k_base", GPT4Tokenizer)):
    tokenizer = type_()
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert type(loaded) is type_ and loaded.special_tokens == tokenizer.special_tokens
    found[name] = [tokenizer.encode(text, allowed_special="all") for text in texts]
    assert [loaded.encode(text, allowed_special="all") for text in texts] == found[name]
    assert [tokenizer.encode_to_array(text).tolist() for text in texts[1:]] == found[name][1:]
    assert [tokenizer.decode(ids) for ids in found[name]] == texts
assert not any(map(sys.modules.get, hidden))
json.dump(found, sys.stdout)
"""


def test_encoding_needs_no_other_tokenizer_library(tmp_path: Path, persuasion: str) -> None:
    texts = ["a<|endoftext|>b", persuasion[:200_000], "don't DON'T \u0558's 12345\r\n\r\n  日本語 \U0001f469\u200d"]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARIES],
        input=json.dumps([texts, str(tmp_path / "saved.json")]),
        capture_output=True,
        encoding="utf-8",
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    for name, found in json.loads(result.stdout).items():
        assert found == [both(name)[1].encode(text, allowed_special="all") for text in texts]


# -- real text -------------------------------------------------------------------------------------------


def assert_ids_equal(name: str, documents: Iterable[str]) -> tuple[int, int]:
    """Of each document, and of all as one text. Gives the number of documents and of tokens."""
    ours, theirs = both(name)
    documents = list(documents)
    for i, document in enumerate(documents):
        expected = theirs.encode_ordinary(document)
        if ours.encode_ordinary(document) != expected:
            raise AssertionError(f"{name}: the ids of document {i}, {document[:60]!r}..., are not tiktoken's")
    whole = "".join(documents)
    expected_whole = theirs.encode_to_numpy(whole, disallowed_special=())
    found = ours.encode_to_array(whole)
    assert np.array_equal(found, expected_whole)
    assert found.dtype == ours.array_dtype
    assert ours.decode(found) == whole
    return len(documents), len(found)


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_six_novels_equal_tiktokens(name: str) -> None:
    novels = [path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.txt"))]
    assert assert_ids_equal(name, [*novels, *novels[0].splitlines(keepends=True)])[1] > 500_000


def gutenberg(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "gutenberg").glob("*.txt")):
        yield path.read_bytes().decode("utf-8")  # with the line ends as they are, which is CRLF


def json_lines(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "text").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)


def plain_files(folder: Path) -> Iterator[str]:
    yield (folder / "text" / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")
    yield (folder / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")


def reviews(folder: Path) -> Iterator[str]:
    with gzip.open(folder / "imdb" / "movie_data.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in itertools.islice(csv.DictReader(file), 10_000):
            yield row["review"]


def instructions(folder: Path) -> Iterator[str]:
    with gzip.open(folder / "alpaca" / "alpaca_data.json.gz", "rt", encoding="utf-8") as file:
        for row in json.load(file):
            yield from row.values()


def text_messages(folder: Path) -> Iterator[str]:
    yield from (folder / "sms_spam" / "SMSSpamCollection.tsv").read_text(encoding="utf-8").splitlines(keepends=True)


@pytest.mark.parametrize("how_much", ["a sample", pytest.param("all", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("source", [gutenberg, json_lines, plain_files, reviews, instructions, text_messages])
def test_ids_of_real_text_equal_tiktokens(
    source: Any, how_much: str, real_data: Path, say: Callable[[str], None]
) -> None:
    """Day by day how up to 300 documents of each corpus begin; exhaustively all 112 million characters."""
    documents = list(source(real_data))
    if how_much == "a sample":
        documents = [document[:4_000] for document in documents[:: len(documents) // 300 + 1]]
    for name in NAMES:
        n_documents, n_tokens = assert_ids_equal(name, documents)
        say(f"{name}, {source.__name__}: {n_tokens:,} ids equal tiktoken's, in {n_documents:,} documents")
