"""A text is what it would be alone, whoever writes beside it, whenever they come and go, whatever was read before."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chat_ui.engine import Loaded
from chat_ui.engine.batch import Batch, Text
from chat_ui.engine.prefixes import LEAST_REUSED, PrefixCache, common_prefix
from gpt_model import Sampling, TextGenerator
from tests.chat_ui.small_runs import loaded, tokenizer

VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa-rope": {"attention": "gqa", "n_kv_groups": 2, "position": "rope"},
    "mla": {"attention": "mla", "latent_dim": 12},
    "swa-sinks": {"attention": "swa", "window_size": 20, "n_sinks": 2, "position": "rope"},
}
END = tokenizer().special_tokens["<|endoftext|>"]


@pytest.fixture(autouse=True, scope="module")
def small_products(one_thread: None) -> None:
    """They are all small here."""


class Counting:
    """A model that notes the shape of what it is given."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.device = model.token_embedding.weight.device
        self.new_cache = model.new_cache
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, ids_BT: Tensor, **given: Any) -> Any:
        self.shapes.append(tuple(ids_BT.shape))
        return self.model(ids_BT, **given)


def counting(small: Loaded) -> tuple[Loaded, list[tuple[int, int]]]:
    model = Counting(small.model)
    return replace(small, model=model), model.shapes


def prompt(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(250), k=length)


def greedy(n_new: int = 20, **settings: Any) -> Sampling:
    return Sampling(temperature=0, max_new_tokens=n_new, stop_tokens=(), **settings)


def finish(batch: Batch, *texts: Text, every: int = 0) -> None:
    """Write texts to their end; with `every`, one comes each so many steps, while others write."""
    waiting = list(texts)
    step = 0
    while waiting or not batch.is_idle:
        while waiting and batch.n_free and (not every or step % every == 0):
            batch.add(waiting.pop(0))
            if every:
                break
        batch.step()
        step += 1


def alone(small: Loaded, ids: list[int], sampling: Sampling) -> list[int]:
    return list(TextGenerator(small.model, small.tokenizer).tokens(ids, sampling))


@pytest.mark.filterwarnings("ignore:.*context")
class TestEqual:
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("reuses", [False, True])
    def test_texts_that_come_and_go_are_what_they_are_alone(self, variant: str, reuses: bool) -> None:
        small = loaded(**VARIANTS[variant])
        settings = [
            greedy(90),  # more than the context of 64
            greedy(3),
            Sampling(temperature=1.3, top_k=20, seed=5, max_new_tokens=40, stop_tokens=()),
            Sampling(temperature=1.3, top_k=20, seed=6, max_new_tokens=30, stop_tokens=()),
            Sampling(temperature=0.8, top_p=0.9, seed=7, max_new_tokens=25, stop_tokens=(3,)),
            greedy(30, repetition_penalty=1.3),
            Sampling(temperature=2, min_p=0.1, seed=1, max_new_tokens=20, stop_tokens=range(60), min_new_tokens=5),
            greedy(20, logit_bias={7: 50.0}),
        ]
        shared = prompt(99, 20)
        prompts = [shared + prompt(i, length) for i, length in enumerate((1, 40, 100, 5, 12, 30, 44, 2))]
        texts = [Text(list(ids), how) for ids, how in zip(prompts, settings, strict=True)]
        batch = Batch(small, 4, chunk=16, prefixes=PrefixCache(10**7) if reuses else None)
        finish(batch, *texts, every=3)
        for text, ids, how in zip(texts, prompts, settings, strict=True):
            assert text.ids[text.n_prompt :] == alone(small, ids, how)
        assert texts[2].ended in ("stop", "length")
        assert any(text.n_reused for text in texts) == (reuses and variant != "swa-sinks")

    def test_in_float32_tokens_are_equal_and_logits_nearly(self) -> None:
        small = loaded(precise=False)
        prompts = [prompt(i, 3 * i + 2) for i in range(12)]
        texts = [Text(list(ids), greedy(25), logprobs=5) for ids in prompts]
        lone = [Text(list(ids), greedy(25), logprobs=5) for ids in prompts]
        said: dict[int, list[float]] = {id(text): [] for text in (*texts, *lone)}
        batch = Batch(small, 12)
        for text in texts:
            batch.add(text)
        while not batch.is_idle:
            for written in batch.step():
                said[id(written.text)].append(written.token.logprob)
        for text, other in zip(texts, lone, strict=True):
            batch = Batch(small, 1)
            batch.add(other)
            while not batch.is_idle:
                said[id(other)] += [written.token.logprob for written in batch.step()]
            assert text.ids == other.ids
            assert said[id(text)] == pytest.approx(said[id(other)], abs=1e-4)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_with_a_fixed_row_count_they_are_equal_to_the_bit(self, variant: str) -> None:
        small = loaded(precise=False, **VARIANTS[variant])

        def logprobs_beside(neighbours: int) -> list[float]:
            text = Text(prompt(0, 20), greedy(40), logprobs=0)
            batch = Batch(small, 5, chunk=16, exact=True)
            others = [Text(prompt(9 + i, 3 + 8 * i), greedy(10 + 5 * i)) for i in range(neighbours)]
            for other in others[:2]:
                batch.add(other)
            batch.add(text)
            for other in others[2:]:
                batch.add(other)
            said = []
            while not batch.is_idle:
                said += [w.token.logprob for w in batch.step() if w.text is text and w.token]
            return said

        said = logprobs_beside(0)
        assert len(said) == 40
        assert logprobs_beside(1) == logprobs_beside(2) == logprobs_beside(4) == said


