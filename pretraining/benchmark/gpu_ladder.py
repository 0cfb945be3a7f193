"""What makes a training step fast on a GPU, one rung at a time: GPT-2 small, compiled, in bfloat16, on random tokens.

The lowest rung is somebody else's: transformers' GPT-2 in a plain loop with PyTorch's fused AdamW. Between two looks at
the clock are several steps, and nobody waits for the GPU in between unless the rung does so itself. Each row is stored
as soon as it is measured: time on a GPU is short, and what cuts it off must not take the rows before with it.

No rung fetches the next batch ahead: it is half a megabyte, whose copy from pinned memory nobody waits for as it is.
"""

import functools
import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt_model import GPT, GPTConfig
from gpt_model.costs import mfu
from pretraining.engine import Engine, NextToken, Settings, World
from pretraining.optimizers import make_optimizers
from utils.peaks import synchronize

log = logging.getLogger(__name__)

WARM_UP_STEPS = 5  # compilation happens in the first one
ROUNDS = 3
STEPS_PER_ROUND = 10
RATES = {"lr": 6e-4, "matrix_lr": 6e-3, "weight_decay": 0.1, "bfloat16": True}

Step = Callable[[tuple[Tensor, Tensor]], Any]


@dataclass(frozen=True)
class Rung:
    """A way to train."""

    name: str
    make: Callable[[GPTConfig, torch.device, bool], Step]
    """Makes the function that takes a step, from the model's shape, the device, and whether to compile."""
    vocab_multiple: int = 64
    batch_scale: int = 1


def engine_step(
    config: GPTConfig, device: torch.device, compiled: bool, optimizer: str = "adamw", *, narrow: bool = False
) -> Step:
    """Return the step of our engine; if it is narrow, what one block hands to the next is bfloat16, not float32."""
    torch.manual_seed(0)
    model = GPT(config).to(device)
    if narrow:
        model.dropout.register_forward_hook(lambda module, inputs, embedded_BTC: embedded_BTC.bfloat16())
    settings = Settings(precision="bfloat16", compiled=compiled)
    engine = Engine(
        model, NextToken(), lambda model: make_optimizers(model, optimizer, **RATES), settings, World(device)
    )
    return lambda batch: engine.step([batch], 1.0)


def muon_step(config: GPTConfig, device: torch.device, compiled: bool) -> Step:
    """Return the step of our engine with Muon."""
    return engine_step(config, device, compiled, "muon")


def attention_step(backend: SDPBackend, config: GPTConfig, device: torch.device, compiled: bool) -> Step:
    """Return the step of our engine with one of PyTorch's attention kernels, whichever PyTorch itself would choose."""
    step = engine_step(replace(config, kernel="sdpa"), device, compiled)

    def step_with_backend(batch: tuple[Tensor, Tensor]) -> None:
        with sdpa_kernel(backend):
            step(batch)

    return step_with_backend


def logits_step(config: GPTConfig, device: torch.device, compiled: bool) -> Step:
    """Return the step of a plain loop over our model, whose compiled forward pass returns logits beside the loss."""
    torch.manual_seed(0)
    model = GPT(config).to(device)
    forward = torch.compile(model) if compiled else model
    return _plain_loop(model, lambda ids_BT, targets_BT: forward(ids_BT, targets_BT)[1], device)


def transformers_step(config: GPTConfig, device: torch.device, compiled: bool) -> Step:
    """Return the step of a plain loop over transformers' GPT-2 of the same shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_embd": config.d_model, "n_layer": config.n_layers, "n_head": config.n_heads}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    theirs = GPT2Config(
        vocab_size=config.padded_vocab_size, n_positions=config.context_length, use_cache=False, **shape, **no_dropout
    )
    model = GPT2LMHeadModel(theirs).to(device).train()
    forward = torch.compile(model) if compiled else model

    def loss(ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTV = forward(input_ids=ids_BT).logits
        return nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    return _plain_loop(model, loss, device)


def _plain_loop(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES["lr"], betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(batch: tuple[Tensor, Tensor]) -> None:
        ids_BT, targets_BT = (part.to(device, non_blocking=True) for part in batch)
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(ids_BT, targets_BT)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


RUNGS = (
    Rung("transformers, plain loop", transformers_step, vocab_multiple=1),
    Rung("engine, AdamW", engine_step),
    Rung("engine, Muon", muon_step),
    Rung("engine, AdamW, vocabulary of 50,257", engine_step, vocab_multiple=1),
    Rung("plain loop, compiled with logits", logits_step),
    Rung("engine, AdamW, twice the batch", engine_step, batch_scale=2),
    Rung("engine, AdamW, residual stream in bfloat16", functools.partial(engine_step, narrow=True)),
    Rung("engine, AdamW, attention by flash", functools.partial(attention_step, SDPBackend.FLASH_ATTENTION)),
    Rung("engine, AdamW, attention by cuDNN", functools.partial(attention_step, SDPBackend.CUDNN_ATTENTION)),
)


def climb(
    config: GPTConfig, batch_size: int, device: torch.device, peak: float, *, compiled: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield a row for each rung, as soon as it is measured; a rung that fails says why.

    Args:
        config: of the model; each rung sets the multiple of its vocabulary.
        batch_size: rows of a batch.
        device: where to train.
        peak: the most operations per second that it does.
        compiled: whether to compile.
    """
    for rung in RUNGS:
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        rows = batch_size * rung.batch_scale
        try:
            speeds = _measure(rung, config, rows, device, compiled)
        except Exception as error:  # the others are to be measured all the same
            log.warning("%s: %s", rung.name, error)
            yield {"rung": rung.name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        speed = statistics.median(speeds)
        log.info("%s: %.0f tokens per second", rung.name, speed)
        yield {
            "rung": rung.name,
            "batch_size": rows,
            "tokens_per_second": {"median": speed, "best": max(speeds), "worst": min(speeds)},
            "mfu": mfu(config, speed, peak),
            "memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        }


def _measure(rung: Rung, config: GPTConfig, rows: int, device: torch.device, compiled: bool) -> list[float]:
    """Return the tokens per second of each round."""
    step = rung.make(replace(config, vocab_multiple=rung.vocab_multiple), device, compiled)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (rows, config.context_length + 1), generator=generator)
    batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if device.type == "cuda":
        batch = batch[0].pin_memory(), batch[1].pin_memory()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP_STEPS):
        step(batch)
    speeds = []
    for _ in range(ROUNDS):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(STEPS_PER_ROUND):
            step(batch)
        synchronize(device)
        speeds.append(STEPS_PER_ROUND * rows * config.context_length / (time.perf_counter() - started))
    return speeds
