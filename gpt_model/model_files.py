"""The files in a model's folder, tensors and JSON: read without running code, and never as something else."""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from utils.files import InputError, printable, read_json, refuse_lfs_pointer


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, mapped into memory where that can be: what is not used is not read.

    Raises:
        InputError: if there is no such file, or it is damaged or holds anything but dense tensors.
    """
    if not file.is_file():
        raise InputError(f"there are no weights {file}")
    refuse_lfs_pointer(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", mmap=is_mappable(file), weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}") from error
    except Exception as error:  # there is no end to what a damaged pickle can raise
        raise InputError(f"{file} cannot be read as weights: {_reason(error)}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        for name, tensor in tensors.items()
    ):
        raise InputError(f"{file} must hold dense tensors by name and nothing else")
    if without := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise InputError(f"{file}: {without[0]} has a shape but no numbers: it was saved from the meta device")
    return tensors


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: if it is damaged, or holds no object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it must hold an object")
    return content


def is_mappable(file: Path) -> bool:
    """Return whether a file can be mapped into memory; what PyTorch wrote before 1.6 cannot."""
    return file.suffix == ".safetensors" or zipfile.is_zipfile(file)


def check_finite(tensor: Tensor, name: str, file: Path) -> None:
    """Raise an InputError if a weight is NaN or infinite; a model with one writes nonsense or nothing."""
    low, high = tensor.aminmax()  # NaN, if there is one; no second tensor of this size is made
    if not (low.isfinite() and high.isfinite()):
        raise InputError(f"{file}: {name} holds NaN or infinite numbers: the weights are damaged, or training diverged")


def _reason(error: Exception) -> str:
    """Return why `torch.load` refused, without its advice to load the file in a way that runs code."""
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return f"it names {printable(found[1])}, and to load more than tensors could run code that came with them"
    if not isinstance(error, (OSError, RuntimeError)) or "weights_only" in str(error):
        return "it is damaged, or something else"
    return printable((str(error) or type(error).__name__).splitlines()[0])
