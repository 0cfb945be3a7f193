"""Fast decoding gives what the model gives, for every kind of attention, compiled and not; int8 by its definition."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from attention_mechanisms import Mask
from gpt_model import GPT, GPTConfig, TextGenerator
from gpt_model.fast import quantize
from gpt_model.fast.decoder import FastDecoder
from gpt_model.fast.quantize import Int8Linear, quantize_rows, split
from gpt_model.smaller_cache import to_mla
from utils.files import InputError
from utils.hardware import compiler_works
from working_with_text_data.minbpe import Tokenizer

VARIANTS = {
    "mha": {},
    "gqa": {"attention": "gqa", "n_kv_groups": 2, "position": "rope"},
    "mla": {"attention": "mla", "latent_dim": 16},
    "mla-rope": {"attention": "mla", "latent_dim": 16, "rope_dim": 8, "position": "rope"},
    "swa-sinks": {"attention": "swa", "window_size": 16, "n_sinks": 2, "position": "rope"},
    "experts": {"n_experts": 4},
    "padded": {"vocab_size": 500, "vocab_multiple": 64},
}
# of the largest logit, about 1 in these models
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2, "int8": 4e-2}
LENGTH = 48


def make(name: str, **changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.preset("tiny", n_heads=4, **VARIANTS[name], **changes)).eval()


def step_by_step(decoder: FastDecoder, ids_BT: Tensor, prompt: int = 5) -> Tensor:
    """Logits after each token, the prompt read at once and the rest singly."""
    cache = decoder.new_cache(len(ids_BT), ids_BT.shape[1])
    parts = ids_BT.split([prompt] + [1] * (ids_BT.shape[1] - prompt), dim=1)
    return torch.cat([decoder(part, cache=cache)[0] for part in parts], dim=1)


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", VARIANTS)
def test_steps_give_the_logits_of_one_pass(name: str, precision: str, n_rows: int) -> None:
    model = make(name)
    ids_BT = torch.randint(500, (n_rows, LENGTH))
    logits_BTV = step_by_step(FastDecoder(model, precision), ids_BT)
    expected_BTV = model(ids_BT)[0]
    assert logits_BTV.shape == expected_BTV.shape
    torch.testing.assert_close(logits_BTV.float(), expected_BTV, rtol=0, atol=TOLERANCE[precision])


@pytest.mark.parametrize("name", ["mha", "mla-rope", "swa-sinks"])
def test_a_step_for_recording_looks_at_the_whole_cache_and_gives_the_same(name: str) -> None:
    """What a GPU records has fixed shapes: slots that are not filled yet must not count."""
    model = make(name)
    decoder = FastDecoder(model, "float32")
    decoder._recorded = True
    ids_BT = torch.randint(500, (2, LENGTH))
    torch.testing.assert_close(step_by_step(decoder, ids_BT), model(ids_BT)[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "recorded"), [("mha", True), ("swa-sinks", True), ("swa-sinks", False)])
def test_a_compiled_step_makes_its_block_masks_anew(name: str, recorded: bool) -> None:
    """Kept by the identity of a tensor that the compiler never sees, the first one would be used for ever."""
    torch._dynamo.reset()
    model = make(name, kernel="flex")
    decoder = FastDecoder(model, "float32")
    decoder._recorded = recorded
    decoder._step = torch.compile(decoder._one_token, backend="eager", dynamic=not recorded, fullgraph=True)
    ids_BT = torch.randint(500, (1, 24))
    torch.testing.assert_close(step_by_step(decoder, ids_BT), model(ids_BT)[0], rtol=0, atol=2e-6)


def test_a_recording_serves_caches_of_nearly_the_same_length() -> None:
    decoder = FastDecoder(make("mha", context_length=1024), "float32")
    decoder._recorded = True
    assert [decoder.new_cache(1, length).max_length for length in (20, 255, 256, 1024)] == [256, 256, 256, 1024]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_token_that_was_chosen_and_one_of_a_longer_text_are_the_same_program(recorded: bool) -> None:
    """The second has the stride of its text, and was compiled anew: a GPU was the first to tell."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    decoder = FastDecoder(make("mha", n_layers=1), "float32")
    decoder._recorded = recorded
    decoder._step = torch.compile(decoder._one_token, backend="eager", dynamic=not recorded)
    ids_BT = torch.randint(500, (1, 12))
    for tokens in (ids_BT.split(1, dim=1), [ids_BT[:, i : i + 1].clone().view(1, 1) for i in range(12)]):
        cache = decoder.new_cache(1, 12)
        for ids_B1 in tokens:
            decoder(ids_B1, cache=cache)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("mha", "int8"), ("mla-rope", "float32"), ("swa-sinks", "bfloat16")])
