"""Files that are damaged at random are read as they are, or refused in one line; nothing else happens."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt_model import GPT, GPTConfig
from gpt_model.tokenizer_files import read_tokenizer
from utils.files import InputError
from working_with_text_data.minbpe import RegexTokenizer

N_MUTATIONS = 100


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change one to three places: flip a bit, write any byte, cut, repeat, or put in a number that is large."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data))
        data = chance.choice(
            (
                lambda data, at: data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
                lambda data, at: data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :],
                lambda data, at: data[: at + 1],
                lambda data, at: data[:at] + data[at // 2 :],
                lambda data, at: data[:at] + b"9" * 30 + data[at:],
                lambda data, at: data[:at] + b"[" * 5000 + data[at:],
            )
        )(data, at)
    return data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and beside it an export of it."""
    run = tmp_path_factory.mktemp("damaged") / "run"
    run.mkdir()
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=257, context_length=4, d_model=4, n_layers=1, n_heads=1))
    tokenizer = RegexTokenizer()
    tokenizer.add_special_tokens("<|endoftext|>")
    tokenizer.save(run / "bpe.json")
    fields = ", ".join(
        f'"{name}": {getattr(model.config, name)}' for name in ("vocab_size", "context_length", "d_model")
    )
    (run / "config.json").write_text(f'{{"model": {{{fields}, "n_layers": 1, "n_heads": 1}}, "training": {{}}}}')
    save_file(model.state_dict(), run / "model.safetensors")
    model.export_to_hf(run.with_name("theirs"), tokenizer)
    shutil.copytree(run.with_name("theirs"), run.with_name("older"))
    (run.with_name("older") / "model.safetensors").unlink()
    torch.save(load_file(run.with_name("theirs") / "model.safetensors"), run.with_name("older") / "pytorch_model.bin")
    return run


def read_model(folder: Path) -> None:
    model = GPT.from_run(folder) if folder.name == "run" else GPT.from_pretrained(folder)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def read_text(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("It is a truth")) == "It is a truth"


@pytest.mark.parametrize(
    ("folder", "file", "read"),
    [
        ("run", "config.json", read_model),
        ("run", "model.safetensors", read_model),
        ("theirs", "config.json", read_model),
        ("theirs", "model.safetensors", read_model),
        ("theirs", "tokenizer.json", read_text),
        ("older", "pytorch_model.bin", read_model),
    ],
)
def test_a_damaged_file_is_read_or_refused(
    folder: str, file: str, read: Callable[[Path], None], run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / folder
    shutil.copytree(run.with_name(folder), copy)
    read(copy)  # as it is, it can be read
    data, chance = (copy / file).read_bytes(), random.Random(0)
    refused = 0
    for _ in range(N_MUTATIONS):
        (copy / file).write_bytes(mutated(data, chance))
        try:
            read(copy)
        except (InputError, OSError):
            refused += 1
    assert refused > N_MUTATIONS // 10
