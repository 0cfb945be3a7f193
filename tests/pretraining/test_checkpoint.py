"""Checkpoints under damage, and on disks that fill up for real."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_model import GPT, GPTConfig
from pretraining.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from tests.commands import call
from utils.files import InputError, sha256


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.preset("tiny"))


def load(run: Path, model: GPT) -> dict[str, Any] | None:
    """Load a checkpoint; return its state, or None if there is none."""
    found: dict[str, Any] = {}

    def restore(weights: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        found.update(state)
        assert list_checkpoints(run).count(found.pop("folder")) == 1
        model.load_state_dict(weights)

    return found if load_checkpoint(run, model, restore) else None


def change(model: GPT) -> None:
    with torch.no_grad():
        model.final_norm.weight.add_(1)


@pytest.fixture
def run(tmp_path: Path, model: GPT) -> Path:
    """Four checkpoints; the norm's gain is 1 plus their number."""
    for step in range(4):
        save_checkpoint(tmp_path, step, model.state_dict(), {"note": f"after {step}"}, snapshot=step == 1)
        change(model)
    return tmp_path


def test_the_newest_is_loaded_and_the_newest_two_kept(run: Path, model: GPT) -> None:
    assert [folder.name for folder in list_checkpoints(run)] == ["step_000003", "step_000002"]
    state = load(run, model)
    assert state == {"step": 3, "note": "after 3"}
    assert (model.final_norm.weight == 4).all()


