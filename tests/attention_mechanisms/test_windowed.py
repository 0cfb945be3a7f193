"""A window in blocks: the same numbers as the rules one by one, and never a tensor of T x S."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from attention_mechanisms import Mask, SlidingWindowAttention, attend, explain_kernel
from attention_mechanisms.fast import windowed
from tests.attention_mechanisms.cases import C, H, Sizes, by_hand, feed, random_qkv

BY_BLOCKS = "sdpa: in blocks, it skips the keys outside the window"


@given(
    B=st.integers(1, 2), G=st.integers(1, 2), group=st.integers(1, 2), width=st.sampled_from([1, 3, 8]),
    E=st.sampled_from([1, 5, 8]), T=st.integers(2, 30), past=st.integers(0, 12), window=st.integers(1, 6),
    smallest=st.integers(1, 4), together=st.integers(1, 3),
    extra=st.sampled_from(["sinks", "padding", "documents", "documents by row"]), data=st.data(),
)  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_blocks_give_what_the_rules_give(
    B: int, G: int, group: int, width: int, E: int, T: int, past: int, window: int, smallest: int, together: int,
    extra: str, data: st.DataObject,
) -> None:  # fmt: skip
    S, fields = past + T, {}
    if extra == "padding":
        fields["left_padding"] = tuple(data.draw(st.lists(st.integers(0, S), min_size=B, max_size=B)))
    elif extra != "sinks":
        shape = (S,) if extra == "documents" else (B, S)
        fields["document_ids"] = torch.randint(3, shape, generator=torch.Generator().manual_seed(T))
    n_sinks = 0 if extra == "padding" else data.draw(st.integers(0, 3))
    mask = Mask(window=window, n_sinks=n_sinks, query_offset=past, **fields)
    q, k, v = random_qkv(B, G * group, G, T, S, width, E)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windowed, "FEWEST_QUERIES", smallest)
        patch.setattr(windowed, "BLOCKS_PER_CALL", together)
        assume(explain_kernel(q, k, v, mask=mask) == BY_BLOCKS)
        results = [attend(q, k, v, mask=mask, kernel=kernel, scale=0.5) for kernel in ("sdpa", "auto")]
    for result in results:
        torch.testing.assert_close(result.double(), by_hand(q, k, v, mask, scale=0.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_sinks": 2},
        {"n_sinks": 2, "document_ids": torch.tensor([0] * 5 + [1] * 7)},
        {"left_padding": (0, 5)},  # whose queries see nothing
    ],
    ids=["plain", "sinks", "documents", "padding"],
)
def test_gradients(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    monkeypatch.setattr(windowed, "FEWEST_QUERIES", 2)
    mask = Mask(window=2, query_offset=1, **fields)
    q, k, v = (x.double().requires_grad_() for x in random_qkv(2, 2, 1, 11, 12, 2, 3))
    assert explain_kernel(q, k, v, mask=mask) == BY_BLOCKS
    assert torch.autograd.gradcheck(lambda *qkv: attend(*qkv, mask=mask), (q, k, v))


def test_no_tensor_of_all_scores_is_made() -> None:
    """Neither scores nor a mask of T x S, forward or backward, in training or with an empty cache."""
    T, window = 2048, 64
    torch.manual_seed(0)
    layer, x = SlidingWindowAttention(C, H, window, n_sinks=3), torch.randn(1, T, C, requires_grad=True)
    with Sizes() as sizes:
        layer(x).sum().backward()
    # the largest are q, k and v of all tokens, cut into windows: H D numbers a token for each, at most twice over
    assert sizes.largest <= 2 * T * C < T * T / 8
    assert not [shape for shape in sizes.shapes if shape[-2:] == (T, T)]
    with torch.no_grad(), Sizes() as sizes:
        layer(x, cache=layer.new_cache(1, T))
    assert sizes.largest < T * T / 8


def test_layer_in_blocks_equals_the_layer_by_the_plain_formula() -> None:
    torch.manual_seed(0)
    layer = SlidingWindowAttention(C, H, 16, n_sinks=2, n_kv_groups=2, rope=True)
    x = torch.randn(2, 300, C)
    outputs, gradients = [], []
    for kernel in ("manual", "sdpa"):
        layer.kernel = kernel
        layer.zero_grad()
        outputs.append(layer(x))
        outputs[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n_sinks", [0, 3])
def test_a_long_prompt_in_blocks_fills_the_ring_as_a_slow_one_does(n_sinks: int) -> None:
    torch.manual_seed(0)
    layer, x = SlidingWindowAttention(C, H, 8, n_sinks=n_sinks, rope=True), torch.randn(1, 220, C)
    with torch.no_grad():
        expected = layer(x)
        for sizes in ([200, *[1] * 20], [3, 180, 37], [20] * 11):
            cache = layer.new_cache(1, 220)
            torch.testing.assert_close(feed(layer, x, sizes, cache), expected, rtol=1e-4, atol=1e-5)


def test_blocks_are_used_only_where_they_are_right_and_pay() -> None:
    block, positions = windowed.FEWEST_QUERIES, torch.arange(1000)
    reach = 100 + block
    assert windowed.blocks_pay(Mask(window=100, query_offset=10), 990, 1000)
    assert windowed.blocks_pay(Mask(window=100), 2 * reach, 2 * reach)
    assert not windowed.blocks_pay(Mask(window=100), 2 * reach - 1, 2 * reach - 1)
    refused = [
        (Mask(), 1000), (Mask(window=100, query_offset=999), 1), (Mask(window=100), 990),
        (Mask(window=100, query_offset=(10, 10)), 990), (Mask(window=100, key_positions=positions), 1000),
        (Mask(window=100, n_sinks=1, left_padding=(0, 5)), 1000),
    ]  # fmt: skip
    assert not [mask for mask, T in refused if windowed.blocks_pay(mask, T, 1000)]


def test_blocks_are_a_quarter_of_the_window_at_most() -> None:
    """Then a quarter of the scores is computed in vain; with blocks of a whole window it is half of them all."""
    assert windowed.block_size(4096) <= 1024
    assert windowed.block_size(1) == windowed.FEWEST_QUERIES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_that_see_nothing_are_zero_in_blocks(dtype: torch.dtype) -> None:
    T = 400
    q, k, v = (x.requires_grad_() for x in random_qkv(2, 2, 2, T, T, 4, 4, dtype))
    mask = Mask(window=8, left_padding=(0, T - 5))
    assert explain_kernel(q, k, v, mask=mask) == BY_BLOCKS
    y = attend(q, k, v, mask=mask)
    y.float().square().sum().backward()
    assert y.isfinite().all()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert not y[1, :, : T - 5].any()
    assert y[1, :, T - 5 :].any(-1).all()
