"""Checkpoints of GPT-2 in and out, against transformers with random weights."""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_model import GPT, GPTConfig, pretrained
from tests.hub import Hub
from utils.files import InputError
from working_with_text_data.minbpe import BasicTokenizer, GPT2Tokenizer, RegexTokenizer

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).parent.parent.parent
WTE, QKV = "transformer.wte.weight", "transformer.h.1.attn.c_attn.weight"


def gpt2(**changes: Any) -> Any:
    """transformers' model, its weights larger than initial ones, biases and norms too: nothing hides at zero."""
    shape = {"vocab_size": 301, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**{**shape, "bos_token_id": None, "eos_token_id": None, **changes})
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def theirs() -> Any:
    return gpt2()


@pytest.fixture
def folder(theirs: Any, tmp_path: Path) -> Path:
    """A checkpoint that transformers saved."""
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def tiny(**changes: object) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset("tiny", **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def assert_same_logits(ours: GPT, theirs: Any, tolerance: float = 1e-5) -> None:
    """In their dtype; the tolerance is of the largest logit."""
    ids = torch.randint(ours.config.vocab_size, (3, ours.config.context_length))
    with torch.no_grad():
        expected = theirs(ids).logits
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(ours(ids)[0], expected, rtol=0, atol=atol)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a folder's model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def as_bin(folder: Path, **how: Any) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **how)
    (folder / "model.safetensors").unlink()


def as_shards(folder: Path, kind: str) -> None:
    """Deal the tensors out to three files, so that the tensors of a block are in more than one."""
    tensors = load_file(folder / "model.safetensors")
    names = {key: f"part-{i % 3}.{kind}" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        part = {key: tensors[key].clone() for key in tensors if names[key] == name}
        save_file(part, folder / name) if kind == "safetensors" else torch.save(part, folder / name)
    (folder / "model.safetensors").unlink()
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize(
    "shape",
    [{}, {"n_embd": 20, "n_head": 1, "n_layer": 1}, {"n_head": 12, "n_layer": 3, "n_inner": 192}, {"n_embd": 128}],
    ids=str,
)
def test_logits_equal_transformers(shape: dict[str, int], tmp_path: Path) -> None:
    theirs = gpt2(**shape)
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    assert not ours.training
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in ours.parameters())
    assert ours.n_parameters == sum(weight.numel() for weight in theirs.parameters())
    assert_same_logits(ours, theirs)
    assert_same_logits(ours.double(), theirs.double(), 1e-13)  # and not by a tolerance that hides something


FORMS = {
    "as transformers saves it": lambda folder: None,
    "sharded": lambda folder: as_shards(folder, "safetensors"),
    "bin": as_bin,
    "sharded bin": lambda folder: as_shards(folder, "bin"),
    "bin from before PyTorch 1.6": lambda folder: as_bin(folder, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_weights(form: str, prefix: str, theirs: Any, folder: Path) -> None:
    expected = GPT.from_pretrained(folder).state_dict()

    def as_published(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace("transformer.", prefix)] = tensors.pop(key)
        for layer in range(2):  # what carries no weights
            tensors[f"{prefix}h.{layer}.attn.bias"] = torch.ones(32, 32).tril().view(1, 1, 32, 32)
            tensors[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()

    rewrite(folder, as_published)
    FORMS[form](folder)
    model = GPT.from_pretrained(folder)
    torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=0, atol=0)
    assert_same_logits(model, theirs)


def test_shards_as_transformers_saves_them(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, folder: Path) -> None:
    before = GPT.from_pretrained(folder)
    rewrite(folder, lambda tensors: tensors.update({key: value.to(dtype) for key, value in tensors.items()}))
    for name, weight in GPT.from_pretrained(folder).state_dict().items():
        assert torch.equal(weight, before.state_dict()[name].to(dtype).float()), name


MUTATIONS = {
    f"has no {QKV.removeprefix('transformer.')}, which a model of its config.json needs": lambda t: t.pop(QKV),
    f"{QKV} has the shape (144, 48), but by config.json it is (48, 144)": lambda t: t.update(
        {QKV: t[QKV].T.contiguous()}
    ),
    f"{WTE} has the shape (300, 48), but by config.json it is (301, 48)": lambda t: t.update({WTE: t[WTE][:300]}),
    "holds transformer.h.2.ln_1.weight, which a GPT-2 of its config.json does not have": lambda t: t.update(
        {"transformer.h.2.ln_1.weight": torch.ones(48)}
    ),
    "holds h.0.attn.rotary, which a GPT-2": lambda t: t.update({"h.0.attn.rotary": torch.ones(48)}),
    f"holds wte.weight twice, as {WTE} and as wte.weight": lambda t: t.update({"wte.weight": t[WTE].clone()}),
    f"lm_head.weight differs from {WTE}, but the output layer of our GPT is": lambda t: t.update(
        {"lm_head.weight": t[WTE] + torch.eye(301, 48)}
    ),
    "lm_head.weight differs": lambda t: t.update({"lm_head.weight": t[WTE].half()}),
    f"{QKV} must hold floating-point numbers, got torch.int8": lambda t: t.update({QKV: t[QKV].to(torch.int8)}),
}


@pytest.mark.parametrize("message", MUTATIONS)
def test_a_tensor_that_is_not_right_is_named(message: str, folder: Path) -> None:
    rewrite(folder, MUTATIONS[message])
    with pytest.raises(InputError, match=re.escape(message)) as error:
        GPT.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "llama", "model_type must be 'gpt2', got 'llama'"),
        (
            "activation_function",
            "gelu",
            "activation_function must be 'gelu_new' or 'gelu_pytorch_tanh' or",
        ),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon must be 1e-05, got 1e-06"),
        ("scale_attn_weights", False, "scale_attn_weights must be True, got False"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx must be False, got True"),
        ("add_cross_attention", True, "add_cross_attention must be False, got True"),
        ("tie_word_embeddings", False, "tie_word_embeddings must be True, got False"),
        ("n_inner", 100, "n_inner must be four times n_embd, 192, got 100"),
        ("n_embd", "48", "n_embd must be a whole number, got '48'"),
        ("n_layer", None, "n_layer must be a whole number, got None"),
        ("n_head", 5, "n_head must divide n_embd, got 5 heads for width 48"),
        ("resid_pdrop", "0.1", "resid_pdrop must be a number, at least 0 and below 1, got '0.1'"),
        ("n_layer", 10**6, "n_layer must be at least 1 and at most 1,024, got 1000000"),
        ("n_layer", 1000, "has 28 tensors, too few for the n_layer 1,000 of config.json"),
        ("n_embd", 10**9, "n_embd must be at least 1 and at most 65,536, got 1000000000"),
        ("n_positions", True, "n_positions must be a whole number, at least 1 and at most 16,777,216, got True"),
        ("n_layer", 3, "has no h.2.ln_1.weight"),
        ("n_layer", 1, "holds transformer.h.1.attn.c_attn.bias, which a GPT-2 of its config.json does not have"),
        ("n_positions", 64, "wpe.weight has the shape (32, 48), but by config.json it is (64, 48)"),
    ],
)
def test_what_our_model_would_compute_differently_is_refused(
    field: str, value: object, message: str, folder: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(InputError, match=re.escape(message)):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"])
def test_every_name_of_our_activation_is_loaded(name: str, tmp_path: Path) -> None:
    theirs = gpt2(activation_function=name).double()
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path).double()
    assert_same_logits(ours, theirs, 1e-10)  # gelu_fast writes a constant with fewer digits


def test_of_unequal_dropouts_one_is_taken(folder: Path, theirs: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_pdrop": 0.0, "resid_pdrop": 0.2}))
    model = GPT.from_pretrained(folder)
    assert model.config.dropout == 0.2
    assert "we have one dropout, and take resid_pdrop, 0.2" in caplog.text
    assert_same_logits(model, theirs)


def test_a_config_that_leaves_out_defaults_is_read_as_transformers_reads_it(theirs: Any, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {
        field: config[field] for field in ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    }
    (folder / "config.json").write_text(json.dumps(kept))
    model = GPT.from_pretrained(folder)
    assert model.config.dropout == transformers.GPT2Config.from_pretrained(folder).resid_pdrop == 0.1
    assert_same_logits(model, theirs)


def test_folders_that_are_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = f"{tmp_path / 'empty'} is not a model in the layout of Hugging Face: it has no config.json"
    with pytest.raises(InputError, match=message):
        GPT.from_pretrained(tmp_path / "empty")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights: none of model.safetensors, model.safetensors.index.json, p"):
        GPT.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InputError, match=r"model.safetensors is damaged: "):
        GPT.from_pretrained(folder)
    (folder / "config.json").write_text("[" * 5000)
    with pytest.raises(InputError, match="config.json is damaged: its brackets are nested too deeply"):
        GPT.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is damaged: "):
        GPT.from_pretrained(folder)
    (folder / "config.json").write_text('{"model": {}, "training": {}}')
    with pytest.raises(InputError, match=f"{folder} is a run directory: GPT.from_run reads it"):
        GPT.from_pretrained(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    as_shards(folder, "safetensors")
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"index.json names the file part-1.safetensors, which is missing"):
        GPT.from_pretrained(folder)
    for damaged in ({}, {"weight_map": {"wte.weight": 1}}, {"weight_map": {"wte.weight": "../outside.safetensors"}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"index.json is damaged: it must say in 'weight_map' which file holds"):
            GPT.from_pretrained(folder)


class Trap:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_bin_file_that_brings_code_is_refused_and_its_code_not_run(new_format: bool, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"wte.weight": Trap(folder / "sprung")}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError, match="pytorch_model.bin cannot be read as weights: ") as error:
        GPT.from_pretrained(folder)
    assert str(error.value).isprintable()
    assert "weights_only" not in str(error.value)  # torch's advice is to run the code
    assert not (folder / "sprung").exists()
    torch.save({"model": {"wte.weight": torch.ones(3)}}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError, match="pytorch_model.bin must hold dense tensors by name and nothing else"):
        GPT.from_pretrained(folder)
    torch.save({"wte.weight": torch.ones(3, device="meta")}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError, match="pytorch_model.bin: wte.weight has a shape but no numbers"):
        GPT.from_pretrained(folder)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="pytorch_model.bin cannot be read as weights: ") as error:
        GPT.from_pretrained(folder)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_pointer_of_git_lfs_is_named(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n")
    with pytest.raises(InputError, match=f"{name} is a Git LFS pointer, not the file itself: run git lfs pull in"):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize("form", ["as transformers saves it", "bin"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_named(form: str, number: float, folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors[QKV][5].fill_(number))
    FORMS[form](folder)
    with pytest.raises(InputError, match=f"{QKV} holds NaN or infinite numbers"):
        GPT.from_pretrained(folder)


def test_a_number_that_float32_cannot_hold_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({QKV: tensors[QKV].double().fill_(1e300)}))
    with pytest.raises(InputError, match=f"{QKV} holds NaN or infinite numbers"):
        GPT.from_pretrained(folder)


def test_a_name_nobody_knows() -> None:
    with pytest.raises(
        InputError, match="'gpt5' is neither a folder nor one of gpt2, gpt2-medium, gpt2-large, gpt2-xl"
    ):
        GPT.from_pretrained("gpt5")


def test_a_folder_has_no_revisions(folder: Path) -> None:
    with pytest.raises(InputError, match="is a folder: it has no revision 'main'"):
        GPT.from_pretrained(folder, revision="main")


def test_a_size_is_downloaded_from_the_hub(theirs: Any, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "openai-community" / "gpt2"
    theirs.save_pretrained(repository)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (repository / name).write_text("{}")
    code = f"from gpt_model import GPT; GPT.from_pretrained('gpt2', cache_dir={str(tmp_path / 'cache')!r}, "
    code += f"revision='main').export_to_hf({str(tmp_path / 'ours')!r})"
    with Hub(tmp_path / "hub") as hub:
        environment = {"PATH": "", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True, capture_output=True)
        assert "model.safetensors" in {request.file for request in hub.requests}
    assert_same_logits(GPT.from_pretrained(tmp_path / "ours"), theirs)


MEMORY = """
import sys
from pathlib import Path
from gpt_model import GPT

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

small, large = sys.argv[1:]
GPT.from_pretrained(small)  # a first model makes PyTorch import some 70 MB of its own
Path("/proc/self/clear_refs").write_text("5")  # the peak begins now
before = memory("VmRSS")
model = GPT.from_pretrained(large)
print((memory("VmHWM") - before) / sum(weight.nbytes for weight in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux shows it")
@pytest.mark.parametrize("form", ["as transformers saves it", "bin"])
def test_loading_needs_little_more_memory_than_the_weights(form: str, folder: Path, tmp_path: Path) -> None:
    """Pages of mapped files included, though the system could take these back."""
    GPT(GPTConfig(d_model=448, n_layers=12, n_heads=7, context_length=256)).export_to_hf(tmp_path / "large")
    FORMS[form](tmp_path / "large")
    command = [sys.executable, "-c", MEMORY, folder, tmp_path / "large"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert 0.95 < float(result.stdout) < 1.1


def exported(path: Path) -> Any:
    """Their model from what we exported; nothing may be missing or left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize(
    "changes", [{}, {"n_heads": 4}, {"vocab_size": 509, "vocab_multiple": 64}, {"bias": False}], ids=str
)
def test_transformers_computes_the_same_logits_from_an_export(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**changes)
    model.export_to_hf(tmp_path / "theirs")
    theirs = exported(tmp_path / "theirs")
    assert theirs.lm_head.weight.shape == (model.config.vocab_size, 64)
    assert_same_logits(model, theirs)
    assert_same_logits(model.double(), theirs.double(), 1e-13)
    assert not (tmp_path / "theirs" / "tokenizer.json").exists()  # nobody knows which


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    model = tiny().bfloat16()
    model.export_to_hf(tmp_path / "theirs")
    theirs = exported(tmp_path / "theirs")
    assert theirs.dtype == torch.bfloat16
    assert_same_logits(model.double(), theirs.double(), 1e-13)


@settings(max_examples=15, deadline=None)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    vocab=st.integers(1, 100),
    multiple=st.sampled_from([1, 3, 64]),
    context=st.integers(1, 20),
)
def test_an_export_loads_again_bit_for_bit(
    layers: int, heads: int, head_dim: int, vocab: int, multiple: int, context: int, tmp_path_factory: Any
) -> None:
    shape = {"n_layers": layers, "n_heads": heads, "d_model": heads * head_dim, "context_length": context}
    model = tiny(**shape, vocab_size=vocab, vocab_multiple=multiple, dropout=0.25)
    path = tmp_path_factory.mktemp("export") / "new" / "folder"
    model.export_to_hf(path)
    again = GPT.from_pretrained(path)
    assert again.config == GPTConfig(**shape, vocab_size=vocab, dropout=0.25)
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name][: len(weight)]), name


def test_the_tokenizer_goes_along(persuasion: str, tmp_path: Path) -> None:
    tokenizer = RegexTokenizer()
    tokenizer.train(persuasion[:50_000], 400)
    tokenizer.add_special_tokens("<|endoftext|>")
    tiny(vocab_size=401).export_to_hf(tmp_path / "own", tokenizer)
    tiny(vocab_size=50_257).export_to_hf(tmp_path / "gpt2", GPT2Tokenizer())
    for path, ours in ((tmp_path / "own", tokenizer), (tmp_path / "gpt2", GPT2Tokenizer())):
        theirs = transformers.AutoTokenizer.from_pretrained(path)
        for text in ("", "It is a truth universally acknowledged, that\n\n  60 naïve 👩‍👧 don't", persuasion[:5000]):
            assert theirs.encode(text) == ours.encode(text)
        end = ours.special_tokens["<|endoftext|>"]
        assert theirs.eos_token_id == exported(path).config.eos_token_id == end
        assert theirs.encode("a<|endoftext|>b") == ours.encode("a<|endoftext|>b", allowed_special="all")


def test_a_model_remembers_by_which_name_it_was_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.ModelManager, "download_gpt2_model", lambda *_, **__: folder)
    assert GPT.from_pretrained("gpt2").published_as == "gpt2"
    assert GPT.from_pretrained("gpt2", revision="another").published_as is None
    assert GPT.from_pretrained(folder).published_as is None


