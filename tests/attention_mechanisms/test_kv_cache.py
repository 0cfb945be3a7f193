"""A cache must not change what attention computes, and must cost exactly what its formula says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_mechanisms import (
    KVCache,
    LayerCache,
    Mask,
    MultiHeadAttention,
    RingCache,
    SlidingWindowAttention,
    attend,
)
from tests.attention_mechanisms.cases import by_hand


def new_cache(L: int, B: int, G: int, S: int, D: int, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache([LayerCache(B, G, S, (D, D), dtype=dtype) for _ in range(L)])


def cached(layer: MultiHeadAttention, x: torch.Tensor, chunks: list[int], cache: KVCache) -> torch.Tensor:
    outputs = []
    for chunk in x.split(chunks, dim=1):
        outputs.append(layer(chunk, mask=cache.mask(), cache=cache.layers[0]))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("kernel", ["manual", "sdpa", "auto"])
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 1, 1, 3], [1, 8], [8, 1]])
def test_any_chunks_give_what_one_pass_gives(kernel: str, chunks: list[int]) -> None:
    torch.manual_seed(0)
    layer, x = MultiHeadAttention(16, 2, kernel=kernel), torch.randn(3, 9, 16)
    cache = new_cache(1, 3, 2, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(cached(layer, x, chunks, cache), layer(x))
    assert cache.lengths == [9, 9, 9]


def test_rows_of_different_lengths() -> None:
    """A row that is reset begins anew beside one that goes on."""
    torch.manual_seed(0)
    layer, old, new = MultiHeadAttention(16, 2), torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    cache = new_cache(1, 2, 2, 9, 8)
    with torch.no_grad():
        cached(layer, old, [5], cache)
        cache.reset([1])
        assert cache.lengths == [5, 0]
        y = cached(layer, new, [3, 1], cache)
        torch.testing.assert_close(y[0], layer(torch.cat([old[:1], new[:1]], dim=1))[0, 5:])
        torch.testing.assert_close(y[1], layer(new[1:])[0])
    assert cache.lengths == [9, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_formula(dtype: torch.dtype) -> None:
    L, B, G, S, D = 3, 2, 4, 10, 8
    cache = new_cache(L, B, G, S, D, dtype)
    assert cache.nbytes == 2 * L * B * G * S * D * dtype.itemsize
    before = [layer.buffers[0].data_ptr() for layer in cache.layers]
    cache.layers[0].append(torch.zeros(B, G, 10, D, dtype=dtype), torch.zeros(B, G, 10, D, dtype=dtype))
    cache.reset()
    assert [layer.buffers[0].data_ptr() for layer in cache.layers] == before  # the memory stays
    assert cache.lengths == [0, 0]


def test_past_its_length_it_refuses_and_keeps_what_it_has() -> None:
    cache = new_cache(1, 1, 1, 4, 2)
    new = torch.ones(1, 1, 3, 2)
    cache.layers[0].append(new, new)
    with pytest.raises(ValueError, match="holds 4 tokens per row: 3 more than 3 do not fit"):
        cache.layers[0].append(new, new)
    assert cache.lengths == [3]
    with pytest.raises(ValueError, match="made for a batch of 1, got 2 rows"):
        cache.layers[0].append(torch.ones(2, 1, 1, 2), torch.ones(2, 1, 1, 2))


def test_mask_knows_the_offsets() -> None:
    cache = new_cache(1, 2, 1, 4, 2)
    assert cache.mask() == Mask(query_offset=0)
    cache.layers[0].append(torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    assert cache.mask() == Mask(query_offset=2)
    cache.reset([0])
    assert cache.mask() == Mask(query_offset=(0, 2))


WIDTH = 2  # of keys and values
Rows = list[torch.Tensor]  # all that each row has been given since it began, (tokens, 2 WIDTH)


def take_in(
    cache: LayerCache, rows: Rows, first: int, T: int, padding: tuple[int, ...] | None, generator: torch.Generator
) -> None:
    """Give T tokens to the rows of `cache`, the first of which is row `first`, and compare with a full computation."""
    B = len(cache.lengths)
    new_B1TX = torch.randn(B, 1, T, 2 * WIDTH, generator=generator)
    mask = Mask(left_padding=padding and padding[first : first + B])
    q, (k, v) = torch.randn(B, 1, T, WIDTH, generator=generator), new_B1TX.split(WIDTH, dim=-1)
    (keys, values), made = cache.append(k, v, mask=mask)
    y = attend(q, keys, values, mask=made)
    for row in range(B):
        rows[first + row] = torch.cat([rows[first + row], new_B1TX[row, 0]])
        k, v = rows[first + row][None, None].split(WIDTH, dim=-1)
        whole = Mask(
            window=getattr(cache, "window", None),
            n_sinks=getattr(cache, "n_sinks", 0),
            query_offset=len(rows[first + row]) - T,
            left_padding=padding and (padding[first + row],),
        )
        expected = by_hand(q[row : row + 1], k, v, whole)
        torch.testing.assert_close(y[row : row + 1].double(), expected, rtol=1e-5, atol=1e-5)


events = st.lists(
    st.one_of(
        st.tuples(st.just("give"), st.integers(1, 9)),
        st.tuples(st.just("give"), st.just(1)),
        st.tuples(st.just("reset"), st.lists(st.integers(0, 2), max_size=3)),
        st.tuples(st.just("reset all"), st.none()),
        st.tuples(st.just("reorder"), st.tuples(*[st.integers(0, 2)] * 3)),
        st.tuples(st.just("some rows"), st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 9))),
    ),
    max_size=12,
)


def assert_remembers(cache: LayerCache, history: list[tuple[str, object]], padding: tuple[int, ...] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.empty(0, 2 * WIDTH)] * 3
    places, nbytes = [buffer.data_ptr() for buffer in cache.buffers], cache.nbytes
    for event, what in history:
        match event, what:
            case "give", int(T):
                take_in(cache, rows, 0, T, padding, generator)
            case "some rows", (first, count, T):
                take_in(cache.rows(first, min(3, first + count)), rows, first, T, padding, generator)
            case "reorder", (*order,):  # a row's padding goes with it
                cache.reorder(order)
                rows, padding = [rows[row] for row in order], padding and tuple(padding[row] for row in order)
            case _:
                cache.reset(what if event == "reset" else None)
                for row in range(3) if event == "reset all" else what:
                    rows[row] = torch.empty(0, 2 * WIDTH)
        assert cache.lengths == [len(row) for row in rows]
    assert (places, nbytes) == ([buffer.data_ptr() for buffer in cache.buffers], cache.nbytes)


paddings = st.none() | st.tuples(*[st.integers(0, 6)] * 3)


@given(window=st.integers(1, 5), n_sinks=st.integers(0, 3), history=events, padding=paddings)
@settings(max_examples=150, deadline=None)
def test_a_ring_forgets_exactly_what_no_query_will_see(
    window: int, n_sinks: int, history: list[tuple[str, object]], padding: tuple[int, ...] | None
) -> None:
    """Whatever the chunks, the padding, and the rows that begin anew, are alone for a while, or go on from another."""
    assert_remembers(RingCache(3, 1, window, n_sinks, (WIDTH, WIDTH)), history, padding)


@given(history=events, padding=paddings)
@settings(max_examples=75, deadline=None)
def test_a_full_cache_forgets_nothing(history: list[tuple[str, object]], padding: tuple[int, ...] | None) -> None:
    assert_remembers(LayerCache(3, 1, 12 * 9, (WIDTH, WIDTH)), history, padding)


def test_a_ring_stays_as_small_as_its_window() -> None:
    ring = RingCache(2, 3, 5, 2, (4, 4), dtype=torch.bfloat16)
    assert ring.max_length is None
    new = torch.ones(2, 3, 1000, 4, dtype=torch.bfloat16)
    for _ in range(3):
        ring.append(new, new)
    assert ring.lengths == [3000, 3000]
    assert ring.nbytes == 2 * 2 * 3 * (5 + 2) * 4 * 2
    with pytest.raises(ValueError, match="made for a batch of 2, got 1 rows"):
        ring.append(new[:1], new[:1])
    with pytest.raises(ValueError, match="a window looks back from each query"):
        ring.append(new, new, mask=Mask(causal=False))
    assert ring.lengths == [3000, 3000]


def test_a_models_cache_is_that_of_its_layers() -> None:
    cache = new_cache(3, 2, 1, 6, 4)
    assert cache.max_length == 6
    part = cache.rows(1, 2)
    for layer in part.layers:
        layer.append(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4))
    assert part.lengths == [3]
    assert cache.lengths == [0, 3]  # the same memory
    assert [layer.buffers[0][1, 0, :3].sum() for layer in cache.layers] == [12, 12, 12]
    cache.reset([1])
    assert part.lengths == [0]
    assert all(layer.lengths == [0, 0] for layer in cache.layers)


def test_an_interrupted_pass_is_noticed() -> None:
    cache = new_cache(2, 2, 1, 6, 4)
    cache.layers[0].append(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    with pytest.raises(ValueError, match="a pass was interrupted: reset the cache"):
        cache.mask()
    cache.reset()
    assert cache.mask() == Mask()


def test_beams_go_on_from_the_rows_they_are_told() -> None:
    torch.manual_seed(0)
    layer, x_BTC, more_BTC = MultiHeadAttention(16, 2), torch.randn(3, 5, 16), torch.randn(3, 2, 16)
    cache = KVCache([layer.new_cache(3, 8)])
    places = [buffer.data_ptr() for buffer in cache.layers[0].buffers]
    with torch.no_grad():
        layer(x_BTC, cache=cache.layers[0])
        cache.reorder([2, 0, 0])
        whole_BTC = torch.cat([x_BTC[[2, 0, 0]], more_BTC], dim=1)
        torch.testing.assert_close(layer(more_BTC, cache=cache.layers[0]), layer(whole_BTC)[:, 5:])
    assert cache.lengths == [7, 7, 7]
    assert [buffer.data_ptr() for buffer in cache.layers[0].buffers] == places


@pytest.mark.parametrize("is_ring", [False, True])
def test_a_row_moves_to_another_cache_and_goes_on_there(is_ring: bool) -> None:
    torch.manual_seed(0)
    layer = SlidingWindowAttention(16, 2, 4, n_sinks=1) if is_ring else MultiHeadAttention(16, 2)
    x_BTC, more_BTC = torch.randn(1, 7, 16), torch.randn(1, 3, 16)
    cache, other = KVCache([layer.new_cache(1, 12)]), KVCache([layer.new_cache(3, 10)])
    with torch.no_grad():
        layer(x_BTC, cache=cache.layers[0])
        other.write_row(1, cache.read_row(0), 7)
        assert other.lengths == [0, 7, 0]
        continued_BTC = layer(more_BTC, cache=other.rows(1, 2).layers[0])
        torch.testing.assert_close(continued_BTC, layer(more_BTC, cache=cache.layers[0]))
        assert other.lengths == [0, 10, 0]
        if is_ring:
            with pytest.raises(ValueError, match="a ring of 10 tokens cannot be read as one of 5"):
                cache.read_row(0, 5)
            return
        other.write_row(2, cache.read_row(0, 5), 5)
        continued_BTC = layer(x_BTC[:, 5:], cache=other.rows(2, 3).layers[0])
        torch.testing.assert_close(continued_BTC, layer(x_BTC)[:, 5:])
    with pytest.raises(ValueError, match="the cache holds 10 tokens per row: 11 do not fit"):
        other.write_row(0, cache.read_row(0), 11)


def test_tokens_can_be_taken_back() -> None:
    """This happens when a guess at several tokens was wrong from some token on."""
    torch.manual_seed(0)
    layer, x_BTC, wrong_BTC = MultiHeadAttention(16, 2), torch.randn(2, 9, 16), torch.randn(2, 3, 16)
    cache = KVCache([layer.new_cache(2, 12)])
    with torch.no_grad():
        layer(x_BTC[:, :6], cache=cache.layers[0])
        layer(wrong_BTC, cache=cache.layers[0])
        cache.truncate(6)
        assert cache.lengths == [6, 6]
        torch.testing.assert_close(layer(x_BTC[:, 6:], cache=cache.layers[0]), layer(x_BTC)[:, 6:])
        cache.reset([0])
        cache.truncate(8)  # a shorter row is left as it is
    assert cache.lengths == [0, 8]


def test_a_ring_cannot_take_tokens_back() -> None:
    cache = RingCache(1, 1, 3, 0, (2,))
    cache.append(torch.ones(1, 1, 5, 2))
    cache.truncate(5)
    with pytest.raises(ValueError, match="cannot be cut back to 4 tokens"):
        cache.truncate(4)


def test_rows_of_different_lengths_need_a_causal_mask() -> None:
    cache = LayerCache(2, 1, 9, (2,))
    cache.append(torch.ones(2, 1, 3, 2))
    cache.reset([0])
    with pytest.raises(ValueError, match=r"need a causal mask, got lengths \[0, 3\]"):
        cache.append(torch.ones(2, 1, 1, 2), mask=Mask(causal=False))
    assert cache.lengths == [0, 3]
