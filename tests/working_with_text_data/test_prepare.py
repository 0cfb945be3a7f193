"""The scripts: text to a tokenizer, and text to shards, with kills on the way."""

import gzip
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.commands import call
from tests.killed_prepare import prepare_until
from tests.mutations import MUTATIONS, hurt
from utils.files import InputError, sha256
from working_with_text_data import prepare, sure_cuts, text_files, train_tokenizer
from working_with_text_data.minbpe import RegexTokenizer, Tokenizer
from working_with_text_data.minbpe.fast import counting, parallel
from working_with_text_data.resumable_folder import Position, ResumableFolder, ShardWriter
from working_with_text_data.shards import open_shard
from working_with_text_data.text_files import CORPUS, END_OF_TEXT, SPLITS, split_documents, split_held_out

ROOT = Path(__file__).parents[2]
ENDLESS = {
    "spaces": " ", "line ends": "\n", "a letter": "a", "letters": "abcdefghijklmnopqrstuvwxyz", "digits": "7",
    "exclamation": "!",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.json"
    train_tokenizer.main(train_tokenizer.Config(text=CORPUS / "persuasion.txt", vocab_size=400, out=path))
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, persuasion: str) -> Path:
    """A folder of every kind of file."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "a.txt").write_text(persuasion[:30_000], encoding="utf-8")
    pages = [persuasion[i : i + 700] for i in range(30_000, 110_000, 700)]
    lines = [json.dumps({"text": page}) + "\n" for page in pages]
    (folder / "b.jsonl").write_text("".join(lines[:60]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("".join(lines[60:80]).encode()))
    parquet.write_table(pyarrow.table({"text": pages[80:]}), folder / "d.parquet")
    (folder / "e.txt").write_text(persuasion[110_000:140_000], encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


def all_of(folder: Path) -> dict[Path, str]:
    return {path: sha256(path) if path.is_file() else "" for path in folder.rglob("*")}


def tokens_of(folder: Path, split: str) -> list[int]:
    return [int(token) for path in sorted(folder.glob(f"{split}_*.bin")) for token in open_shard(path)]


class TestPrepare:
    def test_shards_decode_to_the_text_in_two_parts(self, tokenizer: Path, tmp_path: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text(name + (CORPUS / "emma.txt").read_text(encoding="utf-8")[:40_000])
        out = tmp_path / "data"
        prepare.main(prepare.Config(text=tmp_path, tokenizer=tokenizer, out=out, shard_tokens=3000))
        loaded = Tokenizer.load(out / "bpe.json")
        assert len(list(out.glob("train_*.bin"))) > 3
        expected = [split_held_out((tmp_path / name).read_text()) for name in ("a.txt", "b.txt")]
        for split, parts in zip(("train", "val"), zip(*expected, strict=True), strict=True):
            tokens = np.concatenate([open_shard(path) for path in sorted(out.glob(f"{split}_*.bin"))])
            assert tokens[0] == loaded.special_tokens[END_OF_TEXT]
            assert loaded.decode(tokens.tolist()) == "".join(END_OF_TEXT + part for part in parts)

    def test_special_text_in_a_document_stays_text(self, tokenizer: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("before <|endoftext|> after\n" * 30)
        prepare.main(prepare.Config(text=tmp_path / "a.txt", tokenizer=tokenizer, out=tmp_path / "data", held_out=0))
        tokens = open_shard(tmp_path / "data" / "train_000000.bin")
        separator = Tokenizer.load(tokenizer).special_tokens[END_OF_TEXT]
        assert (tokens == separator).sum() == 1

    def test_special_text_in_a_document_divides_it_when_asked(self, tokenizer: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n" * 10)
        config = prepare.Config(
            text=tmp_path / "a.txt", tokenizer=tokenizer, out=tmp_path / "data", held_out=0.1, separator=END_OF_TEXT
        )
        assert prepare.main(config)["val"] > 0
        loaded = Tokenizer.load(tokenizer)
        learned = loaded.decode(tokens_of(tmp_path / "data", "train"))
        assert learned == (f"{END_OF_TEXT}one{END_OF_TEXT}two" * 4 + f"{END_OF_TEXT}one") * 2

    def test_every_kind_of_file_gives_the_same_tokens(
        self, tokenizer: Path, tmp_path: Path, persuasion: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        documents = [persuasion[i : i + 900].strip("\n") for i in range(0, 18_000, 900)]
        documents[3] = "\ufeff" + documents[3]  # a byte-order mark in a text file, a character in the others
        lines = "".join(json.dumps({"text": text}) + "\n" for text in [*documents[:7], None, "", *documents[7:]])
        (tmp_path / "a.jsonl").write_text(lines)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        parquet.write_table(pyarrow.table({"text": [None, *documents, " "]}), tmp_path / "a.parquet")
        (tmp_path / "a.txt").write_text(f"\n{END_OF_TEXT}\n".join([*documents[:2], " ", "", *documents[2:]]))
        (tmp_path / "folder").mkdir()
        for number, text in enumerate([*documents[:9], "", " \n", *documents[9:]]):
            (tmp_path / "folder" / f"{number:02d}.txt").write_bytes(text.encode())
        tokens = {}
        for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt", "folder"):
            config = prepare.Config(
                text=tmp_path / name, tokenizer=tokenizer, out=tmp_path / "d", held_out=0, separator=END_OF_TEXT,
                overwrite=True, workers=1,
            )  # fmt: skip
            caplog.clear()
            prepare.main(config)
            assert caplog.messages[0] == f"{tmp_path / name}: left out 2 documents without any text"
            tokens[name] = tokens_of(tmp_path / "d", "train")
        assert tokens["a.jsonl"] == tokens["a.jsonl.gz"] == tokens["a.parquet"] == tokens["a.txt"]
        loaded = Tokenizer.load(tokenizer)
        assert loaded.decode(tokens["a.txt"]) == "".join(END_OF_TEXT + text for text in documents)
        assert loaded.decode(tokens["folder"]) == loaded.decode(tokens["a.txt"]).replace("\ufeff", "")

    def test_nothing_is_replaced_unasked_nor_lost_on_failure(self, tokenizer: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("some text\n" * 100)
        config = {"tokenizer": tokenizer, "out": tmp_path / "data"}
        prepare.main(prepare.Config(text=tmp_path / "a.txt", **config))
        before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
        with pytest.raises(InputError, match="data exists"):
            prepare.main(prepare.Config(text=tmp_path / "a.txt", **config))
        (tmp_path / "z.txt").write_bytes(b"good text, then \xff")
        with pytest.raises(InputError, match="not UTF-8"):
            prepare.main(prepare.Config(text=tmp_path, overwrite=True, **config))
        assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
        (tmp_path / "z.txt").write_text("other text\n" * 100)
        prepare.main(prepare.Config(text=tmp_path / "z.txt", overwrite=True, **config))
        assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} != before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "data", "z.txt"]  # no leftovers

    def test_only_our_own_shards_are_replaced(
        self, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        books = tmp_path / "books"
        books.mkdir()
        (books / "a.txt").write_text("some text\n" * 100)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "bpe.json").write_text("a trained run has one, too")
        (tmp_path / "run" / "model.safetensors").write_text("weights")
        (tmp_path / "hidden" / ".git").mkdir(parents=True)
        (tmp_path / "link").symlink_to(books)
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "books").symlink_to(books)
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        before = all_of(tmp_path)
        for text, out, message in [
            (books, books, "books holds .*books, which is read"),
            (books / "a.txt", tmp_path, "holds .*a.txt, which is read"),
            (tmp_path / "deep", books, "books holds .*a.txt, which is read"),
            (books, tmp_path / "run", "run holds model.safetensors, which is not ours to delete"),
            (books, tmp_path / "hidden", "hidden holds .git, which is not ours to delete"),
            (books, tmp_path / "link", "which is read"),
            (books / "a.txt", tmp_path / "run" / "bpe.json", "is not a folder, so it is not replaced"),
            (books, Path("/dev/null"), "is not a folder, so it is not replaced"),
            (books, Path(), "--out must name a file or a folder, got '.'"),
            (books, tokenizer.parent, "which is read"),
            (books, books / "a.txt" / "data", "cannot be written: .*a.txt is not a folder"),
        ]:
            with pytest.raises(InputError, match=message):
                prepare.main(prepare.Config(text=text, tokenizer=tokenizer, out=out, overwrite=True))
            assert all_of(tmp_path) == before

    def test_what_somebody_puts_into_the_old_folder_meanwhile_is_kept(
        self, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.txt").write_text("some text\n" * 100)
        config = prepare.Config(text=tmp_path / "a.txt", tokenizer=tokenizer, out=tmp_path / "data", overwrite=True)
        prepare.main(config)
        save = Tokenizer.save

        def save_late(self: Tokenizer, path: Path) -> None:
            save(self, path)
            (config.out / "notes.md").write_text("precious")

        monkeypatch.setattr(Tokenizer, "save", save_late)
        with pytest.raises(InputError, match=r"data holds notes\.md, which is not ours to delete: move it"):
            prepare.main(config)
        assert (config.out / "notes.md").read_text() == "precious"
        monkeypatch.undo()
        (config.out / "notes.md").rename(tmp_path / "notes.md")
        prepare.main(config)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "data", "notes.md"]

    def test_every_document_is_in_one_split_or_cut_between_both(
        self, tokenizer: Path, mixed: Path, tmp_path: Path
    ) -> None:
        prepare.main(prepare.Config(text=mixed, tokenizer=tokenizer, out=tmp_path / "data", shard_tokens=5000))
        loaded = Tokenizer.load(tokenizer)
        for split in SPLITS:
            parts = [part.text for part in split_documents(mixed) if part.split == split]
            assert loaded.decode(tokens_of(tmp_path / "data", split)) == "".join(END_OF_TEXT + part for part in parts)
            if split == "val":
                assert len(parts) == 2 + 115 // 20

    @settings(deadline=None, max_examples=20)
    @given(
        lengths=st.lists(st.integers(1, 12), max_size=10),
        gaps=st.sets(st.integers(0, 12)),
        shard_tokens=st.integers(2, 20),
        cut=st.integers(0, 12),
    )
    def test_from_each_shard_on_the_same_follow(
        self, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], gaps: set[int], shard_tokens: int, cut: int
    ) -> None:
        rest = iter(range(10_000))
        numbers = (number for number in range(100) if number not in gaps)  # of some documents the split has no part
        documents = [(next(numbers), np.array([next(rest) for _ in range(n)], dtype=np.uint16)) for n in lengths]

        def write(position: Position) -> list[Position]:
            """Return the positions after each shard that is written from `position` on."""
            passed: list[Position] = []
            writer = ShardWriter(folder, "train", shard_tokens, position, lambda: passed.append(replace(position)))
            with writer:
                for number, tokens in documents:
                    if number >= position.document:
                        writer.add(number, tokens[:cut])  # a document may come in parts
                        writer.add(number, tokens[cut:])
            return passed

        folder = tmp_path_factory.mktemp("shards")
        positions = write(Position())
        assert tokens_of(folder, "train") == list(range(sum(lengths)))
        expected = contents(folder)
        for done, position in enumerate(positions):
            for path in sorted(folder.iterdir())[done + 1 :]:
                path.unlink()
            write(replace(position))
            assert contents(folder) == expected

    def test_tokenizers_that_cannot_be_used(self, tmp_path: Path) -> None:
        text = tmp_path / "a.txt"
        text.write_text("text")
        with pytest.raises(InputError, match="there is no tokenizer"):
            prepare.main(prepare.Config(text=text, tokenizer=tmp_path / "none.json", out=tmp_path / "data"))
        with pytest.raises(InputError, match="or name a known one, gpt2 or gpt4"):
            prepare.load_tokenizer("gpt3")
        RegexTokenizer().save(tmp_path / "t.json")
        with pytest.raises(InputError, match=r"no special token <\|endoftext\|>"):
            prepare.main(prepare.Config(text=text, tokenizer=tmp_path / "t.json", out=tmp_path / "data"))

    @pytest.mark.parametrize("name", ["gpt2", "gpt4"])
    def test_known_tokenizers_go_by_name(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("Once upon a time " * 100)
        prepare.main(prepare.Config(text=tmp_path / "a.txt", tokenizer=name, out=tmp_path / "data", held_out=0))
        loaded = Tokenizer.load(tmp_path / "data" / "bpe.json")
        assert loaded.decode(tokens_of(tmp_path / "data", "train")) == END_OF_TEXT + "Once upon a time " * 100
        assert loaded.encode_ordinary("Once upon") == prepare.load_tokenizer(name).encode_ordinary("Once upon")

    def test_too_few_documents_to_hold_one_out(
        self, tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a short text"}\n' * 19)
        counts = prepare.main(prepare.Config(text=tmp_path / "a.jsonl", tokenizer=tokenizer, out=tmp_path / "data"))
        assert counts["val"] == 0
        assert "nothing was held out" in caplog.text
        assert "is too little for --held-out 0.05, raise it" in caplog.text

    def test_memory_does_not_grow_with_a_text_file(
        self, tokenizer: Path, tmp_path: Path, persuasion: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module, name in [(text_files, "BLOCK_SIZE"), (sure_cuts, "PART_LENGTH"), (parallel, "JOB_SIZE")]:
            monkeypatch.setattr(module, name, 2**16)  # so that a small file is a large one
        text = tmp_path / "a.txt"
        peaks = []
        for times in (2, 10, 30):
            text.write_text(("\U0001f600" + persuasion[:50_000].replace("\n", " ")) * times)  # one line
            tracemalloc.start()
            prepare.main(prepare.Config(text=text, tokenizer=tokenizer, out=tmp_path / "d", overwrite=True, workers=1))
            config = train_tokenizer.Config(text=text, vocab_size=257, out=tmp_path / "t.json", overwrite=True)
            train_tokenizer.main(config)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[2] - peaks[1] < 300_000  # with a megabyte of text more

    @pytest.mark.parametrize("name", ["gpt4", "trained"])
    @pytest.mark.parametrize("kind", ENDLESS)
    def test_memory_does_not_grow_with_one_piece_of_text(
        self, name: str, kind: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module, length in [(text_files, "BLOCK_SIZE"), (sure_cuts, "PART_LENGTH"), (parallel, "JOB_SIZE")]:
            monkeypatch.setattr(module, length, 2**13)  # so that a small file is a large one
        monkeypatch.setattr(counting, "LONGEST_PIECE", 2**10)
        monkeypatch.setattr(sure_cuts, "_look_ahead", lambda _: 2**12)  # less than is proven, more than is needed
        text = tmp_path / "a.txt"
        peaks = []
        for times in (10, 50):
            text.write_text("The end.\n" + ENDLESS[kind] * (2**13 * times // len(ENDLESS[kind])) + "\U0001f600")
            out = {"out": tmp_path / "data", "overwrite": True}
            ids_by = tokenizer if name == "trained" else name
            tracemalloc.start()
            prepare.main(prepare.Config(text=text, tokenizer=ids_by, workers=1, held_out=0, **out))
            out["out"] = tmp_path / "t.json"
            train_tokenizer.main(train_tokenizer.Config(text=text, vocab_size=300, **out))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] - peaks[0] < 100_000  # with 328,000 bytes of text more
        loaded = Tokenizer.load(tmp_path / "data" / "bpe.json")
        expected = loaded.encode(END_OF_TEXT + text.read_text(encoding="utf-8"), allowed_special="all")
        assert tokens_of(tmp_path / "data", "train") == expected

    @pytest.mark.parametrize(
        ("name", "value"),
        [("shard_tokens", 1), ("shard_tokens", 3 * 10**9), ("workers", 0), ("workers", 10**5), ("held_out", 1.5)],
    )
    def test_bad_settings(self, name: str, value: float) -> None:
        with pytest.raises(
            InputError, match=f"{name} must be at least [\\d,]+ and (at most|below) [\\d,]+, got {value}"
        ):
            prepare.Config(text=CORPUS, **{name: value})

    def test_real_text_is_encoded_document_by_document(self, real_data: Path, tokenizer: Path, tmp_path: Path) -> None:
        file = tmp_path / "some.jsonl"
        with gzip.open(real_data / "text" / "web_digitalgov.jsonl.gz") as lines:
            file.write_bytes(b"".join(itertools.islice(lines, 500)))
        prepare.main(prepare.Config(text=file, tokenizer=tokenizer, out=tmp_path / "data", shard_tokens=100_000))
        loaded = Tokenizer.load(tokenizer)
        expected: dict[str, list[int]] = {"train": [], "val": []}
        for number, line in enumerate(file.read_bytes().splitlines()):
            tokens = expected["val" if number % 20 == 19 else "train"]
            tokens.append(loaded.special_tokens[END_OF_TEXT])
            tokens.extend(loaded.encode_ordinary(json.loads(line)["text"]))
        assert number == 499
        for split, tokens in expected.items():
            assert tokens_of(tmp_path / "data", split) == tokens


@pytest.fixture(scope="module")
def killed(mixed: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a kill has left of unfinished work with some shards."""
    out = tmp_path_factory.mktemp("killed") / "data"
    config = {"text": mixed, "tokenizer": tokenizer, "out": out, "shard_tokens": 1000}
    process = start(config)
    wait_for(lambda: len(unfinished_shards(config)) > 3, process)
    process.kill()
    process.communicate()
    assert not out.exists()
    return out.parent


