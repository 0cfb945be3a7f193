"""From multi-head attention to smaller caches, against numpy's singular values and models known to lose nothing."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt_model import GPT, GPTConfig, TextGenerator, convert
from gpt_model.run_directory import load_tokenizer
from gpt_model.smaller_cache import LayerReport, describe, to_gqa, to_mla
from tests.commands import run
from utils.files import InputError
from working_with_text_data.minbpe import GPT2Tokenizer

ROOT = Path(__file__).parent.parent.parent
C, H, L = 48, 6, 2
D = C // H


def model_of(**changes: Any) -> GPT:
    """A small model in float64 with large weights, biases and norms: nothing hides at zero."""
    torch.manual_seed(0)
    config = GPTConfig.preset("tiny", d_model=C, n_heads=H, n_layers=L)
    model = GPT(replace(config, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ids(rows: int = 2, length: int = 30) -> Tensor:
    return torch.randint(512, (rows, length), generator=torch.Generator().manual_seed(1))


def assert_same_logits(found: GPT, expected: GPT) -> None:
    with torch.no_grad():
        wanted = expected(ids())[0]
        assert wanted.std() > 0.5
        torch.testing.assert_close(found(ids())[0], wanted, rtol=0, atol=1e-10)


def keys_and_values(model: GPT, layer: int) -> Tensor:
    """The projection to keys, then values, of a multi-head layer or a converted one, (2C, C)."""
    attention = model.blocks[layer].attention
    if model.config.attention == "mha":
        return attention.qkv.weight[C:].detach()
    if model.config.attention == "gqa":
        pair = [getattr(attention, name).weight.detach().view(-1, 1, D, C) for name in ("key", "value")]
        return torch.cat([x.expand(-1, H // len(x), -1, -1).reshape(C, C) for x in pair])
    up_H2DR = attention.up.weight.detach().view(H, 2, D, -1)
    return torch.cat([up_H2DR[:, i].reshape(C, -1) @ attention.down.weight.detach() for i in range(2)])


def relative_error(converted: GPT, model: GPT, layer: int) -> float:
    whole = keys_and_values(model, layer)
    return float((keys_and_values(converted, layer) - whole).norm() / whole.norm())


def lower_rank(model: GPT, ranks: tuple[int, ...]) -> GPT:
    """Give the key/value projections of each layer a rank."""
    with torch.no_grad():
        for block, rank in zip(model.blocks, ranks, strict=True):
            left, right = (torch.randn(shape, dtype=torch.float64) for shape in ((2 * C, rank), (rank, C)))
            block.attention.qkv.weight[C:] = left @ right / C
    return model


def copy_heads(model: GPT, n_groups: int) -> GPT:
    """Give the heads of a group the same keys and values, the same biases included."""
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.attention.qkv.parameters():
                for heads in parameter.chunk(3)[1:]:
                    of_group = heads.unflatten(0, (n_groups, H // n_groups, D))
                    of_group.copy_(of_group[:, :1].clone().expand_as(of_group))
    return model


everywhere = pytest.mark.parametrize(
    "changes", [{}, {"bias": False}, {"n_experts": 2}], ids=["plain", "no-bias", "moe"]
)


@everywhere
def test_gqa_with_a_group_for_each_head_is_the_same_model(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    converted, report = to_gqa(model, H)
    assert_same_logits(converted, model)
    assert [layer.error for layer in report] == [0] * L


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("n_groups", [1, 2, 3])
def test_gqa_loses_nothing_where_the_heads_of_a_group_are_alike(n_groups: int, position: str) -> None:
    model = copy_heads(model_of(position=position), n_groups)
    converted, report = to_gqa(model, n_groups)
    assert_same_logits(converted, model)
    assert max(layer.error for layer in report) < 1e-14
    assert max(layer.error for layer in to_gqa(model, 1)[1]) > 0.1 or n_groups == 1


def test_gqa_has_the_mean_of_the_heads_of_a_group() -> None:
    model = model_of()
    attention = to_gqa(model, 2)[0].blocks[1].attention
    heads = model.blocks[1].attention.qkv.weight.detach().view(3, H, D, C)
    for i, name in ((1, "key"), (2, "value")):
        for group in range(2):
            mean = sum(heads[i, 3 * group + n] for n in range(3)) / 3
            torch.testing.assert_close(getattr(attention, name).weight[group * D : (group + 1) * D], mean)


def test_gqa_loses_nothing_of_the_biases() -> None:
    """With learned positions: the weights of a group's heads are alike, their biases are not."""
    model = copy_heads(model_of(), 2)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.bias.normal_()
    assert_same_logits(to_gqa(model, 2)[0], model)


