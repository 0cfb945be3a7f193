"""The parts of training, each by itself: sums over counts, schedules, callbacks, what happens when numbers go wrong."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gpt_model import GPT, GPTConfig
from gpt_model.gpt import NOT_COUNTED
from pretraining.checkpoint import list_checkpoints, step_of
from pretraining.engine import (
    Engine,
    NextToken,
    Settings,
    World,
    fit,
    linear,
    warmup_cosine,
    warmup_stable_decay,
)
from pretraining.engine.callbacks import Callback, EarlyStopping, MovingAverage, Plateau, SpikeGuard, WallClock
from pretraining.engine.engine import LossScale, NotFiniteError, split_batch, to_device
from pretraining.engine.fit import Plan
from pretraining.engine.zero import ZeroOne
from pretraining.metrics import read_metrics
from pretraining.optimizers.muon import Muon
from pretraining.simple import learning_rate_factor
from utils.files import InputError
from utils.tracking import open_trackers

HERE = World(torch.device("cpu"))


class Line(nn.Module):
    """y = w x: the smallest model there is."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.config = None


class SquaredError:
    """An objective of another kind than next tokens: regression, on batches that are dicts."""

    def count(self, batch: dict[str, Tensor]) -> int:
        return int(batch["counts"].sum())

    def loss_sum(self, model: Line, batch: dict[str, Tensor]) -> Tensor:
        return (batch["counts"] * (model.w * batch["x"] - batch["y"]) ** 2).sum()

    def evaluate(self, model: Line, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
        parts = [(self.loss_sum(model, batch).item(), self.count(batch)) for batch in batches]
        return {"val_loss": sum(part for part, _ in parts) / max(1, sum(count for _, count in parts))}


class Numbers:
    """An endless supply of one batch; its y is infinite at the steps that are named."""

    def __init__(self, infinite_at: Iterable[int] = ()) -> None:
        self.place = 0
        self.infinite_at = set(infinite_at)

    def next(self) -> dict[str, Tensor]:
        self.place += 1
        y = torch.tensor([2.0, 4.0, 6.0, math.inf if self.place in self.infinite_at else 8.0], dtype=torch.float64)
        return {"x": torch.arange(1.0, 5, dtype=torch.float64), "y": y, "counts": torch.tensor([1, 0, 3, 1])}

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def sgd(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=0.01)]


def line(**settings: Any) -> Engine:
    return Engine(Line(), SquaredError(), sgd, Settings(clip=0, **settings), HERE)


def run(path: Path, steps: int, *callbacks: Callback, engine: Engine | None = None, batches: Any = None) -> Engine:
    """Train the line for some steps."""
    engine = engine or line()
    plan = Plan(steps, eval_every=2, checkpoint_every=2, micro_batch_size=4)
    fit(
        engine,
        batches or Numbers(),
        lambda: iter([Numbers().next()]),
        lambda step: 1.0,
        path,
        plan,
        callbacks,
        open_trackers([], path, {}),
    )
    return engine


class TestSumOverCount:
    """A batch is the same batch however it is cut, though its rows supervise different numbers of things."""

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_micro_batches_of_unequal_counts_are_one_batch(self, size: int) -> None:
        whole, cut = line(), line()
        whole.step([Numbers().next()], 1.0)
        cut.step(split_batch(Numbers().next(), size), 1.0)
        assert cut.model.w.item() == pytest.approx(whole.model.w.item(), rel=1e-15)

    def test_the_mean_of_means_would_be_another_step(self) -> None:
        engine = line()
        engine.step(split_batch(Numbers().next(), 2), 1.0)
        wrong = Line()
        parts = split_batch(Numbers().next(), 2)
        mean = sum(SquaredError().loss_sum(wrong, part) / part["counts"].sum() for part in parts) / len(parts)
        mean.backward()
        assert -0.01 * wrong.w.grad.item() != pytest.approx(engine.model.w.item(), rel=0.01)

    def test_a_language_model_whose_rows_have_unequal_targets(self) -> None:
        torch.manual_seed(0)
        model = GPT(GPTConfig(vocab_size=32, context_length=8, d_model=16, n_layers=1, n_heads=2)).double()
        ids_BT = torch.randint(32, (4, 8))
        targets_BT = torch.randint(32, (4, 8))
        targets_BT[0, 1:] = NOT_COUNTED
        targets_BT[2] = NOT_COUNTED
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        ends = []
        for size in (1, 2, 4):
            model.load_state_dict(start)
            info = Engine(model, NextToken(), sgd, Settings(), HERE).step(split_batch((ids_BT, targets_BT), size), 1.0)
            assert info.count == 1 + 8 + 8
            ends.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            model.load_state_dict(start)
            assert info.loss.item() == pytest.approx(model(ids_BT, targets_BT)[1].item(), rel=1e-12)
        for end in ends[1:]:
            assert max((end[name] - ends[0][name]).abs().max() for name in end) < 1e-15

    def test_a_batch_that_supervises_nothing_moves_nothing(self) -> None:
        torch.manual_seed(0)
        model = GPT(GPTConfig(vocab_size=32, context_length=8, d_model=16, n_layers=1, n_heads=2))
        before = model.token_embedding.weight.detach().clone()
        nothing = torch.randint(32, (2, 8)), torch.full((2, 8), NOT_COUNTED)
        info = Engine(model, NextToken(), sgd, Settings(), HERE).step([nothing], 1.0)
        assert (info.loss.item(), info.gradient_norm.item()) == (0, 0)
        assert torch.equal(model.token_embedding.weight, before)


