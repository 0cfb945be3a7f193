"""A folder of shards in the making: after a kill the work goes on, and only the complete folder takes its place.

Work is done in `.NAME.unfinished`, beside the target:

    data/           what will be the target: the shards so far
    progress.json   what they are made from, and where in the text each split's next shard begins
    replaced/       for an instant, the older target that the new one replaces

Every file is written under another name and renamed, and a shard before the progress that counts it.
So a kill at any moment leaves whole shards, at most one of them uncounted, which is then written again.
"""

import errno
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import InputError, sync_folder, write_atomically
from working_with_text_data.shards import open_shard, write_shard

log = logging.getLogger(__name__)

SPLITS = ("train", "val")


@dataclass
class Position:
    """Where the next shard of a split begins: all tokens before are on disk."""

    n_shards: int = 0
    n_tokens: int = 0
    document: int = 0
    """The number of the document that the next token is from, or of any between it and the last one."""
    token: int = 0
    """Which token of that document."""


@dataclass
class ShardWriter:
    """Collects the documents of one split and writes a shard each time there are enough tokens for one."""

    folder: Path
    split: str
    shard_tokens: int
    position: Position
    on_shard: Callable[[], None]
    """Called after each shard, when `position` is that of the next."""
    waiting: deque[tuple[int, np.ndarray]] = field(default_factory=deque)
    """Documents of which not all tokens are written, with their numbers."""

    def __post_init__(self) -> None:
        self.n_waiting = -self.position.token  # the first document comes whole, and its beginning is on disk

    def add(self, document: int, tokens: np.ndarray) -> None:
        """Take the tokens of a document; documents come in order, from `position.document` on."""
        self.waiting.append((document, tokens))
        self.n_waiting += len(tokens)
        while self.n_waiting >= self.shard_tokens:
            self._write(self.shard_tokens)

    def close(self) -> None:
        """Write what is left as a last, shorter shard."""
        if self.n_waiting > 0:
            self._write(self.n_waiting)

    def _write(self, count: int) -> None:
        parts, missing, start = [], count, self.position.token
        while missing:
            document, tokens = self.waiting[0]
            parts.append(tokens[start : start + missing])
            missing -= len(parts[-1])
            start += len(parts[-1])
            if start == len(tokens):
                self.waiting.popleft()
                document, start = document + 1, 0
        write_shard(self.folder / f"{self.split}_{self.position.n_shards:06d}.bin", np.concatenate(parts))
        self.n_waiting -= count
        self.position.n_shards += 1
        self.position.n_tokens += count
        self.position.document, self.position.token = document, start
        self.on_shard()


class UnfinishedFolder:
    """The folder in which `target` is made, and how far it has come.

    Args:
        target: the folder to be; its parent is made if missing.
        settings: what decides the result, by the name a user knows it under.
    """

    def __init__(self, target: Path, settings: dict[str, Any]) -> None:
        self.target, self.settings = target, settings
        self.folder = target.with_name(f".{target.name}.unfinished")
        self.data = self.folder / "data"
        self.positions = {split: Position() for split in SPLITS}
        self._progress = self.folder / "progress.json"
        self._replaced = self.folder / "replaced"

    def open(self, overwrite: bool) -> None:
        """Begin, or take up the work again if the settings are still those it was begun with.

        Raises:
            InputError: if, without overwrite, the target exists or work with other settings is under way.
        """
        if self._replaced.exists() and not self.target.exists():
            self._replaced.rename(self.target)  # killed before the new folder came in its place
        if self.folder.exists() and not (self.data.exists() and self._progress.exists()):
            shutil.rmtree(self.folder)  # killed after it did, or before the first shard counted
        if self.target.exists() and not overwrite:
            raise InputError(f"{self.target} exists: choose another --out, or give --overwrite to replace it")
        for path in self.folder.rglob(".*.tmp"):
            path.unlink()  # killed while it was written
        if self._progress.exists():
            try:
                self._load()
                log.info("going on in %s after %s finished shards", self.folder, self._n_shards())
                return
            except InputError as error:
                if not overwrite:
                    raise
                log.info("starting over, since %s", error)
            shutil.rmtree(self.folder)
        self.data.mkdir(parents=True)

    def writers(self, shard_tokens: int) -> dict[str, ShardWriter]:
        """A writer for each split, which saves the progress after each shard."""
        return {
            split: ShardWriter(self.data, split, shard_tokens, position, self._save)
            for split, position in self.positions.items()
        }

    def leave(self) -> None:
        """The work is interrupted: keep the folder if there is a shard to go on from."""
        if self._progress.exists():
            log.info("%s keeps %s finished shards: the same command goes on there", self.folder, self._n_shards())
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self) -> None:
        """Put the folder, now complete, in the place of the target."""
        if self.target.exists():
            self.target.rename(self._replaced)
        self.data.rename(self.target)
        sync_folder(self.target.parent)
        shutil.rmtree(self.folder)

    def _n_shards(self) -> int:
        return sum(position.n_shards for position in self.positions.values())

    def _save(self) -> None:
        positions = {split: asdict(position) for split, position in self.positions.items()}
        with write_atomically(self._progress) as file:
            file.write(json.dumps({"settings": self.settings, "positions": positions}, indent=1).encode())

    def _load(self) -> None:
        try:
            content = json.loads(self._progress.read_bytes())
            changed = [name for name, value in self.settings.items() if content["settings"][name] != value]
            positions = {split: Position(**content["positions"][split]) for split in SPLITS}
            for split, position in positions.items():
                for number in range(position.n_shards):
                    open_shard(self.data / f"{split}_{number:06d}.bin")  # there, and whole
        except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
            raise InputError(
                f"{self.folder} holds unfinished work that is damaged ({error}): give --overwrite to start over"
            ) from error
        if changed:
            raise InputError(
                f"{self.folder} holds unfinished work with another {', another '.join(changed)}: "
                "give what it was begun with to go on there, or --overwrite to start over"
            )
        self.positions = positions


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Keep every other process from making `target` while the block runs; on Windows, only run it.

    The operating system frees the lock when the process ends, however it ends.

    Raises:
        InputError: if another process is in such a block.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":  # has no such locks
        yield
        return
    path = target.with_name(f".{target.name}.lock")
    with path.open("w") as file:
        if not _lock(file.fileno(), path):
            raise InputError(f"another process is making {target}: wait until it has finished, or choose another --out")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(descriptor: int, path: Path) -> bool:
    import fcntl

    try:
        # Not flock, which worker processes would inherit and keep when only this process is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # else a file system without locks
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:  # the other process finished, and deleted the file, between our two steps
        return False
