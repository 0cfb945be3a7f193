"""The tokenizer beside a model is read as transformers reads it, or refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2TokenizerFast

from gpt_model.run_directory import identity
from gpt_model.tokenizer_files import read_tokenizer
from tests.mutations import MUTATIONS, hurt
from utils.files import InputError
from working_with_text_data.minbpe import (
    GPT2_PATTERN,
    GPT4_PATTERN,
    BasicTokenizer,
    GPT2Tokenizer,
    RankTokenizer,
    RegexTokenizer,
    Tokenizer,
)
from working_with_text_data.minbpe.interop import byte_letters, to_huggingface

TEXTS = ("", " ", "It is a truth\n\n  universally 1813 acknowledged, don't", "naïve 👩‍👧 \x00 <|endoftext|>")


def trained(text: str, pattern: str, normalization: Any = None) -> RegexTokenizer:
    tokenizer = RegexTokenizer(pattern, normalization)
    tokenizer.train(text, 400)
    tokenizer.add_special_tokens("<|endoftext|>", "<|user|>")
    return tokenizer


@pytest.fixture(scope="module")
def folder(persuasion: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a tokenizer.json of ours; copy it before changing it."""
    path = tmp_path_factory.mktemp("tokenizer")
    to_huggingface(trained(persuasion[:20_000], GPT4_PATTERN), path)
    return path


@pytest.mark.parametrize("normalization", [None, "NFC"])
@pytest.mark.parametrize("pattern", [GPT2_PATTERN, GPT4_PATTERN])
def test_what_we_write_is_read_back(pattern: str, normalization: Any, persuasion: str, tmp_path: Path) -> None:
    ours = trained(persuasion[:20_000], pattern, normalization)
    to_huggingface(ours, tmp_path)
    found = read_tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (found.vocab, found.special_tokens, found.pattern) == (ours.vocab, ours.special_tokens, ours.pattern)
    assert identity(found) == identity(ours)
    for text in (*TEXTS, persuasion[20_000:30_000]):
        ids = found.encode(text, allowed_special="all")
        assert ids == ours.encode(text, allowed_special="all") == theirs.encode(text)


def test_an_identity_is_of_all_that_decides_ids(persuasion: str, tmp_path: Path) -> None:
    text = persuasion[:5_000]
    more, other, basic = trained(text, GPT2_PATTERN), RegexTokenizer(GPT2_PATTERN), BasicTokenizer()
    more.add_special_tokens("<|system|>")
    other.train(text, 400)
    other.add_special_tokens("<|user|>", "<|endoftext|>")  # with each other's ids
    basic.train(text, 400)
    tokenizers = [
        *(trained(text, pattern, form) for pattern in (GPT2_PATTERN, GPT4_PATTERN) for form in (None, "NFC", "NFKC")),
        trained(text[1_000:], GPT2_PATTERN), more, other, basic, GPT2Tokenizer(),
    ]  # fmt: skip
    identities = [identity(tokenizer) for tokenizer in tokenizers]
    assert len(set(identities)) == len(tokenizers)
    for tokenizer, expected in zip(tokenizers, identities, strict=True):
        tokenizer.save(tmp_path / "bpe.json")
        assert identity(Tokenizer.load(tmp_path / "bpe.json")) == expected
    gpt2 = tokenizers[-1]
    assert identity(RankTokenizer(gpt2.ranks, GPT2_PATTERN, gpt2.special_tokens)) == identities[-1]


