"""GPT-2 checkpoints in the layout of Hugging Face, into our model and out of it.

A folder holds config.json and the weights: model.safetensors, or the older pytorch_model.bin, or either in
shards with an index. Three things differ from our model: the names; the linear layers, which are a Conv1D
there that stores (in, out) where nn.Linear stores (out, in); and what carries no weights of its own, causal
masks and the output layer, which is the token embedding a second time.
https://huggingface.co/openai-community/gpt2 has OpenAI's weights in it.

Every name and shape is checked before a weight is read: one that finds no place, or a place that finds none,
would make a model that runs and writes nonsense.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gpt_model.config import GPTConfig
from gpt_model.gpt import GPT
from gpt_model.model_files import check_finite, is_mappable, read_object, read_tensors
from utils.files import InputError, sync_folder, write_atomically
from utils.gpt2_download import SIZES, ModelManager
from working_with_text_data.minbpe import GPT2Tokenizer, RegexTokenizer, to_huggingface

log = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

SHAPE = {  # theirs: ours
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "d_model",
    "n_layer": "n_layers",
    "n_head": "n_heads",
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")  # we have one for all three: the first
THEIRS = {**{ours: theirs for theirs, ours in SHAPE.items()}, "dropout": DROPOUTS[0]}
FIXED: dict[str, tuple[Any, ...]] = {  # what our model computes, in their words; the first is what we write
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),  # one formula, four names
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
MODULES = {  # ours: theirs
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.expand": "mlp.c_fc",
    "feed_forward.out": "mlp.c_proj",
    "final_norm": "ln_f",
}
HEAD, EMBEDDING = "lm_head.weight", "wte.weight"
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, and the number written where it hides


class Weight(NamedTuple):
    """One of our parameters and its counterpart in a checkpoint."""

    name: str
    theirs: str
    transposed: bool
    shape: tuple[int, ...]

    @property
    def their_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def their_name(name: str) -> tuple[str, bool]:
    """Return the name of one of our parameters in a checkpoint, and whether it is transposed there.

    blocks.3.attention.qkv.weight -> h.3.attn.c_attn.weight, True
    """
    module, kind = name.rsplit(".", 1)
    prefix = ""
    if module.startswith("blocks."):
        _, number, module = module.split(".", 2)
        prefix = f"h.{number}."
    return f"{prefix}{MODULES[module]}.{kind}", ".c_" in MODULES[module] and kind == "weight"


def load_pretrained(name_or_path: str | Path, cache_dir: str | Path | None, revision: str | None) -> GPT:
    """Return a model from a folder, or from the hub; see `GPT.from_pretrained`."""
    folder = _find(name_or_path, cache_dir, revision)
    config = read_config(folder)
    stored = _list_tensors(folder)
    if config.n_layers > len(stored):  # or building would take for ever
        raise InputError(
            f"{folder} has {len(stored):,} tensors, too few for the n_layer {config.n_layers:,} of {CONFIG}"
        )
    layout = _layout(config)
    _check(layout, stored, folder)
    with torch.device("meta"):  # shapes without memory: each weight is allocated once, when it is read
        model = GPT(config)
    model.load_state_dict(_read(layout, stored), assign=True)
    if revision is None and not Path(name_or_path).is_dir():
        model.published_as = str(name_or_path)
    return model.eval()


def read_config(folder: Path) -> GPTConfig:
    """Return the shape of the model in a folder.

    Raises:
        InputError: if there is no config.json, or it describes what `GPT` would compute differently.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} is not a model in the layout of Hugging Face: it has no {CONFIG}")
    values = read_object(path)
    if {"model", "training"} <= values.keys():
        raise InputError(f"{folder} is a run directory: GPT.from_run reads it")
    if values.get("model_type") != "gpt2":
        raise InputError(f"{path}: model_type must be 'gpt2', got {values.get('model_type')!r}")
    for field, right in FIXED.items():
        if (value := values.get(field, right[0])) not in right:
            known = " or ".join(map(repr, right))
            raise InputError(f"{path}: {field} must be {known}, got {value!r}: our GPT computes no other")
    for field in SHAPE:
        if not isinstance(values.get(field), int):
            raise InputError(f"{path}: {field} must be a whole number, got {values.get(field)!r}")
    if (inner := values.get("n_inner")) not in (None, 4 * values["n_embd"]):
        raise InputError(f"{path}: n_inner must be four times n_embd, {4 * values['n_embd']}, got {inner!r}")
    dropout, *others = (values.get(field, 0.1) for field in DROPOUTS)
    if others != [dropout] * 2:
        log.warning(
            "%s: we have one dropout, and take %s, %s; it matters for training only", path, DROPOUTS[0], dropout
        )
    try:
        return GPTConfig(**{ours: values[theirs] for theirs, ours in SHAPE.items()}, dropout=dropout)
    except InputError as error:
        said = re.sub(r"\w+", lambda word: THEIRS.get(word[0], word[0]), str(error))
        raise InputError(f"{path}: {said}") from error


