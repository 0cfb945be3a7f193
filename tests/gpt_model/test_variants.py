"""One GPT class, four kinds of attention, two kinds of position: with a cache it computes what it does without."""

from typing import Any

import pytest
import torch

from attention_mechanisms import Mask
from gpt_model import GPT, GPTConfig

CONTEXT, ROWS = 64, 3
KINDS: dict[str, dict[str, Any]] = {
    "mha": {"attention": "mha"},
    "gqa": {"attention": "gqa", "n_heads": 4, "n_kv_groups": 2},
    "mqa": {"attention": "gqa", "n_kv_groups": 1},
    "mla": {"attention": "mla", "latent_dim": 24, "rope_dim": 8},
    "mla-query": {"attention": "mla", "latent_dim": 24, "query_latent_dim": 16, "rope_dim": 8},
    "swa": {"attention": "swa", "window_size": 8},
    "swa-sinks": {"attention": "swa", "window_size": 8, "n_sinks": 3},
    "experts": {"n_experts": 4, "n_active_experts": 2},
}
everywhere = [
    pytest.mark.parametrize("position", ["learned", "rope"]),
    pytest.mark.parametrize("kind", KINDS),
]


def every_kind(test: Any) -> Any:
    for mark in everywhere:
        test = mark(test)
    return test


def model_of(kind: str, position: str, **overrides: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset("tiny", position=position, **KINDS[kind], **overrides)).eval()
    with torch.no_grad():  # an untrained model hardly attends: make it care
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ids(rows: int = ROWS, length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(512, (rows, length), generator=torch.Generator().manual_seed(1))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.5  # so that 1e-4 is little
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@every_kind
@pytest.mark.parametrize("chunks", [[40, *[1] * 24], [3, 30, 1, 17, 13], [1, 63]], ids=["tokens", "chunks", "long"])
def test_cached_logits_are_those_of_one_pass(kind: str, position: str, chunks: list[int]) -> None:
    """To the last position of the context; then an error, and the cache as it was."""
    model, ids_BT = model_of(kind, position), ids()
    cache = model.new_cache(ROWS)
    with torch.no_grad():
        logits = torch.cat([model(chunk, cache=cache)[0] for chunk in ids_BT.split(chunks, dim=1)], dim=1)
        close(logits, model(ids_BT)[0])
        with pytest.raises(ValueError, match="65 tokens are more than the context of 64"):
            model(ids_BT[:, :1], cache=cache)
    assert [layer.lengths for layer in cache.layers] == [[CONTEXT] * ROWS] * 2


@every_kind
def test_left_padding_changes_no_logit(kind: str, position: str) -> None:
    model, ids_BT, padding = model_of(kind, position), ids(length=30), (0, 7, 21)
    mask = Mask(left_padding=padding)
    with torch.no_grad():
        cache = model.new_cache(ROWS)
        chunks = [model(chunk, mask=mask, cache=cache)[0] for chunk in ids_BT.split([24, 1, 1, 4], dim=1)]
        for logits in (model(ids_BT, mask=mask)[0], torch.cat(chunks, dim=1)):
            for row, first in enumerate(padding):
                close(logits[row, first:], model(ids_BT[row : row + 1, first:])[0][0])


@every_kind
def test_rows_begin_and_end_on_their_own(kind: str, position: str) -> None:
    """As a server does it: a new prompt is read into a row that has become free, beside rows that go on."""
    model, ids_BT, new = model_of(kind, position), ids(length=40), ids(1, 25).flip(1)
    cache = model.new_cache(ROWS)
    with torch.no_grad():
        model(ids_BT[:, :20], cache=cache)
        cache.reset([1])
        first = model(new[:, :15], cache=cache.rows(1, 2))[0]
        fed = torch.cat([ids_BT[:1, 20:30], new[:, 15:25], ids_BT[2:, 20:30]])
        steps = torch.cat([model(chunk, cache=cache)[0] for chunk in fed.split([1] * 6 + [4], dim=1)], dim=1)
        close(torch.cat([first, steps[1:2]], dim=1), model(new)[0])
        close(steps[[0, 2]], model(ids_BT[[0, 2], :30])[0][:, 20:])
    assert cache.lengths == [30, 25, 30]


@every_kind
def test_bfloat16_errs_at_most_twice_as_much_with_a_cache(kind: str, position: str) -> None:
    model, ids_BT = model_of(kind, position).bfloat16(), ids()
    plain = model_of(kind, position, kernel="manual").bfloat16()
    cache = model.new_cache(ROWS)
    with torch.no_grad():
        cached = torch.cat([model(chunk, cache=cache)[0] for chunk in ids_BT.split([30, *[1] * 34], dim=1)], dim=1)
        rough = plain(ids_BT)[0]
        exact = plain.double()(ids_BT)[0]
    assert (cached - exact).norm() <= 2 * (rough - exact).norm()


@every_kind
def test_a_cache_of_the_model_takes_what_the_formula_says(kind: str, position: str) -> None:
    model = model_of(kind, position)
    config = model.config
    if config.attention == "mla":
        numbers = 40 * (config.latent_dim + (config.rope_dim if position == "rope" else 0))
    else:
        heads = config.n_kv_groups if config.attention == "gqa" else config.n_heads
        slots = config.window_size + config.n_sinks if config.attention == "swa" else 40
        numbers = 2 * heads * config.d_model // config.n_heads * slots
    assert model.new_cache(ROWS, 40).nbytes == ROWS * config.n_layers * numbers * 4
    assert model.bfloat16().new_cache(ROWS, 40).nbytes == ROWS * config.n_layers * numbers * 2


@every_kind
def test_every_parameter_learns(kind: str, position: str) -> None:
    model = model_of(kind, position).train()
    _, loss = model(ids()[:, :-1], ids()[:, 1:])
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or ".experts." in name, name  # one that no token visits has nothing to learn


@pytest.mark.parametrize("kind", ["swa", "swa-sinks"])
def test_with_rotations_a_window_may_go_past_the_context(kind: str) -> None:
    """A ring never fills; only the model's own limit stops it, unless positions are given."""
    model, ids_BT = model_of(kind, "rope"), ids(length=3 * CONTEXT)
    cache = model.new_cache(ROWS)
    positions = torch.arange(3 * CONTEXT)
    with torch.no_grad():
        parts = zip(ids_BT.split(50, dim=1), positions.split(50), strict=True)
        logits = torch.cat([model(part, positions=where, cache=cache)[0] for part, where in parts], dim=1)
        close(logits, model(ids_BT, positions=positions)[0])
