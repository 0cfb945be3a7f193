"""What looks on while a model trains: it may lower the learning rate, drop a step, or end the run.

A callback remembers things, and they are saved with each checkpoint: a run that was stopped while early stopping had
seen two bad evaluations goes on with two. All processes call the same methods with the same numbers, so that all come
to the same decision.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from pretraining.engine.engine import Engine
from pretraining.engine.objective import Batch
from utils.monitoring import ResourceMonitor


class Callback:
    """Looks on and does nothing; what a callback does not care about, it leaves as it is here."""

    lr_factor = 1.0  # multiplies the learning rate
    skip_above = math.inf  # a longer gradient is dropped
    stop: str | None = None  # why the run should stop now
    ends_the_run = True  # whether it is finished then, and not to be gone on with

    def after_step(self, engine: Engine, step: int) -> None:
        """Look at the model after a step; `step` is the number of steps taken."""

    def after_reading(self, entry: dict[str, float], norms: Sequence[float]) -> None:
        """Look at what is to be logged of some steps, and at the gradient norm of each; add to the former."""

    def after_evaluation(self, engine: Engine, measures: dict[str, float]) -> None:
        """Look at an evaluation's measures, and add others."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered: tensors, numbers, strings, in dicts and lists."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)


class Patience(Callback):
    """Count evaluations without a new lowest validation loss, and act when there were enough of them.

    Args:
        patience: how many in a row are enough.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = math.inf
        self.waited = 0

    def after_evaluation(self, engine: Engine, measures: dict[str, float]) -> None:
        """Count evaluations since the best one."""
        improved = measures["val_loss"] < self.best
        self.best = min(self.best, measures["val_loss"])
        self.waited = 0 if improved else self.waited + 1
        if self.waited >= self.patience:
            self.run_out()

    def run_out(self) -> None:
        """Do what is to be done after as many evaluations."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest loss, how long ago it was, and the factor of the learning rate."""
        return {"best": self.best, "waited": self.waited, "lr_factor": self.lr_factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember them; a run that had ended by them has still ended."""
        super().load_state_dict(state)
        if self.waited >= self.patience:
            self.run_out()


class EarlyStopping(Patience):
    """End the run when the validation loss has not improved for some evaluations."""

    def run_out(self) -> None:
        """Ask for the end."""
        self.stop = f"the validation loss has not improved on {self.best:.4f} for {self.waited} evaluations"


class Plateau(Patience):
    """Lower the learning rate each time the validation loss has not improved for some evaluations.

    Args:
        patience: how many in a row; after them, counting begins anew.
        factor: what the learning rate is multiplied by then.
    """

    def __init__(self, patience: int, factor: float = 0.5) -> None:
        super().__init__(patience)
        self.factor = factor

    def run_out(self) -> None:
        """Lower the rate."""
        self.lr_factor *= self.factor
        self.waited = 0


class SpikeGuard(Callback):
    """Take note of gradients that are much longer than the last ones were; drop them, if asked to.

    A spike often comes from one odd batch, and a single long step can undo hours of training.

    Args:
        ratio: how many times the median of the last norms counts as a spike.
        skip: drop the steps. On a GPU, each step then waits for its norm.
        history: how many norms the median is of. Until there are as many, nothing is a spike.
    """

    def __init__(self, ratio: float, *, skip: bool, history: int = 100) -> None:
        self.ratio = ratio
        self.skip = skip
        self.norms: deque[float] = deque(maxlen=history)

    def after_reading(self, entry: dict[str, float], norms: Sequence[float]) -> None:
        """Compare norms with the median of those before."""
        limit = self._limit()
        spikes = [norm for norm in norms if norm > limit]
        self.norms.extend(norm for norm in norms if norm <= limit)
        if spikes:
            entry.update(spikes=len(spikes), largest_spike=max(spikes))
        if self.skip:
            self.skip_above = self._limit()

    def _limit(self) -> float:
        full = len(self.norms) == self.norms.maxlen
        return self.ratio * statistics.median(self.norms) if full else math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return the last norms."""
        return {"norms": list(self.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember the last norms."""
        self.norms.extend(state["norms"])
        if self.skip:
            self.skip_above = self._limit()


class WallClock(Callback):
    """End this process after some time, so that a job with a limit saves before it is killed. The run can go on.

    Args:
        seconds: from now.
    """

    ends_the_run = False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def after_step(self, engine: Engine, step: int) -> None:
        """Look at the clock; one process's is enough for all."""
        if engine.world.any(time.monotonic() > self.end):
            self.stop = f"the time limit of {self.seconds:g} s is reached; the same command goes on"


class MovingAverage(Callback):
    """Keep an exponential moving average of the weights, which is often better than the weights themselves.

    Each process averages what it holds of them. The average is evaluated beside the weights, as "ema_val_loss".

    Args:
        engine: whose weights.
        validation: returns what the average is evaluated on.
        decay: how slowly the average moves: it looks back over some 1 / (1 - decay) steps.
    """

    def __init__(self, engine: Engine, validation: Callable[[], Iterable[Batch]], decay: float) -> None:
        self.engine = engine
        self.validation = validation
        self.decay = decay
        self.average = {name: tensor.detach().clone() for name, tensor in engine.model.state_dict().items()}

    @torch.no_grad()
    def after_step(self, engine: Engine, step: int) -> None:
        """Move the average; in the first steps faster, so that it soon forgets the untrained weights."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, tensor in engine.model.state_dict().items():
            self.average[name].lerp_(tensor, 1 - decay)

    def after_evaluation(self, engine: Engine, measures: dict[str, float]) -> None:
        """Evaluate the average, too."""
        weights = {name: tensor.detach().clone() for name, tensor in engine.model.state_dict().items()}
        engine.model.load_state_dict(self.average)
        measures.update({f"ema_{name}": value for name, value in engine.evaluate(self.validation()).items()})
        engine.model.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole average."""
        return {"average": self.engine.way.whole(self.average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this process's part of an average, to where it is kept: a checkpoint is read to the CPU."""
        parts = self.engine.way.cut(self.engine.model, state["average"])
        self.average = {name: part.to(self.average[name].device) for name, part in parts.items()}


class Machine(Callback):
    """Log how busy the machine is, and the share of a GPU's peak that becomes operations the model needs (MFU).

    Args:
        monitor: reads the machine in the background; it is started already.
        flops_per_token: operations that a token needs, forward and backward.
        peak: operations per second of all devices together; None where that is not known.
    """

    def __init__(self, monitor: ResourceMonitor, flops_per_token: float, peak: float | None) -> None:
        self.monitor = monitor
        self.flops_per_token = flops_per_token
        self.peak = peak

    def after_reading(self, entry: dict[str, float], norms: Sequence[float]) -> None:
        """Add the last reading, and the share."""
        entry.update({name: value for name, value in self.monitor.latest().items() if name != "seconds"})
        if self.peak is not None:
            entry["mfu"] = self.flops_per_token * entry["tokens_per_second"] / self.peak
