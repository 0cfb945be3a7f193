"""Before money is spent: what fits on a GPU, how long it takes, and which attention lets it serve the most.

    python -m gpt_model.plan --size gpt2-medium --gpu 24GB --context 1024

All of it is arithmetic on the formulas in `costs.py` and the data sheets in `devices.py`; nothing is measured.

- *Training*: the largest micro-batch whose step fits, how many of them reach the tokens of one optimizer step,
  and the time for a billion tokens if the share of the peak that is assumed is reached.
- *Serving*: a step that writes one token for each of n texts reads all weights and all caches once, and does the
  operations of n tokens. Whichever takes longer bounds the speed: a roofline (Williams, Waterman and Patterson
  2009, https://doi.org/10.1145/1498765.1498785).
"""

import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch

from gpt_model.config import GPTConfig, Tokens
from gpt_model.costs import (
    TrainingMemory,
    cache_bytes,
    decoding_bytes,
    forward_flops,
    n_parameters,
    training_flops,
    training_memory,
    variants,
    weight_bytes,
)
from gpt_model.devices import DEVICES, GB, Device, find_device
from utils.files import InputError
from utils.ranges import Count, Range, check_ranges

SERVING_DTYPE = torch.bfloat16  # weights and caches
LARGEST_GPU = 10**6  # GB; a larger number is a typing mistake
USABLE_SHARE = 0.9  # of a GPU's memory: the rest is for CUDA itself, and for gaps between what is in use
NEARLY_HIGHEST = 0.9  # of the highest ceiling counts as no less


