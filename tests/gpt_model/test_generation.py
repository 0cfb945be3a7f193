"""Text from a model: neither cache nor batch changes it, streams show what is certain, bad requests are named."""

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_mechanisms import KVCache, LayerCache, Mask
from gpt_model import GPT, GPTConfig, Sampling, TextGenerator
from gpt_model.generation import StreamedText
from tests.gpt_model.models import decided, twins
from utils.files import InputError
from working_with_text_data.minbpe import RegexTokenizer, Tokenizer

VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {},
    "mha-rope": {"position": "rope"},
    "gqa": {"attention": "gqa", "n_kv_groups": 2},
    "gqa-rope": {"attention": "gqa", "n_kv_groups": 1, "position": "rope"},
    "mla": {"attention": "mla", "latent_dim": 12},
    "mla-rope": {"attention": "mla", "latent_dim": 12, "rope_dim": 4, "position": "rope"},
    "swa": {"attention": "swa", "window_size": 7},
    "swa-rope-sinks": {"attention": "swa", "window_size": 7, "n_sinks": 2, "position": "rope"},
}


def make_tokenizer() -> RegexTokenizer:
    tokenizer = RegexTokenizer()
    tokenizer.train("it was a truth universally acknowledged " * 3, 270)
    tokenizer.add_special_tokens("<|endoftext|>")
    return tokenizer


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    tokenizer = make_tokenizer()
    return TextGenerator(decided(vocab_size=tokenizer.vocab_size), tokenizer)


