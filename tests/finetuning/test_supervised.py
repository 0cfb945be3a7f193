"""Supervised fine-tuning: what counts, what does not, and that a tuned model stops."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetuning.instruction.supervised import Answers, PackedConversations, add_noise, fit_into, pack
from finetuning.instruction.templates import Encoded
from gpt_model import GPT, GPTConfig
from pretraining.engine import Engine, Settings, join_world
from pretraining.engine.engine import split_batch

VOCAB, LENGTH = 32, 24


def model(**changes: object) -> GPT:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCAB,
        "context_length": LENGTH,
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 2,
        "n_kv_groups": 1,
    }
    return GPT(GPTConfig(**{**shape, **changes})).double()


def example(*parts: tuple[int, int, float]) -> Encoded:
    """Tokens first, first + 1, ... of each part (first, number, weight)."""
    ids = [first + index for first, number, _ in parts for index in range(number)]
    return Encoded(ids, [weight for _, number, weight in parts for _ in range(number)])


SHORT = example((1, 3, 0), (9, 2, 1))
TWO_TURNS = example((4, 4, 0), (12, 3, 1), (20, 2, 0), (25, 4, 1))


def batch_of(*examples: Encoded, length: int = LENGTH) -> tuple[Tensor, ...]:
    rows = PackedConversations(examples, length)
    return tuple(torch.stack(tensors) for tensors in zip(*(rows[i] for i in range(len(rows))), strict=True))


def by_hand(model: GPT, encoded: Encoded, *, weighted: bool = False) -> float:
    """The loss of one conversation alone, token by token."""
    logits_TV = model(torch.tensor([encoded.ids]))[0][0]
    total = 0.0
    for index, (id_, weight) in enumerate(zip(encoded.ids, encoded.weights, strict=True)):
        if index and weight:
            total -= F.log_softmax(logits_TV[index - 1], dim=-1)[id_].item() * (weight if weighted else 1)
    return total


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("attention", ["mha", "gqa", "swa"])
def test_conversations_of_a_row_do_not_see_one_another(attention: str, position: str) -> None:
    gpt = model(attention=attention, position=position, window_size=5)
    batch = batch_of(SHORT, TWO_TURNS)
    assert len(batch[0]) == 1
    assert Answers().count(batch) == 2 + 3 + 4
    expected = by_hand(gpt, SHORT) + by_hand(gpt, TWO_TURNS)
    assert Answers().loss_sum(gpt, batch).item() == pytest.approx(expected, rel=1e-12)


def test_weights_multiply_what_a_token_counts() -> None:
    gpt = model()
    half = example((1, 3, 0), (9, 2, 0.5), (15, 1, 0), (16, 2, 2))
    objective = Answers(weighted=True)
    assert objective.loss_sum(gpt, batch_of(half)).item() == pytest.approx(by_hand(gpt, half, weighted=True), rel=1e-12)
    assert objective.loss_sum(gpt, batch_of(SHORT)).item() == pytest.approx(by_hand(gpt, SHORT), rel=1e-12)


def test_the_mean_is_over_tokens_however_the_batch_is_cut() -> None:
    """Rows with one, seven and no supervised tokens, in micro-batches of one row: every token weighs the same."""
    rows = [batch_of(each) for each in (example((1, 20, 0), (30, 1, 1)), TWO_TURNS)]
    nothing = tuple(torch.zeros_like(tensor) for tensor in rows[0])
    nothing[1].fill_(-100)
    batch = tuple(torch.cat(parts) for parts in zip(rows[0], nothing, rows[1], strict=True))
    gradients = []
    for size in (1, 3):
        with join_world("cpu", timeout=10) as world:
            gpt = model()
            engine = Engine(
                gpt, Answers(), lambda m: [torch.optim.SGD(m.parameters(), lr=1.0)], Settings(clip=0), world
            )
            before = gpt.final_norm.weight.detach().clone()
            info = engine.step(split_batch(batch, size), 1.0)
            gradients.append(before - gpt.final_norm.weight.detach())
            expected = sum(by_hand(model(), each) for each in (example((1, 20, 0), (30, 1, 1)), TWO_TURNS)) / 8
            assert info.loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-9)


def test_a_batch_without_any_answer_is_no_nan() -> None:
    nothing = tuple(torch.zeros_like(tensor) for tensor in batch_of(SHORT))
    nothing[1].fill_(-100)
    with join_world("cpu", timeout=10) as world:
        gpt = model()
        engine = Engine(gpt, Answers(), lambda m: [torch.optim.SGD(m.parameters(), lr=1.0)], Settings(), world)
        info = engine.step([nothing], 1.0)
        assert (info.loss.item(), info.gradient_norm.item(), info.count) == (0, 0, 0)
        assert engine.evaluate([nothing])["val_loss"] == 0


def test_the_end_of_an_answer_is_learned_and_what_follows_is_not() -> None:
    ids, targets, _, _, _ = (tensor[0].tolist() for tensor in batch_of(TWO_TURNS))
    supervised = [target for target in targets if target != -100]
    assert supervised == [12, 13, 14, 25, 26, 27, 28]  # 14 and 28 end the answers
    assert ids[: len(TWO_TURNS.ids)] == TWO_TURNS.ids


def test_what_is_too_long_loses_the_beginning_of_its_prompt() -> None:
    fitted = fit_into([SHORT, example((0, 10, 0), (20, 4, 1)), example((0, 3, 0), (10, 9, 1)), example((5, 4, 0))], 8)
    assert [each.ids for each in fitted.kept] == [SHORT.ids, [6, 7, 8, 9, 20, 21, 22, 23]]
    assert (fitted.n_cut, fitted.n_dropped) == (1, 2)


def test_an_answer_that_is_cut_is_only_read() -> None:
    [kept] = fit_into([example((0, 2, 0), (10, 5, 1), (20, 2, 0), (25, 3, 1))], 8).kept
    assert kept == Encoded([12, 13, 14, 20, 21, 25, 26, 27], [0, 0, 0, 0, 0, 1, 1, 1])


@given(st.lists(st.integers(1, 20), max_size=40))
def test_packing_loses_nothing_and_fits(lengths: list[int]) -> None:
    rows = pack(lengths, 20)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    filled = [sum(lengths[example] for example in row) for row in rows]
    assert all(0 < length <= 20 for length in filled)
    assert sum(2 * length <= 20 for length in filled) <= 1  # two half-empty rows would have been one


def test_noise_is_for_training_alone_and_as_large_as_said() -> None:
    gpt = model()
    ids = torch.zeros(1, LENGTH, dtype=torch.int64)
    clean = gpt.token_embedding(ids).detach()
    handle = add_noise(gpt, alpha=5.0)
    most = 5 / math.sqrt(LENGTH * 16)
    noise = gpt.train().token_embedding(ids) - clean
    assert 0.9 * most < noise.abs().max() <= most
    assert torch.equal(gpt.eval().token_embedding(ids), clean)
    handle.remove()
    assert torch.equal(gpt.train().token_embedding(ids), clean)
