"""GPT-2's four sizes with each kind of attention: bytes, operations, and the speed of writing one text.

Weights are random: they take as long to read whatever they say. Caches are filled with random numbers, not by a
prompt. The models of a size run in turn, round after round, in one process, and their weights lie in the same memory,
so that all of them together need no more than the largest.

Shapes: B batch (here 1), T time.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt_model.config import GPTConfig
from gpt_model.costs import cache_bytes, decoding_bytes, forward_flops, n_parameters, variants, weight_bytes
from gpt_model.fast.decoder import FastDecoder
from gpt_model.gpt import GPT
from utils.figures import BLUE, GREEN, INK, ORANGE, PURPLE
from utils.files import InputError
from utils.measuring import Row, dtype_name, interleaved, markdown_table, rate, ratio, shares, spread
from utils.peaks import free_memory, peak_memory

log = logging.getLogger(__name__)

SIZES = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")
BASELINE = "MHA"
COLORS = {"MHA": BLUE, "GQA": GREEN, "MLA": PURPLE, "SWA": ORANGE}
ALIGNMENT = 256  # numbers; each weight begins at a multiple of it
NOISE_LENGTH = 2**20  # random numbers, repeated until all weights have some


class Writer:
    """Writes the last `new_tokens` of a text of `context` tokens at each call, one after the other.

    Args:
        model: what writes.
        context: tokens of the text, with those that are written.
        new_tokens: how many are written.
        like: a tensor of the cache's dtype and device.
    """

    def __init__(self, model: GPT | FastDecoder, context: int, new_tokens: int, like: Tensor) -> None:
        self.model = model
        self.start = context - new_tokens
        self.new_tokens = new_tokens
        self.cache = model.new_cache(1, context)
        generator = torch.Generator().manual_seed(0)
        past = [
            torch.randn(1, buffer.shape[1], self.start, buffer.shape[3], generator=generator).to(like)
            for buffer in self.cache.layers[0].buffers
        ]
        for layer in self.cache.layers:
            layer.append(*past)
        self.first = torch.zeros(1, 1, dtype=torch.long, device=like.device)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Write, and return the logits after the last token, (1, 1, V)."""
        for layer in self.cache.layers:  # take back what the last call wrote
            if layer.max_length is None:  # a ring has lost what stood there; what stands there now will do
                layer.reset()
                layer.advance(self.start)
            else:
                layer.truncate(self.start)
        ids_BT = self.first
        for _ in range(self.new_tokens):
            logits_B1V, _ = self.model(ids_BT, cache=self.cache, last_only=True)
            ids_BT = logits_B1V.argmax(dim=-1)
        return logits_B1V


def measure_sizes(
    sizes: Sequence[str],
    dtypes: Sequence[torch.dtype],
    context: int,
    new_tokens: int,
    rounds: int,
    device: torch.device,
    peaks: Row,
    *,
    fast: bool = False,
) -> Row:
    """Measure each size with each of its `variants`.

    Args:
        sizes: names of presets.
        dtypes: of weights and caches.
        context: tokens of the text, with those that are written.
        new_tokens: how many are written in a round.
        rounds: how often each model is measured.
        device: where.
        peaks: see `measured_peaks`.
        fast: whether through `FastDecoder`, not by the plain model.

    Raises:
        InputError: if a size is not known, or its context is too short.
    """
    check_sizes(sizes, context, new_tokens)
    rows: list[Row] = []
    notes: list[str] = []
    for dtype in dtypes:
        for size in sizes:
            kinds = variants(GPTConfig.preset(size))
            needed = max(weight_bytes(kind, dtype) for kind in kinds.values())
            needed += sum(cache_bytes(kind, 1, context, dtype) for kind in kinds.values())
            if 1.1 * needed > free_memory(device):
                notes.append(f"{size} in {dtype_name(dtype)} needs {needed / 1e9:.1f} GB: left out")
                continue
            log.info("%s in %s", size, dtype_name(dtype))
            models = random_models(kinds, dtype, device)
            writers = {}
            for name, model in models.items():
                runner = FastDecoder(model, dtype_name(dtype)) if fast else model
                writers[name] = Writer(runner, context, new_tokens, like=model.token_embedding.weight)
            rows += _measure(size, kinds, writers, dtype, rounds, device, peaks)
    shape = {"batch": 1, "context": context, "new_tokens": new_tokens, "fast": fast}
    return {**shape, "notes": notes, "rows": rows}


def check_sizes(sizes: Sequence[str], context: int, new_tokens: int) -> None:
    """Check that each size is known, and can read `context` tokens and write the last of them.

    Raises:
        InputError: for the first one that is not or cannot.
    """
    for size in sizes:
        most = GPTConfig.preset(size).context_length
        if not 1 <= new_tokens < context <= most:
            raise InputError(f"{size} reads up to {most:,} tokens: {new_tokens} of {context:,} cannot be written")


