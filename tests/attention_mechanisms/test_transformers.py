"""Our attention against that of `transformers`, with its weights: GPT-2, Llama, Mistral and DeepSeek-V3.

Weights are random, biases and norms included, so that nothing hides behind a zero or a one.

Shapes: B batch, T time, C model width, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_mechanisms import (
    GroupedQueryAttention,
    Mask,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    SlidingWindowAttention,
)
from attention_mechanisms.rotary import BASE, rotation

transformers = pytest.importorskip("transformers")

from transformers import DeepseekV3Config, DynamicCache, GPT2Config, LlamaConfig, MistralConfig  # noqa: E402
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask  # noqa: E402
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek  # noqa: E402
from transformers.models.gpt2 import modeling_gpt2 as gpt2  # noqa: E402
from transformers.models.llama import modeling_llama as llama  # noqa: E402
from transformers.models.mistral import modeling_mistral as mistral  # noqa: E402

C, H = 48, 6
WINDOW = 7
LATENT, QUERY_LATENT, ROPE = 20, 14, 6
ROTARY = {"rope_type": "default", "rope_theta": BASE}
KERNELS = ("manual", "sdpa", "flex")
Tensors = dict[str, Tensor]


class Theirs:
    """One attention layer, called as its model calls it: with the mask, angles and cache of `transformers`."""

    def __init__(self, layer: nn.Module, rotary: nn.Module | None, dtype: torch.dtype) -> None:
        self.layer, self.rotary, self.config = layer.to(dtype).eval(), rotary, layer.config
        self.exact = dtype == torch.float64
        for module in layer.modules():
            if self.exact and isinstance(module, deepseek.DeepseekV3RMSNorm):
                module.forward = norm_in_float64.__get__(module)  # theirs goes through float32, whatever it is given

    def __call__(self, x_BTC: Tensor, padding: tuple[int, ...] | None = None, cache: Any = None) -> Tensor:
        B, T, _ = x_BTC.shape
        past = 0 if cache is None else cache.get_seq_length()
        positions_BT = torch.arange(past, past + T).expand(B, -1)
        real = None
        if padding is not None:
            real = torch.arange(past + T) >= torch.tensor(padding)[:, None]
            positions_BT = (positions_BT - torch.tensor(padding)[:, None]).clamp(min=0)
        windowed = getattr(self.config, "sliding_window", None) is not None
        make = create_sliding_window_causal_mask if windowed else create_causal_mask
        mask = make(
            config=self.config, inputs_embeds=x_BTC, attention_mask=real, past_key_values=cache,
            position_ids=positions_BT,
        )  # fmt: skip
        extra = {} if self.rotary is None else {"position_embeddings": self.angles(x_BTC, positions_BT)}
        x_BTC = x_BTC.contiguous()  # GPT-2's takes views of it
        return self.layer(x_BTC, attention_mask=mask, past_key_values=cache, **extra)[0]

    def angles(self, x_BTC: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (B, T, D).

        Theirs, but for float64: frequencies are float32, and a last digit of theirs differs from ours. See
        `test_angles_are_the_same`.
        """
        if not self.exact:
            return self.rotary(x_BTC, positions_BT)
        cos, sin = rotation(positions_BT, 2 * len(self.rotary.inv_freq))
        return torch.cat([cos, cos], -1)[:, 0].double(), torch.cat([sin, sin], -1)[:, 0].double()


