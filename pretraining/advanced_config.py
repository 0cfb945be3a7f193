"""The settings of the advanced trainer: those of the simple one, and what many GPUs and long runs need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from gpt_model.config import PRESETS as MODELS
from pretraining.config import Config
from utils.ranges import Count, Range, Share
from utils.tracking import check_trackers

Seconds = Annotated[float, Range(0, 10**9, open_below=True)]


@dataclass(frozen=True)
class AdvancedConfig(Config):
    """Pretrain a GPT on one device or many: the same command, by itself or under torchrun.

    What is "auto" or left out is chosen, said and explained before training begins. Ctrl-C saves and stops; the same
    command resumes, with as many processes as there are then.
    """

    trainer: ClassVar[str] = "advanced"
    # besides those of Config: what only decides how the same steps are computed, and for how long
    not_the_run: ClassVar[frozenset[str]] = Config.not_the_run | {
        "micro_batch_size", "parallel", "loss_chunks", "checkpoint_activations", "time_limit", "trackers", "timeout",
        "early_stopping", "plateau", "spike_ratio", "skip_spikes", "hellaswag", "hellaswag_examples",
    }  # fmt: skip

    micro_batch_size: Count | None = None
    """Sequences that go through the model at once, in each process; the rest of a batch follows, with the same result.
    By default the most that memory holds without compiling; compiled steps need less, so that more may fit."""
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    """What matrix products are computed in. tf32 is float32 with short mantissas, on NVIDIA GPUs; float16 needs its
    loss scaled, which happens by itself, and is for GPUs that lack bfloat16."""
    kernel: Literal["auto", "manual", "sdpa", "flex"] = "auto"
    """How attention is computed; auto takes what is fast for the device and the mask. The result is the same."""
    parallel: Literal["auto", "ddp", "zero1", "fsdp"] = "auto"
    """How several processes share the work: ddp (each holds everything), zero1 (each holds a share of the optimizer's
    state) or fsdp (each holds a share of everything); auto takes ddp if everything fits into each device."""
    schedule: Literal["linear", "cosine", "wsd"] = "linear"
    """How the learning rate falls after the warm-up: along a line, along half a cosine, or not at all until the last
    part of the run (wsd: warm-up, stable, decay)."""
    min_lr: Share = 0.0
    """Share of the peak learning rate that is left at the end."""
    decay: Share = 0.2
    """wsd: the share of the steps in which the learning rate falls."""
    documents: bool = False
    """Whether each document is read by itself: its tokens do not see those of the document before."""
    vocab_multiple: Annotated[int, Range(1, 2**16)] | None = None
    """Rows of the token embedding are filled up to a multiple of this. By default 64 on a GPU, which is faster with
    it, and 1 elsewhere."""
    checkpoint_activations: bool = False
    """Keep only what enters each block and compute the rest again in the backward pass: less memory, more time."""
    loss_chunks: Count = 1
    """Parts of a micro-batch whose logits are computed one after the other: less memory, a little more time."""

    hellaswag: Path | None = None
    """A file of HellaSwag's examples: each evaluation then also says how many of them the model completes rightly; see
    `python -m pretraining.hellaswag --help`."""
    hellaswag_examples: Count = 500
    """How many of them are taken, spread evenly over the file."""
    early_stopping: Count | None = None
    """End the run after as many evaluations without a new lowest validation loss."""
    plateau: Count | None = None
    """Halve the learning rate after as many evaluations without a new lowest validation loss."""
    ema: Annotated[float, Range(0, 1, open_below=True)] | None = None
    """Keep a moving average of the weights that decays by this each step, such as 0.999, and evaluate it, too."""
    spike_ratio: Annotated[float, Range(1, 10**6)] = 4.0
    """Gradients this many times as long as their recent median are logged as spikes."""
    skip_spikes: bool = False
    """Whether steps with a spike are dropped. On a GPU, each step then waits for the length of its gradient."""
    time_limit: Seconds | None = None
    """Seconds after which this process saves and stops, for jobs that would be killed later."""
    trackers: tuple[str, ...] = ()
    """Where numbers go besides metrics.jsonl: tensorboard, wandb or both."""
    timeout: Seconds = 600
    """Seconds for which processes wait for one another."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trackers(self.trackers)

    @property
    def rows_at_once(self) -> int:
        """The fewest sequences that must fit into memory."""
        return self.micro_batch_size or 1

    @property
    def most_shared(self) -> str:
        """The way in which processes share a step; where it is not chosen yet, that in which each holds least."""
        if self.parallel != "auto":
            return self.parallel
        return "zero1" if self.optimizer == "galore" else "fsdp"  # GaLore looks at whole gradients


def _gpt2(name: str, **settings: object) -> AdvancedConfig:
    """Return settings for a GPT-2 of some size, trained on blocks of 1,024 tokens."""
    shape = {key: MODELS[name][key] for key in ("d_model", "n_layers", "n_heads")}
    return AdvancedConfig(
        data=Path("runs/web-data"), out=Path("runs") / name, context_length=1024, **{**shape, **settings}
    )  # fmt: skip


def _tuned(name: str, lr: float, matrix_lr: float) -> AdvancedConfig:
    """Return settings that get further with the same tokens: Muon, half a million tokens per step, a long flat rate."""
    return _gpt2(
        name, batch_size=512, steps=20_000, lr=lr, matrix_lr=matrix_lr, weight_decay=0.1, warmup=0.0125, schedule="wsd",
        decay=0.3, position="rope", eval_every=250, checkpoint_every=1000,
    )  # fmt: skip


ADVANCED_PRESETS = {
    "demo": AdvancedConfig(data=Path("runs/demo-data"), out=Path("runs/demo-advanced"), snapshot_every=300),
    "classic": _gpt2(
        "gpt2-small", position="learned", batch_size=64, optimizer="adamw", lr=3e-4, steps=100_000, warmup=0.02,
        schedule="cosine", weight_decay=0.1, clip=1.0, eval_every=1000, checkpoint_every=5000,
    ),
    "gpt2-small": _tuned("gpt2-small", lr=0.006, matrix_lr=0.02),
    "gpt2-medium": _tuned("gpt2-medium", lr=0.004, matrix_lr=0.02),
    "gpt2-large": _tuned("gpt2-large", lr=0.003, matrix_lr=0.015),
    "gpt2-xl": _tuned("gpt2-xl", lr=0.002, matrix_lr=0.015),
}  # fmt: skip
