"""Text from a model: the cache changes nothing, sampling draws what it says, bad requests are named."""

import shutil
from pathlib import Path

import pytest
import torch

from gpt_model import GPT, GPTConfig, TextGenerator, generate
from gpt_model.generation import choose
from gpt_model.run_directory import load_tokenizer
from utils.files import InputError
from working_with_text_data.minbpe import RegexTokenizer


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    tokenizer = RegexTokenizer()
    tokenizer.train("it was a truth universally acknowledged " * 3, 270)
    tokenizer.add_special_tokens("<|endoftext|>")
    torch.manual_seed(0)
    config = GPTConfig.preset("tiny", vocab_size=tokenizer.vocab_size)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # an untrained model is nearly undecided; make its choices clear
    return TextGenerator(model.eval(), tokenizer)


def greedy_without_cache(model: GPT, ids: list[int], n: int) -> list[int]:
    ids = list(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids


def test_greedy_tokens_are_the_same_without_a_cache(generator: TextGenerator) -> None:
    prompt = generator.tokenizer.encode("it was a truth")
    n = generator.model.config.context_length - len(prompt)
    tokens = list(generator.tokens(prompt, n, temperature=0))
    assert prompt + tokens == greedy_without_cache(generator.model, prompt, n)
    assert len(set(tokens)) > 3  # not one token over and over


def test_a_full_context_forgets_its_older_half(generator: TextGenerator) -> None:
    context = generator.model.config.context_length
    prompt = list(range(97, 97 + 10))
    n = 3 * context
    tokens = list(generator.tokens(prompt, n, temperature=0))
    ids, start = list(prompt), 0
    for _ in range(n):  # the same by hand, without a cache
        if len(ids) - start > context:
            start = len(ids) - context // 2
        with torch.no_grad():
            ids.append(int(generator.model(torch.tensor([ids[start:]]))[0][0, -1].argmax()))
    assert prompt + tokens == ids


def test_a_prompt_longer_than_the_context_is_read_from_its_end(
    generator: TextGenerator, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = [97 + i % 9 for i in range(200)]
    context = generator.model.config.context_length
    assert list(generator.tokens(prompt, 5, temperature=0)) == list(
        generator.tokens(prompt[-context:], 5, temperature=0)
    )
    assert "the prompt's 200 tokens exceed the context" in caplog.text


def test_streaming_gives_whole_characters_and_the_same_text(generator: TextGenerator) -> None:
    text = generator.generate("é", max_new_tokens=60, seed=3)
    pieces = list(generator.stream("é", max_new_tokens=60, seed=3))
    assert "".join(pieces) == text
    assert len(pieces) > 10


def test_characters_that_span_tokens_come_whole(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    spelled = list("naïve 👩‍🚀!".encode())
    monkeypatch.setattr(generator, "tokens", lambda *_, **__: iter(spelled))
    pieces = list(generator.stream("x"))
    assert "".join(pieces) == "naïve 👩‍🚀!"
    assert "�" not in "".join(pieces)
    monkeypatch.setattr(generator, "tokens", lambda *_, **__: iter(spelled[:-2]))  # cut inside a character
    assert "".join(generator.stream("x")).endswith("�")


def test_seeds_reproduce(generator: TextGenerator) -> None:
    texts = [generator.generate("it", max_new_tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len({generator.generate("it", max_new_tokens=30) for _ in range(3)}) == 3
    state = torch.get_rng_state()
    generator.generate("it", max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's randomness is touched


def test_stop_tokens_end_the_text(generator: TextGenerator) -> None:
    tokens = list(generator.tokens(generator.tokenizer.encode("it was"), 20, temperature=0))
    stop = tokens[5]
    text = generator.generate("it was", max_new_tokens=20, temperature=0, stop_tokens={stop})
    assert text == generator.tokenizer.decode(tokens[: tokens.index(stop)])


def test_end_of_text_stops_by_default_and_begins_an_empty_prompt(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = generator.tokenizer.special_tokens["<|endoftext|>"]
    given = []

    def tokens(ids: list[int], *_: object, **__: object) -> object:
        given.append(ids)
        return iter([*b"ab", end, *b"cd"])

    monkeypatch.setattr(generator, "tokens", tokens)
    assert generator.generate("") == "ab"
    assert given == [[end]]
    assert generator.generate("", stop_tokens=()) == "ab<|endoftext|>cd"


class TestChoose:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.3, 0.15, 0.05]))

    def draw(self, temperature: float, top_k: int | None, n: int = 4000) -> torch.Tensor:
        source = torch.Generator().manual_seed(0)
        counts = torch.zeros(5)
        for _ in range(n):
            counts[choose(self.logits, temperature, top_k, source)] += 1
        return counts / n

    def test_temperature_one_draws_the_models_distribution(self) -> None:
        torch.testing.assert_close(self.draw(1, None), self.logits.exp(), rtol=0, atol=0.03)

    def test_temperature_sharpens(self) -> None:
        expected = self.logits.exp() ** 2
        torch.testing.assert_close(self.draw(0.5, None), expected / expected.sum(), rtol=0, atol=0.03)

    def test_zero_is_greedy(self) -> None:
        assert self.draw(0, None, n=3)[1] == 1

    def test_top_k_leaves_the_k_likeliest(self) -> None:
        torch.testing.assert_close(self.draw(1, 2), torch.tensor([0, 4, 3, 0, 0]) / 7, rtol=0, atol=0.03)
        assert self.draw(1, 1, n=50)[1] == 1
        torch.testing.assert_close(self.draw(1, 99), self.logits.exp(), rtol=0, atol=0.03)

    def test_top_k_keeps_exactly_k_of_equal_scores(self) -> None:
        source = torch.Generator().manual_seed(0)
        assert len({choose(torch.zeros(50), 1.0, 3, source) for _ in range(200)}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1}, "temperature must not be negative, got -1"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_impossible_requests_are_named(generator: TextGenerator, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generator.generate("x", **arguments)


def test_an_empty_prompt_needs_a_token_to_begin_with(generator: TextGenerator) -> None:
    tokenizer = RegexTokenizer()
    bare = TextGenerator(GPT(GPTConfig.preset("tiny", vocab_size=256)), tokenizer)
    with pytest.raises(InputError, match="the prompt is empty"):
        bare.generate("")


def test_model_and_tokenizer_must_belong_together(generator: TextGenerator) -> None:
    with pytest.raises(InputError, match="has 256 token embeddings but the tokenizer has 271 tokens"):
        TextGenerator(GPT(GPTConfig.preset("tiny", vocab_size=256)), generator.tokenizer)


class TestScript:
    def test_prints_prompt_and_continuation(self, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = generate.main(generate.Config(run=finished_run, prompt="Anne was", max_new_tokens=9, device="cpu"))
        assert capsys.readouterr().out == f"Anne was{text}\n"
        assert text

    def test_an_earlier_snapshot_writes_something_else(self, finished_run: Path) -> None:
        config = {"run": finished_run, "prompt": "Anne was", "max_new_tokens": 20, "seed": 0, "device": "cpu"}
        last = generate.main(generate.Config(**config))
        assert generate.main(generate.Config(**config)) == last
        assert generate.main(generate.Config(**config, weights="snapshots/step_000000.safetensors")) != last

    def test_runs_that_cannot_be_read(self, finished_run: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is not a run directory"):
            generate.main(generate.Config(run=tmp_path))
        with pytest.raises(InputError, match=r"there are no weights .*step_9\.safetensors"):
            generate.main(generate.Config(run=finished_run, weights="step_9.safetensors"))
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        weights = run / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
            generate.main(generate.Config(run=run))

    def test_another_models_weights(self, finished_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        config = (run / "config.json").read_text()
        (run / "config.json").write_text(config.replace('"n_layers": 2', '"n_layers": 3'))
        with pytest.raises(InputError, match=r"holds another model's weights: blocks\.2\.\S+ is missing there"):
            GPT.from_run(run)
        (run / "config.json").write_text(config.replace('"d_model": 32', '"d_model": 64'))
        with pytest.raises(InputError, match=r"holds another model's weights: \S+ is \(\d+.*\) there, \(\d+"):
            GPT.from_run(run)
        (run / "config.json").write_text(config[:-20])
        with pytest.raises(InputError, match=r"config\.json is damaged"):
            GPT.from_run(run)

    def test_another_runs_tokenizer(self, finished_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        RegexTokenizer().save(run / "bpe.json")
        with pytest.raises(InputError, match="from different runs"):
            generate.main(generate.Config(run=run))
        assert load_tokenizer(finished_run).vocab_size == 512
