"""Speculative decoding writes what the target alone would, whatever the draft proposes."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt_model import GPT, Sampling, TextGenerator
from gpt_model.sampling import draw, next_token_probabilities
from gpt_model.speculative import acceptance_rate, speculate, verify
from tests.gpt_model.models import decided
from tests.gpt_model.test_sampling import probability_of_worse
from utils.files import InputError
from working_with_text_data.minbpe import RegexTokenizer


def disturbed(model: GPT, noise: float) -> GPT:
    """A draft that is often of the same opinion."""
    torch.manual_seed(5)
    draft = GPT(model.config).double().eval()
    draft.load_state_dict({name: w + noise * w.std() * torch.randn_like(w) for name, w in model.state_dict().items()})
    return draft


TARGETS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa-rope": {"attention": "gqa", "n_kv_groups": 2, "position": "rope"},
    "mla-rope": {"attention": "mla", "latent_dim": 12, "rope_dim": 4, "position": "rope"},
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("n_draft", [1, 3, 8])
@pytest.mark.parametrize("prompt", [[9], [1, 2, 3, 4, 5]], ids=len)
def test_greedy_text_is_the_targets(name: str, n_draft: int, prompt: list[int]) -> None:
    target = decided(0, **TARGETS[name])
    sampling = Sampling(temperature=0, max_new_tokens=50)
    expected = list(TextGenerator(target, RegexTokenizer()).tokens(prompt, sampling))
    assert len(set(expected)) > 3
    rates = []
    for draft in (target, disturbed(target, 0.1), decided(1)):
        rounds = list(speculate(target, draft, prompt, sampling, n_draft))
        assert [token for r in rounds for token in r.tokens] == expected
        assert all(len(r.proposed) == n_draft for r in rounds[: -n_draft - 1])
        rates.append(acceptance_rate(rounds))
    assert 1 == rates[0] > rates[1] > rates[2]


def test_with_the_target_as_draft_everything_is_accepted() -> None:
    """Also where tokens are drawn; each round but the last then writes one more than was proposed."""
    target = decided(0)
    rounds = list(speculate(target, target, [1, 2], Sampling(temperature=1.3, seed=0, max_new_tokens=52), 4))
    assert acceptance_rate(rounds) == 1
    assert [len(r.tokens) for r in rounds] == [5] * 10 + [2]


@pytest.mark.parametrize(("K", "V", "sharpness"), [(1, 2, 1), (1, 6, 0), (2, 5, 0.5), (3, 4, 2)])
def test_verified_tokens_have_the_targets_distribution(K: int, V: int, sharpness: float) -> None:
    """Of the first token after the prompt, whichever way it came: accepted, or in place of a rejected one."""
    source = torch.Generator().manual_seed(0)
    p_KV, q_KV = ((sharpness * torch.randn(K + 1, V, generator=source)).softmax(dim=-1) for _ in range(2))
    n, counts, proposals = 1500, torch.zeros(V), torch.zeros(V)
    for _ in range(n):
        proposed = draw(q_KV[:K], [source] * K).tolist()
        n_accepted, token = verify(p_KV, q_KV, proposed, source)
        counts[proposed[0] if n_accepted else token] += 1
        proposals[proposed[0]] += 1
    assert probability_of_worse(counts, n * p_KV[0]) > 0.01
    assert sharpness == 0 or probability_of_worse(proposals, n * p_KV[0]) < 1e-6  # there was something to correct


def test_a_token_that_the_target_forbids_is_never_accepted() -> None:
    p_KV, q_KV = torch.tensor([[0.0, 0.5, 0.5], [1, 0, 0]]), torch.tensor([[1.0, 0, 0]])
    source = torch.Generator().manual_seed(0)
    results = {verify(p_KV, q_KV, [0], source) for _ in range(200)}
    assert results == {(0, 1), (0, 2)}


def test_distributions_that_differ_by_rounding_leave_something_to_draw() -> None:
    p_KV, q_KV = torch.tensor([[0.0, 1.0]]).expand(2, 2), torch.tensor([[0.2, 1.0]])
    assert verify(p_KV, q_KV, [0], torch.Generator().manual_seed(0)) == (0, 1)


@torch.no_grad()
def distribution(model: GPT, prompt: list[int], n: int, sampling: Sampling) -> Tensor:
    """The probability of each text of n tokens, in the order of counting."""
    V = model.config.vocab_size
    texts_NT = torch.tensor(list(itertools.product(range(V), repeat=n)))
    logits_NTV, _ = model(torch.cat([torch.tensor([prompt]).expand(len(texts_NT), -1), texts_NT], dim=1))
    steps_NTV = next_token_probabilities(logits_NTV[:, len(prompt) - 1 : -1], sampling)
    return steps_NTV.gather(2, texts_NT[..., None]).prod(dim=1)[:, 0]


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.7, "top_k": 2}, {"top_p": 0.8}], ids=str)
def test_whole_texts_have_the_targets_distribution(knobs: dict[str, Any]) -> None:
    """Chi-square over all texts of three tokens from a vocabulary of three, by a draft of another opinion."""
    small = {"vocab_size": 3, "d_model": 8, "n_layers": 1, "n_heads": 1, "context_length": 8}
    target, draft, n = decided(0, **small), decided(1, **small), 500
    expected, drafts = (distribution(model, [1, 2], 3, Sampling(**knobs)) for model in (target, draft))
    assert expected.sum() == pytest.approx(1)
    counts, rounds = torch.zeros(27), []
    for seed in range(n):
        made = list(speculate(target, draft, [1, 2], Sampling(**knobs, seed=seed, max_new_tokens=3), 2))
        a, b, c = [token for r in made for token in r.tokens]
        counts[9 * a + 3 * b + c] += 1
        rounds += made
    assert probability_of_worse(counts, n * expected) > 0.01
    assert (counts / n - drafts).abs().sum() > 0.2  # the draft's own would be something else
    assert 0.2 < acceptance_rate(rounds) < 0.95


def test_seeds_reproduce() -> None:
    target, draft = decided(0), decided(1)
    one, two, other = (
        list(speculate(target, draft, [1], Sampling(seed=seed, max_new_tokens=20))) for seed in (1, 1, 2)
    )
    assert one == two != other


def test_a_stop_token_ends_the_text_with_its_round() -> None:
    target = decided(0)
    draft, sampling = disturbed(target, 0.05), Sampling(temperature=0, max_new_tokens=50)
    whole = list(speculate(target, draft, [1, 2], sampling))
    stop = whole[2].tokens[0]
    first = next(i for i, r in enumerate(whole) if stop in r.tokens)
    stopped = list(speculate(target, draft, [1, 2], Sampling(temperature=0, max_new_tokens=50, stop_tokens=[stop])))
    assert stopped == whole[: first + 1]


def test_the_target_is_asked_once_a_round() -> None:
    target = decided(0)
    draft, read = disturbed(target, 0.05), []
    target.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    rounds = list(speculate(target, draft, [1, 2, 3], Sampling(temperature=0, max_new_tokens=30), 3))
    assert len(read) == 1 + len(rounds)  # the prompt, but for its last token, and then each round
    assert read[:2] == [2, 4]
    assert max(read[1:]) == 4


def test_one_token_more_than_the_context_fits() -> None:
    """The last new token is never read."""
    target = decided(0, context_length=20)
    sampling = Sampling(temperature=0, max_new_tokens=18, overflow="error", stop_tokens=())
    written = [token for made in speculate(target, decided(1), [1, 2, 3], sampling) for token in made.tokens]
    assert written == list(TextGenerator(target, RegexTokenizer()).tokens([1, 2, 3], sampling))


def test_what_cannot_be_done_is_named_at_once() -> None:
    target = decided(0)
    for other, sampling, message in (
        (decided(0, vocab_size=300), Sampling(max_new_tokens=9), "the same vocabulary, got 256 and 300 tokens"),
        (decided(0, attention="swa"), Sampling(max_new_tokens=9), "back, which the ring cache of attention=swa cannot"),
        (decided(0, context_length=20), Sampling(max_new_tokens=21), "more than the context of 20"),
        (target, Sampling(repetition_penalty=1.5, max_new_tokens=9), "does not know repetition_penalty, got 1.5"),
        (target, Sampling(stop=["a"], max_new_tokens=9), r"does not know stop, got \['a'\]"),
    ):
        with pytest.raises(InputError, match=message):
            speculate(target, other, [1], sampling)
    with pytest.raises(InputError, match="the same vocabulary, got 300 and 256 tokens"):
        speculate(decided(0, vocab_size=300), target, [299])  # an id that only one of them has
    with pytest.raises(InputError, match="stop_tokens must be ids below 256, the vocabulary's size, got 256"):
        speculate(target, target, [1], Sampling(stop_tokens=[256], max_new_tokens=9))
    with pytest.raises(InputError, match="n_draft must be at least 1, got 0"):
        speculate(target, target, [1], Sampling(max_new_tokens=9), 0)
    with pytest.raises(InputError, match="the prompt has no tokens"):
        speculate(target, target, [])