def test_compiled_once_for_every_length(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler_works("cpu"):
        pytest.skip("there is no compiler")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make(name, n_layers=1)
    plain, compiled = FastDecoder(model, precision), FastDecoder(model, precision, compile=True)
    for length, prompt in ((LENGTH, 1), (LENGTH - 9, 5)):
        ids_BT = torch.randint(500, (1, length))
        logits_BTV, expected_BTV = (step_by_step(decoder, ids_BT, prompt) for decoder in (compiled, plain))
        tolerance = 2e-6 if precision == "float32" else TOLERANCE[precision]
        torch.testing.assert_close(logits_BTV, expected_BTV, rtol=0, atol=tolerance)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_ragged_rows_are_read_as_the_model_reads_them() -> None:
    model = make("mha")
    decoder, mask = FastDecoder(model, "float32"), Mask(left_padding=(0, 3))
    ids_BT = torch.randint(500, (2, 12))
    results: list[Tensor] = []
    for either in (model, decoder):
        cache = either.new_cache(2, 12)
        parts = [either(part, mask=mask, cache=cache)[0] for part in ids_BT.split([8, 1, 1, 2], dim=1)]
        results.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=2e-6)


def test_the_model_is_untouched_and_shares_what_it_can() -> None:
    model = make("mha")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    same, other = FastDecoder(model, "float32"), FastDecoder(model, "int8")
    for decoder in (same, other):
        step_by_step(decoder, torch.randint(500, (1, 10)))
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert same.head.weight.data_ptr() == model.token_embedding.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_converted_model_keeps_its_latents_of_different_sizes() -> None:
    model = make("mha")
    torch.nn.init.zeros_(model.blocks[0].attention.qkv.weight[80:])
    model, report = to_mla(model, tolerated_error=0.3)
    assert len({layer.size for layer in report}) > 1
    ids_BT = torch.randint(500, (1, LENGTH))
    torch.testing.assert_close(step_by_step(FastDecoder(model, "float32"), ids_BT), model(ids_BT)[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("precision", "size"), [("float32", 4.0), ("bfloat16", 2.0)])
def test_weight_bytes_are_those_of_all_weights_but_the_positions(precision: str, size: float) -> None:
    model = make("mha")
    positions = model.position_embedding.weight.numel()
    assert FastDecoder(model, precision).weight_bytes == size * (model.n_parameters - positions)


def test_experts_at_rest_are_not_read() -> None:
    model = make("experts")
    positions = model.position_embedding.weight.numel()
    decoder = FastDecoder(model, "float32", compile=True)
    assert decoder.weight_bytes == 4 * (model.n_active_parameters - positions)
    assert decoder._step == decoder._one_token  # compiled, they would all be asked


def test_int8_takes_a_byte_for_each_matrix_element() -> None:
    model, matrices, rows = make("mha"), 0, 0
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and name != "position_embedding.weight":
            matrices, rows = matrices + weight.numel(), rows + len(weight)
    vectors = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    assert FastDecoder(model, "int8").weight_bytes == matrices + 4 * rows + 2 * vectors


def test_past_the_context_there_is_a_clear_error() -> None:
    decoder = FastDecoder(make("mha"), "float32")
    ids = torch.randint(500, (1, decoder.config.context_length))
    cache = decoder.new_cache(1)
    decoder(ids, cache=cache)
    with pytest.raises(ValueError, match="65 tokens are more than the context of 64"):
        decoder(ids[:, :1], cache=cache)
    cache = decoder.model.new_cache(1, 8)
    decoder(ids[:, :8], cache=cache)
    with pytest.raises(ValueError, match="the cache holds 8 tokens per row"):
        decoder(ids[:, :1], cache=cache)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision must be float32, bfloat16 or int8, got 'int4'"):
        FastDecoder(make("mha"), "int4")


@pytest.fixture(scope="module")
def tokenizer(persuasion: str) -> Tokenizer:
    from working_with_text_data.minbpe import RegexTokenizer

    tokenizer = RegexTokenizer()
    tokenizer.train(persuasion[:50_000], 512)
    return tokenizer


def test_writes_the_text_that_the_model_writes(tokenizer: Tokenizer) -> None:
    model = make("mha")
    texts = [
        TextGenerator(either, tokenizer).generate("Sir Walter", max_new_tokens=100, temperature=0)
        for either in (model, FastDecoder(model, "float32"))
    ]
    assert texts[0] == texts[1]  # past the context, too


class TestInt8:
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
    def test_no_weight_is_further_off_than_half_a_step(self, n_outputs: int, n_inputs: int, seed: int) -> None:
        weight_OI = torch.randn(n_outputs, n_inputs, generator=torch.Generator().manual_seed(seed))
        quantized_OI, scale_O = quantize_rows(weight_OI)
        assert quantized_OI.dtype == torch.int8
        assert quantized_OI.abs().amax(dim=1).eq(127).all()  # each row uses the whole grid
        off_OI = (weight_OI - quantized_OI * scale_O[:, None]).abs()
        assert (off_OI <= 0.5001 * scale_O[:, None]).all()

    def test_rows_of_zeros_stay_zeros(self) -> None:
        quantized_OI, scale_O = quantize_rows(torch.zeros(3, 5))
        assert not quantized_OI.any()
        assert not scale_O.any()

    @given(st.integers(1, 60), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
    def test_activations_keep_fourteen_bits_of_each_rows_largest(self, n: int, size: float, seed: int) -> None:
        x_NI = size * torch.randn(2, n, generator=torch.Generator().manual_seed(seed)) * torch.tensor([[1.0], [1e-3]])
        x_2NI, unit_N1 = split(x_NI)
        coarse_NI, fine_NI = x_2NI.float().chunk(2)
        off_NI = x_NI - unit_N1 * (128 * coarse_NI + fine_NI)
        assert (off_NI.abs() <= x_NI.abs().amax(dim=1, keepdim=True) / 2**14).all()

    @pytest.mark.skipif(not quantize.products_are_exact(), reason="no integer products here")
    def test_the_product_takes_no_slow_way(self) -> None:
        """oneDNN has a fast kernel for these types here, or one that takes 2,000 times as long; it says which."""
        code = "import torch; from gpt_model.fast.quantize import Int8Linear; "
        code += "Int8Linear(torch.nn.Linear(64, 64))(torch.ones(2, 64))"
        verbose = {**os.environ, "ONEDNN_VERBOSE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=verbose)
        products = [line for line in result.stdout.splitlines() if ",exec,cpu,matmul," in line]
        assert products
        assert not [line for line in products if "ref" in line.split(",")[6]], products

    @pytest.mark.parametrize("bias", [True, False])
    def test_one_row_and_many_give_what_the_rounded_matrix_gives(self, bias: bool) -> None:
        torch.manual_seed(0)
        layer = Int8Linear(nn.Linear(768, 300, bias=bias))
        x_NI = torch.randn(5, 768)
        product: Callable[[Tensor], Tensor] = lambda x: x.double() @ layer.weight.double().T  # noqa: E731
        expected_NO = product(x_NI) + (layer.bias.double() if bias else 0)
        single_NO = torch.cat([layer(x_NI[i : i + 1]) for i in range(5)])
        for y_NO in (layer(x_NI), single_NO):
            torch.testing.assert_close(y_NO.double(), expected_NO, rtol=0, atol=2e-4)

    def test_without_integer_products_the_result_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        linear, x_NI = nn.Linear(64, 30), torch.randn(2, 3, 64)
        packed = Int8Linear(linear)
        monkeypatch.setattr(quantize, "pack", lambda quantized_OI: None)
        plain = Int8Linear(linear)
        assert torch.equal(packed.weight, plain.weight)
        torch.testing.assert_close(packed(x_NI), plain(x_NI), rtol=0, atol=2e-4)

    @pytest.mark.skipif(quantize.pack(torch.zeros(1, 1, dtype=torch.int8)) is None, reason="no integer products here")
    def test_packed_integers_go_with_their_layer(self) -> None:
        gc.collect()
        before = len(quantize._packed)
        layer = Int8Linear(nn.Linear(4, 4))
        assert len(quantize._packed) == before + 1
        del layer
        gc.collect()
        assert len(quantize._packed) == before

    def test_long_rows_do_not_overflow(self) -> None:
        linear = nn.Linear(20_000, 2, bias=False)
        nn.init.ones_(linear.weight)
        y_1O = Int8Linear(linear)(torch.ones(1, 20_000))
        torch.testing.assert_close(y_1O, torch.full((1, 2), 20_000.0), rtol=1e-5, atol=0)