def random_models(kinds: Mapping[str, GPTConfig], dtype: torch.dtype, device: torch.device) -> dict[str, GPT]:
    """Make models whose weights are the same random numbers in the same memory, which each reads in its own way."""
    models: dict[str, GPT] = {}
    for name, config in kinds.items():
        with torch.device("meta"):
            models[name] = GPT(config).eval().requires_grad_(False)
    memory = _noise(max(sum(map(_room, model.parameters())) for model in models.values()), dtype, device)
    for model in models.values():
        state = {}
        begin = 0
        for name, weight in model.named_parameters():
            state[name] = memory[begin : begin + weight.numel()].view(weight.shape)
            begin += _room(weight)
        model.load_state_dict(state, assign=True)
    return models


def _room(weight: Tensor) -> int:
    return -(-weight.numel() // ALIGNMENT) * ALIGNMENT


def _noise(numbers: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fill memory with a pattern of a million random numbers: drawing billions takes long."""
    pattern = (0.02 * torch.randn(NOISE_LENGTH, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    memory = torch.empty(numbers, dtype=dtype, device=device)
    for part in memory.split(NOISE_LENGTH):
        part.copy_(pattern[: len(part)])
    return memory


def _measure(
    size: str,
    kinds: Mapping[str, GPTConfig],
    writers: Mapping[str, Writer],
    dtype: torch.dtype,
    rounds: int,
    device: torch.device,
    peaks: Row,
) -> list[Row]:
    measured = interleaved(writers, rounds, device)
    rows = []
    for name, writer in writers.items():
        config = kinds[name]
        context = writer.start + writer.new_tokens
        held = range(writer.start, context)  # tokens in the cache before each step
        flops = sum(forward_flops(config, 1, 1, cached=cached) for cached in held)
        nbytes = sum(decoding_bytes(config, 1, cached + 1, dtype) for cached in held)
        weights, cache = weight_bytes(config, dtype), cache_bytes(config, 1, context, dtype)
        extra = peak_memory(writer, device)
        times = spread(measured[name])
        rows.append(
            {
                "size": size, "attention": name, "dtype": dtype_name(dtype), "parameters": n_parameters(config),
                "weight_bytes": weights, "cache_bytes": cache,
                "cache_saved": 1 - cache / cache_bytes(kinds[BASELINE], 1, context, dtype),
                "memory": None if extra is None else weights + cache + extra,
                "flops_per_token": flops / writer.new_tokens,
                "seconds": times, "tokens_per_second": rate(writer.new_tokens, measured[name]),
                "times_mha": ratio(measured[BASELINE], measured[name]),
                **shares(flops, nbytes, times["median"], peaks, dtype),
            }
        )  # fmt: skip
    return rows


# -- shown -------------------------------------------------------------------------------------------------


def sizes_table(result: Row) -> str:
    """Show every row in Markdown."""
    columns = ["size", "attention", "", "parameters:", "weights:", "cache:", "saved:", "held:", "GFLOP per token:"]
    columns += ["tokens/s:", "times MHA:", "of peak bytes/s:"]
    rows = []
    for row in result["rows"]:
        speed = row["tokens_per_second"]
        cells = [row["size"], row["attention"], row["dtype"], f"{row['parameters']:,}"]
        cells += [_megabytes(row["weight_bytes"]), _megabytes(row["cache_bytes"]), f"{row['cache_saved']:.1%}"]
        cells += [_megabytes(row["memory"]), f"{row['flops_per_token'] / 1e9:.2f}"]
        cells += [f"{speed['median']:,.1f} ({speed['q1']:,.1f} to {speed['q3']:,.1f})"]
        rows.append([*cells, f"{row['times_mha']['median']:.2f}", f"{row['bytes_share']:.0%}"])
    how = "through FastDecoder" if result["fast"] else "by the model as it is"
    text = f"The last {result['new_tokens']} of {result['context']:,} tokens, batch {result['batch']}, {how}."
    return "\n".join([text, "", markdown_table(columns, rows), *(f"\n{note}." for note in result["notes"])])


def _megabytes(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / 1e6:,.1f} MB"


def plot_sizes(axes: Any, result: Row) -> None:
    """Plot tokens per second of each kind of attention, on one of the axes for each size; dtypes side by side."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in result["rows"]))
    label = "tokens per second" + (f" ({dtypes[0]}; pale: {dtypes[1]})" if len(dtypes) > 1 else "")
    for axis, size in zip(axes, dict.fromkeys(row["size"] for row in result["rows"]), strict=False):
        rows = [row for row in result["rows"] if row["size"] == size]
        names = list(dict.fromkeys(row["attention"] for row in rows))
        for row in rows:
            place = dtypes.index(row["dtype"])
            y = names.index(row["attention"]) + (place - (len(dtypes) - 1) / 2) * 0.84 / len(dtypes)
            speed = row["tokens_per_second"]["median"]
            color = COLORS[row["attention"][:3]]
            axis.barh(y, speed, 0.78 / len(dtypes), color=color, alpha=1 - 0.5 * place / max(1, len(dtypes) - 1))
            axis.text(speed, y, f" {speed:,.1f}", va="center", color=INK, fontsize=7)
        axis.set_yticks(range(len(names)), names)
        axis.set(title=size, xlabel=label)
        axis.margins(x=0.16)
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()
