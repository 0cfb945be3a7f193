"""Small models for tests of generation."""

from typing import Any

import torch

from gpt_model import GPT, GPTConfig


def decided(seed: int = 0, **config: Any) -> GPT:
    """An untrained model is nearly undecided, and says one token over and over; this one does neither.

    In float64 its choices hang on no rounding.
    """
    torch.manual_seed(seed)
    sizes = {"vocab_size": 256, "context_length": 64, "d_model": 32, "n_layers": 2, "n_heads": 4}
    model = GPT(GPTConfig(**{**sizes, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3 if "embedding" in name or "norm" in name else 10)
    return model.double().eval()
