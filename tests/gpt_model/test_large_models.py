"""What large models need: less memory in training and while loading, padded vocabularies, graphs of the whole model.

Shapes: B batch, T time, C model width.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.export import Dim

from gpt_model import GPT, GPTConfig, TextGenerator
from utils.files import InputError
from utils.hardware import compiler_works
from working_with_text_data.minbpe import BasicTokenizer

KINDS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa-rope": {"attention": "gqa", "n_kv_groups": 1, "position": "rope"},
    "mla-rope": {"attention": "mla", "latent_dim": 24, "rope_dim": 8, "position": "rope"},
    "swa-sinks": {"attention": "swa", "window_size": 8, "n_sinks": 3},
    "experts": {"n_experts": 4},
}


def model_of(kind: str = "mha", **changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.preset("tiny", **{**KINDS[kind], **changes}))


def ids_of(B: int, T: int) -> Tensor:
    return torch.randint(512, (B, T), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: GPT, ids_BT: Tensor, forward: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(2)  # dropout
    _, loss = (model if forward is None else forward)(ids_BT, ids_BT.roll(-1, dims=1))
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


class TestCheckpointing:
    @pytest.mark.parametrize("dropout", [0, 0.3])
    @pytest.mark.parametrize("kind", KINDS)
    def test_changes_neither_loss_nor_gradients(self, kind: str, dropout: float) -> None:
        """With dropout, the second computation must drop what the first one dropped."""
        plain = model_of(kind, dropout=dropout)
        frugal = model_of(kind, dropout=dropout, checkpoint_activations=True)
        torch.testing.assert_close(
            loss_and_gradients(frugal, ids_of(2, 40)), loss_and_gradients(plain, ids_of(2, 40)), rtol=0, atol=0
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_keeps_of_each_block_only_what_enters_it(self, kind: str) -> None:
        B, T, C = 3, 50, 64
        kept = {}
        for n_layers in (2, 5):
            for frugal in (False, True):
                model = model_of(kind, n_layers=n_layers, checkpoint_activations=frugal)
                with bytes_kept(model) as storages:
                    model(ids_of(B, T), ids_of(B, T))
                kept[n_layers, frugal] = sum(storages.values())
        a_block = (kept[5, True] - kept[2, True]) / 3
        experts = 4 if kind == "experts" else 0  # each block's penalty enters a sum, which multiplies nothing but it
        assert 4 * B * T * C <= a_block <= 4 * B * T * C + experts
        assert a_block < (kept[5, False] - kept[2, False]) / 3 / 10

    def test_leaves_the_cache_alone(self) -> None:
        """What a block appends to a cache, it must not append again in the backward pass."""
        model = model_of(checkpoint_activations=True)
        cache = model.new_cache(2)
        logits, loss = model(ids_of(2, 16), ids_of(2, 16), cache=cache)
        loss.backward()
        assert cache.lengths == [16, 16]
        torch.testing.assert_close(logits, model(ids_of(2, 16))[0], rtol=0, atol=1e-5)


@contextmanager
def bytes_kept(model: GPT) -> Iterator[dict[int, int]]:
    """Bytes of each storage that is kept for the backward pass, weights aside, which are there anyway."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # with its graph, which holds this function, it would never be freed
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield storages


