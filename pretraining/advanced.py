"""Pretrain a GPT on one device or many: the trainer for long runs.

    python -m pretraining.advanced --data my_data --out runs/mine
    torchrun --standalone --nproc-per-node 8 -m pretraining.advanced gpt2-small --data my_data

It takes the steps that `simple.py` takes, loss for loss, out of parts that every task can use (`engine/`): this file
only puts them together. Read `simple.py` first.
"""

import logging
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gpt_model import GPT, GPTConfig
from gpt_model.costs import forward_flops
from gpt_model.devices import find_device
from pretraining.advanced_config import ADVANCED_PRESETS, AdvancedConfig
from pretraining.choices import check_disk, choose_before_data, choose_micro_batch, choose_parallel, passes
from pretraining.data_folder import TOKENIZER
from pretraining.engine import (
    Engine,
    NextToken,
    Schedule,
    Settings,
    World,
    fit,
    linear,
    warmup_cosine,
    warmup_stable_decay,
)
from pretraining.engine.callbacks import Callback, EarlyStopping, Machine, MovingAverage, Plateau, SpikeGuard, WallClock
from pretraining.engine.fit import Plan
from pretraining.hellaswag import HellaSwag, read_examples, spread
from pretraining.metrics import draw_loss
from pretraining.open_run import CONFIG, device_of, open_run, training_in
from pretraining.optimizers import make_optimizers
from utils.data_loading import ResumableLoader, one_pass
from utils.files import InputError
from utils.hardware import compiler_works, keep_freed_memory
from utils.monitoring import ResourceMonitor
from utils.tracking import open_trackers
from working_with_text_data.dataset import BlockDataset
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.train_tokenizer import END_OF_TEXT

log = logging.getLogger(__name__)

Data = dict[str, BlockDataset]


def main(config: AdvancedConfig) -> bool:
    """Train from the run's newest checkpoint, or its start. Return False if it was stopped before the last step.

    Raises:
        InputError: for data, settings or a run directory that cannot be used; if another process is training in it;
            if the processes do not find one another; for a gradient that is no longer a number; for a checkpoint that
            cannot be written.
    """
    with training_in(config.out, device_of(config), timeout=config.timeout) as world:
        config, model_config, data = _open(config, world)
        _set_up_torch(config, world)
        return train(config, model_config, data, world)


def _open(config: AdvancedConfig, world: World) -> tuple[AdvancedConfig, GPTConfig, Data]:
    """Make the run directory or check the one that is there, in the main process, and decide what is "auto"."""

    def open_in_main() -> tuple[AdvancedConfig, GPTConfig]:
        if config.hellaswag is not None:
            read_examples(config.hellaswag)  # what is wrong with it is said before anything is written
        chosen, model_config, data = open_run(choose_before_data(config, world), n_processes=world.size)
        if len(data["train"]) < world.size:
            raise InputError(
                f"{config.data} has {len(data['train'])} blocks of {config.context_length} tokens for "
                f"{world.size} processes: give more data, or fewer processes"
            )
        return choose_parallel(chosen, model_config, world), model_config

    chosen, model_config = world.from_main(open_in_main)
    if chosen.parallel == "fsdp":
        check_shared(chosen.out, world)
    data = {split: BlockDataset(config.data, split, config.context_length) for split in ("train", "val")}
    return chosen, model_config, data


def check_shared(run: Path, world: World) -> None:
    """Check that every process sees the run directory that the main one has opened.

    Raises:
        InputError: if one does not.
    """
    stored = world.from_main((run / CONFIG).read_bytes)
    is_there = (run / CONFIG).is_file() and (run / CONFIG).read_bytes() == stored
    blind = [rank for rank, sees in enumerate(world.all(is_there)) if not sees]

    def check() -> None:
        if blind:
            raise InputError(
                f"process {blind[0]} does not see {run} as the main one does, and under fsdp each writes its part of a "
                "checkpoint there: choose an --out on a disk that all machines share, or another --parallel"
            )

    world.from_main(check)


