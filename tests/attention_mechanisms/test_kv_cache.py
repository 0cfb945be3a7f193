"""A cache must not change what attention computes, and must cost exactly what its formula says."""

import pytest
import torch

from attention_mechanisms import KVCache, LayerCache, Mask, MultiHeadAttention


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
    with pytest.raises(ValueError, match="holds 4 tokens a row: 3 more than 3 do not fit"):
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
