"""What happens to a training run when it gets more GPUs: up to 1,000, by arithmetic.

    python -m deployment.launch.scale --size 7b --tokens-per-step 4194304

For each number of GPUs, the same optimizer step is cut into more pieces. Each GPU computes less, while the gradients
that all must agree on stay as large as they were, so from some number on GPUs wait for one another.

- *Computing*: the operations of `gpt_model.costs`, at the share of the peak that GPT-2 small reached on an H100.
- *Communication*: gradients are all-reduced in float32 (DDP, ZeRO-1), or weights gathered twice in bfloat16 and
  gradients reduced and scattered (FSDP). A ring moves 2 S bytes over each machine's border for S bytes that are
  all-reduced, S for a gather or a scatter, and machines have 8 network cards of 50 GB/s together
  (Patarasuk and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002). What fits beside the backward pass is hidden.
- *Memory*: float32 weights and gradients, AdamW's two numbers, and what one row of tokens leaves behind.
- *Checkpoints*: every 50,000 GPU-hours something breaks, as it did 419 times in 54 days on 16,384 GPUs (Llama Team
  2024, https://arxiv.org/abs/2407.21783, section 3.3.4). Checkpoints that take d seconds are best written every
  sqrt(2 d M) seconds, if something breaks every M (Young 1974, https://doi.org/10.1145/361147.361115). With FSDP each
  machine writes its part; with DDP and ZeRO-1 one process writes all of it.

Left out: the time that a small message takes whatever its size, GPUs that are slower than others, reading the data. No
run of this size has been made here: this tells a plan that may work from one that cannot.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from deployment.costs import dollars_per_hour, parse_gpus
from gpt_model.config import GPTConfig
from gpt_model.costs import activation_bytes, n_parameters, training_flops
from gpt_model.devices import find_device
from utils.measuring import markdown_table
from utils.ranges import Range, check_ranges

GPUS = (8, 64, 256, 1000)
PER_HOST = 8
HOST_BYTES_PER_SECOND = 8 * 50e9  # eight network cards of 400 Gbit/s, as machines with 8 H100 have
NVLINK_BYTES_PER_SECOND = 450e9  # of an H100, in one direction, within its machine
BACKWARD_SHARE = 2 / 3  # of computing, beside which communication can be hidden
STORAGE_BYTES_PER_SECOND = 2e9  # that one machine writes to shared storage
GPU_HOURS_PER_FAILURE = 16_384 * 54 * 24 / 419
USABLE_SHARE = 0.9
MEASURED = Path(__file__).parent.parent.parent / "pretraining" / "results" / "gpu.json"
SEVEN_B = GPTConfig(
    vocab_size=50_257, context_length=2048, d_model=4096, n_layers=32, n_heads=32, position="rope",
    checkpoint_activations=True,
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Show how a training run scales from 8 to 1,000 GPUs of a kind."""

    size: Literal["gpt2-xl", "7b"] = "gpt2-xl"
    """Which model; 7b is as wide and deep as the usual models of that size."""
    tokens_per_step: Annotated[int, Range(1, 10**9)] = 524_288
    """Tokens of an optimizer step. The usual 4 million of 7B models are 4,194,304."""
    tokens: Annotated[float, Range(1, 1e15)] = 100e9
    """Tokens to train on."""
    gpu: Literal["A100-80GB", "H100", "H200"] = "H100"
    """Its kind; there are 8 per machine."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Plan:
    """One way to spread a run."""

    gpus: int
    parallel: str
    """ddp, zero1 or fsdp: the first of them that fits."""
    rows: float
    """Rows of tokens per GPU and step. Rows are whole: with 4.1 some GPUs compute 5, and the others wait."""
    memory: float
    """Bytes on each GPU."""
    compute: float
    """Seconds of a step."""
    communication: float
    """Seconds of a step, hidden or not."""
    step: float
    """Seconds of a step in all."""
    hours: float
    """For all tokens, without failures."""
    dollars: float
    checkpoint: float
    """Seconds to write one."""
    every: float
    """Minutes between two of them that lose the least."""

    @property
    def efficiency(self) -> float:
        """Return the share of the time in which GPUs compute what they should."""
        return self.rows / math.ceil(self.rows) * self.compute / self.step


def model_of(size: str) -> GPTConfig:
    """Return a model to plan for; blocks are computed anew in the backward pass, as large models have to."""
    return SEVEN_B if size == "7b" else replace(GPTConfig.preset(size), checkpoint_activations=True)


def utilisation() -> float:
    """Return the share of the peak that was measured: GPT-2 small on an H100."""
    return json.loads(MEASURED.read_bytes())["rows"][0]["mfu"]


def state_bytes(parameters: int, gpus: int, parallel: str) -> float:
    """Return the bytes of weights, gradients and AdamW's state that a GPU holds."""
    weights, gradients, optimizer = 4 * parameters, 4 * parameters, 8 * parameters
    match parallel:
        case "ddp":
            return weights + gradients + optimizer
        case "zero1":
            return weights + gradients + optimizer / gpus
        case _:
            return (weights + gradients + optimizer) / gpus


