"""Whether a training fits into this machine at all, said before it is built rather than by a crash.

Only what cannot work is refused: what a step needs at the very least is compared with all the memory there is.
"""

import os
from dataclasses import replace
from pathlib import Path

import torch

from gpt_model import GPTConfig
from gpt_model.costs import TrainingMemory, training_memory
from pretraining.config import Config
from utils.files import InputError
from utils.memory import format_bytes

ID_BYTES = 8
# What each of several processes keeps a share of; the table in README.md says the same.
IN_SHARES = {"zero1": ("optimizer",), "fsdp": ("weights", "gradients", "optimizer")}


def check_memory(config: Config, model_config: GPTConfig, device: torch.device, n_processes: int = 1) -> None:
    """Check that the device could hold one training step, or one process's part of it.

    Raises:
        InputError: if it could not; the message says which settings make it large.
    """
    needed, there = least_memory(config, model_config, n_processes), total_memory(device)
    if needed > there:
        raise InputError(
            f"a training step would need {format_bytes(needed)} at least, and {device} has {format_bytes(there)}: "
            "choose a smaller --d-model, --n-layers, --context-length, --batch-size or --micro-batch-size"
        )


def least_memory(config: Config, model_config: GPTConfig, n_processes: int = 1) -> int:
    """Return the bytes that a training step cannot do without in each of its processes.

    The weights, what the optimizer keeps and the gradients are certain, or a share of them. Of the activations a
    compiler may save a part, so only half of them count, and none of the logits and of autocast's copies.
    """
    rows, length = config.rows_at_once, config.context_length
    optimizer = {"optimizer": config.optimizer, "rank": config.galore_rank}
    both = [training_memory(model_config, rows, length, autocast=autocast, **optimizer) for autocast in (True, False)]
    mine = share_of(both[0], config.most_shared, n_processes)
    certain = mine.weights + mine.gradients + mine.optimizer
    activations = min(memory.activations for memory in both) // 2
    ids = 2 * ID_BYTES * config.batch_size // n_processes * length  # the batch: tokens and their targets
    return certain + activations + ids


def share_of(memory: TrainingMemory, parallel: str, n_processes: int) -> TrainingMemory:
    """Return what each of several processes keeps of a step's memory."""
    parts = {name: getattr(memory, name) // n_processes for name in IN_SHARES.get(parallel, ())}
    return replace(memory, **parts)


def total_memory(device: torch.device) -> float:
    """Return how many bytes of memory a device has; infinity where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _swap()


def _swap() -> int:
    """Return the bytes of disk that Linux uses when memory is full."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapTotal")), 0)
