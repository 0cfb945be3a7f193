"""The script: prompt in, text out, and one line for what cannot be."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_model import GPT, convert, generate
from gpt_model.run_directory import load_tokenizer
from utils.files import InputError
from working_with_text_data.minbpe import GPT2Tokenizer, RegexTokenizer


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
    ids = torch.tensor([GPT2Tokenizer().encode("Anne was")])
    written = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, pad_token_id=0
    )
    config = generate.Config(pretrained=str(tmp_path), prompt="Anne was", max_new_tokens=9, temperature=0, device="cpu")
    assert generate.main(config) == GPT2Tokenizer().decode(written[0, ids.shape[1] :].tolist())


def test_a_folder_with_another_vocabulary_needs_its_run(finished_run: Path, tmp_path: Path) -> None:
    """Whatever is made with GPT-2's tokenizer of it, nothing could read."""
    model = GPT.from_run(finished_run)
    model.export_to_hf(tmp_path / "theirs", load_tokenizer(finished_run))
    message = "has 512 tokens, and GPT-2's tokenizer 50,257: .* name that by --run"
    with pytest.raises(InputError, match=message):
        generate.main(generate.Config(pretrained=str(tmp_path / "theirs")))
    with pytest.raises(InputError, match=message):
        convert.main(convert.Config(pretrained=str(tmp_path / "theirs"), latent_dim=8, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is a model in the layout of Hugging Face, not a run directory"):
        generate.main(generate.Config(run=tmp_path / "theirs"))


def test_one_model_must_be_named() -> None:
    for config in (generate.Config(), generate.Config(run=Path("a"), pretrained="gpt2")):
        with pytest.raises(InputError, match="either --run with a run directory, or --pretrained"):
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


def test_another_runs_tokenizer(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    RegexTokenizer().save(run / "bpe.json")
    with pytest.raises(InputError, match="from different runs"):
        generate.main(generate.Config(run=run))
    assert load_tokenizer(finished_run).vocab_size == 512
