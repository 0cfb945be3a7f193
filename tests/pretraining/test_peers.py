"""Two processes that do not see the same, or lose one another: one line, and nothing sound is called damaged."""

import json
from pathlib import Path

import pytest

from pretraining.checkpoint import list_checkpoints
from tests.processes import finish, start


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind; see `peers.py`."""
    folder = tmp_path_factory.mktemp("peers")
    warnings = finish(start(2, "tests.pretraining.peers", data, folder))
    (folder / "warnings.txt").write_text(warnings[0])
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, str]:
    """What the main process was told."""
    return json.loads((folder / "said.json").read_text())


def test_they_train(said: dict[str, str]) -> None:
    assert said["together"] == "True"


def test_they_go_on_from_the_same_step(said: dict[str, str], folder: Path) -> None:
    run = folder / "run"
    assert said["one reads another step"] == (
        f"InputError: the processes would go on from different steps of {run} (step_000004, step_000000): give each "
        "of them the same folder, on a disk that they share"
    )


def test_a_checkpoint_is_not_damaged_because_the_other_is_lost(said: dict[str, str], folder: Path) -> None:
    """Which would have ended with the advice to delete the run."""
    assert said["one is lost"].startswith(("RuntimeError", "Dist"))
    assert "damaged" not in (folder / "warnings.txt").read_text()
    assert [path.name for path in list_checkpoints(folder / "run")] == ["step_000004", "step_000000"]
