"""What distinguishes one GPT from another: a handful of numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

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

ATTENTION = ("mha", "gqa", "mla", "swa")


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    Raises:
        InputError: if the numbers do not make a model; the message names the field.
    """

    vocab_size: int = 50_257
    """Tokens in the vocabulary."""
    context_length: int = 1024
    """Most tokens the model can look at: the size of its table of positions."""
    d_model: int = 768
    """Width: how many numbers describe a token on its way through the model."""
    n_layers: int = 12
    """Blocks of attention and feed-forward, one after the other."""
    n_heads: int = 12
    """Attention heads of a block; they share d_model evenly."""
    attention: str = "mha"
    """mha, gqa (query heads share keys and values), mla (all heads share a latent) or swa (a sliding window)."""
    n_kv_groups: int = 4
    """gqa: heads of keys and values; must divide n_heads."""
    latent_dim: int = 192
    """mla: numbers remembered of each token, besides the rotary ones."""
    query_latent_dim: int | None = None
    """mla: make queries through a latent of this size too."""
    latent_norm: bool = True
    """mla: normalise latents."""
    rope_dim: int = 32
    """mla with rope: rotary channels each head has more than d_model / n_heads; only these are rotated."""
    window_size: int = 256
    """swa: tokens a token looks at, itself included."""
    n_sinks: int = 0
    """swa: first tokens that are always seen."""
    position: str = "learned"
    """How a token's place enters: learned (a table, added to the token) or rope (rotated queries and keys)."""
    kernel: str = "auto"
    """How attention is computed: auto, manual, sdpa or flex. The result is the same."""
    dropout: float = 0.0
    """Probability with which an activation is dropped in training."""
    bias: bool = True
    """Whether linear layers and norms add a learned offset, as GPT-2's do."""
    vocab_multiple: int = 1
    """The token embedding gets rows up to a multiple of this, which GPUs like (64, 128); logits never show them."""
    n_experts: int = 0
    """Experts of a feed-forward layer; 0 is the ordinary layer, without a router."""
    n_active_experts: int = 2
    """Experts that each token visits."""
    balance_loss: float = 0.01
    """Weight, in the training loss, of the penalty on using experts unevenly."""
    checkpoint_activations: bool = False
    """Keep only what enters each block and compute the rest again in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "d_model", "n_layers", "n_heads"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise InputError(f"{name} must be a whole number from 1 on, got {value!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name, known in (("kernel", KERNELS), ("attention", ATTENTION), ("position", ("learned", "rope"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.vocab_multiple < 1:
            raise InputError(f"vocab_multiple must be at least 1, got {self.vocab_multiple}")
        if self.n_experts < 0:
            raise InputError(f"n_experts must be at least 0, got {self.n_experts}")
        if self.n_experts and not 1 <= self.n_active_experts <= self.n_experts:
            raise InputError(f"n_active_experts must be from 1 to {self.n_experts}, got {self.n_active_experts}")
        if self.balance_loss < 0:
            raise InputError(f"balance_loss must be at least 0, got {self.balance_loss}")
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
        """A new attention layer of the kind that is asked for."""
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
        """A model with a name: gpt2-small, gpt2-medium, gpt2-large, gpt2-xl, demo or tiny.

        Args:
            name: which one.
            overrides: fields to set otherwise.

        Raises:
            InputError: for another name.
        """
        if name not in PRESETS:
            raise InputError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """From the `model` entry of a run's config.json.

        Raises:
            InputError: if it has a field this class does not.
        """
        if unknown := set(values) - {field.name for field in fields(cls)}:
            raise InputError(f"the model's configuration has an unknown field {min(unknown)!r}")
        return cls(**values)


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-small": {"d_model": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium": {"d_model": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large": {"d_model": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl": {"d_model": 1600, "n_layers": 48, "n_heads": 25},
    "demo": {"vocab_size": 4096, "context_length": 128, "d_model": 256, "n_layers": 4, "n_heads": 4},
    "tiny": {"vocab_size": 512, "context_length": 64, "d_model": 64, "n_layers": 2, "n_heads": 2},
}
