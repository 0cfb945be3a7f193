"""One token after the other, as fast as memory can be read.

A step of batch 1 multiplies each weight once and reads it once, and reading takes longer: the most tokens per
second are the bytes per second that memory gives, divided by the bytes of the weights. What stands between PyTorch as
it comes and that ceiling, and what is done about it here:

- Products of a matrix and one row are planned for many rows (`F.linear`). On a CPU `torch.mv` reads faster.
- Between two products, a dozen small operations cost microseconds each, in each layer. `torch.compile` makes a few
  of them; on a GPU a whole step is recorded once and replayed (CUDA graphs).
- Fewer bytes: bfloat16, or weights in eight bits (quantize.py).

Shapes: B batch, T time, C model width, V vocabulary, G key/value heads, S cache length, D head size, O outputs,
I inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import signature
from typing import Literal

import torch
from torch import Tensor, nn

from attention_mechanisms import CAUSAL, KVCache, LayerCache, Mask, RingCache
from attention_mechanisms.masks import EVERYTHING
from gpt_model.fast.quantize import Int8Embedding, Int8Linear, quantize_linears
from gpt_model.gpt import GPT
from utils.files import InputError
from utils.hardware import compiler_works

Precision = Literal["float32", "bfloat16", "int8"]
SLOTS_PER_RECORDING = 256  # on a GPU a cache has a multiple of so many slots, so that few sizes are recorded


@torch.library.custom_op("gpt_model::matvec", mutates_args=())
def matvec(weight_OI: Tensor, x_I: Tensor) -> Tensor:
    """Return W x, (O,). An operator of its own, since the compiler would make slower loops of it."""
    return torch.mv(weight_OI, x_I)


@matvec.register_fake
def _(weight_OI: Tensor, x_I: Tensor) -> Tensor:
    return weight_OI.new_empty(weight_OI.shape[0])


class RowLinear(nn.Linear):
    """A linear layer that is quick for a single row, too."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() != self.in_features or x.device.type != "cpu":
            return super().forward(x)
        y_O = (matvec if torch.compiler.is_compiling() else torch.mv)(self.weight, x.flatten())
        y_O = y_O if self.bias is None else y_O + self.bias
        return y_O.view(*x.shape[:-1], self.out_features)


class LayerStep:
    """A layer's cache for the length of one step, to be compiled: the place of the new token is an input.

    `LayerCache` counts its tokens in Python, where a compiled step would have the number built in.

    Args:
        layer: the memory, and where a token goes in it.
        position_1: the token's position, a tensor.
        span: slots to look at, the new token's among them; None: all, of which some may not be filled yet.
    """

    def __init__(self, layer: LayerCache, position_1: Tensor, span: int | None) -> None:
        self.layer = layer
        self.position_1 = position_1
        self.span = span
        self.lengths = [0]  # unknown here; the positions are given

    def mask(self, base: Mask) -> Mask:
        """Return the mask as it is: what `append` returns counts."""
        return base

    def append(self, *new_BG1D: Tensor, mask: Mask) -> tuple[list[Tensor], Mask]:
        """Store one token, as `LayerCache.append` does; return what to look at, and the mask for it."""
        slot_1 = self.layer.slots(self.position_1)
        for buffer, new in zip(self.layer.buffers, new_BG1D, strict=True):
            buffer.index_copy_(2, slot_1, new.to(buffer.dtype))
        if self.span is not None:
            return [buffer[:, :, : self.span] for buffer in self.layer.buffers], EVERYTHING
        slots_S = torch.arange(self.layer.buffers[0].shape[2], device=self.position_1.device)
        filled_S = torch.where(slots_S <= self.position_1, slots_S, -1)
        return self.layer.buffers, Mask(causal=False, key_positions=filled_S)


