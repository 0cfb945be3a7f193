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
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention_mechanisms import CAUSAL, KVCache, LayerCache, Mask, MultiHeadAttention, MultiHeadLatentAttention
from gpt_model.config import GPTConfig
from gpt_model.feed_forward import FeedForward
from gpt_model.mixture_of_experts import MixtureOfExperts

if TYPE_CHECKING:
    from working_with_text_data.minbpe import RegexTokenizer


NOT_COUNTED = -100  # a target that is none; PyTorch's number for it


class Block(nn.Module):
    """Attention mixes positions, feed-forward works on each; both add to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, bias=config.bias)
        self.attention = config.attention_layer()
        self.feed_forward_norm = nn.LayerNorm(config.d_model, bias=config.bias)
        self.has_experts = config.n_experts > 0
        self.feed_forward = MixtureOfExperts(config) if self.has_experts else FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTC: Tensor, *, mask: Mask | None, positions: Tensor | None, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor | float]:
        """Return what goes on to the next block, (B, T, C), and how unevenly experts were used; without them, 0.0."""
        attended_BTC = self.attention(self.attention_norm(x_BTC), mask=mask, positions=positions, cache=cache)
        x_BTC = x_BTC + self.dropout(attended_BTC)
        normed_BTC = self.feed_forward_norm(x_BTC)
        if self.has_experts:
            y_BTC, imbalance = self.feed_forward(normed_BTC)
        else:
            y_BTC = self.feed_forward(normed_BTC)
            imbalance = 0.0
        return x_BTC + self.dropout(y_BTC), imbalance


class GPT(nn.Module):
    """A GPT-2 of any size.

    Its forward pass can be written to a file, as a graph that runs without this code. The example's shape does
    not matter, but must be more than 1; with a sliding window, leave `dynamic_shapes` out: it is for one length.

        shapes = {"ids_BT": {0: Dim("batch"), 1: Dim("time", max=model.config.context_length)}}
        torch.export.save(torch.export.export(model.eval(), (ids_BT,), dynamic_shapes=shapes), "model.pt2")
        logits_BTV, _ = torch.export.load("model.pt2").module()(ids_BT)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.published_as: str | None = None  # such as "gpt2", if `from_pretrained` downloaded the weights by that name
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model, bias=config.bias)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights anew, as GPT-2's were before training, those of positions excepted.

        The standard deviation of positions is 0.02 here, like that of the other weights, and 0.01 in OpenAI's code.

        A large model is built without memory, and gets it where it is to stay, once:

            with torch.device("meta"):
                model = GPT(GPTConfig.preset("gpt2-xl"))
            model.to_empty(device="cuda").init_weights()
        """
        self.apply(self._init_module)
        with torch.no_grad():
            self.token_embedding.weight[self.config.vocab_size :] = 0  # tokens that do not exist

    def _init_module(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()  # ones, and zeros
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
        """Return the vectors (B, T, C) before the output layer; arguments and errors as in `forward`."""
        return self._hidden(ids_BT, mask, positions, cache)[0]

    def _hidden(
        self, ids_BT: Tensor, mask: Mask | None, positions: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor | float]:
        """Return what `hidden` does, and how unevenly experts were used, summed over the blocks."""
        T = ids_BT.shape[1]
        mask = mask or CAUSAL
        longest = 0
        if cache is not None:
            mask = cache.mask(mask)
            longest = max(cache.lengths)
        if positions is None:
            if longest + T > self.config.context_length:
                raise ValueError(f"{longest + T} tokens are more than the context of {self.config.context_length}")
            positions = mask.positions(T, ids_BT.device)
        x_BTC = self.token_embedding(ids_BT)
        if self.config.position == "learned":
            x_BTC = x_BTC + self.position_embedding(positions)
        x_BTC = self.dropout(x_BTC)
        imbalance = 0.0
        for layer, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layers[layer]
            context = {"mask": mask, "positions": positions, "cache": layer_cache}
            if self.config.checkpoint_activations and cache is None:  # what is computed twice would be cached twice
                x_BTC, more = checkpoint(block, x_BTC, use_reentrant=False, **context)
            else:
                x_BTC, more = block(x_BTC, **context)
            imbalance = imbalance + more
        return self.final_norm(x_BTC), imbalance

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
        """Return logits (B, T, V) for the token after each position, and the mean cross-entropy if targets are given.

        In training mode, experts that are used unevenly add to the loss; see `imbalance`.

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
        x_BTC, imbalance = self._hidden(ids_BT, mask, positions, cache)
        if last_only:
            x_BTC = x_BTC[:, -1:]
        logits_BTV = self._logits(x_BTC)
        if targets_BT is None:
            return logits_BTV, None
        loss = _cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), "mean")
        if self.config.n_experts and self.training:
            loss = loss + self.config.balance_loss * imbalance
        return logits_BTV, loss

    def loss_sum(
        self,
        ids_BT: Tensor,
        targets_BT: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        n_chunks: int = 1,
    ) -> Tensor:
        """Return the cross-entropy summed over the targets that count: what training needs, without the logits.

        A sum, so that parts of a batch, on whatever process, add up to the whole: who knows how many targets all
        parts have divides by that. In training mode, uneven experts add to it as in `forward`, once per target.

        Args:
            ids_BT: token ids.
            targets_BT: the ids that come next; -100 does not count.
            mask: who may look at whom; causal by default.
            positions: (B, T) or (T,).
            n_chunks: parts of the batch whose logits are computed one after the other, and once more in the backward
                pass. Logits are the largest tensor of a small model's training step: more parts, less memory.

        Raises:
            ValueError: if the tokens are more than the context.
        """
        x_BTC, imbalance = self._hidden(ids_BT, mask, positions, None)
        parts = zip(x_BTC.flatten(0, 1).chunk(n_chunks), targets_BT.flatten().chunk(n_chunks), strict=True)
        if n_chunks == 1:
            total = sum(self._part_of_loss(*part) for part in parts)
        else:
            total = sum(checkpoint(self._part_of_loss, *part, use_reentrant=False) for part in parts)
        if self.config.n_experts and self.training:
            total = total + self.config.balance_loss * imbalance * (targets_BT != NOT_COUNTED).sum()
        return total

    def _part_of_loss(self, x_NC: Tensor, targets_N: Tensor) -> Tensor:
        return _cross_entropy(self._logits(x_NC), targets_N, "sum")

    def _logits(self, x: Tensor) -> Tensor:
        """Return the logits (..., V) of vectors (..., C)."""
        return F.linear(x, self.token_embedding.weight)[..., : self.config.vocab_size]

    def new_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """Return an empty cache for this model, of its dtype and on its device; by default as long as the context."""
        max_length = self.config.context_length if max_length is None else max_length
        return KVCache([block.attention.new_cache(batch_size, max_length) for block in self.blocks])

    @property
    def n_parameters(self) -> int:
        """Numbers in the weights, padding included; the output layer, being the token embedding, counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def n_active_parameters(self) -> int:
        """Numbers in the weights that a token meets on its way: without the experts that it does not visit."""
        if not self.config.n_experts:
            return self.n_parameters
        resting = [block.feed_forward.experts[self.config.n_active_experts :] for block in self.blocks]
        return self.n_parameters - sum(parameter.numel() for experts in resting for parameter in experts.parameters())

    @classmethod
    def from_run(cls, path: str | Path, weights: str = "model.safetensors") -> GPT:
        """Return the model that a trainer saved in a run directory, in evaluation mode, on the CPU.

        Args:
            path: the run directory.
            weights: which file of it, such as "snapshots/step_000100.safetensors".

        Raises:
            FileNotFoundError: if something is missing.
            InputError: if something is damaged, or the weights are another model's.
        """
        from gpt_model.run_directory import load_model

        return load_model(Path(path), weights)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, cache_dir: str | Path | None = None, revision: str | None = None
    ) -> GPT:
        """Return a GPT-2 with the weights of a checkpoint, in evaluation mode, as float32 on the CPU.

        Args:
            name_or_path: a folder in the layout of Hugging Face, or gpt2, gpt2-medium, gpt2-large or gpt2-xl,
                which are downloaded once.
            cache_dir: where downloads are kept; see `utils.gpt2_download`.
            revision: which version of a download, as the hub names it; by default the one we know.

        Raises:
            InputError: if there is no such model, or it is not one that our `GPT` computes: the message names the
                field of its config.json, or the tensor.
            DownloadError: if it cannot be downloaded; a NoConnectionError, if only for lack of a connection.
        """
        from gpt_model.pretrained import load_pretrained

        return load_pretrained(name_or_path, cache_dir, revision)

    def export_to_hf(self, path: str | Path, tokenizer: RegexTokenizer | None = None) -> None:
        """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads as the same model.

        Args:
            path: a folder that is not there yet, or empty.
            tokenizer: written beside the model, for `AutoTokenizer`. By default none, but GPT-2's own if
                `from_pretrained` downloaded the weights by name, as `published_as` says.

        Raises:
            InputError: if a GPT-2 cannot express the model, the tokenizer is another model's, or `path` is taken.
        """
        from gpt_model.pretrained import export_to_hf

        export_to_hf(self, Path(path), tokenizer)


def _cross_entropy(logits_NV: Tensor, targets_N: Tensor, reduction: str) -> Tensor:
    # float16 and bfloat16 are too coarse for a sum over the vocabulary; float64 stays as it is
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return F.cross_entropy(logits_NV.to(wide), targets_N, ignore_index=NOT_COUNTED, reduction=reduction)
