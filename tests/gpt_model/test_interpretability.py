"""Attention maps against transformers and a plain formula, the lens against the model, ablation against a model
whose weights say that a head is silent."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_mechanisms import MultiHeadLatentAttention
from attention_mechanisms.rotary import rotate, rotation
from gpt_model import GPT, GPTConfig
from gpt_model.interpretability import ablate_each_head, ablated, attention_maps, logit_lens
from gpt_model.smaller_cache import to_mla
from utils.files import InputError

B, T, H, L = 3, 20, 4, 2
KINDS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"attention": "gqa", "n_kv_groups": 2},
    "mla": {"attention": "mla", "latent_dim": 24, "rope_dim": 8},
    "mla-query": {"attention": "mla", "latent_dim": 24, "query_latent_dim": 16, "rope_dim": 8},
    "swa": {"attention": "swa", "window_size": 5, "n_sinks": 2},
    "experts": {"n_experts": 4, "n_active_experts": 2},
}


def every_kind(test: Any) -> Any:
    for name, values in (("position", ["learned", "rope"]), ("kind", KINDS)):
        test = pytest.mark.parametrize(name, values)(test)
    return test


def model_of(kind: str = "mha", position: str = "learned", **changes: Any) -> GPT:
    """A small model in float64 whose heads make sharp choices."""
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset("tiny", n_heads=H, position=position, **KINDS[kind], **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ids(rows: int = B) -> Tensor:
    return torch.randint(512, (rows, T), generator=torch.Generator().manual_seed(1))


def test_maps_and_lens_of_gpt2_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=99, n_positions=32, n_embd=48, n_layer=3, n_head=4)
    config.bos_token_id = config.eos_token_id = None
    theirs = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours = GPT(GPTConfig(vocab_size=99, context_length=32, d_model=48, n_layers=3, n_heads=4)).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), in_our_order(theirs), strict=True)))
    ids_BT = ids() % 99
    with torch.no_grad():
        expected = theirs(ids_BT, output_attentions=True, output_hidden_states=True)
        *streams, last = expected.hidden_states  # the last has been through the final norm
        lens = [theirs.lm_head(theirs.transformer.ln_f(x_BTC)) for x_BTC in streams] + [theirs.lm_head(last)]
    assert expected.attentions[0].std() > 0.1
    torch.testing.assert_close(attention_maps(ours, ids_BT), torch.stack(expected.attentions), rtol=0, atol=1e-5)
    torch.testing.assert_close(logit_lens(ours, ids_BT), torch.stack(lens), rtol=0, atol=1e-4)


def in_our_order(theirs: Any) -> list[Tensor]:
    """The tensors of transformers' GPT-2, in the order in which our model has them, matrices (outputs, inputs)."""
    weights = theirs.transformer.state_dict()
    return [weight.T if ".c_" in name and weight.dim() == 2 else weight for name, weight in weights.items()]


@every_kind
def test_maps_are_those_of_the_plain_formula(kind: str, position: str) -> None:
    """For the first layer, from the model's weights alone."""
    model = model_of(kind, position)
    with torch.no_grad():
        x_BTC = model.token_embedding(ids())
        if position == "learned":
            x_BTC = x_BTC + model.position_embedding.weight[:T]
        expected = plain_weights(model.blocks[0].attention, model.blocks[0].attention_norm(x_BTC), position, kind)
    maps = attention_maps(model, ids())
    assert maps.shape == (L, B, H, T, T)
    alike = torch.ones(T, T).tril().softmax(dim=-1)
    assert (maps - alike).abs().amax(dim=(3, 4)).min() > 0.2  # each head has a choice of its own
    torch.testing.assert_close(maps[0], expected, rtol=0, atol=1e-6)  # angles are float32


