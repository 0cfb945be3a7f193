"""GaLore against a singular value decomposition, against AdamW, and against an optimizer written out in float64."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gpt_model import GPT, GPTConfig
from gpt_model.costs import galore_numbers, training_memory
from pretraining import simple
from pretraining.config import Config
from pretraining.open_run import open_run
from pretraining.optimizers import GaLore, galore, make_optimizers
from pretraining.optimizers.galore import find_projector
from tests.tiny_run import tiny
from utils.files import InputError, sha256

SHAPES = [(12, 12), (36, 12), (12, 48), (48, 12)]
PAPER = {"lr": 0.02, "scale": 0.3, "betas": (0.8, 0.9), "eps": 1e-6}


def fading(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A matrix whose singular values fall by a fifth from one to the next, in float64."""
    size = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(n, size, generator=generator).double())[0] for n in (rows, columns))
    return u * 0.8 ** torch.arange(size) @ v.mT


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def weights_of(shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def give_gradients(weights: list[nn.Parameter], generator: torch.Generator) -> None:
    for weight in weights:
        weight.grad = fading(*weight.shape, generator).to(weight.dtype)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of all that is kept, but for the counters of steps."""
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim())


class TestProjector:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_its_columns_are_orthonormal(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        projector = find_projector(fading(40, 100, generator).to(dtype), 10, seed=0).double()
        torch.testing.assert_close(projector.mT @ projector, torch.eye(10).double(), rtol=0, atol=1e-5)

    def test_at_full_rank_nothing_is_lost(self, generator: torch.Generator) -> None:
        gradient = fading(20, 50, generator)
        projector = find_projector(gradient, 20, seed=0)
        torch.testing.assert_close(projector @ projector.mT @ gradient, gradient)

    def test_it_is_exact_where_the_sample_is_as_high_as_the_matrix(self, generator: torch.Generator) -> None:
        gradient = fading(12, 50, generator)
        exact = torch.linalg.svd(gradient, full_matrices=False).U[:, :4]
        cosines = (find_projector(gradient, 4, seed=0) * exact).sum(dim=0).abs()
        torch.testing.assert_close(cosines, torch.ones(4).double())

    def test_a_sample_is_nearly_as_good_as_the_whole(self, generator: torch.Generator) -> None:
        """Of noise, whose directions are nearly equal, too: there is no harder matrix."""
        for gradient in (fading(200, 300, generator), torch.randn(200, 300, generator=generator).double()):
            projector = find_projector(gradient, 30, seed=0)
            best = torch.linalg.svdvals(gradient)[:30].norm()
            assert 0.97 * best < (projector.mT @ gradient).norm() <= best * (1 + 1e-9)

    def test_it_depends_on_the_seed_and_on_no_other_random_number(self, generator: torch.Generator) -> None:
        gradient = torch.randn(100, 100, generator=generator)
        first, other = find_projector(gradient, 10, seed=3), find_projector(gradient, 10, seed=4)
        before = torch.get_rng_state()
        torch.manual_seed(123)
        assert torch.equal(find_projector(gradient, 10, seed=3), first)
        assert not torch.equal(first, other)
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        find_projector(gradient, 10, seed=5)
        assert torch.equal(torch.rand(1), expected)
        torch.set_rng_state(before)

    def test_a_gradient_of_zeros_has_one_too(self) -> None:
        projector = find_projector(torch.zeros(30, 40), 5, seed=0)
        torch.testing.assert_close(projector.mT @ projector, torch.eye(5))


class TestStep:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_with_the_identity_as_projector_it_is_adamw_to_the_bit(
        self, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(galore, "find_projector", lambda gradient, rank, seed: torch.eye(len(gradient)))
        ours, theirs = weights_of(SHAPES, dtype), weights_of(SHAPES, dtype)
        settings = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
        optimizers = GaLore(ours, rank=1000, scale=1.0, **settings), torch.optim.AdamW(theirs, **settings)
        for _ in range(20):
            give_gradients(ours, generator)
            for weight, other in zip(ours, theirs, strict=True):
                other.grad = weight.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        assert all(map(torch.equal, ours, theirs))

    def test_the_rank_of_a_step_is_the_optimizers(self, generator: torch.Generator) -> None:
        weights = [nn.Parameter(torch.zeros(shape).double()) for shape in SHAPES]
        give_gradients(weights, generator)
        GaLore(weights, rank=3).step()
        for weight in weights:
            assert torch.linalg.matrix_rank(weight.detach()) == 3

    def test_it_is_the_papers_algorithm(self, generator: torch.Generator) -> None:
        """With projectors by a full decomposition, found anew every 4 steps, the matrices by turns."""
        ours = weights_of(SHAPES, torch.float64)
        expected = [weight.detach().clone() for weight in ours]
        optimizer = GaLore(ours, rank=5, every=4, weight_decay=0.1, **PAPER)
        kept: list[dict[str, Tensor]] = [{} for _ in SHAPES]
        for t in range(1, 11):
            give_gradients(ours, generator)
            gradients = [weight.grad.clone() for weight in ours]
            optimizer.step()
            for index, (gradient, memory) in enumerate(zip(gradients, kept, strict=True)):
                found = optimizer.state[ours[index]]["projector"]
                if t == 1 or (t - 1) % 4 == index:
                    memory["P"] = leading(gradient, 5, like=found)
                torch.testing.assert_close(found, memory["P"])
                expected[index] = paper_step(expected[index], gradient, memory, t, weight_decay=0.1, **PAPER)
                torch.testing.assert_close(ours[index].detach(), expected[index])

    def test_weight_decay_acts_on_the_weight_alone(self) -> None:
        (weight,) = weights_of([(4, 6)])
        before = weight.detach().clone()
        weight.grad = torch.zeros(4, 6)
        GaLore([weight], lr=0.1, rank=2, scale=0.25, weight_decay=0.5).step()
        torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5))

    def test_a_matrix_without_gradient_stays(self) -> None:
        weights = weights_of([(4, 4), (4, 4)])
        before = weights[1].detach().clone()
        weights[0].grad = torch.randn(4, 4)
        optimizer = GaLore(weights, rank=2)
        optimizer.step()
        assert torch.equal(weights[1], before)
        assert weights[1] not in optimizer.state

    def test_vectors_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"GaLore is for matrices, got a parameter of shape \(4,\)"):
            GaLore([nn.Parameter(torch.ones(4))], rank=1)


def leading(gradient: Tensor, rank: int, like: Tensor) -> Tensor:
    """The leading singular vectors on the smaller side; of the two that each may be, the one that is more `like`."""
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    vectors = (u if gradient.shape[0] <= gradient.shape[1] else vh.mT)[:, :rank]
    return vectors * (vectors * like).sum(dim=0).sign()


def paper_step(
    weight: Tensor, gradient: Tensor, memory: dict[str, Tensor], t: int, *, lr: float, scale: float,
    betas: tuple[float, float], eps: float, weight_decay: float,
) -> Tensor:  # fmt: skip
    """Algorithm 2 as it is printed, its "Lowrank" step by Adam's formulas, and AdamW's decay."""
    P, tall = memory["P"], gradient.shape[0] > gradient.shape[1]
    R = gradient @ P if tall else P.mT @ gradient
    memory["M"] = betas[0] * memory.get("M", 0) + (1 - betas[0]) * R
    memory["V"] = betas[1] * memory.get("V", 0) + (1 - betas[1]) * R**2
    N = memory["M"] / (1 - betas[0] ** t) / ((memory["V"] / (1 - betas[1] ** t)).sqrt() + eps)
    full = N @ P.mT if tall else P @ N
    return weight - lr * weight_decay * weight - lr * scale * full


class TestTurns:
    def test_matrices_take_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the first step all find a projector, since none has one; from then on each once in its 8 steps."""
        weights, found = weights_of([(3, 4)] * 16), []
        projector = find_projector
        monkeypatch.setattr(galore, "find_projector", lambda *args, seed: found.append(seed) or projector(*args, seed))
        optimizer, counts = GaLore(weights, rank=2, every=8), []
        for _ in range(17):
            for weight in weights:
                weight.grad = torch.ones(3, 4)
            optimizer.step()
            counts.append(len(found) - sum(counts))
        assert counts == [16] + [2] * 16
        assert len(set(found)) == len(found)  # no two times the same random vectors

    def test_a_process_that_updates_some_of_them_finds_the_projectors_of_one_that_updates_all(self) -> None:
        """As under ZeRO-1, where each process keeps its share of the parameters after the optimizer is made."""
        projectors = []
        for own in (slice(None), slice(1, 3)):
            draws = torch.Generator().manual_seed(0)
            weights = weights_of([(40, 60)] * 4)
            optimizer = GaLore(weights, rank=3, every=2)
            optimizer.param_groups[0]["params"] = weights[own]
            for _ in range(4):
                for weight in weights:
                    weight.grad = torch.randn(40, 60, generator=draws)
                optimizer.step()
            projectors.append([optimizer.state[weight]["projector"] for weight in weights[1:3]])
        assert all(map(torch.equal, *projectors))

    def test_turns_go_by_the_steps_of_a_run_and_not_of_a_process(self, generator: torch.Generator) -> None:
        """A state that went through a file, mid-interval, goes on as if it had not."""
        runs = []
        for stop in (None, 5):
            draws = torch.Generator().manual_seed(0)
            weights = weights_of(SHAPES)
            optimizer = GaLore(weights, rank=3, every=3)
            for step in range(9):
                if step == stop:
                    torch.manual_seed(99)
                    saved = optimizer.state_dict()
                    optimizer = GaLore(weights, rank=3, every=3)
                    optimizer.load_state_dict(saved)
                give_gradients(weights, draws)
                optimizer.step()
            runs.append(weights)
        assert all(map(torch.equal, *runs))


class TestBytes:
    def test_gpt2_small_keeps_514_megabytes_where_adamw_keeps_995(self) -> None:
        config = GPTConfig.preset("gpt2-small")
        kept = {name: training_memory(config, 1, 1, optimizer=name).optimizer for name in ("adamw", "galore")}
        assert kept["adamw"] == pytest.approx(995e6, rel=0.01)
        assert kept["galore"] == pytest.approx(514e6, rel=0.01)

    @pytest.mark.parametrize(("preset", "saved"), [("gpt2-small", 0.48), ("gpt2-medium", 0.60), ("gpt2-xl", 0.67)])
    def test_larger_models_save_more(self, preset: str, saved: float) -> None:
        config = GPTConfig.preset(preset)
        kept = [training_memory(config, 1, 1, optimizer=name).optimizer for name in ("galore", "adamw")]
        assert 1 - kept[0] / kept[1] == pytest.approx(saved, abs=0.005)

    @pytest.mark.parametrize("rank", [None, 1, 5, 64, 1000])
    def test_a_model_keeps_what_the_formula_says(self, rank: int | None) -> None:
        """Down to the byte; that every kind of model does, at the default rank, is among the tests of the costs."""
        config = GPTConfig.preset("tiny")
        optimizers = stepped(config, "galore", galore_rank=rank)
        assert (
            sum(map(state_bytes, optimizers)) == training_memory(config, 1, 1, optimizer="galore", rank=rank).optimizer
        )

    def test_the_projector_is_on_the_smaller_side(self) -> None:
        weights = weights_of([(30, 8), (8, 30)])
        optimizer = GaLore(weights, rank=3)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        for weight in weights:
            assert {name: tuple(t.shape) for name, t in optimizer.state[weight].items()} == {
                "step": (), "projector": (8, 3), "mean": (3, 30), "square": (3, 30),
            }  # fmt: skip
        assert state_bytes(optimizer) == 2 * 4 * galore_numbers(30, 8, 3)

    def test_the_popular_wrong_version_saves_nothing(self) -> None:
        """It makes the gradient poor, gives it back to AdamW at full size, and keeps a projector besides."""
        config = GPTConfig.preset("tiny")
        right, adamw = (sum(map(state_bytes, stepped(config, name))) for name in ("galore", "adamw"))
        model = stepped_model(config)
        optimizer = WrongGaLore(model.parameters(), {p for p in model.blocks.parameters() if p.ndim == 2}, rank=16)
        optimizer.step()
        wrong = state_bytes(optimizer) + sum(projector.nbytes for projector in optimizer.projectors.values())
        projectors = 2 * 4 * 64 * 16 * 4  # of two blocks, for four matrices each, in float32
        assert wrong == adamw + projectors
        assert right < 0.7 * adamw < wrong


class WrongGaLore(torch.optim.AdamW):
    """A planted bug: projected and rebuilt *before* AdamW, whose moments are then as large as ever."""

    def __init__(self, params: object, matrices: set[Tensor], rank: int) -> None:
        super().__init__(params)
        self.matrices, self.rank = matrices, rank
        self.projectors: dict[Tensor, Tensor] = {}

    def step(self, closure: None = None) -> None:
        for weight in self.matrices:
            gradient = weight.grad if weight.shape[0] <= weight.shape[1] else weight.grad.mT
            P = self.projectors.setdefault(weight, find_projector(gradient, self.rank, seed=0))
            gradient.copy_(P @ (P.mT @ gradient))
        super().step(closure)


def stepped_model(config: GPTConfig) -> GPT:
    """A model with gradients."""
    torch.manual_seed(0)
    model = GPT(config)
    ids_BT = torch.randint(config.vocab_size, (2, 9))
    model(ids_BT[:, :-1], ids_BT[:, 1:])[1].backward()
    return model


def stepped(config: GPTConfig, name: str, **changes: object) -> list[torch.optim.Optimizer]:
    """The optimizers of a model after one step."""
    settings = {"lr": 1e-3, "matrix_lr": 1e-3, "weight_decay": 0.0, "bfloat16": False}
    optimizers = make_optimizers(stepped_model(config), name, **settings, **changes)
    for optimizer in optimizers:
        optimizer.step()
    return optimizers


class TestRuns:
    def test_a_run_stopped_between_two_projectors_ends_bit_for_bit_the_same(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The random vectors of its projectors, found every 5 steps, come back too."""
        settings = {"optimizer": "galore", "galore_every": 5, "galore_rank": 7, "lr": 0.01, "dropout": 0.1}
        whole = tiny(data, tmp_path / "whole", **settings)
        assert simple.main(whole)
        step = simple.Trainer.step

        def stop_on_the_way(trainer: simple.Trainer) -> float:
            loss = step(trainer)
            if trainer.steps in (3, 7):
                os.kill(os.getpid(), signal.SIGTERM)
            return loss

        monkeypatch.setattr(simple.Trainer, "step", stop_on_the_way)
        stopped = dataclasses.replace(whole, out=tmp_path / "stopped")
        assert [simple.main(stopped) for _ in range(3)] == [False, False, True]
        assert sha256(stopped.out / "model.safetensors") == sha256(whole.out / "model.safetensors")
        with pytest.raises(InputError, match="holds a run with galore_rank 7, not 8"):
            simple.main(dataclasses.replace(stopped, galore_rank=8))

    def test_its_settings_reach_the_optimizer(self, data: Path, tmp_path: Path) -> None:
        config = tiny(data, tmp_path / "run", optimizer="galore", galore_rank=3, galore_every=9, galore_scale=0.5)
        _, optimizer = simple.Trainer(*open_run(config)).optimizers
        group = optimizer.param_groups[0]
        assert (group["rank"], group["every"], group["scale"], group["lr"]) == (3, 9, 0.5, config.lr)

    def test_it_learns_as_well_as_adamw(self, data: Path, tmp_path: Path) -> None:
        """All along the way its loss is at most 1% higher, its matrices at AdamW's learning rate."""
        kinds = {"adamw": {"lr": 0.002}, "galore": {"lr": 0.008, "galore_scale": 0.25, "galore_every": 20}}
        curves = []
        for name, changes in kinds.items():
            trainer = simple.Trainer(*open_run(tiny(data, tmp_path / name, optimizer=name, steps=60, **changes)))
            curve = [trainer.validation_loss()]
            for _ in range(3):
                for _ in range(20):
                    trainer.step()
                curve.append(trainer.validation_loss())
            curves.append(curve)
        adamw, ours = curves
        assert ours[-1] < ours[0] - 0.7
        assert all(b <= 1.01 * a for a, b in zip(adamw, ours, strict=True)), curves

    def test_a_rank_that_saves_nothing_is_refused(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="galore_rank must be below d_model 192, got 256"):
            Config(data=data, optimizer="galore", galore_rank=256)
        Config(data=data, optimizer="adamw", galore_rank=256)
