"""ZeRO-1 by hand: every process keeps the optimizer's state of its part of the parameters, and updates that part only.

    backward          each process has its own gradient of everything
    reduce-scatter    each gets the sum of its part of them
    step              each updates its part, with the state that nobody else has
    all-gather        each gets the parts that the others have updated

AdamW keeps two numbers per parameter, more than the weights themselves; with N processes each keeps one Nth of them.
Rajbhandari et al. 2019, https://arxiv.org/abs/1910.02054, section 5.1. What the optimizer does to each number alone can
be cut anywhere: all parameters of a group stand end to end in one vector, cut into N equal parts. Muon and GaLore look
at a matrix as a whole, so that each matrix has one process that updates it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pretraining.engine.parallel import OneProcess, States
from pretraining.engine.world import World

# PyTorch 2.13 has new names for the two, and warns of the old ones.
reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class ZeroOne(OneProcess):
    """Optimizer state in parts; weights and gradients whole."""

    def share(self, optimizers: list[Optimizer]) -> None:
        """Give every process its part of each optimizer's parameters."""
        self.parts: list[Vector | Matrices] = []
        for optimizer in optimizers:
            kind = Matrices if getattr(optimizer, "needs_whole_matrices", False) else Vector
            for group in optimizer.param_groups:
                part = kind(group["params"], self.world)
                group["params"] = part.own
                self.parts.append(part)

    def finish_exchange(self) -> None:
        """Sum the gradients of each part where it is updated."""
        for part in self.parts:
            part.reduce_gradients()

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parts that are updated here."""
        return [parameter for part in self.parts for parameter in part.own]

    def gradient_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """Return the length of all parts' gradients together."""
        squares = torch.zeros((), device=self.world.device, dtype=torch.float64)
        for parameter in parameters:
            squares += parameter.grad.square().sum()
        return self.world.sum(squares).sqrt()

    def update(self, optimizers: Iterable[Optimizer]) -> None:
        """Update the own part, and fetch the others'."""
        super().update(optimizers)
        for part in self.parts:
            part.gather_values()

    def forget_gradients(self, model: nn.Module) -> None:
        """Set all gradients to zero where they are."""
        for part in self.parts:
            part.forget_gradients()

    def whole_states(self, optimizers: list[Optimizer]) -> States:
        """Return the states as a single process would have them, in the main one."""
        parts = iter(self.parts)
        return [self._whole_state(optimizer, parts) for optimizer in optimizers]

    def _whole_state(self, optimizer: Optimizer, parts: Iterable[Vector | Matrices]) -> dict[str, Any]:
        whole: dict[str, Any] = {"state": {}, "param_groups": []}
        for group in optimizer.param_groups:
            part = next(parts)
            first = len(whole["state"])
            states = part.whole([_on_cpu(optimizer.state.get(parameter, {})) for parameter in part.own])
            whole["state"].update({first + place: state for place, state in enumerate(states)})
            settings = {name: value for name, value in group.items() if name != "params"}
            whole["param_groups"].append({**settings, "params": list(range(first, first + len(part.parameters)))})
        whole["state"] = {place: state for place, state in whole["state"].items() if state}
        return whole

    def load_whole_states(self, optimizers: list[Optimizer], states: States) -> None:
        """Take the own part of the states of a single process."""
        parts = iter(self.parts)
        for optimizer, whole in zip(optimizers, states, strict=True):
            mine: dict[str, Any] = {"state": {}, "param_groups": []}
            place = 0
            for group in whole["param_groups"]:
                part = next(parts)
                own = part.cut([whole["state"].get(index, {}) for index in group["params"]])
                mine["state"].update({place + i: state for i, state in enumerate(own) if state})
                mine["param_groups"].append({**group, "params": list(range(place, place + len(own)))})
                place += len(own)
            optimizer.load_state_dict(mine)


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state on the CPU, where it is gathered: the main process's GPU may not hold everybody's."""
    return {name: value.cpu() for name, value in state.items()}


class Vector:
    """Parameters end to end in one vector, of which each process updates one of equal parts.

    Args:
        parameters: become views into the vector, and so do their gradients.
        world: who shares them.
    """

    def __init__(self, parameters: list[nn.Parameter], world: World) -> None:
        self.parameters = parameters
        self.world = world
        self.n_numbers = sum(parameter.numel() for parameter in parameters)
        self.length = math.ceil(self.n_numbers / world.size)  # of a part; the last one is filled up with zeros
        like = parameters[0] if parameters else torch.zeros(0, device=world.device)
        self.values = like.new_zeros(self.length * world.size)
        self.gradients = torch.zeros_like(self.values)
        end = 0
        for parameter in parameters:
            start, end = end, end + parameter.numel()
            self.values[start:end] = parameter.detach().flatten()
            parameter.data = self.values[start:end].view_as(parameter)
            parameter.grad = self.gradients[start:end].view_as(parameter)
        part = nn.Parameter(self._mine(self.values))  # a view: updating it updates the parameters
        part.grad = torch.zeros_like(part)
        self.own = [part] if parameters else []

    def _mine(self, vector: Tensor) -> Tensor:
        start = self.world.rank * self.length
        return vector[start : start + self.length]

    def reduce_gradients(self) -> None:
        """Have the own part hold the sum of all processes' gradients."""
        for part in self.own:
            reduce_scatter(part.grad, self.gradients)

    def gather_values(self) -> None:
        """Fetch the parts that others have updated."""
        for part in self.own:
            all_gather(self.values, part.detach().clone())

    def forget_gradients(self) -> None:
        """Set the gradients to zero where they are: they must stay views."""
        self.gradients.zero_()

    def whole(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the optimizer's state of each parameter, from the own part's; in the main process only."""
        parts = [part for parts in self.world.gather(own) for part in parts]
        if not parts or not parts[0]:
            return [{} for _ in self.parameters]
        sizes = [parameter.numel() for parameter in self.parameters]
        states: list[dict[str, Any]] = [{} for _ in self.parameters]
        for name, value in parts[0].items():
            if value.dim() == 0:  # the number of steps
                pieces = [value.clone() for _ in sizes]
            else:
                vector = torch.cat([part[name] for part in parts])[: self.n_numbers]
                pieces = [piece.clone() for piece in vector.split(sizes)]
            for state, parameter, piece in zip(states, self.parameters, pieces, strict=True):
                state[name] = piece.view_as(parameter) if value.dim() else piece
        return states

    def cut(self, whole: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the own part's state, from each parameter's."""
        if not whole or not whole[0]:
            return [{} for _ in self.own]
        state = {}
        for name, value in whole[0].items():
            if value.dim() == 0:
                state[name] = value.clone()
            else:
                vector = torch.zeros(self.length * self.world.size, dtype=value.dtype)
                vector[: self.n_numbers] = torch.cat([each[name].flatten().cpu() for each in whole])
                state[name] = self._mine(vector).clone()
        return [state]


class Matrices:
    """Matrices that are updated whole, each by one process, so that all have about as many numbers to look after."""

    def __init__(self, parameters: list[nn.Parameter], world: World) -> None:
        self.parameters = parameters
        self.world = world
        loads = [0] * world.size
        self.owners = [0] * len(parameters)
        for index in sorted(range(len(parameters)), key=lambda index: -parameters[index].numel()):
            owner = loads.index(min(loads))
            self.owners[index] = owner
            loads[owner] += parameters[index].numel()
        self.own = self._mine(parameters)

    def _mine(self, values: list[Any]) -> list[Any]:
        return [value for value, owner in zip(values, self.owners, strict=True) if owner == self.world.rank]

    def reduce_gradients(self) -> None:
        """Have the owner of each matrix hold the sum of all processes' gradients."""
        for parameter, owner in zip(self.parameters, self.owners, strict=True):
            dist.reduce(parameter.grad, dst=owner)

    def gather_values(self) -> None:
        """Fetch the matrices that others have updated."""
        for parameter, owner in zip(self.parameters, self.owners, strict=True):
            dist.broadcast(parameter.detach(), src=owner)

    def forget_gradients(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def whole(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the optimizer's state of each matrix; in the main process only."""
        by_rank = [iter(states) for states in self.world.gather(own)]
        return [next(by_rank[owner]) for owner in self.owners] if by_rank else []

    def cut(self, whole: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the own matrices' states."""
        return self._mine(whole)