class TestChunks:
    def test_a_long_prompt_stalls_nobody(self) -> None:
        small, shapes = counting(loaded())
        batch = Batch(small, 4, chunk=10)
        writer = Text(prompt(0, 4), greedy(30))
        batch.add(writer)
        batch.step()
        batch.add(Text(prompt(1, 55), greedy(5)))
        shapes.clear()
        for step in range(1, 6):
            batch.step()
            assert writer.n_written == step + 1
        assert shapes == [(1, 1), (1, 10)] * 5
        batch.step()
        assert shapes[-2:] == [(1, 1), (1, 5)]
        batch.step()
        assert shapes[-1] == (2, 1), "and then both are written in one step"

    def test_short_prompts_are_read_in_one_step(self) -> None:
        small, shapes = counting(loaded())
        batch = Batch(small, 8, chunk=16)
        for seed in range(6):
            batch.add(Text(prompt(seed, 5), greedy(2)))
        batch.step()
        assert shapes == [(1, 5)] * 4  # the last of which is not cut to make them 16 tokens


class TestPrefixes:
    def test_the_next_turn_reads_only_what_is_new(self) -> None:
        small, shapes = counting(loaded())
        batch = Batch(small, 2, prefixes=PrefixCache(10**7))
        first = Text(prompt(0, 30), greedy(10))
        finish(batch, first)
        shapes.clear()
        second = Text(first.ids + prompt(1, 5), greedy(4))
        finish(batch, second)
        # the last token that was written was never read
        assert second.n_reused == 39
        assert shapes[0] == (1, 6)
        assert second.ids[second.n_prompt :] == alone(small, second.ids[: second.n_prompt], greedy(4))

    def test_choices_of_one_prompt_share_it_while_they_are_written(self) -> None:
        small, shapes = counting(loaded())
        batch = Batch(small, 3, prefixes=PrefixCache(10**7))
        texts = [Text(prompt(0, 40), greedy(5)) for _ in range(3)]
        for text in texts:
            batch.add(text)
        batch.step()
        assert shapes == [(1, 40), (1, 1), (1, 1)]
        finish(batch)
        assert texts[0].ids == texts[1].ids == texts[2].ids

    def test_the_least_recently_used_is_forgotten(self) -> None:
        small = loaded()
        row = 2 * 2 * 32 * 8  # bytes per token: two layers, keys and values of 32 numbers in float64
        cache = PrefixCache(30 * row)
        batch = Batch(small, 1, prefixes=cache)
        long = [prompt(seed, 20) for seed in range(3)]

        def known(ids: list[int]) -> int:
            return cache.find([*ids, 0], whole=False)[0]

        finish(batch, Text(list(long[0]), greedy(2)))
        assert known(long[0]) == 20
        finish(batch, Text(list(long[1]), greedy(2)))
        assert cache.nbytes <= cache.max_bytes
        assert known(long[0]) == 0
        assert known(long[1]) == 20
        assert known(long[1][: LEAST_REUSED - 1]) == 0, "so little is not worth it"

    def test_of_several_the_most_similar_is_taken(self) -> None:
        cache = PrefixCache(10**7)
        batch = Batch(loaded(), 1, prefixes=cache)
        shared = prompt(0, 20)
        for seed in range(1, 4):
            finish(batch, Text(shared + prompt(seed, 10), greedy(2)))
        assert len(cache) == 3
        assert cache.find([*shared, *prompt(2, 10)[:5], 255], whole=False)[0] == 25
        assert cache.find([*shared, 255], whole=False)[0] == 20

    def test_what_a_longer_text_begins_with_is_not_kept_twice(self) -> None:
        cache = PrefixCache(10**7)
        batch = Batch(loaded(), 1, prefixes=cache)
        text = Text(prompt(0, 20), greedy(5))
        finish(batch, text)
        finish(batch, Text([*text.ids, 3], greedy(5)))
        assert len(cache) == 1

    def test_common_prefix(self) -> None:
        assert common_prefix([], [1]) == 0
        assert common_prefix([1, 2], [1, 2]) == 2
        assert common_prefix([2], [1, 2]) == 0


