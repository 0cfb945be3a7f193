"""The comparison of sizes runs every kind of attention, rewinds to the same text, and counts as the formulas say."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_model import GPT, GPTConfig
from gpt_model.benchmark import sizes
from gpt_model.benchmark.sizes import Writer, measure_sizes, plot_sizes, random_models, sizes_table
from gpt_model.costs import cache_bytes, decoding_bytes, variants, weight_bytes
from gpt_model.fast.decoder import FastDecoder
from utils.figures import figure, save_svg
from utils.files import InputError

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent.parent.parent / "gpt_model" / "results" / "sizes.json"
PEAKS = {"flops_per_second": {"float32": 1e11, "bfloat16": 1e11}, "bytes_per_second": 1e10}
# small, but with room for a window of 512 and a latent of 128
KINDS = variants(GPTConfig(vocab_size=100, context_length=640, d_model=96, n_layers=2, n_heads=4))


@pytest.fixture(scope="module")
def models() -> dict[str, GPT]:
    return random_models(KINDS, torch.float32, CPU)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measure_sizes(["tiny", "demo"], [torch.float32, torch.bfloat16], 60, 2, 2, CPU, PEAKS)


def test_every_kind_is_there() -> None:
    assert list(KINDS) == ["MHA", "GQA, 2 groups", "MLA, R = 128", "SWA, W = 512"]


def test_weights_share_memory_between_models_and_not_within_one(models: dict[str, GPT]) -> None:
    memory = {weight.untyped_storage().data_ptr() for model in models.values() for weight in model.parameters()}
    assert len(memory) == 1
    for name, model in models.items():
        assert model.n_parameters == GPT(KINDS[name]).n_parameters
        weights = sorted(model.parameters(), key=lambda weight: weight.data_ptr())
        for weight, following in itertools.pairwise(weights):
            assert weight.data_ptr() + weight.nbytes <= following.data_ptr()
        assert 0.01 < torch.cat([weight.flatten() for weight in weights]).std() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_writes_what_the_model_does_in_one_chunk(kind: str, models: dict[str, GPT]) -> None:
    """And so does the fast decoder; and after it the cache is where it was, a ring's too."""
    model = models[kind]
    like = model.token_embedding.weight
    writer, fast = (Writer(runner, 600, 3, like) for runner in (model, FastDecoder(model, "float32")))
    first = writer()
    torch.testing.assert_close(fast(), first)
    again = writer()
    assert writer.cache.lengths == [600]
    if writer.cache.max_length is not None:  # a ring's oldest tokens are gone
        torch.testing.assert_close(again, first, rtol=0, atol=0)

    ids = [0]
    for _ in range(3):  # the greedy tokens, each by reading again all that was written
        chunk = Writer(model, 600, 3, like)
        logits, _ = model(torch.tensor([ids]), cache=chunk.cache, last_only=True)
        ids.append(int(logits.argmax()))
    torch.testing.assert_close(logits, first)


def test_all_is_measured_and_counted(measured: dict[str, Any]) -> None:
    rows = {(row["dtype"], row["size"], row["attention"]): row for row in measured["rows"]}
    expected = {"tiny": ["MHA", "GQA, 1 groups"], "demo": ["MHA", "GQA, 2 groups", "MLA, R = 256", "MLA, R = 128"]}
    assert list(rows) == [(d, s, name) for d in ("float32", "bfloat16") for s in expected for name in expected[s]]
    for (dtype, size, name), row in rows.items():
        config, kind = variants(GPTConfig.preset(size))[name], getattr(torch, dtype)
        model = GPT(config).to(kind)
        assert row["parameters"] == model.n_parameters
        assert row["weight_bytes"] == weight_bytes(config, kind)
        assert row["cache_bytes"] == model.new_cache(1, 60).nbytes
        assert row["tokens_per_second"]["n"] == 2
        reads = sum(decoding_bytes(config, 1, length, kind) for length in (59, 60))
        assert row["bytes_per_second"] * row["seconds"]["median"] == pytest.approx(reads)
        assert row["bytes_share"] == pytest.approx(row["bytes_per_second"] / 1e10)
    saved = [rows["bfloat16", "demo", name]["cache_saved"] for name in expected["demo"]]
    # beside the latent, rotary channels are cached: (256 + 32) and (128 + 32) numbers of 2 x 192
    assert saved == pytest.approx([0, 0.5, 1 - 288 / 384, 1 - 160 / 384])
    assert rows["float32", "demo", "MHA"]["times_mha"]["median"] == 1


