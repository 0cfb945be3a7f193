"""Ours as tiktoken's and Hugging Face's, theirs as ours; rectangles; several processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.files import InputError
from working_with_text_data.minbpe import (
    GPT2_PATTERN,
    GPT4_PATTERN,
    BasicTokenizer,
    GPT2Tokenizer,
    GPT4Tokenizer,
    RankTokenizer,
    RegexTokenizer,
    Tokenizer,
    from_tiktoken,
    rectangle,
    textbook,
    to_huggingface,
    to_tiktoken,
)
from working_with_text_data.minbpe.fast import counting, parallel, units
from working_with_text_data.minbpe.fast.parallel import encode_stream
from working_with_text_data.minbpe.fast.trainer import PairTable
from working_with_text_data.minbpe.interop import byte_letters
from working_with_text_data.minbpe.regex import TIKTOKEN_GPT2_PATTERN

HOSTILE = [
    "", "don't 12345 SHE'LL", "\u0558's \u017fs '\u017f", "é e\u0301 ﬁn 한국어", "a\n b \n\n  c\r\n   ",
    "\x1c\x00 \u00a0 \u2003x",
    "👩\u200d👩\u200d👧\u200d👦 日本語、です", "<|im_start|>user\nhi<|im_end|>", "!" * 99 + "\n\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(persuasion: str) -> RegexTokenizer:
    tokenizer = RegexTokenizer(GPT4_PATTERN)
    tokenizer.train(persuasion, 1000)
    tokenizer.add_special_tokens("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return tokenizer


@pytest.fixture(scope="module", params=["trained", "gpt2", "gpt4"])
def tokenizer(request: pytest.FixtureRequest, trained: RegexTokenizer) -> RegexTokenizer:
    return {"trained": lambda: trained, "gpt2": GPT2Tokenizer, "gpt4": GPT4Tokenizer}[request.param]()


def test_tiktoken_gives_the_same_ids(tokenizer: RegexTokenizer, persuasion: str) -> None:
    theirs = to_tiktoken(tokenizer)
    for text in [*HOSTILE, persuasion]:
        assert theirs.encode(text, allowed_special="all") == tokenizer.encode(text, allowed_special="all")
    assert theirs.n_vocab == tokenizer.vocab_size


@pytest.mark.slow
def test_transformers_gives_the_same_ids(tokenizer: RegexTokenizer, persuasion: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    to_huggingface(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*HOSTILE, persuasion]:
        ids = tokenizer.encode(text, allowed_special="all")
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == tokenizer.special_tokens["<|endoftext|>"]


def test_transformers_normalises_as_we_do(persuasion: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for form in ("NFC", "NFD", "NFKC"):
        tokenizer = RegexTokenizer(GPT2_PATTERN, normalization=form)
        tokenizer.train(persuasion[:50_000], 400)
        to_huggingface(tokenizer, tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        for text in HOSTILE:
            assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, disallowed_special=())
        with pytest.raises(InputError, match=f"tiktoken does not normalise text, and this tokenizer does, to {form}"):
            to_tiktoken(tokenizer)


def test_there_and_back(tokenizer: RegexTokenizer, persuasion: str) -> None:
    again = from_tiktoken(to_tiktoken(tokenizer))
    assert again.ranks == tokenizer.ranks
    assert again.special_tokens == tokenizer.special_tokens
    for text in [*HOSTILE, persuasion]:
        assert again.encode(text, disallowed_special=()) == tokenizer.encode(text, disallowed_special=())


@pytest.mark.parametrize(("name", "type_"), [("gpt2", GPT2Tokenizer), ("cl100k_base", GPT4Tokenizer)])
def test_names_of_what_is_here_need_no_network(name: str, type_: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", None)
    assert type(from_tiktoken(name)) is type_


def test_a_name_tiktoken_does_not_know() -> None:
    with pytest.raises(InputError, match="tiktoken has no encoding 'gpt5'; it has gpt2, r50k_base"):
        from_tiktoken("gpt5")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p50k_base", "o200k_base"])
def test_other_encodings_of_tiktoken(
    name: str, real_data: Path, tmp_path: Path, persuasion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids with a gap in them, runs of spaces as tokens, a pattern we know no cuts of."""
    for file in (real_data / "tiktoken_cache").iterdir():  # a copy: tiktoken deletes what it finds damaged
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    ours, theirs = from_tiktoken(name), tiktoken.get_encoding(name)
    ours.save(tmp_path / "saved.json")
    loaded = Tokenizer.load(tmp_path / "saved.json")
    for text in [*HOSTILE, persuasion[:200_000], Path(__file__).read_text(encoding="utf-8")]:
        ids = theirs.encode(text, disallowed_special=())
        assert ours.encode(text, disallowed_special=()) == loaded.encode(text, disallowed_special=()) == ids
    assert (loaded.vocab_size, loaded.special_tokens) == (theirs.n_vocab, theirs._special_tokens)


