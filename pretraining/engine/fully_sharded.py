"""Fully sharded training: every process holds a part of each weight, gradient and optimizer state (FSDP2).

Before a block computes, its weights are gathered; after, they are dropped again. So each process holds its part, and
whole only the block that computes and the one to come. PyTorch's `fully_shard` does it (Zhao et al. 2023,
https://arxiv.org/abs/2304.11277); a sharded weight is a `DTensor`, which knows which part of the whole it is.

Two things are whole for longer. Autocast computes with copies of the matrices in bfloat16, and those of all blocks stay
until the backward pass has used them, unless activations are checkpointed. And where a batch is cut into micro-batches,
gradients are exchanged, and so cut, in the last pass only.

The token embedding is the output layer, too, so it must not be in a group of its own, which would be dropped between
its two uses: it stays in the root group, with all that is outside the blocks.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from pretraining.engine.parallel import OneProcess, States
from pretraining.engine.sharded_files import save_shards, without_tensors
from pretraining.engine.world import World
from pretraining.optimizers.muon import Muon, orthogonalize
from utils.files import InputError

METHODS = "loss_sum", "hidden"  # of a model, that compute with its weights and are not its forward pass


class FullySharded(OneProcess):
    """A part of everything in each process."""

    averages = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._writers = dist.new_group(backend="gloo")

    def prepare(self, model: nn.Module, *, compiled: bool) -> None:
        """Cut every weight along its first dimension into a part per process."""
        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        for block in model.blocks:
            if compiled:
                block.compile()
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for method in METHODS:
            if hasattr(model, method):
                register_fsdp_forward_method(model, method)
        self._model = model

    def wrap(self, loss: nn.Module, *, compiled: bool) -> nn.Module:
        """Return the loss as it is: the blocks are compiled, each by itself."""
        return loss

    def share(self, optimizers: list[Optimizer]) -> None:
        """Have processes take turns where a matrix is needed whole, as by Muon."""
        for optimizer in optimizers:
            if isinstance(optimizer, Muon):
                optimizer.orthogonalize_all = partial(self._orthogonalize_in_turn, optimizer)
            elif getattr(optimizer, "needs_whole_matrices", False):
                raise InputError(f"{type(optimizer).__name__} needs whole matrices: give --parallel ddp or zero1")

    def _orthogonalize_in_turn(self, optimizer: Muon, matrices: list[Tensor]) -> list[Tensor]:
        """Return orthogonalised matrices, each computed by one process: the i-th by process i modulo their number."""
        results = []
        size = self.world.size
        for start in range(0, len(matrices), size):
            parts = matrices[start : start + size]
            wholes = [_whole(part) for part in parts]
            if self.world.rank < len(wholes):
                wholes[self.world.rank] = orthogonalize(wholes[self.world.rank], optimizer.dtype)
            for owner, whole in enumerate(wholes):
                dist.broadcast(whole, src=owner)
            results += [_like(whole, part) for whole, part in zip(wholes, parts, strict=True)]
        return results

    def exchange(self, last: bool) -> AbstractContextManager:
        """Return the context; only the last pass adds up gradients over processes."""
        self._model.set_requires_gradient_sync(last)
        return nullcontext()

    def gradient_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """Return the length of the whole gradient."""
        return _whole(super().gradient_norm(parameters))

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return whole tensors, gathered one after the other and on the CPU; none but in the main process."""
        gathered = {}
        for name, tensor in tensors.items():
            whole = _whole(tensor)
            if self.world.is_main:
                gathered[name] = whole.cpu()
        return gathered

    def cut(self, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's part of whole tensors."""
        return {name: _like(tensors[name], part) for name, part in model.state_dict().items()}

    def save_states(self, optimizers: list[Optimizer], folder: Path) -> tuple[States, Future]:
        """Begin to write this process's part of the states to a folder."""
        states = [optimizer.state_dict() for optimizer in optimizers]
        return without_tensors(states), save_shards(folder, states, self._writers)

    def load_whole_states(self, optimizers: list[Optimizer], states: States) -> None:
        """Take this process's part of states, if it is not all there is of them already."""
        for optimizer, state in zip(optimizers, states, strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                index: {name: _like(value, parameters[index]) for name, value in values.items()}
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: Tensor, part: Any) -> Tensor:
    """Return a whole tensor cut as a parameter is, if it is of its shape; numbers of steps stay whole."""
    if isinstance(whole, DTensor) or not isinstance(part, DTensor) or whole.shape != part.shape:
        return whole
    return distribute_tensor(whole.to(part.device), part.device_mesh, part.placements, src_data_rank=None)
