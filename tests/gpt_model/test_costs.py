"""Every formula of what a GPT costs, against the model: its parameters, what torch counts, what memory it takes."""

import functools
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gpt_model import GPT, GPTConfig, costs
from gpt_model.devices import find_device
from pretraining.optimizers import make_optimizers
from tests.alone import alone
from utils.files import InputError
from utils.peaks import peak_memory

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "mha": {"attention": "mha"},
    "gqa": {"attention": "gqa", "n_kv_groups": 2},
    "mqa": {"attention": "gqa", "n_kv_groups": 1},
    "mla": {"attention": "mla", "latent_dim": 12, "rope_dim": 4},
    "mla-query": {"attention": "mla", "latent_dim": 7, "query_latent_dim": 5, "rope_dim": 2, "latent_norm": False},
    "swa": {"attention": "swa", "window_size": 6},
    "swa-sinks": {"attention": "swa", "window_size": 4, "n_sinks": 2},
    "experts": {"n_experts": 3, "n_active_experts": 2},
    "padded": {"vocab_multiple": 64},
}
SMALL = {"vocab_size": 37, "context_length": 32, "d_model": 32, "n_layers": 2, "n_heads": 4, "kernel": "manual"}


def small(kind: str, **changes: Any) -> GPTConfig:
    return GPTConfig(**{**SMALL, **KINDS[kind], **changes})


@functools.cache
def on_meta(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def counted_flops(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def ids(config: GPTConfig, batch: int, length: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length))


# -- parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_the_model(kind: str, position: str, bias: bool) -> None:
    model = on_meta(config := small(kind, position=position, bias=bias))
    assert costs.n_parameters(config) == model.n_parameters
    found = dict.fromkeys(costs.parameters(config), 0)
    for name, parameter in model.named_parameters():
        words = {"token_emb": "token embedding", "position_emb": "position embedding", "norm.": "norms"}
        words |= {"attention.": "attention", "feed_forward.": "feed-forward"}  # their own norms are theirs
        found[next(part for word, part in reversed(words.items()) if word in name)] += parameter.numel()
    assert costs.parameters(config) == found


def test_gpt2_has_the_parameters_it_is_known_for() -> None:
    sizes = {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200}
    for size, expected in sizes.items():
        assert costs.n_parameters(GPTConfig.preset(f"gpt2-{size}")) == expected
        for name, config in costs.variants(GPTConfig.preset(f"gpt2-{size}", n_layers=2)).items():
            assert costs.n_parameters(config) == on_meta(config).n_parameters, name


def test_variants_are_those_that_fit() -> None:
    latents = [f"MLA, R = {r}" for r in (1024, 512, 256, 128)]
    for size, groups in {"small": (4, 2), "medium": (8, 4, 2), "large": (4, 2), "xl": (5,)}.items():
        names = list(costs.variants(GPTConfig.preset(f"gpt2-{size}")))
        assert names == ["MHA", *(f"GQA, {g} groups" for g in groups), *latents, "SWA, W = 512"]
    assert list(costs.variants(GPTConfig.preset("tiny"))) == ["MHA", "GQA, 1 groups"]
    assert list(costs.variants(GPTConfig.preset("tiny", n_heads=1))) == ["MHA"]


# -- operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    head_dim=st.sampled_from([2, 6]),
    position=st.sampled_from(["learned", "rope"]),
    last_only=st.booleans(),
)
def test_forward_flops_are_those_that_torch_counts(
    kind: str, batch: int, chunks: list[int], head_dim: int, position: str, last_only: bool
) -> None:
    """Of a prompt, and of what is read after it with a cache."""
    model = GPT(config := small(kind, d_model=4 * head_dim, position=position)).eval()
    cache, cached = model.new_cache(batch), 0
    for length in chunks:
        new = ids(config, batch, length)
        with torch.no_grad():
            counted = counted_flops(lambda new=new: model(new, cache=cache, last_only=last_only))
        assert counted == costs.forward_flops(config, batch, length, cached=cached, last_only=last_only)
        cached += length


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_flops_are_those_that_torch_counts(kind: str, position: str, checkpointed: bool) -> None:
    for batch, length in ((1, 1), (2, 9), (3, 16)):
        model = GPT(config := small(kind, position=position, checkpoint_activations=checkpointed))
        new = ids(config, batch, length)
        counted = counted_flops(lambda model=model, new=new: model(new, new)[1].backward())
        assert counted == costs.training_flops(config, batch, length), (batch, length)


