"""Every kernel and every kind of layer over length, width and batch; forward, and forward with backward.

What would not fit, or would take too long, is not tried, and its row says so.

Shapes: B batch, H heads, T time, D head size, C model width.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from attention_mechanisms.benchmark.attention_costs import HEAD_DIM, Cost, Layer, Shape, kernel_cost, layer_cost
from attention_mechanisms.fast import flex
from attention_mechanisms.grouped_query import GroupedQueryAttention
from attention_mechanisms.kernels import attend
from attention_mechanisms.latent import MultiHeadLatentAttention
from attention_mechanisms.masks import Mask
from attention_mechanisms.multi_head import MultiHeadAttention
from attention_mechanisms.sliding_window import SlidingWindowAttention
from utils.hardware import compiler_works
from utils.measuring import Row, assert_equal, dtype_name, interleaved, rate, shares, spread
from utils.peaks import Work, free_memory, mean_watts, peak_memory

KERNELS = ("manual", "sdpa", "flex")
# On a GPU PyTorch has several fused kernels behind one name: each is timed beside the one that it chooses itself.
BACKENDS = {
    "sdpa: cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa: flash": SDPBackend.FLASH_ATTENTION,
    "sdpa: efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PASSES = {"forward": False, "forward+backward": True}
HEADS_PER_GROUP = 4  # in GQA
LATENT_SHARE = 4  # in MLA: C / R
WINDOW = 256
CHECKED_QUERIES = 64  # the last ones, which are computed by the plain formula too
CHECKED_TOKENS = 640  # of a layer's input: enough for a window to be cut into blocks
SHOWN_BUDGETS = 10  # how many times the budget the rows may take that are shown

# Why something was left out.
WOULD_NOT_FIT = "would not fit"  # by formula
OUT_OF_MEMORY = "out of memory"  # by trying
TOO_SLOW = "too slow"
NOT_AVAILABLE = "not available"
Why = tuple[str, str]  # one of these, and an explanation


@dataclass(frozen=True)
class Sweep:
    """The shapes to measure, and how long that may take."""

    lengths: Sequence[int]
    widths: Sequence[int]
    batches: Sequence[int]
    rounds: int
    budget: float
    """Seconds that one call may take: what needs longer even on a device at its peaks is left out."""
    compile_on_cpu: bool
    """Whether FlexAttention may be compiled on a CPU, which takes some ten seconds for each width."""
    device: torch.device
    dtype: torch.dtype
    peaks: Row

    @property
    def shown(self) -> tuple[int, int]:
        """Width and batch of the rows that tables and figures show; they may take longer than others."""
        wanted = 1024 if self.device.type == "cuda" else 512
        return min(self.widths, key=lambda width: abs(width - wanted)), min(self.batches)

    @property
    def compiles(self) -> bool:
        """Whether FlexAttention is compiled here."""
        return self.compile_on_cpu or self.device.type == "cuda"

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels that this device has."""
        return KERNELS + (tuple(BACKENDS) if self.device.type == "cuda" else ())


def measure_sweep(sweep: Sweep) -> Row:
    """Measure all shapes, the contenders of a shape in turn."""
    rows: list[Row] = []
    with tqdm(total=len(sweep.widths) * len(sweep.batches) * len(sweep.lengths), unit="shape", leave=False) as progress:
        for width in sweep.widths:
            layers = _layers(width, sweep.device, sweep.dtype)
            for batch, length in itertools.product(sweep.batches, sweep.lengths):
                shape = Shape(length, width, batch)
                progress.set_description(f"{batch} x {length} x {width}")
                if sweep.compiles and ((width, batch) == sweep.shown or length == sweep.lengths[0]):
                    torch.compiler.reset()  # it keeps a few kernels per function, and then compiles no more
                for name, training in PASSES.items():
                    rows += [{"pass": name, **row} for row in _measure_shape(sweep, shape, training, layers)]
                progress.update()
    size = {"dtype": dtype_name(sweep.dtype), "head_dim": HEAD_DIM, "budget": sweep.budget, "shown": sweep.shown}
    return {**size, "group": HEADS_PER_GROUP, "latent_share": LATENT_SHARE, "window": WINDOW, "rows": rows}


