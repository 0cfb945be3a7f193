"""Steps: from batches to updated weights, on one process or many, in any precision.

The loss of a step is the objective's sum over all micro-batches of all processes, divided by the count of all of them.
So one step is the same step, however its batch is cut: into micro-batches, over processes, with rows of any length.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretraining.engine.fully_sharded import FullySharded
from pretraining.engine.objective import Batch, Objective
from pretraining.engine.parallel import OneProcess, Replicated
from pretraining.engine.world import World
from pretraining.engine.zero import ZeroOne
from utils.files import InputError

WAYS: dict[str, type[OneProcess]] = {
    "none": OneProcess,
    "ddp": Replicated,
    "zero1": ZeroOne,
    "fsdp": FullySharded,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SOUND_STEPS_BEFORE_DOUBLING = 2000


@dataclass(frozen=True)
class Settings:
    """How an engine computes, apart from what."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What matrix products are computed in; weights and optimizer stay as they are. float16 has few exponents, so the
    loss is scaled up to keep small gradients, and steps in which it was scaled too far are skipped."""
    compiled: bool = False
    """Whether torch.compile builds fused code."""
    parallel: Literal["none", "ddp", "zero1", "fsdp"] = "none"
    """How processes share the work; see `parallel.py`."""
    clip: float = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them."""


@dataclass(frozen=True)
class StepInfo:
    """What is known of a step. Numbers stay on the device until they are read, so that a GPU need not be waited for."""

    loss: Tensor
    """The mean loss, this process's part of it: over processes, these add up."""
    gradient_norm: Tensor
    """The gradient's length before it was shortened; the same in every process."""
    count: int
    """What this process supervised."""
    skipped: bool = False
    """Whether the weights are as they were before."""


