"""Snapshots by restic: small when nothing changed, whole when restored, and honest about one flipped byte."""

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from deployment import storage
from deployment.storage import PASSWORD, Backups, Config
from utils.files import InputError

# Where restic cuts a file is decided by a number that each repository draws for itself: a piece has half a mebibyte at
# least, a mebibyte more in the mean, and eight at most.
MOST_OF_A_PIECE = 8 * 2**20

needs_restic = pytest.mark.skipif(shutil.which("restic") is None, reason="there is no restic: apt-get install restic")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a workspace: text, something incompressible, a link, and what is left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    (folder / "deep" / "__pycache__").mkdir(parents=True)
    (folder / "text.txt").write_text("It is a truth universally acknowledged. " * 20_000)
    (folder / "deep" / "noise.bin").write_bytes(random.Random(0).randbytes(20_000_000))
    (folder / "deep" / "__pycache__" / "x.pyc").write_bytes(b"made again")
    (folder / "link").symlink_to("text.txt")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def size_of(folder: Path) -> int:
    return sum(map(len, contents(folder).values()))


def packs(backups: Backups) -> set[Path]:
    return {path for path in (backups.repository / "data").rglob("*") if path.is_file()}


@needs_restic
def test_from_snapshot_to_a_flipped_byte(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backups = Backups(Path("repository"), "a good password")
    first = backups.snapshot(work)
    size = size_of(backups.repository)
    # compressed: 800 KB of text are hardly there, the noise is as large as it was
    assert first.total_bytes == 20_800_000
    assert 20_000_000 < size < 20_100_000

    unchanged = backups.snapshot(work)
    assert unchanged.added_bytes <= 0.01 * first.total_bytes
    assert size_of(backups.repository) - size <= 0.01 * size

    before = packs(backups)
    with (work / "deep" / "noise.bin").open("r+b") as file:
        file.write(b"changed")
    changed = backups.snapshot(work)  # deduplicated: only the piece with the change is stored
    assert 0 < changed.added_bytes < MOST_OF_A_PIECE + 100_000
    assert len(backups.list()) == 3

    backups.forget()
    assert backups.list()[-1]["short_id"] == changed.id[:8]
    backups.verify()
    backups.restore(tmp_path / "restored")
    expected = {name: content for name, content in contents(work).items() if "__pycache__" not in name}
    assert contents(tmp_path / "restored") == expected
    assert (tmp_path / "restored" / "link").is_symlink()
    with pytest.raises(InputError, match="restored exists"):
        backups.restore(tmp_path / "restored")
    with pytest.raises(InputError, match="wrong password"):
        Backups(backups.repository, "another password").list()
    nothing_is_readable(backups.repository)

    # a piece that the newest snapshot needs: where files are cut is different in each repository
    pack = max(packs(backups) - before, key=lambda path: path.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    with pytest.raises(InputError, match="restic check failed"):
        backups.verify()
    with pytest.raises(InputError, match="restic restore failed"):
        backups.restore(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def nothing_is_readable(repository: Path) -> None:
    """Neither texts nor names: all of it is encrypted."""
    stored = b"".join(path.read_bytes() for path in repository.rglob("*") if path.is_file())
    for secret in (b"universally", b"noise.bin", b"a good password"):
        assert secret not in stored


@needs_restic
def test_a_backup_that_was_killed_stops_no_later_one(work: Path, tmp_path: Path) -> None:
    """Here it only waits: the lock of a machine that is gone looks to restic like that of one that works."""
    backups = Backups(tmp_path / "repository", "a good password")
    backups.unlock()  # there is nothing yet
    backups.snapshot(work)
    locks = backups.repository / "locks"
    command = ["restic", "backup", "--stdin"]
    with subprocess.Popen(command, env=backups._environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as other:
        try:
            until = time.monotonic() + 60
            while not [path for path in locks.iterdir() if "tmp" not in path.name]:  # it is renamed once it is whole
                assert time.monotonic() < until
                time.sleep(0.05)
            with pytest.raises(InputError, match="locked"):
                backups.forget()
            backups.unlock()
            backups.forget()
            assert len(backups.list()) == 1
        finally:
            other.kill()


@needs_restic
def test_one_line_for_what_cannot_be(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "a good password")
    with pytest.raises(InputError, match="there is no repository .*: take a snapshot first"):
        storage.main(Config(action="verify", repository=tmp_path / "none"))
    with pytest.raises(InputError, match="there is no folder .* to back up"):
        storage.main(Config(action="snapshot", repository=tmp_path / "none", folder=tmp_path / "nothing"))
    assert not (tmp_path / "none").exists()
    storage.main(Config(action="snapshot", repository=tmp_path / "some", folder=work))
    with pytest.raises(InputError, match="restic restore failed"):
        storage.main(
            Config(action="restore", repository=tmp_path / "some", folder=tmp_path / "out", snapshot="12345678")
        )
    assert not (tmp_path / "out").exists()
    assert PASSWORD in os.environ


def test_there_is_a_password_and_a_restic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/restic")
    with pytest.raises(InputError, match="backups need a password"):
        Backups(Path("repository"), "")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="backups need restic"):
        Backups(Path("repository"), "password")
