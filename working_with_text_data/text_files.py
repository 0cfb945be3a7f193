"""Documents from disk: plain text, JSON lines or parquet, with a share of them held out for evaluation.

Files are read as streams: no more than a megabyte of a text file, one line or one batch of rows is in memory. So a
long document comes in several parts.
"""

import codecs
import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from utils.extras import missing
from utils.files import InputError, printable
from working_with_text_data import json_lines

log = logging.getLogger(__name__)

CORPUS = Path(__file__).parent / "corpus"
HELD_OUT = 0.05
END_OF_TEXT = "<|endoftext|>"
SPLITS: tuple[Literal["train"], Literal["val"]] = ("train", "val")
BLOCK_SIZE = 2**20  # bytes of a text file that are read at once
ROWS_AT_ONCE = 1024  # of a parquet file

Stretches = Iterator[tuple[str, bool, int]]
"""Stretches of a file's text; whether a document ends there; the bytes of the file read so far.

A document without any text is one empty stretch."""


class Part(NamedTuple):
    """A stretch of a document: all of it, unless it is long, or cut in two because its end is held out."""

    text: str
    split: Literal["train", "val"]
    """Whether tokenizer and model learn from it, or neither of them may see it."""
    document: int
    """The number of its document, from 0 on."""
    position: int
    """Bytes of the input files up to its end, to show progress."""
    goes_on: bool = False
    """The next part begins inside a piece of text that begins in this one: see `sure_cuts.py`."""


def split_documents(path: Path, share: float = HELD_OUT, separator: str = "") -> Iterator[Part]:
    """Yield every document at `path` in parts, with `share` of the text held out.

    The end of each plain text file is held out, as `split_held_out` cuts it. Where documents are many
    and short, in JSON lines, parquet and text with separators, whole ones are held out, evenly spread: with a
    share of 0.05 every twentieth. What is held out depends on the files and the share alone.

    Args:
        path: a file, or a folder, see `find_files`.
        share: at least 0 and below 1.
        separator: what ends a document inside a plain text file; nothing does if this is empty.

    Raises:
        InputError: before the first document, if share is out of range or there is nothing at `path` to read;
            later, if a file cannot be read. The message names the file, and the line or row.
    """
    check_share(share)
    number, n_whole, n_written_out = 0, 0, 0
    offset, cut = 0, 0.0  # characters of the document: so far, and before the part that is held out
    begins = True
    for file, text, is_last, position in _read_files(path, separator):
        if begins:
            offset = 0
            if _is_plain(file) and not separator:
                n_characters, n_separators = _measure(file)
                cut = place_of_cut((block for block, _ in _blocks(file)), n_characters, share)
                if n_separators and not n_written_out:  # say so once, before the long work
                    _warn_of_separators(file, n_separators)
                n_written_out += n_separators
            else:
                is_held_out = math.floor((n_whole + 1) * share) > math.floor(n_whole * share)
                cut = 0 if is_held_out else math.inf
                n_whole += 1
        here = int(min(max(cut - offset, 0), len(text)))
        offset += len(text)
        for split, piece in zip(SPLITS, (text[:here], text[here:]), strict=True):
            if piece:
                yield Part(piece, split, number, position)
        number += is_last
        begins = is_last
    if n_written_out and path.is_dir():
        _warn_of_separators(path, n_written_out)


def read_documents(path: Path) -> Iterator[str]:
    """Yield every document at `path`, whole. Raises as `split_documents`."""
    parts: list[str] = []
    for _, text, is_last, _ in _read_files(path):
        parts.append(text)
        if is_last:
            yield "".join(parts)
            parts = []


def split_held_out(text: str, share: float = HELD_OUT) -> tuple[str, str]:
    """Cut a text in two, at the beginning of a line: what is learned from, and the last `share` to be tested on.

    The tokenizer and the model both use this cut, so that neither ever sees the second part. A share
    of 0 holds nothing out.

    Raises:
        InputError: if share is not at least 0 and below 1.
    """
    check_share(share)
    at = place_of_cut([text], len(text), share)
    return text[:at], text[at:]


