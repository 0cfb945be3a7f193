"""The model against transformers' GPT-2, its initialisation, and its contract."""

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from gpt_model import GPT, GPTConfig
from utils.files import InputError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


def tiny(**changes: object) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.preset("tiny", **changes)).eval()


def in_transformers(model: GPT) -> "GPT2LMHeadModel":
    """The same model, of their making."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=model.config.vocab_size,
        n_positions=model.config.context_length,
        n_embd=model.config.d_model,
        n_layer=model.config.n_layers,
        n_head=model.config.n_heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    missing, unexpected = theirs.transformer.load_state_dict(as_transformers_names(model.state_dict()), strict=False)
    assert not unexpected
    assert not [name for name in missing if not name.endswith(("attn.bias", "masked_bias"))]
    return theirs


def as_transformers_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or gradients of ours under the names, and in the orientation, of transformers (Conv1D: in x out)."""
    names = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.expand": "mlp.c_fc",
        "feed_forward.out": "mlp.c_proj",
        "token_embedding": "wte",
        "position_embedding": "wpe",
        "final_norm": "ln_f",
    }
    renamed = {}
    for name, tensor in ours.items():
        module, kind = name.rsplit(".", 1)
        prefix, layer = ("", module)
        if module.startswith("blocks."):
            _, number, layer = module.split(".", 2)
            prefix = f"h.{number}."
        is_linear = layer.split(".")[-1] in ("qkv", "out", "expand")
        renamed[f"{prefix}{names[layer]}.{kind}"] = tensor.T if is_linear and kind == "weight" else tensor
    return renamed


