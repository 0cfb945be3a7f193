"""The loop around the steps: log, evaluate, save, stop, and go on where an earlier process stopped.

A run ends, bit for bit, as if nothing had interrupted it: a checkpoint holds the weights and all else that the next
step depends on, as a single process would have it. So it can go on with more processes or fewer, in any way to share.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pretraining.checkpoint import SHARDS, begin_checkpoint, complete_checkpoint, load_checkpoint
from pretraining.engine.callbacks import Callback
from pretraining.engine.engine import Engine, NotFiniteError, StepInfo, split_batch
from pretraining.engine.objective import Batch
from pretraining.engine.schedules import Schedule
from pretraining.engine.sharded_files import load_shards
from pretraining.metrics import forget_metrics_after
from utils.files import InputError, write_atomically
from utils.interrupt import StopRequest, stop_on_signal
from utils.tracking import Tracker

log = logging.getLogger(__name__)


class Batches(Protocol):
    """An endless supply of batches that remembers where it stands."""

    def next(self) -> Batch:
        """Return this process's part of the next batch."""

    def state_dict(self) -> dict[str, Any]:
        """Return where reading stands; the same in every process."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Plan:
    """How long a run is, and after how many steps something is due."""

    steps: int
    eval_every: int
    checkpoint_every: int
    micro_batch_size: int
    """Examples that go through the model at once, in each process."""
    snapshot_every: int | None = None
    """Steps between two checkpoints whose weights are kept for good."""
    log_every: int = 10


def fit(
    engine: Engine,
    batches: Batches,
    validation: Callable[[], Iterable[Batch]],
    schedule: Schedule,
    run: Path,
    plan: Plan,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
) -> bool:
    """Train from the run's newest checkpoint, or its start; return False if it was stopped before the last step.

    Ctrl-C and SIGTERM, to any of the processes, let the step end, save and stop.

    Args:
        engine: takes the steps.
        batches: what it learns from.
        validation: returns what it is evaluated on, anew each time; the same in every process.
        schedule: the share of the peak learning rates that each step takes.
        run: the run directory.
        plan: when to do what.
        callbacks: what looks on, and may stop the run; see `callbacks.py`.
        trackers: where numbers go, of the main process; see `utils.tracking.open_trackers`. They are not closed.

    Raises:
        InputError: if the gradient is not a number any more; the batch is saved, and the last checkpoint is intact.
            If a checkpoint cannot be read or written.
    """
    trainer = Trainer(engine, batches, validation, schedule, run, plan, callbacks, trackers)
    if trainer.resume():
        log.info("%s: going on after step %s of %s", run, trainer.steps, plan.steps)
        trainer.listen()  # to a callback that had ended the run
    else:
        trainer.save()  # so that there is something to resume from, and to compare with, from the start
    with stop_on_signal() as stop:
        trainer.run_steps(stop)
    return trainer.steps >= plan.steps or (trainer.stopped_by is not None and trainer.stopped_by.ends_the_run)


class Trainer:
    """A run in progress. Its arguments are those of `fit`."""

    def __init__(
        self,
        engine: Engine,
        batches: Batches,
        validation: Callable[[], Iterable[Batch]],
        schedule: Schedule,
        run: Path,
        plan: Plan,
        callbacks: Sequence[Callback],
        trackers: Sequence[Tracker],
    ) -> None:
        self.engine = engine
        self.world = engine.world
        self.batches = batches
        self.validation = validation
        self.schedule = schedule
        self.run = run
        self.plan = plan
        self.callbacks = callbacks
        self.trackers = trackers
        self.steps = 0
        self.saved_at = -1
        self.stopped_by: Callback | None = None
        self.seconds_before = 0.0  # spent by earlier processes of this run
        self.started = time.perf_counter()
        self._writing: Future | None = None  # of the checkpoint that is not complete yet
        self._complete: Callable[[], None] | None = None
        self.shown: dict[str, str] = {}  # beside the progress bar
        self.lr_factor = 0.0  # of the last step
        self._forget()

    @property
    def seconds(self) -> float:
        """The run's wall time so far, in all of its processes."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def snapshot_due(self) -> bool:
        """Whether to keep this step's weights for good: every `snapshot_every` steps, and after the last."""
        every = self.plan.snapshot_every
        return every is not None and (self.steps % every == 0 or self.steps == self.plan.steps)

    def run_steps(self, stop: StopRequest) -> None:
        """Step, look, log and save until the last step, or until somebody wants to stop."""
        plan = self.plan
        hidden = not self.world.is_main
        with tqdm(total=plan.steps, initial=self.steps, unit="step", desc="training", disable=hidden) as bar:
            while self.steps < plan.steps and self.stopped_by is None and not self.world.any(stop.made):
                self.step()
                bar.update()
                last = self.steps == plan.steps
                evaluate = last or self.steps % plan.eval_every == 0
                if evaluate or self.steps % plan.log_every == 0:
                    self.look(evaluate)
                    bar.set_postfix(self.shown, refresh=False)
                if last or self.snapshot_due or self.steps % plan.checkpoint_every == 0:
                    self.save()
        if self.saved_at != self.steps:
            self.save()
        self.finish_saving()

    def step(self) -> None:
        """Take one step."""
        batches = split_batch(self.batches.next(), self.plan.micro_batch_size)
        self.batches_since.append(batches)
        self.lr_factor = self.schedule(self.steps) * math.prod(callback.lr_factor for callback in self.callbacks)
        skip_above = min((callback.skip_above for callback in self.callbacks), default=math.inf)
        with self._bad_batch_kept():
            self.steps_since.append(self.engine.step(batches, self.lr_factor, skip_above=skip_above))
        self.steps += 1
        for callback in self.callbacks:
            callback.after_step(self.engine, self.steps)
        self.listen()
        if self._writing is not None and self.world.any(self.world.is_main and self._writing.done()):
            self.finish_saving()

    def look(self, evaluate: bool) -> None:
        """Read and log the numbers of the steps since the last look, after evaluating if that is due."""
        since = self.steps_since
        with self._bad_batch_kept():
            losses, norms = self.engine.read(since)
        seconds = time.perf_counter() - self.looked_at
        count = self.world.sum(torch.tensor(sum(step.count for step in since))).item()
        entry: dict[str, float] = {
            "loss": sum(losses) / len(losses),
            "tokens_per_second": round(count / seconds),
            "gradient_norm": sum(norms) / len(norms),
            "lr_factor": self.lr_factor,
        }
        if skipped := sum(step.skipped for step in since):
            entry["skipped"] = skipped
        for callback in self.callbacks:
            callback.after_reading(entry, norms)
        if evaluate:
            entry.update(self._evaluate())
        if self.world.is_main:
            for tracker in self.trackers:
                tracker.log(self.steps, {"seconds": round(self.seconds, 2), **entry})
        self.listen()
        self.shown = {"loss": f"{entry['loss']:.3f}", "tokens_s": f"{entry['tokens_per_second']:,}"}
        self._forget()

    def _forget(self) -> None:
        """Begin to count anew for the next look."""
        self.steps_since: list[StepInfo] = []
        self.batches_since: list[list[Batch]] = []
        self.looked_at = time.perf_counter()

    def _evaluate(self) -> dict[str, float]:
        measures = self.engine.evaluate(self.validation())
        for callback in self.callbacks:
            callback.after_evaluation(self.engine, measures)
        return measures

    def listen(self) -> None:
        """Take note of a callback that wants the run to end."""
        for callback in self.callbacks:
            if callback.stop is not None and self.stopped_by is None:
                self.stopped_by = callback
                if self.world.is_main:
                    log.info("stopping after step %s: %s", self.steps, callback.stop)

    @contextmanager
    def _bad_batch_kept(self) -> Iterator[None]:
        """Save the batch whose gradient is not finite, to be looked at and tried again."""
        try:
            yield
        except NotFiniteError as error:
            first = self.steps - len(self.steps_since) + 1
            step = first + error.index if len(self.batches_since) == len(self.steps_since) else self.steps + 1
            path = self.run / "bad_batch" / f"step_{step:06d}_rank_{self.world.rank}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as file:
                torch.save({"step": step, "batches": self.batches_since[step - first]}, file)
            raise InputError(
                f"{error} at step {step}: the last checkpoint is intact, and the batch is in {path}; try a lower --lr "
                "and --matrix-lr in another --out, or --precision float32"
            ) from error

    def save(self) -> None:
        """Write a checkpoint, or begin to; every process must call it."""
        if self.steps_since:  # weights that are not numbers any more must not become a checkpoint
            with self._bad_batch_kept():
                self.engine.read(self.steps_since)
        self.finish_saving()
        step, snapshot = self.steps, self.snapshot_due
        folder = self.world.from_main(lambda: begin_checkpoint(self.run, step))
        weights = self.engine.way.whole(self.engine.model.state_dict())
        states, self._writing = self.engine.way.save_states(self.engine.optimizers, folder / SHARDS)
        state = {
            "seconds": self.seconds,
            "engine": self.engine.state_dict(),
            "optimizers": states,
            "batches": self.batches.state_dict(),
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in self.callbacks},
            "rngs": self.world.gather(random_state(self.world.device)),
        }
        self._complete = lambda: complete_checkpoint(self.run, step, weights, state, snapshot=snapshot)
        self.saved_at = step
        if self._writing is None:
            self.finish_saving()

    def finish_saving(self) -> None:
        """Wait until all parts of a checkpoint are written, and give it its name; every process must call it."""
        if self._complete is None:
            return
        complete, self._complete = self._complete, None
        writing, self._writing = self._writing, None
        failure = None if writing is None else writing.exception()  # waits

        def finish() -> None:
            if failure is not None:
                raise InputError(
                    f"could not write a checkpoint to {self.run} ({type(failure).__name__}: {failure}): earlier ones "
                    "are intact; make room, then give the same command to resume"
                ) from failure
            complete()

        self.world.from_main(finish)

    def resume(self) -> bool:
        """Go back to the run's newest checkpoint, in every process; return False if it has none."""
        found = load_checkpoint(
            self.run, self.engine.model, self.restore, publish=self.world.is_main, agree=self._agree
        )
        if found and self.world.is_main:
            forget_metrics_after(self.run, self.steps)
        return found

    def _agree(self, found: str) -> None:
        """Check that all processes go on from the same."""
        all_found = self.world.all(found)

        def check() -> None:
            if any(other != found for other in all_found):
                raise InputError(
                    f"the processes would go on from different steps of {self.run} ({', '.join(all_found)}): give "
                    "each of them the same folder, on a disk that they share"
                )

        self.world.from_main(check)

    def restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restore what a checkpoint holds."""
        states = state["optimizers"]
        if (state["folder"] / SHARDS).exists():
            states = load_shards(state["folder"] / SHARDS, states, self.engine.optimizers)
        self.engine.way.load_whole_states(self.engine.optimizers, states)
        self.engine.load_state_dict(state["engine"])
        self.batches.load_state_dict(state["batches"])
        for callback in self.callbacks:
            if (name := type(callback).__name__) in state["callbacks"]:  # one that was not there before begins now
                callback.load_state_dict(state["callbacks"][name])
        if self.world.rank < len(state["rngs"]):  # a process more than before keeps the state it began with
            set_random_state(state["rngs"][self.world.rank], self.world.device)
        self.engine.model.load_state_dict(self.engine.way.cut(self.engine.model, weights))
        self.steps = self.saved_at = state["step"]
        self.seconds_before = float(state["seconds"])


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of all generators of random numbers in this process."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": list(random.getstate()[1]),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set all generators to what `random_state` returned; a run that moved to another device has no state for it."""
    random.setstate((3, tuple(state["python"]), None))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
