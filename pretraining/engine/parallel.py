"""How the processes of a run share its work: the simplest way, and DDP; the others are in files of their own.

Each way answers the same questions: what is done to the model before optimizers see it, which module runs the loss,
when gradients are exchanged, which of them are here and how long all are together, how state is made whole again.

    one process     holds everything
    ddp             each holds everything, and all gradients are averaged
    zero1           each holds all weights and gradients, and a share of the optimizer's state
    fsdp            each holds a share of everything
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pretraining.engine.world import World

States = list[dict[str, Any]]  # one of each optimizer, as its `state_dict()` returns it in a single process


class OneProcess:
    """Nothing is shared."""

    averages = False  # whether the exchange divides the sum of gradients by the number of processes

    def __init__(self, world: World) -> None:
        self.world = world

    def prepare(self, model: nn.Module, *, compiled: bool) -> None:
        """Change the model before there are optimizers."""

    def wrap(self, loss: nn.Module, *, compiled: bool) -> nn.Module:
        """Return the module that computes the loss, so that its backward pass exchanges gradients."""
        return torch.compile(loss) if compiled else loss

    def share(self, optimizers: list[Optimizer]) -> None:
        """Have each process update its part of the parameters; called before the first step."""

    def exchange(self, last: bool) -> AbstractContextManager:
        """Return the context of a forward and backward pass; gradients are exchanged in the last one of a step."""
        return nullcontext()

    def finish_exchange(self) -> None:
        """Complete what the passes have left of the exchange."""

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return what this process updates, each with its gradient."""
        return [parameter for parameter in model.parameters() if parameter.grad is not None]

    def gradient_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """Return the length of the whole gradient, over all processes."""
        return nn.utils.get_total_norm([parameter.grad for parameter in parameters])

    def update(self, optimizers: Iterable[Optimizer]) -> None:
        """Take a step with every optimizer."""
        for optimizer in optimizers:
            optimizer.step()

    def forget_gradients(self, model: nn.Module) -> None:
        """Set all gradients to zero."""
        model.zero_grad()

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors with the names and shapes of the model's weights whole, in the main process.

        Every process must call it.
        """
        return tensors

    def cut(self, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's part of whole tensors, which every process has read."""
        return tensors

    def whole_states(self, optimizers: list[Optimizer]) -> States:
        """Return the states of the optimizers in the main process; every process must call it."""
        return [optimizer.state_dict() for optimizer in optimizers]

    def save_states(self, optimizers: list[Optimizer], folder: Path) -> tuple[States, Future | None]:
        """Return the states to be saved in the main process; or what is left of them, if a folder is to have the rest.

        Every process must call it.

        Returns:
            the states, and what is done when all of the folder is written; None if nothing is written there.
        """
        return self.whole_states(optimizers), None

    def load_whole_states(self, optimizers: list[Optimizer], states: States) -> None:
        """Set the states of the optimizers to those of a single process."""
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)


class Replicated(OneProcess):
    """PyTorch's DistributedDataParallel: it averages gradients while the backward pass still computes others."""

    averages = True

    def wrap(self, loss: nn.Module, *, compiled: bool) -> nn.Module:
        """Return the loss under DDP."""
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        replicated = DistributedDataParallel(loss, device_ids=devices)
        self._replicated = replicated
        return torch.compile(replicated) if compiled else replicated

    def exchange(self, last: bool) -> AbstractContextManager:
        """Return the context; around forward and backward, since DDP decides in the forward pass."""
        return nullcontext() if last else self._replicated.no_sync()
