"""The settings of a pretraining run. Their defaults are those of `make demo`: small, for two CPU cores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from gpt_model.config import Number, Tokens, Width
from utils.files import InputError
from utils.ranges import Count, Range, Seed, Share, check_ranges

Steps = Annotated[int, Range(1, 10**9)]
Rate = Annotated[float, Range(0, 10, open_below=True)]


@dataclass(frozen=True)
class Config:
    """Pretrain a GPT on one device.

    Ctrl-C saves and stops; the same command resumes. Everything is written to one run directory.
    """

    trainer: ClassVar[str] = "simple"
    # settings that may differ from those of a run that is there without making it another run
    not_the_run: ClassVar[frozenset[str]] = frozenset({
        "data", "out", "fresh", "steps", "device", "eval_every", "eval_blocks", "checkpoint_every", "snapshot_every",
        "kernel",
    })  # fmt: skip

    data: Path
    """A folder that `python -m working_with_text_data.prepare` wrote."""
    out: Path = Path("runs/model")
    """The run directory. If it holds a run with the same settings, that run goes on."""
    fresh: bool = False
    """Delete the run in --out and start over. A folder that holds anything else is left as it is."""

    context_length: Tokens = 256
    """Tokens the model can look at, and the length of a training sequence."""
    d_model: Width = 192
    """Width of the model."""
    n_layers: Number = 4
    """Blocks of the model."""
    n_heads: Number = 4
    """Attention heads of a block; they share d_model evenly."""
    attention: Literal["mha", "gqa", "mla", "swa"] = "mha"
    """mha, gqa (query heads share keys and values), mla (all heads share a latent) or swa (a sliding window)."""
    n_kv_groups: Number = 2
    """gqa: heads of keys and values; must divide n_heads."""
    latent_dim: Width = 64
    """mla: numbers remembered of each token, besides the rotary ones."""
    rope_dim: Annotated[int, Range(0, 2**10)] = 16
    """mla with rope: rotary channels each head has besides its own."""
    window_size: Tokens = 64
    """swa: how many tokens each token sees, itself included."""
    n_sinks: Annotated[int, Range(0, 2**24)] = 0
    """swa: first tokens that are always seen."""
    position: Literal["learned", "rope"] = "rope"
    """How a token's place enters: learned (a table, added to the token) or rope (rotated queries and keys)."""
    dropout: Share = 0.0
    """Probability with which an activation is dropped. Worth trying when text is read many times over."""

    steps: Steps = 1200
    """Optimizer steps. A run that is there goes on with another number, as long as it has not taken more already:
    from its next step on, the learning rate is the one that the new number gives that step, so a run that had
    finished starts again from a higher one."""
    batch_size: Count = 16
    """Sequences per step."""
    micro_batch_size: Count | None = None
    """Sequences that go through the model at once. Less than batch_size saves memory: gradients of
    several passes are added up before the step, with the same result. None means all of them."""
    optimizer: Literal["muon", "adamw", "galore"] = "muon"
    """muon and galore move the matrices of the blocks, and leave the rest to AdamW. muon learns fastest; galore keeps
    the least in memory."""
    lr: Rate = 0.015
    """Peak learning rate of AdamW, and of GaLore. With muon it moves embeddings and norms only, and may be high; where
    it moves everything, 0.001 is a good start for a small model."""
    matrix_lr: Rate = 0.02
    """Peak learning rate of Muon."""
    galore_rank: Count | None = None
    """galore: directions kept of each matrix's gradient; None means a quarter of d_model."""
    galore_every: Steps = 200
    """galore: steps after which a matrix's directions are chosen anew."""
    galore_scale: Annotated[float, Range(0, 100, open_below=True)] = 0.25
    """galore: what the steps of these matrices are multiplied by; together with lr, their learning rate."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.3
    """Pull of matrices toward zero. The more often a text is read, the more of it is worth trying."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises to its peak; after them it falls to zero."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls: along a straight line, or along half a cosine."""
    clip: Annotated[float, Range(0)] = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them as they are."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrix products are computed in; auto takes bfloat16 where the device is faster in it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile builds fused code first; auto does where that saves more time than it takes
    (5,000 steps and more on a CPU, 200 on a GPU) and a compiler works."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one, or for a run that is there the device it was on. Naming
    another moves the run there; from then on it is no longer the same bit for bit."""
    seed: Seed = 0
    """Decides initial weights, order of the text, and dropout."""

    eval_every: Steps = 100
    """Steps between two evaluations on the held-out text."""
    eval_blocks: Count = 64
    """Sequences of held-out text in each evaluation."""
    checkpoint_every: Steps = 100
    """Steps between two checkpoints. The newest two are kept."""
    snapshot_every: Steps | None = None
    """Steps between two checkpoints whose weights are kept for good, in snapshots/."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise InputError(f"micro_batch_size must divide batch_size {self.batch_size}, got {self.micro_batch_size}")
        if self.optimizer == "galore" and (self.galore_rank or 0) >= self.d_model:
            raise InputError(f"galore_rank must be below d_model {self.d_model}, got {self.galore_rank}")

    @property
    def optimizer_settings(self) -> dict[str, Any]:
        """The arguments of `make_optimizers`, apart from the model."""
        names = ("lr", "matrix_lr", "weight_decay", "galore_rank", "galore_every", "galore_scale")
        values = {name: getattr(self, name) for name in names}
        return {"name": self.optimizer, "bfloat16": self.precision == "bfloat16", **values}

    @property
    def rows_at_once(self) -> int:
        """Sequences that must fit into memory together."""
        return self.micro_batch_size or self.batch_size

    @property
    def most_shared(self) -> str:
        """The way in which processes share a step so that each holds least; one process shares nothing."""
        return "none"


PRESETS = {
    "demo": Config(data=Path("runs/demo-data"), out=Path("runs/demo"), snapshot_every=300),
}
