"""A folder of shards in the making: after a kill the work goes on, and only the complete folder takes its place.

Work is done in `.NAME.unfinished`, beside the target:

    data/           what will be the target: the shards so far
    progress.json   what they are made from, and where in the text each split's next shard begins
    replaced/       for an instant, the older target that the new one replaces

Every file is written under another name and renamed, and a shard before the progress that counts it.
So a kill at any moment leaves whole shards, at most one of them uncounted, which is then written again.
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from utils.files import InputError, printable, read_json, sync_folder, write_atomically
from utils.outputs import check_output_folder, delete_ours
from working_with_text_data.shards import open_shard, shard_header
from working_with_text_data.text_files import SPLITS

log = logging.getLogger(__name__)

OURS = ("bpe.json", "train_" + "[0-9]" * 6 + ".bin", "val_" + "[0-9]" * 6 + ".bin")  # what a finished folder holds


@dataclass
class Position:
    """Where the next shard of a split begins: all tokens before are on disk."""

    n_shards: int = 0
    n_tokens: int = 0
    document: int = 0
    """The number of the document that the last token is from."""
    token: int = 0
    """How many tokens of that document are on disk."""


class ShardWriter:
    """Writes the tokens of one split, one shard after another. Leaving it as a context manager ends the last shard.

    Args:
        folder: where the shards go.
        split: what their names begin with.
        shard_tokens: the tokens of each but the last.
        position: where to go on; it is moved on after each shard.
        on_shard: called after each shard, when the position has moved on.
    """

    def __init__(
        self, folder: Path, split: str, shard_tokens: int, position: Position, on_shard: Callable[[], None]
    ) -> None:
        self.folder = folder
        self.split = split
        self.shard_tokens = shard_tokens
        self.position = position
        self.on_shard = on_shard
        self._reached = replace(position)  # what `position` will be when the shard in the making is complete
        self._n_known = position.token  # tokens of the first document that are on disk, and will come once more
        self._dtype = np.dtype(np.uint16)
        self._file: BinaryIO | None = None
        self._closing = ExitStack()

    def add(self, document: int, tokens: np.ndarray) -> None:
        """Take the next tokens of a document; documents come in order, from the beginning of `position.document` on."""
        n_known = min(self._n_known, len(tokens))
        self._n_known -= n_known
        tokens = tokens[n_known:]
        while len(tokens):
            missing = self.shard_tokens - self._n_in_shard
            self._write(document, tokens[:missing])
            if self._n_in_shard == self.shard_tokens:
                self._end_shard()
            tokens = tokens[missing:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._closing.__exit__(kind, error, traceback)
        elif self._file is not None:
            self._end_shard()

    @property
    def _n_in_shard(self) -> int:
        return self._reached.n_tokens - self.position.n_tokens

    def _write(self, document: int, tokens: np.ndarray) -> None:
        """Write tokens to the shard in the making; to disk at once, since a whole shard may not fit in memory."""
        if self._file is None:
            path = self.folder / f"{self.split}_{self.position.n_shards:06d}.bin"
            self._file = self._closing.enter_context(write_atomically(path))
            self._file.write(shard_header(tokens.dtype, 0))
        self._file.write(tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).data)
        self._dtype = tokens.dtype
        if document != self._reached.document:
            self._reached.document = document
            self._reached.token = 0
        self._reached.token += len(tokens)
        self._reached.n_tokens += len(tokens)

    def _end_shard(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.write(shard_header(self._dtype, self._n_in_shard))
        self._file = None
        self._closing.close()
        self._reached.n_shards += 1
        vars(self.position).update(asdict(self._reached))
        self.on_shard()


class ResumableFolder:
    """The folder in which `target` is made, and how far it has come.

    Args:
        target: the folder to be; its parent is made if missing.
        settings: what decides the result, by the name a user knows it under.
        ours: what the finished folder holds, as names that `utils.outputs` understands.
    """

    def __init__(self, target: Path, settings: dict[str, Any], ours: Sequence[str] = OURS) -> None:
        self.target = target
        self.settings = settings
        self.ours = ours
        self.folder = target.with_name(f".{target.name}.unfinished")
        self.data = self.folder / "data"
        self.positions = {split: Position() for split in SPLITS}
        self._progress = self.folder / "progress.json"
        self._replaced = self.folder / "replaced"

    def open(self, overwrite: bool) -> None:
        """Begin, or take up the work again if the settings are still those it was begun with.

        Raises:
            InputError: if the target exists and may not be replaced, or, without overwrite, if work with
                other settings is under way.
        """
        if self._replaced.exists() and not self.target.exists():
            self._replaced.rename(self.target)  # killed before the new folder came in its place
        if self.folder.exists() and not (self.data.exists() and self._progress.exists()):
            self._discard()  # killed after it did, or before the first shard counted
        check_output_folder(self.target, self.ours, overwrite=overwrite)
        for path in self.folder.rglob(".*.tmp"):
            path.unlink()  # killed while it was written
        if self._progress.exists():
            try:
                self._load()
                log.info("going on in %s after %s finished shards", printable(str(self.folder)), self._n_shards())
                return
            except InputError as error:
                if not overwrite:
                    raise
                log.info("starting over, since %s", printable(str(error)))
            self._discard()
        self.data.mkdir(parents=True)

    def writers(self, shard_tokens: int) -> dict[str, ShardWriter]:
        """Return a writer for each split, which saves the progress after each shard."""
        return {
            split: ShardWriter(self.data, split, shard_tokens, position, self._save)
            for split, position in self.positions.items()
        }

    def leave(self) -> None:
        """Keep the interrupted work if there is a shard to go on from."""
        if self._progress.exists():
            where = printable(str(self.folder))
            log.info("%s keeps %s finished shards: the same command goes on there", where, self._n_shards())
        else:
            with suppress(InputError, OSError):  # why the work was interrupted is what counts
                self._discard()

    def finish(self) -> None:
        """Put the folder, now complete, in the place of the target.

        Raises:
            InputError: if somebody has put something into the target meanwhile; the work is kept.
        """
        check_output_folder(self.target, self.ours, overwrite=True)
        if self.target.exists():
            self.target.rename(self._replaced)
        self.data.rename(self.target)
        sync_folder(self.target.parent)
        self._discard()

    def _discard(self) -> None:
        """Delete the work so far, or what is left of it; the progress first, which counts the other files."""
        self._progress.unlink(missing_ok=True)
        inside = [f"{part.name}/{name}" for part in (self.data, self._replaced) for name in self.ours]
        delete_ours(self.folder, [*inside, self._progress.name])

    def _n_shards(self) -> int:
        return sum(position.n_shards for position in self.positions.values())

    def _save(self) -> None:
        positions = {split: asdict(position) for split, position in self.positions.items()}
        with write_atomically(self._progress) as file:
            file.write(json.dumps({"settings": self.settings, "positions": positions}, indent=1).encode())

    def _load(self) -> None:
        try:
            content = read_json(self._progress)
            changed = [name for name, value in self.settings.items() if content["settings"].get(name) != value]
            positions = {split: Position(**content["positions"][split]) for split in SPLITS}
            for split, position in positions.items():
                if not all(type(number) is int and number >= 0 for number in vars(position).values()):
                    raise ValueError(f"impossible numbers for {split}")
                for number in range(position.n_shards):
                    open_shard(self.data / f"{split}_{number:06d}.bin")  # there, and whole
        except (InputError, KeyError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
            raise InputError(
                f"{self.folder} holds unfinished work that is damaged ({error}): give --overwrite to start over"
            ) from error
        if changed:
            raise InputError(
                f"{self.folder} holds unfinished work with another {', another '.join(changed)}: "
                "give what it was begun with to go on there, or --overwrite to start over"
            )
        self.positions = positions
