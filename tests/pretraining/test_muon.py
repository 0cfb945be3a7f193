"""Muon against a singular value decomposition, and which optimizer moves what."""

import pytest
import torch

from gpt_model import GPT, GPTConfig
from pretraining.optimizers import GaLore, Muon, make_optimizers, muon
from pretraining.optimizers.muon import orthogonalize


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (1, 16, 64)])
def test_orthogonalize_keeps_directions_and_levels_sizes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    levelled = orthogonalize(matrices, torch.float32)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    # in the matrix's own singular directions it is diagonal, and the diagonal is about 1
    core = u.mT @ levelled @ v.mT
    sizes = core.diagonal(dim1=-2, dim2=-1)
    assert (core - torch.diag_embed(sizes)).abs().max() < 1e-3
    assert (sizes[s / s.norm(dim=-1, keepdim=True) > 0.02] > 0.6).all()
    assert sizes.max() < 1.3


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 32, 64)
    exact, rough = orthogonalize(matrices, torch.float32), orthogonalize(matrices, torch.bfloat16)
    assert rough.dtype == torch.float32
    assert (exact - rough).norm() / exact.norm() < 0.05


def test_a_stack_is_its_matrices_one_by_one() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 8, 12)
    together = orthogonalize(matrices, torch.float32)
    for matrix, expected in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalize(matrix[None], torch.float32)[0], expected)


def test_a_step_is_momentum_levelled_and_decay() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 4))
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5, dtype=torch.float32)
    mean, expected = torch.zeros(8, 4), weight.detach().clone()
    for _ in range(3):
        gradient = torch.randn(8, 4)
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        update = orthogonalize((0.1 * gradient + 0.9 * mean)[None], torch.float32)[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 2**0.5 * update
        torch.testing.assert_close(weight.detach(), expected)


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    steps = []
    for scale in (1, 1e4):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(6, 6))
        weight.grad = scale * torch.randn(6, 6)
        Muon([weight], dtype=torch.float32).step()
        steps.append(weight.detach())
    torch.testing.assert_close(*steps)


def test_in_small_batches_it_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory a step takes must not grow with the number of layers."""
    gradients, steps = torch.randn(5, 6, 4), []
    for at_once in (10, 2 * 6 * 4, 1000):
        monkeypatch.setattr(muon, "NUMBERS_AT_ONCE", at_once)
        weights = [torch.nn.Parameter(torch.zeros(6, 4)) for _ in gradients]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        Muon(weights, dtype=torch.float32).step()
        steps.append(torch.stack([weight.detach() for weight in weights]))
    torch.testing.assert_close(steps[0], steps[2])
    torch.testing.assert_close(steps[1], steps[2])


def test_a_matrix_without_gradient_stays() -> None:
    weights = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    weights[0].grad = torch.randn(4, 4)
    Muon(weights).step()
    assert not torch.equal(weights[0], torch.ones(4, 4))
    assert torch.equal(weights[1], torch.ones(4, 4))


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"for matrices, got a parameter of shape \(4,\)"):
        Muon([torch.nn.Parameter(torch.ones(4))])


@pytest.mark.parametrize("name", ["muon", "adamw", "galore"])
def test_every_parameter_is_moved_once_and_only_matrices_decay(name: str) -> None:
    model = GPT(GPTConfig.preset("tiny"))
    optimizers = make_optimizers(model, name, lr=1e-3, matrix_lr=0.02, weight_decay=0.1, bfloat16=False)
    moved = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(moved) == len({id(p) for p in moved}) == len(list(model.parameters()))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            assert {p.ndim == 2 for p in group["params"]} == {group["weight_decay"] > 0}
    apart = {id(p) for o in optimizers if isinstance(o, Muon | GaLore) for g in o.param_groups for p in g["params"]}
    matrices = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
    assert apart == (set() if name == "adamw" else matrices)
