"""Errors a person can act on, and files that are either the old one or the new one, never half of one."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class InputError(Exception):
    """What the user gave is wrong. The message is one line: the value, and what would be right.

    The command line prints it without a traceback. It is no ValueError, so that code that expects one of a
    library's does not swallow it.
    """


@contextmanager
def write_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place under `path` only when it is complete and on disk.

    It is written under a temporary name beside the target, flushed to the disk and renamed. If the
    block raises, or the process is killed, `path` is as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not say where
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable: they are, only once the folder itself is on disk."""
    if os.name == "nt":  # Windows cannot open a folder, and journals renames itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not JSON, not UTF-8, nested more deeply than can be read, or no regular file: reading a
            pipe might not end.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file")
    refuse_lfs_pointer(path)
    content = path.read_bytes()
    try:
        return json.loads(content)
    except RecursionError as error:
        raise InputError(f"{path} is damaged: its brackets are nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {printable(str(error))}") from error


def refuse_lfs_pointer(file: Path) -> None:
    """Raise an InputError if a file only says where Git LFS keeps the real one."""
    with file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise InputError(f"{file} is a Git LFS pointer, not the file itself: run git lfs pull in {file.parent}")


def printable(text: str) -> str:
    """Return the text on one line, with what a terminal would obey written out: an escape character as \\x1b."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
