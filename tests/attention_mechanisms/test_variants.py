"""Every kind of attention is another in disguise: these identities, gradients, and what each costs to the number."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attention_mechanisms import (
    GroupedQueryAttention,
    Mask,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    SlidingWindowAttention,
    attend,
)
from tests.attention_mechanisms.cases import (
    FEW_VARIANTS,
    LATENT,
    ROPE,
    SINKS,
    VARIANTS,
    WINDOW,
    C,
    D,
    H,
    Layer,
    Sizes,
    build,
    feed,
    random_qkv,
)

KERNELS = ["manual", "sdpa", "auto"]
ROPES = pytest.mark.parametrize("rope", [False, True], ids=["", "rope"])


def tokens(T: int = 11, B: int = 2) -> Tensor:
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(1))


def assert_same(one: nn.Module, other: nn.Module, *, mask: Mask | None = None) -> None:
    """Two layers give the same outputs and the same gradients of their inputs."""
    outcomes = []
    for layer in (one, other):
        x_BTC = tokens().requires_grad_()
        y_BTC = layer(x_BTC, mask=mask)
        (gradient,) = torch.autograd.grad(y_BTC.square().sum(), x_BTC)
        outcomes.append((y_BTC, gradient))
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-4)


def copy_linear(target: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        target.weight.copy_(weight)
        if bias is not None:
            target.bias.copy_(bias)


def repeated(linear: nn.Linear, times: int) -> tuple[Tensor, Tensor]:
    """Weights and biases with each head's rows `times` times in a row."""
    weight, bias = (
        x.unflatten(0, (-1, D)).repeat_interleave(times, dim=0).flatten(0, 1) for x in (linear.weight, linear.bias)
    )
    return weight, bias


# ------------------------------------------------------------------------------------------ identities


@ROPES
def test_fused_and_separate_projections_are_the_same(rope: bool) -> None:
    fused = build("mha-rope" if rope else "mha")
    separate = MultiHeadAttention(C, H, fused=False, rope=rope)
    projections = (separate.query, separate.key, separate.value)
    for target, weight, bias in zip(projections, fused.qkv.weight.chunk(3), fused.qkv.bias.chunk(3), strict=True):
        copy_linear(target, weight, bias)
    separate.out = fused.out
    assert_same(fused, separate)