class Scripted:
    """A model that writes what it was told to, whatever it reads, and remembers what it was given.

    It has what `LanguageModel` asks for and no more.
    """

    device = torch.device("cpu")

    def __init__(self, vocab_size: int, *scripts: list[int], context_length: int = 1024) -> None:
        self.config = GPTConfig.preset("tiny", vocab_size=vocab_size, context_length=context_length)
        self.scripts = scripts
        self.given: list[list[list[int]]] = []
        self.masks: list[Mask | None] = []

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        return KVCache([LayerCache(batch_size, 1, max_length, (1,))])

    def __call__(
        self, ids_BT: Tensor, *, mask: Mask | None, cache: KVCache, last_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert last_only
        cache.layers[0].append(torch.zeros(*ids_BT.shape, 1)[:, None])
        logits_B1V = torch.zeros(len(ids_BT), 1, self.config.vocab_size)
        for row, script in enumerate(self.scripts):
            logits_B1V[row, 0, script[min(len(self.given), len(script) - 1)]] = 99.0
        self.given.append(ids_BT.tolist())
        self.masks.append(mask)
        return logits_B1V, None


def writer(tokenizer: Tokenizer, *texts: str | bytes | list[int], **config: int) -> TextGenerator:
    """Writes these texts, one a row, byte by byte, or these tokens; and then <|endoftext|>."""
    end = tokenizer.special_tokens["<|endoftext|>"]
    scripts = [[*(text.encode() if isinstance(text, str) else text), end] for text in texts]
    return TextGenerator(Scripted(tokenizer.vocab_size, *scripts, **config), tokenizer)


def greedy_without_cache(model: GPT, ids: list[int], n: int) -> list[int]:
    ids = list(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids


class TestTokens:
    def test_greedy_tokens_are_the_same_without_a_cache(self, generator: TextGenerator) -> None:
        prompt = generator.tokenizer.encode("it was a truth")
        n = generator.model.config.context_length - len(prompt)
        tokens = list(generator.tokens(prompt, max_new_tokens=n, temperature=0))
        assert prompt + tokens == greedy_without_cache(generator.model, prompt, n)
        assert len(set(tokens)) > 3  # not one token over and over

    def test_each_step_reads_one_token_and_none_is_read_after_the_last(self) -> None:
        tokenizer = make_tokenizer()
        generator = writer(tokenizer, b"abcdefgh")
        assert list(generator.tokens([5, 6, 7], max_new_tokens=4)) == [*b"abcd"]
        assert generator.model.given == [[[5, 6, 7]], [[97]], [[98]], [[99]]]
        assert generator.model.masks == [None] * 4

    def test_seeds_reproduce(self, generator: TextGenerator) -> None:
        texts = [generator.generate("it", max_new_tokens=30, seed=seed) for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        assert len({generator.generate("it", max_new_tokens=30) for _ in range(3)}) == 3
        longer = generator.generate("it", max_new_tokens=40, seed=1, stop_tokens=())
        assert longer.startswith(generator.generate("it", max_new_tokens=30, seed=1, stop_tokens=()).rstrip("�"))
        state = torch.get_rng_state()
        generator.generate("it", max_new_tokens=3)
        assert torch.equal(torch.get_rng_state(), state)  # nobody else's randomness is touched

    def test_knobs_come_as_a_value_or_by_name_or_both(self, generator: TextGenerator) -> None:
        sampling = Sampling(temperature=0.5, seed=3, max_new_tokens=20)
        text = generator.generate("it", sampling)
        assert text == generator.generate("it", temperature=0.5, seed=3, max_new_tokens=20)
        assert text != generator.generate("it", sampling, seed=4)
        assert sampling.seed == 3

    @pytest.mark.parametrize(
        "knobs",
        [
            {},
            {"repetition_penalty": 1.5},
            {"sequence_bias": [[[5], 4.0], [[9], -50.0]]},
            {"min_new_tokens": 20, "eos_token_id": [3, 11]},
            {"repetition_penalty": 1.2, "sequence_bias": [[[7], 1.0]], "min_new_tokens": 9, "eos_token_id": [7, 8]},
        ],
        ids=str,
    )
    def test_greedy_text_is_that_of_transformers(self, tmp_path: Path, knobs: dict[str, Any]) -> None:
        """Also in a batch of ragged prompts, which it fills up on the left, as we do."""
        theirs, ours = twins(tmp_path, seed=0, scale=4, vocab_size=256, n_positions=64)
        generator = TextGenerator(ours, RegexTokenizer())
        prompts = ["abc", "it was a truth", "x"]
        padding = [14 - len(prompt) for prompt in prompts]
        knobs = {"eos_token_id": [0], **knobs}
        written = theirs.generate(
            torch.tensor([[0] * n + [*prompt.encode()] for n, prompt in zip(padding, prompts, strict=True)]),
            attention_mask=torch.tensor([[0] * n + [1] * (14 - n) for n in padding]),
            do_sample=False, max_new_tokens=30, pad_token_id=0, **knobs,
        )  # fmt: skip
        sampling = Sampling(
            temperature=0, max_new_tokens=30, repetition_penalty=knobs.get("repetition_penalty", 1.0),
            logit_bias={ids[0]: bias for ids, bias in knobs.get("sequence_bias", ())},
            min_new_tokens=knobs.get("min_new_tokens", 0), stop_tokens=knobs["eos_token_id"],
        )  # fmt: skip
        texts = generator.generate_batch(prompts, sampling)
        for row, prompt in enumerate(prompts):
            expected = written[row, 14:].tolist()
            until = next((i for i, token in enumerate(expected) if token in knobs["eos_token_id"]), 30)
            ours = list(generator.tokens([*prompt.encode()], sampling))
            assert ours == expected[:until]
            assert texts[row] == generator.tokenizer.decode(ours)


class TestBatch:
    @pytest.mark.parametrize("name", VARIANTS)
    @pytest.mark.parametrize("temperature", [0, 1.5])
    def test_rows_are_what_they_are_alone(self, name: str, temperature: float) -> None:
        """Ragged prompts, one longer than the window, one nearly as long as the context, and far past it."""
        tokenizer = make_tokenizer()
        model = decided(vocab_size=tokenizer.vocab_size, context_length=24, **VARIANTS[name])
        generator = TextGenerator(model, tokenizer)
        prompts = ["it was", "q", "universally acknowledged xyz xyz", "", "a truth it was a"]
        assert len({len(tokenizer.encode(prompt)) for prompt in prompts}) == 5
        sampling = Sampling(temperature=temperature, seed=7, max_new_tokens=60, repetition_penalty=1.1)
        texts = generator.generate_batch(prompts, sampling)
        assert texts == [generator.generate(prompt, sampling, seed=7 + row) for row, prompt in enumerate(prompts)]
        assert min(len(set(text)) for text in texts) > 5  # no row says one thing over and over

    @pytest.mark.parametrize("name", ["mha", "swa-rope-sinks"])
    def test_each_row_with_settings_of_its_own(self, name: str) -> None:
        tokenizer = make_tokenizer()
        generator = TextGenerator(decided(vocab_size=tokenizer.vocab_size, **VARIANTS[name]), tokenizer)
        prompts = ["it was", "q", "universally acknowledged", "a truth", "it", "xyz"]
        samplings = [
            Sampling(temperature=0, max_new_tokens=20),
            Sampling(temperature=1.5, seed=3, max_new_tokens=9, stop=("a",)),
            Sampling(temperature=1.5, seed=4, top_k=5, repetition_penalty=1.3, max_new_tokens=25),
            Sampling(temperature=1.5, seed=5, top_k=5, max_new_tokens=25, stop_tokens=range(100), min_new_tokens=4),
            Sampling(temperature=0.7, seed=6, top_p=0.8, max_new_tokens=25, logit_bias={40: 9.0}),
            Sampling(temperature=2, seed=7, min_p=0.2, max_new_tokens=25, stop_tokens=()),
        ]
        texts = generator.generate_batch(prompts, samplings)
        assert texts == [generator.generate(*each) for each in zip(prompts, samplings, strict=True)]
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        tokens: list[list[int]] = [[] for _ in prompts]
        ended = []
        for row, token in generator.tokens_batch(ids, samplings, seed=8):
            ended.append(row) if token is None else tokens[row].append(token)
        assert tokens == [list(generator.tokens(*each, seed=8)) for each in zip(ids, samplings, strict=True)]
        assert sorted(ended) == list(range(6))
        with pytest.raises(InputError, match="one sampling for each prompt, got 6 for 1"):
            generator.generate_batch(["it"], samplings)
        with pytest.raises(InputError, match="are more than the context of 64"):
            generator.tokens_batch(ids, [*samplings[:5], Sampling(max_new_tokens=90, overflow="error")])

    def test_rows_that_end_early_change_nothing_for_the_others(self, generator: TextGenerator) -> None:
        """The row with the longest prompt ends at once: later the batch is laid out anew without it."""
        prompts = ["it was a truth universally acknowledged xyzxyzxyz", "it", "a truth"]
        sampling = Sampling(seed=0, max_new_tokens=100, temperature=1.5, stop_tokens=())
        whole = generator.generate_batch(prompts, sampling)
        stop = [next(whole[0][:n] for n in range(1, 30) if not any(whole[0][:n] in text[:80] for text in whole[1:]))]
        shorter = generator.generate_batch(prompts, sampling, stop=stop)
        assert shorter[0] == ""
        for text, expected in zip(shorter[1:], whole[1:], strict=True):
            assert text == expected.split(stop[0])[0]
            assert len(text) >= 80

    def test_an_ended_row_takes_no_room_when_the_batch_is_laid_out_anew(self) -> None:
        generator = writer(make_tokenizer(), "ab", "cdefgh", context_length=8)
        assert generator.generate_batch(["uvwxyz", "q"]) == ["ab", "cdefgh"]
        end, read = generator.end_of_text, generator.model.given
        assert read[:3] == [[[*b"uvwxyz"], [0] * 5 + [*b"q"]], [[*b"a"], [*b"c"]], [[*b"b"], [*b"d"]]]
        assert read[3] == [[0, 0, 0, end], [*b"qcde"]]  # eight columns were full; nobody forgot anything
        assert read[4:] == [[[end], [*b"f"]], [[end], [*b"g"]], [[end], [*b"h"]]]

    def test_pieces_come_in_turn_and_an_ended_row_gives_no_more(self) -> None:
        generator = writer(make_tokenizer(), "ab", "cdéf")
        pieces = list(generator.stream_batch(["one", "another one"], temperature=0))
        assert pieces == [(0, "a"), (1, "c"), (0, "b"), (1, "d"), (1, "é"), (1, "f")]
        assert len(generator.model.given) == 6  # two bytes for the é, and no step after the last row's end

    def test_prompts_are_filled_up_on_the_left(self) -> None:
        generator = writer(make_tokenizer(), "abc", "def")
        generator.generate_batch(["xyz", "q"], max_new_tokens=2)
        assert generator.model.given == [[[*b"xyz"], [0, 0, *b"q"]], [[*b"a"], [*b"d"]]]
        assert generator.model.masks == [Mask(left_padding=(0, 2))] * 2

    def test_no_prompts_give_no_texts(self, generator: TextGenerator) -> None:
        assert generator.generate_batch([]) == []


class TestText:
    def test_streaming_gives_whole_characters_and_the_same_text(self, generator: TextGenerator) -> None:
        text = generator.generate("é", max_new_tokens=60, seed=3)
        pieces = list(generator.stream("é", max_new_tokens=60, seed=3))
        assert "".join(pieces) == text
        assert len(pieces) > 10

    def test_characters_that_span_tokens_come_whole(self) -> None:
        spelled = "naïve 👩‍🚀!"
        pieces = list(writer(make_tokenizer(), spelled).stream("x"))
        assert pieces == list(spelled)
        cut = spelled.encode()[:-2]  # inside a character
        assert writer(make_tokenizer(), cut).generate("x").endswith("�")

    def test_stop_tokens_end_the_text(self, generator: TextGenerator) -> None:
        tokens = list(generator.tokens(generator.tokenizer.encode("it was"), max_new_tokens=20, temperature=0))
        stop = tokens[5]
        sampling = Sampling(max_new_tokens=20, temperature=0, stop_tokens=[stop])
        kept = tokens[: tokens.index(stop)]
        assert generator.generate("it was", sampling) == generator.tokenizer.decode(kept)
        assert list(generator.tokens(generator.tokenizer.encode("it was"), sampling)) == kept

    def test_end_of_text_stops_by_default_and_begins_an_empty_prompt(self) -> None:
        tokenizer = make_tokenizer()
        end = tokenizer.special_tokens["<|endoftext|>"]
        generator = writer(tokenizer, [*b"ab", end, *b"cd"])
        assert generator.generate("") == "ab"
        assert generator.model.given[0] == [[end]]
        generator = writer(tokenizer, [*b"ab", end, *b"cd"])
        assert generator.generate("", stop_tokens=(), max_new_tokens=5) == "ab<|endoftext|>cd"

    def test_no_stop_token_comes_before_the_minimum(self, generator: TextGenerator) -> None:
        prompt = generator.tokenizer.encode("it was")
        free = list(generator.tokens(prompt, max_new_tokens=10, temperature=0, stop_tokens=()))
        sampling = Sampling(max_new_tokens=10, temperature=0, stop_tokens=[free[0], free[1]])
        assert list(generator.tokens(prompt, sampling)) == []
        for minimum in range(1, 11):
            tokens = list(generator.tokens(prompt, sampling, min_new_tokens=minimum))
            assert len(tokens) >= minimum
            assert not {free[0], free[1]} & set(tokens)

    @pytest.mark.parametrize("stop", [["truth"], ["h univ", "zzz"], ["é👩‍🚀"], ["👩"], ["was a truth universally"]])
    def test_stop_strings_that_span_tokens_end_the_text_before_them(self, stop: list[str]) -> None:
        tokenizer = make_tokenizer()
        text = "it was a truth universally é👩‍🚀 acknowledged"
        ids = tokenizer.encode(text)
        assert len(ids) < len(text)  # some tokens are several letters, and some letters several tokens
        for script in (ids, [*text.encode()]):
            generator = writer(tokenizer, script)
            assert generator.generate("x", stop=stop) == text.split(stop[0])[0]
        assert len(generator.model.given) < len(script)  # it stops there

    def test_what_only_looked_like_a_stop_string_comes_later(self) -> None:
        generator = writer(make_tokenizer(), "ab\n\nUse\nUser:x")
        pieces = list(generator.stream("x", stop=["\nUser:", "\n\n\n"]))
        assert pieces == ["a", "b", "\n", "\nUse"]
        generator = writer(make_tokenizer(), "ab\nUse")  # and at the end, what was held back
        assert list(generator.stream("x", stop=["\nUser:"])) == ["a", "b", "\nUse"]

    @given(
        text=st.text(st.sampled_from("abé👩"), max_size=30),
        stop=st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=4), max_size=3),
        cuts=st.lists(st.integers(0, 80), max_size=12),
    )
    @example(text="abc", stop=["abc", "b"], cuts=[])
    @example(text="abc", stop=["bc", "abc"], cuts=[1, 2])
    @settings(max_examples=300, deadline=None)
    def test_streamed_text_does_not_depend_on_the_chunks(self, text: str, stop: list[str], cuts: list[int]) -> None:
        """Nor does it ever show what it would have to take back."""
        whole = text
        for end in range(len(text) + 1):  # the stop string that is complete first; of two, the longer
            if complete := [s for s in stop if text[:end].endswith(s)]:
                whole = text[: end - max(map(len, complete))]
                break
        data, shown = text.encode(), ""
        streamed = StreamedText(stop)
        for start, end in itertools.pairwise(sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})):
            shown += streamed.add(data[start:end])
            assert whole.startswith(shown)
            if not streamed.ended:  # all that is certain is shown
                held = data[:end].decode(errors="ignore")[len(shown) :]
                assert not held or any(s.startswith(held) for s in stop)
        assert shown + streamed.add(b"", final=True) == whole