def communication_seconds(parameters: int, gpus: int, parallel: str) -> float:
    """Return how long a step's collectives take, one after the other.

    Within a machine NVLink moves them, between machines the network cards; the slower of the two counts.
    """
    # bytes that cross a border, as multiples of the parameters: float32 gradients there and back; or bfloat16 weights
    # twice and float32 gradients once
    crossing = (8 if parallel != "fsdp" else 2 * 2 + 4) * parameters * (gpus - 1) / gpus
    seconds = crossing / NVLINK_BYTES_PER_SECOND
    return seconds if gpus <= PER_HOST else max(seconds, crossing / HOST_BYTES_PER_SECOND)


def plan(config: Config, gpus: int) -> Plan:
    """Return what a step, the run, and its checkpoints take on so many GPUs."""
    model, device = model_of(config.size), find_device(config.gpu.removesuffix("-80GB"))
    parameters, length = n_parameters(model), model.context_length
    rows = config.tokens_per_step / length / gpus
    left = activation_bytes(model, 1, length)
    ways = {way: state_bytes(parameters, gpus, way) + left for way in ("ddp", "zero1", "fsdp")}
    parallel = next((way for way, taken in ways.items() if taken <= USABLE_SHARE * device.memory), "fsdp")
    compute = max(1, math.ceil(rows)) * training_flops(model, 1, length) / (utilisation() * device.flops_per_second)
    talk = communication_seconds(parameters, gpus, parallel)
    step = compute + max(0.0, talk - BACKWARD_SHARE * compute)
    hours = config.tokens / config.tokens_per_step * step / 3600
    hosts = math.ceil(gpus / PER_HOST)
    hourly = dollars_per_hour(parse_gpus(f"{config.gpu}:{PER_HOST}"), 64, 256, nodes=hosts)
    written = 12 * parameters / ((hosts if parallel == "fsdp" else 1) * STORAGE_BYTES_PER_SECOND)
    between = GPU_HOURS_PER_FAILURE / gpus * 3600
    return Plan(
        gpus, parallel, rows, ways[parallel], compute, talk, step, hours, hours * hourly, written,
        math.sqrt(2 * written * between) / 60,
    )  # fmt: skip


def table(config: Config) -> str:
    """Return the plans as a Markdown table."""
    columns = [
        "GPUs:", "parallel", "rows per GPU:", "GiB per GPU:", "computing, s:", "communication, s:", "step, s:",
        "busy:", "hours:", "$:", "checkpoint, s:", "every, min:",
    ]  # fmt: skip
    rows = []
    for gpus in GPUS:
        found = plan(config, gpus)
        rows.append([
            f"{found.gpus:,}", found.parallel, f"{found.rows:.3g}", f"{found.memory / 2**30:.0f}",
            f"{found.compute:.3g}", f"{found.communication:.2g}", f"{found.step:.3g}", f"{found.efficiency:.0%}",
            f"{found.hours:.3g}", f"{found.dollars:,.0f}", f"{found.checkpoint:.2g}", f"{found.every:.0f}",
        ])  # fmt: skip
    return markdown_table(columns, rows)


def main(config: Config) -> None:
    """Print the plans."""
    parameters = n_parameters(model_of(config.size))
    print(
        f"{config.size}: {parameters / 1e9:.2f} billion parameters, {config.tokens_per_step:,} tokens per step, "
        f"{config.tokens / 1e9:,.0f} billion in all; {config.gpu}, {utilisation():.0%} of its peak, 8 per machine\n"
    )
    print(table(config))


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
