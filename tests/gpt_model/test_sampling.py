"""Filters do what those of transformers do; draws have the distribution they should; bad knobs are named."""

import math
from typing import Any, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt_model import Sampling
from gpt_model.sampling import (
    Changes,
    Sampler,
    apply_repetition_penalty,
    choose,
    draw,
    keep_min_p,
    keep_top_p,
    next_token_probabilities,
)
from utils.files import InputError

seeds = st.integers(0, 1_000_000)
shares = st.integers(1, 1000).map(lambda n: n / 1000)  # no closer to 1 than this: sums are rounded
CPU = torch.device("cpu")


def random_logits(seed: int, B: int = 3, V: int = 40) -> Tensor:
    """Of several sharpnesses; float64, so that no two scores are alike and no sum is within rounding of a bound."""
    generator = torch.Generator().manual_seed(seed)
    spread_B1 = 8 * torch.rand(B, 1, generator=generator)
    return spread_B1 * torch.randn(B, V, generator=generator, dtype=torch.float64)


def probability_of_worse(counts: Tensor, expected: Tensor) -> float:
    """Pearson's chi-square test: how often counts as far from what was expected would be seen, or farther."""
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0].double(), expected[expected > 0].double()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2))


class TestAgainstTransformers:
    """On random scores each filter gives what its twin gives."""

    @given(seed=seeds, k=st.integers(1, 45))
    @settings(max_examples=50, deadline=None)
    def test_top_k(self, seed: int, k: int) -> None:
        logits_BV = random_logits(seed)
        theirs = TopKLogitsWarper(k)(None, logits_BV).softmax(dim=-1)
        torch.testing.assert_close(next_token_probabilities(logits_BV, Sampling(top_k=k)), theirs)

    @given(seed=seeds, p=shares)
    @settings(max_examples=100, deadline=None)
    def test_top_p(self, seed: int, p: float) -> None:
        logits_BV = random_logits(seed)
        assert torch.equal(keep_top_p(logits_BV, p), TopPLogitsWarper(p)(None, logits_BV))

    @given(seed=seeds, p=shares)
    @settings(max_examples=100, deadline=None)
    def test_min_p(self, seed: int, p: float) -> None:
        logits_BV = random_logits(seed)
        assert torch.equal(keep_min_p(logits_BV, p), MinPLogitsWarper(p)(None, logits_BV))

    @given(seed=seeds, penalty=st.floats(0.2, 5), n_seen=st.integers(1, 60))
    @settings(max_examples=50, deadline=None)
    def test_repetition_penalty(self, seed: int, penalty: float, n_seen: int) -> None:
        logits_BV = random_logits(seed)
        ids_BT = torch.randint(40, (3, n_seen), generator=torch.Generator().manual_seed(seed))
        seen_BV = torch.zeros(3, 40, dtype=torch.bool).scatter(1, ids_BT, True)
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids_BT, logits_BV)
        assert torch.equal(apply_repetition_penalty(logits_BV, seen_BV, penalty), theirs)

    @given(
        seed=seeds,
        temperature=st.floats(0.1, 5),
        top_k=st.none() | st.integers(1, 45),
        top_p=st.none() | shares,
        min_p=st.none() | shares,
    )
    @settings(max_examples=200, deadline=None)
    def test_all_that_shape_the_distribution(
        self, seed: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
    ) -> None:
        theirs: list[LogitsProcessor] = [TemperatureLogitsWarper(float(temperature))]
        theirs += [TopKLogitsWarper(top_k)] if top_k else []
        theirs += [TopPLogitsWarper(top_p)] if top_p else []
        theirs += [MinPLogitsWarper(min_p)] if min_p else []
        logits_BV = random_logits(seed)
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        expected = LogitsProcessorList(theirs)(None, logits_BV).softmax(dim=-1)
        torch.testing.assert_close(next_token_probabilities(logits_BV, sampling), expected)

    @given(
        seed=seeds,
        bias=st.dictionaries(st.integers(0, 39), st.floats(-10, 10), max_size=4),
        penalty=st.floats(0.2, 5),
        minimum=st.integers(0, 4),
        stop=st.lists(st.integers(0, 39), min_size=1, max_size=3, unique=True),
    )
    @settings(max_examples=100, deadline=None)
    def test_all_that_adjust_the_scores_token_by_token(
        self, seed: int, bias: dict[int, float], penalty: float, minimum: int, stop: list[int]
    ) -> None:
        prompt = [3, 7, 3, 11]
        theirs: list[LogitsProcessor] = []
        theirs += [SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})] if bias else []
        theirs += [RepetitionPenaltyLogitsProcessor(penalty)]
        theirs += [MinNewTokensLengthLogitsProcessor(len(prompt), minimum, stop)]
        sampling = Sampling(logit_bias=bias, repetition_penalty=penalty, min_new_tokens=minimum, seed=0)
        sampler = Sampler(sampling, [prompt] * 3, 40, stop, CPU)
        ids_BT = torch.tensor([prompt] * 3)
        for step in range(6):
            logits_BV = random_logits(seed + step)
            expected = LogitsProcessorList(theirs)(ids_BT, logits_BV)
            torch.testing.assert_close(sampler.adjust(logits_BV), expected, rtol=1e-6, atol=1e-6)
            ids_BT = torch.cat([ids_BT, sampler(logits_BV)[:, None]], dim=1)

    def test_the_order_is_that_of_generate(self) -> None:
        """All knobs at once, along a text that transformers drew: each step's distribution is theirs."""
        torch.manual_seed(0)
        size = {"vocab_size": 40, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).eval()
        with torch.no_grad():
            model.transformer.wte.weight.mul_(30)  # an untrained model is nearly undecided
        prompt = [[5, 6, 7, 5], [1, 1, 2, 3]]
        drawn = model.generate(
            torch.tensor(prompt), attention_mask=torch.ones(2, 4), do_sample=True, max_new_tokens=12, min_new_tokens=5,
            temperature=1.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.4,
            sequence_bias=[[[4], 2.5], [[9], -3.0]], pad_token_id=0, output_logits=True, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        sampling = Sampling(
            temperature=1.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.4, logit_bias={4: 2.5, 9: -3.0},
            min_new_tokens=5,
        )  # fmt: skip
        dropped = 0
        for step, (logits_BV, scores_BV) in enumerate(zip(drawn.logits, drawn.scores, strict=True)):
            sampler = Sampler(sampling, drawn.sequences[:, : 4 + step].tolist(), 40, [0], CPU)
            sampler.n_chosen = step
            ours = next_token_probabilities(sampler.adjust(logits_BV), sampling)
            torch.testing.assert_close(ours, scores_BV.softmax(dim=-1), rtol=1e-4, atol=1e-6)
            dropped += int((ours == 0).sum())
        assert dropped > 100  # the filters had something to do


class TestFilters:
    def test_exactly_k_of_equal_scores_stay(self) -> None:
        """Where several share the k-th score, transformers keeps them all."""
        logits_BV = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
        assert (next_token_probabilities(logits_BV, Sampling(top_k=2)) > 0).sum() == 2
        assert (TopKLogitsWarper(2)(None, logits_BV) > -math.inf).sum() == 3
        assert (next_token_probabilities(torch.zeros(1, 50), Sampling(top_k=3)) > 0).sum() == 3

    def test_the_nucleus_is_the_smallest_that_reaches_p(self) -> None:
        logits_BV = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
        for p, kept in ((0.3, 1), (0.45, 2), (0.69, 2), (0.75, 3), (0.95, 4), (1.0, 4)):
            assert (keep_top_p(logits_BV, p) > -math.inf).sum() == kept
        assert (keep_top_p(torch.zeros(1, 10), 0.45) > -math.inf).sum() == 5  # of equals, as many as are needed

    def test_the_likeliest_always_stays(self) -> None:
        logits_BV = random_logits(0)
        for filtered in (keep_top_p(logits_BV, 1e-9), keep_min_p(logits_BV, 1)):
            assert torch.equal((filtered > -math.inf).nonzero()[:, 1], logits_BV.argmax(dim=-1))

    def test_any_shape(self) -> None:
        logits_BV = random_logits(0, B=6)
        grid = logits_BV.view(2, 3, 40)
        for keep, argument in ((keep_top_p, 0.7), (keep_min_p, 0.1)):
            assert torch.equal(keep(grid, argument).view(6, 40), keep(logits_BV, argument))
            assert torch.equal(keep(logits_BV[0], argument), keep(logits_BV, argument)[0])
        for sampling in (Sampling(temperature=0), Sampling(top_k=4, top_p=0.5)):
            probabilities = next_token_probabilities(grid, sampling)
            assert torch.equal(probabilities.view(6, 40), next_token_probabilities(logits_BV, sampling))

    def test_scores_that_came_in_stay_as_they_were(self) -> None:
        logits_BV = random_logits(0)
        before = logits_BV.clone()
        sampling = Sampling(
            temperature=0.5, top_k=9, top_p=0.8, min_p=0.1, repetition_penalty=2, logit_bias={1: 5.0}, min_new_tokens=1
        )
        Sampler(sampling, [[1], [2], [3]], 40, [4], CPU)(logits_BV)
        assert torch.equal(logits_BV, before)

    def test_half_precision_is_filtered_in_single(self) -> None:
        logits_BV = random_logits(0).to(torch.bfloat16)
        sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9)
        probabilities = next_token_probabilities(logits_BV, sampling)
        assert probabilities.dtype == torch.float32
        assert torch.equal(probabilities, next_token_probabilities(logits_BV.float(), sampling))


