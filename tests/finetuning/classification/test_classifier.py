"""The classifier: what its prediction may depend on, and what learns how fast."""

import numpy as np
import pytest
import torch

from finetuning.classification.batches import Bucketed, collate, encode, in_order
from finetuning.classification.classifier import GPTClassifier, depths, freeze_all_but, make_optimizers
from finetuning.classification.objective import Classification, class_weights
from tests.finetuning.classification.models import VARIANTS, tiny_classifier
from working_with_text_data.minbpe import BasicTokenizer


def rows_of(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(64, size=length) for length in lengths]


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_neither_padding_nor_other_rows_change_a_prediction(variant: str, pool: str) -> None:
    model = tiny_classifier(pool, **VARIANTS[variant])
    rows = rows_of(7, 1, 12, 20)
    alone = torch.cat([model(*collate([row])) for row in rows])
    assert alone.std(0).min() > 1e-4, "the rows differ, or nothing is shown"
    ids_BT, lengths_B = collate(rows)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(model(ids_BT, lengths_B), alone, **close)
    for amount in (1, 9):
        for filling in (0, 63):  # whatever stands there
            padding = torch.full((len(rows), amount), filling)
            torch.testing.assert_close(model(torch.cat([ids_BT, padding], 1), lengths_B), alone, **close)
            left_BT = torch.full((len(rows), 20 + amount), filling)
            for row, into in zip(rows, left_BT, strict=True):
                into[len(into) - len(row) :] = torch.from_numpy(row)
            torch.testing.assert_close(model(left_BT, lengths_B, padded="left"), alone, **close)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(model(ids_BT[order], lengths_B[order]), alone[order], **close)


@torch.no_grad()
def test_the_first_position_sees_nothing_but_the_first_token() -> None:
    long, short = rows_of(20, 5)
    short[0] = long[0]
    first, last = (tiny_classifier(pool)(*collate([long, short])) for pool in ("first", "last"))
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=1e-6)
    assert (last[0] - last[1]).abs().max() > 1e-4


def test_each_layer_has_its_own_learning_rate() -> None:
    model = tiny_classifier()
    below = depths(model)
    assert {name: depth for name, depth in below.items() if name.endswith("weight") and "norm" not in name} == {
        "gpt.token_embedding.weight": 4,
        "gpt.position_embedding.weight": 4,
        **{f"gpt.blocks.{layer}.attention.{part}.weight": 3 - layer for layer in range(3) for part in ("qkv", "out")},
        **{
            f"gpt.blocks.{layer}.feed_forward.{part}.weight": 3 - layer
            for layer in range(3)
            for part in ("expand", "out")
        },
        "head.1.weight": 0,
        "head.4.weight": 0,
    }
    assert below["gpt.final_norm.weight"] == 1
    (optimizer,) = make_optimizers(model, lr=0.1, layer_decay=0.5, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["lr"] == pytest.approx(0.1 * 0.5 ** below[name])
            assert group["weight_decay"] == (0.3 if parameter.ndim == 2 else 0)
    assert sorted(seen) == sorted(names.values()), "each parameter once"


@pytest.mark.parametrize(("n_blocks", "moved"), [(None, {0, 1, 2, 3, 4}), (0, {0}), (1, {0, 1}), (3, {0, 1, 2, 3})])
def test_only_what_should_learn_moves(n_blocks: int | None, moved: set[int]) -> None:
    model = tiny_classifier()
    freeze_all_but(model, n_blocks)
    (optimizer,) = make_optimizers(model, lr=0.1, layer_decay=1, weight_decay=0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ids_BT, lengths_B = collate(rows_of(5, 8))
    Classification().loss_sum(model, (ids_BT, lengths_B, torch.tensor([0, 1]))).backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {depths(model)[name] for name in changed} == moved


def test_the_loss_is_a_sum_in_which_classes_can_count_the_same() -> None:
    model = tiny_classifier(n_classes=3)
    ids_BT, lengths_B = collate(rows_of(5, 8, 3))
    labels_B = torch.tensor([0, 2, 2])
    whole = Classification().loss_sum(model, (ids_BT, lengths_B, labels_B))
    parts = [
        Classification().loss_sum(model, (ids_BT[i : i + 1], lengths_B[i : i + 1], labels_B[i : i + 1]))
        for i in range(3)
    ]
    torch.testing.assert_close(whole, sum(parts))
    weights = class_weights(np.array([0, 0, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 2.0]))
    heavy = Classification(torch.tensor([0.0, 1.0, 2.0])).loss_sum(model, (ids_BT, lengths_B, labels_B))
    torch.testing.assert_close(heavy, 2 * (parts[1] + parts[2]))
    measured = Classification().evaluate(model, [(ids_BT, lengths_B, labels_B)])
    assert measured["val_loss"] == pytest.approx(whole.item() / 3, rel=1e-5)


def test_long_texts_are_cut_where_it_is_said() -> None:
    tokenizer = BasicTokenizer()
    tokenizer.train("", 256)
    text = "abcdefghijklmnop"
    kept = {cut: bytes(encode(tokenizer, text, 8, cut).tolist()).decode() for cut in ("head", "tail", "both")}
    assert kept == {"head": "abcdefgh", "tail": "ijklmnop", "both": "abklmnop"}
    assert len(encode(tokenizer, text, 16, "both")) == 16


def test_batches_hold_each_text_once_an_epoch_and_little_padding() -> None:
    rng = np.random.default_rng(0)
    rows = [np.full(length, index) for index, length in enumerate(rng.integers(1, 60, size=100))]
    batches = Bucketed(rows, np.arange(100), batch_size=8, seed=1)
    epochs = []
    for _ in range(2):
        seen = [batches.next() for _ in range(len(batches))]
        labels = torch.cat([labels for *_, labels in seen]).tolist()
        assert sorted(labels) == list(range(100))
        epochs.append(labels)
        for ids_BT, lengths_B, labels_B in seen:
            assert lengths_B.tolist() == [len(rows[label]) for label in labels_B]
            assert ids_BT[:, 0].tolist() == labels_B.tolist()
        assert sum(int(lengths.sum()) for _, lengths, _ in seen) > 0.85 * sum(ids.numel() for ids, *_ in seen)
    assert epochs[0] != epochs[1]


def test_batches_go_on_where_they_stood_and_are_shared_by_processes() -> None:
    rows, labels = rows_of(*range(1, 21)), np.arange(20)
    one = Bucketed(rows, labels, batch_size=6, seed=1)
    two = [Bucketed(rows, labels, batch_size=6, seed=1, rank=rank, n_ranks=2) for rank in range(2)]
    for _ in range(3):
        both = torch.cat([part.next()[2] for part in two])
        assert sorted(both.tolist()) == sorted(one.next()[2].tolist())
    later = Bucketed(rows, labels, batch_size=6, seed=1)
    later.load_state_dict(one.state_dict())
    for _ in range(6):
        assert torch.equal(later.next()[2], one.next()[2])


def test_predictions_come_in_the_order_of_the_texts() -> None:
    rows = rows_of(3, 9, 1, 5)
    found = {at: ids_BT[place, :length].tolist() for chosen, ids_BT, lengths_B in in_order(rows, 3)
             for place, (at, length) in enumerate(zip(chosen, lengths_B, strict=True))}  # fmt: skip
    assert found == {at: row.tolist() for at, row in enumerate(rows)}


def test_the_head_and_nothing_else_is_new() -> None:
    model = tiny_classifier()
    assert isinstance(model, GPTClassifier)
    assert sum(parameter.numel() for parameter in model.head.parameters()) == 16 * 16 + 16 + 16 * 2 + 2
