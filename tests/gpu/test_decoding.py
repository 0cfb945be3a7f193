"""Writing on the GPU: recorded steps give what the model gives, and text is what it is on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt_model import GPT, FastDecoder, GPTConfig, TextGenerator
from working_with_text_data.minbpe import RegexTokenizer, Tokenizer

VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"attention": "gqa", "n_kv_groups": 2, "position": "rope"},
    "mla": {"attention": "mla", "latent_dim": 64, "rope_dim": 16, "position": "rope"},
    "swa": {"attention": "swa", "window_size": 24, "n_sinks": 2, "position": "rope"},
}
SIZES = {"vocab_size": 512, "context_length": 300, "d_model": 128, "n_layers": 2, "n_heads": 4}
# of the largest logit
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "int8": 5e-2}
COUNTERS = torch._dynamo.utils.counters
Say = Callable[[str], None]


def make(variant: str, device: torch.device | str) -> GPT:
    """Return a model so decided that the likeliest token leads by a thousand times what rounding to float32 changes."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, **VARIANTS[variant]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    return model.to(device).eval()


def random_ids(rows: int, length: int, device: torch.device | str) -> Tensor:
    return torch.randint(512, (rows, length), generator=torch.Generator().manual_seed(1)).to(device)


@torch.no_grad()
def step_by_step(model: GPT | FastDecoder, ids_BT: Tensor, prompt: int) -> Tensor:
    """Return the logits after each token, the prompt read at once and the rest singly."""
    cache = model.new_cache(*ids_BT.shape)
    parts = ids_BT.split([prompt] + [1] * (ids_BT.shape[1] - prompt), dim=1)
    return torch.cat([model(part, cache=cache)[0] for part in parts], dim=1)


@torch.no_grad()
def greedy(model: GPT | FastDecoder, ids_BT: Tensor, n_new: int) -> list[list[int]]:
    cache, written = model.new_cache(len(ids_BT), ids_BT.shape[1] + n_new), []
    for _ in range(n_new):
        logits_B1V, _ = model(ids_BT, cache=cache, last_only=True)
        ids_BT = logits_B1V.argmax(dim=-1)
        written.append(ids_BT)
    return torch.cat(written, dim=1).tolist()


def assert_close(logits: Tensor, expected: Tensor, precision: str) -> None:
    torch.testing.assert_close(
        logits.float(), expected, rtol=0, atol=TOLERANCE[precision] * expected.abs().max().item()
    )


def test_products_in_float32_are_exact(device: torch.device) -> None:
    """The tests below take TF32, with its ten bits, to be off."""
    assert torch.get_float32_matmul_precision() == "highest"
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ a.double()
    assert ((a.to(device) @ a.to(device)).cpu() - exact).norm() / exact.norm() < 1e-6


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_steps_give_the_logits_of_one_pass_on_a_cpu(variant: str, precision: str, device: torch.device) -> None:
    """int8 too: a GPU makes bfloat16 weights of the integers, where a CPU multiplies integers."""
    ids_BT = random_ids(2, 60, "cpu")
    expected_BTV = make(variant, "cpu")(ids_BT)[0]
    decoder = FastDecoder(make(variant, device), precision)
    assert_close(step_by_step(decoder, ids_BT.to(device), prompt=40).cpu(), expected_BTV, precision)


@pytest.mark.parametrize(("variant", "precision"), [("mha", "float32"), ("mla", "float32"), ("swa", "float32")])
def test_a_step_is_compiled_and_recorded_once(variant: str, precision: str, device: torch.device, say: Say) -> None:
    """One program, replayed as a CUDA graph, for prompts and texts of every length that a cache of 256 slots holds."""
    model = make(variant, device)
    decoder = FastDecoder(model, precision, compile=True)
    for rows, prompt, n_new in ((1, 5, 60), (1, 1, 20), (1, 90, 100)):
        ids_BT = random_ids(rows, prompt, device)
        assert greedy(decoder, ids_BT, n_new) == greedy(model, ids_BT, n_new)
    cache = decoder.new_cache(1, 200)
    assert cache.max_length in (256, None)  # a ring has no length
    ids_BT = random_ids(1, 100, device)
    assert_close(step_by_step(decoder, ids_BT, 30), step_by_step(model, ids_BT, 30), precision)
    say(f"{variant}: {recordings()} CUDA graphs recorded for four texts")
    assert COUNTERS["stats"]["unique_graphs"] == 1
    assert not COUNTERS["graph_break"]
    assert not COUNTERS["inductor"]["cudagraph_skips"], "the step was compiled, but not recorded"


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_recorded_step_in_less_precision_gives_what_a_plain_one_gives(precision: str, device: torch.device) -> None:
    model, ids_BT = make("gqa", device), random_ids(3, 50, device)
    plain, recorded = (FastDecoder(model, precision, compile=compiled) for compiled in (False, True))
    expected_BTV = step_by_step(plain, ids_BT, prompt=20).float()
    assert_close(step_by_step(recorded, ids_BT, prompt=20), expected_BTV, precision)
    assert COUNTERS["stats"]["unique_graphs"] == 1
    assert not COUNTERS["inductor"]["cudagraph_skips"]


def recordings() -> int | None:
    """Return how many CUDA graphs PyTorch keeps; None where it keeps them elsewhere than we think."""
    try:
        from torch._inductor.cudagraph_trees import get_manager

        manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
        return sum(map(len, manager.roots.values()))
    except (ImportError, AttributeError):
        return None


@pytest.fixture(scope="module")
def tokenizer(device: torch.device, persuasion: str) -> Tokenizer:
    tokenizer = RegexTokenizer()
    tokenizer.train(persuasion[:50_000], 512)
    return tokenizer


PROMPTS = ["Anne", "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who", "It is"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ragged_batches_write_the_text_of_a_cpu(
    variant: str, temperature: float, tokenizer: Tokenizer, device: torch.device
) -> None:
    texts = [
        TextGenerator(make(variant, where), tokenizer).generate_batch(
            PROMPTS, max_new_tokens=60, temperature=temperature, seed=0
        )
        for where in ("cpu", device)
    ]
    assert texts[0] == texts[1]


def test_text_after_text_comes_from_one_program(tokenizer: Tokenizer, device: torch.device, say: Say) -> None:
    """Each text has a cache of its own; the step must not be compiled anew for it."""
    model = make("mha", device)
    slow, fast = TextGenerator(model, tokenizer), TextGenerator(FastDecoder(model, "float32", compile=True), tokenizer)
    for prompt in PROMPTS:
        settings = {"max_new_tokens": 40, "temperature": 0}
        assert fast.generate(prompt, **settings) == slow.generate(prompt, **settings)
    say(f"{recordings()} CUDA graphs recorded for {len(PROMPTS)} calls of generate")
    assert COUNTERS["stats"]["unique_graphs"] == 1
    assert not COUNTERS["inductor"]["cudagraph_skips"]


@torch.no_grad()
def test_the_caches_are_on_the_gpu_and_as_large_as_the_formula_says(device: torch.device) -> None:
    model = make("gqa", device)
    before = torch.cuda.memory_allocated(device)
    cache = model.new_cache(3, 256)
    n_heads, head_dim = VARIANTS["gqa"]["n_kv_groups"], SIZES["d_model"] // 4
    assert cache.nbytes == SIZES["n_layers"] * 3 * 256 * 2 * n_heads * head_dim * 4
    assert torch.cuda.memory_allocated(device) - before == cache.nbytes
