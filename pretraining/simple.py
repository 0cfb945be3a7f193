"""Pretrain a GPT on one device: the whole training loop, to be read in one sitting.

    python -m pretraining.simple --data my_data --out runs/mine

A step takes a batch of text, asks the model for each next token, measures the cross-entropy of its
answers, and moves every parameter a little against the gradient. The rest decides how far to move,
looks now and then at text that is held out, and saves what is needed to go on after a kill: a run
that was interrupted and resumed ends, bit for bit, with the weights of one that was not.

Shapes: B batch, T time.
"""

import logging
import math
import time
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gpt_model import GPT, GPTConfig
from pretraining.checkpoint import load_checkpoint, save_checkpoint
from pretraining.config import PRESETS, Config
from pretraining.metrics import append_metrics, draw_loss, forget_metrics_after
from pretraining.open_run import open_run
from pretraining.optimizers import make_optimizers
from utils.data_loading import ResumableLoader
from utils.files import InputError
from utils.hardware import compiler_works, keep_freed_memory, pick_device
from utils.interrupt import StopRequest, stop_on_signal
from utils.locks import alone
from utils.outputs import check_writable
from working_with_text_data.dataset import BlockDataset

log = logging.getLogger(__name__)

LOG_EVERY = 10  # steps


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: Literal["linear", "cosine"]) -> float:
    """Return the share of the peak learning rate: first a linear rise, then a line or half a cosine down to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    done = step - rise
    falling = max(1, steps - rise)
    if schedule == "linear":
        return 1 - done / falling
    return 0.5 * (1 + math.cos(math.pi * done / falling))


class Trainer:
    """A model, what moves it, what it reads, and how far it has come."""

    def __init__(self, config: Config, model_config: GPTConfig, data: dict[str, BlockDataset]) -> None:
        self.config = config
        self.data = data
        self.started = time.perf_counter()
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        self.model = GPT(model_config).to(self.device)
        compiled = config.compile == "on" and compiler_works(self.device.type)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizers = make_optimizers(self.model, **config.optimizer_settings)
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.batches = ResumableLoader(data["train"], config.batch_size, config.seed, device=self.device)
        self.steps = self.saved_at = 0
        self.seconds_before = 0.0  # spent by earlier processes of this run

    @property
    def seconds(self) -> float:
        """The run's wall time so far, with compilation, evaluation and checkpoints, in all of its processes."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def snapshot_due(self) -> bool:
        """Whether to keep this step's weights for good: every `snapshot_every` steps, and after the last."""
        every = self.config.snapshot_every
        return every is not None and (self.steps % every == 0 or self.steps == self.config.steps)

    def autocast(self) -> torch.autocast:
        """Return the context in which products are computed in the run's precision."""
        # Autocast keeps the bfloat16 copies of all matrices until it is left: memory that checkpointing is to save.
        keep_copies = not self.model.config.checkpoint_activations
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=keep_copies)

    def step(self) -> float:
        """Take one optimizer step; return the batch's loss.

        Raises:
            InputError: if loss or gradient is not a number; the parameters are then as they were.
        """
        ids_BT, targets_BT = self.batches.next()
        size = self.config.micro_batch_size or self.config.batch_size
        n_passes = self.config.batch_size // size
        total = 0.0
        for ids, targets in zip(ids_BT.split(size), targets_BT.split(size), strict=True):
            with self.autocast():
                _, loss = self.forward(ids.to(self.device), targets.to(self.device))
            (loss / n_passes).backward()  # gradients add up over the passes
            total += loss.item() / n_passes
        limit = self.config.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        if not math.isfinite(total + norm):
            raise InputError(
                f"the loss is {total} and the gradient's length {norm} at step {self.steps + 1}: the last checkpoint "
                "is intact; try a lower --lr and --matrix-lr in another --out, or --precision float32"
            )
        factor = learning_rate_factor(self.steps, self.config.steps, self.config.warmup, self.config.schedule)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        return total

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Return the mean loss on held-out blocks, spread evenly so that each document has a say."""
        data = self.data["val"]
        size = self.config.batch_size
        chosen = np.linspace(0, len(data) - 1, min(self.config.eval_blocks, len(data))).astype(int)
        total = 0.0
        self.model.eval()
        for start in range(0, len(chosen), size):
            blocks = [data[int(block)] for block in chosen[start : start + size]]
            ids_BT, targets_BT = (torch.stack(tensors).to(self.device) for tensors in zip(*blocks, strict=True))
            with self.autocast():
                total += self.model(ids_BT, targets_BT)[1].item() * len(blocks)
        self.model.train()
        return total / len(chosen)

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(
            self.config.out, self.steps, self.model.state_dict(), self.state_dict(), snapshot=self.snapshot_due
        )
        self.saved_at = self.steps

    def resume(self) -> bool:
        """Go back to the run's newest checkpoint; return False if it has none."""
        return load_checkpoint(self.config.out, self.model, self.restore)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, but for the weights and the number of steps taken."""
        return {
            "seconds": self.seconds,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "batches": self.batches.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restore what a checkpoint keeps: weights, `state_dict()`, and under "step" the number of steps taken."""
        self.steps = self.saved_at = state["step"]
        self.seconds_before = float(state["seconds"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.batches.load_state_dict(state["batches"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda":  # a run that moved may have seen more GPUs, or none
            for index, rng in enumerate(state["cuda_rng"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(rng, index)
        self.model.load_state_dict(weights)


def main(config: Config) -> bool:
    """Train from the run's newest checkpoint, or its start. Return False if it was stopped before the last step.

    Raises:
        InputError: for data, settings or a run directory that cannot be used; if another process is training in it;
            for a loss that is no longer a number; for a checkpoint that cannot be written.
    """
    check_writable(config.out)
    with alone(config.out, "training in"):
        config, model_config, data = open_run(config)
        keep_freed_memory()
        # On a CPU this costs nothing and makes a run repeatable; fused GPU kernels would refuse to run.
        torch.use_deterministic_algorithms(config.device == "cpu")
        torch.utils.deterministic.fill_uninitialized_memory = False
        return _train(Trainer(config, model_config, data))


def _train(trainer: Trainer) -> bool:
    config = trainer.config
    if trainer.resume():
        forget_metrics_after(config.out, trainer.steps)
        log.info("%s: going on after step %s of %s", config.out, trainer.steps, config.steps)
    else:
        log.info("%s: %s parameters, %s", config.out, f"{trainer.model.n_parameters:,}", _how(config))
        trainer.save()  # so that there is something to resume from, and to compare with, from the start
    with stop_on_signal() as stop:
        run_steps(trainer, stop)
    draw_loss(config.out)
    finished = trainer.steps >= config.steps
    log.info(
        "%s after step %s of %s, %.0f s in all -> %s",
        "finished" if finished else "stopped; the same command resumes", trainer.steps, config.steps,
        trainer.seconds, config.out,
    )  # fmt: skip
    return finished


def run_steps(trainer: Trainer, stop: StopRequest) -> None:
    """Step, look, log and save until the last step or a request to stop."""
    config = trainer.config
    tokens_per_step = config.batch_size * config.context_length
    losses = []
    since = time.perf_counter()
    with tqdm(total=config.steps, initial=trainer.steps, unit="step", desc="training", mininterval=0.5) as bar:
        while trainer.steps < config.steps and not stop.made:
            losses.append(trainer.step())
            bar.update()
            last = trainer.steps == config.steps
            evaluate = last or trainer.steps % config.eval_every == 0
            if evaluate or trainer.steps % LOG_EVERY == 0:
                speed = tokens_per_step * len(losses) / (time.perf_counter() - since)
                entry = {"loss": sum(losses) / len(losses), "tokens_per_second": round(speed)}
                if evaluate:
                    entry["val_loss"] = trainer.validation_loss()
                append_metrics(config.out, step=trainer.steps, seconds=round(trainer.seconds, 2), **entry)
                bar.set_postfix(loss=f"{entry['loss']:.3f}", tokens_s=f"{speed:,.0f}", refresh=False)
                losses = []
                since = time.perf_counter()
            if last or trainer.snapshot_due or trainer.steps % config.checkpoint_every == 0:
                trainer.save()
        if trainer.saved_at != trainer.steps:
            trainer.save()


def _how(config: Config) -> str:
    return f"{config.precision} on {config.device}, {'compiled' if config.compile == 'on' else 'not compiled'}"


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
