"""Preferences: the loss against numbers computed by hand, what is read and cut, and a run from beginning to end."""

import dataclasses
import json
import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from finetuning.instruction import dpo, train
from finetuning.instruction.conversation import Conversation
from finetuning.instruction.likelihood import log_likelihood
from finetuning.instruction.preferences import (
    DirectPreference,
    EncodedPair,
    Pairs,
    Preference,
    corpus_preferences,
    encode_pair,
    pair_log_likelihoods,
    read_preferences,
)
from finetuning.instruction.templates import TEMPLATES, template_of
from finetuning.run import REFERENCE
from gpt_model import GPT, GPTConfig
from gpt_model.run_directory import load_tokenizer
from pretraining.engine.engine import split_batch
from pretraining.metrics import read_metrics
from utils.files import InputError, sha256

PAIRS = [EncodedPair(2, [1, 2, 3, 4], [1, 2, 5]), EncodedPair(1, [6, 7], [6, 8, 9, 3, 4])]
REFERENCE_LOGS = torch.tensor([[-3.0, -2.0], [-1.5, -6.0]], dtype=torch.float64)
BETA = 0.3


def two_layers() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=12, context_length=8, d_model=16, n_layers=2, n_heads=2))
    return model.double()


def batch_of(pairs: list[EncodedPair], reference: torch.Tensor) -> tuple[torch.Tensor, ...]:
    examples = Pairs(pairs, reference)
    return tuple(torch.stack(part) for part in zip(*(examples[i] for i in range(len(pairs))), strict=True))


def by_hand(model: GPT, ids: list[int], n_prompt: int) -> float:
    """Multiply the probabilities of an answer's tokens, one forward pass per token."""
    probability = 1.0
    for place in range(n_prompt, len(ids)):
        logits, _ = model(torch.tensor([ids[:place]]))
        probability *= torch.softmax(logits[0, -1], dim=0)[ids[place]].item()
    return math.log(probability)


def test_the_log_likelihood_is_the_sum_over_the_answers_tokens() -> None:
    model = two_layers()
    expected = [[by_hand(model, ids, pair.n_prompt) for ids in (pair.chosen, pair.rejected)] for pair in PAIRS]
    found = pair_log_likelihoods(model, batch_of(PAIRS, REFERENCE_LOGS))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_what_fills_a_row_up_changes_nothing() -> None:
    model = two_layers()
    ids, targets, _ = batch_of(PAIRS, REFERENCE_LOGS)
    ids, targets = ids.flatten(0, 1), targets.flatten(0, 1)
    wider = F.pad(ids, (0, 3), value=7), F.pad(targets, (0, 3), value=-100)
    torch.testing.assert_close(log_likelihood(model, *wider), log_likelihood(model, ids, targets))


def test_the_loss_is_the_one_computed_by_hand() -> None:
    model, objective = two_layers(), DirectPreference(BETA)
    batch = batch_of(PAIRS, REFERENCE_LOGS)
    margins, expected = [], 0.0
    for pair, (chosen_before, rejected_before) in zip(PAIRS, REFERENCE_LOGS.tolist(), strict=True):
        chosen = by_hand(model, pair.chosen, pair.n_prompt) - chosen_before
        rejected = by_hand(model, pair.rejected, pair.n_prompt) - rejected_before
        margins.append(chosen - rejected)
        expected += math.log(1 + math.exp(-BETA * margins[-1]))
    assert objective.count(batch) == 2
    assert objective.loss_sum(model, batch).item() == pytest.approx(expected, rel=1e-9)
    measures = objective.evaluate(model, [batch])
    assert measures["val_loss"] == pytest.approx(expected / 2, rel=1e-9)
    assert measures["val_accuracy"] == sum(margin > 0 for margin in margins) / 2
    assert measures["val_chosen"] - measures["val_rejected"] == pytest.approx(sum(margins) / 2, rel=1e-9)
    parts = split_batch(batch, 1)  # of other widths: the sum is the same
    assert sum(objective.loss_sum(model, part).item() for part in parts) == pytest.approx(expected, rel=1e-9)


def test_the_gradient_raises_the_margin_of_unsure_pairs_most() -> None:
    """It is -beta * sigmoid(-beta * margin) times the margin's own gradient (equation 7 of the paper)."""
    model, objective = two_layers(), DirectPreference(BETA)
    batch = batch_of(PAIRS[:1], REFERENCE_LOGS[:1])
    objective.loss_sum(model, batch).backward()
    found = model.final_norm.weight.grad.clone()
    model.zero_grad()
    chosen, rejected = pair_log_likelihoods(model, batch).flatten()
    (chosen - rejected).backward()
    margin = (chosen - rejected - (REFERENCE_LOGS[0, 0] - REFERENCE_LOGS[0, 1])).detach()
    torch.testing.assert_close(found, -BETA * torch.sigmoid(-BETA * margin) * model.final_norm.weight.grad)


