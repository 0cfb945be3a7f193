"""Documents from disk: plain text, JSON lines or parquet, with a share of them held out for evaluation.

Files are read as streams: no more than one text file, one line or one batch of rows is in memory.
"""

import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.files import InputError

CORPUS = Path(__file__).parent / "corpus"
HELD_OUT = 0.05
ROWS_AT_ONCE = 1024  # of a parquet file

Reader = Callable[[Path], Iterator[tuple[str, int]]]  # a file's texts, each with the bytes of the file read so far


class Document(NamedTuple):
    """One document in two parts, of which either may be empty."""

    learned: str
    """What tokenizer and model learn from."""
    held_out: str
    """What neither of them may see."""
    position: int
    """Bytes of the input files up to its end, to show progress."""


def split_documents(path: Path, share: float = HELD_OUT) -> Iterator[Document]:
    """Every document at `path`, with `share` of the text held out.

    The end of each plain text file is held out, as `split_held_out` cuts it. The documents of JSON
    lines and parquet files are many and short, so there whole ones are, evenly spread: with a share
    of 0.05 every twentieth. What is held out depends on the files and the share alone.

    Raises:
        InputError: before the first document, if share is not at least 0 and below 1 or there is
            nothing at `path` to read; later, if a file cannot be read. The message names the file, and
            the line or row.
    """
    check_share(share)
    n_rows = 0
    for file, text, position in _read_files(path):
        if _reader(file) is _read_plain:
            yield Document(*split_held_out(text, share), position)
        else:
            is_held_out = math.floor((n_rows + 1) * share) > math.floor(n_rows * share)
            n_rows += 1
            yield Document("", text, position) if is_held_out else Document(text, "", position)


def read_documents(path: Path) -> Iterator[str]:
    """Every document at `path`, whole. Raises as `split_documents`."""
    return (text for _, text, _ in _read_files(path))


def split_held_out(text: str, share: float = HELD_OUT) -> tuple[str, str]:
    """Cut a text in two, at the beginning of a line: what is learned from, and the last `share` to be tested on.

    The tokenizer and the model both use this cut, so that neither ever sees the second part. A share
    of 0 holds nothing out.

    Raises:
        InputError: if share is not at least 0 and below 1.
    """
    check_share(share)
    at = len(text) - round(len(text) * share)
    line_end = text.find("\n", at)
    if share and line_end >= 0 and line_end + 1 < len(text):
        at = line_end + 1
    return text[:at], text[at:]


def check_share(share: float) -> None:
    """Raise InputError if a share is not at least 0 and below 1."""
    if not 0 <= share < 1:
        raise InputError(f"the share held out must be at least 0 and below 1, got {share}")


def find_files(path: Path) -> list[Path]:
    """The file at `path`; of a folder, every file of a known kind in it and below, in name order, but no hidden one.

    Raises:
        InputError: if there is nothing at `path`, or no such file in the folder.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    if not path.is_dir():
        return [path]
    files = [file for file in path.rglob("*") if file.name.lower().endswith(tuple(READERS)) and file.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise InputError(f"the folder {path} holds no {', '.join(READERS)} file")
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def read_text(file: Path) -> str:
    """The UTF-8 text of one file, line ends made `\\n`.

    Raises:
        InputError: if it is empty or not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {_bad_byte(error)}") from error
    if not text.strip():
        raise InputError(f"{file} is empty")
    return text


def _read_files(path: Path) -> Iterator[tuple[Path, str, int]]:
    """Each text with its file and the bytes of all files up to its end; texts of white space are left out."""
    before, any_text = 0, False
    for file in find_files(path):
        for text, position in _reader(file)(file):
            if text.strip():
                any_text = True
                yield file, text, before + position
        before += file.stat().st_size
    if not any_text:
        raise InputError(f"{path} is empty: none of its documents holds any text")


def _read_plain(file: Path) -> Iterator[tuple[str, int]]:
    yield read_text(file), file.stat().st_size


def _read_json_lines(file: Path) -> Iterator[tuple[str, int]]:
    number = 0
    with file.open("rb") as raw:
        lines = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if file.suffix.lower() == ".gz" else raw
        try:
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    yield _text_of_line(line, f"{file}, line {number:,}"), raw.tell()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{file} is damaged after line {number:,}: {error}") from error


def _text_of_line(line: bytes, where: str) -> str:
    try:
        content = json.loads(line.rstrip().decode("utf-8-sig"))  # not of bytes: json would let broken UTF-8 pass
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: {_bad_byte(error)}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} (character {error.pos + 1:,})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise InputError(f"{where} is not JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f'{where} is not an object with a "text" field, as {{"text": "Once upon a time"}} is')
    if "text" not in content:
        raise InputError(f'{where} has no "text" field, only {", ".join(content)[:200] or "{}"}')
    text = _checked(content["text"], where)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f'{where}: "text" holds {half}, half of a pair that makes one character') from error
    return text


def _read_parquet(file: Path) -> Iterator[tuple[str, int]]:
    try:
        import pyarrow  # here only: nothing else needs it, and it takes long to import
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"reading {file} needs pyarrow: pip install 'language-model-from-scratch[data]', or pip install pyarrow"
        ) from error
    row, size = 0, file.stat().st_size
    try:
        # pyarrow by default reads the whole file ahead, and a column's share of each row group at once
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as table:
            if "text" not in table.schema_arrow.names:
                raise InputError(f'{file} has no "text" column, only {", ".join(table.schema_arrow.names)[:200]}')
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=["text"]):
                for value in batch.column("text"):
                    row += 1
                    yield _checked(value.as_py(), f"{file}, row {row:,}"), size * row // table.metadata.num_rows
    except UnicodeDecodeError as error:
        raise InputError(f"{file}, row {row:,} is not UTF-8 text: {_bad_byte(error)}") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} is not a parquet file, or is damaged: {error}") from error


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f'{where} holds no string as "text" but {str(text)[:40]}')
    return text


def _bad_byte(error: UnicodeDecodeError) -> str:
    return f"byte {error.start:,} is 0x{error.object[error.start]:02x}"


READERS: dict[str, Reader] = {
    ".txt": _read_plain,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".parquet": _read_parquet,
}


def _reader(file: Path) -> Reader:
    """How to read a file: by the end of its name, and as plain text if that says nothing."""
    return next((reader for end, reader in READERS.items() if file.name.lower().endswith(end)), _read_plain)