@everywhere
def test_mla_with_a_full_latent_is_the_same_model(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    converted, report = to_mla(model, C)
    assert_same_logits(converted, model)
    assert [layer.error for layer in report] == [0] * L
    assert [(layer.bytes_before, layer.bytes_after) for layer in report] == [(2 * C * 8, C * 8)] * L


@pytest.mark.parametrize("ranks", [(5, 20), (13, 13)])
def test_a_projection_of_low_rank_is_kept_whole_by_a_latent_of_that_size(ranks: tuple[int, int]) -> None:
    model = lower_rank(model_of(), ranks)
    assert_same_logits(to_mla(model, max(ranks))[0], model)
    converted, report = to_mla(model, tolerated_error=1e-6)
    assert [layer.size for layer in report] == list(ranks)
    assert_same_logits(converted, model)
    assert to_mla(model, max(ranks) - 1)[1][1].error > 0.01


@pytest.mark.parametrize("latent_dim", [1, 7, 24, 47])
def test_the_error_of_mla_is_the_tail_of_the_singular_values(latent_dim: int) -> None:
    """Eckart and Young: no projection of that rank is nearer."""
    model = model_of()
    converted, report = to_mla(model, latent_dim)
    for layer in range(L):
        singular = np.linalg.svd(keys_and_values(model, layer).numpy(), compute_uv=False)
        expected = np.sqrt((singular[latent_dim:] ** 2).sum() / (singular**2).sum())
        assert report[layer].error == pytest.approx(expected, rel=1e-9)
        assert relative_error(converted, model, layer) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n_groups", [1, 2, 3])
def test_the_error_of_gqa_is_what_its_weights_say(n_groups: int) -> None:
    model = model_of()
    converted, report = to_gqa(model, n_groups)
    for layer in range(L):
        assert report[layer].error == pytest.approx(relative_error(converted, model, layer), rel=1e-9)


def test_the_error_falls_as_the_cache_grows() -> None:
    model = model_of()
    for errors in (
        [to_mla(model, R)[1][0].error for R in range(1, C + 1)],
        [to_gqa(model, G)[1][0].error for G in (1, 2, 3, 6)],
    ):
        assert all(more > less for more, less in pairwise(errors))
    # at the same cache, of R = 2GD numbers, a latent is nearer to the weights than groups of heads
    assert all(to_mla(model, 2 * G * D)[1][0].error < to_gqa(model, G)[1][0].error for G in (1, 2))


@settings(max_examples=20, deadline=None)
@given(tolerated=st.floats(0, 0.99))
def test_a_tolerated_error_is_respected_with_the_fewest_numbers(tolerated: float) -> None:
    model = lower_rank(model_of(), (40, 9))
    converted, report = to_mla(model, tolerated_error=tolerated)
    for layer, (attention, said) in enumerate(zip((b.attention for b in converted.blocks), report, strict=True)):
        assert attention.latent_dim == said.size
        assert said.error <= tolerated
        assert said.size == 1 or to_mla(model, said.size - 1)[1][layer].error > tolerated
    assert converted.config.latent_dim == max(layer.size for layer in report)


@pytest.mark.parametrize(
    "convert_it",
    [lambda m: to_gqa(m, 2), lambda m: to_mla(m, 20), lambda m: to_mla(m, tolerated_error=0.2)],
    ids=["gqa", "mla", "mla-by-error"],
)
def test_a_converted_model_has_a_cache_that_works_and_is_as_small_as_reported(convert_it: Any) -> None:
    model = lower_rank(model_of(), (40, 9))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    converted, report = convert_it(model)
    cache = converted.new_cache(2, 30)
    with torch.no_grad():
        whole = converted(ids())[0]
        cached = torch.cat([converted(part, cache=cache)[0] for part in ids().split([9, *[1] * 21], dim=1)], dim=1)
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-10)
    assert [layer.nbytes for layer in cache.layers] == [60 * layer.bytes_after for layer in report]
    assert model.new_cache(2, 30).nbytes == 60 * sum(layer.bytes_before for layer in report)
    # the model it was made of is as it was, and shares no memory with it
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(1)
    assert model.config.attention == "mha"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_converted_model_is_where_training_goes_on() -> None:
    model = model_of().float().bfloat16().train()
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    for converted in (to_gqa(model, 2)[0], to_mla(model, 16)[0]):
        assert all(module.training for module in converted.modules())
        assert {parameter.dtype for parameter in converted.parameters()} == {torch.bfloat16}
        converted(ids(), ids())[1].backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in converted.parameters())
    assert torch.equal(torch.randn(3), expected)  # no random number was drawn