@dataclass(frozen=True)
class Config:
    """Say what fits on a GPU: the largest batch, the time a billion tokens take, the attention that serves most.

    This is arithmetic, not a measurement: it tells a plan that may work from one that cannot.
    """

    size: str = "gpt2-small"
    """Which model: gpt2-small, gpt2-medium, gpt2-large, gpt2-xl, demo or tiny."""
    gpu: str = "24GB"
    """Its name: a100, "a100 40gb", h100, "h100 pcie", h200, l40, l40s, rtx4090. Or its memory alone, as in 24GB; then
    it is taken to be as fast as the GPU among these that is nearest in memory."""
    context: Tokens = 1024
    """Tokens per row in training, and per text that is served."""
    tokens_per_step: Annotated[int, Range(1, 10**12)] = 524_288
    """Tokens per optimizer step: by default 512 rows of 1,024, as GPT-2's training had."""
    utilisation: Annotated[float, Range(0.001, 1)] = 0.4
    """Share of the GPU's peak that training is assumed to reach: about 0.25 in a plain loop, 0.4 in a good one."""
    optimizer: Literal["adamw", "muon", "galore"] = "adamw"
    """AdamW for everything; or Muon or GaLore, at a quarter of the width, for the matrices of the blocks."""
    sequences: Count | None = None
    """Texts served at once; by default as many as fit."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Serving:
    """A kind of attention on this GPU."""

    name: str
    cache: int
    """Bytes of one text of the whole context."""
    fits: int
    """Texts for which there is room beside the weights: for the cache, and for the scores of the next token."""
    sequences: int
    """Texts that the ceiling is for; 0 if there is no room for them."""
    ceiling: float
    """Tokens per second of all these texts together, at most."""
    bound: str
    """What takes longer: "bytes" or "operations"."""


@dataclass(frozen=True)
class Plan:
    """What a GPU can do with a model."""

    model: GPTConfig
    """With `checkpoint_activations`, if a single row fits only that way."""
    device: Device
    micro_batch: int
    """Rows that fit at once; 0 if there is no room for one."""
    accumulation: int
    """Micro-batches that reach the tokens of a step."""
    memory: TrainingMemory
    """Of a step of one micro-batch; of one row if there is no room for it."""
    tokens_per_second: float
    """In training, as assumed."""
    serving: list[Serving]
    favoured: Serving | None
    """The one that remembers most of those with nearly the highest ceiling: a smaller cache costs quality."""
    favoured_groups: Serving | None
    """The same among group counts: GQA, and MHA with a group for each head."""
    assumptions: list[str]

    @property
    def hours_per_billion_tokens(self) -> float:
        """Of training, if it fits."""
        return 1e9 / self.tokens_per_second / 3600


def plan(config: Config) -> Plan:
    """Work out what a GPU can do with a model.

    Raises:
        InputError: if the size or the GPU is not known.
    """
    model = GPTConfig.preset(config.size)
    assumptions = []
    if config.context > model.context_length:
        assumptions.append(f"a table of {config.context:,} positions; {config.size} has {model.context_length:,}")
        model = replace(model, context_length=config.context)
    device, assumed = _device(config.gpu)
    rows = -(-config.tokens_per_step // config.context)
    micro_batch = _largest_batch(model, config, device, rows)
    lean = replace(model, checkpoint_activations=True)
    if not micro_batch and (with_less := _largest_batch(lean, config, device, rows)):
        model = lean
        micro_batch = with_less
        assumptions.append("each block is computed again in the backward pass, so that a row fits")
    flops_per_token = training_flops(model, 1, config.context) / config.context
    serving = [
        _serving(name, kind, config, device)
        for name, kind in variants(model).items()
        if kind.attention != "swa" or kind.window_size < config.context  # else the window hides nothing
    ]
    return Plan(
        model=model,
        device=device,
        micro_batch=micro_batch,
        accumulation=-(-rows // micro_batch) if micro_batch else 0,
        memory=training_memory(model, micro_batch or 1, config.context, optimizer=config.optimizer),
        tokens_per_second=config.utilisation * device.flops_per_second / flops_per_token,
        serving=serving,
        favoured=_favoured(serving),
        favoured_groups=_favoured([one for one in serving if one.name.startswith(("MHA", "GQA"))]),
        assumptions=[
            *assumed,
            *assumptions,
            f"{USABLE_SHARE:.0%} of the memory can be used: {_gib(USABLE_SHARE * device.memory)}",
            f"training, in bfloat16 autocast, reaches {config.utilisation:.0%} of the peak",
            "serving, in bfloat16, is as fast as the data sheet",
        ],
    )


def _device(gpu: str) -> tuple[Device, list[str]]:
    """Return the GPU, and what is assumed about it."""
    known = list(DEVICES.values())
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?Gi?B", gpu.strip(), re.IGNORECASE)
    if size and 0 < float(size[1]) <= LARGEST_GPU:
        memory = float(size[1]) * GB
        nearest = min(known, key=lambda device: (abs(device.memory - memory), device.flops_per_second))
        return replace(nearest, name=gpu, memory=memory), [f"speeds are those of the {nearest.name}"]
    try:
        return find_device(gpu), []
    except InputError:
        names = ", ".join(device.name for device in known)
        raise InputError(f"--gpu must be a memory, as in 24GB, or one of {names}; got {gpu!r}") from None


def _largest_batch(model: GPTConfig, config: Config, device: Device, most: int) -> int:
    """Return how many rows fit, up to those of a step."""
    one, two = (training_memory(model, n, config.context, optimizer=config.optimizer).total for n in (1, 2))
    a_row = two - one
    return max(0, min(most, int((USABLE_SHARE * device.memory - (one - a_row)) // a_row)))


def _serving(name: str, model: GPTConfig, config: Config, device: Device) -> Serving:
    cache = cache_bytes(model, 1, config.context, SERVING_DTYPE)
    logits = model.padded_vocab_size * SERVING_DTYPE.itemsize
    fits = max(0, int((USABLE_SHARE * device.memory - weight_bytes(model, SERVING_DTYPE)) // (cache + logits)))
    sequences = fits if config.sequences is None else config.sequences
    if not 0 < sequences <= fits:
        return Serving(name, cache, fits, sequences=0, ceiling=0.0, bound="")
    flops = sequences * forward_flops(model, 1, 1, cached=config.context - 1)
    seconds = {
        "bytes": decoding_bytes(model, sequences, config.context, SERVING_DTYPE) / device.bytes_per_second,
        "operations": flops / device.flops_per_second,
    }
    bound = max(seconds, key=seconds.__getitem__)
    return Serving(name, cache, fits, sequences, sequences / seconds[bound], bound)


def _favoured(serving: list[Serving]) -> Serving | None:
    highest = max(one.ceiling for one in serving)
    fast = [one for one in serving if one.sequences and one.ceiling >= NEARLY_HIGHEST * highest]
    return max(fast, key=lambda one: one.cache, default=None)


# -- shown -------------------------------------------------------------------------------------------------


def report(config: Config, made: Plan) -> str:
    """Return the plan as a text."""
    device = made.device
    peaks = f"{device.flops_per_second / 1e12:,.0f} TFLOP/s, {device.bytes_per_second / 1e9:,.0f} GB/s"
    lines = [
        f"{config.size}, {n_parameters(made.model):,} parameters, on {device.name} ({peaks}).",
        "Arithmetic, not a measurement. It assumes that",
        *(f"- {assumption}" for assumption in made.assumptions),
        "",
        *_training_lines(config, made),
        "",
        f"Serving texts of {config.context:,} {'token' if config.context == 1 else 'tokens'}:",
        f"  {'':<14}{'cache of a text':>17}{'texts that fit':>16}{'at once':>10}{'tokens/s at most':>18}  bound by",
    ]
    for one in made.serving:
        line = f"  {one.name:<14}{one.cache / 2**20:>13,.2f} MiB{one.fits:>16,}"
        ceiling = f" {one.sequences:>9,}{one.ceiling:>18,.0f}  {one.bound}" if one.sequences else f" {'no room':>9}"
        lines.append(line + ceiling)
    return "\n".join([*lines, "", *_favoured_lines(made)])


def _favoured_lines(made: Plan) -> list[str]:
    if made.favoured is None:
        return ["There is no room for that with any kind of attention."]
    groups = f"; among group counts, {made.favoured_groups.name}" if made.favoured_groups else ""
    return [
        f"This GPU favours {made.favoured.name}{groups}.",
        f"The rule: of all within {1 - NEARLY_HIGHEST:.0%} of the highest ceiling, the one that remembers most,",
        "since a smaller cache costs quality.",
    ]


def _training_lines(config: Config, made: Plan) -> list[str]:
    rows = made.micro_batch or 1
    lines = [f"Training with {config.optimizer}, a micro-batch of {rows:,} x {config.context:,} tokens:"]
    memory = {**vars(made.memory), "together": made.memory.total}
    lines += [f"  {name.replace('_', ' '):<16}{_gib(nbytes):>10}" for name, nbytes in memory.items()]
    if not made.micro_batch:
        return [*lines, "That does not fit, not even with each block computed again in the backward pass."]
    tokens = made.micro_batch * made.accumulation * config.context
    fits = f"The largest that fits; {made.accumulation:,} of them are a step of {tokens:,} tokens."
    if made.accumulation == 1:
        fits = f"A whole step of {tokens:,} tokens fits at once."
    hours = (
        f"{made.hours_per_billion_tokens:,.1f} hours for a billion tokens, at {made.tokens_per_second:,.0f} per second"
    )
    return [*lines, fits, f"{hours}."]


def _gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:,.2f} GiB"


def main(config: Config) -> None:
    """Print the plan."""
    print(report(config, plan(config)))


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
