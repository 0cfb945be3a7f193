"""Begin a run directory, or go on with the one that is there."""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt_model import GPTConfig
from gpt_model.run_directory import identity, read_config
from pretraining.checkpoint import CHECKPOINT_FILES, SHARDS, WEIGHTS, list_checkpoints, step_of
from pretraining.config import Config
from pretraining.data_folder import TOKENIZER, check_same_tokenizer, open_data_tokenizer
from pretraining.engine import World, join_world
from pretraining.least_memory import check_memory
from utils.files import InputError, write_atomically
from utils.hardware import bfloat16_pays, compiler_works, pick_device
from utils.locks import alone
from utils.outputs import check_output_folder, check_writable, delete_ours
from utils.tracking import TRACKER_FILES
from working_with_text_data.dataset import BlockDataset
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)

CONFIG = "config.json"
# What this chapter's scripts write into a run directory. The first is what a run is known by, and is deleted last.
RUN_FILES = (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    *TRACKER_FILES,
    "loss.svg",
    "evaluation.json",
    "hellaswag.json",
    "results.json",
    "snapshots/step_*.safetensors",
    *(f"train_state/step_*/{name}" for name in CHECKPOINT_FILES),
    "train_state/.step_*.tmp/*",
    *(
        f"train_state/{step}/{SHARDS}/{name}"
        for step in ("step_*", ".step_*.tmp")
        for name in ("*.distcp", ".metadata*")
    ),
    "bad_batch/step_*.pt",
)
# What was the only way before it became a setting, where that is not what is given today.
THE_ONLY_WAY = {"trainer": "simple", "position": "learned", "schedule": "cosine"}
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
# Steps from which compiling saves more time than it takes. On two CPU cores it takes some 15 s and saves
# a tenth of each step or less (results/speed.json); a GPU waits for Python much longer without it.
WORTH_COMPILING = {"cpu": 5000, "cuda": 200}


def open_run(config: Config, *, n_processes: int = 1) -> tuple[Config, GPTConfig, dict[str, BlockDataset]]:
    """Make the run directory, or check that the one there is this run.

    What is "auto" in a new run is decided now and stored, so that a resumed run is the same run. All is checked
    before anything is written or, with `fresh`, deleted.

    Args:
        config: what the user asked for.
        n_processes: how many train together.

    Returns:
        the settings with nothing "auto" in them, the model's, and the data of "train" and "val".

    Raises:
        InputError: for data that cannot be used, a model that this machine cannot hold, or a directory that holds
            something else.
    """
    data = {split: BlockDataset(config.data, split, config.context_length) for split in ("train", "val")}
    tokenizer = open_data_tokenizer(config.data, max(split.largest_id() for split in data.values()))
    model_fields = {field.name for field in dataclasses.fields(GPTConfig)}
    shared = {name: value for name, value in vars(config).items() if name in model_fields}
    model_config = GPTConfig(vocab_size=tokenizer.vocab_size, **shared)
    if config.fresh or not (config.out / CONFIG).exists():
        config = _begin(config, model_config, data, tokenizer, n_processes)
    else:
        config = _go_on(config, model_config, data, tokenizer, n_processes)
    if not (config.out / TOKENIZER).exists():
        tokenizer.save(config.out / TOKENIZER)
    return config, model_config, data


@contextmanager
def training_in(run: Path, device: str, *, timeout: float = 600) -> Iterator[World]:
    """Join the processes that train together, and keep all others out of their run directory.

    Args:
        run: the run directory, which need not exist yet.
        device: what each process computes on.
        timeout: seconds to wait for one another.

    Raises:
        InputError: if nothing can be written there, or another process trains in it; as `join_world` raises it.
    """
    with join_world(device, timeout=timeout) as world, ExitStack() as stack:
        if world.is_main:
            check_writable(run)
            stack.enter_context(alone(run, "training in"))
        yield world


def check_deletable(run: Path, ours: Sequence[str] = RUN_FILES) -> None:
    """Check that `--fresh` may delete what is there: nothing, or a run directory without anybody else's files.

    Args:
        run: the run directory.
        ours: patterns of what is written into it; the first is what it is known by.

    Raises:
        InputError: if something else is there; the message names it.
    """
    if (run / CONFIG).exists():
        try:
            read_config(run)
        except InputError as error:
            raise InputError(f"{run} is not a run directory, so it is not deleted: choose another --out") from error
        known = ours
    elif any(path.is_file() for path in run.rglob("*")):
        known = ours[:1]  # of this file a process that was killed as it began has left a part
    else:
        known = ours  # a process that was killed as it deleted a run has left empty folders
    check_output_folder(run, known, overwrite=True)


def delete_run(run: Path, ours: Sequence[str] = RUN_FILES) -> None:
    """Delete a run directory, if there is one; arguments as in `check_deletable`.

    Raises:
        InputError: before anything is deleted, if something else is there.
    """
    check_deletable(run, ours)
    delete_ours(run, ours)


def _begin(
    config: Config, model_config: GPTConfig, data: dict[str, BlockDataset], tokenizer: Tokenizer, n_processes: int
) -> Config:
    """Make a new run directory; with `fresh`, in the place of the one that is there."""
    if config.fresh:
        check_deletable(config.out)
    elif config.out.exists() and not is_empty(config.out):
        raise InputError(f"{config.out} exists and is not a run directory: choose another --out")
    config = _settled(config)
    check_memory(config, model_config, pick_device(config.device), n_processes)
    if config.fresh:
        delete_run(config.out)
    content = {"model": dataclasses.asdict(model_config), "training": _as_json(config, data)}
    store_config(config.out, {**content, "tokenizer": identity(tokenizer)})
    return config


