"""Fine-tuning runs as a user has them: they end, stop, go on, and open everywhere."""

import dataclasses
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch

from finetuning.instruction import train
from finetuning.instruction.answering import answers, stream_answer
from finetuning.instruction.conversation import Conversation
from finetuning.instruction.templates import TEMPLATES, template_of
from finetuning.instruction.train import Config
from finetuning.run import ADAPTER, BEST
from gpt_model import GPT, TextGenerator
from gpt_model.run_directory import load
from pretraining.metrics import read_metrics
from utils.files import InputError, sha256

ANSWERS = {"What is up?": "The sky.", "Who are you?": "A model.", "What is two and two?": "Four."}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "answers.json"
    records = [{"instruction": q, "input": "", "output": a} for q, a in ANSWERS.items()] * 8
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def settings(finished_run: Path, questions: Path, out: Path, **changes: object) -> Config:
    """Settings with which a tiny model learns three answers by heart in a few seconds."""
    values = {
        "base": finished_run, "data": questions, "out": out, "held_out": 0.2, "epochs": 24, "batch_size": 4, "lr": 0.01,
        "eval_every": 20, "checkpoint_every": 20, "early_stopping": None, "precision": "float32", "device": "cpu",
        "ask": (),
    }  # fmt: skip
    return Config(**{**values, **changes})


@pytest.fixture(scope="module")
def tuned(finished_run: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tuned"
    assert train.main(settings(finished_run, questions, out))
    return out


def generator_of(run: Path) -> TextGenerator:
    return TextGenerator(*load(run, None))


def test_a_tuned_model_answers_and_stops(tuned: Path) -> None:
    """It has 100 tokens, and needs fewer than 30: the end of the answer was learned, too."""
    template = template_of(tuned)
    generator = generator_of(tuned)
    for question, expected in ANSWERS.items():
        prompt = template.prompt(Conversation.ask(question), generator.tokenizer)
        stop = template.stop_tokens(generator.tokenizer)
        ids = list(generator.tokens(prompt, temperature=0, max_new_tokens=30, stop_tokens=stop))
        assert generator.tokenizer.decode(ids) == expected
    conversation = Conversation.ask("Who are you?").then("assistant", "A model.").then("user", "What is up?")
    pieces = list(stream_answer(generator, template, conversation, max_new_tokens=20, temperature=0))
    assert len(pieces) > 1
    asked = [Conversation.ask(question) for question in ANSWERS]
    together = answers(generator, template, [conversation, *asked], max_new_tokens=20, temperature=0)
    assert together == ["".join(pieces), *ANSWERS.values()]


def test_the_run_says_what_it_is(tuned: Path, finished_run: Path) -> None:
    config = json.loads((tuned / "config.json").read_text(encoding="utf-8"))
    assert config["template"] == "chatml"
    assert config["model"]["vocab_size"] == GPT.from_run(finished_run).config.vocab_size + 2
    best = min(entry["val_loss"] for entry in read_metrics(tuned) if "val_loss" in entry)
    assert best < 0.1
    assert sha256(tuned / "model.safetensors") == sha256(tuned / BEST)


def test_a_finished_run_given_again_is_as_it_was(tuned: Path, finished_run: Path, questions: Path) -> None:
    before = sha256(tuned / "model.safetensors")
    assert train.main(settings(finished_run, questions, tuned))
    assert sha256(tuned / "model.safetensors") == before


def test_a_stopped_run_goes_on_to_the_same_weights(
    tuned: Path, finished_run: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    class StopAfterSome:
        @property
        def made(self) -> bool:
            steps.append(None)
            return len(steps) == 8

    class Stop:
        def __enter__(self) -> StopAfterSome:
            return StopAfterSome()

        def __exit__(self, *error: object) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["pretraining.engine.fit"], "stop_on_signal", Stop)
        assert not train.main(settings(finished_run, questions, tmp_path / "run"))
    assert train.main(settings(finished_run, questions, tmp_path / "run"))
    assert sha256(tmp_path / "run/model.safetensors") == sha256(tuned / "model.safetensors")


def test_lora_writes_a_small_file_and_a_plain_model(finished_run: Path, questions: Path, tmp_path: Path) -> None:
    changes = {"lora_rank": 4, "template": "alpaca", "epochs": 2}
    assert train.main(settings(finished_run, questions, tmp_path / "run", **changes))
    assert (tmp_path / "run" / ADAPTER).stat().st_size < (tmp_path / "run/model.safetensors").stat().st_size / 3
    tuned, base = GPT.from_run(tmp_path / "run").state_dict(), GPT.from_run(finished_run).state_dict()
    changed = {name for name in base if not torch.equal(tuned[name], base[name])}
    assert changed
    assert all("attention" in name or "feed_forward" in name for name in changed)


def test_what_is_shown_before_and_after(
    finished_run: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(settings(finished_run, questions, tmp_path / "run", epochs=1, ask=("Who are you?",)))
    lines = capsys.readouterr().out.split("\n")
    assert lines[1] == "Who are you?"
    assert [line.split("  ")[1] for line in lines[2:4]] == ["before", "after"]


def test_wrong_wishes_are_one_line_and_change_nothing(
    tuned: Path, finished_run: Path, questions: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(questions.read_text(encoding="utf-8").replace("Four", "Five"), encoding="utf-8")
    before = sha256(tuned / "config.json")
    wish = settings(finished_run, questions, tuned)
    for message, changes in {
        "holds a run with template chatml, not alpaca": {"template": "alpaca"},
        r"holds a run with lr 0.01, not 0.02": {"lr": 0.02},
        "holds a run with sha256": {"data": other},
        "exists and is not a run directory": {"out": questions.parent},
        "say which model": {"base": None, "out": tmp_path / "new"},
        "is not a run directory: it has no config.json": {"base": tmp_path, "out": tmp_path / "new"},
        "would delete": {"base": tuned, "fresh": True},
        "named .* the pattern|has the pattern": {
            "lora_rank": 4,
            "lora_layers": "nothing",
            "template": "alpaca",
            "out": tmp_path / "new",
        },
        r"LoRA would not train the embeddings of <\|im_start\|> and <\|im_end\|>": {
            "lora_rank": 4,
            "out": tmp_path / "new",
        },
    }.items():
        with pytest.raises(InputError, match=message):
            train.main(dataclasses.replace(wish, **changes))
    assert sha256(tuned / "config.json") == before
    assert not (tmp_path / "new").exists()
    (tmp_path / "short.json").write_text(json.dumps([{"instruction": "a", "input": "", "output": "b"}]))
    with pytest.raises(InputError, match=r"has 1 examples"):
        train.main(dataclasses.replace(wish, data=tmp_path / "short.json", out=tmp_path / "new2"))
    assert not (tmp_path / "new2" / "config.json").exists()


def test_what_is_cut_is_reported(
    finished_run: Path, questions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(InputError, match="no answer of the train conversations fits"):
        train.main(settings(finished_run, questions, tmp_path / "run", row_length=2))
    train.main(settings(finished_run, questions, tmp_path / "run", row_length=16, epochs=1))
    assert "24 lost" not in caplog.text
    assert re.search(r"[1-9]\d* lost the beginning of their prompt", caplog.text)


def test_every_template_has_a_preset_that_exists() -> None:
    assert {preset.template for preset in train.PRESETS.values()} == set(TEMPLATES)
