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


def test_fsdp_without_a_folder_that_all_see_is_refused_before_it_begins(said: dict[str, str], folder: Path) -> None:
    assert said["fsdp apart"] == (
        "InputError: process 1 does not see fsdp as the main one does, and under fsdp each writes its part of a "
        "checkpoint there: choose an --out on a disk that all machines share, or another --parallel"
    )
    assert not list_checkpoints(folder / "machine0" / "fsdp")


def test_under_ddp_the_main_process_alone_needs_the_folder(said: dict[str, str], folder: Path) -> None:
    """Machines of a cluster of Modal share no disk."""
    assert said["ddp apart"] == "True"
    assert list_checkpoints(folder / "machine0" / "ddp")
    assert not list((folder / "machine1").iterdir())


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
