"""The settings that every kind of fine-tuning has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pretraining.config import Rate, Steps
from utils.files import InputError
from utils.ranges import Count, Range, Seed, Share, check_ranges


@dataclass(frozen=True)
class FineTuning:
    """Fine-tune a model.

    Ctrl-C saves and stops; the same command resumes. Everything is written to one run directory.
    """

    # settings that may differ from those of a run that is there without making it another run
    not_the_run: ClassVar[frozenset[str]] = frozenset({
        "base", "pretrained", "out", "fresh", "device", "micro_batch_size", "eval_every", "checkpoint_every",
    })  # fmt: skip

    base: Path | None = None
    """The run directory of the model to begin with."""
    pretrained: str | None = None
    """Instead of a base: gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder in Hugging Face layout."""
    out: Path = Path("runs/tuned")
    """The run directory that is written. If it holds a run with the same settings, that run goes on."""
    fresh: bool = False
    """Delete the run in --out and start over. A folder that holds anything else is left as it is."""

    epochs: Count = 3
    """How often each example is learned from."""
    batch_size: Count = 16
    """Examples per step."""
    micro_batch_size: Count | None = None
    """Examples that go through the model at once. Less than batch_size saves memory, with the same result."""
    lr: Rate = 3e-5
    """Peak learning rate of AdamW. Small models bear more: 0.001 for the demo's."""
    warmup: Share = 0.03
    """Share of the steps in which the learning rate rises to its peak; after them it falls along half a cosine."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.0
    """Pull of matrices toward zero."""
    clip: Annotated[float, Range(0)] = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them as they are."""
    early_stopping: Count | None = 3
    """End the run after as many evaluations without a new lowest validation loss. The weights that had the lowest are
    the result in any case."""

    lora_rank: Count | None = None
    """Learn a low-rank change of some layers (LoRA) instead of all weights; this is its rank."""
    lora_alpha: Annotated[float, Range(0, 10**4, open_below=True)] = 16.0
    """LoRA: the change is multiplied by alpha / rank."""
    lora_layers: str = r"attention|feed_forward"
    """LoRA: a regular expression; linear layers with it in their name are changed."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrix products are computed in; auto takes bfloat16 where the device is faster in it."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""
    seed: Seed = 0
    """Decides the order of the examples, dropout, and weights that are new."""
    eval_every: Steps = 50
    """Steps between two evaluations on held-out examples."""
    checkpoint_every: Steps = 50
    """Steps between two checkpoints. The newest two are kept."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise InputError(f"micro_batch_size must divide batch_size {self.batch_size}, got {self.micro_batch_size}")
