"""Two processes that share the batches of a fine-tuning run end with the weights of one."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from finetuning.config import FineTuning
from finetuning.instruction import dpo, train
from gpt_model.run_directory import read_config
from tests.processes import finish, start

HOW = {"batch_size": 4, "lr": 0.003, "eval_every": 4, "device": "cpu", "precision": "float32", "epochs": 1}


@pytest.fixture(scope="module")
def base(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without dropout, which each process draws for itself."""
    run = tmp_path_factory.mktemp("base") / "run"
    shutil.copytree(finished_run, run)
    config = read_config(run)
    config["model"]["dropout"] = 0.0
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with two answers each, of which the first serves as the only one, too."""
    words = ("red", "blue", "tall", "old", "kind", "small", "good", "cold", "new", "dark")
    rows = [
        {"instruction": f"Say {word}.", "output": f"It is {word}.", "chosen": f"It is {word}.", "rejected": f"{word}!"}
        for word in words * 2
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.json"
    path.write_text(json.dumps(rows))
    return path


def flags(config: FineTuning) -> list[str]:
    given = {name: getattr(config, name) for name in ("base", "data", "out", "held_out", *HOW)}
    if config.lora_rank is not None:
        given["lora_rank"] = config.lora_rank
    if isinstance(config, train.Config):
        given["template"] = config.template
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def differences(config: FineTuning, module: object, tmp_path: Path) -> float:
    """Train with one process and with two; return by how much their weights differ, and check that they are new."""
    alone, together = (dataclasses.replace(config, out=tmp_path / name) for name in ("alone", "together"))
    assert module.main(alone)
    finish(start(2, module.__name__, *flags(together)))
    runs = alone.out, together.out, config.base
    one, two, old = (safetensors.torch.load_file(run / "model.safetensors") for run in runs)
    assert max((one[name] - old[name]).abs().max() for name in old) > 1e-3
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [None, 4])
def test_answering(lora_rank: int | None, base: Path, pairs: Path, tmp_path: Path) -> None:
    config = train.Config(
        base=base, data=pairs, out=tmp_path, held_out=0.2, template="alpaca", lora_rank=lora_rank, ask=(), **HOW
    )
    assert differences(config, train, tmp_path) < 1e-5


@pytest.mark.slow
def test_preferences(base: Path, pairs: Path, tmp_path: Path) -> None:
    answering = train.Config(
        base=base, data=pairs, out=tmp_path / "answering", held_out=0.2, template="alpaca", ask=(), **HOW
    )
    assert train.main(answering)
    config = dpo.Config(base=answering.out, data=pairs, out=tmp_path, held_out=0.2, **HOW)
    assert differences(config, dpo, tmp_path) < 1e-5