class TestPaddedVocabulary:
    @given(st.integers(1, 2000), st.integers(1, 300))
    def test_is_the_next_multiple(self, size: int, multiple: int) -> None:
        padded = GPTConfig.preset("tiny", vocab_size=size, vocab_multiple=multiple).padded_vocab_size
        assert padded % multiple == 0
        assert size <= padded < size + multiple

    def test_presets_have_none(self) -> None:
        assert GPTConfig.preset("gpt2-small").padded_vocab_size == 50_257
        assert GPTConfig.preset("gpt2-small", vocab_multiple=128).padded_vocab_size == 50_304

    def test_changes_nothing_but_the_size_of_a_table(self) -> None:
        """The same logits and loss; padding is zero at first, and no gradient ever moves it."""
        plain, padded = model_of(), model_of(vocab_multiple=100)
        assert padded.token_embedding.weight.shape == (600, 64)
        assert padded.n_parameters == plain.n_parameters + 88 * 64
        tensors = plain.state_dict()
        padded.load_state_dict({**tensors, "token_embedding.weight": padded.token_embedding.weight})
        with torch.no_grad():
            padded.token_embedding.weight[:512] = tensors["token_embedding.weight"]
        assert not padded.token_embedding.weight[512:].any()
        logits, _ = padded(ids_of(2, 20))
        assert logits.shape == (2, 20, 512)
        torch.testing.assert_close(logits, plain(ids_of(2, 20))[0])
        assert padded(ids_of(2, 20), last_only=True)[0].shape == (2, 1, 512)
        loss, gradients = loss_and_gradients(padded, ids_of(2, 20))
        expected, wanted = loss_and_gradients(plain, ids_of(2, 20))
        table = gradients["token_embedding.weight"]
        assert not table[512:].any()
        torch.testing.assert_close((loss, {**gradients, "token_embedding.weight": table[:512]}), (expected, wanted))

    def test_training_leaves_it_at_zero(self) -> None:
        model = model_of(vocab_multiple=100)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            loss_and_gradients(model, ids_of(2, 20))
            optimizer.step()
        assert not model.token_embedding.weight[512:].any()

    def test_is_never_drawn(self) -> None:
        """Not even if its weights would make it the likeliest by far."""
        tokenizer = BasicTokenizer()
        model = model_of(vocab_size=tokenizer.vocab_size, vocab_multiple=100).eval()
        with torch.no_grad():
            model.token_embedding.weight[tokenizer.vocab_size :] = 100 * model.token_embedding.weight[:1].sign()
        generator = TextGenerator(model, tokenizer)
        for temperature in (0, 5):
            tokens = list(generator.tokens([65, 66], max_new_tokens=60, temperature=temperature, seed=0))
            assert len(tokens) == 60
            assert max(tokens) < tokenizer.vocab_size

    def test_a_run_is_saved_and_loaded(self, tmp_path: Path) -> None:
        model = model_of(vocab_multiple=100).eval()
        save_run(model, tmp_path)
        loaded = GPT.from_run(tmp_path)
        torch.testing.assert_close(loaded(ids_of(1, 9))[0], model(ids_of(1, 9))[0])
        save_run(model_of(), tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model": asdict(model.config), "training": {}}))
        with pytest.raises(
            InputError, match=r"token_embedding.weight is \(512, 64\) there, \(600, 64\) by config.json"
        ):
            GPT.from_run(tmp_path)


def save_run(model: GPT, path: Path) -> None:
    (path / "config.json").write_text(json.dumps({"model": asdict(model.config), "training": {}}))
    save_file(model.state_dict(), path / "model.safetensors")


WIDE: dict[str, Any] = {"vocab_size": 30_000, "d_model": 768, "n_layers": 4, "n_heads": 12}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process held")
class TestMemory:
    """Each in a process of its own, whose peak says what was really needed."""

    def peak_growth(self, lines: str) -> int:
        """Bytes."""
        code = (
            "import torch; from gpt_model import GPT, GPTConfig\n"
            "def memory(kind):\n"
            "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(kind))\n"
            "torch.set_num_threads(1)\n"
            "with torch.device('meta'): model = GPT(GPTConfig.preset('tiny'))  # what torch imports for it\n"
            "model.to_empty(device='cpu').init_weights(); import safetensors.torch; before = memory('VmRSS')\n"
            f"{lines}\nprint(memory('VmHWM') - before)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return 1024 * int(result.stdout)

    def test_on_meta_the_largest_takes_none(self) -> None:
        lines = 'with torch.device("meta"):\n    model = GPT(GPTConfig.preset("gpt2-xl"))'
        assert self.peak_growth(lines) < 50e6

    def test_weights_are_allocated_once(self) -> None:
        lines = f'with torch.device("meta"):\n    model = GPT(GPTConfig(**{WIDE}))\n'
        lines += 'model.to_empty(device="cpu").init_weights()'
        assert self.peak_growth(lines) < 1.1 * self.nbytes()

    def test_loading_a_run_takes_the_weights_and_little_more(self, tmp_path: Path) -> None:
        save_run(GPT(GPTConfig(**WIDE)), tmp_path)
        lines = f"model = GPT.from_run({str(tmp_path)!r})\nsum(p.sum() for p in model.parameters())"
        assert self.nbytes() < self.peak_growth(lines) < 1.1 * self.nbytes()

    def nbytes(self) -> int:
        with torch.device("meta"):
            return 4 * GPT(GPTConfig(**WIDE)).n_parameters


def graph_changes(kind: str) -> dict[str, int]:
    """Return what a model for graphs has of its own: one block, since a second is traced like the first."""
    return {"n_layers": 1, **({"vocab_multiple": 100} if kind == "padded" else {})}


class TestGraphs:
    """For production, and for speed, the forward pass is one graph."""

    @pytest.mark.parametrize("kind", [*KINDS, "padded"])
    def test_an_exported_model_computes_the_same(self, kind: str, tmp_path: Path) -> None:
        """For batches and lengths it was not exported with; from a file, without our code."""
        model = model_of("mha" if kind == "padded" else kind, **graph_changes(kind)).eval()
        any_shape = {"ids_BT": {0: Dim("batch"), 1: Dim("time", max=model.config.context_length)}}
        # inside a window and beyond it are two different graphs: one length each
        fixed = model.config.attention == "swa"
        program = torch.export.export(model, (ids_of(2, 30),), dynamic_shapes=None if fixed else any_shape)
        torch.export.save(program, tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
        for B, T in [(2, 30)] if fixed else [(2, 30), (1, 1), (3, 64), (5, 17)]:
            with torch.no_grad():
                logits, loss = loaded(ids_of(B, T))
                assert loss is None
                torch.testing.assert_close(logits, model(ids_of(B, T))[0], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("frugal", [False, True])
    @pytest.mark.parametrize("kind", [*KINDS, "padded"])
    def test_no_graph_breaks(self, kind: str, frugal: bool) -> None:
        """The compiler's front half, which finds the graph, without the back half, which needs C++."""
        torch._dynamo.reset()
        model = model_of("mha" if kind == "padded" else kind, checkpoint_activations=frugal, **graph_changes(kind))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        found = loss_and_gradients(model, ids_of(2, 64), compiled)
        torch.testing.assert_close(found, loss_and_gradients(model, ids_of(2, 64)), rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["mha", "experts"])
    def test_compiled_it_trains_the_same(self, kind: str) -> None:
        if not compiler_works("cpu"):
            pytest.skip("there is no compiler")
        torch._dynamo.reset()
        model = model_of(kind, n_layers=1, checkpoint_activations=True)
        found = loss_and_gradients(model, ids_of(2, 64), torch.compile(model, fullgraph=True))
        torch.testing.assert_close(found, loss_and_gradients(model, ids_of(2, 64)), rtol=1e-4, atol=1e-6)