@pytest.mark.parametrize("size", ["small", "medium", "large", "xl"])
def test_flops_of_gpt2_are_those_that_torch_counts(size: str) -> None:
    """Two layers of them, without memory, on the meta device."""
    for name, config in costs.variants(GPTConfig.preset(f"gpt2-{size}", n_layers=2, kernel="manual")).items():
        model, new = on_meta(config), torch.zeros(1, 1024, dtype=torch.long, device="meta")
        counted = counted_flops(lambda model=model, new=new: model(new, new)[1].backward())
        assert counted == costs.training_flops(config, 1, 1024), name


def test_the_usual_rule_of_thumb_is_within_half_a_percent() -> None:
    """6 N + 12 L C T a token, N without positions: PaLM, appendix B."""
    for size in ("small", "medium", "large", "xl"):
        config = GPTConfig.preset(f"gpt2-{size}")
        rule = 6 * (costs.n_parameters(config) - 1024 * config.d_model) + 12 * config.n_layers * config.d_model * 1024
        assert costs.training_flops(config, 1, 1024) / 1024 == pytest.approx(rule, rel=0.005)


def test_utilisation_counts_what_is_computed_twice_once() -> None:
    config = GPTConfig.preset("gpt2-small")
    a_token = costs.training_flops(config, 1, 1024) / 1024
    assert costs.mfu(config, 1000.0, 2000 * a_token) == pytest.approx(0.5)
    assert costs.mfu(replace(config, checkpoint_activations=True), 1000.0, 2000 * a_token) == pytest.approx(0.5)
    assert costs.mfu(config, 1000.0, 2000 * a_token, 64) < 0.5  # shorter rows have fewer scores
    # nanoGPT's 12 x 1024 on an A100: 91,000 tokens a second are said to be a quarter of what it can do
    assert costs.mfu(config, 91_000, find_device("a100").flops_per_second) == pytest.approx(0.25, abs=0.01)


# -- a cache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 4), length=st.integers(1, 40), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_cache_takes_what_the_formula_says(
    kind: str, position: str, batch: int, length: int, dtype: torch.dtype
) -> None:
    nbytes = on_meta(config := small(kind, position=position)).to(dtype).new_cache(batch, length).nbytes
    assert costs.cache_bytes(config, batch, length, dtype) == nbytes
    slots = config.window_size + config.n_sinks if config.attention == "swa" else length
    assert costs.cache_bytes_per_token(config, dtype) * batch * slots == nbytes


def test_a_step_reads_all_weights_but_positions_and_all_that_is_cached() -> None:
    config = small("mha")
    model = GPT(config).bfloat16()
    table = model.position_embedding.weight.nbytes
    weights = sum(weight.nbytes for weight in model.parameters()) - table
    assert costs.weight_bytes(config, torch.bfloat16) == weights + table
    assert costs.decoding_bytes(config, 3, 20, torch.bfloat16) == weights + model.new_cache(3, 20).nbytes
    window = small("swa-sinks")
    ring = on_meta(window).float().new_cache(1, 1).nbytes
    beyond = costs.decoding_bytes(window, 1, 30, torch.float32) - costs.decoding_bytes(window, 1, 0, torch.float32)
    assert beyond == ring


def test_a_step_reads_only_the_experts_that_are_asked() -> None:
    config = replace(small("experts"), n_experts=8, n_active_experts=2)
    expert, weights = 8 * 32 * 32 * 4, costs.weight_bytes(config, torch.float32) - 32 * 32 * 4
    for batch, asked in ((1, 2), (3, 6), (4, 8), (9, 8)):
        assert costs.decoding_bytes(config, batch, 0, torch.float32) == weights - 2 * (8 - asked) * expert


# -- memory of training ------------------------------------------------------------------------------------


def saved_for_backward(config: GPTConfig, batch: int, length: int, autocast: bool) -> tuple[int, int]:
    """What autograd keeps of a forward pass: activations, and autocast's copies of weights."""
    torch.manual_seed(0)  # decides which experts are asked
    model = GPT(config)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    rounded = [weight.detach().bfloat16() for weight in model.parameters()]
    rounded += [weight.T for weight in rounded if weight.ndim == 2]
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()  # with its graph, which holds this function, it would never be freed
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other gets its address
        return tensor

    new, targets = ids(config, batch, length), ids(config, batch, length)
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _graph = model(new, targets)  # must live, or what it holds is freed
    # by what they hold: an expert may well be asked for as many tokens as a matrix has rows
    copies = [t for t in kept.values() if any(torch.equal(t, weight) for weight in rounded)]
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return total - (half := sum(copy.nbytes for copy in copies)), half


