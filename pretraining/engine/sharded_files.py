"""The optimizer's state on disk in parts: each process writes what it holds, while training goes on.

A whole state would have to pass through one process, which may not have the memory for it, while all others wait. Here
each one copies its parts to the CPU, and a thread writes them; whoever loads them asks for the parts it needs, so that
another number of processes can go on (`torch.distributed.checkpoint`).
"""

from __future__ import annotations

import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, zeros
from torch.optim import Optimizer

from pretraining.engine.parallel import States


def save_shards(folder: Path, states: States, group: dist.ProcessGroup) -> Future:
    """Begin to write the tensors of optimizers' states to a folder; every process must call it.

    Args:
        folder: is made.
        states: of the optimizers, as their `state_dict()` returns them.
        group: processes that talk about nothing else: a thread of each does the talking.

    Returns:
        what is done when everything is written; in the main process, when all have written theirs.
    """
    return dcp.async_save(_flat(states), checkpoint_id=folder, process_group=group)


def load_shards(folder: Path, states: States, optimizers: list[Optimizer]) -> States:
    """Return states with their tensors: a part of them where a parameter is held in part, and whole ones elsewhere.

    Args:
        folder: what `save_shards` wrote.
        states: as they were saved, without tensors.
        optimizers: whose parameters say which parts are needed.
    """
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for key, about in stored.items():
        if isinstance(about, TensorStorageMetadata):
            optimizer, index, _ = key.split(".")
            parameters = [p for group in optimizers[int(optimizer)].param_groups for p in group["params"]]
            like = parameters[int(index)] if int(index) < len(parameters) else None
            tensors[key] = _empty(about.size, about.properties.dtype, like)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # in a single process: as it should be
        dcp.load(tensors, checkpoint_id=folder)
    filled = [{**state, "state": {}} for state in states]
    for key, tensor in tensors.items():
        optimizer, index, name = key.split(".")
        filled[int(optimizer)]["state"].setdefault(int(index), {})[name] = tensor
    return filled


def without_tensors(states: States) -> States:
    """Return what is left of states when their tensors are written elsewhere: the settings of the groups."""
    return [{**state, "state": {}} for state in states]


def _flat(states: States) -> dict[str, Any]:
    return {
        f"{optimizer}.{index}.{name}": value
        for optimizer, state in enumerate(states)
        for index, values in state["state"].items()
        for name, value in values.items()
    }


def _empty(size: torch.Size, dtype: torch.dtype, like: Tensor | None) -> Tensor:
    """Return a tensor to load into, cut as a parameter is if it has that parameter's shape."""
    if isinstance(like, DTensor) and like.shape == size:
        return zeros(*size, dtype=dtype, device_mesh=like.device_mesh, placements=like.placements)
    return torch.zeros(size, dtype=dtype)
