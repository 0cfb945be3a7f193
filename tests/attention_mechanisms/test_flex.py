"""FlexAttention, run eagerly and compiled, against attention by hand; its block masks; what takes its place."""

import functools
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from attention_mechanisms import Mask, MultiHeadAttention, attend, explain_kernel, kernels
from attention_mechanisms.fast import flex
from tests.attention_mechanisms.cases import by_hand, random_qkv
from utils.hardware import compiler_works

# B, H, G, T, S, D, E and the mask
CASES: dict[str, tuple[tuple[int, int, int, int, int, int, int], Mask]] = {
    "square": ((2, 4, 2, 7, 7, 6, 6), Mask()),
    "one query, rows of their own lengths": ((3, 4, 1, 1, 9, 4, 4), Mask(query_offset=(3, 8, 0))),
    "one key": ((1, 1, 1, 1, 1, 3, 3), Mask()),
    "values of another size": ((1, 2, 2, 3, 8, 7, 5), Mask(query_offset=5)),
    "window and sinks": ((2, 2, 2, 5, 12, 4, 4), Mask(window=3, n_sinks=2, query_offset=7)),
    "padding, which sees nothing": ((2, 2, 1, 6, 6, 4, 4), Mask(left_padding=(0, 3))),
    "documents": ((2, 2, 2, 6, 6, 4, 4), Mask(document_ids=torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]]))),
    "a ring": ((1, 2, 1, 2, 5, 4, 4), Mask(window=4, query_offset=6, key_positions=torch.tensor([4, 5, -1, 7, 6]))),
}
LARGE = {  # more than a block of 128, which nothing divides
    "documents in blocks": (
        (2, 2, 1, 150, 300, 16, 16),
        Mask(query_offset=150, document_ids=torch.arange(300) // 70),
    ),
    "window, sinks and padding in blocks": (
        (2, 2, 2, 200, 200, 16, 16),
        Mask(window=40, n_sinks=3, left_padding=(0, 150)),
    ),
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler_works("cpu"):
        pytest.skip("there is no C++ compiler here")
    monkeypatch.setattr(flex, "SCORES_WORTH_COMPILING", 0)


@pytest.fixture
def no_masks_yet() -> Iterator[None]:
    flex._block_masks.clear()
    yield
    flex._block_masks.clear()


def check(shape: tuple[int, ...], mask: Mask, dtype: torch.dtype = torch.float32) -> None:
    q, k, v = random_qkv(*shape, dtype)
    assert explain_kernel(q, k, v, mask=mask, kernel="flex").startswith("flex")
    y, expected = attend(q, k, v, mask=mask, kernel="flex"), by_hand(q, k, v, mask)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    blind = (expected == 0).all(dim=-1)
    assert not y[blind].any()  # zeros, not small numbers


@pytest.mark.parametrize("name", CASES)
def test_eager_equals_attention_by_hand(name: str) -> None:
    check(*CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one query, rows of their own lengths", "values of another size", *LARGE])
def test_compiled_equals_attention_by_hand(compiled: None, name: str) -> None:
    check(*(CASES | LARGE)[name], torch.bfloat16 if "padding" in name else torch.float32)


def test_keys_may_be_the_values_too_after_calls_where_they_were_not() -> None:
    """As in the absorbed form of latent attention. TorchDynamo, which runs flex_attention even eagerly, stumbles
    over one tensor given twice if an earlier mask held tensors and this one hides nothing."""
    q, k, v = random_qkv(1, 2, 1, 3, 3, 4, 4)
    torch._dynamo.reset()
    attend(q, k, v, mask=Mask(left_padding=(1,)), kernel="flex")
    everything = Mask(causal=False)
    y = attend(q, k, k, mask=everything, kernel="flex")
    torch.testing.assert_close(y.double(), by_hand(q, k, k, everything), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    check(*CASES["padding, which sees nothing"], dtype)


def test_large_shapes_are_compiled_and_small_ones_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(flex, "_compiled", lambda: lambda q, *rest, **named: calls.append(q.shape) or q)
    monkeypatch.setattr(flex, "compiler_works", lambda device: True)
    for T in (100, 4096):
        q, k, v = random_qkv(1, 1, 1, T, T, 1, 1)
        attend(q, k, v, mask=Mask(causal=False), kernel="flex")
    assert calls == [(1, 1, 4096, 1)]
    monkeypatch.setattr(flex, "compiler_works", lambda device: False)
    assert flex._kernel("cpu", 2**30) is flex.flex_attention


@pytest.mark.slow
@pytest.mark.parametrize("has_own_limit", [True, False], ids=["limit of its own", "limit for all"])
def test_many_lengths_and_masks_stay_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_own_limit: bool
) -> None:
    """PyTorch by itself gives up past eight compilations, and then runs the rest unfused."""
    if not has_own_limit:
        monkeypatch.setattr(flex, "signature", lambda function: inspect.Signature())
    elif "recompile_limit" not in inspect.signature(torch.compile).parameters:
        pytest.skip("this PyTorch has one limit for all functions")
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # traced, not built
    monkeypatch.setattr(flex, "_compiled", functools.cache(flex._compiled.__wrapped__))
    monkeypatch.setattr(flex, "_kernel", lambda device, n_scores: flex._compiled())
    caplog.set_level(logging.WARNING, "torch")
    masks = (Mask(), Mask(left_padding=(0, 3)), Mask(document_ids=torch.arange(400) // 70))
    for mask in masks:
        for T in (100, 128, 130, 200, 256, 300, 333, 384, 400, 64, 1, 2, 399, 17, 5, 11, 129, 127, 50, 90):
            qkv = random_qkv(2, 2, 1, T, T, 4, 4)
            with torch.no_grad():
                torch.testing.assert_close(attend(*qkv, mask=mask, kernel="flex"), attend(*qkv, mask=mask))
    assert 8 < counters["frames"]["ok"] == counters["frames"]["total"] <= 4 * len(masks)
    assert not caplog.messages


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, no_masks_yet: None) -> list[tuple[Any, ...]]:
    """The sizes for which a block mask is built, one entry each time."""
    calls: list[tuple[Any, ...]] = []
    original = flex.create_block_mask

    def counted(rule: Any, *sizes: Any, **named: Any) -> Any:
        calls.append(sizes)
        return original(rule, *sizes, **named)

    monkeypatch.setattr(flex, "create_block_mask", counted)
    return calls


def test_a_block_mask_is_built_once_for_each_mask_and_shape(built: list[tuple[Any, ...]]) -> None:
    layers = [MultiHeadAttention(8, 2, kernel="flex") for _ in range(3)]
    x, ids = torch.randn(2, 6, 8), torch.zeros(6, dtype=torch.long)
    with torch.no_grad():
        for _ in range(2):
            for layer in layers:
                layer(x, mask=Mask(window=3))  # a new object each time, but the same mask
                layer(x, mask=Mask(window=3, left_padding=(0, 1)))
        assert built == [(None, None, 6, 6), (2, None, 6, 6)]
        layers[0](x, mask=Mask(window=4))
        layers[0](x[:, :5], mask=Mask(window=3))
        layers[0](x, mask=Mask(window=3, document_ids=ids))
        layers[1](x, mask=Mask(window=3, document_ids=ids))
        assert len(built) == 5
        layers[0](x, mask=Mask(window=3, document_ids=ids.clone()))  # another tensor might hold other numbers
        assert len(built) == 6


def test_no_block_mask_where_nothing_is_hidden(built: list[tuple[Any, ...]]) -> None:
    q, k, v = random_qkv(1, 2, 2, 1, 9, 4, 4)
    attend(q, k, v, mask=Mask(query_offset=8), kernel="flex")
    attend(q, k, v, mask=Mask(causal=False), kernel="flex")
    assert not built


@pytest.mark.parametrize("mask", [Mask(), Mask(document_ids=torch.arange(300) // 70)], ids=["causal", "documents"])
def test_inside_a_compiled_model_it_is_part_of_the_graph(mask: Mask) -> None:
    torch._dynamo.reset()
    layer = MultiHeadAttention(32, 4, kernel="flex").eval()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x_BTC = torch.randn(1, 300, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x_BTC, mask=mask), layer(x_BTC, mask=mask), rtol=0, atol=1e-5)


def test_only_the_latest_block_masks_are_kept(monkeypatch: pytest.MonkeyPatch, built: list[tuple[Any, ...]]) -> None:
    monkeypatch.setattr(flex, "MOST_BLOCK_MASKS", 2)
    device = torch.device("cpu")
    for window in (1, 2, 1, 3, 1, 2):  # 3 drives out 2, the one that was used longest ago
        flex.block_mask(Mask(window=window), 4, 4, device)
    assert len(built) == 4
    assert len(flex._block_masks) == 2


@pytest.fixture
def first_warning(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    kernels._warn_once.cache_clear()
    caplog.set_level(logging.WARNING, "attention_mechanisms")
    yield caplog
    kernels._warn_once.cache_clear()


@pytest.mark.parametrize(
    ("training", "dropout", "reason"),
    [(True, 0.0, "FlexAttention has no gradients on a CPU"), (False, 0.3, "FlexAttention has no dropout")],
)
def test_sdpa_takes_its_place_with_one_warning(
    first_warning: pytest.LogCaptureFixture, training: bool, dropout: float, reason: str
) -> None:
    mask = Mask(window=3, left_padding=(0, 2))
    ours, twins = ([x.requires_grad_(training) for x in random_qkv(2, 4, 2, 6, 6, 4, 4)] for _ in range(2))
    arguments: dict[str, Any] = {"mask": mask, "dropout": dropout}
    assert explain_kernel(*ours, kernel="flex", **arguments) == f"sdpa: {reason}"
    outputs = []
    for tensors, kernel in ((ours, "flex"), (twins, "sdpa"), (ours, "flex")):
        torch.manual_seed(0)
        outputs.append(attend(*tensors, kernel=kernel, **arguments))
    assert first_warning.messages == [f"attention falls back from flex to sdpa: {reason}"]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    if training:
        torch.testing.assert_close(outputs[0].double(), by_hand(*ours, mask), rtol=1e-5, atol=1e-5)
        gradients = [torch.autograd.grad(y.square().sum(), x) for y, x in zip(outputs[:2], (ours, twins), strict=True)]
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_what_stands_in_its_way_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "compiler_works", lambda device: True)
    assert flex.obstacle("cuda", 64, training=True, dropout=0.0) is None
    assert flex.obstacle("cpu", 3, training=False, dropout=0.0) is None
    assert flex.obstacle("cuda", 15, True, 0.0) == "FlexAttention needs heads of at least 16 channels on a GPU"
    assert flex.obstacle("mps", 64, True, 0.0) == "FlexAttention has no gradients on mps"
    monkeypatch.setattr(flex, "compiler_works", lambda device: False)
    assert flex.obstacle("cuda", 64, False, 0.0) == "FlexAttention needs torch.compile on a GPU"


def test_training_without_gradients_asked_for_is_no_obstacle(first_warning: pytest.LogCaptureFixture) -> None:
    q, k, v = (x.requires_grad_() for x in random_qkv(1, 2, 2, 3, 3, 4, 4))
    with torch.no_grad():
        assert explain_kernel(q, k, v, kernel="flex") == "flex: it was asked for"
        attend(q, k, v, kernel="flex")
    assert not first_warning.messages