def test_documents_read_by_themselves_are_documents_read_one_by_one() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=32, context_length=12, d_model=16, n_layers=2, n_heads=2)).double()
    end_of_text = 31
    first = torch.tensor([[end_of_text, 3, 4, 5, 6]])
    second = torch.tensor([[end_of_text, 9, 8, 7, 6, 5]])
    packed = torch.cat([first, second], dim=1)
    together = NextToken(end_of_text=end_of_text).loss_sum(model, (packed[:, :-1], packed[:, 1:]))
    ends = torch.cat([first[:, 1:], second[:, :1]], dim=1)  # the end of a document is what comes after its last token
    alone = NextToken().loss_sum(model, (first, ends)) + NextToken().loss_sum(model, (second[:, :-1], second[:, 1:]))
    assert together.item() == pytest.approx(alone.item(), rel=1e-12)
    assert NextToken().loss_sum(model, (packed[:, :-1], packed[:, 1:])).item() != pytest.approx(alone.item(), rel=1e-3)


@pytest.mark.parametrize("n_chunks", [2, 5, 100])
def test_logits_in_parts_give_the_same_loss_and_gradient(n_chunks: int) -> None:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=33, context_length=8, d_model=16, n_layers=1, n_heads=2, n_experts=2, vocab_multiple=8
    )
    model = GPT(config).double()
    batch = torch.randint(33, (3, 8)), torch.randint(33, (3, 8))
    found = []
    for parts in (1, n_chunks):
        model.zero_grad()
        loss = NextToken(n_chunks=parts).loss_sum(model, batch)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


class TestSchedules:
    @pytest.mark.parametrize(("name", "make"), [("cosine", warmup_cosine), ("linear", linear)])
    def test_they_are_those_of_the_simple_trainer(self, name: str, make: Any) -> None:
        schedule = make(100, warmup=10)
        factors = [learning_rate_factor(step, 100, 0.1, name) for step in range(100)]
        assert [schedule(step) for step in range(100)] == factors

    @pytest.mark.parametrize("make", [warmup_cosine, linear])
    def test_rises_to_the_peak_and_falls_to_the_minimum(self, make: Any) -> None:
        schedule = make(1000, warmup=100, minimum=0.1)
        factors = [schedule(step) for step in range(1001)]
        assert factors[:3] == [0.01, 0.02, 0.03]
        assert max(factors) == factors[100] == 1
        assert factors[550] == pytest.approx(0.55)  # half of the way from 1 to 0.1
        assert factors[1000] == pytest.approx(0.1)
        assert factors[100:] == sorted(factors[100:], reverse=True)

    def test_stable_until_the_decay(self) -> None:
        schedule = warmup_stable_decay(1000, warmup=100, decay=200)
        assert {schedule(step) for step in range(100, 801)} == {1.0}
        assert schedule(900) == pytest.approx(0.5)
        assert schedule(1000) == 0


