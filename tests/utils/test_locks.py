"""Two processes never write one folder at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files import InputError
from utils.locks import alone

HOLD = """
import sys
from pathlib import Path
from utils.locks import alone
with alone(Path(sys.argv[1]), "training in"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        run.mkdir()
        (tmp_path / "link").symlink_to(run)
        for name in (run, run.parent / ".." / "runs" / "a", tmp_path / "link"):
            with (
                pytest.raises(InputError, match=r"another process is training in .*a: wait"),
                alone(name, "training in"),
            ):
                pass
        with alone(run.with_name("b"), "training in"):
            pass
        holder.kill()  # the system frees the lock, though the file stays
    assert (run.parent / ".a.lock").exists()
    with alone(run, "training in"), alone(run, "training in"):  # within one process a script may call another
        assert (run.parent / ".a.lock").exists()
    assert list(run.parent.iterdir()) == [run]


def test_what_only_has_the_name_of_a_lock_stays_as_it_is(tmp_path: Path) -> None:
    precious, lock = tmp_path / "precious", tmp_path / ".a.lock"
    precious.write_text("precious")
    for make in (lambda: lock.symlink_to(precious), lambda: lock.write_text("precious"), lock.mkdir):
        make()
        with pytest.raises(InputError, match=r"\.a\.lock is not our lock.*move it"), alone(tmp_path / "a", "making"):
            pass
        assert os.path.lexists(lock)
        assert precious.read_text() == "precious"
        lock.rmdir() if lock.is_dir() else lock.unlink()
    lock.touch()  # ours, left by a killed process
    with alone(tmp_path / "a", "making"):
        pass
    assert not lock.exists()
