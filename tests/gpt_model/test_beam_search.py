"""Beam search finds what transformers finds, and, with beams enough, the best there is."""

import itertools
import math
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt_model import GPT, TextGenerator
from gpt_model.beam_search import beam_search
from tests.gpt_model.models import Bigrams, decided, twins
from utils.files import InputError
from working_with_text_data.minbpe import RegexTokenizer


@torch.no_grad()
def score(model: GPT, ids: list[int], new: list[int], length_penalty: float) -> float:
    """By one full pass."""
    logits_1TV, _ = model(torch.tensor([[*ids, *new]]))
    logs_TV = logits_1TV[0, len(ids) - 1 : -1].log_softmax(dim=-1)
    total = sum(float(logs_TV[i, token]) for i, token in enumerate(new))
    return total / len(new) ** length_penalty


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2LMHeadModel, GPT]:
    theirs, ours = twins(tmp_path_factory.mktemp("twins"), seed=1, scale=3, vocab_size=30, n_positions=32)
    return theirs.double(), ours.double()


@pytest.mark.parametrize("n_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("end_token", [None, 4, 17, 21])
def test_finds_what_transformers_finds(
    pair: tuple[GPT2LMHeadModel, GPT], n_beams: int, length_penalty: float, end_token: int | None
) -> None:
    theirs, ours = pair
    theirs.generation_config.eos_token_id = end_token
    ids = [3, 1, 4, 1, 5]
    found = theirs.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, 5), do_sample=False, num_beams=n_beams, max_new_tokens=12,
        num_return_sequences=n_beams, length_penalty=length_penalty, early_stopping="never", pad_token_id=29,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    texts = beam_search(ours, ids, n_beams, 12, length_penalty, end_token)
    assert len(texts) == n_beams
    for (new, value), sequence, expected in zip(texts, found.sequences, found.sequences_scores, strict=True):
        assert sequence[5 : 5 + len(new)].tolist() == new
        assert (sequence[5 + len(new) :] == 29).all()  # only padding
        # transformers adds up in float32, whatever the model's type
        assert value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"position": "rope", "attention": "gqa", "n_kv_groups": 2},
        {"attention": "mla", "latent_dim": 12},
        {"attention": "swa", "window_size": 3, "n_sinks": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_with_beams_enough_it_finds_the_best_of_all(variant: dict[str, Any], length_penalty: float) -> None:
    """64 beams hold every beginning of three tokens out of four, so nothing is ever lost."""
    model, ids, end = decided(vocab_size=4, **variant), [1, 2, 0, 3], 2
    texts = [list(new) for n in range(1, 5) for new in itertools.product(range(4), repeat=n)]
    texts = [new for new in texts if end not in new[:-1] and (len(new) == 4 or new[-1] == end)]
    best = sorted(((score(model, ids, new, length_penalty), new) for new in texts), reverse=True)[:64]
    found = beam_search(model, ids, 64, 4, length_penalty, end)
    assert [new for new, _ in found] == [new for _, new in best]
    assert [value for _, value in found] == pytest.approx([value for value, _ in best])


def test_one_beam_is_greedy() -> None:
    model, ids = decided(vocab_size=30), [1, 2, 3]
    greedy = list(ids)
    for _ in range(20):
        with torch.no_grad():
            greedy.append(int(model(torch.tensor([greedy]))[0][0, -1].argmax()))
    ((found, value),) = beam_search(model, ids, 1, 20)
    assert ids + found == greedy
    assert value == pytest.approx(score(model, ids, found, 1.0))


def test_more_beams_find_likelier_texts_than_greedy() -> None:
    model, ids = decided(vocab_size=30), [1, 2, 3]
    greedy, few, many = (beam_search(model, ids, n, 20, 0.0)[0][1] for n in (1, 4, 16))
    assert greedy < few <= many


def test_a_text_that_begins_badly_may_still_be_the_best() -> None:
    """At first the text that ends at once has the better mean; a search that stopped there would miss the other."""
    model = Bigrams([[0.0, 0.4, 0.6], [0.0, 0.99, 0.01], [1 / 3, 1 / 3, 1 / 3]])
    ((found, _),) = beam_search(model, [0], 1, 8, 1.0, end_token=2)
    assert found == [1] * 8
    ((found, _),) = beam_search(model, [0], 1, 8, 0.0, end_token=2)  # sums only fall
    assert found == [2]


def test_fewer_texts_than_beams_are_no_more_than_there_are() -> None:
    model = decided(vocab_size=3)
    found = beam_search(model, [1], 20, 2)
    assert sorted(new for new, _ in found) == [list(new) for new in itertools.product(range(3), repeat=2)]
    assert all(value > -math.inf for _, value in found)


def test_bad_requests_are_named() -> None:
    model = decided(vocab_size=5)
    for arguments, message in (
        (([], 2, 3), "the prompt has no tokens"),
        (([7], 2, 3), "the prompt's tokens must be ids below 5, the vocabulary's size, got 7"),
        (([1], 0, 3), "n_beams must be at least 1, got 0"),
        (([1], 2, 0), "max_new_tokens must be at least 1, got 0"),
        (([1] * 62, 2, 4), "the prompt's 62 tokens and 4 new ones are more than the context of 64"),
        (([1], 2, 3, math.nan), "length_penalty must be from -10 to 10, got nan"),
        (([1], 2, 3, 1e4), "length_penalty must be from -10 to 10, got 10000.0"),
        (([1], 2, 3, 1.0, 5), "end_token must be ids below 5, the vocabulary's size, got 5"),
    ):
        with pytest.raises(InputError, match=message):
            beam_search(model, *arguments)
    torch.nn.init.constant_(model.final_norm.bias, math.nan)
    with pytest.raises(InputError, match="no token can be chosen"):
        beam_search(model, [1], 2, 3)


def test_one_token_more_than_the_context_fits() -> None:
    """The last new token is never read."""
    model, prompt = decided(), [1] * 62
    ((new, _),) = beam_search(model, prompt, 1, 3)
    greedy = TextGenerator(model, RegexTokenizer()).tokens(prompt, temperature=0, max_new_tokens=3, overflow="error")
    assert new == list(greedy)


def test_where_a_text_can_only_end() -> None:
    assert [text for text, _ in beam_search(decided(vocab_size=1), [0], 2, 3, end_token=0)] == [[0]]
