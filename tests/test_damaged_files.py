"""Every kind of file that is read, damaged 200 times: one line that says so, or a sound result with no text lost.

What a trainer writes has its own tests, in pretraining/test_damaged_runs.py.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gpt_model import GPT, GPTConfig
from tests.mutations import MUTATIONS, hurt
from working_with_text_data.minbpe import RegexTokenizer, Tokenizer
from working_with_text_data.shards import open_shard, write_shard
from working_with_text_data.text_files import split_documents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how large the process is")

SAMPLE = "It's 1815: déjà vu?\n\n\t  Nobody'll say: 日本語! \x00 end"


def test_tokenizers(tmp_path: Path, persuasion: str) -> None:
    tokenizer = RegexTokenizer()
    tokenizer.train(persuasion[:20_000], 400)
    tokenizer.add_special_tokens("<|endoftext|>")
    path = tmp_path / "bpe.json"
    tokenizer.save(path)

    def read() -> None:
        loaded = Tokenizer.load(path)
        assert loaded.decode(loaded.encode(SAMPLE, disallowed_special=())) == SAMPLE, "text is lost"

    assert hurt(path, read) > MUTATIONS // 2


def test_shards(tmp_path: Path) -> None:
    path = tmp_path / "train_000000.bin"
    write_shard(path, np.arange(1000, dtype=np.uint16))

    def read() -> None:
        assert int(open_shard(path).sum()) >= 0

    assert hurt(path, read) > MUTATIONS // 4


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".jsonl.gz", ".parquet"])
def test_texts(tmp_path: Path, ending: str, persuasion: str) -> None:
    texts = [persuasion[at : at + 200] for at in range(0, 4000, 200)]
    path = tmp_path / f"text{ending}"
    if ending == ".txt":
        path.write_text("".join(texts), encoding="utf-8")
    elif ending == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": texts}), path)
    else:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(lines) if ending.endswith(".gz") else lines)

    def read() -> None:
        for part in split_documents(path):
            assert part.text

    assert hurt(path, read) > 0


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_runs(run: Path, name: str) -> None:
    (run / name).write_bytes((run / name).read_bytes())  # no longer a second name of the checkpoint's weights
    assert hurt(run / name, lambda: GPT.from_run(run)) > 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_models_of_hugging_face(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    model = GPT(GPTConfig(vocab_size=300, context_length=16, d_model=8, n_layers=1, n_heads=2))
    model.export_to_hf(folder)
    if name == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()
    assert hurt(folder / name, lambda: GPT.from_pretrained(folder)) > 0