class TestOverflow:
    def test_a_full_context_forgets_its_older_half(
        self, generator: TextGenerator, caplog: pytest.LogCaptureFixture
    ) -> None:
        context = generator.model.config.context_length
        prompt = list(range(97, 97 + 10))
        n = 3 * context
        tokens = list(generator.tokens(prompt, max_new_tokens=n, temperature=0, stop_tokens=()))
        ids, start = list(prompt), 0
        for _ in range(n):  # the same by hand, without a cache
            if len(ids) - start > context:
                start = len(ids) - context // 2
            with torch.no_grad():
                ids.append(int(generator.model(torch.tensor([ids[start:]]))[0][0, -1].argmax()))
        assert prompt + tokens == ids
        assert caplog.messages == [f"once the context of {context} tokens is full, its older half is forgotten"]

    def test_what_will_be_forgotten_is_said_before_the_text_begins(
        self, generator: TextGenerator, caplog: pytest.LogCaptureFixture
    ) -> None:
        generator.stream("q" * 10, max_new_tokens=generator.model.config.context_length)
        assert len(caplog.messages) == 1

    def test_a_prompt_longer_than_the_context_is_read_from_its_end(
        self, generator: TextGenerator, caplog: pytest.LogCaptureFixture
    ) -> None:
        prompt = [97 + i % 9 for i in range(200)]
        context = generator.model.config.context_length
        sampling = Sampling(max_new_tokens=5, temperature=0)
        assert list(generator.tokens(prompt, sampling)) == list(generator.tokens(prompt[-context:], sampling))
        assert "the prompt's 200 tokens exceed the context" in caplog.text

    def test_nothing_is_said_where_nothing_is_forgotten(
        self, generator: TextGenerator, caplog: pytest.LogCaptureFixture
    ) -> None:
        prompt = [97] * 10
        n = generator.model.config.context_length - 10 + 1  # the last is never read
        with caplog.at_level(logging.DEBUG):
            tokens = list(generator.tokens(prompt, max_new_tokens=n, overflow="error", stop_tokens=(), seed=0))
        assert len(tokens) == n
        assert not caplog.messages

    def test_an_error_comes_before_it_starts(self) -> None:
        generator = writer(make_tokenizer(), b"abc", context_length=20)
        message = "the prompt's 15 tokens and 7 new ones are more than the context of 20"
        with pytest.raises(InputError, match=message):
            generator.stream("q" * 15, max_new_tokens=7, overflow="error")  # at the call, not at the first piece
        with pytest.raises(InputError, match=message):
            generator.stream_batch(["q", "q" * 15], max_new_tokens=7, overflow="error")
        assert generator.model.given == []

    def test_a_context_of_one_token(self) -> None:
        generator = writer(make_tokenizer(), b"abcd", context_length=1)
        assert generator.generate("xy", max_new_tokens=4) == "abcd"
        assert generator.model.given == [[[letter]] for letter in b"yabc"]


