"""Decoding with a cache, one token per row and step: what each kind of attention gains by remembering less.

Twelve layers of GPT-2 small's width, attention alone, each with a cache of its own. Eight rows of 1,024 tokens
have 600 MB of float32 keys and values: far more than a processor's own caches hold, so that each step reads
them from memory, as it would in a model. The caches are filled with random numbers, the same for all.

Shapes: B batch, T time, C model width.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attention_mechanisms.benchmark.attention_costs import Layer, decoding_bytes, decoding_flops
from attention_mechanisms.grouped_query import GroupedQueryAttention
from attention_mechanisms.kv_cache import KVCache
from attention_mechanisms.latent import MultiHeadLatentAttention
from attention_mechanisms.multi_head import MultiHeadAttention
from attention_mechanisms.sliding_window import SlidingWindowAttention
from utils.measuring import Row, assert_equal, dtype_name, interleaved, rate, ratio, shares, spread
from utils.peaks import free_memory, mean_watts, peak_memory

log = logging.getLogger(__name__)

D_MODEL = 768
N_HEADS = 12
N_LAYERS = 12
BATCH = 8
N_GROUPS = 4
LATENT_DIM = 192
WINDOW = 256
BASELINE = "MHA"
THEIRS = "transformers, "
DTYPES = (torch.float32, torch.bfloat16)
# Caches of MHA's size that need room at once: its own, transformers' two, each of which exists twice for a moment,
# and those of the other kinds together.
CACHES_AT_ONCE = 7


class Decoder:
    """Layers of attention whose caches hold `context` tokens; a call adds one more to each row, as its last."""

    def __init__(self, layers: Sequence[Layer], context: int) -> None:
        self.layers = list(layers)
        self.context = context
        self.cache = KVCache([layer.new_cache(BATCH, context + 1) for layer in layers])
        generator = torch.Generator().manual_seed(0)
        first = self.cache.layers[0].buffers
        self.past = [
            torch.randn(BATCH, buffer.shape[1], context, buffer.shape[3], generator=generator).to(buffer)
            for buffer in first
        ]
        for layer_cache in self.cache.layers:
            layer_cache.append(*self.past)

    def __call__(self, x_B1C: Tensor) -> Tensor:
        """Return the sum of all layers' outputs."""
        for layer_cache in self.cache.layers:
            if layer_cache.max_length is not None:  # take back the last call's token; a ring simply moves on
                layer_cache.truncate(self.context)
        mask = self.cache.mask()
        y_B1C = x_B1C
        for layer, layer_cache in zip(self.layers, self.cache.layers, strict=True):
            y_B1C = y_B1C + layer(y_B1C, mask=mask, cache=layer_cache)
        return y_B1C - x_B1C

    @property
    def cached_bytes(self) -> int:
        """The bytes that the caches take."""
        return self.cache.nbytes


