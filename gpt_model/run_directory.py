"""Reading what a trainer wrote: the model and the tokenizer of a run directory.

config.json            {"model": GPTConfig's fields, "training": the trainer's}
model.safetensors      the newest weights
bpe.json               the tokenizer
snapshots/             earlier weights, step_000100.safetensors, ...
train_state/           what resuming needs (pretraining/checkpoint.py)
metrics.jsonl          a line of numbers each few steps
loss.svg               their curve
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gpt_model.config import GPTConfig
from gpt_model.gpt import GPT
from utils.files import InputError
from working_with_text_data.minbpe import GPT2Tokenizer, Tokenizer


def read_config(run: Path) -> dict[str, Any]:
    """The content of a run's config.json.

    Raises:
        InputError: if `run` is no run directory, or its config.json is damaged.
    """
    path = run / "config.json"
    if not path.exists():
        raise InputError(f"{run} is not a run directory: it has no config.json. python -m pretraining.simple makes one")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    parts = config if isinstance(config, dict) else {}
    if "model_type" in parts:
        raise InputError(
            f"{run} is a model in the layout of Hugging Face, not a run directory: GPT.from_pretrained reads it"
        )
    if not all(isinstance(parts.get(name), dict) for name in ("model", "training")):
        raise InputError(f"{path} is damaged: it must hold the objects 'model' and 'training'")
    return config


def load_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = run / "bpe.json"
    if not path.exists():
        raise InputError(f"{run} has no tokenizer, bpe.json")
    return Tokenizer.load(path)


def check_tokenizer(model_config: GPTConfig, tokenizer: Tokenizer, where: Path) -> None:
    """Raise an InputError if a tokenizer cannot be the one that a model was trained with.

    Every command that brings the two together asks this: ids would mean something else to each of them.

    Args:
        model_config: of the model.
        tokenizer: the tokenizer.
        where: the folder that holds the tokenizer, for the message.
    """
    if tokenizer.vocab_size != model_config.vocab_size:
        raise InputError(
            f"the model has {model_config.vocab_size:,} token embeddings but the tokenizer of {where} has "
            f"{tokenizer.vocab_size:,} tokens: they do not belong together"
        )


def load(run: Path | None, pretrained: str | None, weights: str = "model.safetensors") -> tuple[GPT, Tokenizer]:
    """The model and the tokenizer that a command line names: a run, or a GPT-2 for `GPT.from_pretrained`.

    Raises:
        InputError: if not exactly one of them is named, it cannot be read, or the pretrained one has another
            vocabulary than GPT-2's, the only one whose tokenizer is here.
    """
    if (run is None) == (pretrained is None):
        raise InputError("say which model: either --run with a run directory, or --pretrained with a name or a folder")
    if run is not None:
        return GPT.from_run(run, weights), load_tokenizer(run)
    model, tokenizer = GPT.from_pretrained(pretrained), GPT2Tokenizer()
    if model.config.vocab_size != tokenizer.vocab_size:
        raise InputError(
            f"{pretrained} has {model.config.vocab_size:,} tokens, and GPT-2's tokenizer {tokenizer.vocab_size:,}: if "
            "it was exported from a run, name that by --run"
        )
    return model, tokenizer


def load_model(run: Path, weights: str = "model.safetensors") -> GPT:
    """The model of a run, in evaluation mode, on the CPU; see `GPT.from_run`."""
    config = read_config(run)
    try:
        model_config = GPTConfig.from_dict(config["model"])
    except (TypeError, InputError) as error:
        raise InputError(f"{run / 'config.json'}: {error}") from error
    tensors = read_weights(run / weights)
    with torch.device("meta"):  # names and shapes alone; the tensors themselves become the model's
        model = GPT(model_config)
    check_weights(model, tensors, run / weights)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: if it is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"there are no weights {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def check_weights(model: GPT, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Compare names and shapes with the model's.

    Raises:
        InputError: if they are another model's; the message names the first difference.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{path} holds another model's weights: {name} is {found.get(name, 'missing')} there, "
                f"{expected.get(name, 'not part of the model')} by config.json"
            )
