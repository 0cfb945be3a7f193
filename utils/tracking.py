"""Where the numbers of a run go: a file of JSON lines always, TensorBoard and Weights & Biases if they are asked for.

    trackers = open_trackers(["tensorboard"], run, config)
    for tracker in trackers:
        tracker.log(10, {"loss": 5.31, "learning_rate": 0.0003})

Numbers are worth less than the training that they come from: a tracker that fails on the way, because a disk is full or
a network is gone, says so once, and training goes on.
"""

import contextlib
import functools
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from utils.extras import check_installed
from utils.files import InputError

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
# What trackers write into a run directory, for `utils.outputs`.
TRACKER_FILES = (
    METRICS,
    "tensorboard/events.out.tfevents.*",
    *(f"wandb/*run-*/{name}" for name in ("run-*.wandb", "files/*", "logs/*.log", "tmp/code/*")),
)
PATIENCE = 30  # seconds that the server of Weights & Biases has to answer


class Tracker(Protocol):
    """Takes the numbers of a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step, each under its name."""

    def close(self) -> None:
        """Write what is not yet written. Nothing is logged afterwards."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that there are such trackers, and that the packages they need are installed.

    Raises:
        InputError: if not.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(
                f"there is no tracker {name!r}: choose from {', '.join(TRACKERS)}; {METRICS} needs no name"
            )
        check_installed(name, "track", f"the tracker {name}")


def open_trackers(names: Sequence[str], run: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Return the trackers of a run, the file of JSON lines first; those of a resumed run go on where they were.

    Args:
        names: of the trackers beside that file, "tensorboard" or "wandb".
        run: the run directory, where all of them write.
        config: the settings of the run, for trackers that show them.

    Raises:
        InputError: for a tracker that is not known or not installed, before anything is written.
    """
    check_trackers(names)
    settings = json.loads(json.dumps(dict(config), default=str))
    opened = {name: TRACKERS[name](run, settings) for name in names}
    lenient: list[Tracker] = [_Lenient(METRICS, _JsonLines(run / METRICS))]
    return lenient + [_Lenient(name, tracker) for name, tracker in opened.items()]


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file. Numbers that are not finite are left out: JSON has no way to write them.

    Raises:
        OSError: if it cannot be written; the file is then as it was.
    """
    finite = {name: value for name, value in values.items() if not isinstance(value, float) or math.isfinite(value)}
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(json.dumps(finite).encode() + b"\n")
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # half a line would spoil the next one
        raise


def read_lines(path: Path, needed: Collection[str] = ("step",)) -> tuple[list[dict[str, float]], int]:
    """Read a file of JSON lines.

    Returns:
        the lines that hold finite numbers only, those that are `needed` among them, and how many others there are:
        a power cut leaves a damaged one. A file that is not there has none.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    entries = [entry for line in lines if (entry := _entry(line, needed)) is not None]
    return entries, len(lines) - len(entries)


def _entry(line: bytes, needed: Collection[str]) -> dict[str, float] | None:
    """Return the numbers in a line, or None if it is damaged."""
    try:
        entry = json.loads(line)
        sound = isinstance(entry, dict) and entry.keys() >= set(needed) and all(map(math.isfinite, entry.values()))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return entry if sound else None


class _JsonLines:
    """A file with a line of JSON for each step that is logged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, values: Mapping[str, float]) -> None:
        append_line(self.path, {"step": step, **values})

    def close(self) -> None:
        """Do nothing: each line is written when it comes."""


class _TensorBoard:
    """Event files in the run's folder tensorboard/, for `tensorboard --logdir RUN`."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.begin = functools.partial(SummaryWriter, str(run / "tensorboard"))
        self.config = f"    {json.dumps(config, indent=1)}".replace("\n", "\n    ")  # code, as Markdown has it
        self.writer: SummaryWriter | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is None:
            # What an earlier process logged of this step and of later ones is hidden: they come again.
            self.writer = self.begin(purge_step=step)
            self.writer.add_text("config", self.config)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # so that people see it now, and a full disk shows now

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases, kept in the run's folder wandb/ if nobody is logged in."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        # Links lead out of the run directory, and what is printed is none of its business.
        quiet = wandb.Settings(silent=True, console="off", symlink=False, init_timeout=PATIENCE)
        wandb.setup(quiet)
        earlier = sorted(run.glob("wandb/*run-*-*"))
        self.run = self._begin(
            run / "wandb",
            project=os.environ.get("WANDB_PROJECT", "language-model-from-scratch"),
            name=run.resolve().name,
            dir=str(run),
            config=dict(config),
            id=earlier[-1].name.rpartition("-")[2] if earlier else None,
            resume="allow",
            settings=quiet,
        )
        for link in run.glob("wandb/*run-*/logs/debug-core.log"):  # made all the same
            link.unlink()
        # Steps of its own would have to rise, and those of a resumed run fall back to its checkpoint.
        self.run.define_metric("*", step_metric="step")

    @staticmethod
    def _begin(folder: Path, **settings: Any) -> Any:
        """Return a run that is online if somebody is logged in and the server answers, and offline if not."""
        import wandb

        why = "nobody is logged in"
        if "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False):
            try:
                return wandb.init(**settings)
            except wandb.Error as error:
                wandb.teardown()  # of the attempt, which would still hold the run's id
                why = " ".join(str(error).split())
        log.warning("wandb: %s, so the run is kept in %s: wandb sync sends it later", why, folder)
        return wandb.init(**settings, mode="offline")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}


class _Lenient:
    """Hands numbers on to a tracker. Where that fails it warns the first time, and never stops the training."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self.tracker = tracker
        self.warned = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._attempt(lambda: self.tracker.log(step, values))

    def close(self) -> None:
        self._attempt(self.tracker.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # each package has its own
            if not self.warned:
                why = " ".join(str(error).split()) or type(error).__name__
                log.warning("%s: numbers of this run are missing there (%s); training goes on", self.name, why)
            self.warned = True
