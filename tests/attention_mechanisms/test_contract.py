"""A cache changes nothing: whatever the chunks, every kind of attention gives what one pass over the tokens gives.

Expected values come from one full pass with the plain formula in float64 and, for rows of a batch, from each row's
tokens alone. In bfloat16 the error may be twice that of the plain formula in bfloat16 (flash-attention's rule).
"""

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from attention_mechanisms import Mask
from tests.attention_mechanisms.cases import FEW_VARIANTS, SINKS, VARIANTS, WINDOW, C, Layer, build, feed, plain

ROWS, LENGTH = 3, 13
PADDING = (0, 3, 6)
DTYPES = [torch.float32, torch.bfloat16]
Rows = list[tuple[Tensor, Tensor]]  # what came out for a row, and all that this row had read

assert LENGTH > WINDOW + SINKS + 5, "rings must turn"


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(dtype: torch.dtype, rows: int = ROWS, length: int = LENGTH) -> Tensor:
    return torch.randn(rows, length, C).to(dtype)


def in_chunks(layer: Layer, sizes: list[int], dtype: torch.dtype) -> Rows:
    x_BTC = tokens(dtype)
    return list(zip(feed(layer, x_BTC, sizes, layer.new_cache(ROWS, LENGTH)), x_BTC, strict=True))


def one_pass(layer: Layer, dtype: torch.dtype) -> Rows:
    x_BTC = tokens(dtype)
    return list(zip(layer(x_BTC), x_BTC, strict=True))


def one_at_a_time(layer: Layer, dtype: torch.dtype) -> Rows:
    return in_chunks(layer, [3, *[1] * (LENGTH - 3)], dtype)


def random_chunks(layer: Layer, dtype: torch.dtype) -> Rows:
    rng, rows = random.Random(0), []
    for _ in range(3):
        cuts = sorted(rng.sample(range(1, LENGTH), rng.randint(1, 5)))
        rows += in_chunks(layer, [b - a for a, b in zip([0, *cuts], [*cuts, LENGTH], strict=True)], dtype)
    return rows


def long_prompt(layer: Layer, dtype: torch.dtype) -> Rows:
    """Longer than the window and the sinks: at once, and as a second chunk."""
    return in_chunks(layer, [10, 1, 1, 1], dtype) + in_chunks(layer, [2, 10, 1], dtype)


def ragged(layer: Layer, dtype: torch.dtype) -> Rows:
    """Rows start anew at different moments, and one reads its prompt while the others wait."""
    together, apart = [(0, 3, 1), (0, 3, 3)], [(2, 3, 2), (0, 2, 1)]
    return follow(layer, [(0, 3, 4), (0, 3, 1), [1], (1, 2, 5), *together, [0, 2], *apart, (0, 3, 2), (0, 3, 1)], dtype)


def follow(layer: Layer, plan: list[tuple[int, int, int] | list[int]], dtype: torch.dtype) -> Rows:
    """A list resets these rows; (start, stop, T) gives T tokens to each of the rows from start to stop."""
    cache, finished = layer.new_cache(ROWS, LENGTH), []
    fed: list[list[Tensor]] = [[] for _ in range(ROWS)]
    got: list[list[Tensor]] = [[] for _ in range(ROWS)]
    for event in [*plan, list(range(ROWS))]:
        if isinstance(event, list):
            assert [cache.lengths[row] for row in event] == [sum(map(len, fed[row])) for row in event]
            cache.reset(event)
            for row in event:
                finished.append((torch.cat(got[row]), torch.cat(fed[row])))
                got[row], fed[row] = [], []
            continue
        start, stop, T = event
        x_BTC = tokens(dtype, stop - start, T)
        y_BTC = layer(x_BTC, cache=cache if stop - start == ROWS else cache.rows(start, stop))
        for row in range(start, stop):
            got[row].append(y_BTC[row - start])
            fed[row].append(x_BTC[row - start])
    return finished


def left_padded(layer: Layer, dtype: torch.dtype, *, plans: tuple[list[int], ...] = ()) -> Rows:
    """Each row as if its padding, which is full of large numbers, were not there; without a cache too."""
    x_BTC, rows = tokens(dtype), []
    for row, length in enumerate(PADDING):
        x_BTC[row, :length] *= 100
    padded = Mask(left_padding=PADDING)
    outputs = [layer(x_BTC, mask=padded)]
    for sizes in plans or ([2, 7, 1, 3], [1] * LENGTH):
        outputs.append(feed(layer, x_BTC, sizes, layer.new_cache(ROWS, LENGTH), padded))
    for y_BTC in outputs:
        assert y_BTC.isfinite().all()
        rows += [(y_BTC[row, length:], x_BTC[row, length:]) for row, length in enumerate(PADDING)]
    return rows


SCENARIOS = [one_pass, one_at_a_time, random_chunks, long_prompt, ragged, left_padded]


