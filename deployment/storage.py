"""Snapshots of a folder: incremental, deduplicated, compressed, encrypted; thinned out, restored, verified. By restic.

    export RESTIC_PASSWORD=...   # never on a command line, where every process of the machine can read it
    python -m deployment.storage snapshot --folder /workspace --repository /backups/restic
    python -m deployment.storage verify --repository /backups/restic
    python -m deployment.storage restore --folder restored --repository /backups/restic

Modal's volumes have no snapshots of their own. A workspace takes one of /workspace every 30 minutes while it is up,
into a second volume, and keeps all of the last day, one per day for a week, and one per week for two months.

restic cuts files into pieces where their content says so, stores each piece once under the SHA-256 of what it holds,
and encrypts with AES-256. A snapshot of what has not changed is a list of pieces that are there already.
"""

import json
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.files import InputError, printable
from utils.outputs import check_writable

log = logging.getLogger(__name__)

PASSWORD = "RESTIC_PASSWORD"
KEEP = ("--keep-within", "1d", "--keep-daily", "7", "--keep-weekly", "8")
# What can be downloaded or computed again at no cost.
LEFT_OUT = ("**/__pycache__", "**/.cache", "**/.venv", "**/node_modules", "lost+found")


@dataclass(frozen=True)
class Snapshot:
    """One state of a folder."""

    id: str
    added_bytes: int
    """What it made the repository grow by."""
    total_bytes: int
    """What the folder holds."""


class Backups:
    """A repository of snapshots."""

    def __init__(self, repository: Path, password: str) -> None:
        """Prepare to use a repository, which the first snapshot makes.

        Raises:
            InputError: if there is no restic, or no password.
        """
        if shutil.which("restic") is None:
            raise InputError("backups need restic: apt-get install restic")
        if not password:
            raise InputError(f"backups need a password in the environment variable {PASSWORD}")
        self.repository = repository
        # restic runs inside the folder that it stores, so that its paths are those of the folder
        self._environment = {**os.environ, PASSWORD: password, "RESTIC_REPOSITORY": str(repository.absolute())}

    def snapshot(self, folder: Path) -> Snapshot:
        """Store what a folder holds now.

        Raises:
            InputError: if there is no such folder, or restic cannot store it.
        """
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder} to back up")
        if not (self.repository / "config").exists():
            self._run("init", "--repository-version", "2")
        excluded = [part for pattern in LEFT_OUT for part in ("--exclude", pattern)]
        said = self._run("backup", "--json", "--compression", "auto", *excluded, ".", inside=folder)
        summary = json.loads(said.splitlines()[-1])
        return Snapshot(summary["snapshot_id"], summary["data_added"], summary["total_bytes_processed"])

    def unlock(self) -> None:
        """Remove the locks of all processes, such as one that was killed: for whoever has the repository alone."""
        if (self.repository / "config").exists():
            self._run("unlock", "--remove-all")

    def list(self) -> list[dict[str, Any]]:
        """Return the snapshots, the oldest first, each with "id", "time" and "paths"."""
        return json.loads(self._run("snapshots", "--json")) or []

    def forget(self) -> None:
        """Delete old snapshots, as KEEP says, and the pieces that no other snapshot needs."""
        self._run("forget", "--prune", *KEEP)

    def restore(self, target: Path, snapshot: str = "latest") -> None:
        """Write a snapshot into a folder that is not there yet. All of it is there afterwards, or there is an error.

        Raises:
            InputError: if the folder is there, or the snapshot is not, or something in it is damaged.
        """
        if target.exists():
            raise InputError(f"{target} exists: a snapshot is restored into a new folder")
        check_writable(target, "--folder")
        partial = target.with_name(f".{target.name}.restoring")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._run("restore", snapshot, "--target", str(partial), "--verify")
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def verify(self) -> None:
        """Read all that is stored, and check it against its SHA-256.

        Raises:
            InputError: if anything is missing or damaged, be it one bit.
        """
        self._run("check", "--read-data")

    def _run(self, *arguments: str, inside: Path | None = None) -> str:
        if arguments[0] != "init" and not (self.repository / "config").exists():
            raise InputError(f"there is no repository {self.repository}: take a snapshot first")
        done = subprocess.run(
            ["restic", *arguments], env=self._environment, cwd=inside, capture_output=True, text=True,
            errors="replace", check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it does not say why"]
            telling = (line for line in said if any(word in line for word in ("rror", "Fatal", "unable")))
            reason = printable(next(telling, said[-1]))
            raise InputError(f"restic {arguments[0]} failed in {self.repository}: {reason[:300]}")
        return done.stdout


@dataclass(frozen=True)
class Config:
    """Take, list, restore or verify snapshots of a folder; the password is RESTIC_PASSWORD's."""

    action: Literal["snapshot", "list", "restore", "verify"] = "list"
    """What to do."""
    repository: Path = Path("/backups/restic")
    """Where snapshots are kept."""
    folder: Path = Path("/workspace")
    """What to take a snapshot of; or where to restore one, a folder that is not there yet."""
    snapshot: str = "latest"
    """Which one to restore: an id that list shows."""


def main(config: Config) -> None:
    """Do it, and say what was done.

    Raises:
        InputError: see `Backups`.
    """
    backups = Backups(config.repository, os.environ.get(PASSWORD, ""))
    match config.action:
        case "snapshot":
            taken = backups.snapshot(config.folder)
            log.info("snapshot %s: %s bytes, %s new", taken.id[:8], f"{taken.total_bytes:,}", f"{taken.added_bytes:,}")
        case "list":
            for found in backups.list():
                print(found["short_id"], found["time"][:19])
        case "restore":
            backups.restore(config.folder, config.snapshot)
            log.info("restored into %s", config.folder)
        case "verify":
            backups.verify()
            log.info("all of %s is as it was stored", config.repository)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, first="action")
