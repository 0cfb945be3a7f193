"""What a trainer writes, damaged 200 times: one line, or a run that goes on from what is sound."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from pretraining import demo
from pretraining.checkpoint import list_checkpoints
from pretraining.metrics import draw_loss, finished_metrics, forget_metrics_after, read_metrics
from pretraining.open_run import open_run
from pretraining.simple import Trainer
from tests.mutations import MUTATIONS, hurt
from tests.tiny_run import tiny
from utils.files import sha256

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how large the process is")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_config(run: Path, data: Path) -> None:
    config = tiny(data, run, snapshot_every=6, precision="auto", compile="auto")

    def read() -> None:
        found, _, _ = open_run(config)
        assert (found.precision, found.compile, found.steps) == ("float32", "off", 12)

    assert hurt(run / "config.json", read) > MUTATIONS // 2


def test_metrics(run: Path) -> None:
    def read() -> None:
        read_metrics(run)
        finished_metrics(run)
        forget_metrics_after(run, 10)

    assert hurt(run / "metrics.jsonl", read) < MUTATIONS // 10  # only where not one line is left
    draw_loss(run)


def test_results(run: Path) -> None:
    measured = json.loads((Path(demo.__file__).parent / "results" / "demo.json").read_bytes())["runs"][0]
    (run / "results.json").write_text(json.dumps({**measured, "metrics": []}))
    config = demo.Config(out=run)

    def read() -> None:
        if results := demo.stored_results(config):
            assert (results["steps"], results["seed"]) == (config.steps, config.seed)

    assert hurt(run / "results.json", read) == 0


@pytest.mark.parametrize("name", ["checksums.json", "state.pt", "model.safetensors"])
def test_checkpoints(run: Path, data: Path, name: str) -> None:
    """Checksums fit the damaged files, as if somebody had made them so; without that, any damage would be found."""
    newest = list_checkpoints(run)[0]
    trainer = Trainer(*open_run(tiny(data, run, snapshot_every=6)))

    def read() -> None:
        if name != "checksums.json":
            sums = {file: sha256(newest / file) for file in ("model.safetensors", "state.pt")}
            (newest / "checksums.json").write_text(json.dumps(sums))
        assert trainer.resume()
        assert trainer.steps in (8, 12)

    hurt(newest / name, read)
