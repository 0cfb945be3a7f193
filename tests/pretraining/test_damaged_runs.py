"""Files of a run under two hundred seeded mutations each: taken, passed over or refused in one line, never worse."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt_model import GPT
from pretraining import demo
from pretraining.checkpoint import list_checkpoints
from pretraining.metrics import draw_loss, forget_metrics_after, read_metrics
from pretraining.open_run import open_run
from pretraining.simple import Trainer
from tests.tiny_run import tiny
from utils.files import InputError, sha256

N_MUTATIONS = 200


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One of: a flipped bit, a cut, zeros from somewhere on, a piece twice, a piece gone, another number or value."""
    at = rng.randrange(len(content))
    end = min(len(content), at + rng.randint(1, 40))
    value = rng.choice([b"-1", b"1e999", b"null", b'"x"', b"{}", b"[]", b"true", b"9" * 400, b"[" * 5000, b"\xff", b""])
    return rng.choice(
        [
            content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
            content[:at],
            content[:at] + b"\0" * (len(content) - at),
            content[:end] + content[at:],
            content[:at] + content[end:],
            content[:at] + value + content[end:],
        ]
    )


def mutated_value(content: bytes, rng: random.Random) -> bytes:
    """JSON in which one value, anywhere, is another one."""
    parsed = json.loads(content)
    inside, key = parsed, rng.choice(list(parsed))
    while isinstance(inside[key], dict) and inside[key] and rng.random() < 0.8:
        inside, key = inside[key], rng.choice(list(inside[key]))
    inside[key] = rng.choice([-1, 0, 1e308, None, "x", {}, [], True, 10**400, 1.5])
    return json.dumps(parsed).encode()


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def survives(path: Path, mutations: list[bytes], work: Callable[[], object]) -> None:
    """Do the work with each mutation of a file; an InputError of one line is as good as success."""
    for content in mutations:
        path.write_bytes(content)
        try:
            work()
        except InputError as error:
            message = str(error)
        else:
            message = ""
        assert "\n" not in message


def test_config(run: Path, data: Path, rng: random.Random) -> None:
    content = (run / "config.json").read_bytes()
    mutations = [(mutated, mutated_value)[i % 2](content, rng) for i in range(N_MUTATIONS)]
    config = tiny(data, run, snapshot_every=6, precision="auto", compile="auto")

    def open_it() -> None:
        found, _, _ = open_run(config)
        assert (found.precision, found.compile, found.steps) == ("float32", "off", 12)

    survives(run / "config.json", mutations, open_it)


def test_metrics(run: Path, rng: random.Random) -> None:
    content = (run / "metrics.jsonl").read_bytes()
    sound = read_metrics(run)

    def read_it() -> None:
        lines = read_metrics(run)
        assert len(lines) >= len(sound) - 41  # a piece that is gone may join two lines
        demo.finished_metrics(run)
        forget_metrics_after(run, 10)

    survives(run / "metrics.jsonl", [mutated(content, rng) for _ in range(N_MUTATIONS)], read_it)
    draw_loss(run)


def test_results(run: Path, rng: random.Random) -> None:
    sound = json.loads((Path(demo.__file__).parent / "results" / "demo.json").read_bytes())["runs"][0]
    content = json.dumps(sound).encode()
    mutations = [(mutated, mutated_value)[i % 2](content, rng) for i in range(N_MUTATIONS)]
    config = demo.Config(out=run)

    def show_it() -> None:
        if results := demo.stored_results(config):
            assert (results["steps"], results["seed"]) == (config.steps, config.seed)

    survives(run / "results.json", mutations, show_it)


@pytest.mark.parametrize("name", ["checksums.json", "state.pt", "model.safetensors"])
@pytest.mark.parametrize("checksum", ["as it was", "of the damaged file"])
def test_checkpoints(run: Path, data: Path, rng: random.Random, name: str, checksum: str) -> None:
    newest = list_checkpoints(run)[0]
    content = (newest / name).read_bytes()
    trainer = Trainer(*open_run(tiny(data, run, snapshot_every=6)))

    def resume() -> None:
        if checksum == "of the damaged file" and name != "checksums.json":
            sums = {file: sha256(newest / file) for file in ("model.safetensors", "state.pt")}
            (newest / "checksums.json").write_text(json.dumps(sums))
        assert trainer.resume()
        assert trainer.steps in (8, 12)

    survives(newest / name, [mutated(content, rng) for _ in range(N_MUTATIONS // 4)], resume)
    assert all(weight.dtype == torch.float32 for weight in GPT.from_run(run).parameters())
