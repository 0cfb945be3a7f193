"""What `test_peers` has two processes do: train together, disagree, and lose one another.

    python -m tests.pretraining.peers DATA FOLDER

The main process writes what it was told to FOLDER/said.json.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from pretraining import advanced, checkpoint
from pretraining.advanced_config import AdvancedConfig
from pretraining.engine import World, join_world
from tests.tiny_run import tiny
from utils.files import InputError

LAST = 4


def train(config: AdvancedConfig, world: World) -> bool:
    """Train as `advanced.main` does in processes that have met."""
    return advanced.train(*advanced._open(config, world), world)


def said_by(action: Callable[..., object], *arguments: object) -> str:
    """Return the error that something ends with, or what it returns."""
    try:
        return repr(action(*arguments))
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"


def newest_damaged(folder: Path) -> object:
    """Read a checkpoint on a disk that gives back the newest one wrong."""
    if folder.name == f"step_{LAST:06d}":
        raise InputError("it is damaged here")
    return READ(folder)


def leave(*arguments: object) -> None:
    """End this process as a crash would, but for the exit status."""
    os._exit(0)


FIT = sys.modules["pretraining.engine.fit"]  # the package has a function of the same name
READ, LOAD = checkpoint._read, FIT.load_shards


def main(data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    with join_world("cpu", timeout=240) as world:
        is_main = world.is_main
        config = AdvancedConfig(**vars(tiny(data, folder / "run", steps=LAST)), parallel="fsdp")
        said = {"together": said_by(train, config, world)}
        machine = folder / f"machine{world.rank}"
        machine.mkdir()
        with contextlib.chdir(machine):  # the same relative path is a folder of each
            said["fsdp apart"] = said_by(train, replace(config, out=Path("fsdp")), world)
            said["ddp apart"] = said_by(train, replace(config, out=Path("ddp"), parallel="ddp", documents=True), world)
        longer = replace(config, steps=LAST + 1)
        with mock.patch.object(checkpoint, "_read", READ if is_main else newest_damaged):
            said["one reads another step"] = said_by(train, longer, world)
        with mock.patch.object(FIT, "load_shards", LOAD if is_main else leave):
            said["one is lost"] = said_by(train, longer, world)
        (folder / "said.json").write_text(json.dumps(said))
        os._exit(0)  # there is nobody left to say goodbye to


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