def each_alone(layer: Layer, rows: Rows) -> Tensor:
    """One full pass over the tokens of each row; rows of one length go together."""
    dtype, outputs = layer.out.weight.dtype, dict[int, Tensor]()
    for length in {len(x_TC) for _, x_TC in rows}:
        same = [i for i, (_, x_TC) in enumerate(rows) if len(x_TC) == length]
        outputs |= zip(same, layer(torch.stack([rows[i][1] for i in same]).to(dtype)), strict=True)
    return torch.cat([outputs[i] for i in range(len(rows))])


def check(layer: Layer, rows: Rows) -> None:
    dtype = rows[0][0].dtype

    def error(outputs: Tensor) -> float:
        return float((outputs.double() - expected).norm() / expected.norm())

    found, expected = torch.cat([y_TC for y_TC, _ in rows]), each_alone(plain(layer, torch.float64), rows)
    if dtype == torch.float32:
        assert error(found) < 3e-6
    else:
        assert error(found) <= 2 * error(each_alone(plain(layer, dtype), rows))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["manual", "sdpa", "auto"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(
    variant: str, kernel: str, dtype: torch.dtype, scenario: Callable[[Layer, torch.dtype], Rows]
) -> None:
    layer = build(variant, kernel, dtype)
    check(layer, scenario(layer, dtype))


def flex_chunks(layer: Layer, dtype: torch.dtype) -> Rows:
    return in_chunks(layer, [8, 1, 3, 1], dtype)


def flex_ragged(layer: Layer, dtype: torch.dtype) -> Rows:
    return follow(layer, [(0, 3, 6), [1], (1, 2, 4), (0, 3, 1), (0, 3, 3)], dtype)


def flex_left_padded(layer: Layer, dtype: torch.dtype) -> Rows:
    return left_padded(layer, dtype, plans=([7, 1, 5],))


@pytest.mark.parametrize(
    ("scenario", "dtype"),
    [
        (flex_chunks, torch.float32),
        (flex_ragged, torch.float32),
        (flex_left_padded, torch.float32),
        pytest.param(flex_ragged, torch.bfloat16, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("variant", FEW_VARIANTS)
def test_contract_with_flex(variant: str, scenario: Callable[[Layer, torch.dtype], Rows], dtype: torch.dtype) -> None:
    """Few calls, and one variant of each idea: each new shape costs FlexAttention half a second."""
    layer = build(variant, "flex", dtype)
    check(layer, scenario(layer, dtype))


@pytest.mark.parametrize("kernel", ["manual", "sdpa", "auto"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_token_too_many_is_refused_and_changes_nothing(variant: str, kernel: str) -> None:
    layer, x_BTC = build(variant, kernel), tokens(torch.float32, ROWS, LENGTH + 4)
    cache, full = layer.new_cache(ROWS, LENGTH), x_BTC[:, :LENGTH]
    feed(layer, full[:, :-1], [LENGTH - 1], cache)
    if cache.max_length is None:  # a ring is never full
        y_BTC = feed(layer, x_BTC[:, LENGTH - 1 :], [1, 1, 3], cache)
        check(layer, [(y, x) for y, x in zip(torch.cat([layer(x_BTC)[:, : LENGTH - 1], y_BTC], 1), x_BTC, strict=True)])
        assert cache.lengths == [LENGTH + 4] * ROWS
        return
    before = [buffer.clone() for buffer in cache.buffers]
    with pytest.raises(
        ValueError, match=f"the cache holds {LENGTH} tokens per row: 2 more than {LENGTH - 1} do not fit"
    ):
        layer(x_BTC[:, LENGTH - 1 : LENGTH + 1], cache=cache)
    assert cache.lengths == [LENGTH - 1] * ROWS
    assert all(torch.equal(a, b) for a, b in zip(before, cache.buffers, strict=True))
    last = layer(full[:, -1:], cache=cache)  # the last position still fits, and is right
    torch.testing.assert_close(last, layer(full)[:, -1:], rtol=1e-4, atol=1e-5)
    before = [buffer.clone() for buffer in cache.buffers]
    with pytest.raises(ValueError, match=f"1 more than {LENGTH} do not fit"):
        layer(x_BTC[:, -1:], cache=cache)
    assert all(torch.equal(a, b) for a, b in zip(before, cache.buffers, strict=True))
    with pytest.raises(ValueError, match=f"made for a batch of {ROWS}, got 2 rows"):
        layer(x_BTC[:2, :1], cache=cache)
    cache.reset([1])  # a row that begins anew has room, the others have not
    with pytest.raises(ValueError, match="1 more than 13 do not fit"):
        layer(x_BTC[:, :1], cache=cache)
    assert cache.lengths == [LENGTH, 0, LENGTH]
    torch.testing.assert_close(layer(full[1:2], cache=cache.rows(1, 2)), layer(full[1:2]), rtol=1e-4, atol=1e-5)