@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize("n_heads", [2, 4])
def test_logits_loss_and_gradients_equal_transformers(kernel: str, n_heads: int) -> None:
    model = tiny(n_heads=n_heads, kernel=kernel)
    with torch.no_grad():  # weights larger than the initial ones, biases and norms too: nothing may hide at zero
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs = in_transformers(model)
    ids = torch.randint(model.config.vocab_size, (3, model.config.context_length))
    logits, loss = model(ids[:, :-1], ids[:, 1:])
    expected = theirs(ids, labels=ids)
    torch.testing.assert_close(logits, expected.logits[:, :-1], rtol=0, atol=1e-4)
    torch.testing.assert_close(loss, expected.loss, rtol=0, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    gradients = as_transformers_names({name: weight.grad for name, weight in model.named_parameters()})
    for name, weight in theirs.transformer.named_parameters():
        torch.testing.assert_close(gradients.pop(name), weight.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert not gradients


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("gpt2-small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_parameters_of_the_presets(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        assert GPT(GPTConfig.preset(preset)).n_parameters == parameters


@pytest.mark.parametrize(("preset", "parameters"), [("tiny", 136_960), ("demo", 2_566_272)])
def test_parameters_of_the_small_presets(preset: str, parameters: int) -> None:
    """By hand: one table or two, then per block two norms, qkv, out, expand and out with biases, then a norm."""
    config = GPTConfig.preset(preset)
    C = config.d_model
    block = 2 * 2 * C + (3 * C * C + 3 * C) + (C * C + C) + (4 * C * C + 4 * C) + (4 * C * C + C)
    places = config.context_length if config.position == "learned" else 0  # rotary ones have no table
    tables = (config.vocab_size + places) * C
    assert GPT(config).n_parameters == tables + config.n_layers * block + 2 * C == parameters


INITIAL = {
    "mha": {},
    "gqa": {"attention": "gqa", "n_kv_groups": 2},
    "mla": {"attention": "mla", "latent_dim": 64, "query_latent_dim": 64, "position": "rope"},
    "experts": {"n_experts": 3},
}


@pytest.mark.parametrize("kind", INITIAL)
@pytest.mark.parametrize("built", ["at once", "on meta"])
def test_initial_weights_are_gpt2s(kind: str, built: str) -> None:
    """Normal, of the right size and independent of one another; biases zero, norms one."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=2000, context_length=256, d_model=256, n_layers=8, n_heads=4, **INITIAL[kind])
    if built == "at once":
        model = GPT(config)
    else:
        with torch.device("meta"):
            model = GPT(config)
        model.to_empty(device="cpu")
        with torch.no_grad():  # whatever memory held before
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(16) if name.endswith("out.weight") else 0.02
            n = parameter.numel()  # five standard errors
            assert parameter.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n)), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(n), name
            assert farthest_from_normal(parameter / expected) < 2.7 / math.sqrt(n), name
    ids, targets = torch.randint(2000, (2, 4, 64))
    assert model.eval()(ids, targets)[1].item() == pytest.approx(math.log(2000), rel=0.05)  # it knows nothing yet


def farthest_from_normal(sample: Tensor) -> float:
    """Kolmogorov and Smirnov's distance; one sample in a million of a normal exceeds 2.7 / sqrt(n)."""
    below = torch.special.ndtr(sample.detach().flatten().double().sort().values)
    n = len(below)
    steps = torch.arange(n + 1) / n
    return max((steps[1:] - below).max().item(), (below - steps[:-1]).max().item())


@pytest.mark.parametrize("kernel", ["manual", "sdpa", "auto"])
@pytest.mark.parametrize("chunks", [[1] * 64, [10, 1, 1, 52], [63, 1]])
def test_a_cache_changes_no_logits_up_to_the_last_position(kernel: str, chunks: list[int]) -> None:
    model = tiny(kernel=kernel)
    ids = torch.randint(model.config.vocab_size, (2, 64))
    cache = model.new_cache(2)
    with torch.no_grad():
        expected, _ = model(ids)
        logits = torch.cat([model(chunk, cache=cache)[0] for chunk in ids.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="65 tokens are more than the context of 64"):
        model(ids[:, :1], cache=cache)


def test_rows_of_a_batch_may_have_caches_of_different_lengths() -> None:
    model = tiny()
    ids = torch.randint(model.config.vocab_size, (2, 20))
    cache = model.new_cache(2, 20)
    with torch.no_grad():
        model(ids[:, :8], cache=cache)
        cache.reset([0])
        logits, _ = model(ids[:, 8:], cache=cache)
        torch.testing.assert_close(logits[0], model(ids[:1, 8:])[0][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits[1], model(ids[1:])[0][0, 8:], rtol=0, atol=1e-5)


def test_last_only_and_hidden() -> None:
    model = tiny()
    ids = torch.randint(model.config.vocab_size, (2, 9))
    with torch.no_grad():
        full, loss = model(ids)
        assert loss is None
        torch.testing.assert_close(model(ids, last_only=True)[0], full[:, -1:])
        torch.testing.assert_close(model.hidden(ids) @ model.token_embedding.weight.T, full)


def test_targets_of_minus_100_do_not_count() -> None:
    model = tiny()
    ids = torch.randint(model.config.vocab_size, (1, 10))
    targets = torch.randint(model.config.vocab_size, (1, 10))
    masked = targets.clone()
    masked[:, 4:] = -100
    torch.testing.assert_close(model(ids, masked)[1], model(ids[:, :4], targets[:, :4])[1])


def test_too_many_tokens_are_named() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="65 tokens are more than the context of 64"):
        model(torch.zeros(1, 65, dtype=torch.long))


def test_dropout_acts_in_training_only() -> None:
    model = tiny(dropout=0.5)
    ids = torch.randint(model.config.vocab_size, (1, 9))
    torch.testing.assert_close(model(ids)[0], model(ids)[0])
    model.train()
    assert not torch.allclose(model(ids)[0], model(ids)[0])


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny().train()
    ids = torch.randint(model.config.vocab_size, (2, 64))
    model(ids, ids)[1].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_heads", 3, "n_heads must divide d_model, got 3 heads for width 64"),
        ("n_layers", 0, "n_layers must be at least 1 and at most 1,024, got 0"),
        ("d_model", "64", "d_model must be a whole number, at least 1 and at most 65,536, got '64'"),
        ("n_heads", 2.0, r"n_heads must be a whole number, at least 1 and at most 1,024, got 2\.0"),
        ("dropout", 1.0, "dropout must be at least 0 and below 1, got 1.0"),
        ("vocab_multiple", 0, "vocab_multiple must be at least 1 and .*, got 0"),
        ("kernel", "fast", "kernel must be one of auto, manual, sdpa, flex, got 'fast'"),
    ],
)
def test_impossible_shapes_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPTConfig.preset("tiny", **{field: value})


def test_unknown_presets_and_fields_are_named() -> None:
    with pytest.raises(InputError, match="no preset 'gpt5'; there are gpt2-small"):
        GPTConfig.preset("gpt5")
    with pytest.raises(InputError, match="unknown field 'n_head'"):
        GPTConfig.from_dict({"n_head": 3})
