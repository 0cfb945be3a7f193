"""LoRA against peft on the same weights, its files, and whether the rest of the house can use an adapted model."""

import copy
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetuning.lora import (
    LoRALinear,
    adapted_layers,
    add_lora,
    fingerprint,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
    without_lora,
)
from gpt_model import GPT, GPTConfig
from pretraining.checkpoint import load_checkpoint, save_checkpoint
from pretraining.engine import Engine, NextToken, Settings, World
from pretraining.optimizers import make_optimizers
from utils.files import InputError

IDS = torch.arange(24).view(2, 12) % 20


def small_gpt(seed: int = 0, **changes: object) -> GPT:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 20, "context_length": 12, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_groups": 1}
    return GPT(GPTConfig(**{**sizes, **changes})).eval()


def trained(model: nn.Module) -> nn.Module:
    """The model with adapters that do something."""
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.B.normal_(std=0.3)
    return model


def adapted_gpt(pattern: str = "qkv|expand", rank: int = 3, alpha: float = 6.0, **changes: object) -> GPT:
    model = small_gpt(**changes)
    torch.manual_seed(1)
    add_lora(model, pattern, rank, alpha)
    return trained(model)


@pytest.mark.parametrize(("pattern", "modules"), [("qkv|expand", ["qkv", "expand"]), ("", ["qkv", "out", "expand"])])
def test_computes_and_learns_what_peft_does(pattern: str, modules: list[str]) -> None:
    ours = adapted_gpt(pattern)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=modules)
    theirs = inject_adapter_in_model(config, small_gpt())
    with torch.no_grad():
        for name, layer in adapted_layers(ours).items():
            peer = theirs.get_submodule(name)
            peer.lora_A["default"].weight.copy_(layer.A)
            peer.lora_B["default"].weight.copy_(layer.B)
    losses = [model.loss_sum(IDS, IDS) for model in (ours, theirs)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    assert sum(p.requires_grad for p in ours.parameters()) == sum(p.requires_grad for p in theirs.parameters())
    adapted = adapted_layers(ours)
    for name, layer in adapted.items():
        peer = theirs.get_submodule(name)
        torch.testing.assert_close(layer.A.grad, peer.lora_A["default"].weight.grad)
        torch.testing.assert_close(layer.B.grad, peer.lora_B["default"].weight.grad)
        peer.merge()
    merge(ours)
    for name in adapted:
        torch.testing.assert_close(ours.get_submodule(name).weight, theirs.get_submodule(name).base_layer.weight)


def test_begins_as_the_model_it_was() -> None:
    model = small_gpt()
    before, _ = model(IDS)
    add_lora(model, "", rank=2, alpha=4)
    assert torch.equal(model(IDS)[0], before)


def test_trains_adapters_only() -> None:
    model = adapted_gpt("attention.qkv", rank=2)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"blocks.{block}.attention.qkv.{part}" for block in (0, 1) for part in "AB"}


@pytest.mark.parametrize("attention", ["mha", "gqa", "mla", "swa"])
def test_merged_is_a_plain_model_that_computes_the_same(attention: str) -> None:
    model = adapted_gpt("", rank=2, attention=attention, latent_dim=8, position="rope").double()
    before, _ = model(IDS)
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = merge(model)
    plain = small_gpt(attention=attention, latent_dim=8, position="rope").double()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(IDS)[0], before)
    unmerge(model, adapted)
    assert model.state_dict().keys() == bits.keys()
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())


def test_absorbed_latent_attention_sees_the_adapter() -> None:
    """It reads the weight of a layer without calling it."""
    model = adapted_gpt("up", rank=2, attention="mla", latent_dim=8)
    logits = []
    for form in ("naive", "absorbed"):
        for block in model.blocks:
            block.attention.form = form
        logits.append(model(IDS)[0])
    torch.testing.assert_close(*logits)


def test_the_model_without_its_adapters_is_the_old_one() -> None:
    model = adapted_gpt()
    with without_lora(model):
        assert torch.equal(model(IDS)[0], small_gpt()(IDS)[0])
    assert not torch.equal(model(IDS)[0], small_gpt()(IDS)[0])


def test_an_adapter_travels_in_a_file(tmp_path: Path) -> None:
    model = adapted_gpt()
    save_adapter(model, tmp_path / "adapter.safetensors")
    other = small_gpt()
    load_adapter(other, tmp_path / "adapter.safetensors")
    assert torch.equal(other(IDS)[0], model(IDS)[0])
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
    n_numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (tmp_path / "adapter.safetensors").stat().st_size < 4 * n_numbers + 2000