class TestEnds:
    def test_stop_strings_across_tokens(self) -> None:
        small = loaded()
        whole = small.tokenizer.decode(alone(small, prompt(0, 10), greedy(30)))
        stop = whole[9:13]
        text = Text(prompt(0, 10), greedy(30, stop=(stop,)))
        batch = Batch(small, 1)
        batch.add(text)
        pieces = ""
        while not batch.is_idle:
            pieces += "".join(written.piece for written in batch.step())
        assert pieces == whole[: whole.index(stop)]
        assert text.ended == "stop"

    def test_one_text_without_a_choice_ends_alone(self) -> None:
        small = loaded()
        nothing = greedy(logit_bias={id_: -float("inf") for id_ in range(small.model.config.vocab_size)})
        bad, good = Text(prompt(0, 5), nothing), Text(prompt(1, 5), greedy(6))
        finish(Batch(small, 2), bad, good)
        assert (bad.ended, good.ended) == ("error", "length")
        assert "no token can be chosen" in bad.error
        assert not bad.is_models_fault

    def test_damaged_weights_are_the_models_fault(self) -> None:
        small = loaded()
        with torch.no_grad():
            small.model.final_norm.bias[0] = float("nan")
        text = Text(prompt(0, 5), greedy())
        finish(Batch(small, 2), text)
        assert text.ended == "error"
        assert text.is_models_fault
        assert "weights are damaged" in text.error

    def test_a_text_that_is_removed_leaves_no_trace(self) -> None:
        small = loaded()
        batch = Batch(small, 3, chunk=8)
        texts = [Text(prompt(seed, 6), greedy(20)) for seed in range(3)]
        for text in texts:
            batch.add(text)
        for _ in range(5):
            batch.step()
        batch.remove(texts[0])
        late = Text(prompt(7, 30), greedy(20))
        half_read = Text(prompt(8, 30), greedy(20))
        batch.add(half_read)
        batch.step()
        batch.remove(half_read)
        batch.add(late)
        finish(batch)
        assert texts[0].ended is None
        for text in (*texts[1:], late):
            assert text.ids[text.n_prompt :] == alone(small, text.ids[: text.n_prompt], greedy(20))
