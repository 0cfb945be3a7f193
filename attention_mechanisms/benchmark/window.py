"""Reading a prompt with a sliding window: time grows with T W, where that of full attention grows with T squared.

Shapes: B batch, H heads, T time, D head size, C model width.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_mechanisms.benchmark.attention_costs import HEAD_DIM, attention_flops, matrix_flops, visible_pairs
from attention_mechanisms.kernels import attend
from attention_mechanisms.masks import Mask
from attention_mechanisms.multi_head import MultiHeadAttention
from attention_mechanisms.sliding_window import SlidingWindowAttention
from utils.files import InputError
from utils.measuring import Row, assert_equal, dtype_name, exponent, interleaved, rate, ratio, shares, spread
from utils.peaks import free_memory, mean_watts, peak_memory

log = logging.getLogger(__name__)

N_HEADS = 12
D_MODEL = N_HEADS * HEAD_DIM
WINDOW = 512
TENSORS_AT_ONCE = 12  # of (T, C), inputs included
CHECKED_QUERIES = 64  # the last ones, which are computed by the plain formula too


@dataclass(frozen=True)
class Contender:
    """A way to compute attention to everything before, or to a window."""

    what: str  # "attention" alone, or a whole "layer"
    kernel: str
    window: int | None

    @property
    def name(self) -> str:
        """How far it reaches, and its kernel."""
        reach = "full" if self.window is None else f"window {self.window:,}"
        return f"{reach}, {self.kernel}"


FULL = {what: Contender(what, "sdpa", None) for what in ("attention", "layer")}
WINDOWED = [Contender(what, "sdpa", WINDOW) for what in FULL]
ON_GPU = [Contender("attention", "flex", window) for window in (None, WINDOW, 1024)]


def measure_windows(lengths: Sequence[int], rounds: int, device: torch.device, dtype: torch.dtype, peaks: Row) -> Row:
    """Measure each contender at each length, those of a length in turn, and how their times grow.

    Raises:
        InputError: if the longest has no room in memory.
    """
    needed = TENSORS_AT_ONCE * max(lengths) * D_MODEL * dtype.itemsize
    if needed > (free := free_memory(device)):
        raise InputError(
            f"{max(lengths):,} tokens need about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free: "
            "choose shorter --lengths"
        )
    contenders = [*FULL.values(), *WINDOWED, *(ON_GPU if device.type == "cuda" else [])]
    layers = {contender: _layer(contender, device, dtype) for contender in contenders if contender.what == "layer"}
    rows: list[Row] = []
    for length in lengths:
        log.info("windows at length %s", length)
        if device.type == "cuda":
            torch.compiler.reset()  # a kernel for this very length, as in training, not one for all lengths
        inputs = _inputs(length, device, dtype)
        errors = {contender: _check(contender, inputs, layers.get(contender)) for contender in contenders}
        works = {str(contender): _work(contender, inputs, layers.get(contender)) for contender in contenders}
        measured = interleaved(works, rounds, device)
        for contender in contenders:
            times = measured[str(contender)]
            full = measured[str(FULL[contender.what])]
            row: Row = {"what": contender.what, "name": contender.name, "kernel": contender.kernel}
            row |= {"window": contender.window, "length": length, "seconds": spread(times)}
            row |= {"tokens_per_second": rate(length, times), "error": errors[contender]}
            row["times_full"] = ratio(full, times)
            row["memory"] = peak_memory(works[str(contender)], device)
            power = mean_watts(works[str(contender)], device)
            row["joules_per_token"] = None if power is None else power * row["seconds"]["median"] / length
            flops, nbytes = _cost(contender, length, dtype, layers.get(contender))
            rows.append(row | shares(flops, nbytes, row["seconds"]["median"], peaks, dtype))
    size = {"dtype": dtype_name(dtype), "batch": 1, "n_heads": N_HEADS, "d_model": D_MODEL}
    return {**size, "rows": rows, "growth": [_growth(contender, rows) for contender in contenders]}


def _growth(contender: Contender, rows: list[Row]) -> Row:
    """Return how time grows with length, from four windows on: below, full attention is not much more work."""
    own = [row for row in rows if (row["what"], row["name"]) == (contender.what, contender.name)]
    long = [row for row in own if row["length"] >= 4 * WINDOW]
    growth: Row = {"what": contender.what, "name": contender.name, "exponent": None}
    if len(long) > 1:
        lengths = [row["length"] for row in long]
        medians = [row["seconds"]["median"] for row in long]
        growth |= {"from": lengths[0], "to": lengths[-1], "exponent": exponent(lengths, medians)}
        growth["time_per_token_ratio"] = medians[-1] / lengths[-1] / (medians[0] / lengths[0])
    return growth


def _layer(contender: Contender, device: torch.device, dtype: torch.dtype) -> MultiHeadAttention:
    torch.manual_seed(0)
    if contender.window is None:
        layer = MultiHeadAttention(D_MODEL, N_HEADS, kernel=contender.kernel)
    else:
        layer = SlidingWindowAttention(D_MODEL, N_HEADS, contender.window, kernel=contender.kernel)
    return layer.to(device, dtype).eval()


def _inputs(length: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Return queries, keys and values, and the input of a layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, N_HEADS, length, HEAD_DIM)] * 3 + [(1, length, D_MODEL)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def _work(contender: Contender, inputs: list[Tensor], layer: MultiHeadAttention | None) -> Callable[[], Tensor]:
    *qkv, x_BTC = inputs
    if layer is not None:
        return lambda: layer(x_BTC)
    mask = Mask(window=contender.window)
    return lambda: attend(*qkv, mask=mask, kernel=contender.kernel)


def _check(contender: Contender, inputs: list[Tensor], layer: MultiHeadAttention | None) -> float:
    """Compute the last queries again by the plain formula, as if all tokens before them were cached, and compare."""
    *qkv, x_BTC = inputs
    output = _work(contender, inputs, layer)()
    q, k, v = qkv if layer is None else layer.project(x_BTC)
    offset = max(0, q.shape[2] - CHECKED_QUERIES)
    mask = Mask(window=contender.window, query_offset=offset)
    expected = attend(q[:, :, offset:], k, v, mask=mask, kernel="manual")
    if layer is None:
        return assert_equal(contender.name, output[:, :, offset:], expected)
    return assert_equal(contender.name, output[:, offset:], layer.out(expected.transpose(1, 2).flatten(2)))


def _cost(contender: Contender, length: int, dtype: torch.dtype, layer: MultiHeadAttention | None) -> tuple[int, int]:
    """Return the operations needed, and the bytes that must be moved."""
    flops = attention_flops(1, N_HEADS, visible_pairs(length, length, contender.window), HEAD_DIM, HEAD_DIM)
    tensor = length * D_MODEL * dtype.itemsize
    if layer is None:
        return flops, 4 * tensor
    return flops + matrix_flops(layer, length), 2 * tensor + sum(weight.nbytes for weight in layer.parameters())
