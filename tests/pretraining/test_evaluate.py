"""Bits per byte: every byte once, whatever the windows, and against an obvious twin."""

import gzip
import json
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_model import GPT, GPTConfig, convert, generate
from pretraining import evaluate
from pretraining.evaluate import NOT_SCORED, batches, compression, read_split, score, windows
from tests.tiny_run import other_tokenizer
from utils.files import InputError
from working_with_text_data.minbpe import RegexTokenizer, Tokenizer
from working_with_text_data.shards import write_shard

CONTEXT = 16


@given(length=st.integers(0, 120), context=st.integers(1, 20))
def test_windows_score_every_token_but_the_first_once(length: int, context: int) -> None:
    document = np.arange(1, length + 1, dtype=np.uint16)
    scored = []
    for inputs, targets in windows(document, context):
        assert inputs.shape == targets.shape == (min(context, length - 1),)
        at = np.flatnonzero(targets != NOT_SCORED)
        assert np.array_equal(inputs[at] + 1, targets[at])  # the token before its target
        if scored:  # enough of the past is in sight
            assert at[0] >= context // 2 or context == 1
        scored += targets[at].tolist()
    assert scored == document[1:].tolist()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = RegexTokenizer()
    tokenizer.train("the quick brown fox jumps over the lazy dog, the end. " * 4, 290)
    tokenizer.add_special_tokens("<|endoftext|>")
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.preset("tiny", vocab_size=tokenizer.vocab_size, context_length=CONTEXT)).eval()


def tokens_of(tokenizer: Tokenizer, *documents: str) -> np.ndarray:
    separator = tokenizer.special_tokens["<|endoftext|>"]
    return np.array([i for text in documents for i in (separator, *tokenizer.encode(text))], dtype=np.uint16)


DOCUMENTS = ("the fox, über-quick, jumps over 3 dogs " * 3, "é", "", "the lazy end")


def test_score_equals_scoring_token_by_token(model: GPT, tokenizer: Tokenizer) -> None:
    nats = 0.0
    for text in DOCUMENTS:
        document = torch.from_numpy(tokens_of(tokenizer, text).astype(np.int64))
        for inputs, targets in windows(document.numpy(), CONTEXT):
            for t in np.flatnonzero(targets != NOT_SCORED):
                with torch.no_grad():
                    logits, _ = model(torch.from_numpy(inputs[None, : t + 1]))
                nats -= logits[0, -1].double().log_softmax(-1)[targets[t]].item()
    result = score(model, tokenizer, tokens_of(tokenizer, *DOCUMENTS), batch_size=3)
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.n_bytes == len("".join(DOCUMENTS).encode())
    assert result.n_tokens == sum(len(tokenizer.encode(text)) for text in DOCUMENTS)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / result.n_bytes, rel=1e-5)
    assert result.loss == pytest.approx(nats / result.n_tokens, rel=1e-5)


def test_a_model_that_knows_nothing_pays_the_uniform_price(tokenizer: Tokenizer) -> None:
    model = GPT(GPTConfig.preset("tiny", vocab_size=tokenizer.vocab_size, context_length=CONTEXT)).eval()
    torch.nn.init.zeros_(model.token_embedding.weight)  # all logits equal
    tokens = tokens_of(tokenizer, *DOCUMENTS)
    result = score(model, tokenizer, tokens)
    assert result.nats == pytest.approx(result.n_tokens * math.log(tokenizer.vocab_size), rel=1e-5)


def test_no_position_is_computed_for_nothing(model: GPT, tokenizer: Tokenizer) -> None:
    """Short documents are padded to the longest beside them, and go through the model many at a time."""
    sizes: list[torch.Size] = []
    hook = model.register_forward_pre_hook(lambda _, arguments: sizes.append(arguments[0].shape))
    result = score(model, tokenizer, tokens_of(tokenizer, *["the end"] * 500, *["the fox jumps"] * 500), batch_size=8)
    hook.remove()
    assert sum(size.numel() for size in sizes) <= 1.02 * result.n_tokens
    assert all(8 * CONTEXT - CONTEXT < size.numel() <= 8 * CONTEXT for size in sizes[:-1])


def test_windows_are_made_when_they_are_needed() -> None:
    taken = 0

    def documents() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield np.arange(11)

    inputs, targets = next(batches(documents(), context=CONTEXT, batch_size=5))
    assert inputs.shape == targets.shape == (8, 10)  # 5 * 16 positions
    assert taken == 9


def test_without_the_token_between_documents_a_text_is_one(model: GPT, tokenizer: Tokenizer) -> None:
    plain = RegexTokenizer()
    plain.train("the quick brown fox jumps over the lazy dog, the end. " * 4, 290)
    tokens = np.array(plain.encode(DOCUMENTS[0]), dtype=np.uint16)
    expected = score(model, tokenizer, tokens)  # the same tokens, none of which is <|endoftext|>
    assert score(model, plain, tokens) == expected
    assert expected.n_tokens == len(tokens) - 1