def test_the_runs_weights_are_the_newest_and_snapshots_stay(run: Path) -> None:
    assert sha256(run / "model.safetensors") == sha256(list_checkpoints(run)[0] / "model.safetensors")
    assert [path.name for path in (run / "snapshots").iterdir()] == ["step_000001.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "checksums.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_one_is_named_and_the_one_before_taken(
    run: Path, model: GPT, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = list_checkpoints(run)[0] / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    state = load(run, model)
    assert state is not None
    assert state["note"] == "after 2"
    assert (model.final_norm.weight == 3).all()
    assert "step_000003 is damaged" in caplog.text
    assert sha256(run / "model.safetensors") == sha256(list_checkpoints(run)[1] / "model.safetensors")


@pytest.mark.parametrize("checksums", [b"{}", b"[]", b"3", b"[" * 5000, b'{"state.pt": null}'])
def test_a_missing_checksum_is_damage(run: Path, model: GPT, checksums: bytes) -> None:
    (list_checkpoints(run)[0] / "checksums.json").write_bytes(checksums)
    (list_checkpoints(run)[0] / "state.pt").write_bytes(b"")
    assert load(run, model) == {"step": 2, "note": "after 2"}


@pytest.mark.parametrize("content", [[1], {"step": 3}, {"step": 7, "note": "after 7"}, {"step": 3, "note": 7}, Path])
def test_a_foreign_state_is_damage_though_its_checksum_is_right(
    run: Path, model: GPT, content: object, caplog: pytest.LogCaptureFixture
) -> None:
    folder = list_checkpoints(run)[0]
    torch.save(content, folder / "state.pt")
    checksums = {name: sha256(folder / name) for name in ("model.safetensors", "state.pt")}
    (folder / "checksums.json").write_text(json.dumps(checksums))
    notes: list[str] = []
    gains: list[float] = []

    def restore(weights: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        notes.append("restored " + state["note"])
        gains.append(weights["final_norm.weight"][0].item())

    assert load_checkpoint(run, model, restore)
    assert notes == ["restored after 2"]
    assert gains == [3]
    assert "step_000003 is damaged" in caplog.text
    assert "weights_only" not in caplog.text  # PyTorch's advice is to run what the file holds
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_checkpoint_for_which_there_is_no_memory_is_not_called_damaged(
    where: str, run: Path, model: GPT, caplog: pytest.LogCaptureFixture
) -> None:
    def restore(weights: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        if where == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        torch.empty(2**55)

    with pytest.raises(RuntimeError, match="memory"):
        load_checkpoint(run, model, restore)
    assert not caplog.messages


def test_files_are_readable_as_the_umask_says(run: Path, model: GPT) -> None:
    before = os.umask(0o022)
    save_checkpoint(run, 4, model.state_dict(), {})
    os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in [run / "model.safetensors", *list_checkpoints(run)[0].iterdir()]}
    assert modes == {0o644}


def test_loading_again_and_again_leaves_nothing_behind(run: Path, model: GPT) -> None:
    before = sorted(run.rglob("*"))
    for _ in range(2):
        load(run, model)
        assert sorted(run.rglob("*")) == before


def test_a_damaged_one_makes_room_for_sound_ones(run: Path, model: GPT) -> None:
    save_checkpoint(run, 30, model.state_dict(), {})
    (run / "train_state" / "step_000030" / "state.pt").write_bytes(b"")
    load(run, model)  # goes back to step 3
    save_checkpoint(run, 4, model.state_dict(), {})
    assert [folder.name for folder in list_checkpoints(run)] == ["step_000004", "step_000003"]


def test_all_damaged_is_an_error(run: Path, model: GPT) -> None:
    for folder in list_checkpoints(run):
        (folder / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint in .* is damaged: start over with --fresh"):
        load(run, model)


def test_another_models_checkpoint_is_an_error(run: Path) -> None:
    with pytest.raises(InputError, match="holds another model's weights"):
        load(run, GPT(GPTConfig.preset("tiny", d_model=32)))


def test_a_run_without_checkpoints(tmp_path: Path, model: GPT) -> None:
    assert load(tmp_path, model) is None


def test_what_a_killed_process_left_half_written_is_no_checkpoint(run: Path, model: GPT) -> None:
    unfinished = run / "train_state" / ".step_000099.tmp"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    state = load(run, model)
    assert state is not None
    assert state["note"] == "after 3"
    save_checkpoint(run, 4, model.state_dict(), {})
    assert list_checkpoints(run)[0].name == "step_000004"
    assert not unfinished.exists()


def test_saving_the_same_step_again_replaces_it(run: Path, model: GPT) -> None:
    save_checkpoint(run, 3, model.state_dict(), {"note": "again"})
    state = load(run, model)
    assert state is not None
    assert state["note"] == "again"


def save(run: Path) -> None:
    try:
        save_checkpoint(run, 4, GPT(GPTConfig.preset("tiny")).state_dict(), {"moments": torch.zeros(200_000)})
    except InputError as error:
        print(error)


@pytest.mark.parametrize("limit", [0, 1000, 300_000, 700_000])
def test_a_write_that_fails_midway_is_named_and_loses_nothing(run: Path, model: GPT, limit: int) -> None:
    """A limit on file size set by the kernel: weights need 560 kB, the state 800 kB."""
    before = {path: sha256(path) for path in run.rglob("*") if path.is_file()}
    result = call(save, run, file_size=limit)
    assert result.returncode == 0, result.stderr
    assert "could not write the checkpoint" in result.stdout
    assert "earlier checkpoints are intact" in result.stdout
    assert result.stdout.count("\n") == 1
    assert {path: sha256(path) for path in run.rglob("*") if path.is_file()} == before
    assert not list((run / "train_state").glob(".*"))
    state = load(run, model)
    assert state is not None
    assert state["note"] == "after 3"


def test_a_full_disk_is_named_and_loses_nothing(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        shutil.copytree(run, disk / "run")  # two checkpoints and a snapshot, 2.3 MB: a third does not fit
        before = {path: sha256(path) for path in (disk / "run").rglob("*") if path.is_file()}
        result = call(save, disk / "run")
        assert "earlier checkpoints are intact" in result.stdout, result.stderr
        assert {path: sha256(path) for path in (disk / "run").rglob("*") if path.is_file()} == before
    finally:
        subprocess.run(["umount", disk], check=True)