class TheirDecoder:
    """Does the same with transformers: its GPT-2 attention and its cache, which each step copies to append to it."""

    def __init__(self, ours: Decoder, implementation: str) -> None:
        from transformers import DynamicCache, GPT2Config  # slow to import, and perhaps not there
        from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

        weight = ours.layers[0].out.weight
        config = GPT2Config(n_embd=D_MODEL, n_head=N_HEADS, n_layer=len(ours.layers))
        config._attn_implementation = implementation
        self.context = ours.context
        self.cache = DynamicCache()
        self.layers = []
        for i, layer in enumerate(ours.layers):
            theirs = GPT2Attention(config, layer_idx=i).to(weight).eval()
            for mine, its in ((layer.qkv, theirs.c_attn), (layer.out, theirs.c_proj)):
                its.weight.copy_(mine.weight.T)  # GPT-2 stores its matrices transposed
                its.bias.copy_(mine.bias)
            self.cache.update(*ours.past, i)
            self.layers.append(theirs)

    def __call__(self, x_B1C: Tensor) -> Tensor:
        """Return the sum of all layers' outputs."""
        y_B1C = x_B1C
        for i, layer in enumerate(self.layers):
            cached = self.cache.layers[i]
            cached.keys, cached.values = (past[:, :, : self.context] for past in (cached.keys, cached.values))
            y_B1C = y_B1C + layer(y_B1C, past_key_values=self.cache)[0]
        return y_B1C - x_B1C

    @property
    def cached_bytes(self) -> int:
        """The bytes that the caches take."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def measure_decoding(
    contexts: Sequence[int], dtypes: Sequence[torch.dtype], n_layers: int, rounds: int, device: torch.device, peaks: Row
) -> Row:
    """Measure all kinds of attention at each context, those of a context in turn."""
    rows: list[Row] = []
    checks: Row = {}
    notes: list[str] = []
    for dtype in dtypes:
        layers = _layers(n_layers, dtype, device)
        checks |= {f"{name}, {dtype_name(dtype)}": _check_cached(name, made[0]) for name, made in layers.items()}
        for context in contexts:
            log.info("decoding at context %s in %s", context, dtype_name(dtype))
            needed = CACHES_AT_ONCE * n_layers * 2 * BATCH * context * D_MODEL * dtype.itemsize
            if needed > free_memory(device):
                notes.append(f"context {context:,} in {dtype_name(dtype)} needs {needed / 1e9:.0f} GB: left out")
                continue
            decoders = _decoders(layers, context, notes)
            x_B1C = torch.randn(BATCH, 1, D_MODEL, generator=torch.Generator().manual_seed(1)).to(device, dtype)
            checks |= _check_each_other(decoders, x_B1C, f"context {context}, {dtype_name(dtype)}")
            rows += _measure(decoders, x_B1C, rounds, peaks)
    size = {"batch": BATCH, "n_layers": n_layers, "d_model": D_MODEL, "n_heads": N_HEADS}
    return {**size, "checks": checks, "notes": list(dict.fromkeys(notes)), "rows": rows}


def _layers(n_layers: int, dtype: torch.dtype, device: torch.device) -> dict[str, list[Layer]]:
    """Make layers of every kind; the two forms of latent attention share their weights."""
    torch.manual_seed(0)
    kinds: dict[str, Any] = {
        BASELINE: lambda: MultiHeadAttention(D_MODEL, N_HEADS),
        f"GQA, {N_GROUPS} groups": lambda: GroupedQueryAttention(D_MODEL, N_HEADS, N_GROUPS),
        f"MLA absorbed, R = {LATENT_DIM}": lambda: MultiHeadLatentAttention(
            D_MODEL, N_HEADS, LATENT_DIM, form="absorbed"
        ),
        f"SWA, W = {WINDOW}": lambda: SlidingWindowAttention(D_MODEL, N_HEADS, WINDOW),
    }
    made: dict[str, list[Layer]] = {}
    for name, make in kinds.items():
        made[name] = [make().to(device, dtype).eval() for _ in range(n_layers)]
        if name.startswith("MLA"):
            made[name.replace("absorbed", "naive")] = [_naive(layer) for layer in made[name]]
    return made


def _naive(layer: Layer) -> Layer:
    """Return a layer with the same weights that makes keys and values of all tokens anew."""
    twin = copy.copy(layer)
    twin.form = "naive"
    return twin


def _decoders(layers: dict[str, list[Layer]], context: int, notes: list[str]) -> dict[str, Decoder | TheirDecoder]:
    decoders: dict[str, Decoder | TheirDecoder] = {name: Decoder(made, context) for name, made in layers.items()}
    try:
        for implementation in ("eager", "sdpa"):
            decoders[THEIRS + implementation] = TheirDecoder(decoders[BASELINE], implementation)
    except ImportError:
        notes.append("transformers is not installed, so it is left out")
    return decoders


def _check_cached(name: str, layer: Layer) -> float:
    """Check a prompt longer than the window, and a few single tokens after it, against one pass over all of them."""
    weight = layer.out.weight
    generator = torch.Generator().manual_seed(2)
    x_BTC = torch.randn(2, WINDOW + 64, D_MODEL, generator=generator).to(weight)
    cache = layer.new_cache(2, x_BTC.shape[1])
    outputs = [layer(part, cache=cache) for part in x_BTC.split([WINDOW + 61, 1, 1, 1], dim=1)]
    whole = _naive(layer) if isinstance(layer, MultiHeadLatentAttention) else layer
    return assert_equal(f"{name}: cached and in one pass", torch.cat(outputs, dim=1), whole(x_BTC))


def _check_each_other(decoders: dict[str, Decoder | TheirDecoder], x_B1C: Tensor, where: str) -> dict[str, float]:
    """Check transformers against our MHA with the same weights, and absorbed latent attention against naive."""
    outputs = {name: decoder(x_B1C) for name, decoder in decoders.items()}
    absorbed, naive = (name for name in outputs if name.startswith("MLA"))
    pairs = [(name, BASELINE) for name in outputs if name.startswith(THEIRS)] + [(absorbed, naive)]
    return {
        f"{one} = {other}, {where}": assert_equal(f"{one} and {other}", outputs[one], outputs[other])
        for one, other in pairs
    }


def _measure(decoders: dict[str, Decoder | TheirDecoder], x_B1C: Tensor, rounds: int, peaks: Row) -> list[Row]:
    device, dtype = x_B1C.device, x_B1C.dtype
    works = {name: lambda decoder=decoder: decoder(x_B1C) for name, decoder in decoders.items()}
    measured = interleaved(works, rounds, device)
    rows = []
    for name, decoder in decoders.items():
        ours = decoders[BASELINE] if isinstance(decoder, TheirDecoder) else decoder
        flops = sum(decoding_flops(layer, BATCH, decoder.context + 1) for layer in ours.layers)
        nbytes = decoding_bytes(ours.layers, decoder.cached_bytes)
        times = spread(measured[name])
        extra = peak_memory(works[name], device)
        power = mean_watts(works[name], device)
        rows.append(
            {
                "attention": name, "context": decoder.context, "dtype": dtype_name(dtype), "seconds": times,
                "tokens_per_second": rate(BATCH, measured[name]),
                "times_mha": ratio(measured[BASELINE], measured[name]),
                "cache_bytes_per_token": decoder.cached_bytes / BATCH / (decoder.context + 1),
                "memory": None if extra is None else extra + decoder.cached_bytes,
                "joules_per_token": None if power is None else power * times["median"] / BATCH,
                **shares(flops, nbytes, times["median"], peaks, dtype),
            }
        )  # fmt: skip
    return rows
