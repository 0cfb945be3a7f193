"""An endless supply of batches, prepared by other processes while the model computes, that resumes exactly.

PyTorch's `DataLoader` has the processes, the pinned memory and the prefetching. What it lacks is a
memory of where it stands: its workers read ahead, so they have read more than was used.
Here the order follows from the seed and the epoch's number alone, and only examples that were handed out count.
Two numbers then say where reading stands, however many workers there were before and will be after.
"""

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.files import InputError


def one_pass(dataset: Dataset, batch_size: int) -> DataLoader:
    """Return something that yields all examples in order, in batches of which the last may be smaller.

    Such a pass draws nothing from PyTorch's global generator, so an evaluation does not change the training around it.
    """
    return DataLoader(dataset, batch_size, generator=torch.Generator())


class ResumableLoader:
    """Hands out batches of a dataset, epoch after epoch; each visits every example once, in an order of its own.

    A batch may begin in one epoch and end in the next, so that all have the same size. Workers start with
    the first batch; they end with `close()`, or when nothing refers to the loader any more.

    Args:
        dataset: has a length, and an example for each index, which must depend on the index only. PyTorch's
            `default_collate` stacks the examples into batches.
        batch_size: examples per batch; may exceed the dataset's length.
        seed: decides the order.
        workers: processes that prepare batches ahead; with 0, `next()` does the work itself. Sending a batch
            takes a millisecond or two, so workers pay where making it takes longer: token shards do not need them.
        prefetch: batches that each worker prepares ahead.
        device: where the batches will go. For CUDA they lie in pinned memory, from which
            `.to(device, non_blocking=True)` copies while the program runs on. They are not moved here.
        rank: which of `n_ranks` processes this is.
        n_ranks: processes that share every batch: each gets its part of the rows, and all parts together are the batch
            that one process would get. So what is read, and where reading stands, does not depend on their number.

    Raises:
        InputError: if the dataset is empty, a number is out of its range, or processes cannot share a batch evenly.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        workers: int = 0,
        prefetch: int = 2,
        device: torch.device | str = "cpu",
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        numbers = {"batch_size": (batch_size, 1), "seed": (seed, 0), "workers": (workers, 0), "prefetch": (prefetch, 1)}
        for name, (number, least) in numbers.items():
            if number < least:
                raise InputError(f"{name} must be at least {least}, got {number}")
        if not len(dataset):
            raise InputError("the dataset is empty: there is nothing to make batches of")
        if batch_size % n_ranks:
            raise InputError(f"{n_ranks} processes cannot share a batch of {batch_size} evenly: it must be a multiple")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.prefetch = prefetch
        self.device = torch.device(device)
        self.rows = slice(rank * batch_size // n_ranks, (rank + 1) * batch_size // n_ranks)  # this process's
        self.epoch = 0
        self.index = 0  # how many of this epoch's examples were handed out
        self._batches: Any = None  # PyTorch's iterator, from the first batch on

    def next(self) -> Any:
        """Return the next batch, or this process's part of it: what an example is, with a first dimension more.

        Raises:
            Exception: whatever the dataset raised, in a worker too. The next call tries the same batch again.
        """
        if self._batches is None:
            self._batches = self._start()
        try:
            batch = next(self._batches)
        except BaseException:
            self.close()
            raise
        self.index += self.batch_size
        while self.index > len(self.dataset):
            self.epoch, self.index = self.epoch + 1, self.index - len(self.dataset)
        return batch

    def close(self) -> None:
        """Stop the workers and forget what they read ahead. `next()` would start them again, at the same place."""
        batches, self._batches = self._batches, None
        if batches is not None and self.workers:
            # PyTorch does this when the last reference goes, but the traceback of a caught error may still hold one
            batches._shutdown_workers()

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its examples were handed out."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another loader of the same dataset and seed stood.

        Raises:
            InputError: if the dataset has fewer examples than were handed out.
        """
        if not 0 <= state["index"] <= len(self.dataset):
            raise InputError(
                f"{state['index']:,} examples of the epoch were read, but the dataset has {len(self.dataset):,}: "
                "the state belongs to another dataset"
            )
        self.close()
        self.epoch, self.index = state["epoch"], state["index"]

    def _start(self) -> Iterator[Any]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=_shuffled(len(self.dataset), self.batch_size, self.rows, self.seed, self.epoch, self.index),
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            # there is no second pass for them to persist for, but PyTorch then ends them when the program exits
            persistent_workers=self.workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_reader,
            # The loader draws a number; taken from the global generator, it would change the model's dropout.
            generator=torch.Generator(),
        )
        return iter(loader)


def _shuffled(length: int, batch_size: int, rows: slice, seed: int, epoch: int, index: int) -> Iterator[list[int]]:
    """Yield the indices of some rows of batch after batch, from place `index` in the order of `epoch` on."""

    def permutation() -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(length)

    order = permutation()[index:]
    while True:
        while len(order) < batch_size:
            epoch += 1
            order = np.concatenate([order, permutation()])
        yield order[:batch_size][rows].tolist()
        order = order[batch_size:]


def _leave_signals_to_the_reader(worker: int) -> None:
    """Leave the group of processes that receives Ctrl-C: the one that reads may want to finish its step first."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    else:  # Windows
        signal.signal(signal.SIGINT, signal.SIG_IGN)
