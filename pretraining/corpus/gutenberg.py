"""Books of Project Gutenberg: what is the book, and what was put before and after it.

Each file begins with a header and ends with a licence. Most say where the book begins and ends, in a line between
stars; older ones say so in other words, and some break the line. What is left of the transcribers' notes before the
title goes too.
"""

import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.corpus.documents import Document, Files, Place, Row
from utils.files import InputError
from working_with_text_data.text_files import find_files

BEGIN = re.compile(
    r"^[ \t]*(?:\*{3}[ \t]*START OF (?:THE|THIS) PROJECT GUTENBERG E-?(?:BOOK|TEXT)[^*]{0,300}\*{3}"
    r"|\*END[ *]*THE SMALL PRINT![^\n]*)[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
END = re.compile(
    r"^[ \t]*(?:\*{3}[ \t]*END OF (?:THE|THIS) PROJECT GUTENBERG E-?(?:BOOK|TEXT)"
    r"|End of (?:the |this )?Project Gutenberg(?:'s|’s)?\b)",  # noqa: RUF001 - that apostrophe is in the books
    re.MULTILINE | re.IGNORECASE,
)
CREDIT = re.compile(
    r"(?:(?:Produced|E-?text prepared|Transcribed|Prepared|This e-?text was prepared|Scanned) (?:by|from)"
    r"|Special thanks are due)\b",
    re.IGNORECASE,
)
NOTE = re.compile(r"\[?(?:Transcriber|Redactor|Project Gutenberg Editor)(?:'s|’s|s)? note", re.I)  # noqa: RUF001
MOST_CREDITS = 6  # paragraphs at the beginning that may be of the transcribers
BLANK_LINES = re.compile(r"\n{4,}")
ENCODING = re.compile(rb"^Character set encoding: *([\w-]+)", re.MULTILINE | re.IGNORECASE)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
LARGEST_BOOK = 2**26  # bytes


def decode(content: bytes) -> str:
    """Return the text of a file: UTF-8, or what its header says, or Latin-1, in which any bytes are text."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        named = ENCODING.search(content)
        try:
            return content.decode(named[1].decode() if named else "latin-1")
        except (LookupError, UnicodeDecodeError):
            return content.decode("latin-1")


def clean(text: str) -> str:
    """Return the book in a file: without header, licence and credits, in Unicode's normal form NFC.

    Raises:
        InputError: if nothing says where the book begins or ends: it may not be one of Project Gutenberg's.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    begins = [match.end() for match in BEGIN.finditer(text)]
    if not begins:
        raise InputError("nothing says where the book begins: is it one of Project Gutenberg's?")
    end = next((match.start() for match in END.finditer(text) if match.start() > begins[0]), None)
    if end is None:
        raise InputError("nothing says where the book ends: is it one of Project Gutenberg's, and whole?")
    begin = max(place for place in begins if place <= end)
    paragraphs = re.split(r"\n\s*\n", text[begin:end].strip())
    for number in range(min(MOST_CREDITS, len(paragraphs)) - 1, -1, -1):
        if CREDIT.match(paragraphs[number].strip()) or NOTE.match(paragraphs[number].strip()):
            del paragraphs[number]
    body = "\n".join(line.rstrip() for line in "\n\n".join(paragraphs).split("\n"))
    return unicodedata.normalize("NFC", BLANK_LINES.sub("\n\n\n", body).strip("\n")) + "\n"


@dataclass(frozen=True)
class Book:
    """A file of a folder, or of an archive."""

    path: Path
    member: str
    n_bytes: int

    def read(self) -> Document:
        """Return the book in it. Raises InputError if it is damaged, too large, or no book."""
        where = f"{self.path}/{self.member}" if self.member else str(self.path)
        if self.n_bytes > LARGEST_BOOK:
            raise InputError(f"{where} is larger than a book: {self.n_bytes:,} bytes")
        try:
            return Document(clean(decode(self._content())))
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, KeyError) as error:
            raise InputError(f"{where} cannot be unpacked: {error}") from error
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def _content(self) -> bytes:
        if not self.member:
            return self.path.read_bytes()
        if self.path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        with tarfile.open(self.path) as archive:
            opened = archive.extractfile(self.member)
            return opened.read() if opened else b""


@dataclass(frozen=True)
class Books:
    """A source of books: the .txt files in a folder, or in a .zip or .tar archive."""

    path: Path
    name: str = "books"

    def identity(self) -> Any:
        """Return names, sizes and times of the files."""
        return Files(self.name, self.path).identity()

    def rows(self, start: Place) -> Iterator[tuple[Place, Row]]:
        """Yield all books from a place on; each is a row."""
        for number, book in enumerate(self._books()):
            if number >= start.row:
                yield Place(0, number + 1), Row(book, book.member or book.path.name)

    def _books(self) -> Iterator[Book]:
        name = self.path.name.lower()
        if not name.endswith(ARCHIVES) or self.path.is_dir():
            for file in find_files(self.path):
                if file.suffix.lower() == ".txt":
                    yield Book(file, "", file.stat().st_size)
            return
        try:
            if name.endswith(".zip"):
                with zipfile.ZipFile(self.path) as archive:
                    members = [(entry.filename, entry.file_size) for entry in archive.infolist()]
            else:
                with tarfile.open(self.path) as archive:
                    members = [(entry.name, entry.size) for entry in archive if entry.isfile()]
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise InputError(f"{self.path} is not an archive that can be read: {error}") from error
        for member, size in sorted(members):
            if member.lower().endswith(".txt"):
                yield Book(self.path, member, size)
