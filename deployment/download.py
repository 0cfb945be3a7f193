"""Fetch a run directory, or any folder, from a Modal volume.

python -m deployment.download runs/small
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import modal
from tqdm import tqdm

from deployment.cloud import listing, one_line_errors
from utils.files import InputError, write_atomically
from utils.outputs import check_writable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Fetch a folder from a volume. Files that are here already, of the same size and age, are not fetched again."""

    folder: str = "runs/demo"
    """Which folder of the volume."""
    out: Path | None = None
    """Where it goes; by default, to the same relative path here."""
    volume: str = "language-models"
    """Which volume."""

    def __post_init__(self) -> None:
        path = PurePosixPath(self.folder)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise InputError(f"folder must be a path in the volume, as runs/small, got {self.folder!r}")


def main(config: Config) -> Path:
    """Fetch it, file by file, each of them whole or not at all; return where it is.

    Raises:
        InputError: if there is no such volume or folder; then nothing is written.
    """
    target = config.out or Path(config.folder)
    check_writable(target)
    with one_line_errors(f"download {config.folder}"):
        volume = modal.Volume.from_name(config.volume)
        entries = listing(volume, config.folder)
        if not entries:
            raise InputError(f"the volume {config.volume} has no folder {config.folder}")
        for entry in tqdm(entries, desc="downloading", unit="file", leave=False):
            path = target / PurePosixPath(entry.path).relative_to(config.folder)
            # weights keep their size while they learn: the time tells them apart
            if path.is_file() and (path.stat().st_size, path.stat().st_mtime) == (entry.size, entry.mtime):
                continue
            with write_atomically(path) as file:
                for piece in volume.read_file(entry.path):
                    file.write(piece)
            os.utime(path, (entry.mtime, entry.mtime))
    log.info("%s has %d files", target, len(entries))
    return target


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, first="folder")
