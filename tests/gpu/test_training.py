"""Training on the GPU: optimizers against PyTorch's, memory against the formula, runs that are stopped and go on."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt_model import GPT, GPTConfig
from gpt_model.costs import training_memory
from pretraining import simple
from pretraining.metrics import read_metrics
from pretraining.open_run import open_run
from pretraining.optimizers import Muon, make_optimizers
from tests.tiny_run import tiny
from utils.peaks import peak_memory

Say = Callable[[str], None]
BFLOAT16 = {"precision": "bfloat16", "device": "cuda", "dropout": 0.1}


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().double().cpu() for tensor in tensors])


def test_adamw_is_fused_and_does_what_it_does_on_a_cpu(device: torch.device) -> None:
    torch.manual_seed(0)
    models = [GPT(GPTConfig.preset("tiny")) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].to(device)
    for model in models:
        generator = torch.Generator().manual_seed(1)
        optimizers = make_optimizers(model, "adamw", lr=1e-2, matrix_lr=0.0, weight_decay=0.1, bfloat16=False)
        assert all(group["fused"] for optimizer in optimizers for group in optimizer.param_groups)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            for optimizer in optimizers:
                optimizer.step()
    on_cpu, on_gpu = (flat(list(model.parameters())) for model in models)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-6)


def test_muon_is_pytorchs(device: torch.device) -> None:
    shapes = [(64, 192), (64, 192), (256, 64), (64, 64)]
    moved = []
    for make in (lambda weights: Muon(weights, lr=0.02), _their_muon):
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
        optimizer = make(weights)
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(device)
            optimizer.step()
        moved.append(flat(weights))
    ours, theirs = moved
    assert (ours - theirs).norm() / theirs.norm() < 0.05  # a bfloat16 product in another order differs by half of that


def _their_muon(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(weights, lr=0.02, momentum=0.95, weight_decay=0.0)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_takes_about_the_memory_that_the_formula_says(
    autocast: bool, checkpointed: bool, device: torch.device, say: Say
) -> None:
    sizes = {"vocab_size": 16_384, "context_length": 512, "d_model": 256, "n_layers": 8, "n_heads": 4}
    config = GPTConfig(**sizes, kernel="sdpa", checkpoint_activations=checkpointed)
    model = GPT(config).to(device)
    ids_BT = torch.randint(config.vocab_size, (8, 512), device=device)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast, cache_enabled=not checkpointed):
            _, loss = model(ids_BT, ids_BT)
        loss.backward()

    step()  # makes the gradients, and what cuBLAS works in
    memory = training_memory(config, 8, 512, autocast=autocast)
    expected, taken = memory.bfloat16_copies + memory.activations + memory.logits, peak_memory(step, device)
    say(f"a step takes {taken / 1e6:,.0f} MB, the formula says {expected / 1e6:,.0f} ({autocast=}, {checkpointed=})")
    assert taken == pytest.approx(expected, rel=0.1)


def make_trainer(data: Path, out: Path, **changes: Any) -> simple.Trainer:
    return simple.Trainer(*open_run(tiny(data, out, **{**BFLOAT16, **changes})))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "galore"])
def test_a_checkpoint_brings_back_all_that_the_next_step_depends_on(
    data: Path, tmp_path: Path, optimizer: str, say: Say
) -> None:
    """Weights, moments, what is read next, and the GPU's random numbers, all bit for bit.

    What comes after may differ in the last bits, where a fused kernel adds up in whatever order its threads end.
    """
    trainer = make_trainer(data, tmp_path / "run", optimizer=optimizer)
    for _ in range(4):
        trainer.step()
    trainer.save()
    weights, state = [flat(list(trainer.model.parameters())), trainer.state_dict()]
    moments = [flat(_tensors(saved)) for saved in state["optimizers"]]
    expected = [trainer.step() for _ in range(4)]
    drawn = torch.rand(4, device="cuda")

    other = make_trainer(data, tmp_path / "run", optimizer=optimizer)
    assert other.resume()
    assert torch.equal(flat(list(other.model.parameters())), weights)
    for saved, before in zip(other.state_dict()["optimizers"], moments, strict=True):
        assert torch.equal(flat(_tensors(saved)), before)
    assert all(map(torch.equal, other.state_dict()["cuda_rng"], state["cuda_rng"]))
    losses = [other.step() for _ in range(4)]
    assert losses == pytest.approx(expected, abs=2e-2)
    same = torch.equal(flat(list(other.model.parameters())), flat(list(trainer.model.parameters())))
    assert torch.equal(torch.rand(4, device="cuda"), drawn)  # as many numbers were drawn for dropout
    say(f"{optimizer}: four steps after resuming, weights are {'' if same else 'not '}bit for bit those without a stop")


def _tensors(optimizer_state: dict[str, Any]) -> list[Tensor]:
    entries = optimizer_state["state"]
    return [x for key in sorted(entries) for _, x in sorted(entries[key].items()) if isinstance(x, Tensor)]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[simple.Config, int], None]:
    """Have a run begin, and stop it after some steps."""
    step = simple.Trainer.step

    def run_until(config: simple.Config, last: int) -> None:
        def step_or_stop(trainer: simple.Trainer) -> float:
            if trainer.steps == last:
                raise KeyboardInterrupt
            return step(trainer)

        with monkeypatch.context() as patch:
            patch.setattr(simple.Trainer, "step", step_or_stop)
            with pytest.raises(KeyboardInterrupt):
                simple.main(config)

    return run_until


def test_a_whole_run_is_stopped_and_goes_on(data: Path, tmp_path: Path, interrupt: Callable[..., None]) -> None:
    """What is "auto" is decided for the GPU, the loss falls, and the weights can be loaded on a CPU."""
    settings = {"precision": "auto", "device": "auto", "steps": 60, "eval_every": 20, "checkpoint_every": 20}
    config = tiny(data, tmp_path / "run", **settings)
    interrupt(config, 30)
    assert simple.main(config)
    settled, _, _ = open_run(config)
    assert (settled.device, settled.precision) == ("cuda", "bfloat16")
    losses = [line["val_loss"] for line in read_metrics(tmp_path / "run") if "val_loss" in line]
    assert losses[-1] < losses[0] < math.log(512) + 0.1
    assert GPT.from_run(tmp_path / "run").token_embedding.weight.device.type == "cpu"


@pytest.mark.parametrize(("began", "goes_on"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_with_another_device(
    data: Path, tmp_path: Path, interrupt: Callable[..., None], began: str, goes_on: str
) -> None:
    config = tiny(data, tmp_path / "run", device=began, optimizer="adamw")
    interrupt(config, 6)
    assert simple.main(dataclasses.replace(config, device=goes_on))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [5, 10, 12]


@pytest.mark.parametrize("attention", ["mha", "swa"])
def test_compiled_steps_have_the_losses_of_plain_ones(data: Path, tmp_path: Path, attention: str) -> None:
    """In float32, so that the same means the same; windows are FlexAttention's there."""
    changes = {"precision": "float32", "dropout": 0.0, "attention": attention, "window_size": 64}
    changes |= {"context_length": 256, "d_model": 128, "n_heads": 2}
    losses = []
    for compiled in ("off", "on"):
        trainer = make_trainer(data, tmp_path / compiled, compile=compiled, **changes)
        losses.append([trainer.step() for _ in range(6)])
        assert math.isfinite(trainer.validation_loss())
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_micro_batches_add_up(data: Path, tmp_path: Path) -> None:
    losses = []
    for size in (None, 1):
        trainer = make_trainer(data, tmp_path / str(size), micro_batch_size=size, precision="float32", dropout=0.0)
        losses.append([trainer.step() for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)
