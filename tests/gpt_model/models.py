"""Small models for tests of generation."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from attention_mechanisms import KVCache, LayerCache, Mask
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


def twins(folder: Path, seed: int, scale: float, **size: int) -> tuple[GPT2LMHeadModel, GPT]:
    """The same random weights twice, `scale` times as large as at first: transformers' model and ours."""
    torch.manual_seed(seed)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, **size}
    theirs = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(scale)
    theirs.save_pretrained(folder)
    return theirs, GPT.from_pretrained(folder)


class Bigrams:
    """A model that looks at the last token only: its probabilities are a row of a table.

    It has what `LanguageModel` asks for and no more.
    """

    device = torch.device("cpu")

    def __init__(self, table_VV: list[list[float]]) -> None:
        self.logits_VV = torch.tensor(table_VV).log()
        self.config = GPTConfig.preset("tiny", vocab_size=len(table_VV))

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        return KVCache([LayerCache(batch_size, 1, max_length, (1,))])

    def __call__(
        self, ids_BT: Tensor, *, mask: Mask | None, cache: KVCache, last_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        cache.layers[0].append(torch.zeros(*ids_BT.shape, 1)[:, None])
        return self.logits_VV[ids_BT[:, -1:] if last_only else ids_BT], None
