"""The six novels, and how text is read and held out."""

import gzip
import hashlib
import json
import re
import sys
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from utils.files import InputError
from working_with_text_data.text_files import CORPUS, find_files, read_documents, split_documents, split_held_out

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
    with pytest.raises(InputError, match=r"empty\.txt is empty"):
        list(read_documents(tmp_path))
    (tmp_path / "empty.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"empty\.txt is not UTF-8 text: byte 3 is 0xe9"):
        list(read_documents(tmp_path))


TEXTS = ["One.\n", "Two: \u00e9\u00e8, \U0001f600.", 'Three "quoted"\r\n\x00 and \u2028 a line separator', "vier"]


def write(file: Path, texts: list[str]) -> Path:
    """A file of the kind its name says."""
    lines = "".join(json.dumps({"id": 7, "text": text}) + "\n" for text in texts)
    if file.name.endswith(".parquet"):
        parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), file, row_group_size=10_000)
    elif file.name.endswith(".gz"):
        file.write_bytes(gzip.compress(lines.encode(), 1))
    else:
        file.write_text(lines if file.suffix.lower() == ".jsonl" else "".join(texts), encoding="utf-8")
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
    documents = list(split_documents(folder, share))
    assert [document.learned + document.held_out for document in documents] == texts
    assert all(not document.learned or not document.held_out for document in documents)
    for n in range(count):  # at no place is it a document more or less than the share
        assert abs(sum(bool(document.held_out) for document in documents[:n]) - n * share) < 1 + 1e-9


def test_the_end_of_plain_text_is_held_out_wherever_it_stands(tmp_path: Path, persuasion: str) -> None:
    write(tmp_path / "a.jsonl", ["first"] * 30)
    write(tmp_path / "b.txt", [persuasion])
    assert [tuple(document[:2]) for document in split_documents(tmp_path)][30:] == [split_held_out(persuasion)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{text: 1}", "is not JSON: Expecting property name enclosed in double quotes \\(character 2\\)"),
        (b'{"text": "cut', "is not JSON: Unterminated string starting at \\(character 10\\)"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 text: byte 13 is 0xe9"),
        (b'["text"]', 'is not an object with a "text" field'),
        (b'{"content": "a", "id": 3}', 'has no "text" field, only content, id'),
        (b"{}", 'has no "text" field, only {}'),
        (b'{"text": null}', 'holds no string as "text" but None'),
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
        ("text", ["a", None], 'row 2 holds no string as "text" but None'),
        ("text", [1, 2], 'row 1 holds no string as "text" but 1'),
    ]:
        parquet.write_table(pyarrow.table({column: values}), file)
        with pytest.raises(InputError, match=rf"a\.parquet.*{message}"):
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
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'language-model-from-scratch\[data\]'"):
        list(read_documents(file))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_inputs_without_any_text_are_refused(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / f"a.{kind}", ["", " \n"])
    with pytest.raises(InputError, match=rf"a\.{kind} is empty"):
        list(read_documents(file))
    write(tmp_path / "b.jsonl", ["text"])
    assert list(read_documents(tmp_path)) == ["text"]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str, persuasion: str) -> None:
    pages = [persuasion[i : i + 4000] for i in range(0, 400_000, 4000)]
    file = write(tmp_path / f"a.{kind}", [f"{i} {page}" for i in range(100) for page in pages])  # 40 MB
    for _ in read_documents(write(tmp_path / f"warm.{kind}", pages)):  # imports and caches do not count
        pass
    tracemalloc.start()
    before = pyarrow.total_allocated_bytes()
    highest = max(pyarrow.total_allocated_bytes() - before for _ in read_documents(file))
    highest += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < 20_000_000
