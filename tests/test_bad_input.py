"""What a user gets wrong, through the real command line: one line that names it, and nothing saved is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run
from utils.files import sha256

ROOT = Path(__file__).parent.parent
TOKENIZER, PREPARE = "working_with_text_data.train_tokenizer", "working_with_text_data.prepare"
TRAIN, GENERATE, EVALUATE = "pretraining.simple", "gpt_model.generate", "pretraining.evaluate"
TINY = [
    "--context-length", "32", "--d-model", "32", "--n-layers", "2", "--n-heads", "2", "--steps", "12", "--batch-size",
    "4", "--precision", "float32", "--compile", "off", "--device", "cpu", "--eval-every", "5", "--eval-blocks", "8",
    "--checkpoint-every", "4", "--position", "learned", "--schedule", "cosine",
]  # fmt: skip


def error(module: str, *arguments: object, file_size: int | None = None) -> str:
    """Return the one line of a command that must fail."""
    result = run(module, *arguments, file_size=file_size)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert line.startswith("error: "), result.stderr
    return line


def contents(folder: Path) -> dict[Path, str]:
    return {path: sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def test_a_missing_file(tmp_path: Path) -> None:
    message = f"error: there is no file or folder {tmp_path / 'none.txt'}"
    assert error(TOKENIZER, "--text", tmp_path / "none.txt", "--out", tmp_path / "t.json") == message
    assert not (tmp_path / "t.json").exists()


def test_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    line = error(TOKENIZER, "--text", tmp_path / "empty.txt", "--out", tmp_path / "t.json")
    assert line == f"error: {tmp_path / 'empty.txt'} is empty: none of its documents holds any text"


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    line = error(TOKENIZER, "--text", tmp_path / "latin.txt", "--out", tmp_path / "t.json")
    assert line == f"error: {tmp_path / 'latin.txt'} is not UTF-8 text: byte 1 is 0xe9"


def test_a_vocabulary_below_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    line = error(TOKENIZER, "--text", tmp_path / "a.txt", "--vocab-size", 200, "--out", tmp_path / "t.json")
    assert "vocab_size must be at least 257 and at most 1,000,000, got 200" in line


def test_text_shorter_than_one_block(data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only a few words\n")
    assert (
        run(PREPARE, "--text", tmp_path / "a.txt", "--tokenizer", data / "bpe.json", "--out", tmp_path / "d").returncode
        == 0
    )
    line = error(TRAIN, "--data", tmp_path / "d", "--out", tmp_path / "run", *TINY)
    assert "fewer than the 33 of one block: give more text, or a shorter context" in line
    assert not (tmp_path / "run").exists()


def test_a_truncated_shard(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "d")
    shard = tmp_path / "d" / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-7])
    assert f"{shard} is damaged: its header says" in error(
        TRAIN, "--data", tmp_path / "d", "--out", tmp_path / "run", *TINY
    )


def test_corrupted_checkpoints(data: Path, copy: Path) -> None:
    for weights in [*copy.glob("train_state/*/model.safetensors"), copy / "model.safetensors"]:
        weights.write_bytes(weights.read_bytes()[:1000])
    line = error(TRAIN, "--data", data, "--out", copy, "--snapshot-every", 6, *TINY)
    assert line == f"error: every checkpoint in {copy / 'train_state'} is damaged: start over with --fresh"
    line = error(GENERATE, "--run", copy)
    assert f"{copy / 'model.safetensors'} is damaged" in line


def test_a_run_of_another_model(data: Path, copy: Path) -> None:
    before = contents(copy)
    line = error(TRAIN, "--data", data, "--out", copy, *TINY, "--n-layers", 4)
    assert f"{copy} holds a run with n_layers 2, not 4: choose another --out, or give --fresh" in line
    assert contents(copy) == before
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"n_layers": 2', '"n_layers": 4'))
    assert "holds another model's weights: blocks.2." in error(GENERATE, "--run", copy)
    assert "holds another model's weights: blocks.2." in error(EVALUATE, "--run", copy, "--data", data)


def test_no_run_at_all(tmp_path: Path) -> None:
    assert f"error: {tmp_path} is not a run directory" in error(GENERATE, "--run", tmp_path)


def test_watching_what_is_not_there(tmp_path: Path) -> None:
    assert f"error: {tmp_path} is not a run directory" in error("pretraining.watch", tmp_path)


def test_an_example_of_hellaswag_that_is_none(finished_run: Path, tmp_path: Path) -> None:
    line = error("pretraining.hellaswag", "--run", finished_run, "--data", tmp_path)
    assert line.startswith(f"error: there is no file {tmp_path}: HellaSwag's is at https://")
    (tmp_path / "a.jsonl").write_text('{"ctx": "He", "endings": ["runs.", "rain."], "label": 0}\n{"ctx": "He"}\n')
    line = error("pretraining.hellaswag", "--run", finished_run, "--data", tmp_path / "a.jsonl")
    assert line == f"error: {tmp_path / 'a.jsonl'}, line 2 has no list of two or more texts as endings"
    assert not (finished_run / "hellaswag.json").exists()


@pytest.mark.parametrize("size", [1000, 30_000, 80_000])
def test_a_write_that_fails_midway(data: Path, tmp_path: Path, size: int) -> None:
    """No mock: the kernel refuses to let any file grow past the limit."""
    text = ROOT / "working_with_text_data" / "corpus" / "persuasion.txt"
    line = error(PREPARE, "--text", text, "--tokenizer", data / "bpe.json", "--out", tmp_path / "d", file_size=size)
    assert line.endswith("File too large")
    assert not list(tmp_path.iterdir())
    assert run(TRAIN, "--data", data, "--out", tmp_path / "run", *TINY, "--steps", 12, "--d-model", 16).returncode == 0
    before = contents(tmp_path / "run" / "train_state")
    command = [TRAIN, "--data", data, "--out", tmp_path / "run", *TINY, "--steps", 14, "--d-model", 16]
    line = error(*command, file_size=size)
    # torch's writer of the training state does not say why
    assert "File too large" in line or "the disk took only a part of the file" in line
    assert contents(tmp_path / "run" / "train_state") == before
    assert run(GENERATE, "--run", tmp_path / "run", "--max-new-tokens", 3).returncode == 0
    assert run(*command).returncode == 0  # with room again, it goes on


def test_presets_and_help_read_like_documentation() -> None:
    result = run(TRAIN, "--help")
    assert "Pretrain a GPT on one device." in result.stdout
    assert "Presets, as first argument: demo." in result.stdout
    assert "Peak learning rate of Muon." in result.stdout
    assert "(default: 1200)" in run(TRAIN, "demo", "--help").stdout


def test_an_unknown_option_is_named() -> None:
    result = run(TRAIN, "demo", "--stepz", 3)
    assert result.returncode == 2
    assert "--stepz" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_debugging_shows_where(tmp_path: Path) -> None:
    environment = {**os.environ, "LOG_LEVEL": "debug"}
    command = [sys.executable, "-m", GENERATE, "--run", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert "Traceback" in result.stderr