def export_to_hf(model: GPT, path: Path, tokenizer: RegexTokenizer | None) -> None:
    """Write a folder that `transformers` loads; see `GPT.export_to_hf`."""
    config = model.config
    for field, right in (("attention", "mha"), ("position", "learned"), ("n_experts", 0)):
        if (value := getattr(config, field)) != right:
            raise InputError(f"{field} must be {right!r} to export a model as a GPT-2, got {value!r}")
    if tokenizer is None and model.published_as is not None:
        tokenizer = GPT2Tokenizer()
    if tokenizer is not None and not isinstance(tokenizer, RegexTokenizer):
        raise InputError(f"tokenizer must be a RegexTokenizer to be exported, got {type(tokenizer).__name__}")
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise InputError(
            f"the model has {config.vocab_size:,} tokens but the tokenizer has {tokenizer.vocab_size:,}: "
            "they do not belong together"
        )
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise InputError(f"{path} is there already: export to another folder, or delete it")
    tensors = _their_tensors(model)
    unfinished = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        if tokenizer is not None:
            to_huggingface(tokenizer, unfinished)
        with write_atomically(unfinished / CONFIG) as file:
            file.write(json.dumps(_their_config(model, tokenizer), indent=2).encode())
        save_file(tensors, unfinished / WEIGHTS[0], metadata={"format": "pt"})
        shutil.copymode(unfinished / CONFIG, unfinished / WEIGHTS[0])  # save_file lets nobody else read
        with (unfinished / WEIGHTS[0]).open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.rename(path)
    except SafetensorError as error:
        raise InputError(f"could not write {path}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    sync_folder(path.absolute().parent)


def _find(name_or_path: str | Path, cache_dir: str | Path | None, revision: str | None) -> Path:
    folder = Path(name_or_path)
    name = str(name_or_path)
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{folder} is a folder: it has no revision {revision!r}, only what is in it")
        return folder
    if name not in SIZES:
        names = dict.fromkeys(release.name for release in SIZES.values())
        raise InputError(f"{name!r} is neither a folder nor one of {', '.join(names)}")
    return ModelManager(cache_dir).download_gpt2_model(name, revision=revision)


def _layout(config: GPTConfig) -> list[Weight]:
    """Return all parameters of a GPT-2, in the order of the model."""
    with torch.device("meta"):
        model = GPT(replace(config, bias=True, vocab_multiple=1))
    return [Weight(name, *their_name(name), tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def _model_files(folder: Path) -> list[Path]:
    for name in WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix != ".json":
            return [path]
        shards = read_object(path).get("weight_map")
        names = shards.values() if isinstance(shards, dict) else ()
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise InputError(f"{path} is damaged: it must say in 'weight_map' which file holds which tensor")
        files = [folder / name for name in sorted(set(names))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{path} names the file {file.name}, which is missing")
        return files
    raise InputError(f"{folder} has no weights: none of {', '.join(WEIGHTS)}")


def _list_tensors(folder: Path) -> dict[str, Stored]:
    """Return what is in the files, by names without the prefix `transformer.`, masks left out."""
    stored: dict[str, Stored] = {}
    for file in _model_files(folder):
        for key, tensor in read_tensors(file).items():
            name = key.removeprefix("transformer.")
            if MASKS.fullmatch(name):
                continue
            if name in stored:
                raise InputError(f"{folder} holds {name} twice, as {stored[name].key} and as {key}")
            stored[name] = Stored(file, key, tuple(tensor.shape), tensor.dtype)
    return stored


def _check(layout: list[Weight], stored: dict[str, Stored], folder: Path) -> None:
    """Check that each weight is there and has the right shape, and that there is no other."""
    for weight in layout:
        found = stored.get(weight.theirs)
        if found is None:
            raise InputError(f"{folder} has no {weight.theirs}, which a model of its {CONFIG} needs")
        if found.shape != weight.their_shape:
            raise InputError(
                f"{found.file}: {found.key} has the shape {found.shape}, but by {CONFIG} it is {weight.their_shape}"
            )
        if not found.dtype.is_floating_point:
            raise InputError(f"{found.file}: {found.key} must hold floating-point numbers, got {found.dtype}")
    if unknown := stored.keys() - {weight.theirs for weight in layout} - {HEAD}:
        found = stored[min(unknown)]
        raise InputError(f"{found.file} holds {found.key}, which a GPT-2 of its {CONFIG} does not have")
    if HEAD in stored:
        head, embedding = stored[HEAD], stored[EMBEDDING]
        if not torch.equal(read_tensors(head.file)[head.key], read_tensors(embedding.file)[embedding.key]):
            raise InputError(
                f"{head.file}: {head.key} differs from {embedding.key}, "
                "but the output layer of our GPT is its token embedding"
            )


@torch.no_grad()
def _read(layout: list[Weight], stored: dict[str, Stored]) -> dict[str, Tensor]:
    """Return our parameters, copied from the files as float32.

    Pages of a mapped file stay in memory, once read, for as long as the file is open. So files are opened
    anew for each block, and no more than a block is ever there twice. What cannot be mapped is read once.
    """
    mapped = all(is_mappable(tensor.file) for tensor in stored.values())
    tensors = {}
    for _, weights in groupby(layout, lambda weight: mapped and weight.name.split(".")[:2]):
        weights = list(weights)
        files = {file: read_tensors(file) for file in {stored[weight.theirs].file for weight in weights}}
        for weight in weights:
            place = stored[weight.theirs]
            source = files[place.file][place.key]
            tensors[weight.name] = torch.empty(weight.shape).copy_(source.T if weight.transposed else source)
            check_finite(tensors[weight.name], place.key, place.file)
    return tensors


def _their_tensors(model: GPT) -> dict[str, Tensor]:
    """Return the model's weights under their names, in their orientation, without padding, and with all biases."""
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    layout = _layout(model.config)
    if unknown := ours.keys() - {weight.name for weight in layout}:
        raise InputError(f"a GPT-2 has no {min(unknown)}, so the model that has it cannot be exported as one")
    tensors = {}
    for weight in layout:
        if weight.name.endswith(".bias") and not model.config.bias:  # no biases are biases of zero
            tensor = torch.zeros(weight.shape, dtype=ours["token_embedding.weight"].dtype)
        else:
            tensor = ours[weight.name][: weight.shape[0]]  # rows beyond it pad the vocabulary
        tensors[weight.theirs] = (tensor.T if weight.transposed else tensor).contiguous()
    return tensors


def _their_config(model: GPT, tokenizer: RegexTokenizer | None) -> dict[str, Any]:
    end_of_text = None if tokenizer is None else tokenizer.special_tokens.get("<|endoftext|>")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(model.config, ours) for theirs, ours in SHAPE.items()},
        **dict.fromkeys(DROPOUTS, model.config.dropout),
        **{field: right[0] for field, right in FIXED.items()},
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": str(model.token_embedding.weight.dtype).removeprefix("torch."),
    }
