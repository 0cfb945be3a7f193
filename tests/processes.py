"""Processes that meet as those of torchrun do, started without its own process, which takes as long as each of them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).parent.parent


def start(size: int, *command: object) -> list[subprocess.Popen[str]]:
    """Start a Python module in several processes that are to meet."""
    port = str(free_port())
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, command)], cwd=ROOT, text=True, stderr=subprocess.PIPE,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for processes to end well; return what each said."""
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)[-3000:]
    return said
