"""The mask's rules against plain numbers, in each form a kernel asks for, and what makes no mask."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_mechanisms import Mask
from tests.attention_mechanisms.cases import masks, sees

lengths = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 8))


def drawn(data: st.DataObject, sizes: tuple[int, int, int]) -> tuple[Mask, torch.Tensor]:
    """A mask, and what it shows by hand, (B, 1, T, S)."""
    B, T, S = sizes
    mask = data.draw(masks(B, T, S))
    return mask, torch.tensor([[[[sees(mask, b, t, s) for s in range(S)] for t in range(T)]] for b in range(B)])


@given(sizes=lengths, data=st.data())
@settings(max_examples=200, deadline=None)
def test_dense_form_equals_the_rules_one_by_one(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    mask, expected = drawn(data, sizes)
    assert torch.equal(mask.dense(*sizes[1:]).expand_as(expected), expected)


@given(sizes=lengths, data=st.data())
@settings(max_examples=100, deadline=None)
def test_rule_speaks_of_one_query_and_key_at_a_time(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    """FlexAttention calls it like this, with scalar index tensors."""
    mask, expected = drawn(data, sizes)
    visible = mask.rule()
    for b, _, t, s in torch.cartesian_prod(*(torch.arange(n) for n in expected.shape)):
        assert bool(visible(b, torch.tensor(0), t, s)) == bool(expected[b, 0, t, s])


@given(sizes=lengths, data=st.data())
@settings(max_examples=200, deadline=None)
def test_opened_form_only_changes_queries_that_see_nothing(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    mask, expected = drawn(data, sizes)
    visible, empty = mask.opened(*sizes[1:])
    blind = ~expected.any(-1, keepdim=True)
    assert torch.equal(visible.expand_as(expected), expected | blind)
    assert not blind.any() if empty is None else torch.equal(empty.expand_as(blind), blind)


@given(sizes=lengths, window=st.none() | st.integers(1, 9), sinks=st.integers(0, 3), offset=st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_shortcuts_are_taken_exactly_where_they_are_true(
    sizes: tuple[int, int, int], window: int | None, sinks: int, offset: int
) -> None:
    _, T, S = sizes
    mask = Mask(window=window, n_sinks=sinks, query_offset=offset)
    shown = torch.tensor([[sees(mask, 0, t, s) for s in range(S)] for t in range(T)])
    # a long offset with few keys may hide nothing by luck of the sinks; claiming less is safe, more is not
    assert shown.all() or not mask.hides_nothing(T, S)
    if offset + T == S:
        assert mask.hides_nothing(T, S) == bool(shown.all())
    if mask.is_square_causal(T, S):
        assert torch.equal(shown, torch.ones(T, S, dtype=torch.bool).tril())


def test_the_plain_cases_take_the_shortcuts() -> None:
    assert Mask().is_square_causal(5, 5)
    assert Mask(window=5).is_square_causal(5, 5)
    assert not Mask(window=4).is_square_causal(5, 5)
    assert not Mask(query_offset=1).is_square_causal(4, 5)
    assert not Mask(left_padding=(0,)).is_square_causal(5, 5)
    assert Mask(query_offset=9).hides_nothing(1, 10)
    assert not Mask(query_offset=8).hides_nothing(2, 10)
    assert Mask(causal=False).hides_nothing(3, 10)
    assert not Mask(causal=False, left_padding=(1, 0)).hides_nothing(3, 10)


def test_a_window_of_three_with_one_sink_as_drawn_in_the_docstring() -> None:
    rows = ["x", "xx", "xxx", "xxxx", "x.xxx", "x..xxx", "x...xxx", "x....xxx"]
    expected = torch.tensor([[letter == "x" for letter in row.ljust(8)] for row in rows])
    assert torch.equal(Mask(window=3, n_sinks=1).dense(8, 8), expected)


def test_sinks_are_the_first_tokens_that_are_no_padding() -> None:
    shown = Mask(window=2, n_sinks=1, left_padding=(0, 3), query_offset=7).dense(1, 8)[:, 0, 0]
    assert shown[0].nonzero().flatten().tolist() == [0, 6, 7]
    assert shown[1].nonzero().flatten().tolist() == [3, 6, 7]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Mask(), [0, 1, 2]),
        (Mask(query_offset=5), [5, 6, 7]),
        (Mask(query_offset=(5, 0)), [[5, 6, 7], [0, 1, 2]]),
        (Mask(left_padding=(0, 2)), [[0, 1, 2], [0, 0, 0]]),
        (Mask(query_offset=4, left_padding=(1, 5)), [[3, 4, 5], [0, 0, 1]]),
        (Mask(query_offset=(4, 1), left_padding=(1, 2)), [[3, 4, 5], [0, 0, 1]]),
    ],
)
def test_positions_count_from_the_first_token_that_is_no_padding(mask: Mask, expected: Any) -> None:
    assert mask.positions(3).tolist() == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query_offset": -1}, "query_offset must not be negative, got -1"),
        ({"query_offset": (3, -2)}, "query_offset must not be negative, got (3, -2)"),
        ({"left_padding": (0, -1)}, "left_padding must not be negative, got (0, -1)"),
        ({"window": 0}, "window must be at least 1, the query's own position, got 0"),
        ({"n_sinks": -1}, "n_sinks must not be negative, got -1"),
        ({"window": 2, "causal": False}, "a window looks back from each query, so it must be causal"),
        ({"query_offset": (1, 2), "left_padding": (0, 0, 0)}, "batches of different sizes: [2, 3]"),
        ({"left_padding": (0, 0), "document_ids": torch.zeros(4, 5)}, "batches of different sizes: [2, 4]"),
        ({"key_positions": torch.zeros(1, 5), "document_ids": torch.zeros(4, 5)}, "different sizes: [1, 4]"),
    ],
)
def test_what_makes_no_mask_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Mask(**fields)


def test_masks_are_equal_by_numbers_and_by_the_very_tensors() -> None:
    ids, same_numbers = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])
    mask = Mask(window=4, left_padding=(1, 2), document_ids=ids)
    twin = Mask(window=4, left_padding=(1, 2), document_ids=ids)
    assert mask == twin
    assert hash(mask) == hash(twin)
    others = [
        replace(mask, document_ids=same_numbers), replace(mask, window=5), replace(mask, left_padding=(1, 1)),
        replace(mask, document_ids=None), replace(mask, key_positions=ids), replace(mask, n_sinks=1),
        replace(mask, query_offset=1), Mask(),
    ]  # fmt: skip
    assert all(mask != other for other in others)
    assert {twin: "found"}[mask] == "found"
    mask.dense(3, 3)  # forms that are kept do not change what it equals
    assert mask == twin
    with pytest.raises(AttributeError):
        mask.window = 3  # type: ignore[misc]


def test_batch_size_is_that_of_whichever_field_differs_by_row() -> None:
    assert Mask(window=3, document_ids=torch.zeros(5)).batch_size is None
    assert Mask(query_offset=(1, 2)).batch_size == 2
    assert Mask(left_padding=(0, 0, 0)).batch_size == 3
    assert Mask(document_ids=torch.zeros(4, 7)).batch_size == 4
    assert Mask(key_positions=torch.zeros(5, 7), left_padding=(0,) * 5).batch_size == 5


def test_forms_are_made_once_for_all_layers() -> None:
    mask = Mask(left_padding=(1, 2))
    assert mask.dense(4, 4) is mask.dense(4, 4)
    assert mask.opened(4, 4)[0] is mask.opened(4, 4)[0]
    assert mask.windowed(3, 1) is mask.windowed(3, 1)
    assert mask.windowed(3, 1) == replace(mask, window=3, n_sinks=1)
    assert mask.windowed(3, 1).windowed(3, 1) is mask.windowed(3, 1)
    assert mask.dense(4, 5).shape == (2, 1, 4, 5)  # another shape is another form
    assert mask.windowed(2) == replace(mask, window=2)


def test_forms_made_for_inference_serve_training_too() -> None:
    mask = Mask(left_padding=(1, 2))
    with torch.inference_mode():
        made = mask.opened(4, 4)
    assert not any(form.is_inference() for form in made)
