"""What a script may write over or delete: only what is recognisably its own, name by name.

A mistyped `--out` must not cost anybody a folder of books. So every flag that replaces or deletes asks here first:
links, devices, and files that this project did not write are refused, and so is an output that holds an input.

Names are given as patterns relative to the folder, one part per level: `("config.json", "snapshots/*.safetensors")`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from utils.files import InputError

Inputs = Iterable[Path | None]


def check_output_file(
    path: Path, *, overwrite: bool, is_ours: Callable[[Path], bool], inputs: Inputs = (), flag: str = "--out"
) -> None:
    """Check, before any work, that a file may be written.

    Args:
        path: the file.
        overwrite: whether the user allows an existing one to be replaced.
        is_ours: whether an existing file is one that the script wrote, or could have written.
        inputs: what the script reads, which the output must not replace.
        flag: what the user named the file by.

    Raises:
        InputError: if it is there and may not be replaced, or could not be written.
    """
    _refuse_inputs(path, inputs, flag)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is not a regular file, so it is not replaced: choose another {flag}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another {flag}, or give --overwrite to replace it")
    if path.exists() and not is_ours(path):
        raise InputError(f"{path} was not written by this command, so it is not replaced: choose another {flag}")
    check_writable(path, flag)


def check_output_folder(
    path: Path, ours: Sequence[str], *, overwrite: bool, inputs: Inputs = (), flag: str = "--out"
) -> None:
    """Check, before any work, that a folder may be made, or an existing one replaced.

    Args:
        path: the folder.
        ours: patterns of the files that the script writes into it.
        overwrite: whether the user allows an existing one to be replaced.
        inputs: what the script reads, which the output must not hold.
        flag: what the user named the folder by.

    Raises:
        InputError: if it is there and may not be replaced, or could not be made.
    """
    _refuse_inputs(path, inputs, flag)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another {flag}, or give --overwrite to replace it")
    _refuse_foreign(path, ours, flag)
    check_writable(path, flag)


def delete_ours(path: Path, ours: Sequence[str], flag: str = "--out") -> None:
    """Delete a folder that holds only our own files, one by one; do nothing if it is not there.

    What matches the first pattern goes last: a folder that is known by that file stays known by it until the end.

    Raises:
        InputError: before anything is deleted, if something else is in the folder.
    """
    _refuse_foreign(path, ours, flag)
    if not path.exists():
        return
    files = [entry for entry in _entries(path) if not entry.is_dir()]
    for file in sorted(files, key=lambda file: _matches(file.relative_to(path), ours[0])):
        file.unlink()
    for folder in sorted(_entries(path), reverse=True):  # the inner ones first
        folder.rmdir()
    path.rmdir()


def check_writable(path: Path, flag: str = "--out") -> None:
    """Check that a file or folder can be made at `path`, or written if it is there.

    Raises:
        InputError: if it cannot.
    """
    if path.name in ("", ".."):
        raise InputError(f"{flag} must name a file or a folder, got {str(path)!r}")
    place = path.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if place != path.absolute() and not place.is_dir():
        raise InputError(f"{path} cannot be written: {place} is not a folder")
    folder = place if place.is_dir() else place.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: {folder} does not allow it")


def _refuse_inputs(path: Path, inputs: Inputs, flag: str) -> None:
    target = path.resolve()
    for given in inputs:
        if given is not None and given.exists() and given.resolve().is_relative_to(target):
            raise InputError(f"{path} holds {given}, which is read: choose another {flag}")


def _refuse_foreign(path: Path, ours: Sequence[str], flag: str) -> None:
    """Refuse what is not a folder, and a folder that holds anything but our files and folders that lead to them."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(f"{path} is not a folder, so it is not replaced: choose another {flag}")
    for entry in _entries(path) if path.exists() else ():
        name = entry.relative_to(path)
        if entry.is_dir() and not entry.is_symlink():
            known = any(_leads_to(name, pattern) for pattern in ours)
        else:
            known = entry.is_file() and not entry.is_symlink() and any(_matches(name, pattern) for pattern in ours)
        if not known:
            raise InputError(f"{path} holds {name}, which is not ours to delete: move it, or choose another {flag}")


def _entries(folder: Path) -> Iterator[Path]:
    """Yield all that is in a folder and below, links to folders not followed."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        yield from (Path(parent, name) for name in sorted(folders + files))


def _raise(error: OSError) -> None:
    raise error


def _leads_to(folder: Path, pattern: str) -> bool:
    """Return whether what fits the pattern may lie in a folder."""
    parts = pattern.split("/")
    depth = len(folder.parts)
    return depth < len(parts) and _matches(folder, "/".join(parts[:depth]))


def _matches(name: Path, pattern: str) -> bool:
    """Return whether a name fits a pattern, level by level, also under the hidden name it has while it is written."""
    parts = pattern.split("/")
    if len(parts) != len(name.parts) or not all(map(fnmatchcase, name.parts[:-1], parts[:-1])):
        return False
    return fnmatchcase(name.name, parts[-1]) or fnmatchcase(name.name, f".{parts[-1]}.*tmp")