class TestCallbacks:
    def test_early_stopping_waits_and_stops(self) -> None:
        stopping = EarlyStopping(patience=2)
        for loss in (3.0, 2.0, 2.5):
            stopping.after_evaluation(line(), {"val_loss": loss})
        again = EarlyStopping(patience=2)
        again.load_state_dict(stopping.state_dict())
        assert again.stop is None
        again.after_evaluation(line(), {"val_loss": 2.0})  # not better than the best
        assert again.stop == "the validation loss has not improved on 2.0000 for 2 evaluations"

    def test_a_plateau_halves_the_learning_rate_again_and_again(self) -> None:
        plateau = Plateau(patience=2)
        factors = []
        for loss in (3.0, 3.0, 3.0, 3.0, 3.0, 1.0, 2.0):
            plateau.after_evaluation(line(), {"val_loss": loss})
            factors.append(plateau.lr_factor)
        assert factors == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]

    def test_the_learning_rate_that_was_taken_is_logged(self, tmp_path: Path) -> None:
        plateau = Plateau(patience=1)
        plateau.best = 0.0  # which no evaluation reaches
        run(tmp_path, 6, plateau)
        assert [line["lr_factor"] for line in read_metrics(tmp_path)] == [1, 0.5, 0.25]

    def test_spikes_are_told_from_the_median_and_do_not_move_it(self) -> None:
        guard = SpikeGuard(4, skip=True, history=3)
        entry: dict[str, float] = {}
        guard.after_reading(entry, [100.0])  # too early to tell
        guard.after_reading(entry, [1.0, 2.0, 1.0])
        assert entry == {}
        guard.after_reading(entry, [3.0, 9.0, 8.0])
        assert entry == {"spikes": 2, "largest_spike": 9.0}
        assert guard.skip_above == 4 * 2.0
        again = SpikeGuard(4, skip=True, history=3)
        again.load_state_dict(guard.state_dict())
        assert again.skip_above == guard.skip_above

    def test_a_long_gradient_is_dropped(self) -> None:
        engine = line()
        info = engine.step([Numbers().next()], 1.0, skip_above=0.5)
        assert info.skipped
        assert engine.model.w.item() == 0

    def test_the_moving_average_is_evaluated_and_the_weights_come_back(self, tmp_path: Path) -> None:
        engine = line()
        average = MovingAverage(engine, lambda: iter([Numbers().next()]), decay=0.9)
        run(tmp_path, 8, average, engine=engine)
        last = read_metrics(tmp_path)[-1]
        squares = [SquaredError().loss_sum(each, Numbers().next()).item() / 5 for each in (engine.model,)]
        assert last["val_loss"] == pytest.approx(squares[0])
        assert last["ema_val_loss"] > last["val_loss"]  # it lags behind
        assert 0 < average.average["w"].item() < engine.model.w.item()

    def test_the_moving_average_goes_on_where_the_weights_are(self) -> None:
        """PyTorch's device without memory stands in for a GPU; a checkpoint is read to the CPU."""
        engine = line()
        engine.model.to("meta")
        average = MovingAverage(engine, lambda: iter([]), 0.9)
        average.load_state_dict({"average": {"w": torch.ones((), dtype=torch.float64)}})
        average.after_step(engine, 1)
        assert average.average["w"].is_meta

    def test_the_clock_stops_a_run_that_can_go_on(self, tmp_path: Path) -> None:
        plan = Plan(8, eval_every=2, checkpoint_every=2, micro_batch_size=4)
        validation = lambda: iter([Numbers().next()])  # noqa: E731
        arguments = (Numbers(), validation, lambda step: 1.0, tmp_path, plan)
        assert not fit(line(), *arguments, [WallClock(1e-9)])
        engine = line()
        assert fit(engine, *arguments)
        assert engine.model.w.item() == run(tmp_path / "whole", 8).model.w.item()


class TestGoingOn:
    def test_callbacks_go_on_too(self, tmp_path: Path) -> None:
        """Stopped after each evaluation, a run ends as one that was not."""
        whole = EarlyStopping(patience=3)
        run(tmp_path / "whole", 12, whole)
        for steps in range(2, 13, 2):
            stopping = EarlyStopping(patience=3)
            run(tmp_path / "parts", steps, stopping)
        assert stopping.state_dict() == whole.state_dict()

    def test_numbers_are_logged(self, tmp_path: Path) -> None:
        run(tmp_path, 4)
        lines = read_metrics(tmp_path)
        assert [line["step"] for line in lines] == [2, 4]
        assert lines[0].keys() >= {"loss", "val_loss", "gradient_norm", "lr_factor", "tokens_per_second", "seconds"}


