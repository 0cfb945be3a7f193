"""The processes of a run: who is here, and what they tell one another.

Nothing in a command says whether it is one process or many. `torchrun` starts the same command once per device and says
in each one's environment which it is; without `torchrun` there is one.

    python -m pretraining.advanced ...
    torchrun --standalone --nproc-per-node 8 -m pretraining.advanced ...
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from utils.files import InputError
from utils.hardware import pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One process among those of a run."""

    device: torch.device
    """What this process computes on."""
    rank: int = 0
    """Which process this is."""
    size: int = 1
    """How many there are."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes, to each of them; without others, the tensor itself."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, condition: bool) -> bool:
        """Return whether a condition holds in one process at least."""
        if self.size == 1:
            return condition
        return bool(self.sum(torch.tensor(int(condition))).item())  # on the CPU: a GPU is not waited for

    def all(self, value: T) -> list[T]:
        """Return what each process has, by rank, to all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return what each process has, by rank, to the main one; an empty list to the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def from_main(self, make: Callable[[], T]) -> T:
        """Return what the main process makes, to all. If it fails there, all end, and the main one says why.

        Raises:
            Exception: whatever was raised in the main process, there.
            SystemExit: in the others.
        """
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, False]  # what was made, and whether that went well
        failure: BaseException | None = None
        if self.is_main:
            try:
                outcome = [make(), True]
            except BaseException as error:  # the others wait for word, whatever happened
                failure = error
        dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if not outcome[1]:
            raise SystemExit(1)
        return outcome[0]


@contextmanager
def join_world(device: str = "auto", *, timeout: float = 600) -> Iterator[World]:
    """Meet the other processes that torchrun started, if it did; leave them in the end.

    Args:
        device: what each process computes on; with several GPUs, each takes the one of its place on its machine.
        timeout: seconds to wait for one another, now and at every exchange.

    Raises:
        InputError: if the device is not there, or the others do not come.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(pick_device(device))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    chosen = pick_device(device)
    if chosen.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: "
                "give torchrun a smaller --nproc-per-node"
            )
        chosen = torch.device("cuda", local_rank)  # never the rank among all machines
        torch.cuda.set_device(chosen)
    try:
        # what lies on the CPU goes through gloo, so that messages between programs do not wait for the GPU
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (dist.DistError, RuntimeError) as error:  # DistNetworkError, DistStoreError; of gloo a bare RuntimeError
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"the {size} processes did not meet at {address} within {timeout:g} s "
            f"({str(error).splitlines()[0]}): is each of them started, and is the port free?"
        ) from error
    try:
        world = World(chosen, int(os.environ["RANK"]), size)
        yield world
        world.barrier()  # one that leaves early would break connections that others are still making
    finally:
        dist.destroy_process_group()