@pytest.mark.parametrize(
    ("changes", "convert_it", "message"),
    [
        ({"attention": "gqa", "n_kv_groups": 2}, lambda m: to_mla(m, 8), "attention must be 'mha' .* got 'gqa'"),
        ({"attention": "swa"}, lambda m: to_gqa(m, 2), "attention must be 'mha' to make gqa of a model, got 'swa'"),
        ({"position": "rope"}, lambda m: to_mla(m, 8), "position must be 'learned' to make mla .* got 'rope'"),
        ({}, lambda m: to_gqa(m, 4), "n_kv_groups must divide n_heads, got 4 groups for 6 heads"),
        ({}, lambda m: to_mla(m, 49), "latent_dim must be from 1 to d_model, 48, got 49"),
        ({}, lambda m: to_mla(m, 0), "latent_dim must be from 1 to d_model, 48, got 0"),
        ({}, lambda m: to_mla(m, tolerated_error=1.0), "tolerated_error must be at least 0 and below 1, got 1.0"),
        ({}, lambda m: to_mla(m, tolerated_error=float("nan")), "tolerated_error must be .* got nan"),
        ({}, lambda m: to_mla(m), "give latent_dim or tolerated_error, one of them, got None and None"),
        ({}, lambda m: to_mla(m, 8, 0.1), "give latent_dim or tolerated_error, one of them, got 8 and 0.1"),
    ],
)
def test_what_cannot_be_converted_is_refused(changes: dict[str, Any], convert_it: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        convert_it(model_of(**changes))


def test_the_report_reads_as_a_table() -> None:
    report = [LayerReport(40, 0.25, 1536, 640), LayerReport(9, 0.001, 1536, 144)]
    assert [" ".join(line.split()) for line in describe(report).splitlines()] == [
        "layer size error bytes of cache per token",
        "0 40 25.00% 1,536 -> 640",
        "1 9 0.10% 1,536 -> 144",
        "sum 3,072 -> 784",
    ]


def test_the_script_writes_a_run_that_others_read(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mla"
    result = run("gpt_model.convert", "--run", finished_run, "--out", out, "--latent-dim", "32")
    assert result.returncode == 0, result.stderr
    assert "512 -> 256" in result.stderr  # the sum of two layers
    training = json.loads((out / "config.json").read_text())["training"]
    assert training == {"converted_from": str(finished_run), "latent_dim": 32}
    original, found = GPT.from_run(finished_run), GPT.from_run(out)
    with torch.no_grad():  # the latent is as wide as the model: nothing is lost
        torch.testing.assert_close(found(ids())[0], original(ids())[0], rtol=0, atol=1e-4)
    tokenizer = load_tokenizer(out)
    texts = [TextGenerator(m, tokenizer).generate("It is", temperature=0, max_new_tokens=8) for m in (original, found)]
    assert texts[0] == texts[1]


def test_a_run_has_the_latent_that_the_most_demanding_layer_needs(finished_run: Path, tmp_path: Path) -> None:
    sizes = [layer.size for layer in to_mla(GPT.from_run(finished_run), tolerated_error=0.3)[1]]
    convert.main(convert.Config(run=finished_run, out=tmp_path / "mla", tolerated_error=0.3))
    found = GPT.from_run(tmp_path / "mla")
    assert found.config.latent_dim == max(sizes)
    assert {block.attention.latent_dim for block in found.blocks} == {max(sizes)}


def test_a_pretrained_model_is_converted_too(tmp_path: Path) -> None:
    model = GPT(GPTConfig(context_length=8, d_model=8, n_layers=1, n_heads=2))
    model.export_to_hf(tmp_path / "theirs", GPT2Tokenizer())
    convert.main(convert.Config(pretrained=str(tmp_path / "theirs"), out=tmp_path / "gqa", n_kv_groups=1))
    assert GPT.from_run(tmp_path / "gqa").config == replace(model.config, attention="gqa", n_kv_groups=1)
    assert load_tokenizer(tmp_path / "gqa").vocab_size == 50_257


def test_a_folder_that_another_process_writes_is_left_to_it(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hold = "import sys, pathlib, utils.locks\nwith utils.locks.alone(pathlib.Path(sys.argv[1]), ''): print(); input()"
    command = [sys.executable, "-c", hold, out]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "\n"
        with pytest.raises(InputError, match=f"another process is writing {out}"):
            convert.main(convert.Config(run=finished_run, out=out, latent_dim=8))
        other.communicate("\n")
    assert not list(tmp_path.iterdir())


def test_a_script_that_is_not_told_what_to_do_or_where_says_so(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wishes in ({}, {"latent_dim": 8, "n_kv_groups": 1}):
        with pytest.raises(InputError, match=f"give one of --n-kv-groups, .* got {len(wishes)} of them"):
            convert.main(convert.Config(run=finished_run, out=out, **wishes))
    for models in ({}, {"run": finished_run, "pretrained": "gpt2"}):
        with pytest.raises(InputError, match="say which model: a run directory"):
            convert.main(convert.Config(out=out, latent_dim=8, **models))
    assert not out.exists()
    before = {path.name: path.read_bytes() for path in finished_run.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=f"{finished_run} is there already: choose another --out"):
        convert.main(convert.Config(run=finished_run, out=finished_run, latent_dim=8))
    assert {path.name: path.read_bytes() for path in finished_run.iterdir() if path.is_file()} == before
