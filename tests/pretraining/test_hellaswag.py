"""HellaSwag: the losses of transformers' model one by one, whatever the batch, the padding and the processes."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gpt_model import GPT, GPTConfig
from pretraining import advanced, hellaswag
from pretraining.engine import World
from pretraining.evaluate import NOT_SCORED, padded, token_losses
from pretraining.hellaswag import Example, Score, read_examples, score_examples, spread
from pretraining.metrics import read_metrics
from pretraining.open_run import check_deletable
from tests.gpt_model.models import twins
from tests.pretraining.test_advanced import tiny_advanced
from utils.files import InputError, sha256
from working_with_text_data.minbpe import GPT2Tokenizer, RegexTokenizer, Tokenizer

EXAMPLES = [
    Example("The kettle begins to whistle. She", (
        "takes it off the stove.", "whistles a kettle into the sea and folds it.", "is a stove.", "begins.",
    ), 0),
    Example("A boy kicks a ball over the fence. He", (
        "kicks.", "climbs after it.", "is kicked by the fence, which apologises in writing.", "plays the piano.",
    ), 1),
    Example("Cut", ("the bread.", "the bread with a spoonful of weather, then sing.", "bread bread.", "off."), 0),
    Example("How to keep basil alive. Water it in the morning, and let the soil dry out a little in between. Then", (
        "throw it into the air.", "pour the water back.", "put it where it gets some sun.", "basil basil basil.",
    ), 2),
    Example("The crowd cheers as the runner", ("sleeps.", "eats the finishing line.", "is a crowd.", "comes in."), 3),
]  # fmt: skip


def write(path: Path, examples: list[Example]) -> Path:
    text = "".join(json.dumps({"ind": 1, **dataclasses.asdict(example)}) + "\n" for example in examples)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = RegexTokenizer()
    tokenizer.train(" ".join(example.ctx for example in EXAMPLES), 300)
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(3)
    model = GPT(GPTConfig.preset("tiny", vocab_size=tokenizer.vocab_size, context_length=64)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # an untrained model is nearly undecided
    return model


def test_losses_and_choices_are_those_of_transformers_one_by_one(tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path, seed=0, scale=4, n_positions=64)
    theirs, ours, tokenizer = theirs.double(), ours.double(), GPT2Tokenizer()
    n_right = n_right_norm = 0
    for example in EXAMPLES:
        sums, means = [], []
        for ending in example.endings:
            ctx, end = tokenizer.encode(example.ctx), tokenizer.encode(" " + ending)
            with torch.no_grad():
                logits = theirs(torch.tensor([ctx + end])).logits[0, len(ctx) - 1 : -1]
            sums.append(F.cross_entropy(logits, torch.tensor(end), reduction="sum").item())
            means.append(sums[-1] / len(end))
        inputs, targets = padded(hellaswag._encode(example, tokenizer, 64).rows)
        with torch.no_grad():
            losses = token_losses(ours, inputs, targets)
        assert losses.sum(1).tolist() == pytest.approx(sums, rel=1e-12)
        n_right += sums.index(min(sums)) == example.label
        n_right_norm += means.index(min(means)) == example.label
    assert score_examples(ours, tokenizer, EXAMPLES, 2) == Score(len(EXAMPLES), n_right, n_right_norm, 0)


def test_a_row_does_not_depend_on_those_beside_it(model: GPT, tokenizer: Tokenizer) -> None:
    rows = [row for example in EXAMPLES for row in hellaswag._encode(example, tokenizer, 64).rows]
    with torch.no_grad():
        together = token_losses(model, *padded(rows)).sum(1)
        alone = torch.cat([token_losses(model, *padded([row])).sum(1) for row in rows])
    assert len({len(inputs) for inputs, _ in rows}) > 3  # or there would be no padding
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    scores = {score_examples(model, tokenizer, EXAMPLES, size) for size in (1, 2, 3, 8)}
    assert len(scores) == 1


def test_the_end_of_a_long_example_is_scored(model: GPT, tokenizer: Tokenizer) -> None:
    """With a context of T, the last T tokens are guessed at most, each from all before it that are still there."""
    example = EXAMPLES[3]
    ctx, end = tokenizer.encode(example.ctx), tokenizer.encode(" " + example.endings[1])
    for context in (len(ctx) + len(end), len(ctx) + len(end) - 1, len(end) + 3, len(end), len(end) - 4):
        inputs, targets = hellaswag._encode(example, tokenizer, context).rows[1]
        whole = ctx + end
        assert inputs.tolist() == whole[-context - 1 : -1]
        scored = min(len(end), context)
        assert targets[-scored:].tolist() == end[-scored:]
        assert (targets[:-scored] == NOT_SCORED).all()
    fits = max(len(tokenizer.encode(example.ctx)) + len(tokenizer.encode(" " + end)) for end in example.endings) - 1
    assert not hellaswag._encode(example, tokenizer, fits).cut
    assert hellaswag._encode(example, tokenizer, fits - 1).cut
    long = dataclasses.replace(example, ctx=example.ctx * 3)
    assert score_examples(model, tokenizer, [*EXAMPLES[:3], long]).n_cut == 1


class Share(World):
    """One of several processes, without the others."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@pytest.mark.parametrize("size", [2, 3, 7])