def is_empty(path: Path) -> bool:
    """Return whether there is nothing in a folder but hidden files, such as a killed write leaves."""
    return path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())


def _settled(config: Config) -> Config:
    """Return the settings with nothing "auto" in them."""
    device = pick_device(config.device)
    precision, compiled = config.precision, config.compile
    if precision == "auto":
        precision = "bfloat16" if bfloat16_pays(device) else "float32"
    if compiled == "auto":
        long = config.steps >= WORTH_COMPILING.get(device.type, math.inf)
        compiled = "on" if long and compiler_works(device.type) else "off"
    return replace(config, device=str(device), precision=precision, compile=compiled)


def _as_json(config: Config, data: dict[str, BlockDataset]) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    values = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    del values["fresh"]
    return {**values, "trainer": config.trainer, "blocks": {split: len(blocks) for split, blocks in data.items()}}


def store_config(run: Path, content: dict[str, Any]) -> None:
    """Write a run's config.json."""
    with write_atomically(run / CONFIG) as file:
        file.write(json.dumps(content, indent=1).encode())


def _go_on(
    config: Config, model_config: GPTConfig, data: dict[str, BlockDataset], tokenizer: Tokenizer, n_processes: int
) -> Config:
    """Return the settings of the run that is there, if they are what was asked for."""
    run = config.out
    stored = read_config(config.out)
    check_same_tokenizer(run, config.data, tokenizer)
    if (run / WEIGHTS).exists() and not list_checkpoints(run):
        raise InputError(
            f"{run} has weights but no checkpoint to go on from: choose another --out, or give --fresh to delete it "
            "and start over"
        )
    wanted = {**_as_json(config, data), **dataclasses.asdict(model_config)}
    # a run from before a setting existed has what was then the only way, which mostly is the default
    there = {field.name: field.default for field in dataclasses.fields(config)}
    there = {**dataclasses.asdict(GPTConfig()), **there, **THE_ONLY_WAY, **stored["training"], **stored["model"]}
    for name, known in (("precision", PRECISIONS), ("compile", ("on", "off"))):
        if there[name] not in known:
            raise InputError(f"{run / CONFIG} is damaged: {name} is {there[name]!r}")
    for name in sorted(wanted.keys() - config.not_the_run):
        if wanted[name] not in (there.get(name), "auto"):
            raise InputError(
                f"{run} holds a run with {name} {there.get(name)}, not {wanted[name]}: "
                "choose another --out, or give --fresh to delete it and start over"
            )
    _check_steps(config, replace(config, steps=there["steps"]).steps)
    config = replace(
        config, device=_device_to_go_on(config, there["device"]), precision=there["precision"], compile=there["compile"]
    )
    check_memory(config, model_config, pick_device(config.device), n_processes)
    forget_unfinished(run)
    changed = {"steps": config.steps, "device": config.device}
    if any(there[name] != value for name, value in changed.items()):
        store_config(run, {**stored, "training": {**stored["training"], **changed}})
    return config


def _check_steps(config: Config, planned: int) -> None:
    """Allow another number of steps than was planned, as long as they are not taken yet."""
    done = max(map(step_of, list_checkpoints(config.out)), default=0)
    if config.steps != planned and config.steps < done:
        raise InputError(
            f"{config.out} holds a run that has taken {done:,} steps, so it cannot end after {config.steps:,}: choose "
            "more --steps, another --out, or give --fresh to delete it and start over"
        )
    if config.steps != planned:
        log.warning(
            "%s was to take %s steps and now takes %s: from step %s on, the learning rate is the one of the new plan",
            config.out, f"{planned:,}", f"{config.steps:,}", f"{done + 1:,}",
        )  # fmt: skip


def device_of(config: Config) -> str:
    """Return the device that is asked for; if none is named, that of the run which is to go on.

    Raises:
        InputError: if this machine does not have it, or the run directory is damaged.
    """
    if config.device != "auto" or config.fresh or not (config.out / CONFIG).exists():
        return config.device
    return _device_to_go_on(config, read_config(config.out)["training"].get("device", "auto"))


def _device_to_go_on(config: Config, began: str) -> str:
    """Return the device that a run goes on with: the one it was on, unless the user names another."""
    device = config.device
    if device in ("auto", began):
        try:
            return str(pick_device(began))
        except InputError as error:
            if device == began:
                raise
            raise InputError(
                f"{config.out} was trained on {began}, which this machine does not have: give --device "
                f"{pick_device()} to go on with it here, where the result will not be the same bit for bit"
            ) from error
    device = str(pick_device(device))
    if device != began:
        log.warning(
            "%s was trained on %s and goes on with %s: the result will not be the same bit for bit",
            config.out, began, device,
        )  # fmt: skip
    return device


def forget_unfinished(run: Path) -> None:
    """Delete what a killed process has left half-written."""
    for folder in run.glob("train_state/.step_*.tmp"):
        shutil.rmtree(folder)
    for pattern in map(Path, RUN_FILES):
        for file in run.glob(str(pattern.with_name(f".{pattern.name}.*tmp"))):
            file.unlink()
