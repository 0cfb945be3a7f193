"""Saving a training run so that a kill at any moment costs a few steps and never the run.

A checkpoint is a folder, `train_state/step_000400/`, with the weights, everything else that the next
step depends on, and a SHA-256 of each. It is written under a temporary name, flushed to the disk and
renamed, so that it is there whole or not at all; the newest two are kept, in case the newest is
damaged later. `model.safetensors` of the run is the newest checkpoint's weights under a second name.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed import DistError

from gpt_model.run_directory import check_weights
from utils.files import InputError, read_json, sha256, sync_folder, write_atomically
from utils.memory import is_full

log = logging.getLogger(__name__)

KEEP = 2
CHECKPOINT_FILES = WEIGHTS, STATE, CHECKSUMS = "model.safetensors", "state.pt", "checksums.json"
SHARDS = "shards"  # a folder of what many processes wrote side by side, in a checkpoint that they made together


def save_checkpoint(
    run: Path, step: int, weights: dict[str, torch.Tensor], state: dict[str, Any], *, snapshot: bool = False
) -> None:
    """Write a checkpoint, make it the run's newest, and delete those before the last `KEEP`.

    Args:
        run: the run directory.
        step: optimizer steps taken so far.
        weights: the model's.
        state: what else the next step depends on: tensors, numbers, strings, in dicts and lists.
        snapshot: keep the weights for good, as `snapshots/step_....safetensors`.

    Raises:
        InputError: if the disk does not take it; earlier checkpoints and `model.safetensors` stay as they were.
    """
    begin_checkpoint(run, step)
    complete_checkpoint(run, step, weights, state, snapshot=snapshot)


def begin_checkpoint(run: Path, step: int) -> Path:
    """Make the folder of a checkpoint under its temporary name; return it. Files that are put there belong to it.

    Raises:
        InputError: if the disk does not take it.
    """
    folder = _folder(run, step)
    unfinished = folder.with_name(f".{folder.name}.tmp")
    for left_behind in folder.parent.glob(".step_*.tmp"):  # by a killed process
        shutil.rmtree(left_behind)
    with _explained(folder):
        unfinished.mkdir(parents=True)
    return unfinished


def complete_checkpoint(
    run: Path, step: int, weights: dict[str, torch.Tensor], state: dict[str, Any], *, snapshot: bool = False
) -> None:
    """Write what is missing in a checkpoint that was begun, and give it its name; arguments as in `save_checkpoint`.

    Raises:
        InputError: if the disk does not take it; earlier checkpoints and `model.safetensors` stay as they were.
    """
    folder = _folder(run, step)
    unfinished = folder.with_name(f".{folder.name}.tmp")
    with _explained(folder):
        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        _write(unfinished / WEIGHTS, lambda path: save_file(tensors, path, metadata={"step": str(step)}))
        _write(unfinished / STATE, lambda path: torch.save({"step": step, **state}, path))
        shutil.copymode(unfinished / STATE, unfinished / WEIGHTS)  # safetensors makes files that nobody else may read
        checksums = {
            str(path.relative_to(unfinished)): sha256(path) for path in sorted(unfinished.rglob("*")) if path.is_file()
        }
        with write_atomically(unfinished / CHECKSUMS) as file:
            file.write(json.dumps(checksums, indent=1).encode())
        if folder.exists():  # the same step again, after resuming from before it
            shutil.rmtree(folder)
        unfinished.rename(folder)
        sync_folder(folder.parent)
        _publish(folder / WEIGHTS, run / WEIGHTS)
        if snapshot:
            _publish(folder / WEIGHTS, run / "snapshots" / f"step_{step:06d}.safetensors")
    found = list_checkpoints(run)
    # later ones were damaged, or this run would have begun from them
    for useless in [*found[: found.index(folder)], *found[found.index(folder) + KEEP :]]:
        shutil.rmtree(useless)


def _folder(run: Path, step: int) -> Path:
    return run / "train_state" / f"step_{step:06d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first."""
    found = [path for path in (run / "train_state").glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps taken before a checkpoint, which is in its name."""
    return int(checkpoint.name.removeprefix("step_"))


def load_checkpoint(
    run: Path,
    model: nn.Module,
    restore: Callable[[dict[str, torch.Tensor], dict[str, Any]], None],
    *,
    publish: bool = True,
    agree: Callable[[str], None] = lambda found: None,
) -> bool:
    """Load the newest sound checkpoint; return False if the run has none.

    A damaged one is named in a warning and the one before it taken.

    Args:
        run: the run directory.
        model: what the weights must fit.
        restore: gets what was given to `save_checkpoint`: the weights, and the state, with "step" in it, and the
            folder under "folder". If it fails, the checkpoint counts as damaged, and `restore` is called again with an
            earlier one.
        publish: make its weights the run's `model.safetensors`; one of several processes does that.
        agree: gets what this process has found, and raises an error if others have found something else. A process that
            is lost while `restore` exchanges something shows here, and not as damage.

    Raises:
        InputError: if there are checkpoints and all are damaged, or they are another model's.
    """
    found = list_checkpoints(run)
    for folder in found:
        try:
            tensors, state = _read(folder)
        except (OSError, InputError) as error:
            log.warning("%s is damaged (%s); trying the checkpoint before it", folder, error)
            continue
        agree(folder.name)
        check_weights(model, tensors, folder / WEIGHTS)
        failure = _failure(restore, tensors, {**state, "folder": folder})
        agree(folder.name if failure is None else f"what is before {folder.name}")
        if failure is not None:
            log.warning("%s is damaged (its state is not ours: %r); trying the checkpoint before it", folder, failure)
            continue
        if publish:
            _publish(folder / WEIGHTS, run / WEIGHTS)  # a kill may have come between checkpoint and second name
        return True
    agree("no sound checkpoint" if found else "the start")
    if found:
        raise InputError(f"every checkpoint in {run / 'train_state'} is damaged: start over with --fresh")
    return False


def _failure(restore: Callable[..., None], tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Exception | None:
    """Return why a state that was read cannot be restored; None if it was."""
    try:
        restore(tensors, state)
    except (InputError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if is_full(error) or isinstance(error, DistError):  # which say nothing about the checkpoint
            raise
        return error
    return None


def _read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        InputError: if it is damaged.
    """
    checksums = read_json(folder / CHECKSUMS)
    if not isinstance(checksums, dict) or not checksums.keys() >= {WEIGHTS, STATE}:
        raise InputError(f"{CHECKSUMS} does not have the checksums of its files")
    for name, checksum in checksums.items():
        if not (folder / name).is_relative_to(folder) or checksum != sha256(folder / name):
            raise InputError(f"{name} does not have the checksum it was saved with")
    try:
        tensors = load_file(folder / WEIGHTS)
        # to the CPU first: the machine it was saved on may have had other devices
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; what PyTorch advises in them would make a foreign file run as a program
        raise InputError("it holds something that was not saved here") from error
    if not isinstance(state, dict) or state.get("step") != step_of(folder):
        raise InputError(f"{STATE} is not the state after this step")
    return tensors, state


def _write(path: Path, save: Callable[[Path], None]) -> None:
    save(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(weights: Path, name: Path) -> None:
    """Give a weights file a second name, replacing what had it; a copy where hard links do not exist."""
    if name.exists() and name.samefile(weights):
        return  # renaming one name of a file to another does nothing, and would leave the temporary one behind
    name.parent.mkdir(parents=True, exist_ok=True)
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(weights, temporary)
    except OSError:
        shutil.copyfile(weights, temporary)
    temporary.replace(name)
    sync_folder(name.parent)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the ways in which libraries report a failed write into one."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(folder.with_name(f".{folder.name}.tmp"), ignore_errors=True)
        raise InputError(
            f"could not write the checkpoint {folder} ({_reason(error)}): earlier checkpoints are intact; "
            "make room, then give the same command to resume"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # torch's writer says only that the file is shorter than it should be
    return str(error) if isinstance(error, SafetensorError) else "the disk took only a part of the file"