def test_gpt2s_own_tokenizer_is_not_guessed_from_its_size(tmp_path: Path) -> None:
    model = tiny(vocab_size=50_257)
    model.export_to_hf(tmp_path / "some")
    assert GPT.from_pretrained(tmp_path / "some").published_as is None
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["config.json", "model.safetensors"]
    model.published_as = "gpt2"
    model.export_to_hf(tmp_path / "gpt2")
    assert json.loads((tmp_path / "gpt2" / "config.json").read_text())["eos_token_id"] == 50_256
    assert (tmp_path / "gpt2" / "tokenizer.json").exists()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_others_may_read_weights_where_they_may_read_the_rest(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        tiny().export_to_hf(tmp_path / "theirs")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "theirs").iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors"), 0o666 & ~mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "gqa", "n_kv_groups": 1}, "attention must be 'mha' to export a model as a GPT-2, got 'gqa'"),
        ({"attention": "swa"}, "attention must be 'mha'"),
        ({"position": "rope"}, "position must be 'learned' to export a model as a GPT-2, got 'rope'"),
        ({"n_experts": 4}, "n_experts must be 0 to export a model as a GPT-2, got 4"),
    ],
    ids=str,
)
def test_what_a_gpt2_cannot_express_is_not_exported(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**changes).export_to_hf(tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_a_model_with_other_parameters_is_not_exported(tmp_path: Path) -> None:
    model = tiny()
    model.blocks[1].adapter = torch.nn.Linear(64, 64)
    with pytest.raises(InputError, match="a GPT-2 has no blocks.1.adapter.bias"):
        model.export_to_hf(tmp_path / "theirs")


def test_a_tokenizer_of_another_model_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model has 512 tokens but the tokenizer has 50,257"):
        tiny().export_to_hf(tmp_path / "theirs", GPT2Tokenizer())
    with pytest.raises(InputError, match="tokenizer must be a RegexTokenizer to be exported, got Basic"):
        tiny().export_to_hf(tmp_path / "theirs", BasicTokenizer())  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir()
    tiny().export_to_hf(path)  # an empty folder is no loss
    before = {file: file.read_bytes() for file in path.iterdir()}
    for taken in (path, path / "config.json"):
        with pytest.raises(InputError, match=f"{taken} is there already: export to another folder, or delete it"):
            tiny(n_heads=1).export_to_hf(taken)
    assert {file: file.read_bytes() for file in path.iterdir()} == before


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    code = "import resource, sys; from gpt_model import GPT, GPTConfig; model = GPT(GPTConfig.preset('tiny'))\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    code += f"try: model.export_to_hf({str(tmp_path / 'theirs')!r})\nexcept Exception as error: print(repr(error))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.startswith(f"InputError('could not write {tmp_path / 'theirs'}: ")
    assert not list(tmp_path.iterdir())
