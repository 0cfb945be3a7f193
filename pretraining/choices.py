"""What the advanced trainer chooses by itself, and why: each choice can be made by a flag instead."""

import gc
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace

import torch

from gpt_model import GPTConfig
from gpt_model.costs import FLOAT32, TrainingMemory, parameters, training_memory
from gpt_model.run_directory import read_config
from pretraining.advanced_config import AdvancedConfig
from pretraining.engine import Engine, Objective, World
from pretraining.engine.objective import Batch
from pretraining.least_memory import share_of, total_memory
from pretraining.open_run import CONFIG
from utils.files import InputError
from utils.memory import available_memory, format_bytes, is_full

log = logging.getLogger(__name__)

GPU_VOCAB_MULTIPLE = 64  # the products of tensor cores are cut into pieces of this size
SHARE_OF_MEMORY = 0.9  # that a choice may plan to use: PyTorch and the device's driver need some, too


def choose_before_data(config: AdvancedConfig, world: World) -> AdvancedConfig:
    """Return the settings with the shape of the model decided, as it was in a run that is there.

    Raises:
        InputError: if processes cannot share a batch, or a precision is not for this device.
    """
    if config.batch_size % world.size:
        raise InputError(
            f"{world.size} processes cannot share a batch of {config.batch_size} sequences evenly: give a "
            f"--batch-size that is a multiple of {world.size}"
        )
    for precision, device in (("float16", "cuda"), ("tf32", "cuda")):
        if config.precision == precision and world.device.type != device:
            raise InputError(f"{precision} needs a GPU, not {world.device}: give --precision bfloat16 or float32")
    if config.vocab_multiple is not None:
        return config
    if not config.fresh and (config.out / CONFIG).exists():
        return replace(config, vocab_multiple=read_config(config.out)["model"].get("vocab_multiple", 1))
    return replace(config, vocab_multiple=GPU_VOCAB_MULTIPLE if world.device.type == "cuda" else 1)


def choose_parallel(config: AdvancedConfig, model_config: GPTConfig, world: World) -> AdvancedConfig:
    """Return the settings with the way in which processes share the work decided."""
    if world.size == 1 or config.parallel != "auto":
        return config
    needed = _memory(config, model_config, rows=1).total
    there = SHARE_OF_MEMORY * total_memory(world.device)
    parallel = "ddp" if needed < there else config.most_shared
    if world.is_main:
        log.info(
            "parallel %s: a step of one row needs %s, a device has %s",
            parallel, format_bytes(needed), format_bytes(there),
        )  # fmt: skip
    return replace(config, parallel=parallel)


def choose_micro_batch(
    config: AdvancedConfig, model_config: GPTConfig, world: World, try_rows: Callable[[int], None]
) -> int:
    """Return how many sequences go through the model at once: what was asked for, or the most that memory holds.

    On a GPU sizes are tried out, the largest first. A formula tells on a CPU, since a program that takes too much of a
    computer's memory is killed, and under FSDP, where no process can run out of memory without the others: a pass takes
    all of them.

    Args:
        config: of the run.
        model_config: of the model.
        world: the processes; all take what the one with the least memory can hold.
        try_rows: takes a forward and a backward pass with as many sequences.
    """
    share = config.batch_size // world.size
    if config.micro_batch_size is not None:
        return min(share, config.micro_batch_size)
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    sharded = world.size > 1 and config.parallel == "fsdp"
    if world.device.type == "cuda" and not sharded:
        fits = min(world.all(next((size for size in sizes if _fits(try_rows, size)), 1)))
        reason = "the most that the GPU held when tried"
    else:
        there = SHARE_OF_MEMORY * min(world.all(_free_memory(world)))
        fits = next((size for size in sizes if _memory_of_one(config, model_config, size, world.size) < there), 1)
        reason = f"by formula the most that fits into the {format_bytes(there)} that each has"
    if world.is_main and fits < share:
        log.info("micro-batches of %s of the %s sequences of each process: %s", fits, share, reason)
    return fits


def _free_memory(world: World) -> float:
    """Return how many bytes there are for this process's training step."""
    if world.device.type == "cuda":  # what PyTorch has reserved already is for the step
        return torch.cuda.mem_get_info(world.device)[0] + torch.cuda.memory_reserved(world.device)
    return available_memory() / world.size  # processes of one machine share its memory


def _memory_of_one(config: AdvancedConfig, model_config: GPTConfig, rows: int, n_processes: int) -> int:
    """Return the memory in bytes that each process needs for a step with micro-batches of some rows."""
    whole = _memory(config, model_config, rows)
    needed = share_of(whole, config.parallel, n_processes).total
    if n_processes > 1 and config.parallel == "fsdp":
        # What is outside the blocks is whole from forward to backward, and two blocks are at a time: the one that
        # computes, and the next. So are their gradients.
        numbers = parameters(model_config)
        blocks = numbers["attention"] + numbers["feed-forward"]
        needed += 2 * FLOAT32 * (sum(numbers.values()) - blocks + 2 * blocks // model_config.n_layers)
        if rows < config.batch_size // n_processes:  # gradients stay whole until the last pass exchanges them
            needed += whole.gradients
    return needed


def _fits(try_rows: Callable[[int], None], size: int) -> bool:
    """Return whether a pass with as many sequences finds enough memory."""
    try:
        try_rows(size)
    except RuntimeError as error:
        if not is_full(error):
            raise
        return False
    finally:  # what the failed attempt held on to must go before the next one
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def passes(engine: Engine, objective: Objective, make_batch: Callable[[int], Batch]) -> Callable[[int], None]:
    """Return a function that takes a forward and backward pass with some number of sequences, and leaves no gradient.

    What the optimizer is going to remember is held meanwhile, since it comes with the first step only. The pass is not
    compiled. Where the run is, its steps need less: each size would take a compilation of its own here, and PyTorch
    makes code for any size out of several, which may be slower than code for one.
    """

    def try_rows(rows: int) -> None:
        parameters = [parameter for parameter in engine.model.parameters() if parameter.requires_grad]
        remembered = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
        try:
            with engine.autocast():
                loss = objective.loss_sum(engine.model, make_batch(rows))
            loss.backward()
        finally:
            del remembered
            engine.way.forget_gradients(engine.model)  # under ZeRO-1 they must stay where they are

    return try_rows


def check_disk(config: AdvancedConfig, model_config: GPTConfig) -> None:
    """Check that the disk has room for one checkpoint, before hours are spent on what cannot be saved.

    Raises:
        InputError: if it has not.
    """
    memory = _memory(config, model_config, rows=1)
    needed = memory.weights + memory.optimizer
    existing = next(folder for folder in (config.out, *config.out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"a checkpoint needs some {format_bytes(needed)}, and the disk of {config.out} has {format_bytes(free)} "
            "left: make room, or choose another --out"
        )


def _memory(config: AdvancedConfig, model_config: GPTConfig, rows: int) -> TrainingMemory:
    autocast = config.precision in ("bfloat16", "float16")
    return training_memory(
        model_config,
        rows,
        config.context_length,
        autocast=autocast,
        optimizer=config.optimizer,
        rank=config.galore_rank,
    )