def test_nothing_to_score_is_named(model: GPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no held-out tokens to score"):
        score(model, tokenizer, tokens_of(tokenizer, "", ""))


def test_held_out_tokens_spell_the_held_out_text(data: Path, persuasion: str) -> None:
    tokenizer = Tokenizer.load(data / "bpe.json")
    val = read_split(data, "val")
    text = tokenizer.decode(val[val != tokenizer.special_tokens["<|endoftext|>"]].tolist())
    first = persuasion[:60_000]
    assert text.startswith(first[first.index(text[:200]) :])
    assert text.endswith(persuasion[:100_000][-500:])


def test_compressors_given_the_training_text_do_better() -> None:
    training, held_out = (
        b"the quick brown fox jumps over the lazy dog " * 50,
        b"the lazy fox jumps over the quick brown dog " * 3,
    )
    bits = compression(held_out, training)
    assert set(bits) == {"gzip", "bzip2", "xz"}
    for row in bits.values():
        assert row["given_training_text"] < row["alone"]
    assert bits["gzip"]["alone"] == 8 * len(gzip.compress(held_out, 9, mtime=0)) / len(held_out)


def test_the_script_scores_a_run(finished_run: Path, data: Path) -> None:
    result = evaluate.main(evaluate.Config(run=finished_run, data=data, device="cpu"))
    first = evaluate.main(
        evaluate.Config(run=finished_run, data=data, weights="snapshots/step_000000.safetensors", device="cpu")
    )
    assert result.n_bytes == first.n_bytes
    assert result.bits_per_byte < first.bits_per_byte
    assert (finished_run / "evaluation.json").exists()


class TestBelonging:
    """A run and shards of another tokenizer are refused: the result would be a number that means nothing."""

    @pytest.fixture
    def run(self, finished_run: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(finished_run, tmp_path / "run"))

    @pytest.fixture
    def shards(self, data: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(data, tmp_path / "shards"))

    def refused(self, run: Path, shards: Path, message: str) -> None:
        (run / "evaluation.json").unlink(missing_ok=True)
        with pytest.raises(InputError, match=message):
            evaluate.main(evaluate.Config(run=run, data=shards, device="cpu"))
        assert not (run / "evaluation.json").exists()

    @pytest.mark.parametrize("vocab_size", [300, 512, 600])
    def test_shards_of_another_tokenizer(self, run: Path, shards: Path, vocab_size: int) -> None:
        other_tokenizer(shards / "bpe.json", vocab_size)
        write_shard(shards / "val_000000.bin", np.arange(vocab_size, dtype=np.uint16))
        self.refused(run, shards, f"{run} and {shards} have different tokenizers")

    def test_an_exchanged_tokenizer(self, run: Path, shards: Path, tmp_path: Path) -> None:
        for vocab_size in (512, 600):
            other_tokenizer(run / "bpe.json", vocab_size)
            self.refused(run, shards, "bpe.json is not the tokenizer that the run was made with: put that one back")
            with pytest.raises(InputError, match="is not the tokenizer that the run was made with"):
                generate.main(generate.Config(run=run, device="cpu"))
            with pytest.raises(InputError, match="is not the tokenizer that the run was made with"):
                convert.main(convert.Config(run=run, latent_dim=8, out=tmp_path / "converted"))
            assert not (tmp_path / "converted").exists()

    def test_an_exchanged_tokenizer_of_a_run_that_does_not_say_which_it_had(self, run: Path, shards: Path) -> None:
        config = json.loads((run / "config.json").read_bytes())
        del config["tokenizer"]
        (run / "config.json").write_text(json.dumps(config))
        evaluate.main(evaluate.Config(run=run, data=shards, device="cpu"))
        other_tokenizer(run / "bpe.json")
        self.refused(run, shards, "have different tokenizers")
        other_tokenizer(run / "bpe.json", 600)
        other_tokenizer(shards / "bpe.json", 600)
        self.refused(run, shards, "the model has 512 token embeddings but the tokenizer .* has 600 tokens")

    def test_an_exchanged_tokenizer_of_a_converted_model(self, run: Path, tmp_path: Path) -> None:
        config = generate.Config(run=tmp_path / "converted", max_new_tokens=1, device="cpu")
        convert.main(convert.Config(run=run, latent_dim=8, out=config.run))
        generate.main(config)
        other_tokenizer(config.run / "bpe.json")
        with pytest.raises(InputError, match="is not the tokenizer that the run was made with"):
            generate.main(config)

    def test_tokens_that_the_tokenizer_beside_them_lacks(self, run: Path, shards: Path) -> None:
        write_shard(shards / "val_000000.bin", np.arange(600, dtype=np.uint16))
        self.refused(run, shards, "holds the token 599 but its tokenizer has only 512")
        (shards / "bpe.json").unlink()
        self.refused(run, shards, "has no tokenizer")

    def test_a_score_that_cannot_be_stored_is_said(
        self, run: Path, shards: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (run / "evaluation.json").unlink(missing_ok=True)
        (run / "evaluation.json").mkdir()
        with caplog.at_level(logging.INFO), pytest.raises(OSError, match="directory"):
            evaluate.main(evaluate.Config(run=run, data=shards, device="cpu"))
        assert "bits per byte" in caplog.text