class TestWhenNumbersGoWrong:
    def test_the_batch_is_kept_and_the_checkpoint_is_intact(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"at step 6: the last checkpoint is intact, and the batch is in .*rank_0"):
            run(tmp_path, 12, batches=Numbers(infinite_at=[6]))
        kept = torch.load(tmp_path / "bad_batch" / "step_000006_rank_0.pt", weights_only=True)
        assert kept["batches"][0]["y"][3] == math.inf
        assert run(tmp_path, 12, batches=Numbers()).model.w.item() == run(tmp_path / "other", 12).model.w.item()

    def test_a_device_that_is_not_waited_for_finds_out_when_it_reads(self, tmp_path: Path) -> None:
        engine = line()
        engine.checks_each_step = False
        with pytest.raises(InputError, match="at step 7"):
            run(tmp_path, 12, engine=engine, batches=Numbers(infinite_at=[7]))
        assert (tmp_path / "bad_batch" / "step_000007_rank_0.pt").exists()

    def test_weights_that_are_not_numbers_never_become_a_checkpoint(self, tmp_path: Path) -> None:
        """Though a device that is not waited for has not said so yet when the checkpoint is due."""
        engine = line()
        engine.checks_each_step = False
        plan = Plan(12, eval_every=12, checkpoint_every=1, micro_batch_size=4)
        validation = lambda: iter([Numbers().next()])  # noqa: E731
        with pytest.raises(InputError, match="at step 5"):
            fit(engine, Numbers(infinite_at=[5]), validation, lambda step: 1.0, tmp_path, plan)
        assert [step_of(folder) for folder in list_checkpoints(tmp_path)] == [4, 3]

    def test_a_callback_that_was_not_there_before_begins_now(self, tmp_path: Path) -> None:
        run(tmp_path, 4)
        engine = line()
        guard, average = SpikeGuard(4, skip=True), MovingAverage(engine, lambda: iter([]), 0.9)
        run(tmp_path, 8, guard, average, engine=engine)
        assert len(guard.norms) == 4  # of the steps since it is there
        assert 0 < average.average["w"].item() < engine.model.w.item()

    def test_a_scaled_loss_falls_until_it_fits(self) -> None:
        engine = line()
        engine.loss_scale = LossScale(4.0)
        bad = Numbers(infinite_at=[1]).next()
        assert engine.step([bad], 1.0).skipped
        assert engine.step([bad], 1.0).skipped
        assert engine.loss_scale.value == 1
        with pytest.raises(NotFiniteError):
            engine.step([bad], 1.0)
        assert engine.model.w.item() == 0

    def test_scaling_the_loss_does_not_change_the_step(self) -> None:
        scaled, plain = line(), line()
        scaled.loss_scale = LossScale(2.0**16)
        assert [scaled.step([Numbers().next()], 1.0).gradient_norm.item()] == [
            plain.step([Numbers().next()], 1.0).gradient_norm.item()
        ]
        assert scaled.model.w.item() == plain.model.w.item()

    def test_many_sound_steps_double_the_scale(self) -> None:
        scale = LossScale(8.0, sound_steps=1999)
        scale.adapt(True)
        assert scale.value == 16
        scale.adapt(False)
        assert (scale.value, scale.sound_steps) == (8, 0)

    def test_float16_on_a_cpu(self) -> None:
        with pytest.raises(InputError, match="float16 needs a GPU"):
            line(precision="float16")


def test_processes_that_share_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="2 processes would each train a model of their own"):
        Engine(Line(), SquaredError(), sgd, Settings(), World(torch.device("cpu"), 0, 2))


def test_zero_gathers_optimizer_state_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU of the main process may not hold the state of all. Tensors without memory stand in for those of a GPU."""
    gathered: list[Tensor] = []

    def gather(world: World, states: list[dict[str, Tensor]]) -> list[list[dict[str, Tensor]]]:
        gathered.extend(value for state in states for value in state.values())
        return [states]

    monkeypatch.setattr(World, "gather", gather)
    vector, matrix = (nn.Parameter(torch.ones(size)) for size in ((3,), (2, 2)))
    optimizers = [torch.optim.AdamW([vector]), Muon([matrix])]
    zero = ZeroOne(HERE)
    zero.share(optimizers)
    with FakeTensorMode():
        for optimizer, size in zip(optimizers, (3, (2, 2)), strict=True):
            part = optimizer.param_groups[0]["params"][0]
            optimizer.state[part] = {"step": torch.ones(()), "mean": torch.ones(size, device="cuda")}
        zero.whole_states(optimizers)
    assert [value.device.type for value in gathered] == ["cpu"] * 4


def test_batches_of_any_make_are_cut_and_moved() -> None:
    tensor = torch.arange(6).view(3, 2)
    nested = {"a": (tensor, tensor + 1), "b": tensor}
    parts = split_batch(nested, 2)
    assert [len(part["b"]) for part in parts] == [2, 1]
    assert torch.equal(parts[1]["a"][1], tensor[2:] + 1)
    moved = to_device(nested, torch.device("meta"))
    assert moved["a"][1].device.type == "meta"
