"""GPT-2: a stack of identical blocks that turns token ids into a guess at each next token.

    ids -> token + position embedding -> n_layers x [ + attention(norm) , + feed-forward(norm) ] -> norm -> logits

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3: norms before
each sub-layer and one after the last; residual projections start smaller, by 1 / sqrt(their number);
the output layer is the token embedding itself (Press & Wolf 2016, https://arxiv.org/abs/1608.05859).

Shapes: B batch, T time, C model width, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_mechanisms import CAUSAL, KVCache, LayerCache, Mask, MultiHeadAttention, MultiHeadLatentAttention
from gpt_model.config import GPTConfig


class FeedForward(nn.Module):
    """Each position on its own: widen four times, bend (GELU, the tanh form GPT-2 was trained with), narrow."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.d_model, 4 * config.d_model, bias=config.bias)
        self.out = nn.Linear(4 * config.d_model, config.d_model, bias=config.bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.out(F.gelu(self.expand(x_BTC), approximate="tanh"))


class Block(nn.Module):
    """Attention mixes positions, feed-forward works on each; both add to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, bias=config.bias)
        self.attention = config.attention_layer()
        self.feed_forward_norm = nn.LayerNorm(config.d_model, bias=config.bias)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTC: Tensor, *, mask: Mask | None, positions: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x_BTC), mask=mask, positions=positions, cache=cache)
        x_BTC = x_BTC + self.dropout(attended)
        return x_BTC + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTC)))


class GPT(nn.Module):
    """A GPT-2 of any size."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model, bias=config.bias)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, MultiHeadAttention | MultiHeadLatentAttention | FeedForward):
            # 2 n_layers of these sums meet in the residual stream; keep their variance that of one.
            # `apply` visits children first, so this comes after the plain initialisation.
            nn.init.normal_(module.out.weight, std=0.02 / math.sqrt(2 * self.config.n_layers))

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The vectors (B, T, C) before the output layer; arguments and errors as in `forward`."""
        T, mask, longest = ids_BT.shape[1], mask or CAUSAL, 0
        if cache is not None:
            mask, longest = cache.mask(mask), max(cache.lengths)
        if positions is None:
            if longest + T > self.config.context_length:
                raise ValueError(f"{longest + T} tokens are more than the context of {self.config.context_length}")
            positions = mask.positions(T, ids_BT.device)
        x_BTC = self.token_embedding(ids_BT)
        if self.config.position == "learned":
            x_BTC = x_BTC + self.position_embedding(positions)
        x_BTC = self.dropout(x_BTC)
        for layer, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layers[layer]
            x_BTC = block(x_BTC, mask=mask, positions=positions, cache=layer_cache)
        return self.final_norm(x_BTC)

    def forward(
        self,
        ids_BT: Tensor,
        targets_BT: Tensor | None = None,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) for the token after each position, and the mean loss if targets are given.

        Args:
            ids_BT: token ids.
            targets_BT: the ids that come next; -100 does not count.
            mask: who may look at whom; causal by default. With a cache its offset is what the cache holds.
            positions: (B, T) or (T,); by default those after what the cache holds, padding not counted.
            cache: keys and values of earlier tokens; these are appended.
            last_only: logits of the last position alone, (B, 1, V).

        Raises:
            ValueError: if the tokens, cached ones included, are more than the context.
        """
        x_BTC = self.hidden(ids_BT, mask=mask, positions=positions, cache=cache)
        if last_only:
            x_BTC = x_BTC[:, -1:]
        logits_BTV = F.linear(x_BTC, self.token_embedding.weight)
        if targets_BT is None:
            return logits_BTV, None
        # float16 and bfloat16 are too coarse for a sum over the vocabulary; float64 stays as it is
        wide = torch.promote_types(logits_BTV.dtype, torch.float32)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).to(wide), targets_BT.flatten(), ignore_index=-100)
        return logits_BTV, loss

    def new_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache for this model, of its dtype and on its device; by default as long as the context."""
        max_length = self.config.context_length if max_length is None else max_length
        return KVCache([block.attention.new_cache(batch_size, max_length) for block in self.blocks])

    @property
    def n_parameters(self) -> int:
        """Numbers that training changes; the output layer, being the token embedding, counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_run(cls, path: str | Path, weights: str = "model.safetensors") -> GPT:
        """The model a trainer saved in a run directory, in evaluation mode, on the CPU.

        Args:
            path: the run directory.
            weights: which file of it, such as "snapshots/step_000100.safetensors".

        Raises:
            FileNotFoundError: if something is missing.
            InputError: if something is damaged, or the weights are another model's.
        """
        from gpt_model.run_directory import load_model

        return load_model(Path(path), weights)
