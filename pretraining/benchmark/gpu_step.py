"""A training step of GPT-2 small on a GPU: its speed, its share of what the GPU can do, and the memory it takes.

The step is the trainer's own: compiled, in bfloat16, on 32 rows of 1,024 tokens. The tokens are random, since what is
read does not change how long a step takes.
"""

import gc
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt_model import GPTConfig
from gpt_model.costs import mfu, training_memory
from gpt_model.devices import find_device
from pretraining import simple
from pretraining.config import Config
from utils.measuring import markdown_table
from working_with_text_data.dataset import BlockDataset
from working_with_text_data.shards import write_shard

log = logging.getLogger(__name__)

MODEL = "gpt2-small"
VOCAB_MULTIPLE = 64
CONTEXT_LENGTH = 1024
BATCH_SIZE = 32
PEAK_RATES = {"adamw": 6e-4, "muon": 6e-3}
TRAINING_TOKENS = 4_000_000
WARM_UP_STEPS = 9  # compilation happens in the first one
TIMED_STEPS = 30


def measure_gpu_steps(device: torch.device) -> dict[str, Any]:
    """Measure a training step with each optimizer.

    Args:
        device: a GPU.

    Raises:
        InputError: if its data sheet is not known here.
    """
    peak = find_device(torch.cuda.get_device_name(device)).flops_per_second
    model_config = GPTConfig.preset(MODEL, vocab_multiple=VOCAB_MULTIPLE)
    sizes = {"context_length": CONTEXT_LENGTH, "batch_size": BATCH_SIZE}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = write_random_tokens(Path(folder), model_config.vocab_size)
        for optimizer, rate in PEAK_RATES.items():
            config = Config(
                data=data, out=data / "run", optimizer=optimizer, lr=rate, weight_decay=0.1, precision="bfloat16",
                compile="on", device=str(device), **sizes,
            )  # fmt: skip
            row = measure_step(config, model_config, peak)
            log.info("%s: %.0f tokens per second", optimizer, row["tokens_per_second"]["median"])
            rows.append(row)
    return {"model": MODEL, **sizes, "peak_flops_per_second": peak, "rows": rows}


def write_random_tokens(folder: Path, vocab_size: int) -> Path:
    """Write shards of random tokens to a folder, and return it."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, TRAINING_TOKENS).astype(np.uint16)
    write_shard(folder / "train_000000.bin", tokens)
    write_shard(folder / "val_000000.bin", tokens[: 2 * CONTEXT_LENGTH])
    return folder


def measure_step(config: Config, model_config: GPTConfig, peak: float) -> dict[str, Any]:
    """Train for some steps, and measure those after compilation and warm-up.

    Args:
        config: of the training.
        model_config: of the model.
        peak: the most operations per second that the device does.
    """
    torch.compiler.reset()
    gc.collect()
    splits = {split: BlockDataset(config.data, split, config.context_length) for split in ("train", "val")}
    trainer = simple.Trainer(config, model_config, splits)
    losses: list[float] = []
    seconds: list[float] = []
    for step in range(WARM_UP_STEPS + TIMED_STEPS):
        if step == WARM_UP_STEPS:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        losses.append(trainer.step())  # it reads its loss, and so waits for the GPU
        seconds.append(time.perf_counter() - started)
    tokens = config.batch_size * config.context_length
    timed = seconds[WARM_UP_STEPS:]
    speed = tokens / statistics.median(timed)
    optimizer = {"optimizer": config.optimizer, "rank": config.galore_rank}
    formula = training_memory(model_config, config.batch_size, config.context_length, **optimizer)
    return {
        "optimizer": config.optimizer,
        "tokens_per_second": {"median": speed, "best": tokens / min(timed), "worst": tokens / max(timed)},
        "mfu": mfu(model_config, speed, peak),
        "first_step_seconds": round(seconds[0], 1),
        "memory": torch.cuda.max_memory_allocated(),
        "memory_formula": formula.total,
        "losses": [losses[0], losses[-1]],
    }


def gpu_table(result: dict[str, Any]) -> str:
    """Show the steps in Markdown."""
    columns = ["optimizer", "tokens/s:", "MFU:", "memory:", "by formula, not compiled:"]
    rows = []
    for row in result["rows"]:
        speed = f"{row['tokens_per_second']['median']:,.0f}"
        memory = [f"{row[key] / 1e9:.1f} GB" for key in ("memory", "memory_formula")]
        rows.append([row["optimizer"], speed, f"{row['mfu']:.1%}", *memory])
    return markdown_table(columns, rows)
