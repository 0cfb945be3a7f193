"""What runs in a training container: any trainer of this project, and what makes it survive there.

- A volume is mounted at /vol, and the command runs in it: `--data data/web --out runs/large` are paths of the volume.
- What others committed is loaded at each attempt: a container that is used again may still show an older state.
- What the trainer has written is committed every minute. A checkpoint is renamed into place when it is whole, so
  whatever a commit catches is a run that can be gone on with.
- When the machine is taken away (SIGINT, half a minute before the end), the trainer is told, saves and stops; this is
  committed, and Modal starts the call again, which goes on from there. So it does after a crash, without that word.
- A mistake of the user, which the trainer says in one line, is not tried again.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import modal

from utils.files import write_atomically

VOLUME = Path("/vol")
MASTER_PORT = 29500
GOODBYE = 20  # seconds that a trainer has to save when its machine is taken away; Modal gives 30
TAIL = 8192  # bytes of output that are searched for the reason of a failure


@dataclass(frozen=True)
class Job:
    """A training job; sent to its containers."""

    command: tuple[str, ...]
    """What follows `python -m`."""
    volume: str
    """The name of the volume."""
    processes: int = 1
    """Of a node; one per GPU."""
    nodes: int = 1
    dollars_per_hour: float = 0.0
    budget: float = 0.0
    """Dollars of all attempts together, after which it stops with a checkpoint; 0 for no limit."""
    commit_every: float = 60.0
    """Seconds."""


def train(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job in its container; return how it ended: "finished", "refused" with the reason, or "budget".

    Raises:
        RuntimeError: if the trainer failed, so that Modal tries again.
        KeyboardInterrupt: if the machine is taken away, after what there is has been saved.
    """
    job = Job(**{**given, "command": tuple(given["command"])})
    volume = modal.Volume.from_name(job.volume)
    volume.reload()
    rank, address = 0, "127.0.0.1"
    if job.nodes > 1:
        cluster = modal.Cluster.from_context()
        rank, address = cluster.container_rank(), cluster.container_ips()[0]
    ledger = Ledger(VOLUME / ".jobs" / f"{job_name(job)}.json", job)
    attempt = ledger.begin(write=rank == 0)
    print(f"attempt {attempt} on node {rank + 1} of {job.nodes}: {' '.join(job.command)}", flush=True)
    trainer = Trainer(launch(job, rank, address))
    try:
        while not trainer.wait(job.commit_every):
            ledger.add(write=rank == 0)
            volume.commit()
            if ledger.used_up():
                trainer.stop()
                return {"state": "budget", "attempts": attempt}
    except KeyboardInterrupt:
        print(f"node {rank + 1} is taken away: saving", flush=True)
        trainer.stop()
        raise
    finally:
        trainer.stop()  # whatever happened, nothing of it goes on
        ledger.add(write=rank == 0)
        volume.commit()
    return outcome(trainer, attempt)


def outcome(trainer: "Trainer", attempt: int) -> dict[str, Any]:
    """Return how a trainer ended.

    Raises:
        RuntimeError: if it failed otherwise than by a mistake of the user.
    """
    status, said = trainer.process.returncode, trainer.tail()  # all of which is passed on before this process ends
    if status == 0:
        return {"state": "finished", "attempts": attempt}
    for line in said.splitlines():
        if line.startswith("error: "):
            return {"state": "refused", "reason": line.removeprefix("error: "), "attempts": attempt}
    raise RuntimeError(f"the trainer ended with exit status {status}")


def launch(job: Job, rank: int, address: str) -> list[str]:
    """Return the command of one node: torchrun for many processes, else Python."""
    if job.nodes == job.processes == 1:
        return [sys.executable, "-m", *job.command]
    where = ["--standalone"] if job.nodes == 1 else [
        "--nnodes", str(job.nodes), "--node-rank", str(rank), "--master-addr", address,
        "--master-port", str(MASTER_PORT),
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(job.processes)]
    return [*torchrun, "-m", *job.command]


def job_name(job: Job) -> str:
    """Return the name of a job, which is also its app's: one per run directory, as two must not write the same run."""
    run = run_directory(job.command)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", run)[:40].strip("-")
    return f"train-{readable}-{hashlib.sha256(f'{job.volume}:{run}'.encode()).hexdigest()[:8]}"


def run_directory(command: tuple[str, ...]) -> str:
    """Return the path that a command gives after --out, "" without."""
    for place, part in enumerate(command):
        if part.startswith("--out="):
            return str(PurePosixPath(part.removeprefix("--out=")))
        if part == "--out" and place + 1 < len(command):
            return str(PurePosixPath(command[place + 1]))
    return ""


class Ledger:
    """Counts what all attempts of a job have cost, on whatever machines, in a file of the volume."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path = path
        self.job = job
        self.began = time.monotonic()
        self.before: dict[str, float] = {"attempts": 0, "dollars": 0.0}
        with suppress(FileNotFoundError):
            self.before = json.loads(path.read_bytes())

    def begin(self, *, write: bool) -> int:
        """Return which attempt this is."""
        self.before["attempts"] += 1
        self.add(write=write)
        return int(self.before["attempts"])

    def dollars(self) -> float:
        return self.before["dollars"] + (time.monotonic() - self.began) / 3600 * self.job.dollars_per_hour

    def add(self, *, write: bool) -> None:
        """Store the dollars so far; only one node does."""
        if write:
            with write_atomically(self.path) as file:
                file.write(json.dumps({**self.before, "dollars": self.dollars()}).encode())

    def used_up(self) -> bool:
        """Return whether the budget is spent."""
        return bool(self.job.budget) and self.dollars() >= self.job.budget


class Trainer:
    """A trainer's processes, whose output is passed on as it comes."""

    def __init__(self, command: list[str]) -> None:
        # Started from where the project is, its modules are found in the volume's folder too.
        home = str(Path(__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])}
        VOLUME.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            command, cwd=VOLUME, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._tail = b""
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            while piece := os.read(stream.fileno(), 65536):  # progress bars have no ends of lines to wait for
                self._tail = (self._tail + piece)[-TAIL:]
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()

    def tail(self) -> str:
        """Return the last that it has said."""
        self._reader.join(5)
        return self._tail.decode("utf-8", "replace")

    def wait(self, seconds: float) -> bool:
        """Wait so long at most; return whether it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is not None

    def stop(self) -> None:
        """Have it save and end; make it end if it does not."""
        for number in (signal.SIGTERM, signal.SIGKILL):  # the second also for children that outlive the first
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            self.wait(GOODBYE)
