"""Every kernel on the GPU against attention in float64, with and without a cache, in training and evaluation."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from attention_mechanisms import (
    GroupedQueryAttention,
    Mask,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    SlidingWindowAttention,
    attend,
    explain_kernel,
)
from gpt_model import GPT, GPTConfig
from tests.attention_mechanisms.cases import Layer, feed, plain

C, H = 256, 4  # heads of 64 channels: FlexAttention needs 16 on a GPU
T, WINDOW, SINKS = 200, 48, 2  # more than a block of 128, and no multiple of it
VARIANTS: dict[str, Callable[..., Layer]] = {
    "mha": partial(MultiHeadAttention, C, H),
    "gqa": partial(GroupedQueryAttention, C, H, 2, rope=True),
    "mla-naive": partial(MultiHeadLatentAttention, C, H, 64, rope_dim=32, form="naive"),
    "mla-absorbed": partial(MultiHeadLatentAttention, C, H, 64, rope_dim=32, form="absorbed"),
    "swa": partial(SlidingWindowAttention, C, H, WINDOW, n_sinks=SINKS, rope=True),
}
KERNELS = ("manual", "sdpa", "flex")
DTYPES = [torch.float32, torch.bfloat16]
EXACT = 1e-5  # of the norm, in float32; with TF32 it would be some 3e-4


def build(variant: str, kernel: str, dtype: torch.dtype, device: torch.device) -> Layer:
    torch.manual_seed(0)
    layer = VARIANTS[variant](kernel=kernel)
    with torch.no_grad():
        for parameter in layer.parameters():  # attention that is decided, and biases that matter
            parameter.copy_(2 * parameter if parameter.dim() > 1 else parameter + 0.3 * torch.randn_like(parameter))
    return layer.to(device, dtype).eval()


def error(output: Tensor, exact: Tensor) -> float:
    """Return the difference as a share of the norm."""
    return ((output.double() - exact).norm() / exact.norm()).item()


def check(outputs: dict[str, Tensor], layer: Layer, x_BTC: Tensor) -> None:
    """Compare with one pass of the plain formula in float64. In bfloat16 the error may be twice that of the plain
    formula in bfloat16 (flash-attention's rule)."""
    dtype = x_BTC.dtype
    exact = plain(layer, torch.float64)(x_BTC.double())
    bound = EXACT if dtype == torch.float32 else 2 * error(plain(layer, dtype)(x_BTC), exact)
    errors = {name: error(output, exact) for name, output in outputs.items()}
    assert all(value <= bound for value in errors.values()), f"{errors} of at most {bound}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_kernels_agree(variant: str, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(1)
    x_BTC = torch.randn(2, T, C).to(device, dtype)
    layers = {kernel: build(variant, kernel, dtype, device) for kernel in (*KERNELS, "auto")}
    check({kernel: layer(x_BTC) for kernel, layer in layers.items()}, layers["manual"], x_BTC)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["manual", "sdpa", "auto"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_cache_changes_nothing(variant: str, kernel: str, dtype: torch.dtype, device: torch.device) -> None:
    check_cached(variant, kernel, dtype, device)


@pytest.mark.parametrize("variant", ["gqa", "swa"])
@torch.no_grad()
def test_a_cache_changes_nothing_for_flex(variant: str, device: torch.device) -> None:
    """Compiled a few times and not once for each length, which would take minutes."""
    check_cached(variant, "flex", torch.float32, device)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] < 8


def check_cached(variant: str, kernel: str, dtype: torch.dtype, device: torch.device) -> None:
    """A prompt longer than the window and then one token after the other; and chunks."""
    torch.manual_seed(1)
    layer, x_BTC = build(variant, kernel, dtype, device), torch.randn(2, T, C).to(device, dtype)
    plans = {"one by one": [T - 12, *[1] * 12], "chunks": [3, T - 50, 40, 1, 6]}
    outputs = {name: feed(layer, x_BTC, sizes, layer.new_cache(2, T)) for name, sizes in plans.items()}
    check(outputs, layer, x_BTC)


@pytest.mark.parametrize("kernel", ["manual", "sdpa", "auto"])
@torch.no_grad()
def test_padding_sees_nothing_and_is_answered_with_zeros(kernel: str, device: torch.device) -> None:
    mask, qkv = Mask(left_padding=(0, 30)), [torch.randn(2, H, 64, 64, device=device) for _ in range(3)]
    y_BHTD = attend(*qkv, mask=mask, kernel=kernel)
    assert not y_BHTD[1, :, :30].any()
    alone = attend(*(x[1:, :, 30:] for x in qkv), kernel="manual")
    torch.testing.assert_close(y_BHTD[1:, :, 30:], alone)


def test_auto_takes_flex_where_a_mask_hides_blocks(device: torch.device) -> None:
    qkv = [torch.randn(1, H, 512, 64, device=device, requires_grad=True) for _ in range(3)]
    assert explain_kernel(*qkv, mask=Mask(window=64)) == "flex: it skips blocks of keys that the mask hides"
    assert explain_kernel(*qkv).startswith("sdpa")
    assert explain_kernel(*qkv, mask=Mask(window=64), dropout=0.1).startswith("sdpa")


MASKS = {
    "causal": lambda device: Mask(),
    "window": lambda device: Mask(window=WINDOW, n_sinks=SINKS),
    "documents": lambda device: Mask(document_ids=torch.arange(300, device=device) // 70),
}


@pytest.mark.parametrize("name", MASKS)
def test_gradients_of_flex_are_as_good_as_those_of_sdpa(name: str, device: torch.device) -> None:
    """In bfloat16, with groups. Each error may be twice that of the plain formula in bfloat16."""
    mask = MASKS[name](device)
    torch.manual_seed(0)
    shapes = [(2, H, 300, 64), (2, 2, 300, 64), (2, 2, 300, 64), (2, H, 300, 64)]
    *qkv, dy = (torch.randn(shape, device=device).bfloat16() for shape in shapes)

    def gradients(kernel: str, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in qkv]
        assert explain_kernel(*leaves, mask=mask, kernel=kernel).startswith(kernel)
        attend(*leaves, mask=mask, kernel=kernel).backward(dy.to(dtype))
        return [leaf.grad for leaf in leaves]

    exact = gradients("manual", torch.float64)
    bounds = [2 * error(rough, right) for rough, right in zip(gradients("manual"), exact, strict=True)]
    for kernel in ("sdpa", "flex"):
        errors = [error(found, right) for found, right in zip(gradients(kernel), exact, strict=True)]
        assert all(value <= bound for value, bound in zip(errors, bounds, strict=True)), f"{kernel}: {errors}, {bounds}"


def test_a_compiled_model_with_windows_trains_as_the_plain_one(device: torch.device) -> None:
    sizes = {"vocab_size": 512, "context_length": 256, "d_model": C, "n_layers": 2, "n_heads": H}
    ids_BT = torch.randint(512, (2, 256), generator=torch.Generator().manual_seed(0)).to(device)
    results = []
    for kernel in ("manual", "auto"):
        torch.manual_seed(0)
        model = GPT(GPTConfig(**sizes, attention="swa", window_size=WINDOW, kernel=kernel)).to(device)
        forward = model if kernel == "manual" else torch.compile(model)
        loss = forward(ids_BT, ids_BT)[1]
        loss.backward()
        results.append((loss, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    (expected, gradient), (loss, compiled_gradient) = results
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert error(compiled_gradient, gradient.double()) < 1e-4