MEMORY_KINDS: dict[str, tuple[dict[str, Any], float]] = {  # and how far off the formula may be
    "mha": ({}, 0.005),
    "gqa": ({"attention": "gqa", "n_kv_groups": 2}, 0.005),
    "mla": ({"attention": "mla", "latent_dim": 48}, 0.06),  # the CPU's RMSNorm keeps one more latent
    "mha-rope": ({"position": "rope"}, 0.08),  # and copies of what was rotated
    "mla-rope": ({"attention": "mla", "latent_dim": 48, "position": "rope", "rope_dim": 16}, 0.06),
    "swa": ({"attention": "swa", "window_size": 32}, 0.25),  # blocks of queries, and of what they find
    "experts": ({"n_experts": 4}, 0.01),  # who goes where
    "checkpointed": ({"checkpoint_activations": True}, 0.005),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kernel", ["sdpa", "manual"])
@pytest.mark.parametrize("kind", MEMORY_KINDS)
def test_activations_are_what_autograd_keeps(kind: str, kernel: str, autocast: bool) -> None:
    changes, tolerance = MEMORY_KINDS[kind]
    shape = {"vocab_size": 401, "context_length": 256, "d_model": 128, "n_layers": 3, "n_heads": 4}
    config = GPTConfig(**shape, kernel=kernel, **changes)
    kept, half = saved_for_backward(config, 3, 256, autocast)
    assert costs.activation_bytes(config, 3, 256, autocast=autocast) == pytest.approx(kept, rel=tolerance)
    if not config.checkpoint_activations:
        assert costs.training_memory(config, 3, 256, autocast=autocast).bfloat16_copies == half


WIDE = {"vocab_size": 12_288, "context_length": 256, "d_model": 128, "n_layers": 8, "n_heads": 4, "kernel": "sdpa"}
# with so many matrices that keeping their copies would show
DEEP = {**WIDE, "vocab_size": 4096, "d_model": 256, "n_layers": 16, "checkpoint_activations": True}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process has had at most")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [WIDE, DEEP], ids=["wide", "deep-checkpointed"])
def test_a_training_step_takes_about_what_the_formula_says(shape: dict[str, Any], autocast: bool) -> None:
    config = GPTConfig(**shape)
    memory = costs.training_memory(config, 2, 256, autocast=autocast)
    expected = memory.bfloat16_copies + memory.activations + memory.logits
    assert alone(peak_of_a_step, config, autocast) == pytest.approx(expected, rel=0.1)


def peak_of_a_step(config: GPTConfig, autocast: bool) -> int | None:
    """Bytes that a second training step takes at most; gradients are there from the first."""
    torch.set_num_threads(1)
    model, new = GPT(config), ids(config, 2, 256)

    def step() -> None:
        copies = {"enabled": autocast, "cache_enabled": not config.checkpoint_activations}  # as the trainer has it
        with torch.autocast("cpu", torch.bfloat16, **copies):
            _logits, loss = model(new, new)
        loss.backward()

    step()
    return peak_memory(step, CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "galore"])
def test_weights_gradients_and_optimizer_take_what_the_formula_says(optimizer: Any, kind: str) -> None:
    model = GPT(config := small(kind))
    settings = {"lr": 1e-3, "matrix_lr": 1e-3, "weight_decay": 0.0, "bfloat16": False}
    optimizers = make_optimizers(model, optimizer, **settings)
    new = ids(config, 8, 32)  # so many that every expert is asked
    model(new, new)[1].backward()
    memory = costs.training_memory(config, 8, 32, optimizer=optimizer)
    assert memory.weights == sum(weight.nbytes for weight in model.parameters())
    assert memory.gradients == sum(weight.grad.nbytes for weight in model.parameters())
    state = 0
    for one in optimizers:
        one.step()
        moments = (tensor for entry in one.state.values() for tensor in entry.values())
        state += sum(tensor.nbytes for tensor in moments if tensor.dim())  # counters of steps have no dimension
    assert memory.optimizer == state


# -- devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA GeForce RTX 4090", 165),
        ("rtx4090", 165),
        ("h100", 989),
    ],
)
def test_devices_are_known_by_the_names_torch_gives_them(name: str, tera: float) -> None:
    assert find_device(name).flops_per_second == tera * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA GH200 480GB", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 NVL", "", "cpu"]
)
def test_a_device_that_only_sounds_alike_is_not_known(name: str) -> None:
    with pytest.raises(InputError, match=f"^the peaks of '{name}' are not known; those of A100, .*RTX 4090 are$"):
        find_device(name)