def _set_up_torch(config: AdvancedConfig, world: World) -> None:
    keep_freed_memory()
    # On a CPU this costs nothing and makes a run repeatable; fused GPU kernels would refuse to run.
    torch.use_deterministic_algorithms(world.device.type == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")


def train(config: AdvancedConfig, model_config: GPTConfig, data: Data, world: World) -> bool:
    """Put the parts together, and train.

    Args:
        config: with nothing "auto" in it but the micro-batch.
        model_config: of the model.
        data: "train" and "val".
        world: the processes.
    """
    check_disk(config, model_config)
    engine = make_engine(config, model_config, world)
    batches = ResumableLoader(
        data["train"], config.batch_size, config.seed, device=world.device, rank=world.rank, n_ranks=world.size
    )

    def random_batch(rows: int) -> tuple[Tensor, Tensor]:
        shape = rows, config.context_length + 1
        ids = torch.randint(model_config.vocab_size, shape, device=world.device, generator=None)
        return ids[:, :-1], ids[:, 1:]

    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        try_rows = passes(engine, engine.objective, random_batch)
        micro_batch_size = choose_micro_batch(config, model_config, world, try_rows)
    plan = Plan(config.steps, config.eval_every, config.checkpoint_every, micro_batch_size, config.snapshot_every)

    def validation() -> DataLoader:
        return validation_batches(data["val"], config.eval_blocks, micro_batch_size)

    if world.is_main:
        log.info(
            "%s: %s parameters, %s",
            config.out,
            f"{sum(p.numel() for p in engine.model.parameters()):,}",
            _how(config, world),
        )
    if not world.is_main:
        torch.manual_seed(config.seed + world.rank)  # each process drops other activations
    with ExitStack() as stack:
        monitor = stack.enter_context(ResourceMonitor(world.device))
        trackers = open_trackers(config.trackers, config.out, vars(config)) if world.is_main else []
        for tracker in trackers:
            stack.callback(tracker.close)
        callbacks = [*make_callbacks(config, engine, validation), watch_machine(monitor, model_config, world)]
        finished = fit(engine, batches, validation, make_schedule(config), config.out, plan, callbacks, trackers)
    if world.is_main:
        draw_loss(config.out)
        log.info("%s -> %s", "finished" if finished else "stopped; the same command resumes", config.out)
    return finished


def make_engine(config: AdvancedConfig, model_config: GPTConfig, world: World) -> Engine:
    """Return the engine of a run, with a new model whose weights are the same in every process."""
    torch.manual_seed(config.seed)
    model = GPT(model_config).to(world.device)
    end_of_text = _tokenizer(config).special_tokens.get(END_OF_TEXT) if config.documents else None
    if config.documents and end_of_text is None:
        raise InputError(f"the tokenizer of {config.data} has no {END_OF_TEXT}, so --documents cannot tell them apart")
    objective = NextToken(n_chunks=config.loss_chunks, end_of_text=end_of_text)

    def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
        return make_optimizers(model, **config.optimizer_settings)

    settings = Settings(
        precision="float32" if config.precision == "tf32" else config.precision,
        compiled=config.compile == "on" and compiler_works(world.device.type),
        parallel=config.parallel if world.size > 1 else "none",
        clip=config.clip,
    )
    return Engine(model, objective, optimizers, settings, world)


def _tokenizer(config: AdvancedConfig) -> Tokenizer:
    """Return the run's tokenizer, from beside the data: the run directory may be on the main process's machine only."""
    return Tokenizer.load(config.data / TOKENIZER)


def make_schedule(config: AdvancedConfig) -> Schedule:
    """Return the run's learning rate schedule."""
    warmup = max(1, round(config.warmup * config.steps))
    match config.schedule:
        case "cosine":
            return warmup_cosine(config.steps, warmup=warmup, minimum=config.min_lr)
        case "linear":
            return linear(config.steps, warmup=warmup, minimum=config.min_lr)
        case _:
            decay = round(config.decay * config.steps)
            return warmup_stable_decay(config.steps, warmup=warmup, decay=decay, minimum=config.min_lr)


def make_callbacks(config: AdvancedConfig, engine: Engine, validation: object) -> list[Callback]:
    """Return the callbacks that the settings ask for."""
    callbacks: list[Callback] = [SpikeGuard(config.spike_ratio, skip=config.skip_spikes)]
    if config.ema is not None:
        callbacks.append(MovingAverage(engine, validation, config.ema))
    if config.hellaswag is not None:
        examples = spread(read_examples(config.hellaswag), config.hellaswag_examples)
        callbacks.append(HellaSwag(examples, _tokenizer(config)))
    if config.plateau is not None:
        callbacks.append(Plateau(config.plateau))
    if config.early_stopping is not None:
        callbacks.append(EarlyStopping(config.early_stopping))
    if config.time_limit is not None:
        callbacks.append(WallClock(config.time_limit))
    return callbacks


def watch_machine(monitor: ResourceMonitor, model_config: GPTConfig, world: World) -> Machine:
    """Return the callback that logs how busy the machine is, and the MFU where the GPU's peak is known."""
    peak = None
    if world.device.type == "cuda":
        try:
            peak = world.size * find_device(torch.cuda.get_device_name(world.device)).flops_per_second
        except InputError as error:
            log.info("no MFU: %s", error)
    length = model_config.context_length
    return Machine(monitor, 3 * forward_flops(model_config, 1, length) / length, peak)


def validation_batches(data: BlockDataset, n_blocks: int, size: int) -> DataLoader:
    """Return batches of held-out blocks, spread evenly so that each document has a say."""
    chosen = np.linspace(0, len(data) - 1, min(n_blocks, len(data))).astype(int)
    return one_pass(Subset(data, chosen.tolist()), size)


def _how(config: AdvancedConfig, world: World) -> str:
    compiled = "compiled" if config.compile == "on" else "not compiled"
    together = f", {config.parallel} over {world.size} processes" if world.size > 1 else ""
    return f"{config.precision} on {world.device}, attention {config.kernel}, {compiled}{together}"


if __name__ == "__main__":
    from utils.command_line import run

    run(main, AdvancedConfig, ADVANCED_PRESETS)
