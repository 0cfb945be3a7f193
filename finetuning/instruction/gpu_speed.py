"""How fast a GPT-2 small is taught to answer on this device, and what memory it takes: all weights, and LoRA.

    python -m finetuning.instruction.gpu_speed --data alpaca_data.json

Both rows are stored as soon as they are measured. On a GPU it takes some three minutes; `--quick` tries it out with a
tiny model anywhere.
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetuning.instruction.corpus import load_conversations
from finetuning.instruction.records import read_conversations
from finetuning.instruction.supervised import Answers, PackedConversations, fit_into
from finetuning.instruction.templates import TEMPLATES
from finetuning.lora import add_lora
from finetuning.run import make_optimizer
from gpt_model import GPT, GPTConfig
from gpt_model.run_directory import load
from pretraining.engine import Engine, Settings, World
from pretraining.engine.engine import to_device
from utils.data_loading import ResumableLoader
from utils.files import write_atomically
from utils.hardware import pick_device
from utils.measuring import machine, run_benchmark
from utils.outputs import check_writable
from utils.peaks import peak_memory, synchronize
from working_with_text_data.minbpe import GPT2Tokenizer, Tokenizer

log = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "gpu_speed.json"
WAYS: dict[str, int | None] = {"all weights": None, "LoRA, rank 8": 8}
SECONDS = 60.0  # per way, after the first steps
WARM_UP_STEPS = 5
LR = {None: 3e-5, 8: 3e-4}


@dataclass(frozen=True)
class Config:
    """Measure supervised fine-tuning on this device."""

    data: Path | None = None
    """Conversations, such as Alpaca's; by default the project's own."""
    pretrained: str | None = None
    """gpt2, or a folder in Hugging Face layout; by default random weights, which cost the same."""
    results: Path = RESULTS
    """Where the rows are stored."""
    quick: bool = False
    """A tiny model for a second, to see that it runs; the numbers mean nothing."""


def main(config: Config) -> None:
    """Measure each way, and store it.

    Raises:
        InputError: if the data or the weights cannot be read, or the results cannot be written.
    """
    check_writable(config.results, "--results")
    conversations = read_conversations(config.data) if config.data else load_conversations("train")
    device = pick_device("auto")
    about = {"machine": machine(device), "quick": config.quick, "examples": len(conversations)}
    rows: dict[str, Any] = {}
    for name, rank in WAYS.items():
        model, tokenizer = _model(config)
        encoded = (TEMPLATES["alpaca"].encode(each, tokenizer) for each in conversations)
        packed = PackedConversations(fit_into(encoded, model.config.context_length).kept, model.config.context_length)
        rows[name] = measure(model.to(device), packed, rank, device, quick=config.quick)
        log.info("%s: %s", name, rows[name])
        with write_atomically(config.results) as file:
            file.write(json.dumps({**about, "rows": rows}, indent=1).encode())


def _model(config: Config) -> tuple[GPT, Tokenizer]:
    if config.pretrained is not None:
        return load(None, config.pretrained)
    torch.manual_seed(0)
    tokenizer = GPT2Tokenizer()
    if config.quick:
        shape = {"context_length": 128, "d_model": 32, "n_layers": 2, "n_heads": 2}
        return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)), tokenizer
    return GPT(GPTConfig.preset("gpt2-small")), tokenizer


def measure(
    model: GPT, packed: PackedConversations, rank: int | None, device: torch.device, *, quick: bool
) -> dict[str, Any]:
    """Train for a minute; return tokens per second, the memory it took beyond the weights, and how the loss fell.

    Args:
        model: on the device.
        packed: what is learned from.
        rank: of LoRA; None trains all weights.
        device: where.
        quick: take three steps only.
    """
    if rank is not None:
        add_lora(model, r"attention|feed_forward", rank=rank, alpha=16)
    precision = "bfloat16" if device.type == "cuda" else "float32"
    engine = Engine(
        model.train(), Answers(), lambda m: make_optimizer(m, lr=LR[rank], weight_decay=0.0),
        Settings(precision=precision), World(device),
    )  # fmt: skip
    batches = ResumableLoader(packed, 2 if quick else 16, 0, device=device)
    losses: list[Tensor] = []

    def step() -> None:
        losses.append(engine.step([to_device(batches.next(), device)], 1.0).loss)

    for _ in range(1 if quick else WARM_UP_STEPS):
        step()
    memory = peak_memory(step, device)
    began, first = time.perf_counter(), len(losses)
    while len(losses) - first < 2 or (not quick and time.perf_counter() - began < SECONDS):
        step()
        if len(losses) % 10 == 0:
            synchronize(device)
    synchronize(device)
    seconds = time.perf_counter() - began
    steps = len(losses) - first
    return {
        "tokens_per_second": steps * batches.batch_size * packed.length / seconds,
        "examples_per_second": steps * batches.batch_size * len(packed.encoded) / len(packed) / seconds,
        "memory": memory,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": len(losses),
        "loss_first": losses[0].item(),
        "loss_last": torch.stack(losses[-10:]).mean().item(),
    }


if __name__ == "__main__":
    run_benchmark(main, Config)
