"""A fine-tuning run: from a model that is there to a run directory with another, on the parts of `pretraining.engine`.

A script loads its base (`load_base`), makes its examples, and hands both with its objective to `fine_tune`, which
writes a run directory like pretraining's: everything that reads those reads these. Two files are new:

best.safetensors       the weights that had the lowest validation loss, which are the result once the run is over
adapter.safetensors    with LoRA, the change alone; model.safetensors has it merged
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn
from torch.optim import Optimizer

from finetuning.config import FineTuning
from finetuning.lora import add_lora, merge, save_adapter
from gpt_model import GPT, GPTConfig
from gpt_model.run_directory import check_tokenizer, identity, load, load_tokenizer, read_config
from pretraining.checkpoint import WEIGHTS, list_checkpoints
from pretraining.data_folder import TOKENIZER
from pretraining.engine import Engine, Objective, Settings, World, fit, warmup_cosine
from pretraining.engine.callbacks import Callback, EarlyStopping
from pretraining.engine.fit import Batches, Plan
from pretraining.engine.objective import Batch
from pretraining.metrics import draw_loss
from pretraining.open_run import (
    CONFIG,
    RUN_FILES,
    check_deletable,
    delete_run,
    forget_unfinished,
    is_empty,
    store_config,
)
from pretraining.optimizers import BETAS
from utils.files import InputError, sha256, write_atomically
from utils.hardware import bfloat16_pays, keep_freed_memory
from utils.tracking import open_trackers
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)

BEST, ADAPTER = "best.safetensors", "adapter.safetensors"
REFERENCE = "reference.safetensors"  # what DPO remembers of the model it began with
REPORTS = (
    "report.json", "report.md", "report.html", "predictions.csv", "reliability.svg", "preferences.svg",
)  # fmt: skip
TUNED_RUN_FILES = (*RUN_FILES, BEST, ADAPTER, REFERENCE, *REPORTS)


@dataclass(frozen=True)
class Base:
    """What a run begins with, or goes on with."""

    model: GPT
    tokenizer: Tokenizer
    config: dict[str, Any]
    """The content of the base's config.json; empty for a GPT-2."""
    is_new: bool
    """Whether the run directory is still to be made; else the model's weights may be anything, and `fit` loads those of
    the run's checkpoint, if there is one."""


def goes_on(config: FineTuning) -> bool:
    """Return whether the run directory is there, and is to be gone on with."""
    return not config.fresh and (config.out / CONFIG).exists()


def load_base(config: FineTuning, world: World) -> Base:
    """Return the model that a new run begins with, or one of the kind that the run in `out` has; nothing is written.

    Raises:
        InputError: if no model is named, or it cannot be read, or LoRA cannot change it as asked for; if `out` is taken
            by something else.
    """
    if world.from_main(lambda: goes_on(config)):
        stored = read_config(config.out)
        if not list_checkpoints(config.out):  # a process was killed before it wrote the first one
            return Base(*load(config.base, config.pretrained), stored, is_new=False)
        return Base(GPT(GPTConfig.from_dict(stored["model"])), load_tokenizer(config.out), stored, is_new=False)
    check_new(config)
    model, tokenizer = load(config.base, config.pretrained)
    if config.lora_rank is not None:
        with torch.device("meta"):  # what cannot be adapted is refused before anything is written
            add_lora(GPT(model.config), config.lora_layers, rank=config.lora_rank, alpha=config.lora_alpha)
    return Base(model, tokenizer, {} if config.base is None else read_config(config.base), is_new=True)


def check_new(config: FineTuning) -> None:
    """Check that a new run can be made in `out`; nothing is written.

    Raises:
        InputError: if it is taken by something else, or holds what `fresh` may not delete.
    """
    if config.fresh:
        check_deletable(config.out, TUNED_RUN_FILES)
        if config.base is not None and config.base.resolve() == config.out.resolve():
            raise InputError(f"--fresh would delete {config.base}, which the run begins with: choose another --out")
    elif config.out.exists() and not is_empty(config.out):
        raise InputError(f"{config.out} exists and is not a run directory: choose another --out")


def add_tokens(base: Base, tokens: Sequence[str]) -> Base:
    """Return a base whose vocabulary also has some special tokens; new embeddings begin as the mean of all others.

    A vector that is drawn at random would at first be unlike every vector that the model knows.
    """
    if not tokens:
        return base
    base.tokenizer.add_special_tokens(*tokens)
    old = base.model
    config = GPTConfig.from_dict({**asdict(old.config), "vocab_size": base.tokenizer.vocab_size})
    model = GPT(config)
    weights = old.state_dict()
    name, n_old = "token_embedding.weight", old.config.vocab_size
    embedding = torch.zeros_like(model.token_embedding.weight)
    embedding[:n_old] = weights[name][:n_old]
    embedding[n_old : config.vocab_size] = weights[name][:n_old].mean(dim=0)
    model.load_state_dict({**weights, name: embedding})
    return Base(model.eval(), base.tokenizer, base.config, base.is_new)