def test_before_training_no_pair_is_decided() -> None:
    model = two_layers().eval()
    with torch.no_grad():
        batch = batch_of(PAIRS, pair_log_likelihoods(model, batch_of(PAIRS, REFERENCE_LOGS)))
    measures = DirectPreference(BETA).evaluate(model, [batch])
    assert measures["val_loss"] == pytest.approx(math.log(2))
    assert measures["val_accuracy"] == 0


def test_both_answers_stand_behind_the_same_prompt(finished_run: Path) -> None:
    template, tokenizer = TEMPLATES["alpaca"], load_tokenizer(finished_run)
    pair = Preference(Conversation.ask("Name a colour."), "Blue.", "Blue, obviously.")
    whole = encode_pair(pair, template, tokenizer, 500)
    end = tokenizer.special_tokens["<|endoftext|>"]
    assert (
        whole.chosen[: whole.n_prompt] == whole.rejected[: whole.n_prompt] == template.prompt(pair.question, tokenizer)
    )
    assert tokenizer.decode(whole.chosen[whole.n_prompt : -1]) == "Blue."
    assert whole.chosen[-1] == whole.rejected[-1] == end
    cut = encode_pair(pair, template, tokenizer, len(whole.rejected) - 4)
    assert cut == EncodedPair(whole.n_prompt - 4, whole.chosen[4:], whole.rejected[4:])
    assert encode_pair(pair, template, tokenizer, len(whole.rejected) - whole.n_prompt) is None


def test_earlier_answers_of_a_conversation_are_not_judged(finished_run: Path) -> None:
    template, tokenizer = TEMPLATES["alpaca"], load_tokenizer(finished_run)
    earlier = Conversation.ask("Hello.").then("assistant", "Good day.").then("user", "Name a colour.")
    pair = encode_pair(Preference(earlier, "Blue.", "Red."), template, tokenizer, 500)
    assert tokenizer.decode(pair.chosen[pair.n_prompt : -1]) == "Blue."


def test_pairs_made_by_rule_differ_and_stay_the_same() -> None:
    pairs = corpus_preferences("val")
    assert len(pairs) > 100
    assert all(pair.chosen != pair.rejected for pair in pairs)
    assert pairs == corpus_preferences("val")


def write(path: Path, *records: object) -> Path:
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return path


def test_preferences_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "pairs.json",
        {"instruction": "Spell it.", "input": "freind", "output": "x", "chosen": "friend", "rejected": "freind"},
        {"instruction": "Hi", "chosen": "Hello", "rejected": "Hello"},
    )
    assert read_preferences(path) == [Preference(Conversation.ask("Spell it.", input="freind"), "friend", "freind")]
    assert "1 pairs of the same answer twice are left out" in caplog.text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": "a", "chosen": "b"}, "record 1: it must be an object .* has no rejected"),
        (["a"], "record 1: it must be an object"),
        ({"chosen": "b", "rejected": "c"}, "record 1: instruction must be a text, got None"),
        ({"instruction": "a", "chosen": "b", "rejected": " "}, "record 1: rejected is empty"),
        ({"instruction": "a", "chosen": "b", "rejected": 3}, "record 1: output must be a text, got 3"),
        ({"instruction": "a", "chosen": "b", "rejected": "b"}, "holds no pair of different answers"),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_preferences(write(tmp_path / "pairs.json", record))
    assert "\n" not in str(error.value)


def test_the_real_pairs_are_read(real_data: Path) -> None:
    pairs = read_preferences(real_data / "alpaca/instruction-data-with-preference.json")
    assert len(pairs) == 1094
    assert pairs[0].chosen.startswith("The spelling of the given phrase")