def _layers(width: int, device: torch.device, dtype: torch.dtype) -> dict[str, Layer]:
    """Make a layer of each kind, and check the kernel that it chooses itself against the plain formula."""
    torch.manual_seed(0)
    n_heads = width // HEAD_DIM
    layers = {
        "MHA": MultiHeadAttention(width, n_heads),
        "GQA": GroupedQueryAttention(width, n_heads, n_heads // HEADS_PER_GROUP),
        "MLA": MultiHeadLatentAttention(width, n_heads, width // LATENT_SHARE),
        "SWA": SlidingWindowAttention(width, n_heads, WINDOW),
    }
    x_BTC = torch.randn(1, CHECKED_TOKENS, width).to(device, dtype)
    for name, layer in layers.items():
        layer.to(device, dtype)
        with torch.no_grad():
            y_BTC = layer(x_BTC)
            layer.kernel = "manual"
            assert_equal(f"{name} of width {width}", y_BTC, layer(x_BTC))
        layer.kernel = "auto"
    return layers


def _measure_shape(sweep: Sweep, shape: Shape, training: bool, layers: Mapping[str, Layer]) -> list[Row]:
    """Return a row for each kernel and each kind of layer, measured or left out."""
    kernels = {name: kernel_cost(_formula(name, sweep, shape), shape, sweep.dtype, training) for name in sweep.names}
    variants = {name: layer_cost(layer, shape, sweep.dtype, training) for name, layer in layers.items()}
    free = free_memory(sweep.device)
    rows = []
    for what, costs in (("kernel", kernels), ("layer", variants)):
        left_out: dict[str, Why] = {}
        for name, cost in costs.items():
            if why := _obstacle(sweep, shape, training, name, cost, free):
                left_out[name] = why
        works: dict[str, Work] = {}
        if len(left_out) < len(costs):
            inputs = _inputs(sweep, shape, training, what)
            for name in costs:
                if name not in left_out:
                    works[name] = _work(inputs, training, name, layers.get(name))
            left_out |= _check(inputs, training, what, works)
            works = {name: work for name, work in works.items() if name not in left_out}
        measured = interleaved(works, sweep.rounds, sweep.device)
        for name, cost in costs.items():
            row = {"what": what, "name": name, **asdict(shape)}
            if name in left_out:
                rows.append({**row, "left_out": left_out[name][0], "because": left_out[name][1]})
            else:
                rows.append(row | _numbers(sweep, shape, works[name], measured[name], cost))
    return rows


def _formula(name: str, sweep: Sweep, shape: Shape) -> str:
    """Return whose formula a kernel's cost has: run eagerly on a CPU, FlexAttention stores the scores too."""
    eager = sweep.device.type == "cpu" and _scores(shape) < flex.SCORES_WORTH_COMPILING
    return "manual" if name == "manual" or (name == "flex" and eager) else "fused"


def _scores(shape: Shape) -> int:
    return shape.batch * shape.n_heads * shape.length**2


def _obstacle(sweep: Sweep, shape: Shape, training: bool, name: str, cost: Cost, free: float) -> Why | None:
    """Return why something is not even tried, or None."""
    tensor = shape.tokens * shape.d_model * sweep.dtype.itemsize
    if name == "flex" and (missing := flex.obstacle(sweep.device.type, HEAD_DIM, training, dropout=0.0)):
        return NOT_AVAILABLE, missing
    if name == "flex" and sweep.device.type == "cpu" and _scores(shape) >= flex.SCORES_WORTH_COMPILING:
        if not sweep.compile_on_cpu or shape.batch > min(sweep.batches):
            return TOO_SLOW, "compiling it for this width and batch takes longer than all else"
        if not compiler_works("cpu"):
            return NOT_AVAILABLE, "torch.compile does not work here"
    needed = cost.memory + (8 if training else 4) * tensor  # q, k, v and x, and as many gradients
    if needed > 0.9 * free:
        return WOULD_NOT_FIT, f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    peaks = sweep.peaks["flops_per_second"][dtype_name(sweep.dtype)], sweep.peaks["bytes_per_second"]
    budgets = SHOWN_BUDGETS if (shape.d_model, shape.batch) == sweep.shown else 1
    if (least := cost.least_seconds(*peaks)) > budgets * sweep.budget:
        return TOO_SLOW, f"takes {least:.2g} s at least"
    return None


def _inputs(sweep: Sweep, shape: Shape, training: bool, what: str) -> list[Tensor]:
    """Return queries, keys and values for a kernel, or x for a layer; and last the gradient that comes back."""
    B, H, T, C = shape.batch, shape.n_heads, shape.length, shape.d_model
    size = (B, H, T, HEAD_DIM) if what == "kernel" else (B, T, C)
    generator = torch.Generator(sweep.device).manual_seed(0)
    tensors = [
        torch.randn(size, generator=generator, device=sweep.device, dtype=sweep.dtype)
        for _ in range(4 if what == "kernel" else 2)
    ]
    for tensor in tensors[:-1]:
        tensor.requires_grad_(training)
    return tensors


def _work(inputs: list[Tensor], training: bool, name: str, layer: Layer | None) -> Work:
    """Return a function that computes the output, or in training the gradients of all inputs and weights."""
    *given, dy = inputs
    kernel = "sdpa" if name in BACKENDS else name

    def forward() -> Tensor:
        return attend(*given, kernel=kernel) if layer is None else layer(*given)

    def work() -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(training):
            y = forward()
        return torch.autograd.grad(y, [*given, *(layer.parameters() if layer else [])], dy) if training else (y,)

    if name not in BACKENDS:
        return work

    def with_backend() -> tuple[Tensor, ...]:
        with sdpa_kernel(BACKENDS[name]):
            return work()

    return with_backend


def _check(inputs: list[Tensor], training: bool, what: str, works: Mapping[str, Work]) -> dict[str, Why]:
    """Call everything once and compare: outputs with the plain formula, gradients with one another.

    Returns:
        Why some of them cannot be measured after all.
    """
    left_out: dict[str, Why] = {}
    reference: Sequence[Tensor] | None = None
    for name, work in works.items():
        try:
            outputs = work()
        except torch.OutOfMemoryError as error:
            left_out[name] = OUT_OF_MEMORY, str(error).split(".")[0]
            continue
        except RuntimeError as error:
            if name not in BACKENDS:
                raise
            left_out[name] = NOT_AVAILABLE, str(error).split(".")[0]
            continue
        if what == "layer":
            continue  # layers have been checked when they were made
        if not training:
            q, k, v = (x.detach() for x in inputs[:3])
            offset = max(0, q.shape[2] - CHECKED_QUERIES)
            expected = attend(q[:, :, offset:], k, v, mask=Mask(query_offset=offset), kernel="manual")
            assert_equal(name, outputs[0][:, :, offset:], expected)
        else:
            reference = reference or outputs
            for output, expected in zip(outputs, reference, strict=True):
                assert_equal(f"{name}, a gradient", output, expected)
    return left_out


def _numbers(sweep: Sweep, shape: Shape, work: Work, times: list[float], cost: Cost) -> Row:
    median = spread(times)["median"]
    power = mean_watts(work, sweep.device) if (shape.d_model, shape.batch) == sweep.shown else None
    return {
        "seconds": spread(times),
        "tokens_per_second": rate(shape.tokens, times),
        "memory": peak_memory(work, sweep.device),
        "joules_per_token": None if power is None else power * median / shape.tokens,
        **shares(cost.flops, cost.nbytes, median, sweep.peaks, sweep.dtype),
    }