def place_of_cut(blocks: Iterable[str], length: int, share: float) -> int:
    """Return how many characters of a text are learned from, so that about `share` of it is held out.

    Args:
        blocks: the text, in any number of blocks.
        length: its characters.
        share: at least 0 and below 1.
    """
    at = length - round(length * share)
    if not share:
        return at
    start = 0
    for block in blocks:
        line_end = block.find("\n", max(at - start, 0))
        if line_end >= 0:
            after = start + line_end + 1
            return after if after < length else at
        start += len(block)
    return at


def check_share(share: float) -> None:
    """Check that a share is at least 0 and below 1.

    Raises:
        InputError: if it is not.
    """
    if not 0 <= share < 1:
        raise InputError(f"the share held out must be at least 0 and below 1, got {share}")


def find_files(path: Path) -> list[Path]:
    """Return the file at `path`; of a folder, every file of a known kind in it and below, in name order.

    Hidden files and folders are left out. Links are followed, and no folder is read twice.

    Raises:
        InputError: if there is nothing at `path`, no such file in the folder, or a name that stands for a pipe,
            a device or nothing, which cannot be read to an end.
        OSError: for a folder inside that cannot be read.
    """
    if not path.is_dir():
        _check_is_file(path)
        return [path]
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(path, onerror=_raise, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # reached again by a link
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files += [
            Path(folder, name) for name in names if not name.startswith(".") and name.lower().endswith(tuple(READERS))
        ]
    if not files:
        raise InputError(f"the folder {path} holds no {', '.join(READERS)} file")
    for file in files:
        _check_is_file(file)
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def _check_is_file(path: Path) -> None:
    if not os.path.lexists(path):
        raise InputError(f"there is no file or folder {path}")
    if not path.is_file():
        kind = "a pipe, a device or the like" if path.exists() else "a link to nothing"
        raise InputError(f"{path} is {kind}: only regular files and folders are read")


def _raise(error: OSError) -> None:
    raise error


def _read_files(path: Path, separator: str = "") -> Iterator[tuple[Path, str, bool, int]]:
    """Yield stretches of all documents that hold any text, each with its file and the bytes of all files so far."""
    before, n_documents, n_empty = 0, 0, 0
    for file in find_files(path):
        read = _read_separated(file, separator) if separator and _is_plain(file) else _reader(file)(file)
        begins = True
        for text, is_last, position in read:
            if begins and not text:
                n_empty += 1
                continue
            n_documents += begins
            begins = is_last
            yield file, text, is_last, before + position
        before += file.stat().st_size
    if not n_documents:
        raise InputError(f"{path} is empty: none of its documents holds any text")
    if n_empty:
        log.warning("%s: left out %s documents without any text", printable(str(path)), f"{n_empty:,}")


def _warn_of_separators(path: Path, count: int) -> None:
    log.warning(
        "%s holds %s written out %s times, which stays ordinary text: to end documents there, give --separator '%s'",
        printable(str(path)), END_OF_TEXT, f"{count:,}", END_OF_TEXT,
    )  # fmt: skip


# -- plain text --------------------------------------------------------------------------------------------


def _blocks(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the text of a UTF-8 file a megabyte at a time, line ends made `\\n`, with the bytes read so far."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    position = 0
    with file.open("rb") as content:
        while True:
            block = content.read(BLOCK_SIZE)
            position += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = position - len(error.object) + error.start  # the object ends where reading has come to
                raise InputError(f"{file} is not UTF-8 text: {json_lines.bad_byte(error, at)}") from error
            if text:
                yield text, position
            if not block:
                return


def _read_plain(file: Path) -> Stretches:
    if all(block.isspace() for block, _ in _blocks(file)):
        yield "", True, file.stat().st_size
        return
    text, position = "", 0
    for following, following_position in _blocks(file):
        if text:
            yield text, False, position
        text, position = following, following_position
    yield text, True, position


def _measure(file: Path) -> tuple[int, int]:
    """Return how many characters a plain text file holds, and how often END_OF_TEXT is written out in it."""
    n_characters, n_separators, end = 0, 0, ""
    for block, _ in _blocks(file):
        n_characters += len(block)
        n_separators += (end + block).count(END_OF_TEXT)
        end = (end + block)[1 - len(END_OF_TEXT) :]
    return n_characters, n_separators


def _read_separated(file: Path, separator: str) -> Stretches:
    """Yield the documents of a plain text file that are divided by a separator, without the line ends around it."""
    rest, position, begins, n_ended = "", 0, True, 0
    for block, position in _blocks(file):
        *ended, rest = (rest + block).split(separator)
        for text in ended:
            yield _trimmed(text, begins), True, position
            begins = True
        n_ended += len(ended)
        if begins:
            rest = rest.lstrip("\n")
        ready = rest[: -len(separator)].rstrip("\n")  # the end waits: it may belong to a separator
        if ready and not (begins and ready.isspace()):
            yield ready, False, position
            rest, begins = rest[len(ready) :], False
    text = _trimmed(rest, begins)
    if text or not begins or not n_ended:  # what follows the last separator is a document unless it is empty
        yield text, True, position


def _trimmed(text: str, begins: bool) -> str:
    """Return the last stretch of a document without the line ends around it; nothing of one that is all white space."""
    if not begins:
        return text.rstrip("\n")
    return "" if text.isspace() else text.strip("\n")


# -- JSON lines --------------------------------------------------------------------------------------------


def _read_json_lines(file: Path) -> Stretches:
    for line in json_lines.read_lines(file):
        yield _text_of_line(line), True, line.position


def _text_of_line(line: json_lines.Line) -> str:
    content = json_lines.parse(line)
    where = line.where
    if not isinstance(content, dict):
        raise InputError(f'{where} is not an object with a "text" field, as {{"text": "Once upon a time"}} is')
    if "text" not in content:
        raise InputError(f'{where} has no "text" field, only {_listed(content)}')
    text = _checked(content["text"], where)
    try:
        if b"\\u" in line.content:
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f'{where}: "text" holds {half}, half of a pair that makes one character') from error
    return text


# -- parquet -----------------------------------------------------------------------------------------------


def _read_parquet(file: Path) -> Stretches:
    try:
        import pyarrow  # here only: nothing else needs it, and it takes long to import
        from pyarrow import parquet
    except ImportError as error:
        raise missing("pyarrow", "data", f"reading {file}") from error
    row, size = 0, file.stat().st_size
    try:
        # pyarrow by default reads the whole file ahead, and a column's share of each row group at once
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as table:
            names = table.schema_arrow.names
            if "text" not in names:
                raise InputError(f'{file} has no "text" column, only {_listed(names)}')
            if names.count("text") > 1:
                raise InputError(f'{file} has {names.count("text")} columns "text": which one is meant?')
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=["text"]):
                for value in batch.column("text"):
                    row += 1
                    text = _checked(value.as_py(), f"{file}, row {row:,}")
                    yield text, True, size * row // max(row, table.metadata.num_rows)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}, row {row:,} is not UTF-8 text: {json_lines.bad_byte(error, error.start)}") from error
    except (pyarrow.ArrowException, OSError) as error:
        problem = printable(" ".join(str(error).split()))
        raise InputError(f"{file} is not a parquet file, or is damaged: {problem}") from error


# -- all formats -------------------------------------------------------------------------------------------


def _checked(text: Any, where: str) -> str:
    """Return the text of a line or row: nothing if it is null or white space."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f'{where} holds no string as "text" but {printable(str(text)[:40])}')
    return "" if text.isspace() else text


def _listed(names: Iterable[str]) -> str:
    return printable(", ".join(names)[:200]) or "{}"


Reader = Callable[[Path], Stretches]

READERS: dict[str, Reader] = {
    ".txt": _read_plain,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".parquet": _read_parquet,
}


def _reader(file: Path) -> Reader:
    """Return how to read a file: by the end of its name, and as plain text if that says nothing."""
    return next((reader for end, reader in READERS.items() if file.name.lower().endswith(end)), _read_plain)


def _is_plain(file: Path) -> bool:
    return _reader(file) is _read_plain
