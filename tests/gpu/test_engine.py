"""The engine on the GPU: every precision learns, and a step does not make the program wait."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from gpt_model import GPT, GPTConfig
from pretraining.engine import Engine, NextToken, Settings, World
from pretraining.engine.engine import split_batch
from pretraining.optimizers import make_optimizers

ROWS, LENGTH, VOCABULARY = 16, 64, 512


def make_engine(device: torch.device, optimizer: str = "adamw", **settings: object) -> Engine:
    """An engine with a small model that has the vocabulary of tensor cores."""
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset("tiny", vocab_multiple=64)).to(device)

    def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
        return make_optimizers(model, optimizer, lr=3e-3, matrix_lr=0.02, weight_decay=0.1, bfloat16=True)

    return Engine(model, NextToken(), optimizers, Settings(**settings), World(device))


def batch() -> tuple[Tensor, Tensor]:
    """Rows that count upwards, in pinned memory: what comes next can be learned in a few steps."""
    ids_BT = (torch.arange(ROWS)[:, None] * 7 + torch.arange(LENGTH + 1)) % VOCABULARY
    return ids_BT[:, :-1].contiguous().pin_memory(), ids_BT[:, 1:].contiguous().pin_memory()


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_precision_learns(precision: str, compiled: bool, device: torch.device) -> None:
    engine = make_engine(device, precision=precision, compiled=compiled)
    infos = [engine.step(split_batch(batch(), 8), 1.0) for _ in range(40)]
    losses, _ = engine.read(infos)
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.3)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_does_not_wait(optimizer: str, device: torch.device, request: pytest.FixtureRequest) -> None:
    engine = make_engine(device, optimizer, precision="bfloat16")
    engine.step([batch()], 1.0)  # makes what the optimizer remembers
    cut = split_batch(batch(), 8)
    request.getfixturevalue("waiting_is_an_error")
    info = engine.step(cut, 1.0)
    torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(engine.read([info])[0][0])


def test_a_gradient_that_overflows_in_float16_is_skipped(device: torch.device) -> None:
    engine = make_engine(device, precision="float16")
    engine.loss_scale.value = 2.0**40
    before = engine.model.token_embedding.weight.clone()
    assert engine.step([batch()], 1.0).skipped
    assert torch.equal(engine.model.token_embedding.weight, before)
    assert engine.loss_scale.value == 2.0**39