class NotFiniteError(InputError):
    """A gradient is not a number any more, or not a finite one.

    Args:
        message: what it was.
        index: which of the steps that were read it is; 0 for a step that was just taken.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class Engine:
    """A model, what moves it, and the processes it is moved on.

    Args:
        model: on the world's device. The engine may change how its weights are stored.
        objective: what it is trained for.
        make_optimizers: makes the optimizers of a model; called when the model is as it stays. The learning rates of
            their groups are the peaks that `lr_factor` scales.
        settings: how to compute.
        world: the processes.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        make_optimizers: Callable[[nn.Module], list[Optimizer]],
        settings: Settings,
        world: World,
    ) -> None:
        if settings.precision == "float16" and world.device.type == "cpu":
            raise InputError("float16 needs a GPU: on a CPU give --precision bfloat16 or float32")
        if settings.parallel == "none" and world.size > 1:
            raise InputError(f"{world.size} processes would each train a model of their own: give --parallel ddp")
        self.model = model
        self.objective = objective
        self.settings = settings
        self.world = world
        self.device = world.device
        self.way = WAYS[settings.parallel](world) if world.size > 1 else OneProcess(world)
        self.way.prepare(model, compiled=settings.compiled)
        self.optimizers = make_optimizers(model)
        self.way.share(self.optimizers)
        self.loss_sum = self.way.wrap(_LossSum(model, objective), compiled=settings.compiled)
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.loss_scale = LossScale(2.0**16 if settings.precision == "float16" else 1.0)
        # A number that is read makes the program wait for the GPU; on a CPU it is there anyway.
        self.checks_each_step = self.device.type != "cuda" or settings.precision == "float16"

    def step(self, batches: Sequence[Batch], lr_factor: float, *, skip_above: float = math.inf) -> StepInfo:
        """Take one step.

        Args:
            batches: this process's micro-batches, at least one; every process must have as many.
            lr_factor: what the peak learning rates are multiplied by.
            skip_above: a gradient longer than this is dropped, and the weights stay; waits for the GPU.

        Returns:
            what is known of it.

        Raises:
            NotFiniteError: where `checks_each_step`, if the gradient is not finite; the weights are as they were. In
                float16 the loss was then scaled too far, and the step is skipped, as long as it can be scaled less.
        """
        count = sum(self.objective.count(batch) for batch in batches)
        # filled in on the device: a number that is copied there makes the program wait
        whole_count = self.world.sum(torch.full((), count, device=self.device)).clamp(min=1)
        losses = []
        weight = self.loss_scale.value * (self.world.size if self.way.averages else 1)
        for index, batch in enumerate(batches):
            with self.way.exchange(last=index == len(batches) - 1):
                part = self._loss_sum(batch) / whole_count
                (part * weight).backward()
            losses.append(part.detach())
        loss = torch.stack(losses).sum()
        norm = self._clip()
        skipped = False
        if self.checks_each_step or skip_above < math.inf:
            length = norm.item()
            skipped = not math.isfinite(length) or length > skip_above
            if not math.isfinite(length) and not self.loss_scale.can_fall:
                raise NotFiniteError(f"the loss is {self.world.sum(loss).item()} and the gradient's length {length}")
            self.loss_scale.adapt(math.isfinite(length))
        if not skipped:
            self._set_learning_rates(lr_factor)
            self.way.update(self.optimizers)
        self.way.forget_gradients(self.model)
        return StepInfo(loss, norm, count, skipped)

    def _clip(self) -> Tensor:
        """Complete the gradients, shorten them to the limit, and return the length they had."""
        self.way.finish_exchange()
        parameters = self.way.parameters(self.model)
        if self.loss_scale.value != 1:
            for parameter in parameters:
                parameter.grad.div_(self.loss_scale.value)
        norm = self.way.gradient_norm(parameters)
        if self.settings.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        return norm

    def _loss_sum(self, batch: Batch) -> Tensor:
        with self.autocast():
            return self.loss_sum(to_device(batch, self.device))

    def _set_learning_rates(self, factor: float) -> None:
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    def autocast(self) -> torch.autocast:
        """Return the context in which products are computed in the engine's precision."""
        precision = self.settings.precision
        enabled = precision != "float32"
        dtype = DTYPES[precision] if enabled else torch.bfloat16
        # Autocast keeps copies of all matrices until it is left: memory that checkpointed activations are to save.
        keep_copies = not getattr(self.model.config, "checkpoint_activations", False)
        return torch.autocast(self.device.type, dtype, enabled=enabled, cache_enabled=keep_copies)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the objective's measures of the model as it is now, in evaluation mode; the same in every process."""
        with self.evaluating():
            return self.objective.evaluate(self.model, self._moved(batches))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model in evaluation mode, and compute in the engine's precision, until the block ends."""
        self.model.eval()
        try:
            with self.autocast():
                yield
        finally:
            self.model.train()

    def _moved(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield to_device(batch, self.device)

    def read(self, steps: Sequence[StepInfo]) -> tuple[list[float], list[float]]:
        """Return losses and gradient norms of steps as numbers, whole; every process must call it, with as many.

        Raises:
            NotFiniteError: if a gradient that was not skipped is not finite: from that step on, weights are no good.
        """
        losses = self.world.sum(torch.stack([step.loss for step in steps])).tolist()
        norms = torch.stack([step.gradient_norm for step in steps]).tolist()
        for index, (step, loss, norm) in enumerate(zip(steps, losses, norms, strict=True)):
            if not math.isfinite(norm) and not step.skipped:
                raise NotFiniteError(f"the loss is {loss} and the gradient's length {norm}", index)
        return losses, norms

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on besides weights and optimizers."""
        return {"loss_scale": self.loss_scale.value, "sound_steps": self.loss_scale.sound_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.loss_scale.value = state["loss_scale"]
        self.loss_scale.sound_steps = state["sound_steps"]


@dataclass
class LossScale:
    """What the loss is multiplied by in float16, so that small gradients do not become zero.

    It is halved when a gradient overflows, and doubled after many sound steps. At 1, it stays there.
    Micikevicius et al. 2017, https://arxiv.org/abs/1710.03740, section 3.2.
    """

    value: float
    sound_steps: int = 0

    @property
    def can_fall(self) -> bool:
        """Whether there is something left to halve."""
        return self.value > 1

    def adapt(self, sound: bool) -> None:
        """Take note of a step, whose gradient was finite or not."""
        if not self.can_fall:
            return
        self.sound_steps = self.sound_steps + 1 if sound else 0
        if not sound:
            self.value /= 2
        elif self.sound_steps % SOUND_STEPS_BEFORE_DOUBLING == 0:
            self.value *= 2


class _LossSum(nn.Module):
    """The objective's loss as one module's forward pass: what is compiled, and where DDP listens."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective.loss_sum(self.model, batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on a device; from pinned memory, they are copied while the program goes on."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(part, device) for name, part in batch.items()}
    return tuple(to_device(part, device) for part in batch)


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Return a batch in micro-batches of `size` examples each; the last may have fewer."""
    if isinstance(batch, Tensor):
        return list(batch.split(size))
    if isinstance(batch, dict):
        columns = [split_batch(part, size) for part in batch.values()]
        return [dict(zip(batch, parts, strict=True)) for parts in zip(*columns, strict=True)]
    return list(zip(*(split_batch(part, size) for part in batch), strict=True))