def norm_in_float64(norm: nn.Module, x: Tensor) -> Tensor:
    return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def randomise(module: nn.Module) -> None:
    """Weights for which softmax has an opinion; biases away from zero, norms away from one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * 1.5 / C**0.5)
            else:
                parameter.copy_(0.3 * noise + ("norm" in name))


def from_gpt2(theirs: Tensors) -> Tensors:
    """Theirs are stored (input, output)."""
    return {
        "qkv.weight": theirs.pop("c_attn.weight").T,
        "qkv.bias": theirs.pop("c_attn.bias"),
        "out.weight": theirs.pop("c_proj.weight").T,
        "out.bias": theirs.pop("c_proj.bias"),
    }


def from_llama(theirs: Tensors) -> Tensors:
    """Llama and Mistral."""
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
    return {f"{names[name.split('.')[0]]}.{name.split('.')[1]}": theirs.pop(name) for name in list(theirs)}


def from_deepseek(theirs: Tensors) -> Tensors:
    names = {
        "q_proj": "query", "q_a_proj": "query_down", "q_a_layernorm": "query_norm", "q_b_proj": "query_up",
        "kv_a_proj_with_mqa": "down", "kv_a_layernorm": "latent_norm", "kv_b_proj": "up", "o_proj": "out",
    }  # fmt: skip
    return {f"{names[name.removesuffix('.weight')]}.weight": theirs.pop(name) for name in list(theirs)}


def from_interleaved_deepseek(theirs: Tensors) -> Tensors:
    """The same, but theirs rotate the channels (0, 1), (2, 3), ..., where ours rotate (0, D_r / 2), ..."""
    ours = from_deepseek(theirs)
    halves = torch.cat([torch.arange(0, ROPE, 2), torch.arange(1, ROPE, 2)])
    query = "query.weight" if "query.weight" in ours else "query_up.weight"
    of_heads = ours[query].unflatten(0, (H, -1))  # each: the channels without position, then the rotary ones
    ours[query] = torch.cat([of_heads[:, :-ROPE], of_heads[:, -ROPE:][:, halves]], dim=1).flatten(0, 1)
    down = ours["down.weight"]
    ours["down.weight"] = torch.cat([down[:-ROPE], down[-ROPE:][halves]])
    return ours


@dataclass
class Model:
    """How to build a layer of theirs, and its twin."""

    theirs: Callable[[], tuple[nn.Module, nn.Module | None]]
    ours: Callable[..., nn.Module]
    convert: Callable[[Tensors], Tensors]
    exact_eager: bool = False  # their eager softmax is in float64 if the input is; others go through float32

    def pair(
        self, dtype: torch.dtype, kernel: str = "auto", implementation: str = "sdpa", **ours: Any
    ) -> tuple[nn.Module, Theirs]:
        """A layer of ours with their weights, and theirs."""
        layer, rotary = self.theirs()
        layer.config._attn_implementation = implementation
        randomise(layer)
        theirs = Theirs(layer, rotary, dtype)
        twin = self.ours(kernel=kernel, **ours).to(dtype).eval()
        twin.load_state_dict(self.renamed(dict(layer.named_parameters())))  # asserts names and shapes
        return twin, theirs

    def renamed(self, theirs: Tensors) -> Tensors:
        """Their weights, or gradients, under our names."""
        left = {name: tensor.detach() for name, tensor in theirs.items()}
        converted = self.convert(left)
        assert not left, f"not used: {sorted(left)}"
        return converted


def gpt2_model() -> Model:
    def theirs() -> tuple[nn.Module, None]:
        return gpt2.GPT2Attention(GPT2Config(n_embd=C, n_head=H, n_layer=1), layer_idx=0), None

    return Model(theirs, lambda **options: MultiHeadAttention(C, H, **options), from_gpt2, exact_eager=True)


def llama_model(groups: int, bias: bool = False) -> Model:
    def theirs() -> tuple[nn.Module, nn.Module]:
        config = LlamaConfig(
            hidden_size=C, num_attention_heads=H, num_key_value_heads=groups, num_hidden_layers=1,
            attention_bias=bias, rope_parameters=dict(ROTARY),
        )  # fmt: skip
        return llama.LlamaAttention(config, layer_idx=0), llama.LlamaRotaryEmbedding(config)

    def ours(**options: Any) -> nn.Module:
        return GroupedQueryAttention(C, H, groups, rope=True, bias=bias, **options)

    return Model(theirs, ours, from_llama)


def mistral_model(groups: int, window: int = WINDOW) -> Model:
    def theirs() -> tuple[nn.Module, nn.Module]:
        config = MistralConfig(
            hidden_size=C, num_attention_heads=H, num_key_value_heads=groups, num_hidden_layers=1,
            sliding_window=window, rope_parameters=dict(ROTARY),
        )  # fmt: skip
        return mistral.MistralAttention(config, layer_idx=0), mistral.MistralRotaryEmbedding(config)

    def ours(**options: Any) -> nn.Module:
        return SlidingWindowAttention(C, H, window, n_kv_groups=groups, rope=True, bias=False, **options)

    return Model(theirs, ours, from_llama)


def deepseek_model(form: str, query_latent_dim: int | None = QUERY_LATENT, interleaved: bool = False) -> Model:
    def theirs() -> tuple[nn.Module, nn.Module]:
        config = DeepseekV3Config(
            hidden_size=C, num_attention_heads=H, num_key_value_heads=H, num_hidden_layers=1, kv_lora_rank=LATENT,
            q_lora_rank=query_latent_dim, qk_rope_head_dim=ROPE, qk_nope_head_dim=C // H, v_head_dim=C // H,
            rope_interleave=interleaved, rope_parameters=dict(ROTARY),
        )  # fmt: skip
        return deepseek.DeepseekV3Attention(config, layer_idx=0), deepseek.DeepseekV3RotaryEmbedding(config)

    def ours(**options: Any) -> nn.Module:
        sizes = {"query_latent_dim": query_latent_dim, "latent_norm": True, "rope_dim": ROPE}
        return MultiHeadLatentAttention(C, H, LATENT, **sizes, bias=False, form=form, **options)

    return Model(theirs, ours, from_interleaved_deepseek if interleaved else from_deepseek)


MODELS = {
    "gpt2": gpt2_model(),
    "llama-mha": llama_model(H),
    "llama-gqa": llama_model(2),
    "llama-mqa": llama_model(1),
    "llama-biased": llama_model(3, bias=True),
    "mistral": mistral_model(H),
    "mistral-gqa": mistral_model(2),
    "deepseek-naive": deepseek_model("naive"),
    "deepseek-absorbed": deepseek_model("absorbed"),
    "deepseek-auto": deepseek_model("auto"),
    "deepseek-direct-queries": deepseek_model("auto", query_latent_dim=None),
    "deepseek-interleaved": deepseek_model("naive", interleaved=True),
    "deepseek-interleaved-direct": deepseek_model("absorbed", None, interleaved=True),
}
DTYPES = (torch.float32, torch.float64)


def tolerance(dtype: torch.dtype, implementation: str = "sdpa", model: Model | None = None) -> dict[str, float]:
    loose = dtype == torch.float32 or (implementation == "eager" and not (model and model.exact_eager))
    return {"rtol": 0, "atol": 1e-5 if loose else 1e-10}


def random_input(B: int, T: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(B, T, C, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_one_pass(name: str, kernel: str, dtype: torch.dtype, implementation: str) -> None:
    ours, theirs = MODELS[name].pair(dtype, kernel, implementation)
    x = random_input(2, 3 * WINDOW, dtype)
    y = ours(x)
    assert y.std() > 0.1  # something worth comparing
    torch.testing.assert_close(y, theirs(x), **tolerance(dtype, implementation, MODELS[name]))


@pytest.mark.parametrize("chunks", [[5, *[1] * 12], [18, 1, 1, 5, 1], [1, 2, 9, 1, 1]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_reading_a_prompt_then_decoding(name: str, kernel: str, dtype: torch.dtype, chunks: list[int]) -> None:
    """Each against a cache of its own; prompts shorter and longer than the window."""
    check_decoding(name, kernel, dtype, chunks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_left_padded_rows(name: str, kernel: str, dtype: torch.dtype) -> None:
    """In one pass and when decoding; outputs at the places of padding do not matter."""
    check_left_padding(name, kernel, dtype, [12, 1, 1, 4, *[1] * 6])


@pytest.mark.parametrize("name", ["gpt2", "llama-gqa", "mistral-gqa", "deepseek-naive", "deepseek-absorbed"])
def test_flex_decodes_too(name: str) -> None:
    """Fewer shapes than for the other kernels: without a compiler FlexAttention takes its time over each."""
    check_decoding(name, "flex", torch.float64, [9, 1, 4])
    check_left_padding(name, "flex", torch.float64, [12, 1])


@torch.no_grad()
def check_decoding(name: str, kernel: str, dtype: torch.dtype, chunks: list[int]) -> None:
    ours, theirs = MODELS[name].pair(dtype, kernel)
    x = random_input(2, sum(chunks), dtype)
    cache, their_cache = ours.new_cache(2, sum(chunks)), DynamicCache(config=theirs.config)
    for chunk in x.split(chunks, dim=1):
        y = ours(chunk, mask=cache.mask(), cache=cache)
        torch.testing.assert_close(y, theirs(chunk, cache=their_cache), **tolerance(dtype))
    assert cache.lengths == [sum(chunks)] * 2


@torch.no_grad()
def check_left_padding(name: str, kernel: str, dtype: torch.dtype, chunks: list[int]) -> None:
    padding = (0, 3, WINDOW + 2)
    ours, theirs = MODELS[name].pair(dtype, kernel)
    mask = Mask(left_padding=padding)
    x = random_input(3, sum(chunks), dtype)
    real = torch.arange(sum(chunks)) >= torch.tensor(padding)[:, None]
    torch.testing.assert_close(ours(x, mask=mask)[real], theirs(x, padding)[real], **tolerance(dtype))
    cache, their_cache = ours.new_cache(3, sum(chunks)), DynamicCache(config=theirs.config)
    pieces = x.split(chunks, dim=1)
    y = torch.cat([ours(piece, mask=mask, cache=cache) for piece in pieces], dim=1)
    expected = torch.cat([theirs(piece, padding, their_cache) for piece in pieces], dim=1)
    torch.testing.assert_close(y[real], expected[real], **tolerance(dtype))


@pytest.mark.parametrize("kernel", ["auto", "manual", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str, kernel: str) -> None:
    """Gradients of the input and of the weights are compared."""
    ours, theirs = MODELS[name].pair(torch.float64, kernel)
    x = random_input(2, 2 * WINDOW + 1, torch.float64)
    weights = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        (layer(leaf) * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    assert gradients[0].abs().min() > 0
    expected = MODELS[name].renamed({key: weight.grad for key, weight in theirs.layer.named_parameters()})
    for key, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, expected[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", ["auto", "manual", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["llama-gqa", "mistral-gqa", "deepseek-naive", "deepseek-absorbed"])
def test_long_sequences(name: str, dtype: torch.dtype, kernel: str) -> None:
    """Long enough for sdpa to compute a window in blocks, which is what `auto` and `sdpa` then do."""
    ours, theirs = MODELS[name].pair(dtype, kernel)
    gradients, outputs = [], []
    for layer in (ours, theirs):
        x = random_input(1, 300, dtype).requires_grad_()
        outputs.append(layer(x))
        outputs[-1].sum().backward()
        gradients.append(x.grad)
    # a frequency's last digit, times 300
    loose = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else tolerance(dtype)
    torch.testing.assert_close(*outputs, **loose)
    torch.testing.assert_close(*gradients, rtol=100 * loose["atol"], atol=100 * loose["atol"])


@torch.no_grad()
def test_a_window_counts_the_querys_own_position_in_both() -> None:
    """`sliding_window=W` means W keys, the query's own among them, in Mistral as here."""
    ours, theirs = mistral_model(H).pair(torch.float64)
    x = random_input(1, 3 * WINDOW, torch.float64)
    last = 2 * WINDOW
    for layer in (ours, theirs):
        y = layer(x)[0, last]
        for distance, seen in ((WINDOW - 1, True), (WINDOW, False)):
            changed = x.clone()
            changed[0, last - distance] += 1
            assert torch.equal(layer(changed)[0, last], y) != seen
    off_by_one, _ = mistral_model(H, WINDOW + 1).pair(torch.float64)
    assert (off_by_one(x)[0, last] - ours(x)[0, last]).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["naive", "absorbed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_tiny_latents(dtype: torch.dtype, form: str) -> None:
    """With latents as small as the norm's epsilon, another epsilon would show."""
    ours, theirs = deepseek_model(form).pair(dtype)
    x = random_input(2, 9, dtype, scale=3e-4)
    assert 1e-8 < ours.down(x)[..., :LATENT].square().mean() < 1e-6
    torch.testing.assert_close(ours(x), theirs(x), **tolerance(dtype))


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"mistral", "mistral-gqa"}))
@torch.no_grad()
def test_caches_hold_the_same_numbers(name: str) -> None:
    """Keys and values of each group, or R normalised and D_r rotated numbers of a latent, and nothing else."""
    ours, theirs = MODELS[name].pair(torch.float64)
    x = random_input(2, 9, torch.float64)
    cache, their_cache = ours.new_cache(2, 9), DynamicCache(config=theirs.config)
    ours(x, cache=cache)
    theirs(x, cache=their_cache)
    keys, values = their_cache.layers[0].keys, their_cache.layers[0].values
    torch.testing.assert_close(torch.cat(cache.buffers, -1), torch.cat([keys, values], -1), **tolerance(x.dtype))
    assert cache.nbytes == keys.nbytes + values.nbytes


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "deepseek-naive"])
def test_angles_are_the_same(name: str) -> None:
    """But for the last digit of a frequency: 100 positions on, some 1e-5 radians."""
    _, theirs = MODELS[name].pair(torch.float32)
    positions_BT = torch.stack([torch.arange(100), torch.arange(7, 107)])
    ours = rotation(positions_BT, 2 * len(theirs.rotary.inv_freq))
    for half, expected in zip(ours, theirs.rotary(torch.zeros(1), positions_BT), strict=True):
        torch.testing.assert_close(torch.cat([half, half], -1)[:, 0], expected, rtol=0, atol=1e-5)
