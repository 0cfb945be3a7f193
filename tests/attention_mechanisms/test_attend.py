"""The kernels against attention written out in float64, which of them is taken, and the ways a mask goes wrong."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_mechanisms import Mask, MultiHeadAttention, attend, explain_kernel
from attention_mechanisms.fast import windowed
from tests.attention_mechanisms.cases import by_hand, masks, random_qkv

KERNELS = ["manual", "sdpa", "auto"]


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    B=st.integers(1, 3), G=st.integers(1, 3), group=st.integers(1, 3), T=st.integers(1, 7), S=st.integers(1, 12),
    D=st.sampled_from([1, 3, 8]), E=st.sampled_from([1, 5, 8]), training=st.booleans(), data=st.data(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_kernels_equal_attention_by_hand(
    kernel: str, B: int, G: int, group: int, T: int, S: int, D: int, E: int, training: bool, data: st.DataObject
) -> None:
    """Whatever the shape and the mask; `training` changes what auto takes."""
    q, k, v = (x.requires_grad_(training) for x in random_qkv(B, G * group, G, T, S, D, E))
    mask = data.draw(masks(B, T, S))
    y, expected = attend(q, k, v, mask=mask, kernel=kernel), by_hand(q.detach(), k.detach(), v.detach(), mask)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert not y[(expected == 0).all(dim=-1)].any()


@given(B=st.integers(1, 2), T=st.integers(1, 4), S=st.integers(1, 6), group=st.integers(1, 2), data=st.data())
@settings(max_examples=8, deadline=None)
def test_flex_equals_attention_by_hand(B: int, T: int, S: int, group: int, data: st.DataObject) -> None:
    """A few shapes only: each new one takes half a second."""
    q, k, v = random_qkv(B, group, 1, T, S, 3, 5)
    mask = data.draw(masks(B, T, S))
    y = attend(q, k, v, mask=mask, kernel="flex")
    torch.testing.assert_close(y.double(), by_hand(q, k, v, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_may_have_offsets_of_their_own(kernel: str) -> None:
    q, k, v = random_qkv(3, 4, 2, 2, 9, 8, 8)
    mask = Mask(query_offset=(0, 7, 3))
    y = attend(q, k, v, mask=mask, kernel=kernel)
    torch.testing.assert_close(y.double(), by_hand(q, k, v, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_new_query_sees_the_whole_cache(kernel: str) -> None:
    """The famous bug: a causal flag that aligns to the top left lets it see the first key alone."""
    q, k, v = random_qkv(1, 1, 1, 1, 5, 4, 4)
    y = attend(q, k, v, mask=Mask(query_offset=4), kernel=kernel)
    torch.testing.assert_close(y, attend(q, k, v, mask=Mask(causal=False), kernel=kernel))
    assert not torch.allclose(y, v[:, :, :1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_scale_replaces_the_default(kernel: str) -> None:
    q, k, v = random_qkv(1, 2, 2, 4, 4, 8, 8)
    expected = by_hand(q, k, v, Mask(), scale=0.7)
    torch.testing.assert_close(attend(q, k, v, kernel=kernel, scale=0.7).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_errs_little_more_than_its_inputs(kernel: str) -> None:
    q, k, v = random_qkv(2, 4, 4, 64, 64, 16, 16, torch.bfloat16)
    y, expected = attend(q, k, v, kernel=kernel), by_hand(q, k, v, Mask())
    assert y.dtype == torch.bfloat16
    assert (y.double() - expected).norm() / expected.norm() < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize("T", [1, 6])
def test_large_scores_do_not_overflow(T: int, kernel: str, dtype: torch.dtype) -> None:
    """Products of 80,000 before they are scaled, beyond float16's range; after it they are within."""
    q, k, v = random_qkv(1, 2, 1, T, 6, 64, 64, dtype)
    q, k = q.sign() * 35, k.sign() * 35
    k[:, :, 2] = q[0, 0, -1]  # 35 * 35 * 64 = 78,400
    mask = Mask(query_offset=6 - T)
    y = attend(q, k, v, mask=mask, kernel=kernel)
    digits = max(1e-5, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(y.double(), by_hand(q, k, v, mask), rtol=digits, atol=digits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize("T", [1, 3])
def test_the_mean_of_many_values_is_their_mean(T: int, kernel: str, dtype: torch.dtype) -> None:
    """30,000 equal scores: a sum in bfloat16 would stop growing at 256."""
    S = 30_000
    q, k, v = random_qkv(1, 1, 1, T, S, 8, 8, dtype)
    y = attend(0 * q, k, v + 3, mask=Mask(causal=False), kernel=kernel)
    expected = (v + 3).double().mean(dim=2, keepdim=True).expand_as(y)
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize(
    "mask",
    [
        Mask(query_offset=2),
        Mask(query_offset=(2, 0), window=2, n_sinks=1),
        Mask(query_offset=2, left_padding=(0, 4)),
        Mask(query_offset=2, left_padding=(5, 1)),  # a whole row sees nothing
        Mask(query_offset=2, document_ids=torch.tensor([0, 1, 1, 0, 2])),
        Mask(query_offset=2, window=2, key_positions=torch.tensor([4, -1, -1, 3, 0])),
    ],
    ids=["causal", "window", "padding", "empty row", "documents", "ring"],
)
@pytest.mark.parametrize("T", [1, 3])
def test_gradients(kernel: str, mask: Mask, T: int) -> None:
    """Gradients are checked by finite differences; queries that see nothing have gradients of zero, not NaN."""
    q, k, v = (x.double().requires_grad_() for x in random_qkv(2, 4, 2, T, 5, 4, 3))
    assert torch.autograd.gradcheck(lambda *qkv: attend(*qkv, mask=mask, kernel=kernel), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["manual", "sdpa", "auto"])
@pytest.mark.parametrize("T", [1, 7])
def test_queries_that_see_nothing_are_answered_with_zeros(T: int, kernel: str, dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in random_qkv(2, 4, 2, T, 7, 4, 4, dtype))
    mask = Mask(query_offset=7 - T, left_padding=(2, 7))
    for training in (False, True):
        with torch.set_grad_enabled(training):
            y = attend(q, k, v, mask=mask, kernel=kernel)
        assert not y[1].any()
        assert not y[0, :, : max(0, 2 - (7 - T))].any()
        assert y[0, :, -1].any()
    y.float().square().sum().backward()
    for x in (q, k, v):
        assert x.grad.isfinite().all()
        assert not x.grad[1].any()


@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
def test_dropout_keeps_the_mean(kernel: str) -> None:
    torch.manual_seed(0)
    q, k, v = random_qkv(1, 1, 1, 4, 4, 4, 1)
    many = [x.expand(4000, -1, -1, -1) for x in (q, k, v)]  # each row of the batch drops weights of its own
    dropped = attend(*many, kernel=kernel, dropout=0.4)
    assert dropped.std(dim=0).max() > 0.1
    torch.testing.assert_close(dropped.mean(dim=0, keepdim=True), attend(q, k, v, kernel=kernel), rtol=0, atol=0.06)


def test_wrong_use_is_named() -> None:
    q, k, v = random_qkv(1, 4, 3, 2, 2, 4, 4)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key/value heads"):
        attend(q, k, v)
    with pytest.raises(ValueError, match="one of auto, manual, sdpa, flex, got 'fast'"):
        attend(q, q, q, kernel="fast")
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        Mask(query_offset=-1)
    with pytest.raises(ValueError, match="3 heads for width 8"):
        MultiHeadAttention(8, 3)


def test_a_later_token_changes_nothing_before_it() -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 4)
    x = torch.randn(2, 6, 16)
    changed = x.clone()
    changed[:, 4] += 1
    before, after = layer(x), layer(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_multi_head_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(24, 3), torch.nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(2, 7, 24)
    hidden = torch.nn.Transformer.generate_square_subsequent_mask(7)
    expected, _ = theirs(x, x, x, attn_mask=hidden, is_causal=True, need_weights=False)
    torch.testing.assert_close(ours(x), expected)


def shapes(T: int, S: int, *, training: bool = False, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.empty(1, 2, length, 4, dtype=dtype).requires_grad_(training) for length in (T, S, S)]


FUSED = "sdpa: PyTorch's fused kernels do not store the scores"
PLAIN = "manual: in half precision on a CPU"
BLOCKS = "sdpa: in blocks, it skips the keys outside the window"


@pytest.mark.parametrize(
    ("T", "S", "training", "mask", "single", "half"),
    [
        (1, 3000, False, Mask(query_offset=2999), FUSED, PLAIN),
        (2, 3000, False, Mask(query_offset=2998), FUSED, FUSED),
        (1, 3000, True, Mask(query_offset=2999), FUSED, FUSED),
        (512, 512, True, Mask(), FUSED, PLAIN),
        (513, 513, True, Mask(), FUSED, FUSED),
        (512, 512, False, Mask(), FUSED, FUSED),
        (3000, 3000, False, Mask(window=100), BLOCKS, BLOCKS),
        (3000, 3000, True, Mask(window=100), BLOCKS, BLOCKS),
        (3000, 3000, False, Mask(window=2000), FUSED, FUSED),
    ],
)
def test_auto_takes_what_was_measured_to_be_fastest_on_a_cpu(
    T: int, S: int, training: bool, mask: Mask, single: str, half: str
) -> None:
    for dtype, expected in ((torch.float32, single), (torch.bfloat16, half), (torch.float16, half)):
        assert explain_kernel(*shapes(T, S, training=training, dtype=dtype), mask=mask).startswith(expected)


@pytest.mark.parametrize("kernel", ["manual", "sdpa", "flex"])
def test_the_kernel_asked_for_is_taken(kernel: str) -> None:
    assert explain_kernel(*shapes(600, 600), mask=Mask(window=8), kernel=kernel) == f"{kernel}: it was asked for"


def test_every_choice_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of the rules above, small: each way through `attend` against the rules by hand."""
    monkeypatch.setattr(windowed, "FEWEST_QUERIES", 2)
    arguments: list[dict[str, Any]] = [{"T": 1, "S": 20}, {"T": 9, "S": 20}, {"T": 20, "S": 20}]
    for sizes in arguments:
        q, k, v = random_qkv(2, 4, 2, sizes["T"], sizes["S"], 8, 8)
        for mask in (Mask(query_offset=20 - sizes["T"]), Mask(query_offset=20 - sizes["T"], window=3, n_sinks=1)):
            expected = by_hand(q, k, v, mask)
            for kernel in KERNELS:
                y = attend(q, k, v, mask=mask, kernel=kernel)
                torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_mask_for_another_batch_is_refused(kernel: str) -> None:
    q, k, v = random_qkv(2, 1, 1, 3, 3, 4, 4)
    with pytest.raises(ValueError, match="the mask was made for a batch of 3, got 2 rows"):
        attend(q, k, v, mask=Mask(left_padding=(0, 1, 2)), kernel=kernel)
    with pytest.raises(ValueError, match="the mask was made for a batch of 1, got 2 rows"):
        attend(q, k, v, mask=Mask(query_offset=(0,)), kernel=kernel)