def test_the_fast_decoder_is_measured_on_demand() -> None:
    result = measure_sizes(["tiny"], [torch.bfloat16], 20, 2, 1, CPU, PEAKS, fast=True)
    assert [row["attention"] for row in result["rows"]] == ["MHA", "GQA, 1 groups"]
    assert "through FastDecoder" in sizes_table(result)


def test_gpt2_medium_saves_what_the_literature_could_save() -> None:
    """One latent of R numbers against keys and values of 1,024 each."""
    kinds = variants(GPTConfig.preset("gpt2-medium"))
    whole = cache_bytes(kinds["MHA"], 1, 1024, torch.bfloat16)
    saved = {name: 1 - cache_bytes(kind, 1, 1024, torch.bfloat16) / whole for name, kind in kinds.items()}
    assert [saved[f"MLA, R = {r}"] for r in (1024, 512, 256, 128)] == [0.5, 0.75, 0.875, 0.9375]
    assert [saved[f"GQA, {g} groups"] for g in (8, 4, 2)] == [0.5, 0.75, 0.875]
    assert saved["SWA, W = 512"] == 0.5


def test_a_size_without_room_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda device: 1e6)
    result = measure_sizes(["tiny", "gpt2-xl"], [torch.bfloat16], 20, 2, 1, CPU, PEAKS)
    assert {row["size"] for row in result["rows"]} == {"tiny"}
    assert len(result["notes"]) == 1
    assert result["notes"][0].startswith("gpt2-xl in bfloat16 needs ")


@pytest.mark.parametrize(
    ("size", "context", "new_tokens", "message"),
    [
        ("gpt5", 20, 2, "there is no preset 'gpt5'; .*"),
        ("tiny", 65, 2, "tiny reads up to 64 tokens: 2 of 65 cannot be written"),
        ("tiny", 20, 20, "tiny reads up to 64 tokens: 20 of 20 cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_named(size: str, context: int, new_tokens: int, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        measure_sizes([size], [torch.float32], context, new_tokens, 1, CPU, PEAKS)


def test_results_are_shown(measured: dict[str, Any], tmp_path: Any) -> None:
    lines = sizes_table(measured).splitlines()
    assert len(lines) == 2 + 2 + len(measured["rows"])
    assert lines[-1].startswith("| demo | MLA, R = 128 | bfloat16 |")
    assert all(line.count("|") == lines[2].count("|") for line in lines[2:])
    with figure(2) as (drawing, axes):
        plot_sizes(axes, measured)
        save_svg(drawing, tmp_path / "sizes.svg")
        assert [axis.get_title() for axis in axes] == ["tiny", "demo"]
        assert math.isclose(axes[0].patches[0].get_width(), measured["rows"][0]["tokens_per_second"]["median"])


@pytest.mark.skipif(not RESULTS.exists(), reason="nothing has been measured yet")
def test_committed_results_are_complete_and_exact() -> None:
    stored = json.loads(RESULTS.read_bytes())
    assert not stored["quick"]
    assert stored["rows"]
    assert stored["notes"] == []
    rows = {(row["size"], row["dtype"], row["attention"]): row for row in stored["rows"]}
    for size, name in itertools.product(sizes.SIZES, {name for _, name, _ in rows}):
        for kind, config in variants(GPTConfig.preset(size)).items():
            row, dtype = rows.pop((size, name, kind)), getattr(torch, name)
            assert row["cache_bytes"] == cache_bytes(config, 1, stored["context"], dtype)
            assert row["weight_bytes"] == weight_bytes(config, dtype)
            assert row["bytes_share"] < 1.1  # a measured peak may be a little low
    assert not rows
