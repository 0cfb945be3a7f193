"""Begin a run directory, or go on with the one that is there."""

import dataclasses
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt_model import GPTConfig
from gpt_model.run_directory import read_config
from pretraining.config import Config
from utils.files import InputError, write_atomically
from utils.hardware import bfloat16_pays, compiler_works, pick_device
from working_with_text_data.dataset import BlockDataset
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)

# may differ without making it another run
NOT_THE_RUN = {"data", "out", "fresh", "eval_every", "eval_blocks", "checkpoint_every", "snapshot_every", "kernel"}
# Steps from which compiling saves more time than it takes. On two CPU cores it takes some 15 s and saves
# a tenth of each step or less (results/speed.json); a GPU waits for Python much longer without it.
WORTH_COMPILING = {"cpu": 5000, "cuda": 200}


def open_run(config: Config) -> tuple[Config, GPTConfig, dict[str, BlockDataset]]:
    """Make the run directory, or check that the one there is this run.

    What is "auto" in a new run is decided now and stored, so that a resumed run is the same run.

    Returns:
        the settings with nothing "auto" in them, the model's, and the data of "train" and "val".

    Raises:
        InputError: for data that cannot be used, or a directory that holds something else.
    """
    data = {split: BlockDataset(config.data, split, config.context_length) for split in ("train", "val")}
    tokenizer = _tokenizer_of(config.data, data)
    model_fields = {field.name for field in dataclasses.fields(GPTConfig)}
    shared = {name: value for name, value in vars(config).items() if name in model_fields}
    model_config = GPTConfig(vocab_size=tokenizer.vocab_size, **shared)
    if config.fresh:
        delete_run(config.out)
    if (config.out / "config.json").exists():
        config = _continued(config, model_config, data)
    elif config.out.exists() and not _is_empty(config.out):
        raise InputError(f"{config.out} exists and is not a run directory: choose another --out")
    else:
        config = _settled(config)
        stored = {"model": dataclasses.asdict(model_config), "training": _as_json(config, data)}
        with write_atomically(config.out / "config.json") as file:
            file.write(json.dumps(stored, indent=1).encode())
    if not (config.out / "bpe.json").exists():
        tokenizer.save(config.out / "bpe.json")
    elif (config.out / "bpe.json").read_bytes() != (config.data / "bpe.json").read_bytes():
        raise InputError(f"{config.out} and {config.data} have different tokenizers: choose another --out or --data")
    return config, model_config, data


def delete_run(path: Path) -> None:
    """Delete a run directory, if there is one.

    Raises:
        InputError: if something else is there.
    """
    if not path.exists():
        return
    # other programs have a config.json too; none has a tokenizer of ours beside it
    if not ((path / "config.json").exists() and (path / "bpe.json").exists()) and not _is_empty(path):
        raise InputError(f"{path} is not a run directory, so it is not deleted: choose another --out")
    shutil.rmtree(path)


def _is_empty(path: Path) -> bool:
    """Whether there is nothing in a folder but what a killed write may have left."""
    return path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())


def _tokenizer_of(folder: Path, data: dict[str, BlockDataset]) -> Tokenizer:
    path = folder / "bpe.json"
    if not path.exists():
        raise InputError(f"{folder} has no tokenizer, bpe.json: python -m working_with_text_data.prepare writes both")
    tokenizer = Tokenizer.load(path)
    largest = max(split.largest_id() for split in data.values())
    if largest >= tokenizer.vocab_size:
        raise InputError(
            f"{folder} holds the token {largest:,} but its tokenizer has only {tokenizer.vocab_size:,}: "
            "shards and bpe.json are not from one another"
        )
    return tokenizer


def _settled(config: Config) -> Config:
    """Decide what is "auto"."""
    device = pick_device(config.device)
    precision, compiled = config.precision, config.compile
    if precision == "auto":
        precision = "bfloat16" if bfloat16_pays(device) else "float32"
    if compiled == "auto":
        long = config.steps >= WORTH_COMPILING.get(device.type, math.inf)
        compiled = "on" if long and compiler_works(device.type) else "off"
    return replace(config, device=str(device), precision=precision, compile=compiled)


def _as_json(config: Config, data: dict[str, BlockDataset]) -> dict[str, Any]:
    values = {**dataclasses.asdict(config), "data": str(config.data), "out": str(config.out)}
    del values["fresh"]
    return {**values, "blocks": {split: len(blocks) for split, blocks in data.items()}}


def _continued(config: Config, model_config: GPTConfig, data: dict[str, BlockDataset]) -> Config:
    """The settings of the run that is there, if they are what was asked for."""
    stored = read_config(config.out)
    wanted = {**_as_json(config, data), **dataclasses.asdict(model_config)}
    # a run from before a setting existed has what was then the only way, which is the default
    there = {field.name: field.default for field in dataclasses.fields(Config)}
    there = {**dataclasses.asdict(GPTConfig()), **there, **stored["training"], **stored["model"]}
    for name in sorted(wanted.keys() - NOT_THE_RUN):
        if wanted[name] not in (there.get(name), "auto"):
            raise InputError(
                f"{config.out} holds a run with {name} {there.get(name)}, not {wanted[name]}: "
                "choose another --out, or give --fresh to delete it and start over"
            )
    return replace(config, **{name: there[name] for name in ("device", "precision", "compile")})