def plain_weights(attention: Any, x_BTC: Tensor, position: str, kind: str) -> Tensor:
    """One head and one pair of positions after the other, (B, H, T, S)."""
    D, latent = attention.head_dim, isinstance(attention, MultiHeadLatentAttention)
    cos, sin = rotation(torch.arange(T), 8 if latent else D)
    scores = torch.full((B, H, T, T), -math.inf, dtype=torch.float64)
    for head in range(H):
        if latent:
            direct = hasattr(attention, "query")
            q = (
                attention.query(x_BTC)
                if direct
                else attention.query_up(attention.query_norm(attention.query_down(x_BTC)))
            )
            q = q.chunk(H, dim=-1)[head]
            c = attention.latent_norm(attention.down(x_BTC)[..., :24])
            k = attention.up(c).chunk(H, dim=-1)[head][..., :D]
            if position == "rope":
                q = torch.cat([q[..., :D], rotate(q[..., D:], cos, sin)], dim=-1)
                k = torch.cat([k, rotate(attention.down(x_BTC)[..., 24:], cos, sin)], dim=-1)
        else:
            q, k, _ = attention.project(x_BTC)
            q, k = q[:, head], k[:, head * k.shape[1] // H]
            if position == "rope":
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        for t in range(T):
            for s in range(t + 1):
                if kind != "swa" or t - s < 5 or s < 2:
                    scores[:, head, t, s] = (q[:, t] * k[:, s]).sum(dim=-1) / math.sqrt(q.shape[-1])
    return scores.softmax(dim=-1)


@every_kind
def test_maps_and_values_make_what_the_layer_says(kind: str, position: str) -> None:
    """In every layer: the weights times the values, projected, are the layer's output."""
    model, seen = model_of(kind, position), []
    for block in model.blocks:
        block.attention.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    maps = attention_maps(model, ids())
    for layer, block in enumerate(model.blocks):
        attention, (x_BTC, expected_BTC) = block.attention, seen[layer]
        with torch.no_grad():
            if isinstance(attention, MultiHeadLatentAttention):
                latent_BSR = attention.latent_norm(attention.down(x_BTC)[..., :24])
                v_BHSD = attention.up(latent_BSR).unflatten(-1, (H, 2, -1))[..., 1, :].transpose(1, 2)
            else:
                v_BGSD = attention.project(x_BTC)[2]
                v_BHSD = v_BGSD.repeat_interleave(H // v_BGSD.shape[1], dim=1)
            y_BTC = attention.out((maps[layer] @ v_BHSD).transpose(1, 2).flatten(2))
        torch.testing.assert_close(y_BTC, expected_BTC, rtol=0, atol=1e-9)


@every_kind
def test_the_lens_after_the_last_block_is_the_model(kind: str, position: str) -> None:
    """And after each block, the model that ends there."""
    model = model_of(kind, position, vocab_multiple=100)  # padding must not show
    lens = logit_lens(model, ids())
    assert lens.shape == (L + 1, B, T, 512)
    with torch.no_grad():
        for depth in range(L, -1, -1):
            del model.blocks[depth:]
            torch.testing.assert_close(lens[depth], model(ids())[0], rtol=0, atol=1e-12)


@every_kind
def test_without_a_head_the_model_is_that_whose_weights_ignore_it(kind: str, position: str) -> None:
    model, silent = model_of(kind, position), model_of(kind, position)
    D = 64 // H
    with torch.no_grad():
        for layer, head in ((0, 3), (1, 0)):
            silent.blocks[layer].attention.out.weight[:, head * D : (head + 1) * D] = 0
        whole = model(ids())[0]
        with ablated(model, [(0, 3), (1, 0)]):
            without = model(ids())[0]
        torch.testing.assert_close(without, silent(ids())[0], rtol=0, atol=1e-12)
        assert (without - whole).abs().max() > 0.1
        assert torch.equal(model(ids())[0], whole)  # nothing is left behind


def test_a_mean_ablation_leaves_what_a_head_says_in_any_case() -> None:
    model = model_of()
    attention, D = model.blocks[1].attention, 64 // H
    heard: list[Tensor] = []

    def listen(out: Any, arguments: tuple[Tensor]) -> None:
        heard.append(arguments[0])

    with torch.no_grad():
        hook = attention.out.register_forward_pre_hook
        with hook(listen), ablated(model, [(1, 2)], "mean"), hook(listen):  # in this order
            model(ids())
        before, after = heard
        assert before.std(dim=(0, 1)).min() > 0.1
        of_head = slice(2 * D, 3 * D)
        mean_D = before[..., of_head].reshape(-1, D).mean(dim=0)
        torch.testing.assert_close(after[..., of_head], mean_D.expand(B, T, D))
        after[..., of_head] = before[..., of_head]
        assert torch.equal(after, before)  # the other heads say what they said
        # a head whose values are the same at each position says nothing of the text
        attention.qkv.weight[128 + 2 * D : 128 + 3 * D] = 0
        attention.qkv.bias[128 + 2 * D : 128 + 3 * D] = 5
        whole = model(ids())[0]
        with ablated(model, [(1, 2)], "mean"):
            torch.testing.assert_close(model(ids())[0], whole, rtol=0, atol=1e-12)
        with ablated(model, [(1, 2)], "zero"):
            assert (model(ids())[0] - whole).abs().max() > 0.1


def test_the_table_of_ablations_says_which_head_matters() -> None:
    model = model_of(dropout=0.5).train()  # the table is made in evaluation mode
    D = 64 // H
    with torch.no_grad():
        model.blocks[0].attention.out.weight[:, D : 2 * D] = 0  # nobody hears head 1
        model.blocks[1].attention.out.weight[:, 2 * D : 3 * D] *= 5  # head 2 is loud
    targets_BT = torch.cat([torch.full((B, 5), -100), ids()[:, 6:], torch.full((B, 1), -100)], dim=1)
    table = ablate_each_head(model, ids(), targets_BT)
    assert model.training
    model.eval()
    assert table.shape == (L, H)
    assert table[0, 1] == 0
    assert table.abs().argmax() == 1 * H + 2
    with torch.no_grad(), ablated(model, [(1, 2)]):
        without = model(ids(), targets_BT)[1]
    torch.testing.assert_close(table[1, 2], without - model(ids(), targets_BT)[1])
    assert not torch.equal(ablate_each_head(model, ids(), targets_BT, "mean"), table)


def test_a_look_leaves_no_hook_and_needs_no_gradient() -> None:
    model = model_of().train()
    hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    for seen in (attention_maps(model, ids()), logit_lens(model, ids()), ablate_each_head(model, ids(), ids())):
        assert not seen.requires_grad
    with pytest.raises(ValueError, match="65 tokens are more than the context of 64"):
        attention_maps(model, torch.zeros(1, 65, dtype=torch.long))
    assert model.training
    assert hooks == [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks] == []


def test_layers_with_latents_of_different_sizes_are_looked_into_too() -> None:
    model = model_of()
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight[64:] = 0
        model.blocks[1].attention.qkv.weight[64:74] = torch.randn(10, 64, dtype=torch.float64)
    converted, report = to_mla(model, tolerated_error=1e-12)
    assert [layer.size for layer in report] == [64, 10]
    torch.testing.assert_close(attention_maps(converted, ids()), attention_maps(model, ids()), rtol=0, atol=1e-10)


def test_a_run_directory_is_looked_into(finished_run: Any) -> None:
    model = GPT.from_run(finished_run)
    ids_BT = ids()
    torch.testing.assert_close(attention_maps(model, ids_BT).sum(dim=-1), torch.ones(2, B, 2, T))
    with torch.no_grad():
        assert torch.equal(logit_lens(model, ids_BT)[-1], model(ids_BT)[0])
    assert ablate_each_head(model, ids_BT[:, :-1], ids_BT[:, 1:]).shape == (2, 2)


@pytest.mark.parametrize(("heads", "how", "message"), [
    ([(2, 0)], "zero", "there is no head 0 in layer 2: there are 2 layers of 4"),
    ([(0, 1), (0, -1)], "zero", "there is no head -1 in layer 0: there are 2 layers of 4"),
    ([(0, 0)], "median", "how must be 'zero' or 'mean', got 'median'"),
])  # fmt: skip
def test_what_cannot_be_ablated_is_refused(heads: list[tuple[int, int]], how: Any, message: str) -> None:
    model = model_of()
    with pytest.raises(InputError, match=message), ablated(model, heads, how):
        pass
    assert not any(block.attention.out._forward_pre_hooks for block in model.blocks)
