"""Files are the old one or the new one, whatever happens in between."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.files import InputError, printable, read_json, sha256, write_atomically


def test_a_finished_block_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"first", b"second"):
        with write_atomically(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with write_atomically(path) as file:
            file.write(b"new")
            raise KeyError("oops")

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = "import sys; from utils.files import write_atomically\n"
    code += "with write_atomically(sys.argv[1]) as f:\n while True: f.write(b'x' * 1000); f.flush()"
    process = subprocess.Popen([sys.executable, "-c", code, path])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".file.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.read_bytes() == b"old"


def test_a_failed_write_says_where(tmp_path: Path) -> None:
    code = "import resource, sys; from utils.files import write_atomically\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
    code += "try:\n with write_atomically(sys.argv[1]) as f: f.write(b'x' * 1000)\n"
    code += "except OSError as error: print(error.filename, error.strerror)"
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "f"], capture_output=True, text=True, check=True)
    assert result.stdout == f"{tmp_path / 'f'} File too large\n"
    assert not list(tmp_path.iterdir())


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


@pytest.mark.parametrize("content", [b"{", b"[" * 5_000, b"\xff", b"", b"{" + b'"a":{' * 5_000, b'{"a": \x00}'])
def test_damaged_json_is_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^\S+file\.json is damaged: [^\n]+$"):
        read_json(path)


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable("a\x1b[2Jb\n\u202e\u200bé 日") == r"a\x1b[2Jb\n\u202e\u200bé 日"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path(os.devnull)):
        with pytest.raises(InputError, match=r"^\S+ is not a regular file$"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bpe.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n")
    with pytest.raises(InputError, match="is a Git LFS pointer, not the file itself: run git lfs pull in"):
        read_json(path)
