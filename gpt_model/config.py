"""What distinguishes one GPT from another: a handful of numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from torch import nn

from attention_mechanisms import (
    KERNELS,
    GroupedQueryAttention,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    SlidingWindowAttention,
)
from utils.files import InputError
from utils.ranges import Range, Share, check_ranges

ATTENTION = ("mha", "gqa", "mla", "swa")

# Far above what anybody trains, and low enough that a damaged config.json is refused before anything is built.
Width = Annotated[int, Range(1, 2**16)]
Tokens = Annotated[int, Range(1, 2**24)]
Number = Annotated[int, Range(1, 2**10)]


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    Raises:
        InputError: if the values do not make a model; the message names the field.
    """

    vocab_size: Tokens = 50_257
    """Tokens in the vocabulary."""
    context_length: Tokens = 1024
    """The most tokens that the model can look at: the size of its table of positions."""
    d_model: Width = 768
    """Width: how many numbers describe a token on its way through the model."""
    n_layers: Number = 12
    """Blocks of attention and feed-forward, one after the other."""
    n_heads: Number = 12
    """Attention heads per block; they share d_model evenly."""
    attention: str = "mha"
    """mha, gqa (query heads share keys and values), mla (all heads share a latent) or swa (a sliding window)."""
    n_kv_groups: Number = 4
    """gqa: heads of keys and values; must divide n_heads."""
    latent_dim: Width = 192
    """mla: numbers remembered of each token, besides the rotary ones."""
    query_latent_dim: Width | None = None
    """mla: make queries through a latent of this size too."""
    latent_norm: bool = True
    """mla: normalise latents."""
    rope_dim: Annotated[int, Range(0, 2**10)] = 32
    """mla with rope: rotary channels each head has more than d_model / n_heads; only these are rotated."""
    window_size: Tokens = 256
    """swa: how many tokens each token sees, itself included."""
    n_sinks: Annotated[int, Range(0, 2**24)] = 0
    """swa: first tokens that are always seen."""
    position: str = "learned"
    """How a token's place enters: learned (a table, added to the token) or rope (rotated queries and keys)."""
    kernel: str = "auto"
    """How attention is computed: auto, manual, sdpa or flex. The result is the same."""
    dropout: Share = 0.0
    """Probability with which an activation is dropped in training."""
    bias: bool = True
    """Whether linear layers and norms add a learned offset, as GPT-2's do."""
    vocab_multiple: Annotated[int, Range(1, 2**16)] = 1
    """The token embedding gets rows up to a multiple of this, which GPUs like (64, 128); logits never show them."""
    n_experts: Annotated[int, Range(0, 2**10)] = 0
    """Experts of a feed-forward layer; 0 is the ordinary layer, without a router."""
    n_active_experts: Number = 2
    """Experts that each token visits."""
    balance_loss: Annotated[float, Range(0, 1000)] = 0.01
    """Weight, in the training loss, of the penalty on using experts unevenly."""
    checkpoint_activations: bool = False
    """Keep only what enters each block and compute the rest again in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("latent_norm", "bias", "checkpoint_activations"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {value!r}")
        for name, known in (("kernel", KERNELS), ("attention", ATTENTION), ("position", ("learned", "rope"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.n_experts and self.n_active_experts > self.n_experts:
            raise InputError(f"n_active_experts must be from 1 to {self.n_experts}, got {self.n_active_experts}")
        if self.attention == "mla" and self.position == "rope" and self.rope_dim < 2:
            raise InputError(f"rope_dim must be at least 2 for mla with rope, got {self.rope_dim}")
        try:
            with torch.device("meta"):
                self.attention_layer()
        except ValueError as error:
            raise InputError(str(error)) from None

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding: vocab_size rounded up to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def attention_layer(self) -> nn.Module:
        """Return a new attention layer of the kind that is asked for."""
        rope = self.position == "rope"
        common: dict[str, Any] = {"dropout": self.dropout, "bias": self.bias, "kernel": self.kernel}
        match self.attention:
            case "mha":
                return MultiHeadAttention(self.d_model, self.n_heads, rope=rope, **common)
            case "gqa":
                return GroupedQueryAttention(self.d_model, self.n_heads, self.n_kv_groups, rope=rope, **common)
            case "mla":
                return MultiHeadLatentAttention(
                    self.d_model,
                    self.n_heads,
                    self.latent_dim,
                    query_latent_dim=self.query_latent_dim,
                    latent_norm=self.latent_norm,
                    rope_dim=self.rope_dim if rope else 0,
                    **common,
                )
            case _:
                return SlidingWindowAttention(
                    self.d_model, self.n_heads, self.window_size, n_sinks=self.n_sinks, rope=rope, **common
                )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GPTConfig:
        """Return the configuration with a name: gpt2-small, gpt2-medium, gpt2-large, gpt2-xl, demo or tiny.

        Args:
            name: which one.
            overrides: fields to set differently.

        Raises:
            InputError: for any other name.
        """
        if name not in PRESETS:
            raise InputError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """Return the configuration that the `model` entry of a run's config.json holds.

        Raises:
            InputError: if it has a field that this class does not have, or the values do not make a model.
        """
        if unknown := set(values) - {field.name for field in fields(cls)}:
            raise InputError(f"the model's configuration has an unknown field {min(unknown)!r}")
        return cls(**values)


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-small": {"d_model": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium": {"d_model": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large": {"d_model": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl": {"d_model": 1600, "n_layers": 48, "n_heads": 25},
    "demo": {
        "vocab_size": 4096,
        "context_length": 256,
        "d_model": 192,
        "n_layers": 4,
        "n_heads": 4,
        "position": "rope",
    },
    "tiny": {"vocab_size": 512, "context_length": 64, "d_model": 64, "n_layers": 2, "n_heads": 2},
}
