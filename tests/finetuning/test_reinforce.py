"""Reinforcement: its gradient against that of the expected reward, what is drawn, and a run from beginning to end."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetuning.instruction import reinforce
from finetuning.instruction.likelihood import log_likelihood
from finetuning.instruction.policy_gradient import (
    LATELY,
    PolicyGradient,
    Rollouts,
    advantages,
    answer_targets,
    draw,
)
from gpt_model import GPT, GPTConfig, TextGenerator
from gpt_model.run_directory import load
from pretraining.engine.engine import split_batch
from pretraining.metrics import read_metrics
from utils.files import InputError, sha256
from working_with_text_data.minbpe import RegexTokenizer

END = 3
PROMPT = [0, 1]


def two_layers(vocab_size: int = 4) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=vocab_size, context_length=8, d_model=16, n_layers=2, n_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model.double()


def every_answer() -> Tensor:
    """All answers of two tokens to the prompt; after the end nothing else comes."""
    rows = {(*PROMPT, first, END if first == END else second) for first in range(4) for second in range(4)}
    return torch.tensor(sorted(rows))


def gradient_of(model: GPT, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return model.blocks[0].attention.qkv.weight.grad.clone()


def test_the_probabilities_of_all_answers_add_up_to_one() -> None:
    rows = every_answer()
    assert len(rows) == 13
    likelihoods = log_likelihood(two_layers(), rows[:, :-1], answer_targets(rows, len(PROMPT), END))
    assert likelihoods.exp().sum().item() == pytest.approx(1)


def test_on_average_the_step_is_up_the_expected_reward() -> None:
    """Over all pairs of siblings: their mean takes a share of 1 / 2 away, and turns nothing."""
    model, objective = two_layers(), PolicyGradient(lambda model: {})
    rows = every_answer()
    targets = answer_targets(rows, len(PROMPT), END)
    rewards = torch.linspace(-1, 2, len(rows), dtype=torch.float64).square()
    probabilities = log_likelihood(model, rows[:, :-1], targets).exp()
    expected = gradient_of(model, -(probabilities * rewards).sum())
    first, second = (index.flatten() for index in torch.meshgrid(*[torch.arange(len(rows))] * 2, indexing="ij"))
    weights = probabilities.detach()[first] * probabilities.detach()[second]
    pairs = advantages(torch.stack([rewards[first], rewards[second]], dim=1)) * weights[:, None]
    both = torch.stack([first, second], dim=1).flatten()
    batch = rows[both, :-1], targets[both], pairs.flatten()
    found = gradient_of(model, objective.loss_sum(model, batch)) / 2  # two answers of each prompt
    torch.testing.assert_close(found, expected / 2)


def test_the_loss_is_the_one_computed_by_hand() -> None:
    model, objective = two_layers(), PolicyGradient(lambda model: {})
    rows = torch.tensor([[0, 1, 2, 2], [0, 1, 3, 3]])
    batch = rows[:, :-1], answer_targets(rows, 2, END), torch.tensor([0.75, -0.25], dtype=torch.float64)
    after = [torch.log_softmax(model(torch.tensor([ids]))[0][0, -1], dim=0) for ids in ([0, 1], [0, 1, 2])]
    expected = -(0.75 * (after[0][2] + after[1][2]) - 0.25 * after[0][3])
    torch.testing.assert_close(objective.loss_sum(model, batch), expected)
    assert objective.count(batch) == 2
    parts = [objective.loss_sum(model, part) for part in split_batch(batch, 1)]
    torch.testing.assert_close(sum(parts), expected)


def test_siblings_are_compared_with_one_another() -> None:
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]))
    assert found.tolist() == [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0], [-0.25, -0.25, -0.25, 0.75]]


def test_the_end_is_learned_once_and_nothing_after_it() -> None:
    ids = torch.tensor([[7, 8, 5, 3, 3], [7, 8, 3, 3, 3], [7, 8, 5, 6, 9], [3, 8, 5, 3, 3]])
    assert answer_targets(ids, 2, END).tolist() == [
        [-100, 5, 3, -100], [-100, 3, -100, -100], [-100, 5, 6, 9], [-100, 5, 3, -100],
    ]  # fmt: skip


def test_answers_are_drawn_as_likely_as_the_model_finds_them() -> None:
    model = two_layers().eval()
    rows = every_answer()
    with torch.no_grad():
        expected = log_likelihood(model, rows[:, :-1], answer_targets(rows, 2, END)).exp()
    n = 4000
    drawn = draw(model, torch.tensor([PROMPT]).expand(n, -1), 2, END, torch.Generator().manual_seed(0))
    found = (drawn[:, None] == rows).all(-1).double().mean(0)
    assert found.sum() == 1
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()
    likeliest = draw(model, torch.tensor([PROMPT]), 1, END, None)
    assert likeliest[0, -1] == model(torch.tensor([PROMPT]))[0][0, -1].argmax()


def rollouts(seed: int = 0, n_prompts: int = 2) -> Rollouts:
    tokenizer = RegexTokenizer()
    tokenizer.add_special_tokens("<|endoftext|>")
    model = two_layers(257).eval()

    def longer_is_better(prompt: str, answer: str) -> float:
        return min(len(answer), 2) / 4 + (prompt == "b?") / 2

    return Rollouts(
        model, tokenizer, ["a?", "b?"], longer_is_better, n_prompts=n_prompts, n_siblings=6, n_new=2, seed=seed
    )


def test_batches_go_on_where_they_stood() -> None:
    one, other = rollouts(), rollouts(seed=1)
    one.next()
    other.load_state_dict(one.state_dict())
    for first, second in zip(one.next(), other.next(), strict=True):
        assert torch.equal(first, second)


def test_a_batch_holds_the_rewards_of_its_own_answers() -> None:
    source = rollouts()
    ids, targets, gains = source.next()
    assert ids.shape == targets.shape == (12, 3)
    earned = source.earned([0] * 6 + [1] * 6, torch.tensor([[97, 63, 98, 256], [97, 63, 256, 256]] * 6))
    assert earned == [0.25, 0] * 3 + [0.75, 0.5] * 3
    torch.testing.assert_close(gains.view(2, 6).sum(1), torch.zeros(2), rtol=0, atol=1e-6)


def test_prompts_that_earned_little_are_drawn_more_often() -> None:
    source = rollouts(n_prompts=1)
    source.next()
    assert source.earned_Q.max() == pytest.approx(LATELY * source.rewards[0])
    n_first = 0
    for _ in range(100):
        source.earned_Q = torch.tensor([1.0, 0.0])
        n_first += int(source.next()[0][0, 0] == ord("a"))
    assert n_first < 10  # one of 52, in the mean
    source.earned_Q = torch.tensor([0.5, 0.5])
    assert {int(source.next()[0][0, 0]) for _ in range(20)} == {ord("a"), ord("b")}


@pytest.mark.parametrize(("answer", "right"), [("12", 1), ("3", 0), ("", 0), ("12 ", 0), ("\u00b9\u00b2", 0)])
def test_a_program_checks_the_sums(answer: str, right: float) -> None:
    assert reinforce.reward("7+5=", answer) == right


def settings(out: Path, **changes: object) -> reinforce.Config:
    values = {
        "out": out, "supervised_steps": 4, "steps": 6, "prompts": 4, "siblings": 4, "eval_every": 3,
        "checkpoint_every": 2, "device": "cpu",
    }  # fmt: skip
    return reinforce.Config(**{**values, **changes})


@pytest.fixture(scope="module")
def adding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adding") / "run"
    assert reinforce.main(settings(out)) is not None
    return out


def test_a_run_says_what_came_of_it_and_opens_everywhere(adding: Path) -> None:
    assert json.loads((adding / "results.json").read_text()).keys() == {"exact_before", "exact_after"}
    assert [entry["step"] for entry in read_metrics(adding) if "exact" in entry] == [3, 6]
    assert all(0 <= entry["reward"] <= 1 for entry in read_metrics(adding))
    generator = TextGenerator(*load(adding, None))
    assert isinstance(generator.generate("3+4=", max_new_tokens=3, temperature=0), str)


def test_a_stopped_run_goes_on_to_the_same_weights(
    adding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    class AfterSome:
        @property
        def made(self) -> bool:
            looks.append(None)
            return len(looks) == 4

        def __enter__(self) -> "AfterSome":
            return self

        def __exit__(self, *error: object) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["pretraining.engine.fit"], "stop_on_signal", AfterSome)
        assert reinforce.main(settings(tmp_path / "run")) is None
    assert reinforce.main(settings(tmp_path / "run")) is not None
    assert sha256(tmp_path / "run/model.safetensors") == sha256(adding / "model.safetensors")


def test_the_stored_run_learned_to_add() -> None:
    """A minute of one core for each seed; a test that trained for as long would be no better."""
    stored = json.loads((Path(reinforce.__file__).parent / "results" / "reinforce.json").read_text())
    assert stored["exact_before"] <= 0.3
    assert min(stored["exact_after_of_seed"].values()) >= 0.9
    assert stored["cpu_seconds"] <= 180
    evenly = stored["drawn_evenly"]  # its twin: lesson 05 shows both, and says that only the drawing differs
    assert [row["step"] for row in evenly["curve"]] == [row["step"] for row in stored["curve"]]
    assert max(evenly["exact_after_of_seed"].values()) < min(stored["exact_after_of_seed"].values())
    sums_of_10 = {f"{a}+{10 - a}=" for a in range(1, 10)}
    assert all(lost.keys() == {"0+0=", *sums_of_10} for lost in evenly["lost_of_seed"].values())


def test_another_run_and_foreign_folders_are_left_alone(adding: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a run with siblings 4, not 8"):
        reinforce.main(settings(adding, siblings=8))
    (tmp_path / "mine.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(InputError, match="is not a run directory|not ours"):
            reinforce.main(settings(tmp_path, fresh=fresh))
    assert (tmp_path / "mine.txt").read_text() == "mine"
