"""What the tests of this chapter share: every kind of layer, small, and attention written out by hand.

Nothing here but the layers themselves uses the chapter's code: `sees` and `by_hand` are its independent twin.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_mechanisms import (
    GroupedQueryAttention,
    LayerCache,
    Mask,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    SlidingWindowAttention,
)

C, H, D = 24, 4, 6
LATENT, QUERY_LATENT, ROPE = 10, 8, 4
WINDOW, SINKS = 4, 2

Layer = MultiHeadAttention | MultiHeadLatentAttention


def _variants() -> dict[str, Callable[..., Layer]]:
    made: dict[str, Callable[..., Layer]] = {}
    for ending, rope in (("", False), ("-rope", True)):
        made[f"mha{ending}"] = partial(MultiHeadAttention, C, H, rope=rope)
        made[f"mha-separate{ending}"] = partial(MultiHeadAttention, C, H, fused=False, rope=rope)
        made[f"gqa{ending}"] = partial(GroupedQueryAttention, C, H, 2, rope=rope)
        made[f"mqa{ending}"] = partial(GroupedQueryAttention, C, H, 1, rope=rope)
        made[f"swa{ending}"] = partial(SlidingWindowAttention, C, H, WINDOW, rope=rope)
        made[f"swa-sinks{ending}"] = partial(SlidingWindowAttention, C, H, WINDOW, n_sinks=SINKS, rope=rope)
    made["swa-gqa-sinks-rope"] = partial(SlidingWindowAttention, C, H, WINDOW, n_sinks=SINKS, n_kv_groups=2, rope=True)
    latent = partial(MultiHeadLatentAttention, C, H, LATENT)
    for form, rope_dim in itertools.product(("auto", "naive", "absorbed"), (0, ROPE)):
        name = f"mla-{form}" + ("-rope" if rope_dim else "")
        made[name] = partial(latent, form=form, rope_dim=rope_dim)
        made[f"{name}-no_norm"] = partial(latent, form=form, rope_dim=rope_dim, latent_norm=False)
        made[f"{name}-query"] = partial(latent, form=form, rope_dim=rope_dim, query_latent_dim=QUERY_LATENT)
    return made


VARIANTS = _variants()
# one of each idea, for what takes long
FEW_VARIANTS = ["mha", "gqa-rope", "swa", "swa-sinks-rope", "mla-naive-rope-query", "mla-absorbed-rope"]


def build(name: str, kernel: str = "auto", dtype: torch.dtype = torch.float32) -> Layer:
    """A layer whose attention is decided, whose biases matter and whose norms do something."""
    torch.manual_seed(0)
    layer = VARIANTS[name](kernel=kernel)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(2 * parameter if parameter.dim() > 1 else parameter + 0.3 * torch.randn_like(parameter))
    return layer.to(dtype).eval()


def plain(layer: Layer, dtype: torch.dtype) -> Layer:
    """The same weights in the form to check against: the manual kernel, latents expanded."""
    twin = copy.deepcopy(layer).to(dtype)
    twin.kernel = "manual"
    if isinstance(twin, MultiHeadLatentAttention):
        twin.form = "naive"
    return twin


def feed(layer: Layer, x_BTC: Tensor, sizes: Sequence[int], cache: LayerCache, mask: Mask | None = None) -> Tensor:
    """The outputs of chunks given one after the other."""
    return torch.cat([layer(chunk, mask=mask, cache=cache) for chunk in x_BTC.split(list(sizes), dim=1)], dim=1)


def _of_row(value: Any, row: int) -> Any:
    return value[row] if isinstance(value, tuple) else value


def sees(mask: Mask, row: int, query: int, slot: int) -> bool:
    """The rules in the docstring of masks.py for one query and one key, in plain numbers."""
    position = query + _of_row(mask.query_offset, row)
    first = _of_row(mask.left_padding or 0, row)
    positions, ids = (
        None if t is None else (t if t.dim() == 1 else t[row]).tolist() for t in (mask.key_positions, mask.document_ids)
    )
    key = slot if positions is None else positions[slot]
    if key < first:  # padding, or nothing at all
        return False
    if mask.causal and key > position:
        return False
    if mask.window is not None and position - key >= mask.window and key - first >= mask.n_sinks:
        return False
    return ids is None or ids[position] == ids[key]


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float | None = None) -> Tensor:
    """One query at a time, in float64."""
    B, n_heads, T, width = q.shape
    G, S, E = v.shape[1:]
    out = torch.zeros(B, n_heads, T, E, dtype=torch.float64)
    scale = 1 / math.sqrt(width) if scale is None else scale
    for b, t in itertools.product(range(B), range(T)):
        seen = [s for s in range(S) if sees(mask, b, t, s)]
        for h in range(n_heads if seen else 0):
            keys, values = k[b, h * G // n_heads, seen].double(), v[b, h * G // n_heads, seen].double()
            out[b, h, t] = (keys @ q[b, h, t].double() * scale).softmax(-1) @ values
    return out


def random_qkv(
    B: int, n_heads: int, G: int, T: int, S: int, width: int, E: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, n_heads, T, width), (B, G, S, width), (B, G, S, E)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@st.composite
def masks(draw: st.DrawFn, B: int, T: int, S: int, *, key_positions: bool = True) -> Mask:
    """Any mask for B rows, T queries and S keys; the queries need not end where the keys do."""
    causal, longest = draw(st.booleans()), S + 2
    offset = draw(st.one_of(st.integers(0, S), st.tuples(*[st.integers(0, S)] * B)))
    padding = draw(st.none() | st.tuples(*[st.integers(0, longest)] * B))
    window = draw(st.none() | st.integers(1, longest)) if causal else None
    rows = draw(st.sampled_from([(), (B,)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    ids = positions = None
    if draw(st.booleans()):  # as many as there are positions, those of queries that come after all keys too
        ids = torch.randint(3, (*rows, S + T + longest), generator=generator)
    if key_positions and draw(st.booleans()):
        positions = torch.randint(-1, longest, (*draw(st.sampled_from([(), (B,)])), S), generator=generator)
    return Mask(
        causal=causal, window=window, n_sinks=draw(st.integers(0, 3)), query_offset=offset, left_padding=padding,
        document_ids=ids, key_positions=positions,
    )  # fmt: skip


class Sizes(TorchDispatchMode):
    """The shapes of the memory that operations take while this is active: views of older memory do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        new = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in known]
        self.shapes += [tuple(t.shape) for t in new]
        return result

    @property
    def largest(self) -> int:
        """Numbers in the largest tensor."""
        return max(math.prod(shape) for shape in self.shapes)
