"""Both kernels against attention written out in float64, and the ways a mask goes wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_mechanisms import Mask, MultiHeadAttention, attend

KERNELS = ["manual", "sdpa", "auto"]


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float | None = None) -> Tensor:
    """One query at a time, in float64."""
    B, H, T, D = q.shape
    G = k.shape[1]
    out = torch.zeros(B, H, T, v.shape[-1], dtype=torch.float64)
    for b in range(B):
        offset = mask.query_offset if isinstance(mask.query_offset, int) else mask.query_offset[b]
        for h in range(H):
            keys, values = k[b, h * G // H].double(), v[b, h * G // H].double()
            for t in range(T):
                seen = min(offset + t + 1, len(keys)) if mask.causal else len(keys)
                scores = keys[:seen] @ q[b, h, t].double() * (1 / math.sqrt(D) if scale is None else scale)
                out[b, h, t] = scores.softmax(-1) @ values[:seen]
    return out


def random_qkv(
    B: int, H: int, G: int, T: int, S: int, D: int, E: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, T, D), (B, G, S, D), (B, G, S, E)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    B=st.integers(1, 3), G=st.integers(1, 3), group=st.integers(1, 3), T=st.integers(1, 7), past=st.integers(0, 6),
    D=st.sampled_from([1, 3, 8]), E=st.sampled_from([1, 5, 8]), causal=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_kernels_equal_attention_by_hand(
    kernel: str, B: int, G: int, group: int, T: int, past: int, D: int, E: int, causal: bool
) -> None:
    q, k, v = random_qkv(B, G * group, G, T, past + T, D, E)
    mask = Mask(causal=causal, query_offset=past)
    expected = by_hand(q, k, v, mask)
    torch.testing.assert_close(attend(q, k, v, mask=mask, kernel=kernel).double(), expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
def test_large_scores_do_not_overflow(kernel: str) -> None:
    q, k, v = random_qkv(1, 1, 1, 6, 6, 8, 8)
    assert attend(q * 1e4, k, v, kernel=kernel).isfinite().all()


@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
def test_gradients(kernel: str) -> None:
    q, k, v = (x.double().requires_grad_() for x in random_qkv(2, 4, 2, 3, 5, 4, 3))
    assert torch.autograd.gradcheck(lambda *qkv: attend(*qkv, mask=Mask(query_offset=2), kernel=kernel), (q, k, v))


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
