"""Reading what a trainer wrote: the model and the tokenizer of a run directory.

config.json            {"model": GPTConfig's fields, "training": the trainer's, "tokenizer": its identity}
model.safetensors      the newest weights
bpe.json               the tokenizer
snapshots/             earlier weights, step_000100.safetensors, ...
train_state/           what resuming needs (pretraining/checkpoint.py)
metrics.jsonl          a line of numbers every few steps
loss.svg               their curve
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from gpt_model import pretrained as hugging_face
from gpt_model.config import GPTConfig
from gpt_model.gpt import GPT
from gpt_model.model_files import check_finite, read_object, read_tensors
from gpt_model.tokenizer_files import read_tokenizer
from utils.files import InputError
from working_with_text_data.minbpe import GPT2Tokenizer, Tokenizer


def read_config(run: Path) -> dict[str, Any]:
    """Return the content of a run's config.json.

    Raises:
        InputError: if `run` is not a run directory, or its config.json is damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        raise InputError(f"{run} is not a run directory: it has no config.json. python -m pretraining.simple makes one")
    config = read_object(path)
    if "model_type" in config:
        raise InputError(
            f"{run} is a model in the layout of Hugging Face, not a run directory: GPT.from_pretrained reads it"
        )
    if not all(isinstance(config.get(name), dict) for name in ("model", "training")):
        raise InputError(f"{path} is damaged: it must hold the objects 'model' and 'training'")
    return config


def load_tokenizer(run: Path) -> Tokenizer:
    """Return the tokenizer of a run.

    Raises:
        InputError: if it is missing or damaged, or not the one that the run was made with.
    """
    path = run / "bpe.json"
    if not path.is_file():
        raise InputError(f"{run} has no tokenizer, bpe.json")
    tokenizer = Tokenizer.load(path)
    if not is_made_with(run, tokenizer):
        raise InputError(f"{path} is not the tokenizer that the run was made with: put that one back")
    return tokenizer


def is_made_with(run: Path, tokenizer: Tokenizer) -> bool:
    """Return whether a run was made with a tokenizer; of a run that does not say, True.

    Raises:
        InputError: if `run` is not a run directory.
    """
    return read_config(run).get("tokenizer") in (None, identity(tokenizer))


def identity(tokenizer: Tokenizer) -> str:
    """Return a checksum of all that decides a tokenizer's ids, in hexadecimal.

    Neither its class nor the form of its file matters: whatever it was read from, it merges by its vocabulary. Runs
    store it, since their weights mean nothing with any other tokenizer, even one of the same size.
    """
    vocab = {id_: token.decode("latin-1") for id_, token in tokenizer.vocab.items()}
    content = [tokenizer.settings(), vocab, tokenizer.special_tokens]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def check_tokenizer(model_config: GPTConfig, tokenizer: Tokenizer, where: Path) -> None:
    """Check that a tokenizer can be the one that a model was trained with.

    Every command that brings the two together calls this: else ids might mean something else to each of them.

    Args:
        model_config: of the model.
        tokenizer: the tokenizer.
        where: the folder that holds the tokenizer, for the message.

    Raises:
        InputError: if they have different numbers of tokens.
    """
    if tokenizer.vocab_size != model_config.vocab_size:
        raise InputError(
            f"the model has {model_config.vocab_size:,} token embeddings but the tokenizer of {where} has "
            f"{tokenizer.vocab_size:,} tokens: they do not belong together"
        )


def load(run: Path | None, pretrained: str | None, weights: str = "model.safetensors") -> tuple[GPT, Tokenizer]:
    """Return the model and the tokenizer that a command line names: a run, or a GPT-2 for `GPT.from_pretrained`.

    The tokenizer of a folder in Hugging Face layout is the one in the folder; GPT-2's own is for what is downloaded by
    name. That two vocabularies have the same size does not make them the same.

    Raises:
        InputError: if not exactly one of them is named, it cannot be read, or model and tokenizer do not belong
            together.
    """
    if (run is None) == (pretrained is None):
        raise InputError(
            "say which model: a run directory (--run; to fine-tune, --base), or --pretrained with a name or a folder"
        )
    if run is not None:
        model = load_model(run, weights)
        tokenizer = load_tokenizer(run)
        check_tokenizer(model.config, tokenizer, run)
        return model, tokenizer
    folder = Path(pretrained)
    if not folder.is_dir():
        return GPT.from_pretrained(pretrained), GPT2Tokenizer()
    config = hugging_face.read_config(folder)
    tokenizer = read_tokenizer(folder)
    check_tokenizer(config, tokenizer, folder)  # before the weights, which may be large
    return GPT.from_pretrained(folder), tokenizer


def load_model(run: Path, weights: str = "model.safetensors") -> GPT:
    """Return the model of a run, in evaluation mode, on the CPU; see `GPT.from_run`."""
    config = read_config(run)
    try:
        model_config = GPTConfig.from_dict(config["model"])
    except InputError as error:
        raise InputError(f"{run / 'config.json'}: {error}") from error
    tensors = read_tensors(run / weights)
    if model_config.n_layers * max(1, model_config.n_experts) > len(tensors):  # or building would take for ever
        raise InputError(
            f"{run / weights} holds another model's weights: {len(tensors):,} tensors are too few for the n_layers "
            f"{model_config.n_layers:,} and n_experts {model_config.n_experts:,} of config.json"
        )
    with torch.device("meta"):  # names and shapes alone; the tensors themselves become the model's
        model = GPT(model_config)
    check_weights(model, tensors, run / weights)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        check_finite(tensor, name, run / weights)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def check_weights(model: GPT, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Check that names and shapes of tensors are those of the model.

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