def test_tiktokens_way_to_write_the_pattern_is_as_fast_a_path() -> None:
    text = "It's 12  o'clock,\n\n  isn't it?" * 300
    ours, theirs = GPT2Tokenizer(), RankTokenizer(GPT2Tokenizer().ranks, TIKTOKEN_GPT2_PATTERN, {})
    assert ours.encode(text) == theirs.encode(text)
    assert theirs._units is not None


def encode_as_textbook(text: str, tokenizer: RegexTokenizer, merges: dict[tuple[int, int], int]) -> list[int]:
    byte_ids = [[tokenizer.ranks[bytes([byte])] for byte in piece.encode()] for piece in tokenizer.split(text)]
    return [id_ for ids in byte_ids for id_ in textbook.encode(ids, merges)]


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ("###", r"'###', \d+, is spelled in their files like the token b'###', 2\d\d"),
        ("Ġthe", r"'Ġthe', \d+, is spelled in their files like the token b' the', 2\d\d"),
        ("a", r"'a', \d+, is spelled in their files like the token b'a', 97"),
        ("Ġx<|end|>", r"'Ġx<\|end\|>', \d+, would be decoded by their files to the bytes b' x<\|end\|>'"),
        ("café", r"'café', \d+, would be decoded by their files to the bytes b'caf\\xe9'"),
    ],
)
def test_no_spelling_gets_two_ids_at_hugging_face(special: str, message: str, tmp_path: Path) -> None:
    tokenizer = RegexTokenizer(GPT2_PATTERN)
    tokenizer.train("### the ### the " * 9, 264)
    assert {b"###", b" the"} <= tokenizer.ranks.keys()
    tokenizer.add_special_tokens("<|fine|>", special)
    with pytest.raises(InputError, match=message):
        to_huggingface(tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = f"the ### {special} the"  # tiktoken keeps special tokens apart, so it has no such trouble
    ids = tokenizer.encode(text, allowed_special="all")
    assert to_tiktoken(tokenizer).encode(text, allowed_special="all") == ids


def test_special_tokens_are_decoded_to_themselves_by_hugging_face(tmp_path: Path) -> None:
    import tokenizers

    tokenizer = RegexTokenizer(GPT2_PATTERN)
    tokenizer.train("### the ### the " * 9, 264)
    specials = ["<|fine|>", "two words", "Ġ Ġ", "日本", "caf\u00e9 au lait"]
    tokenizer.add_special_tokens(*specials)
    to_huggingface(tokenizer, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for special in specials:
        assert theirs.decode([tokenizer.special_tokens[special]], skip_special_tokens=False) == special


def test_every_byte_has_a_letter_of_its_own() -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert dict(enumerate(byte_letters())) == bytes_to_unicode()


class TestRanks:
    def test_merges_found_out_are_gpt2s_own(self) -> None:
        """Merging the textbook's way by the pairs found gives the ids that the ranks give."""
        tokenizer = GPT2Tokenizer()
        merges = tokenizer.merges
        assert len(merges) == 50_000
        text = "Unfortunately, antidisestablishmentarianism isn't 1,000,000 colourless  ideas."
        assert encode_as_textbook(text, tokenizer, merges) == tokenizer.encode(text)

    def test_a_token_that_is_not_merged_of_two(self) -> None:
        ranks = {bytes([i]): i for i in range(256)} | {b"abc": 256}
        with pytest.raises(InputError, match=r"the token b'abc' is not merged from two others"):
            _ = RankTokenizer(ranks, GPT2_PATTERN, {}).merges

    def test_a_byte_without_rank(self) -> None:
        with pytest.raises(InputError, match="the byte 0x61 has no rank"):
            RankTokenizer({bytes([i]): i for i in range(256) if i != 0x61}, GPT2_PATTERN, {})

    def test_it_is_not_trained_anew(self) -> None:
        with pytest.raises(InputError, match="a GPT2Tokenizer has its tokens already: train a RegexTokenizer"):
            GPT2Tokenizer().train("text", 300)

    def test_special_tokens_do_not_take_an_id_twice(self) -> None:
        with pytest.raises(InputError, match="the special token '<x>' has the id 97, which b'a' has already"):
            RankTokenizer({bytes([i]): i for i in range(256)}, GPT2_PATTERN, {"<x>": 97})

    @pytest.mark.parametrize("type_", [GPT2Tokenizer, GPT4Tokenizer])
    def test_chat_tokens_are_added_saved_and_loaded(self, type_: type[RankTokenizer], tmp_path: Path) -> None:
        tokenizer = type_()
        before = tokenizer.vocab_size
        tokenizer.add_special_tokens("<|im_start|>", "<|im_end|>", "<|system|>")
        tokenizer.save(tmp_path / "chat.json")
        loaded = Tokenizer.load(tmp_path / "chat.json")
        text = "<|im_start|>user\nThree words, please.<|im_end|>\n" + "of three words " * 500
        ids = loaded.encode(text, allowed_special="all")
        assert ids == tokenizer.encode(text, allowed_special="all")
        assert ids[0] == before
        assert loaded.decode(ids) == text
        assert type(loaded) is type_
        assert (loaded.vocab, loaded.ranks) == (tokenizer.vocab, tokenizer.ranks)

    @pytest.mark.parametrize("damage", [{"tokens": ["a"]}, {"tokens": [1]}, {"tokens": None}, {"tokens": ["\u20ac"]}])
    def test_damaged_files_are_named(self, damage: dict[str, Any], tmp_path: Path) -> None:
        GPT2Tokenizer().save(tmp_path / "t.json")
        content = json.loads((tmp_path / "t.json").read_bytes())
        (tmp_path / "t.json").write_text(json.dumps(content | damage))
        with pytest.raises(InputError, match=r"t\.json is damaged"):
            Tokenizer.load(tmp_path / "t.json")


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    content = {"format": "minbpe", "version": 1, "type": "RegexTokenizer", "settings": {"pattern": GPT2_PATTERN}}
    content |= {"special_tokens": {"<|endoftext|>": 257}, "merges": [[97, 98]]}
    (tmp_path / "t.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path / "t.json")
    assert tokenizer.encode("ab<|endoftext|>", allowed_special="all") == [256, 257]


class TestNormalization:
    def test_spellings_of_one_character_become_the_same_tokens(self, persuasion: str) -> None:
        for form, spelling in (("NFC", "é"), ("NFD", "e\u0301"), ("NFKC", "é")):
            tokenizer = RegexTokenizer(GPT2_PATTERN, normalization=form)
            tokenizer.train(persuasion[:10_000] + "é e\u0301 " * 50, 300)
            ids = tokenizer.encode("caf\u00e9 \ufb01n")
            assert ids == tokenizer.encode("cafe\u0301 \ufb01n")
            assert tokenizer.decode(ids) == f"caf{spelling} " + ("fin" if form == "NFKC" else "\ufb01n")

    def test_it_is_saved(self, tmp_path: Path) -> None:
        RegexTokenizer(GPT2_PATTERN, normalization="NFD").save(tmp_path / "t.json")
        assert Tokenizer.load(tmp_path / "t.json").normalization == "NFD"

    def test_it_is_applied_to_arrays_and_long_texts_too(self) -> None:
        tokenizer = BasicTokenizer(normalization="NFD")
        assert tokenizer.encode_to_array("é").tolist() == list("e\u0301".encode())
        text = "é " * 5000
        regex = RegexTokenizer(GPT2_PATTERN, normalization="NFD")
        assert regex.decode(regex.encode_to_array(text)) == "e\u0301 " * 5000

    def test_another_name(self) -> None:
        with pytest.raises(InputError, match="normalization must be NFC, NFD, NFKC or none, got 'nfc'"):
            RegexTokenizer(normalization="nfc")  # type: ignore[arg-type]


class TestRectangles:
    @given(
        batch=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5),
        max_length=st.none() | st.integers(1, 8),
        pad=st.sampled_from(["right", "left"]),
    )
    def test_the_mask_tells_the_texts(self, batch: list[list[int]], max_length: int | None, pad: Any) -> None:
        ids, mask = rectangle(batch, 7, max_length=max_length, pad=pad)
        assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == [row[:max_length] for row in batch]
        assert (ids[~mask] == 7).all()
        edge = mask[:, ::-1] if pad == "left" else mask
        assert (np.sort(edge, axis=1)[:, ::-1] == edge).all(), "the filling is on one side"

    def test_as_tensors(self) -> None:
        ids, mask = rectangle([[1, 2], [3]], 0, pad="left", tensors=True)
        assert torch.equal(ids, torch.tensor([[1, 2], [0, 3]]))
        assert torch.equal(mask, torch.tensor([[True, True], [False, True]]))

    def test_bad_arguments(self) -> None:
        with pytest.raises(InputError, match="max_length must be at least 1, got 0"):
            rectangle([[1]], 0, max_length=0)
        with pytest.raises(InputError, match="pad must be 'right' or 'left', got 'up'"):
            rectangle([[1]], 0, pad="up")  # type: ignore[arg-type]


class TestProcesses:
    @pytest.fixture(autouse=True)
    def small_jobs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (parallel, counting):
            monkeypatch.setattr(module, "JOB_SIZE", 20_000)

    @pytest.mark.parametrize("kind", [GPT2_PATTERN, r"\s+|\S+"])
    def test_ids_do_not_depend_on_their_number(self, kind: str, trained: RegexTokenizer, persuasion: str) -> None:
        """Short and empty texts, long ones that are cut, and a pattern that gives no place to cut."""
        tokenizer = RegexTokenizer(kind, normalization="NFC")
        tokenizer._set_merges(trained.merges)
        texts = ["", "short", persuasion, "", "é" * 70_000, persuasion[:5000], "x " * 50_000, ""]
        alone = [tokenizer.encode(text) for text in texts]
        assert tokenizer.encode_batch(texts, workers=2) == tokenizer.encode_batch(texts) == alone
        arrays = list(encode_stream(tokenizer, iter(texts), workers=3))
        assert all(array.dtype == np.uint16 for array in arrays)
        assert [array.tolist() for array in arrays] == alone

    def test_what_one_process_learned_the_others_know(self, persuasion: str) -> None:
        teacher, pupil = GPT2Tokenizer(), GPT2Tokenizer()
        ids = teacher.encode(persuasion)
        entries = teacher.new_entries()
        pupil.encode(persuasion[-20_000:] + "only the pupil has read this " * 100)  # it knows some of it already
        pupil.add_entries(entries)
        pupil._unit_encoder.encode_unit = None  # type: ignore[assignment]  # nothing is left to find out
        assert pupil.encode(persuasion) == ids
        assert pupil.new_entries().units == teacher.new_entries().units == []

        reader = GPT2Tokenizer()
        reader.encode_batch([persuasion], workers=2)
        reader._unit_encoder.encode_unit = None  # type: ignore[assignment]
        assert reader.encode(persuasion) == ids

    def test_what_is_remembered_stays_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(units, "MAX_UNITS", 3000)
        texts = [" ".join(f"word{i}x{j}" for j in range(2000)) for i in range(40)]
        tokenizer = GPT2Tokenizer()
        encoded = tokenizer.encode_batch(texts, workers=2)
        assert encoded == [tokenizer._encode_by_pieces(text) for text in texts]
        assert 0 < len(tokenizer._unit_encoder.units.spelling) < 3000 + 3 * 20_000 / 4

    def test_texts_are_read_only_as_fast_as_they_are_used(self) -> None:
        read = 0

        def texts() -> Any:
            nonlocal read
            for _ in range(200):
                read += 1
                yield "a few words " * 2000

        stream = encode_stream(GPT2Tokenizer(), texts(), workers=2)
        next(stream)
        assert read < 20
        stream.close()

    @pytest.mark.parametrize("workers", [1, 2])
    def test_what_comes_before_an_error_is_not_lost(self, workers: int) -> None:
        def texts() -> Any:
            yield from ["a few words " * 5000] * 5
            raise InputError("line 6 is not JSON")

        received = []
        with pytest.raises(InputError, match="line 6"):
            received.extend(encode_stream(GPT2Tokenizer(), texts(), workers))
        assert [len(ids) for ids in received] == [15_001] * 5

        received = []
        with pytest.raises(InputError, match="lone surrogate"):
            received.extend(encode_stream(GPT2Tokenizer(), ["a b " * 9000, "\ud800" + "c d " * 9000, "e"], workers))
        assert len(received) == 1

    def test_errors_of_a_worker_reach_the_caller(self) -> None:
        for text in ("a\ud800", "a\ud800" + "b c " * 20_000):
            with pytest.raises(InputError, match=r"a lone surrogate, '\\ud800', at position 1"):
                GPT2Tokenizer().encode_batch(["fine", text], workers=2)
        with pytest.raises(InputError, match="workers must be at least 1, got 0"):
            GPT2Tokenizer().encode_batch(["fine"], workers=0)

    def test_a_killed_worker_is_named(self) -> None:
        def texts() -> Any:
            yield "a few words " * 200_000
            for worker in multiprocessing.active_children():
                worker.kill()
            yield from ["a few words " * 200_000] * 5

        for work in (
            lambda: list(encode_stream(GPT2Tokenizer(), texts(), 2)),
            lambda: RegexTokenizer().train(texts(), 300, workers=2),
        ):
            with pytest.raises(InputError, match="a worker process was killed, .* give fewer --workers"):
                work()

    @pytest.mark.parametrize("pattern", [GPT2_PATTERN, GPT4_PATTERN, r"\s+|\S+"])
    def test_merges_do_not_depend_on_the_number_that_count(self, pattern: str, persuasion: str) -> None:
        documents = [persuasion, "", "x" * 70_000, "naïve café " * 20_000, persuasion[:99_999:-1]]
        expected: Counter[str] = Counter()
        alone = RegexTokenizer(pattern)
        for document in documents:
            expected.update(alone.split(document))
        assert alone._count_pieces(documents, 1) == {piece.encode(): n for piece, n in expected.items()}
        alone.train(documents, 500)
        for workers in (2, 3):
            shared = RegexTokenizer(pattern)
            shared.train(iter(documents), 500, workers=workers)
            assert list(shared.merges) == list(alone.merges)

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_no_worker_outlives_its_parent(self, how: signal.Signals) -> None:
        code = """
import itertools, multiprocessing
from working_with_text_data.minbpe import GPT2Tokenizer
from working_with_text_data.minbpe.fast.parallel import encode_stream
for i, ids in enumerate(encode_stream(GPT2Tokenizer(), itertools.repeat("some words " * 300_000), 2)):
    if i == 3:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
"""
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        assert len(children) == 2
        process.send_signal(how)
        process.wait(120)
        for stream in (process.stdout, process.stderr):
            stream.close()
        deadline = time.monotonic() + 120
        while any(running(child) for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_training_stops_at_rare_pairs(persuasion: str) -> None:
    tokenizer = RegexTokenizer(GPT2_PATTERN)
    tokenizer.train(persuasion[:50_000], 5000, min_frequency=20)
    table = PairTable(tokenizer._count_pieces([persuasion[:50_000]], 1))
    for pair, new_id in tokenizer.merges.items():
        assert table.counts[pair] >= 20
        table.merge(pair, new_id)
    assert 0 < max(table.counts.values()) < 20
    for name in ("min_frequency", "workers"):
        with pytest.raises(InputError, match="min_frequency and workers must be at least 1, got "):
            tokenizer.train("text", 300, **{name: 0})


@settings(deadline=None, max_examples=50)
@given(st.text(st.sampled_from("ab'sS 1\n"), max_size=200))
def test_the_textbook_agrees(trained: RegexTokenizer, text: str) -> None:
    assert encode_as_textbook(text, trained, trained.merges) == trained.encode(text)
    pieces = [piece.encode() for piece in trained.split(text)]
    fast = RegexTokenizer(GPT4_PATTERN)
    fast.train(text, 280)
    assert list(textbook.train(pieces, 24)) == list(fast.merges)
