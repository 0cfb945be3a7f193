"""A lock on what is being written, so that two processes never write the same folder at once."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.files import InputError

_held: set[Path] = set()  # by this process, which may enter such a block again inside it


@contextmanager
def alone(target: Path, doing: str, flag: str = "--out") -> Iterator[None]:
    """Keep every other process from writing `target` while the block runs; on Windows, only run the block.

    The lock is a hidden file beside the target. The operating system frees it when the process ends, however it ends.
    Folders that are made for it go again, unless the block puts something into them.

    Args:
        target: the folder, whether it exists yet or not.
        doing: what is done to it, for the message: "training in".
        flag: what the user named the target by.

    Raises:
        InputError: if another process is in such a block, or something else has the name of the hidden file.
    """
    target = target.resolve()  # by whatever links it is named
    made = [folder for folder in target.parents if not folder.exists()]  # the innermost first
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(target, doing, flag):
            yield
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def _locked(target: Path, doing: str, flag: str) -> Iterator[None]:
    if os.name == "nt" or target in _held:  # Windows has no such locks
        yield
        return
    path = target.with_name(f".{target.name}.lock")
    if path.is_symlink() or (path.exists() and not (path.is_file() and path.stat().st_size == 0)):
        raise InputError(f"{path} is not our lock, which would be an empty file: move it, or choose another {flag}")
    with path.open("a") as file:  # never emptying it
        if not _lock(file.fileno(), path):
            raise InputError(
                f"another process is {doing} {target}: wait until it has finished, or choose another {flag}"
            )
        _held.add(target)
        try:
            yield
        finally:
            _held.discard(target)
            path.unlink(missing_ok=True)


def _lock(descriptor: int, path: Path) -> bool:
    """Take the lock, and return whether it was free."""
    import fcntl

    try:
        # Not flock, which worker processes would inherit and keep when only this process is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # any other error: a file system without locks
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:  # the other process finished, and deleted the file, between our two steps
        return False
