"""The six novels, and how text is read and held out."""

import gzip
import hashlib
import json
import os
import re
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from utils.files import InputError
from working_with_text_data import text_files
from working_with_text_data.text_files import (
    CORPUS,
    END_OF_TEXT,
    find_files,
    read_documents,
    split_documents,
    split_held_out,
)

NOVELS = ["emma", "mansfield_park", "northanger_abbey", "persuasion", "pride_and_prejudice", "sense_and_sensibility"]


def test_the_six_novels_are_there_as_their_readme_says() -> None:
    readme = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert sorted(path.stem for path in CORPUS.glob("*.txt")) == NOVELS
    for path in CORPUS.glob("*.txt"):
        content = path.read_bytes()
        row = re.search(rf"\| `{path.name}` \| ([\d,]+) \| `([0-9a-f]+)` \|", readme)
        assert row, path.name
        assert int(row[1].replace(",", "")) == len(content)
        assert row[2] == hashlib.sha256(content).hexdigest()
        assert b"\r" not in content
        assert "jane austen" in content.decode("utf-8")[:200].lower()
        assert "Gutenberg" not in content.decode("utf-8")


def test_novels_agree_with_an_independent_edition(real_data: Path) -> None:
    """Project Gutenberg's text of Emma has the same words, give or take an edition's spelling."""
    ours = re.findall(r"[a-z]+", (CORPUS / "emma.txt").read_text(encoding="utf-8").lower())
    text = (real_data / "gutenberg" / "austen-emma.txt").read_text(encoding="utf-8")
    theirs = re.findall(r"[a-z]+", text.split("*** START")[1].split("*** END")[0].lower())
    assert abs(len(ours) - len(theirs)) < 0.01 * len(theirs)
    runs = {tuple(theirs[i : i + 5]) for i in range(len(theirs))}
    assert sum(tuple(ours[i : i + 5]) in runs for i in range(len(ours))) > 0.9 * len(ours)


@given(st.text(max_size=300), st.floats(0, 0.99))
def test_held_out_text_is_the_end_and_nothing_is_lost(text: str, share: float) -> None:
    learned, held_out = split_held_out(text, share)
    assert learned + held_out == text


def test_held_out_text_begins_with_a_line_and_is_the_share_asked_for(persuasion: str) -> None:
    learned, held_out = split_held_out(persuasion, 0.05)
    assert learned.endswith("\n")
    assert len(held_out) == pytest.approx(0.05 * len(persuasion), abs=100)
    assert split_held_out(persuasion, 0) == (persuasion, "")


@pytest.mark.parametrize("share", [-0.1, 1, 2])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="at least 0 and below 1"):
        split_held_out("text", share)


def test_folders_are_read_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"second\r\n")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "c.md").write_text("not text")
    assert list(read_documents(tmp_path)) == ["first\n", "second\n"]
    assert list(read_documents(tmp_path / "a.txt")) == ["first\n"]


def test_bad_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder .*missing"):
        list(read_documents(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"holds no \.txt, \.jsonl, \.jsonl\.gz, \.parquet file"):
        list(read_documents(tmp_path))
    (tmp_path / "empty.txt").write_text(" \n ")
    with pytest.raises(InputError, match="is empty: none of its documents holds any text"):
        list(read_documents(tmp_path))
    (tmp_path / "empty.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"empty\.txt is not UTF-8 text: byte 3 is 0xe9"):
        list(read_documents(tmp_path))


TEXTS = ["One.\n", "Two: \u00e9\u00e8, \U0001f600.", 'Three "quoted"\r\n\x00 and \u2028 a line separator', "vier"]


def write(file: Path, texts: Sequence[str | None]) -> Path:
    """A file of the kind its name says."""
    lines = "".join(json.dumps({"id": 7, "text": text}) + "\n" for text in texts)
    if file.name.endswith(".parquet"):
        parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), file, row_group_size=10_000)
    elif file.name.endswith(".gz"):
        file.write_bytes(gzip.compress(lines.encode(), 1))
    else:
        file.write_text(
            lines if file.suffix.lower() == ".jsonl" else "".join(text or "" for text in texts), encoding="utf-8"
        )
    return file


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "JSONL"])
@settings(deadline=None)
@given(texts=st.lists(st.text(), max_size=8))
def test_lines_and_rows_come_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, kind: str, texts: list[str]
) -> None:
    file = write(tmp_path_factory.getbasetemp() / f"some.{kind}", TEXTS + texts)
    assert list(read_documents(file)) == TEXTS + [text for text in texts if text.strip()]