class TestRequests:
    def test_impossible_ones_are_named_at_once(self, generator: TextGenerator) -> None:
        with pytest.raises(InputError, match="temperature must be at least 0 and at most 1e\\+06, got -1"):
            generator.stream("x", temperature=-1)
        with pytest.raises(InputError, match="stop_tokens must be ids below 271"):
            generator.stream("x", stop_tokens=[271])
        with pytest.raises(InputError, match="the prompt's tokens must be ids below 271, .*, got 300"):
            generator.tokens([1, 300])
        with pytest.raises(InputError, match="the prompt has no tokens"):
            generator.tokens([])
        assert len(list(generator.tokens(np.array([1, 2]), max_new_tokens=3, stop_tokens=()))) == 3
        with pytest.raises(TypeError, match="top_q"):
            generator.stream("x", top_q=3)

    def test_an_empty_prompt_needs_a_token_to_begin_with(self) -> None:
        bare = TextGenerator(GPT(GPTConfig.preset("tiny", vocab_size=256)), RegexTokenizer())
        with pytest.raises(InputError, match="the prompt is empty"):
            bare.generate("")

    def test_model_and_tokenizer_must_belong_together(self, generator: TextGenerator) -> None:
        with pytest.raises(InputError, match="has 256 token embeddings but the tokenizer has 271 tokens"):
            TextGenerator(GPT(GPTConfig.preset("tiny", vocab_size=256)), generator.tokenizer)

    def test_a_model_that_drops_what_it_knows_is_refused(self, generator: TextGenerator) -> None:
        model = GPT(GPTConfig.preset("tiny", vocab_size=271, dropout=0.1))
        with pytest.raises(InputError, match=r"in training mode, .* call model.eval\(\)"):
            TextGenerator(model, generator.tokenizer)
        TextGenerator(model.eval(), generator.tokenizer)

    def test_padded_rows_of_the_embedding_are_never_drawn(self) -> None:
        tokenizer = make_tokenizer()
        model = decided(vocab_size=271, vocab_multiple=128)
        with torch.no_grad():
            model.token_embedding.weight[271:] = 50 * torch.randn(113, 32)
        tokens = list(TextGenerator(model, tokenizer).tokens([1], temperature=3, max_new_tokens=300, stop_tokens=()))
        assert max(tokens) < 271