def test_what_was_unfrozen_travels_too(tmp_path: Path) -> None:
    """A classifier's head is trained beside the adapters, and begins as another one each time."""

    def classifier() -> nn.Sequential:
        return nn.Sequential(copy.deepcopy(body), nn.Linear(4, 2))

    body = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4))
    model = classifier()
    add_lora(model, r"^0\.", rank=2, alpha=2)
    model[1].requires_grad_(True)
    save_adapter(trained(model), tmp_path / "adapter.safetensors")
    other = classifier()
    load_adapter(other, tmp_path / "adapter.safetensors")
    x = torch.randn(4, 3)
    assert torch.equal(other(x), model(x))


def test_an_adapter_refuses_another_base(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(adapted_gpt(), path)
    for other in (small_gpt(seed=5), small_gpt(d_model=32), small_gpt(n_layers=1), nn.Sequential(nn.Linear(2, 2))):
        before = other.state_dict()
        with pytest.raises(InputError, match=rf"{re.escape(str(path))} is an adapter for another model"):
            load_adapter(other, path)
        assert other.state_dict().keys() == before.keys()


def test_the_fingerprint_is_the_bases() -> None:
    model = small_gpt()
    assert fingerprint(model) == fingerprint(adapted_gpt()) != fingerprint(small_gpt(seed=5))
    with torch.no_grad():
        model.final_norm.bias[3] += 1e-6
    assert fingerprint(model) != fingerprint(small_gpt())


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> None:
    known = {"format": "lora", "base": "0", "rank": "3", "alpha": "6.0"}
    save_file(tensors or load_file(path), path, metadata={**known, **metadata})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"x" * 100), "is damaged"),
        (lambda path: path.unlink(), "there are no weights"),
        (lambda path: rewrite(path, format="pt"), "is not an adapter"),
        (lambda path: rewrite(path, rank="many"), "is damaged: its metadata"),
        (lambda path: rewrite(path, alpha="nan"), "alpha must be finite"),
        (lambda path: rewrite(path, rank="4"), "another model"),
        (lambda path: rewrite(path, {"blocks.0.attention.qkv.A": torch.zeros(3, 16)}), "another model"),
        (lambda path: rewrite(path, {"blocks.0.attention.qkv.A": torch.full((3, 16), torch.nan)}), "NaN"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, spoil: object, message: str) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(adapted_gpt(), path)
    spoil(path)
    model = small_gpt()
    with pytest.raises(InputError, match=message) as error:
        load_adapter(model, path)
    assert "\n" not in str(error.value)
    assert not adapted_layers(model)


@pytest.mark.parametrize(
    ("pattern", "rank", "message"),
    [
        ("query", 2, "no linear layer's name has the pattern 'query': there are expand, out, qkv"),
        ("(", 2, "not a regular expression"),
        ("qkv", 17, "at most 16, the smaller side of blocks.0.attention.qkv, got 17"),
        ("qkv", 0, "at least 1"),
    ],
)
def test_what_cannot_be_adapted(pattern: str, rank: int, message: str) -> None:
    model = small_gpt()
    with pytest.raises(InputError, match=message):
        add_lora(model, pattern, rank, alpha=1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


def test_adapters_are_not_put_upon_adapters() -> None:
    with pytest.raises(InputError, match="has adapters already"):
        add_lora(adapted_gpt(), "", rank=1, alpha=1)
    with pytest.raises(InputError, match="no adapters to save"):
        save_adapter(small_gpt(), Path("nowhere.safetensors"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_engine_trains_and_a_checkpoint_keeps_an_adapted_model(tmp_path: Path, optimizer: str) -> None:
    model = adapted_gpt()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
        return make_optimizers(model, optimizer, lr=0.01, matrix_lr=0.01, weight_decay=0.1, bfloat16=False)

    engine = Engine(model, NextToken(), optimizers, Settings(), World(torch.device("cpu")))
    engine.step([(IDS[:, :-1], IDS[:, 1:])], 1.0)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    remembered = [id(p) for made in engine.optimizers for group in made.param_groups for p in group["params"]]
    assert sorted(remembered) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    save_checkpoint(tmp_path, 1, model.state_dict(), {})
    other = adapted_gpt(seed=3)
    assert load_checkpoint(tmp_path, other, lambda weights, state: other.load_state_dict(weights))
    assert torch.equal(other(IDS)[0], model(IDS)[0])