def open_run(config: FineTuning, base: Base, facts: dict[str, Any], **top: Any) -> None:
    """Make the run directory, or check that the one there is this run.

    Args:
        config: what the user asked for.
        base: what it begins with, with all its tokens.
        facts: what else decides the run, such as a checksum of its data; compared like a setting.
        top: other keys of config.json, such as the name of a template.

    Raises:
        InputError: if the directory holds another run.
    """
    check_tokenizer(base.model.config, base.tokenizer, config.out)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    del settings["fresh"]
    wanted = json.loads(json.dumps({**facts, **settings}))
    if base.is_new:
        if config.fresh:
            delete_run(config.out, TUNED_RUN_FILES)
        content = {"model": asdict(base.model.config), "training": {**wanted, "trainer": type(config).__name__}}
        store_config(config.out, {**content, "tokenizer": identity(base.tokenizer), **top})
        base.tokenizer.save(config.out / TOKENIZER)
        return
    there = {**base.config["training"], **{name: base.config.get(name) for name in top}}
    for name, value in {**wanted, **top}.items():
        if name not in config.not_the_run and there.get(name) != value:
            raise InputError(
                f"{config.out} holds a run with {name} {there.get(name)}, not {value}: choose another --out, or give "
                "--fresh to delete it and start over"
            )
    forget_unfinished(config.out)
    if not (config.out / TOKENIZER).exists():
        base.tokenizer.save(config.out / TOKENIZER)


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> list[Optimizer]:
    """Return AdamW for all parameters that are learned; weight decay pulls matrices only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=BETAS, fused=True)]


def steps_of(config: FineTuning, n_examples: int) -> int:
    """Return the number of steps in which each example is learned from `epochs` times."""
    return max(1, math.ceil(n_examples * config.epochs / config.batch_size))


class KeepBest(Callback):
    """Write the weights to a file whenever the validation loss is lower than ever."""

    def __init__(self, run: Path) -> None:
        self.path = run / BEST
        self.best = math.inf

    def after_evaluation(self, engine: Engine, measures: dict[str, float]) -> None:
        """Compare, and write."""
        if measures["val_loss"] >= self.best:
            return
        self.best = measures["val_loss"]
        weights = engine.way.whole(engine.model.state_dict())
        engine.world.from_main(lambda: save_weights(self.path, weights))

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest loss."""
        return {"best": self.best}


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    with write_atomically(path) as file:
        file.write(safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}))


def fine_tune(
    config: FineTuning,
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    validation: Callable[[], Iterable[Batch]],
    steps: int,
    world: World,
    *,
    make_optimizers: Callable[[nn.Module], list[Optimizer]] | None = None,
    callbacks: Sequence[Callback] = (),
) -> bool:
    """Train a model into the run directory that `open_run` made; return False if it was stopped before its end.

    At the end, `model` and model.safetensors hold the weights that had the lowest validation loss, LoRA merged.

    Args:
        config: how.
        model: what, on any device. With `lora_rank`, its layers are changed here.
        objective: what is learned, from `batches`.
        batches: this process's part of them.
        validation: returns what it is evaluated on, anew each time.
        steps: how long.
        world: on which processes.
        make_optimizers: what moves it; by default `make_optimizer`.
        callbacks: what else looks on.
    """
    keep_freed_memory()
    torch.use_deterministic_algorithms(world.device.type == "cpu")
    torch.manual_seed(config.seed)
    if config.lora_rank is not None:
        add_lora(model, config.lora_layers, rank=config.lora_rank, alpha=config.lora_alpha)
    engine = _make_engine(config, model, objective, make_optimizers, world)
    torch.manual_seed(config.seed + world.rank)  # each process drops other activations
    schedule = warmup_cosine(steps, warmup=max(1, round(config.warmup * steps)), minimum=0.0)
    stopping = [] if config.early_stopping is None else [EarlyStopping(config.early_stopping)]
    watching = [KeepBest(config.out), *callbacks, *stopping]
    with ExitStack() as stack:
        trackers = open_trackers((), config.out, vars(config)) if world.is_main else []
        for tracker in trackers:
            stack.callback(tracker.close)
        finished = fit(
            engine, batches, validation, schedule, config.out, _plan(config, steps, world), watching, trackers
        )
    if finished:
        _take_best(config, model, world)
    if world.is_main:
        draw_loss(config.out)
        log.info("%s -> %s", "finished" if finished else "stopped; the same command resumes", config.out)
    return finished


def _plan(config: FineTuning, steps: int, world: World) -> Plan:
    rows = max(1, (config.micro_batch_size or config.batch_size) // world.size)
    return Plan(steps, min(config.eval_every, steps), config.checkpoint_every, rows, log_every=5)


def _make_engine(
    config: FineTuning,
    model: nn.Module,
    objective: Objective,
    make_optimizers: Callable[[nn.Module], list[Optimizer]] | None,
    world: World,
) -> Engine:
    parallel = "ddp" if world.size > 1 else "none"
    settings = Settings(precision=precision_of(config, world.device), parallel=parallel, clip=config.clip)

    def adamw(model: nn.Module) -> list[Optimizer]:
        return make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)

    return Engine(model.to(world.device).train(), objective, make_optimizers or adamw, settings, world)


def precision_of(config: FineTuning, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return what products are computed in on a device."""
    if config.precision == "auto":
        return "bfloat16" if bfloat16_pays(device) else "float32"
    return config.precision


def _take_best(config: FineTuning, model: nn.Module, world: World) -> None:
    """Take the best weights as the result, with LoRA merged."""
    model.load_state_dict(safetensors.torch.load_file(config.out / BEST))
    model.eval()
    if world.is_main and config.lora_rank is not None:
        save_adapter(model, config.out / ADAPTER)
    if config.lora_rank is not None:
        merge(model)
    if world.is_main:
        save_weights(config.out / WEIGHTS, model.state_dict())


def checksum(path: Path | None) -> str | None:
    """Return what a run remembers its data by."""
    return None if path is None else sha256(path)
