"""What a smaller cache costs in quality: the same small model with each kind of attention, trained equally.

    python -m pretraining.variants          # 33 trainings of about a minute; the same command resumes

The cache's size is that of a real one, and the loss is measured on text the models have not seen.
The notebook attention_mechanisms/03_sharing_keys_and_values.ipynb draws the stored results.
"""

import json
import logging
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from gpt_model import GPT
from gpt_model.run_directory import load_tokenizer, read_config
from pretraining import demo, simple
from pretraining.config import Config as TrainingConfig
from pretraining.config import Steps
from pretraining.evaluate import read_split, score
from pretraining.metrics import finished_metrics
from utils.files import InputError, read_json, write_atomically
from utils.hardware import describe
from utils.locks import alone
from utils.outputs import check_output_file, check_writable
from utils.ranges import Range, check_ranges

log = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "variants.json"

# The first is multi-head attention, as one of the family: a group for each head, so that all differ in one thing.
VARIANTS: dict[str, dict[str, Any]] = {
    "MHA": {"attention": "gqa", "n_kv_groups": 8},
    "GQA, 4 groups": {"attention": "gqa", "n_kv_groups": 4},
    "GQA, 2 groups": {"attention": "gqa", "n_kv_groups": 2},
    "MQA": {"attention": "gqa", "n_kv_groups": 1},
    "MLA, R = 128": {"attention": "mla", "latent_dim": 128},
    "MLA, R = 64": {"attention": "mla", "latent_dim": 64},
    "MLA, R = 32": {"attention": "mla", "latent_dim": 32},
    "MLA, R = 16": {"attention": "mla", "latent_dim": 16},
    "SWA, W = 64": {"attention": "swa", "window_size": 64},
    "SWA, W = 32": {"attention": "swa", "window_size": 32},
    "SWA, W = 16": {"attention": "swa", "window_size": 16},
}


@dataclass(frozen=True)
class Config:
    """Train the same small model with each kind of attention, and compare loss and cache.

    Ctrl-C keeps what is done; the same command goes on.
    """

    out: Path = Path("runs/variants")
    """Where the runs, their tokenizer and their data are kept."""
    results: Path = RESULTS
    """Where the comparison is stored."""
    steps: Steps = 300
    """Optimizer steps of each training."""
    seeds: Annotated[int, Range(1, 1000)] = 3
    """Trainings of each kind, with different weights at first and the text in another order."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> None:
    """Train, score and store; a kind of attention whose runs are there is only scored.

    Raises:
        InputError: if the folder or the file for the results cannot be written, or another process works in the folder.
    """
    check_writable(config.out)
    check_output_file(config.results, overwrite=True, is_ours=_is_comparison, flag="--results")
    with alone(config.out, "training in"):
        result = _compare(config)
    if result is None:
        return  # it was asked to stop
    with write_atomically(config.results) as file:
        file.write(json.dumps(result, indent=1).encode())
    print(table(result))


def _is_comparison(path: Path) -> bool:
    """Return whether a file holds an earlier comparison."""
    try:
        table(read_json(path))
    except (InputError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return False
    return True


def _compare(config: Config) -> dict[str, Any] | None:
    """Return what is to be stored, or None if it was asked to stop."""
    runs = {
        (name, seed): config.out / f"{re.sub('[^A-Za-z0-9]+', '-', name)}-{seed}"
        for seed in range(config.seeds)  # seed by seed, so that a change of the machine's load falls on all kinds
        for name in VARIANTS
    }
    for run in runs.values():
        _check_equally_long(run, config.steps)
    training = _prepared(config)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for (name, seed), run in runs.items():
        if not simple.main(replace(training, out=run, seed=seed, **VARIANTS[name])):
            return None
        rows[name].append(_measured(run, training.data))
        log.info("%s, seed %s: %.4f bits per byte", name, seed, rows[name][-1]["bits_per_byte"])
    return {
        "machine": describe(),
        "steps": config.steps,
        "rows": {name: _summary(runs) for name, runs in rows.items()},
    }


def _check_equally_long(run: Path, steps: int) -> None:
    """Check that a training that is there was planned with this many steps: made longer, it would not be the same."""
    if (run / "config.json").exists() and (planned := read_config(run)["training"].get("steps")) != steps:
        raise InputError(f"{run} holds a training of {planned} steps, not {steps}: choose another --out")


def _prepared(config: Config) -> TrainingConfig:
    """Return the settings that all trainings share, with the demo's tokenizer and data."""
    tokenizer, data = config.out / "tokenizer.json", config.out / "data"
    if not tokenizer.exists():
        demo.train_tokenizer.main(replace(demo.train_tokenizer.PRESETS["demo"], out=tokenizer))
    if not data.exists():
        demo.prepare.main(replace(demo.prepare.PRESETS["demo"], tokenizer=tokenizer, out=data))
    return replace(
        simple.PRESETS["demo"],
        data=data,
        steps=config.steps,
        context_length=128,
        position="learned",  # outside attention, so that the kinds differ in nothing else
        d_model=128,
        n_heads=8,
        batch_size=32,
        weight_decay=0.0,
        schedule="cosine",
        precision="bfloat16",  # the same for all, not whatever a look at the machine says
        snapshot_every=None,
    )


@torch.inference_mode()
def _measured(run: Path, data: Path) -> dict[str, Any]:
    model = GPT.from_run(run)
    result = score(model, load_tokenizer(run), read_split(data, "val"))
    cache = model.bfloat16().new_cache(1)
    return {
        "bits_per_byte": result.bits_per_byte,
        "validation_loss": result.loss,
        "parameters": model.n_parameters,
        "cache_bytes_per_token": cache.nbytes / model.config.context_length,
        "seconds": finished_metrics(run)[-1]["seconds"],
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the results: the runs of one kind."""
    bits = [run["bits_per_byte"] for run in runs]
    return {
        **{name: runs[0][name] for name in ("parameters", "cache_bytes_per_token")},
        "bits_per_byte_mean": statistics.mean(bits),
        "bits_per_byte": bits,
        "validation_loss_mean": statistics.mean(run["validation_loss"] for run in runs),
        "seconds": [run["seconds"] for run in runs],
    }


def table(result: dict[str, Any]) -> str:
    """Return the comparison as a table in Markdown."""
    lines = [
        f"| {result['steps']} steps | parameters | cache, bytes per token | bits per byte | of its seeds |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, row in result["rows"].items():
        seeds = ", ".join(f"{bits:.3f}" for bits in row["bits_per_byte"])
        lines.append(
            f"| {name} | {row['parameters']:,} | {row['cache_bytes_per_token']:,.0f} "
            f"| {row['bits_per_byte_mean']:.3f} | {seeds} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