def test_json_as_others_write_it(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text":"caf\xc3\xa9"}\r\n\n  \n{"text": "\\ud83d\\ude00", "n": NaN}')
    assert list(read_documents(file)) == ["caf\u00e9", "\U0001f600"]


def test_a_folder_of_all_kinds_is_read_in_name_order(tmp_path: Path) -> None:
    for name in [
        "c.parquet",
        "a.jsonl.gz",
        "b.txt",
        "z/a.jsonl",
        "z/.cache/x.txt",
        ".hidden.txt",
        "readme.md",
        "d.JSONL",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write(tmp_path / name, [name])
    assert list(read_documents(tmp_path)) == ["a.jsonl.gz", "b.txt", "c.parquet", "d.JSONL", "z/a.jsonl"]
    assert list(read_documents(tmp_path / "readme.md")) == ["readme.md"]


def test_the_position_goes_from_nothing_to_all_bytes(tmp_path: Path) -> None:
    for name in ["a.jsonl.gz", "b.txt", "c.parquet", "d.jsonl"]:
        write(tmp_path / name, TEXTS * 100)
    positions = [document.position for document in split_documents(tmp_path)]
    assert positions == sorted(positions)
    assert positions[-1] == sum(file.stat().st_size for file in find_files(tmp_path))
    assert len(set(positions)) > 500  # within a file too


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 0.99))
def test_whole_documents_are_held_out_evenly(
    tmp_path_factory: pytest.TempPathFactory, count: int, share: float
) -> None:
    texts = [f"document {i}" for i in range(count)]
    folder = tmp_path_factory.getbasetemp() / "two_files"
    folder.mkdir(exist_ok=True)
    write(folder / "a.jsonl", ["", *texts[: count // 3]])  # an empty document counts as none
    write(folder / "b.parquet", texts[count // 3 :])
    parts = list(split_documents(folder, share))
    assert [part.text for part in parts] == texts
    assert [part.document for part in parts] == [*range(count)]
    for n in range(count):  # at no place is it a document more or less than the share
        assert abs(sum(part.split == "val" for part in parts[:n]) - n * share) < 1 + 1e-9


def test_the_end_of_plain_text_is_held_out_wherever_it_stands(tmp_path: Path, persuasion: str) -> None:
    write(tmp_path / "a.jsonl", ["first"] * 30)
    write(tmp_path / "b.txt", [persuasion])
    assert tuple(part.text for part in split_documents(tmp_path) if part.document == 30) == split_held_out(persuasion)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{text: 1}", "is not JSON: Expecting property name enclosed in double quotes \\(character 2\\)"),
        (b'{"text": "cut', "is not JSON: Unterminated string starting at \\(character 10\\)"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 text: byte 13 is 0xe9"),
        (b'["text"]', 'is not an object with a "text" field'),
        (b'{"content": "a", "id": 3}', 'has no "text" field, only content, id'),
        (b"{}", 'has no "text" field, only {}'),
        (b'{"text": 7, "id": "\\u001b"}', 'holds no string as "text" but 7'),
        (b'{"\\u001b[2J": "a"}', r'has no "text" field, only \\x1b\[2J'),
        (b'{"text": ["a", "b"]}', r"holds no string as \"text\" but \['a', 'b'\]"),
        (b'{"text": "a \\ud800 b"}', r'"text" holds \\ud800, half of a pair'),
        (b"[" * 100_000, "is not JSON that can be read"),
        (b'{"text": ' + b"1" * 5000 + b"}", "is not JSON that can be read"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
def test_a_bad_line_is_named(tmp_path: Path, kind: str, line: bytes, message: str) -> None:
    content = b'{"text": "good"}\n\n' + line + b'\n{"text": "also good"}\n'
    (tmp_path / f"a.{kind}").write_bytes(gzip.compress(content) if kind == "jsonl.gz" else content)
    documents = read_documents(tmp_path)
    assert next(documents) == "good"
    with pytest.raises(InputError, match=rf"a\.{kind}, line 3.*{message}") as raised:
        next(documents)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


def test_damaged_compression_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl.gz", [f"{hash(str(i))}" for i in range(5000)])
    content = file.read_bytes()
    for damaged in (content[:-9], content[:20_000] + b"\0" * 100 + content[20_100:], content[:-8] + b"\0" * 8):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.jsonl\.gz(, line| is damaged after line) \d,\d\d\d"):
            list(read_documents(file))
    file.write_bytes(b"not compressed")
    with pytest.raises(InputError, match=r"a\.jsonl\.gz is damaged after line 0: Not a gzipped file"):
        list(read_documents(file))


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    for column, values, message in [
        ("content", ["a"], 'has no "text" column, only content'),
        ("\x1b[2J", ["a"], r'has no "text" column, only \\x1b\[2J'),
        ("text", [1, 2], 'row 1 holds no string as "text" but 1'),
    ]:
        parquet.write_table(pyarrow.table({column: values}), file)
        with pytest.raises(InputError, match=rf"a\.parquet.*{message}"):
            list(read_documents(file))
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, file)
    with pytest.raises(InputError, match=r'a\.parquet has 2 columns "text": which one is meant\?'):
        list(read_documents(file))
    latin = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"caf\xe9"))
    parquet.write_table(pyarrow.table({"text": latin}), file)
    with pytest.raises(InputError, match=r"a\.parquet, row 1 is not UTF-8 text: byte 3 is 0xe9"):
        list(read_documents(file))
    content = write(file, TEXTS * 1000).read_bytes()
    for damaged in (b"", b"not parquet", content[:-50], content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.parquet is not a parquet file, or is damaged"):
            list(read_documents(file))


def test_without_pyarrow_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs the package pyarrow, which is not installed: pip install .*\[data\]"):
        list(read_documents(file))


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "parquet"])
def test_documents_without_any_text_are_left_out_and_counted(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / f"a.{kind}", ["", " \n", None])
    for path in (file, tmp_path):
        with pytest.raises(InputError, match=f"{path} is empty: none of its documents holds any text"):
            list(read_documents(path))
    write(tmp_path / "b.jsonl", ["text"])
    assert list(read_documents(tmp_path)) == ["text"]
    assert [part.text for part in split_documents(tmp_path)] == ["text"]
    counted = f"{tmp_path}: left out {1 if kind == 'txt' else 3} documents without any text"
    assert caplog.messages == [counted, counted]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOnce \xef\xbb\xbfupon")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a time"}')
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf")  # an empty file, as some editors save it
    assert list(read_documents(tmp_path)) == ["Once \ufeffupon", "a time"]


class TestFolders:
    """What is in a folder is read, or named: nothing is passed over in silence."""

    def test_links_are_followed_but_not_in_circles(self, tmp_path: Path) -> None:
        (tmp_path / "books" / "inner").mkdir(parents=True)
        (tmp_path / "elsewhere").mkdir()
        write(tmp_path / "books" / "a.txt", ["one"])
        write(tmp_path / "elsewhere" / "b.txt", ["two"])
        (tmp_path / "books" / "inner" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "books" / "inner" / "again").symlink_to(tmp_path / "elsewhere")  # the same folder: read once
        (tmp_path / "books" / "inner" / "up").symlink_to(tmp_path / "books")
        (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
        (tmp_path / "books" / "c.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
        assert list(read_documents(tmp_path / "books")) == ["one", "two", "two"]

    def test_what_is_no_file_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", ["text"])
        os.mkfifo(tmp_path / "b.txt")
        for path in (tmp_path, tmp_path / "b.txt"):
            with pytest.raises(InputError, match=r"b\.txt is a pipe, a device or the like: only regular files"):
                find_files(path)
        with pytest.raises(InputError, match="zero is a pipe, a device or the like"):
            find_files(Path("/dev/zero"))
        (tmp_path / "b.txt").unlink()
        (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
        for path in (tmp_path, tmp_path / "b.txt"):
            with pytest.raises(InputError, match=r"b\.txt is a link to nothing"):
                find_files(path)

    def test_a_sub_folder_that_cannot_be_read_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "a.txt", ["text"])
        (tmp_path / "locked").mkdir()
        scandir = os.scandir

        def refuse(folder: str) -> Any:  # the tests may run as root, whom no mode keeps out
            if str(folder).endswith("locked"):
                raise PermissionError(13, "Permission denied", str(folder))
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(PermissionError, match="locked"):
            find_files(tmp_path)


class TestSeparators:
    def test_written_out_they_are_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write(tmp_path / "a.txt", ["no separator here"])
        write(tmp_path / "b.txt", [f"one\n{END_OF_TEXT}\ntwo\n{END_OF_TEXT}\n"])
        write(tmp_path / "c.txt", [f"three{END_OF_TEXT}"])
        write(tmp_path / "d.jsonl", [f"may speak of {END_OF_TEXT}"])
        list(split_documents(tmp_path))
        assert caplog.messages == [
            f"{path} holds <|endoftext|> written out {times} times, which stays ordinary text: to end documents there, "
            "give --separator '<|endoftext|>'"
            for path, times in [(tmp_path / "b.txt", 2), (tmp_path, 3)]
        ]

    @pytest.mark.parametrize("block_size", [1, 7, 2**20])
    def test_divide_plain_text_when_asked(
        self, tmp_path: Path, block_size: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(text_files, "BLOCK_SIZE", block_size)
        stories = [f"Story {i}.\n\nThe end." for i in range(40)]
        between = f"\n{END_OF_TEXT}\n\n"
        write(tmp_path / "a.txt", [between.join(stories[:30]), between])
        write(tmp_path / "b.jsonl", stories[30:35])
        write(tmp_path / "c.txt", [between.join([*stories[35:], "  ", ""])])
        documents: dict[int, str] = {}
        for part in split_documents(tmp_path, 0.05, END_OF_TEXT):
            assert part.split == ("val" if part.document % 20 == 19 else "train")  # whole ones, evenly spread
            documents[part.document] = documents.get(part.document, "") + part.text
        assert [*documents.values()] == stories
        assert caplog.messages == [f"{tmp_path}: left out 1 documents without any text"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str, persuasion: str) -> None:
    pages = [persuasion[i : i + 4000].replace("\n", " ") for i in range(0, 400_000, 4000)]  # in .txt one line
    file = write(tmp_path / f"a.{kind}", [f"{i} \U0001f600 {page}" for i in range(100) for page in pages])  # 40 MB
    for _ in split_documents(write(tmp_path / f"warm.{kind}", pages)):  # imports and caches do not count
        pass
    tracemalloc.start()
    before = pyarrow.total_allocated_bytes()
    highest = max(pyarrow.total_allocated_bytes() - before for _ in split_documents(file))
    highest += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < 20_000_000