@ROPES
@pytest.mark.parametrize("groups", [1, 2, H])
def test_grouped_queries_are_multi_head_attention_with_repeated_weights(groups: int, rope: bool) -> None:
    """G = 1 is multi-query attention, G = H is multi-head attention as it is."""
    torch.manual_seed(0)
    grouped = GroupedQueryAttention(C, H, groups, rope=rope)
    full = MultiHeadAttention(C, H, fused=False, rope=rope)
    full.query, full.out = grouped.query, grouped.out
    copy_linear(full.key, *repeated(grouped.key, H // groups))
    copy_linear(full.value, *repeated(grouped.value, H // groups))
    assert grouped.key.weight.shape == (groups * D, C)
    assert_same(grouped, full)
    assert_same(grouped, full, mask=Mask(left_padding=(0, 4)))


@ROPES
@pytest.mark.parametrize("window", [11, 12, 1000])
def test_a_window_as_long_as_the_text_is_no_window(window: int, rope: bool) -> None:
    torch.manual_seed(0)
    sliding, full = SlidingWindowAttention(C, H, window, rope=rope), MultiHeadAttention(C, H, fused=False, rope=rope)
    full.load_state_dict(sliding.state_dict())
    assert_same(sliding, full)
    with torch.no_grad():
        assert not torch.allclose(SlidingWindowAttention(C, H, 10)(tokens()), full(tokens()), atol=1e-3)


@pytest.mark.parametrize("sinks", [10, 20])
def test_all_tokens_pinned_is_no_window_either(sinks: int) -> None:
    torch.manual_seed(0)
    sliding, full = SlidingWindowAttention(C, H, 1, n_sinks=sinks), MultiHeadAttention(C, H, fused=False)
    full.load_state_dict(sliding.state_dict())
    assert_same(sliding, full)


@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("mla-naive")])
def test_absorbed_equals_naive_and_so_do_all_gradients(name: str, kernel: str) -> None:
    naive, absorbed = (
        build(name, kernel, torch.float64),
        build(name.replace("naive", "absorbed"), kernel, torch.float64),
    )
    outcomes = []
    for layer in (naive, absorbed):
        x_BTC = tokens().double().requires_grad_()
        y_BTC = layer(x_BTC, mask=Mask(left_padding=(0, 3)))
        outcomes.append((y_BTC, *torch.autograd.grad(y_BTC.square().sum(), [x_BTC, *layer.parameters()])))
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["naive", "absorbed"])
def test_latent_attention_with_a_latent_that_loses_nothing_is_multi_head_attention(form: str) -> None:
    """R = C, nothing done on the way down. The key's bias changes nothing, the value's can be added by `out`."""
    full = build("mha-separate")
    latent = MultiHeadLatentAttention(C, H, C, latent_norm=False, form=form)
    latent.query = full.query
    key_HDC, value_HDC = full.key.weight.unflatten(0, (H, D)), full.value.weight.unflatten(0, (H, D))
    copy_linear(latent.down, torch.eye(C), None)
    copy_linear(latent.up, torch.cat([key_HDC, value_HDC], dim=1).flatten(0, 1), None)
    copy_linear(latent.out, full.out.weight, full.out.bias + full.out.weight @ full.value.bias)
    assert_same(latent, full)


def test_low_rank_latent_is_multi_head_attention_with_low_rank_weights() -> None:
    torch.manual_seed(0)
    latent, full = MultiHeadLatentAttention(C, H, 5, latent_norm=False), MultiHeadAttention(C, H, fused=False)
    full.query, full.out = latent.query, latent.out
    product_HXC = (latent.up.weight @ latent.down.weight).unflatten(0, (H, 2 * D))
    for target, weight_HDC in zip((full.key, full.value), product_HXC.chunk(2, dim=1), strict=True):
        copy_linear(target, weight_HDC.flatten(0, 1), torch.zeros(C))
    assert_same(latent, full)


def test_auto_takes_the_form_with_fewer_products() -> None:
    layer = build("mla-auto-rope")
    for T, S in ((1, 1), (1, 100), (3, 3), (13, 13), (4, 400), (100, 100)):
        costs = {}
        for form in ("naive", "absorbed"):
            layer.form, layer.kernel = form, "manual"
            x_BTC, cache = tokens(S, 1), layer.new_cache(1, S)
            with torch.no_grad():
                if S > T:
                    layer(x_BTC[:, T:], cache=cache)
                with FlopCounterMode(display=False) as counter:
                    layer(x_BTC[:, :T], cache=cache)
            costs[form] = counter.get_total_flops()
        layer.form = "auto"
        cheaper = "absorbed" if costs["absorbed"] < costs["naive"] else "naive"
        assert layer._absorbs(T, S) == (cheaper == "absorbed"), (T, S, costs)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if "sinks" not in name])
def test_packed_documents_are_each_alone(variant: str, kernel: str) -> None:
    """Rotations are relative, so where a document begins does not matter; sinks are those of the first one only."""
    layer, lengths = build(variant, kernel), [3, 1, 7]
    x_BTC, ids_T = tokens(sum(lengths), 1), torch.arange(3).repeat_interleave(torch.tensor(lengths))
    with torch.no_grad():
        alone = torch.cat([layer(part) for part in x_BTC.split(lengths, dim=1)], dim=1)
        packed = [layer(x_BTC, mask=Mask(document_ids=ids)) for ids in (ids_T, ids_T[None])]
        cached = feed(layer, x_BTC, [4, 1, 1, 5], layer.new_cache(1, 11), Mask(document_ids=ids_T))
    for y_BTC in (*packed, cached):
        torch.testing.assert_close(y_BTC, alone, rtol=1e-4, atol=2e-5)


# ------------------------------------------------------------------------------------------ gradients