class TestDrawing:
    @pytest.mark.parametrize(
        "knobs",
        [
            {},
            {"temperature": 0.5},
            {"temperature": 2.0},
            {"top_k": 4},
            {"top_p": 0.8},
            {"min_p": 0.2},
            {"temperature": 1.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1},
        ],
        ids=str,
    )
    def test_tokens_come_as_often_as_they_should(self, knobs: dict[str, Any]) -> None:
        n, sampling = 4000, Sampling(**knobs)
        logits_V = 2 * torch.randn(10, generator=torch.Generator().manual_seed(1))
        generators = [torch.Generator().manual_seed(2)] * n
        counts = choose(logits_V.expand(n, -1), sampling, generators).bincount(minlength=10)
        assert probability_of_worse(counts, n * next_token_probabilities(logits_V, sampling)) > 0.01

    def test_zero_temperature_takes_the_likeliest_and_nothing_random(self) -> None:
        logits_BV = random_logits(0)
        generators = Sampling(seed=0).generators(3)
        states = [generator.get_state() for generator in generators]
        assert torch.equal(choose(logits_BV, Sampling(temperature=0), generators), logits_BV.argmax(dim=-1))
        assert all(torch.equal(a, b.get_state()) for a, b in zip(states, generators, strict=True))

    def test_a_row_draws_the_same_whatever_is_beside_it(self) -> None:
        logits_BV, sampling = random_logits(0, B=4), Sampling(temperature=2.0, seed=5)
        together = Sampler(sampling, [[1]] * 4, 40, [], CPU)
        alone = [Sampler(Sampling(temperature=2.0, seed=5 + row), [[1]], 40, [], CPU) for row in range(4)]
        for _ in range(10):
            drawn = [sampler(logits_BV[row : row + 1]) for row, sampler in enumerate(alone)]
            assert torch.equal(together(logits_BV), torch.cat(drawn))

    @given(seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]))
    @settings(max_examples=100, deadline=None)
    def test_what_has_no_probability_is_never_drawn(self, seed: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(seed)
        probabilities_BK = torch.rand(50, 6, generator=generator, dtype=dtype)
        probabilities_BK[torch.rand(50, 6, generator=generator) < 0.6] = 0
        probabilities_BK[:, 2] += 1e-30  # something is left
        drawn_B = draw(probabilities_BK, [generator] * 50)
        assert (probabilities_BK.gather(1, drawn_B[:, None]) > 0).all()

    @pytest.mark.parametrize(("uniform", "drawn"), [(0.0, 1), (0.5, 3), (1 - 2**-53, 3)])
    def test_the_ends_of_what_a_generator_gives(
        self, uniform: float, drawn: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.full(size, uniform, dtype=torch.float64))
        assert draw(torch.tensor([[0.0, 0.3, 0, 0.7, 0]]), [torch.Generator()]) == drawn


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": -1}, r"temperature must be at least 0 and at most 1e\+06, got -1"),
        ({"temperature": math.nan}, r"temperature must be at least 0 and at most 1e\+06, got nan"),
        ({"temperature": 1e-40}, "temperature must be 0, or at least 1e-06, got 1e-40"),
        ({"temperature": math.inf}, r"temperature must be at least 0 and at most 1e\+06, got inf"),
        ({"top_k": 0}, "top_k must be at least 1 and at most 2,147,483,647, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"min_p": -0.1}, "min_p must be above 0 and at most 1, got -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be at least 1e-06 and .*, got 0"),
        ({"logit_bias": {3: math.inf}}, r"logit_bias must be below 1e\+30, or -inf, got inf for token 3"),
        ({"logit_bias": {3: math.nan}}, r"logit_bias must be below 1e\+30, or -inf, got nan for token 3"),
        ({"logit_bias": {3: 1e39}}, r"logit_bias must be below 1e\+30, or -inf, got 1e\+39 for token 3"),
        ({"seed": 2**64}, "seed must be at least 0 and at most .*, got 18446744073709551616"),
        ({"seed": -1}, "seed must be at least 0 and at most .*, got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1 and .*, got 0"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0 and .*, got -1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens must be at most max_new_tokens, 8, got 9"),
        ({"stop": "end"}, "stop must be a list of strings, got the string 'end'"),
        ({"stop": ["a", ""]}, "a stop string must not be empty"),
        ({"overflow": "ignore"}, "overflow must be slide or error, got 'ignore'"),
    ],
    ids=str,
)
def test_impossible_knobs_are_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        Sampling(**knobs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_where_nothing_can_be_chosen_it_says_so(score: float, temperature: float) -> None:
    """NaN scores would be drawn as a token that does not exist, or as token 0 for ever."""
    logits_BV = random_logits(0)
    logits_BV[1] = score
    sampling = Sampling(temperature=temperature)
    for use in (next_token_probabilities, lambda *given: choose(*given, sampling.generators(3))):
        with pytest.raises(InputError, match="no token can be chosen"):
            use(logits_BV, sampling)


def test_ids_outside_the_vocabulary_are_named() -> None:
    with pytest.raises(InputError, match="stop_tokens must be ids below 40, the vocabulary's size, got 40"):
        Sampler(Sampling(), [[1]], 40, [3, 40], CPU)
    with pytest.raises(InputError, match="logit_bias must be ids below 40, the vocabulary's size, got -1"):
        Sampler(Sampling(logit_bias={-1: 1.0}), [[1]], 40, [], CPU)


def test_changes_are_the_fields_of_sampling() -> None:
    assert get_type_hints(Changes) == get_type_hints(Sampling)