class TestInterruption:
    @pytest.fixture
    def config(self, mixed: Path, tokenizer: Path, tmp_path: Path) -> dict[str, Any]:
        return {"text": mixed, "tokenizer": tokenizer, "out": tmp_path / "data", "shard_tokens": 1000}

    @pytest.fixture
    def begun(self, killed: Path, config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
        """Unfinished work with some shards, which may be changed."""
        shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
        return config

    @pytest.mark.slow
    @pytest.mark.parametrize("most_shards", [20, pytest.param(6, marks=pytest.mark.exhaustive)])
    def test_killed_again_and_again_it_writes_the_same_bytes(
        self, config: dict[str, Any], most_shards: int, tmp_path: Path, rng: random.Random
    ) -> None:
        """Each time after up to so many new shards: day by day some six times, exhaustively some twenty times."""
        config["shard_tokens"] = 1000
        prepare.main(prepare.Config(**config | {"out": tmp_path / "at_once", "workers": 1}))
        kills, messages = 0, ""
        while True:
            process = start(config)
            n_before, n_more = len(unfinished_shards(config)), rng.randrange(most_shards)
            wait_for(lambda: len(unfinished_shards(config)) >= n_before + n_more, process)  # noqa: B023
            time.sleep(rng.random() * 0.02)
            process.kill()
            messages += process.communicate(timeout=120)[1]  # waits for the workers too: they must not live on
            if config["out"].exists():  # a kill may also come when all is done
                break
            assert process.returncode == -signal.SIGKILL, messages
            kills += 1
        assert kills > (3 if most_shards == 6 else 1)
        assert "going on in" in messages
        assert contents(config["out"]) == contents(tmp_path / "at_once")

    @pytest.mark.slow
    @pytest.mark.parametrize("one_in", [4, pytest.param(1, marks=pytest.mark.exhaustive)])
    @pytest.mark.parametrize("overwrite", ["overwrite", "no"])
    def test_killed_before_each_change_on_disk(
        self, mixed: Path, tokenizer: Path, tmp_path: Path, overwrite: str, one_in: int
    ) -> None:
        """Day by day before every fourth change, exhaustively before each."""
        at_once = tmp_path / "at_once"
        prepare.main(prepare.Config(text=mixed, tokenizer=tokenizer, out=at_once, shard_tokens=40_000))
        for n in range(0, 100, one_in):
            out = tmp_path / str(n) / "data"
            if overwrite == "overwrite":
                out.mkdir(parents=True)
                (out / "train_000099.bin").write_text("old data")
            config = prepare.Config(
                text=mixed, tokenizer=tokenizer, out=out, overwrite=overwrite == "overwrite", shard_tokens=40_000,
                workers=1,
            )  # fmt: skip
            killed = call(prepare_until, n, config)
            if killed.returncode == 0:
                break
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            if out.exists():  # it is the old one or the new, whole
                assert [*contents(out)] == ["train_000099.bin"] or contents(out) == contents(at_once)
            elif overwrite == "overwrite":
                old = next(out.parent.rglob("train_000099.bin"))
                assert old.read_text() == "old data"
            if overwrite == "overwrite" or not out.exists():
                assert call(prepare_until, 1000, config).returncode == 0
            assert contents(out) == contents(at_once)
            # what a kill at the very end leaves has no text in it, and the next run deletes it
            assert {path.name for path in out.parent.iterdir()} <= {"data", ".data.unfinished", ".data.lock"}
        assert 10 < n < 99

    def test_ctrl_c_keeps_the_finished_shards(self, config: dict[str, Any], tmp_path: Path) -> None:
        process = start(config)
        wait_for(lambda: len(unfinished_shards(config)) > 3, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        messages = process.communicate(timeout=120)[1]
        assert process.returncode == 130, messages
        assert "Traceback" not in messages
        assert "finished shards: the same command goes on there" in messages
        assert sorted(path.name for path in tmp_path.iterdir()) == [".data.unfinished"]

    def test_without_a_finished_shard_nothing_stays(self, config: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": bad}\n')
        with pytest.raises(InputError, match="line 2 is not JSON"):
            prepare.main(prepare.Config(**config | {"text": tmp_path / "a.jsonl"}))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]

    def test_shards_that_do_not_count_are_not_kept(self, config: dict[str, Any], tmp_path: Path) -> None:
        stale = tmp_path / ".data.unfinished" / "data"  # as a kill leaves it before any progress is saved
        stale.mkdir(parents=True)
        (stale / "val_000000.bin").write_bytes(b"of another text")
        prepare.main(prepare.Config(**config, held_out=0))
        assert not list(config["out"].glob("val_*"))

    def test_a_bad_line_late_in_the_text_keeps_what_was_done(self, config: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 5000 + '{"text": bad}\n')
        for _ in range(2):
            with pytest.raises(InputError, match="line 5,001 is not JSON"):
                prepare.main(prepare.Config(**config | {"text": tmp_path / "a.jsonl"}, workers=1))
            assert (tmp_path / ".data.unfinished" / "progress.json").exists()

    @pytest.mark.parametrize("change", ["text", "tokenizer", "held_out", "shard_tokens", "mtime"])
    def test_other_settings_are_refused_or_start_over(
        self, change: str, begun: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        (tmp_path / "text.txt").write_text("other text\n" * 1000)
        train_tokenizer.main(
            train_tokenizer.Config(text=tmp_path / "text.txt", vocab_size=258, out=tmp_path / "t.json")
        )
        changes = {
            "text": {"text": tmp_path / "text.txt"}, "tokenizer": {"tokenizer": tmp_path / "t.json"},
            "held_out": {"held_out": 0.1}, "shard_tokens": {"shard_tokens": 1001}, "mtime": {},
        }  # fmt: skip
        if change == "mtime":
            os.utime(begun["text"] / "b.jsonl", (1, 1))
        changed = prepare.Config(**begun | changes[change], workers=1)
        flag = "--text" if change == "mtime" else "--" + change.replace("_", "-")
        before = unfinished_shards(begun)
        with pytest.raises(InputError, match=f"holds unfinished work with another {flag}.*--overwrite to start over"):
            prepare.main(changed)
        assert unfinished_shards(begun) == before
        prepare.main(replace(changed, overwrite=True))
        assert "starting over" in caplog.text
        prepare.main(replace(changed, out=tmp_path / "at_once"))
        assert contents(begun["out"]) == contents(tmp_path / "at_once")
        assert not (tmp_path / ".data.unfinished").exists()

    def test_damaged_work_is_refused_or_starts_over(self, begun: dict[str, Any], tmp_path: Path) -> None:
        shard = tmp_path / ".data.unfinished" / "data" / "train_000001.bin"
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(InputError, match=r"damaged .*train_000001.bin is damaged.*--overwrite to start over"):
            prepare.main(prepare.Config(**begun))
        prepare.main(prepare.Config(**begun, overwrite=True, workers=1))
        prepare.main(prepare.Config(**begun | {"out": tmp_path / "at_once"}, workers=1))
        assert contents(begun["out"]) == contents(tmp_path / "at_once")

    def test_damaged_progress_is_refused_in_a_line(self, tmp_path: Path) -> None:
        settings = {"--text": "a.txt"}
        folder = ResumableFolder(tmp_path / "data", settings)
        folder.open(overwrite=False)
        with folder.writers(3)["train"] as writer:
            writer.add(0, np.arange(7, dtype=np.uint16))
        path = tmp_path / ".data.unfinished" / "progress.json"

        def resume() -> None:
            ResumableFolder(tmp_path / "data", settings).open(overwrite=False)

        assert hurt(path, resume) > MUTATIONS // 4
        path.write_bytes(b"[" * 5000)
        with pytest.raises(InputError, match=r"unfinished work that is damaged .*: give --overwrite to start over"):
            resume()
        ResumableFolder(tmp_path / "data", settings).open(overwrite=True)
        assert not path.exists()

    def test_two_at_once_do_not_mix(self, config: dict[str, Any], tmp_path: Path) -> None:
        first = start(config)
        wait_for(lambda: unfinished_shards(config), first)
        os.kill(first.pid, signal.SIGSTOP)
        second = start(config)
        assert f"error: another process is making {config['out']}" in second.communicate()[1]
        assert second.returncode == 1
        os.kill(first.pid, signal.SIGCONT)
        first.communicate()
        assert first.returncode == 0
        prepare.main(prepare.Config(**config | {"out": tmp_path / "at_once"}, workers=1))
        assert contents(config["out"]) == contents(tmp_path / "at_once")


def start(config: dict[str, Any]) -> "subprocess.Popen[str]":
    """`prepare` as a user would start it."""
    flags = [str(part) for name, value in config.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, "-m", "working_with_text_data.prepare", *flags, "--workers", "2"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def unfinished_shards(config: dict[str, Any]) -> list[str]:
    data = config["out"].with_name(f".{config['out'].name}.unfinished") / "data"
    return sorted(path.name for path in data.glob("*.bin"))


def wait_for(condition: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    """Until something is so, or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.002)


class TestTrainTokenizer:
    def test_never_sees_the_held_out_text(self, tmp_path: Path) -> None:
        text = "aa bb cc dd\n" * 200
        (tmp_path / "a.txt").write_text(text + "zzzzyyyy zzzzyyyy\n" * 5)
        (tmp_path / "b.txt").write_text(text)
        tokenizers = [
            train_tokenizer.main(
                train_tokenizer.Config(text=tmp_path / f"{name}.txt", vocab_size=280, out=tmp_path / f"{name}.json")
            )
            for name in "ab"
        ]
        assert not any(b"z" in spelling for i, spelling in tokenizers[0].vocab.items() if i > 255)
        assert tokenizers[0].merges == tokenizers[1].merges

    def test_never_sees_documents_held_out(self, tmp_path: Path) -> None:
        lines = [json.dumps({"text": "zzzzyyyy" if n % 10 == 9 else f"aa bb cc {n % 7}"}) for n in range(200)]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        config = train_tokenizer.Config(
            text=tmp_path / "a.jsonl", vocab_size=280, out=tmp_path / "t.json", held_out=0.1
        )
        tokenizer = train_tokenizer.main(config)
        assert not any(b"z" in spelling for i, spelling in tokenizer.vocab.items() if i > 255)
        assert any(b"aa" in spelling for spelling in tokenizer.vocab.values())

    def test_every_kind_of_text_teaches_the_same(self, tmp_path: Path, persuasion: str) -> None:
        pages = [persuasion[i : i + 700] for i in range(0, 30_000, 700)]
        lines = "".join(json.dumps({"text": page}) + "\n" for page in pages)
        (tmp_path / "a.jsonl").write_text(lines)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        parquet.write_table(pyarrow.table({"text": pages}), tmp_path / "a.parquet")
        (tmp_path / "folder").mkdir()
        for number, page in enumerate(pages):
            (tmp_path / "folder" / f"{number:03d}.txt").write_bytes(page.encode())
        merges = [
            train_tokenizer.main(
                train_tokenizer.Config(
                    text=tmp_path / name, vocab_size=400, out=tmp_path / "t.json", overwrite=True, held_out=0
                )
            ).merges
            for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "folder")
        ]
        assert all(each == merges[0] for each in merges)

    @pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
    def test_the_pattern_and_the_normal_form_are_kept(self, tmp_path: Path, pattern: Any) -> None:
        (tmp_path / "a.txt").write_text("cafe\u0301 1234567, cafe\u0301 1234567!\n" * 20)
        config = train_tokenizer.Config(
            text=tmp_path / "a.txt", vocab_size=300, out=tmp_path / "t.json", pattern=pattern, normalization="NFC"
        )
        tokenizer = train_tokenizer.main(config)
        assert "caf\u00e9".encode() in tokenizer.vocab.values()
        assert (b" 1234567" in tokenizer.vocab.values()) == (pattern == "gpt2")
        loaded = Tokenizer.load(tmp_path / "t.json")
        assert loaded.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")

    def test_workers_change_nothing(self, tmp_path: Path, persuasion: str) -> None:
        (tmp_path / "a.jsonl").write_text(
            "".join(json.dumps({"text": persuasion[i : i + 700]}) + "\n" for i in range(0, 100_000, 700))
        )
        for workers in (1, 2):
            out = tmp_path / f"{workers}.json"
            train_tokenizer.main(
                train_tokenizer.Config(text=tmp_path / "a.jsonl", vocab_size=400, out=out, workers=workers)
            )
        assert sha256(tmp_path / "1.json") == sha256(tmp_path / "2.json")

    def test_rare_pairs_are_left_alone(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "a.txt").write_text(" common" * 10 + " a" * 3)
        config = train_tokenizer.Config(
            text=tmp_path / "a.txt", vocab_size=400, out=tmp_path / "t.json", min_frequency=4, held_out=0
        )
        with caplog.at_level("INFO"):
            spellings = train_tokenizer.main(config).vocab.values()
        assert b" common" in spellings
        assert b" a" not in spellings
        assert "no pair was left to merge after 263 tokens (--min-frequency 4)" in caplog.text

    def test_the_vocabulary_has_the_size_asked_for(self, tmp_path: Path) -> None:
        config = train_tokenizer.Config(text=CORPUS / "persuasion.txt", vocab_size=300, out=tmp_path / "t.json")
        assert train_tokenizer.main(config).vocab_size == 300
        assert Tokenizer.load(tmp_path / "t.json").vocab_size == 300

    def test_only_a_tokenizer_is_replaced(self, tmp_path: Path) -> None:
        text = tmp_path / "a.txt"
        text.write_text("some text\n" * 100)
        (tmp_path / "t.json").write_text('{"format": "another"}')
        (tmp_path / "deep.json").write_text("[" * 5000)
        (tmp_path / "link.json").symlink_to(tmp_path / "t.json")
        os.mkfifo(tmp_path / "pipe")
        before = {path: path.stat() for path in tmp_path.iterdir()}
        for out, message in [
            (text, "a.txt holds .*a.txt, which is read"),
            (tmp_path, "which is read"),
            (tmp_path / "t.json", "t.json was not written by this command"),
            (tmp_path / "deep.json", "deep.json was not written by this command"),
            (tmp_path / "link.json", "link.json is not a regular file"),
            (tmp_path / "pipe", "pipe is not a regular file"),
            (Path("/dev/null"), "/dev/null is not a regular file"),
            (Path(), "is not a regular file"),
            (text / "t.json", "cannot be written: .*a.txt is not a folder"),
        ]:
            with pytest.raises(InputError, match=message):
                train_tokenizer.main(train_tokenizer.Config(text=text, out=out, overwrite=True))
            assert {path: path.stat() for path in tmp_path.iterdir()} == before
        config = train_tokenizer.Config(text=text, vocab_size=260, out=tmp_path / "ours.json")
        train_tokenizer.main(config)
        with pytest.raises(InputError, match=r"ours\.json exists: choose another --out, or give --overwrite"):
            train_tokenizer.main(config)
        assert train_tokenizer.main(replace(config, vocab_size=259, overwrite=True)).vocab_size == 259

    @pytest.mark.parametrize(
        ("name", "value"),
        [("vocab_size", 255), ("vocab_size", 2**64), ("min_frequency", 0), ("workers", 10**5), ("held_out", -1)],
    )
    def test_bad_settings(self, name: str, value: float) -> None:
        with pytest.raises(
            InputError, match=f"{name} must be at least [\\d,]+ and (at most|below) [\\d,]+, got {value}"
        ):
            train_tokenizer.Config(text=CORPUS, **{name: value})