def test_processes_share_the_examples_and_stay_in_step(model: GPT, tokenizer: Tokenizer, size: int) -> None:
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(rank))
    found = []
    for rank in range(size):
        world = Share(torch.device("cpu"), rank, size)
        found.append(score_examples(model, tokenizer, EXAMPLES, 1, world=world))
    hook.remove()
    assert len({passes.count(rank) for rank in range(size)}) == 1
    whole = score_examples(model, tokenizer, EXAMPLES)
    assert sum(score.n_right for score in found) == whole.n_right
    assert sum(score.n_right_norm for score in found) == whole.n_right_norm
    assert {score.n_examples for score in found} == {whole.n_examples}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_examples_are_read(tmp_path: Path, name: str) -> None:
    assert read_examples(write(tmp_path / name, EXAMPLES)) == EXAMPLES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ctx": None}, "has no text as ctx"),
        ({"ctx": " "}, "has no text as ctx"),
        ({"ctx": "half \ud83d"}, "holds a lone surrogate"),
        ({"endings": "ab"}, "has no list of two or more texts as endings"),
        ({"endings": ["one"]}, "has no list of two or more texts as endings"),
        ({"endings": ["one", 2]}, "has no list of two or more texts as endings"),
        ({"label": "3"}, "has no number from 0 to 3 as label"),
        ({"label": True}, "has no number from 0 to 3 as label"),
        ({"label": 4}, "has no number from 0 to 3 as label"),
        ({"label": -1}, "has no number from 0 to 3 as label"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", EXAMPLES[:2])
    with path.open("a") as file:
        file.write("\n" + json.dumps({**dataclasses.asdict(EXAMPLES[0]), **changes}) + "\n")
    with pytest.raises(InputError, match=f"^{path}, line 4 {message}"):
        read_examples(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"[1]\n", "line 1 is not an object with ctx"),
        (b"{\n", "line 1 is not JSON"),
        (b"\xff\n", "line 1 is not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_another_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_examples(path)
    assert str(path) in str(error.value)


def test_fewer_examples_are_spread_evenly() -> None:
    assert spread(EXAMPLES, 3) == EXAMPLES[::2]
    assert spread(EXAMPLES, 1) == EXAMPLES[:1]
    assert spread(EXAMPLES, 100) == EXAMPLES


def test_the_script_prints_and_stores(finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    data = write(tmp_path / "a.jsonl", EXAMPLES)
    caplog.set_level("INFO")
    score = hellaswag.main(hellaswag.Config(run=run, data=data, device="cpu"))
    stored = json.loads((run / "hellaswag.json").read_bytes())
    assert stored == {
        **dataclasses.asdict(score), "acc": score.acc, "acc_norm": score.acc_norm, "weights": "model.safetensors",
    }  # fmt: skip
    assert score.n_examples == 5
    assert 0 < score.n_cut <= 5  # the run's context is 32 tokens
    assert f"acc {score.acc:.4f}, acc_norm {score.acc_norm:.4f} (5 examples" in caplog.text
    assert "longer than the context of 32 tokens" in caplog.text
    assert hellaswag.main(hellaswag.Config(run=run, data=data, limit=2, device="cpu")).n_examples == 2
    check_deletable(run)  # what the script stored there is the run's, and goes with --fresh


def test_a_pretrained_model_is_scored(tmp_path: Path, model: GPT, tokenizer: Tokenizer) -> None:
    model.export_to_hf(tmp_path / "model", tokenizer)
    data = write(tmp_path / "a.jsonl", EXAMPLES)
    score = hellaswag.main(hellaswag.Config(pretrained=str(tmp_path / "model"), data=data, device="cpu"))
    assert score == score_examples(model.float(), tokenizer, EXAMPLES)


def test_training_measures_it_and_stays_the_same(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advanced, "keep_freed_memory", lambda: None)
    examples = write(tmp_path / "a.jsonl", EXAMPLES)
    plain = tiny_advanced(data, tmp_path / "plain", dropout=0.1)
    measured = dataclasses.replace(plain, out=tmp_path / "measured", hellaswag=examples, hellaswag_examples=4)
    assert advanced.main(plain)
    assert advanced.main(measured)
    lines = [line for line in read_metrics(measured.out) if "val_loss" in line]
    score = hellaswag.main(hellaswag.Config(run=measured.out, data=examples, limit=4, device="cpu"))
    assert [lines[-1][name] for name in ("hellaswag", "hellaswag_norm")] == [score.acc, score.acc_norm]
    assert all("hellaswag" in line for line in lines)
    assert sha256(plain.out / "model.safetensors") == sha256(measured.out / "model.safetensors")
    longer = dataclasses.replace(measured, steps=14, hellaswag=None)
    assert advanced.main(longer)  # another choice of what is measured is no other run


def test_what_is_wrong_with_the_examples_is_said_before_a_run_begins(data: Path, tmp_path: Path) -> None:
    config = tiny_advanced(data, tmp_path / "run", hellaswag=tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="there is no file"):
        advanced.main(config)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_model_that_learned_nothing_is_right_by_chance(real_data: Path, data: Path) -> None:
    examples = read_examples(real_data / "hellaswag" / "hellaswag_val.jsonl.gz")
    assert len(examples) == 10_042
    assert {len(example.endings) for example in examples} == {4}
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=512, context_length=1024, d_model=16, n_layers=1, n_heads=1)).eval()
    score = score_examples(model, Tokenizer.load(data / "bpe.json"), spread(examples, 300))
    assert score.n_cut == 0
    for share in (score.acc, score.acc_norm):
        assert share == pytest.approx(0.25, abs=0.075)  # three standard deviations of 300 draws