MASKS: dict[str, Callable[[], Mask]] = {
    "causal": Mask,
    "documents": lambda: Mask(document_ids=torch.tensor([0, 0, 1, 1, 1])),
    "rows that see nothing": lambda: Mask(left_padding=(0, 5)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize("variant", FEW_VARIANTS)
def test_gradients_of_layers(variant: str, kernel: str, mask: str) -> None:
    """Gradients are checked by finite differences, for the input and for every parameter; window 4 of 5 tokens."""
    layer = build(variant, kernel, torch.float64)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x_BTC = tokens(5).double().requires_grad_()

    def outputs(x: Tensor, *values: Tensor) -> Tensor:
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, weights, (x,), {"mask": MASKS[mask]()})

    assert torch.autograd.gradcheck(outputs, (x_BTC, *parameters), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_padding_give_no_nan_to_any_gradient(variant: str, kernel: str, dtype: torch.dtype) -> None:
    layer = build(variant, kernel, dtype)
    x_BTC = tokens().to(dtype).requires_grad_()
    y_BTC = layer(x_BTC, mask=Mask(left_padding=(0, 11)))
    assert torch.equal(y_BTC[1], layer.out.bias.expand(11, -1))  # attention gives zeros: the bias alone is left
    y_BTC.float().square().sum().backward()
    assert x_BTC.grad is not None
    assert not x_BTC.grad[1].any()
    assert x_BTC.grad[0].any()
    for parameter in (x_BTC, *layer.parameters()):
        assert parameter.grad.isfinite().all()


# ------------------------------------------------------------------------------------------ costs


def numbers_cached(variant: str, length: int) -> int:
    """Count the numbers kept for one row, by the formulas of kv_cache.py and ring_cache.py."""
    if variant.startswith("mla"):
        return length * (LATENT + (ROPE if "rope" in variant else 0))
    groups = 1 if variant.startswith("mqa") else 2 if "gqa" in variant else H
    slots = WINDOW + (SINKS if "sinks" in variant else 0) if variant.startswith("swa") else length
    return 2 * groups * D * slots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_takes_what_its_formula_says_once(variant: str, dtype: torch.dtype) -> None:
    layer = build(variant, "manual", dtype)
    cache = layer.new_cache(3, 50)
    assert cache.nbytes == 3 * numbers_cached(variant, 50) * dtype.itemsize
    places = [buffer.data_ptr() for buffer in cache.buffers]
    with torch.no_grad():
        for T in (20, 1, 1, 28):
            layer(tokens(T, 3).to(dtype), cache=cache)
        cache.reset([1])
        layer(tokens(9, 1).to(dtype), cache=cache.rows(1, 2))
        cache.reset()
        layer(tokens(50, 3).to(dtype), cache=cache)
    assert [buffer.data_ptr() for buffer in cache.buffers] == places
    assert cache.nbytes == 3 * numbers_cached(variant, 50) * dtype.itemsize
    assert {buffer.dtype for buffer in cache.buffers} == {dtype}


@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_are_not_repeated_for_the_heads_of_a_group(dtype: torch.dtype, kernel: str, T: int) -> None:
    """Eight heads share one key/value head. No operation makes anything as large as keys for all eight."""
    B, heads, S, width = 2, 8, 600, 16
    for training in (False, True):
        q, k, v = (x.requires_grad_(training) for x in random_qkv(B, heads, 1, T, S, width, width, dtype))
        with Sizes() as sizes:
            y = attend(q, k, v, mask=Mask(query_offset=S - T), kernel=kernel)
            if training:
                y.sum().backward()
        assert sizes.largest < B * heads * S * width
        assert sizes.largest <= max(B * heads * T * S, B * S * width)  # scores, and gradients as large as keys


@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
def test_decoding_by_the_absorbed_form_expands_no_latent(kernel: str) -> None:
    S, largest = 500, {}
    for form in ("auto", "naive"):
        layer = build(f"mla-{form}-rope", kernel)
        cache = layer.new_cache(1, S)
        with torch.no_grad():
            layer(tokens(S - 1, 1), cache=cache)
            with Sizes() as sizes:
                layer(tokens(1, 1), cache=cache)
        largest[form] = sizes.largest
    assert largest["auto"] <= H * S  # the scores
    assert largest["naive"] >= H * S * D  # the keys: had there been any, they would have been counted


def decode_flops(layer: Layer, cached: int) -> int:
    """Products and sums of one token after `cached` others."""
    cache = layer.new_cache(1, cached + 1)
    with torch.no_grad():
        layer(tokens(cached, 1), cache=cache)
        with FlopCounterMode(display=False) as counter:
            layer(tokens(1, 1), cache=cache)
    return counter.get_total_flops()


@pytest.mark.parametrize("cached", [40, 400, 2000])
def test_a_decoded_token_costs_the_projections_and_the_scores(cached: int) -> None:
    """Multiplying by a matrix costs two operations for each of its numbers; only the scores grow with the cache."""
    S, R, P = cached + 1, LATENT, ROPE
    latent = build("mla-auto-rope", "manual")
    projections = C * H * (D + P) + C * (R + P) + C * C
    absorption = H * D * R + H * R * D  # the query moves to the latent, the output comes back
    scores = H * S * (R + P) + H * S * (R + P)
    assert decode_flops(latent, cached) == 2 * (projections + absorption + scores)
    without = build("mla-auto", "manual")
    assert decode_flops(without, cached) == 2 * (2 * C * C + C * R + absorption + 2 * H * S * R)
    grouped = build("gqa-rope", "manual")
    assert decode_flops(grouped, cached) == 2 * (2 * C * C + 2 * C * 2 * D + 2 * H * S * D)
    sliding = build("swa-sinks", "manual")
    assert decode_flops(sliding, cached) == 2 * (4 * C * C + 2 * H * (WINDOW + SINKS) * D)
    expanding = build("mla-naive-rope", "manual")
    assert decode_flops(expanding, cached) == 2 * (projections + S * R * H * 2 * D + H * S * (D + P) + H * S * D)


def test_latents_save_what_the_table_says() -> None:
    """GPT-2 medium's width: 1024 numbers of keys and 1024 of values a token and layer."""
    full = MultiHeadAttention(1024, 16).new_cache(1, 8).nbytes
    for R, saved in ((1024, 0.5), (512, 0.75), (256, 0.875), (128, 0.9375)):
        assert MultiHeadLatentAttention(1024, 16, R).new_cache(1, 8).nbytes == (1 - saved) * full


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="n_kv_groups must divide n_heads, got 3 groups for 4 heads"):
        GroupedQueryAttention(C, H, 3)
    with pytest.raises(ValueError, match="got 0 groups for 4 heads"):
        GroupedQueryAttention(C, H, 0)
    with pytest.raises(ValueError, match="window must be at least 1"):
        SlidingWindowAttention(C, H, 0)
    with pytest.raises(ValueError, match="n_sinks must not be negative, got -1"):
        SlidingWindowAttention(C, H, 3, n_sinks=-1)
    with pytest.raises(ValueError, match="rope needs heads of even size, got 3"):
        MultiHeadAttention(12, 4, rope=True)
    with pytest.raises(ValueError, match="n_heads must divide d_model, got 5 heads for width 24"):
        MultiHeadLatentAttention(C, 5, LATENT)
    with pytest.raises(ValueError, match="latents need at least one number, got 0 and None"):
        MultiHeadLatentAttention(C, H, 0)
    with pytest.raises(ValueError, match="latents need at least one number, got 3 and 0"):
        MultiHeadLatentAttention(C, H, 3, query_latent_dim=0)
    with pytest.raises(ValueError, match="rope_dim must be even to rotate channels in pairs, got 3"):
        MultiHeadLatentAttention(C, H, 3, rope_dim=3)
    with pytest.raises(ValueError, match="form must be one of auto, naive, absorbed, got 'fast'"):
        MultiHeadLatentAttention(C, H, 3, form="fast")
