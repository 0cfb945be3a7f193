"""Two processes against one: the same steps to the last digits, and each remembers its share only.

Processes are real and talk through gloo. They are started here as torchrun would start them, without its own process,
which takes as long to begin as each of them.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretraining.ranks import PAIRS

ROOT = Path(__file__).parent.parent.parent


def start(size: int, *command: object) -> list[subprocess.Popen[str]]:
    """Start a Python module in several processes that are to meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, command)], cwd=ROOT, text=True, stderr=subprocess.PIPE,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for processes to end well; return what each said."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)[-3000:]
    return said


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What two processes measured of themselves, by way of sharing and optimizer."""
    folder = tmp_path_factory.mktemp("ranks")
    finish(start(2, "tests.pretraining.ranks", folder))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(("way", "optimizer"), PAIRS)
class TestTwoProcessesAgainstOne:
    """Each row of the batches supervises another number of tokens, and accumulation cuts them unevenly."""

    def test_the_steps_are_the_same(self, found: dict, way: str, optimizer: str) -> None:
        measured = found[f"{way} {optimizer}"]
        assert measured["loss"] < 1e-12
        assert measured["weights"] < 1e-12
        assert measured["states"] < 1e-12

    def test_a_state_that_was_made_whole_goes_on_as_if_it_had_not_been(
        self, found: dict, way: str, optimizer: str
    ) -> None:
        assert found[f"{way} {optimizer}"]["after_reload"] == 0
        assert found[f"{way} {optimizer}"]["average_is_whole"]

    def test_hellaswag_is_shared(self, found: dict, way: str, optimizer: str) -> None:
        measured = found[f"{way} {optimizer}"]
        assert measured["choices"] == measured["choices_alone"]
        assert all(0 < share < 1 for share in measured["choices"].values())

    def test_each_process_remembers_its_share(self, found: dict, way: str, optimizer: str) -> None:
        measured = found[f"{way} {optimizer}"]
        shares = [n_bytes / measured["bytes_alone"] for n_bytes in measured["bytes"]]
        assert shares == pytest.approx([1, 1] if way == "ddp" else [0.5, 0.5], abs=0.02)
