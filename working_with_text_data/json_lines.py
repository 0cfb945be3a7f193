"""JSON lines, the form in which data sets are often published: a file with a JSON value on each of its lines.

A damaged file is named with the number of its damaged line, since it may have millions.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.files import InputError


class Line(NamedTuple):
    """A line that is not blank."""

    content: bytes
    where: str
    """Its file and number, for messages."""
    position: int
    """Bytes of the file read so far, to show progress."""


def read_lines(file: Path) -> Iterator[Line]:
    """Yield the lines of a file, one in memory at a time; it is compressed if its name ends in .gz.

    Raises:
        InputError: if it is compressed, and damaged.
    """
    number = 0
    with file.open("rb") as raw:
        lines = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if file.suffix.lower() == ".gz" else raw
        try:
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    yield Line(line, f"{file}, line {number:,}", raw.tell())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{file} is damaged after line {number:,}: {error}") from error


def parse(line: Line) -> Any:
    """Return the value that a line holds.

    Raises:
        InputError: if it is not UTF-8, or not JSON.
    """
    try:
        return json.loads(line.content.rstrip().decode("utf-8-sig"))  # not of bytes: json would let broken UTF-8 pass
    except UnicodeDecodeError as error:
        raise InputError(f"{line.where} is not UTF-8 text: {bad_byte(error, error.start)}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{line.where} is not JSON: {error.msg} (character {error.pos + 1:,})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise InputError(f"{line.where} is not JSON that can be read: {error}") from error


def bad_byte(error: UnicodeDecodeError, position: int) -> str:
    """Return which byte is not UTF-8, for messages."""
    return f"byte {position:,} is 0x{error.object[error.start]:02x}"
