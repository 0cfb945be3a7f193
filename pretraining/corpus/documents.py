"""Documents from disk, and where each of them stands, so that work can go on there.

A source is a name and a list of shards: files, or the files of a data set on the Hugging Face Hub (`hub.py`). It is
read in order, in batches of rows. Rows are handed on as they are and parsed by the processes that judge them; one
that cannot be parsed costs itself and nothing else.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from utils.files import InputError
from working_with_text_data import json_lines
from working_with_text_data.json_lines import Line
from working_with_text_data.text_files import find_files

BATCH_BYTES = 2**20
LARGEST_TEXT_FILE = 2**28  # bytes of a plain text file, which is one document
URL_FIELDS = ("url", "source_url")


class Document(NamedTuple):
    """A text, and the address it is from if it has one."""

    text: str
    url: str = ""


class Place(NamedTuple):
    """Where in a source a row stands, or would stand: both numbers count from 0."""

    shard: int = 0
    row: int = 0


class Whole(Protocol):
    """A file that is one document, to be read by the process that judges it."""

    n_bytes: int

    def read(self) -> Document:
        """Return the document. Raises InputError if it cannot be read."""


@dataclass(frozen=True)
class TextFile:
    """A file of plain text."""

    path: Path
    n_bytes: int

    def read(self) -> Document:
        """Return its text, line ends made `\\n`. Raises InputError if it is not UTF-8."""
        try:
            return Document(self.path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path} is not UTF-8 text: {json_lines.bad_byte(error, error.start)}") from error


class Row(NamedTuple):
    """What stands at a place, not looked at yet."""

    content: bytes | dict[str, Any] | Whole | InputError
    """A line of JSON, the fields of a table's row, a file, or the error that a file ended with."""
    where: str
    """Its file and number, for messages."""


class Batch(NamedTuple):
    """Rows that stand one after another."""

    rows: list[Row]
    n_bytes: int
    """About what they hold."""
    after: Place
    """Where the next batch begins."""


class Source(Protocol):
    """Where documents come from."""

    name: str

    def identity(self) -> Any:
        """Return what tells this source from one with other content, to be written as JSON."""

    def rows(self, start: Place) -> Iterator[tuple[Place, Row]]:
        """Yield all rows from a place on, in order, each with the place after it."""


@dataclass(frozen=True)
class Files:
    """JSON lines (also .gz), parquet and plain text, in the order of their names; a text file is one document."""

    name: str
    path: Path
    """A file, or a folder that holds some."""

    def identity(self) -> Any:
        """Return names, sizes and times of the files; their content is not read for it."""
        described = []
        for file in find_files(self.path):
            stat = file.stat()
            described.append([file.relative_to(self.path.parent).as_posix(), stat.st_size, stat.st_mtime_ns])
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def rows(self, start: Place) -> Iterator[tuple[Place, Row]]:
        """Yield all rows from a place on. A file that cannot be read to its end has the error as its last row."""
        files = find_files(self.path)
        for shard in range(start.shard, len(files)):
            first = start.row if shard == start.shard else 0
            number = 0
            read = _read_parquet if files[shard].suffix.lower() == ".parquet" else _read_lines_or_text
            try:
                for number, row in enumerate(read(files[shard]), start=1):
                    if number > first:
                        yield Place(shard, number), row
            except (InputError, OSError) as error:
                if number >= first:
                    yield Place(shard, number + 1), Row(InputError(str(error)), str(files[shard]))


def _read_lines_or_text(file: Path) -> Iterator[Row]:
    if file.name.lower().endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        for line in json_lines.read_lines(file):
            yield Row(line.content, line.where)
        return
    if file.stat().st_size > LARGEST_TEXT_FILE:
        raise InputError(f"{file} is one document of more than {LARGEST_TEXT_FILE:,} bytes: divide it")
    yield Row(TextFile(file, file.stat().st_size), str(file))


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow  # here only: nothing else needs it, and it takes long to import
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as table:
            columns = [name for name in ("text", *URL_FIELDS) if name in table.schema_arrow.names]
            number = 0
            for part in table.iter_batches(256, columns=columns):
                for content in part.to_pylist():
                    number += 1
                    yield Row(content, f"{file}, row {number:,}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a parquet file, or is damaged: {' '.join(str(error).split())}") from error


def batches(source: Source, start: Place) -> Iterator[Batch]:
    """Yield the rows of a source from a place on, about a megabyte at a time."""
    waiting: list[Row] = []
    size = 0
    after = start
    for after, row in source.rows(start):
        waiting.append(row)
        size += size_of(row)
        if size >= BATCH_BYTES:
            yield Batch(waiting, size, after)
            waiting = []
            size = 0
    if waiting:
        yield Batch(waiting, size, after)


def size_of(row: Row) -> int:
    """Return about how many bytes there are in a row."""
    if isinstance(row.content, bytes):
        return len(row.content)
    if isinstance(row.content, dict):
        return len(row.content.get("text") or "")
    return 0 if isinstance(row.content, InputError) else row.content.n_bytes


def parse(row: Row) -> Document:
    """Return the document in a row.

    Raises:
        InputError: if there is none; the message names the file, and the line or row.
    """
    content = row.content
    if isinstance(content, InputError):
        raise content
    if not isinstance(content, bytes | dict):
        return content.read()
    if isinstance(content, bytes):
        content = json_lines.parse(Line(content, row.where, 0))
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        raise InputError(f'{row.where} is not an object with a "text" that is a string')
    text = content["text"]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f'{row.where}: "text" holds half of a pair of surrogates, which is no character') from error
    return Document(text, next((content[name] for name in URL_FIELDS if isinstance(content.get(name), str)), ""))