@pytest.fixture(scope="module")
def polite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in which the politer answer is preferred."""
    words = ("red", "blue", "tall", "old", "kind", "small", "good", "cold", "new", "dark")
    records = [
        {"instruction": f"Say {word}.", "chosen": f"It is {word}, Sir.", "rejected": f"{word}, {ending}."}
        for word in words
        for ending in ("of course", "as you know", "obviously")
    ]
    return write(tmp_path_factory.mktemp("pairs") / "pairs.json", *records)


@pytest.fixture(scope="module")
def answering(finished_run: Path, polite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to answer, a little, and has dropout."""
    folder = tmp_path_factory.mktemp("runs")
    records = [{**record, "output": record["chosen"]} for record in json.loads(polite.read_text())]
    data = write(folder / "answers.json", *records)
    settings = train.Config(
        base=finished_run, data=data, held_out=0.2, out=folder / "answering", template="alpaca", epochs=1, lr=0.003,
        ask=(), device="cpu", precision="float32",
    )  # fmt: skip
    assert train.main(settings)
    return folder / "answering"


def settings(answering: Path, polite: Path, out: Path, **changes: object) -> dpo.Config:
    values = {
        "base": answering, "data": polite, "out": out, "held_out": 0.2, "epochs": 3, "batch_size": 8, "lr": 0.003,
        "eval_every": 3, "checkpoint_every": 3, "device": "cpu", "precision": "float32",
    }  # fmt: skip
    return dpo.Config(**{**values, **changes})


@pytest.fixture(scope="module")
def preferring(answering: Path, polite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("preferring") / "run"
    assert dpo.main(settings(answering, polite, out))["val_accuracy"] == 1
    return out


def test_a_model_learns_what_is_preferred(preferring: Path, answering: Path) -> None:
    results = json.loads((preferring / "results.json").read_text(encoding="utf-8"))
    assert results["val_chosen"] > results["val_rejected"]
    evaluated = [entry for entry in read_metrics(preferring) if "val_chosen" in entry]
    assert {"val_chosen", "val_rejected", "val_accuracy", "val_loss"} <= evaluated[0].keys()
    assert (preferring / "preferences.svg").exists()
    assert template_of(preferring) is template_of(answering) is TEMPLATES["alpaca"]
    assert not torch.equal(
        GPT.from_run(preferring).final_norm.weight, GPT.from_run(answering).final_norm.weight
    )  # and both open everywhere


def test_the_reference_is_kept_and_found_again_when_it_is_lost(
    preferring: Path, answering: Path, polite: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before, weights = sha256(preferring / REFERENCE), sha256(preferring / "model.safetensors")
    again = settings(answering, polite, preferring)
    assert dpo.main(again)
    assert "before training, the chosen answer is" not in caplog.text
    (preferring / REFERENCE).unlink()
    assert dpo.main(again)
    assert "before training, the chosen answer is" in caplog.text
    assert sha256(preferring / REFERENCE) == before
    assert sha256(preferring / "model.safetensors") == weights


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    preferring: Path, answering: Path, polite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(answering, polite, tmp_path / "run")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dpo, "fine_tune", killed)
        with pytest.raises(KeyboardInterrupt):
            dpo.main(config)
    (tmp_path / "run/bpe.json").unlink()
    assert dpo.main(config)
    assert sha256(tmp_path / "run/model.safetensors") == sha256(preferring / "model.safetensors")


def test_dropout_is_off(answering: Path) -> None:
    base = GPT.from_run(answering)
    model = GPT(dataclasses.replace(base.config, dropout=0.5))
    model.load_state_dict(base.state_dict())
    ids = torch.arange(12).view(1, 12)
    assert torch.equal(dpo.without_dropout(model).train()(ids)[0], base(ids)[0])
    assert not torch.equal(model.train()(ids)[0], base(ids)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": None}, "say which model"),
        ({"held_out": 0.01}, "30 examples: of so few, 0.01 is none"),
        ({"data": Path("nowhere.json")}, "nowhere.json"),
    ],
)
def test_wrong_wishes_write_nothing(
    answering: Path, polite: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises((InputError, OSError), match=message):
        dpo.main(settings(answering, polite, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_model_that_cannot_answer_is_refused(finished_run: Path, polite: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has not learned to answer: begin with a run directory of"):
        dpo.main(settings(finished_run, polite, tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_stored_run_prefers_what_people_prefer() -> None:
    """A minute or two of one core; the held-out prompts were in none of its training data."""
    stored = json.loads((Path(dpo.__file__).parent / "results" / "dpo.json").read_text())
    assert stored["best"]["val_accuracy"] >= 0.7
    assert stored["cpu_seconds"] <= 300


def test_other_preferences_are_another_run(preferring: Path, answering: Path, polite: Path) -> None:
    with pytest.raises(InputError, match=r"holds a run with beta 0\.1, not 0\.5"):
        dpo.main(settings(answering, polite, preferring, beta=0.5))
