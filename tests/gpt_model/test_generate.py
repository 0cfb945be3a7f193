"""The script: prompt in, text out, and one line for what cannot be."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_model import GPT, GPTConfig, convert, generate
from gpt_model.run_directory import identity, load_tokenizer
from utils.files import InputError
from working_with_text_data.minbpe import GPT2Tokenizer, RegexTokenizer, to_huggingface


def test_prints_prompt_and_continuation(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = generate.main(generate.Config(run=finished_run, prompt="Anne was", max_new_tokens=9, device="cpu"))
    assert capsys.readouterr().out == f"Anne was{text}\n"
    assert text


def test_an_earlier_snapshot_writes_something_else(finished_run: Path) -> None:
    config = {"run": finished_run, "prompt": "Anne was", "max_new_tokens": 20, "seed": 0, "device": "cpu"}
    last = generate.main(generate.Config(**config))
    assert generate.main(generate.Config(**config)) == last
    assert generate.main(generate.Config(**config, weights="snapshots/step_000000.safetensors")) != last


def test_knobs_reach_the_text(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"run": finished_run, "prompt": "Anne was", "max_new_tokens": 20, "seed": 0, "device": "cpu"}
    text = generate.main(generate.Config(**config))
    stop = text[4:6]
    assert generate.main(generate.Config(**config, stop=(stop,))) == text.split(stop)[0]
    assert generate.main(generate.Config(**config, repetition_penalty=3.0)) != text
    with pytest.raises(InputError, match="more than the context of 32"):
        generate.main(generate.Config(**{**config, "max_new_tokens": 99}, overflow="error"))


def test_a_folder_of_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    size = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    theirs = GPT2LMHeadModel(GPT2Config(**size)).eval()
    theirs.save_pretrained(tmp_path)
    to_huggingface(GPT2Tokenizer(), tmp_path)
    ids = torch.tensor([GPT2Tokenizer().encode("Anne was")])
    written = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, pad_token_id=0
    )
    config = generate.Config(pretrained=str(tmp_path), prompt="Anne was", max_new_tokens=9, temperature=0, device="cpu")
    assert generate.main(config) == GPT2Tokenizer().decode(written[0, ids.shape[1] :].tolist())


def test_a_folder_is_read_with_its_own_tokenizer(finished_run: Path, tmp_path: Path) -> None:
    GPT.from_run(finished_run).export_to_hf(tmp_path / "theirs", load_tokenizer(finished_run))
    how = {"prompt": "Anne was", "max_new_tokens": 9, "temperature": 0, "device": "cpu"}
    text = generate.main(generate.Config(run=finished_run, **how))
    assert generate.main(generate.Config(pretrained=str(tmp_path / "theirs"), **how)) == text
    convert.main(convert.Config(pretrained=str(tmp_path / "theirs"), latent_dim=32, out=tmp_path / "out"))
    assert identity(load_tokenizer(tmp_path / "out")) == identity(load_tokenizer(finished_run))
    with pytest.raises(InputError, match="is a model in the layout of Hugging Face, not a run directory"):
        generate.main(generate.Config(run=tmp_path / "theirs"))


def test_a_folder_whose_tokenizer_is_missing_or_anothers(tmp_path: Path) -> None:
    """A vocabulary of 50,257 tokens need not be GPT-2's."""
    folder, out = tmp_path / "theirs", tmp_path / "out"
    GPT(GPTConfig.preset("tiny", vocab_size=50_257)).export_to_hf(folder)
    for message in ("theirs has no tokenizer, .* name that run", "the model has 50,257 .*theirs has 256 tokens"):
        with pytest.raises(InputError, match=message):
            generate.main(generate.Config(pretrained=str(folder)))
        with pytest.raises(InputError, match=message):
            convert.main(convert.Config(pretrained=str(folder), latent_dim=8, out=out))
        assert not out.exists()
        to_huggingface(RegexTokenizer(), folder)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_is_not_commanded_by_a_text(
    terminal: bool, finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    prompt = "Anne\x1b]0;title\x07\x9b2J\r was\n\tnaïve"
    generate.main(generate.Config(run=finished_run, prompt=prompt, max_new_tokens=1, device="cpu"))
    shown = r"Anne\x1b]0;title\x07\x9b2J\r was" + "\n\tnaïve" if terminal else prompt
    assert capsys.readouterr().out.startswith(shown)


def test_what_will_be_forgotten_is_said_before_the_text(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said_before: list[str] = []
    monkeypatch.setattr(generate, "show", lambda text: said_before.extend(caplog.messages))
    generate.main(generate.Config(run=finished_run, prompt="Anne was", max_new_tokens=40, device="cpu"))
    assert len(caplog.messages) == 1
    assert set(said_before) == set(caplog.messages)


def test_one_model_must_be_named() -> None:
    for config in (generate.Config(), generate.Config(run=Path("a"), pretrained="gpt2")):
        with pytest.raises(InputError, match="a run directory .--run; to fine-tune, --base., or --pretrained"):
            generate.main(config)


def test_runs_that_cannot_be_read(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        generate.main(generate.Config(run=tmp_path))
    with pytest.raises(InputError, match=r"there are no weights .*step_9\.safetensors"):
        generate.main(generate.Config(run=finished_run, weights="step_9.safetensors"))
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        generate.main(generate.Config(run=run))


def test_another_models_weights(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"n_layers": 2', '"n_layers": 3'))
    with pytest.raises(InputError, match=r"holds another model's weights: blocks\.2\.\S+ is missing there"):
        GPT.from_run(run)
    (run / "config.json").write_text(config.replace('"d_model": 32', '"d_model": 64'))
    with pytest.raises(InputError, match=r"holds another model's weights: \S+ is \(\d+.*\) there, \(\d+"):
        GPT.from_run(run)
    (run / "config.json").write_text(config[:-20])
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        GPT.from_run(run)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_layers", 10**6, "n_layers must be at least 1 and at most 1,024, got 1000000"),
        ("n_layers", 1000, "holds another model's weights: 28 tensors are too few for the n_layers 1,000"),
        ("n_experts", 10**6, "n_experts must be at least 0 and at most 1,024, got 1000000"),
        ("n_experts", 1000, "holds another model's weights: 28 tensors are too few for .* n_experts 1,000"),
        ("d_model", 10**9, "d_model must be at least 1 and at most 65,536, got 1000000000"),
        ("d_model", 65_536, "holds another model's weights"),
        ("d_model", "32", "d_model must be a whole number, .*, got '32'"),
        ("context_length", None, "context_length must be a whole number, .*, got None"),
        ("dropout", "0", "dropout must be a number, .*, got '0'"),
        ("dropout", math.nan, "dropout must be at least 0 and below 1, got nan"),
        ("bias", "no", "bias must be true or false, got 'no'"),
        ("attention", ["mha"], r"attention must be one of mha, .*, got \['mha'\]"),
        ("n_heads", 10**400, "n_heads must be at least 1 and at most 1,024, got 1000"),
    ],
    ids=str,
)
def test_a_config_that_is_damaged_or_endless_is_refused_at_once(
    field: str, value: object, message: str, finished_run: Path, tmp_path: Path
) -> None:
    config = json.loads((finished_run / "config.json").read_text())
    config["model"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(finished_run / "model.safetensors", tmp_path)
    with pytest.raises(InputError, match=message) as error:
        GPT.from_run(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_damaged_weights_and_configs(finished_run: Path, tmp_path: Path) -> None:
    shutil.copy(finished_run / "config.json", tmp_path)
    tensors = load_file(finished_run / "model.safetensors")
    for number in (math.nan, math.inf, -math.inf):
        tensors["final_norm.bias"][3] = number
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match="model.safetensors: final_norm.bias holds NaN or infinite numbers"):
            GPT.from_run(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=f"is a Git LFS pointer, not the file itself: run git lfs pull in {tmp_path}"):
        GPT.from_run(tmp_path)
    (tmp_path / "config.json").write_text("[" * 5000)
    with pytest.raises(InputError, match=r"config\.json is damaged: its brackets are nested too deeply"):
        GPT.from_run(tmp_path)


def test_another_runs_tokenizer(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    RegexTokenizer().save(run / "bpe.json")
    with pytest.raises(InputError, match="is not the tokenizer that the run was made with"):
        generate.main(generate.Config(run=run))
    assert load_tokenizer(finished_run).vocab_size == 512