def write_older_form(tokenizer: RegexTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, as OpenAI published GPT-2's."""
    letters = byte_letters()
    spelled = {id_: "".join(letters[byte] for byte in token) for token, id_ in tokenizer.ranks.items()}
    merges = [f"{spelled[a]} {spelled[b]}\n" for a, b in tokenizer.merges]
    vocab = {token: id_ for id_, token in spelled.items()} | tokenizer.special_tokens
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("".join(["#version: 0.2\n", *merges]), encoding="utf-8")


def test_gpt2s_own(tmp_path: Path) -> None:
    ours = GPT2Tokenizer()
    write_older_form(ours, tmp_path / "older")
    found = read_tokenizer(tmp_path / "older")
    assert (found.ranks, found.special_tokens, found.pattern) == (ours.ranks, ours.special_tokens, ours.pattern)


def test_what_transformers_writes_of_a_gpt2(persuasion: str, tmp_path: Path) -> None:
    ours = RegexTokenizer(GPT2_PATTERN)
    ours.train(persuasion[:20_000], 400)
    ours.add_special_tokens("<|endoftext|>")
    write_older_form(ours, tmp_path / "older")
    GPT2TokenizerFast.from_pretrained(tmp_path / "older").save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "tokenizer.json").exists()
    for folder in (tmp_path / "older", tmp_path / "theirs"):
        assert read_tokenizer(folder).encode(persuasion[:5000]) == ours.encode(persuasion[:5000])


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no tokenizer, neither tokenizer.json nor vocab.json and"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match="has no tokenizer"):
        read_tokenizer(tmp_path)


def swap_merges(content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    merges[3], merges[9] = merges[9], merges[3]


def merge_otherwise(content: dict[str, Any]) -> None:
    """Three letters may be merged in two ways; the ids stay in order, and the vocabulary as it is."""
    merges = content["model"]["merges"]
    place = next(i for i, (a, b) in enumerate(merges) if len(a) == 2 and len(b) == 1 and a[1] + b in content_of(merges))
    a, b = merges[place]
    merges[place] = [a[0], a[1] + b]


def content_of(merges: list[list[str]]) -> set[str]:
    return {a + b for a, b in merges}


def set_at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "'model' must be byte-pair encoding": set_at("model", "type", value="WordPiece"),
    "'model' must be byte-pair": set_at("model", "byte_fallback", value=True),
    "'model' must be": set_at("model", value=[]),
    "the vocabulary must be an object": set_at("model", "vocab", value=[]),
    "'merges' must be a list": set_at("model", "merges", value=None),
    "a merge must be of two tokens, got ['a']": set_at("model", "merges", 0, value="a"),
    "a merge must be of two tokens, got [1, 2]": set_at("model", "merges", 0, value=[1, 2]),
    "a merge must be of two tokens, got ['', 'a']": set_at("model", "merges", 0, value=["", "a"]),
    "ids must be in the order of merges": swap_merges,
    "each token must be merged of the two that merging by rank leaves": merge_otherwise,
    "'zz' must be in both vocabulary and merges": set_at("model", "vocab", "zz", value=402),
    "must be in both vocabulary and merges": lambda content: content["model"]["merges"].pop(),
    "the byte 0xff has no rank": lambda content: content["model"]["vocab"].pop("ÿ"),
    "the id of 'a' must be from 0 to 804, got -1": set_at("model", "vocab", "a", value=-1),
    "the id of 'a' must be from 0 to 804, got 1152921504606846976": set_at("model", "vocab", "a", value=2**60),
    "the id of 'a' must be from 0 to 804, got 'a'": set_at("model", "vocab", "a", value="a"),
    "two tokens have the same id": set_at("model", "vocab", "a", value=98),
    "'added_tokens' must all be special": set_at("added_tokens", 0, "special", value=False),
    "'pre_tokenizer' must split text as GPT-2's or GPT-4's": set_at("pre_tokenizer", value=None),
    "'pre_tokenizer' must split": set_at("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", value="(?:a|a)+b"),
    "'pre_tokenizer' must": set_at("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", value=True),
    "normalization must be NFC, NFD, NFKC or none, got 'Lowercase'": set_at("normalizer", value={"type": "Lowercase"}),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_what_would_give_other_ids_is_refused(message: str, folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    DAMAGE[message](content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_tokenizer(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 5000, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"is damaged|is a Git LFS pointer.*: run git lfs pull"):
        read_tokenizer(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how large the process is")
def test_a_file_that_is_damaged_is_sound_or_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)

    def read() -> None:
        tokenizer = read_tokenizer(tmp_path)
        assert tokenizer.decode(tokenizer.encode(TEXTS[2])) == TEXTS[2], "text is lost"

    assert hurt(tmp_path / "tokenizer.json", read) > MUTATIONS // 2