class FastDecoder:
    """A model, arranged to continue texts quickly; stands in for it in `TextGenerator`.

    The given model is untouched, and shares the weights whose precision does not change. One token more for rows
    of equal length, with a cache of `new_cache`, is a fast step; prompts and ragged rows are read as the model
    reads them.

    Args:
        model: what to run, where it is.
        precision: of weights and activations; "int8" rounds the weights to eight bits and works in bfloat16.
        compile: build one program for the whole step first, once for each batch size. That takes tens of seconds for
            GPT-2 small, since each layer is traced and planned as if it were the only one of its kind; see the
            chapter's README. Without a compiler there is one warning, and steps run as they are. Those of a mixture of
            experts always do on a CPU: compiled, every token would visit all experts.

    Raises:
        InputError: for an unknown precision.
    """

    def __init__(self, model: GPT, precision: Precision = "bfloat16", *, compile: bool = False) -> None:
        if precision not in ("float32", "bfloat16", "int8"):
            raise InputError(f"precision must be float32, bfloat16 or int8, got {precision!r}")
        self.config = model.config
        self.precision = precision
        self.device = model.token_embedding.weight.device
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.model = copy.deepcopy(model, {id(x): x for x in model.parameters()})  # its modules, not its weights
        self.model.load_state_dict({name: x.detach().to(dtype) for name, x in model.state_dict().items()}, assign=True)
        self.model.eval().requires_grad_(False)
        self.head = _output_layer(self.model)
        if precision == "int8":
            self.head = Int8Linear(self.head)
            self.model.token_embedding = Int8Embedding(self.model.token_embedding)
            quantize_linears(self.model.blocks)
        else:
            _make_quick(self.model.blocks)
        if model.config.n_experts and self.device.type == "cpu":
            compile = False
        compile = compile and compiler_works(self.device.type)
        self._step = self._compiled() if compile else self._one_token
        self._recorded = compile and self.device.type == "cuda"

    def _compiled(self) -> Callable[..., Tensor]:
        if self.device.type == "cuda":
            return torch.compile(self._one_token, mode="reduce-overhead")
        options = {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
        return torch.compile(self._one_token, dynamic=True, **options)

    def new_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """Return an empty cache; see `GPT.new_cache`."""
        max_length = self.config.context_length if max_length is None else max_length
        # a recording is for one size; otherwise one slot stays free, since a full cache would be compiled once more
        slots = -(-max_length // SLOTS_PER_RECORDING) * SLOTS_PER_RECORDING if self._recorded else max_length + 1
        cache = self.model.new_cache(batch_size, slots)
        if self._recorded:  # and it reads and writes the same memory each time
            for buffer in (buffer for layer in cache.layers for buffer in layer.buffers):
                torch._dynamo.mark_static_address(buffer)
        return cache

    @property
    def weight_bytes(self) -> int:
        """Bytes that a step of one row reads besides the cache.

        These are all weights but the experts that it does not ask, and the table of positions, of which it reads a row.
        """
        resting: set[nn.Module] = set()
        if self.config.n_experts and not self._recorded:
            for block in self.model.blocks:
                resting |= set(block.feed_forward.experts[self.config.n_active_experts :].modules())
        modules = [*self.model.blocks.modules(), *self.model.final_norm.modules(), self.head]
        modules = [module for module in modules if module not in resting]
        whole = sum(module.nbytes for module in modules if isinstance(module, Int8Linear))
        others = (module for module in modules if not isinstance(module, Int8Linear))
        return whole + sum(x.nbytes for module in others for x in module.parameters(recurse=False))

    @torch.inference_mode()
    def __call__(
        self, ids_BT: Tensor, *, mask: Mask | None = None, cache: KVCache | None = None, last_only: bool = False
    ) -> tuple[Tensor, None]:
        """Return logits as `GPT.forward` does; no loss, no gradients."""
        alike = (mask is None or mask == CAUSAL) and cache is not None and len(set(cache.lengths)) == 1
        if alike and ids_BT.shape[1] == 1 and self._has_room(cache):
            return self._fast_step(ids_BT, cache)[:, None], None
        x_BTC = self.model.hidden(ids_BT, mask=mask, cache=cache)
        return self._logits(x_BTC[:, -1:] if last_only else x_BTC), None

    def _has_room(self, cache: KVCache) -> bool:
        """Return whether a fast step can follow: there is a token, and a slot for one more beside the spare one.

        If there is no room at all, the model says what is wrong.
        """
        length = cache.lengths[0]
        spare = 0 if self._recorded else 1
        fits = cache.max_length is None or length + spare < cache.max_length
        return 0 < length < self.config.context_length and fits

    def _fast_step(self, ids_B1: Tensor, cache: KVCache) -> Tensor:
        """Return the logits (B, V) after one token more."""
        length = cache.lengths[0]
        position_1 = torch.tensor([length], device=self.device)
        # A token cut out of a longer row keeps that row's stride, and another stride would be compiled anew.
        ids_B1 = ids_B1.clone(memory_format=torch.contiguous_format)
        logits_BV = self._step(ids_B1, position_1, length + 1, cache.layers)
        logits_BV = logits_BV.clone() if self._recorded else logits_BV  # the next replay overwrites it
        for layer in cache.layers:
            layer.advance(1)
        return logits_BV

    def _one_token(self, ids_B1: Tensor, position_1: Tensor, span: int, layers: list[LayerCache]) -> Tensor:
        # a recording is for fixed shapes, and a ring is looked at whole
        steps = [
            LayerStep(layer, position_1, None if self._recorded or isinstance(layer, RingCache) else span)
            for layer in layers
        ]
        x_B1C = self.model.hidden(ids_B1, positions=position_1, cache=KVCache(steps))
        return self._logits(x_B1C)[:, 0]

    def _logits(self, x_BTC: Tensor) -> Tensor:
        return self.head(x_BTC)[..., : self.config.vocab_size]


def _output_layer(model: GPT) -> nn.Linear:
    weight_VC = model.token_embedding.weight
    with torch.device("meta"):
        head = RowLinear(weight_VC.shape[1], weight_VC.shape[0], bias=False)
    head.weight = weight_VC
    return head


def _make_quick(module: nn.Module) -> None:
    """Replace every linear layer inside `module` by one with the same weights, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            with torch.device("meta"):
                quick = RowLinear(child.in_features, child.out_features, bias=child.bias is not None)
            quick.weight, quick.bias = child.weight, child.bias
            setattr(module, name, quick)
        else:
            _make_quick(child)
