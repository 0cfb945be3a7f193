"""What the project did not make it never deletes, and two processes never write one run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpt_model import convert
from pretraining import demo, simple, variants
from pretraining.config import Config
from pretraining.metrics import read_metrics
from tests.tiny_run import other_tokenizer, tiny
from utils.files import InputError, sha256
from working_with_text_data import prepare, train_tokenizer

ROOT = Path(__file__).parent.parent.parent
HOLD = """
import sys
from pathlib import Path
from utils.locks import alone
with alone(Path(sys.argv[1]), "training in"):
    print("held", flush=True)
    sys.stdin.read()
"""


def contents(folder: Path) -> dict[str, str]:
    """What is in a folder: names and checksums, hidden ones included."""
    return {str(p.relative_to(folder)): sha256(p) if p.is_file() else "folder" for p in folder.rglob("*")}


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "my")
    return tmp_path / "my"


@pytest.fixture
def demo_presets(data: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The demo's stages as they are, but with the tests' text, tokenizer and model."""
    text = data.parent / "text"
    for script in (train_tokenizer, prepare):
        monkeypatch.setitem(script.PRESETS, "demo", replace(script.PRESETS["demo"], text=text))
    tokenizer = replace(train_tokenizer.PRESETS["demo"], vocab_size=512)
    monkeypatch.setitem(train_tokenizer.PRESETS, "demo", tokenizer)
    training = tiny(data, Path("unused"))
    monkeypatch.setitem(simple.PRESETS, "demo", training)
    return training


class TestFreshTraining:
    @pytest.mark.parametrize(
        "name", [".git/config", "notes.txt", "snapshots/best.safetensors", "train_state/notes.txt"]
    )
    def test_a_foreign_file_in_a_run(self, data: Path, run: Path, name: str) -> None:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("precious")
        before = contents(run)
        with pytest.raises(InputError, match=r"which is not ours to delete: move it, or choose another --out"):
            simple.main(tiny(data, run, fresh=True))
        assert contents(run) == before

    @pytest.mark.parametrize("name", [".git/config", "model.safetensors", "bpe.json", "metrics.jsonl"])
    def test_what_is_known_by_no_config_is_no_run(self, data: Path, tmp_path: Path, name: str) -> None:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True)
        path.write_text("precious")
        with pytest.raises(InputError, match="is not ours to delete"):
            simple.main(tiny(data, tmp_path / "folder", fresh=True))
        assert path.read_text() == "precious"

    def test_a_link_to_a_run(self, data: Path, run: Path) -> None:
        link = run.with_name("link")
        link.symlink_to(run)
        before = contents(run)
        with pytest.raises(InputError, match="is not a folder, so it is not replaced"):
            simple.main(tiny(data, link, fresh=True))
        assert contents(run) == before

    def test_nothing_is_deleted_for_a_command_that_cannot_work(self, data: Path, run: Path) -> None:
        before = contents(run)
        for changes in ({"device": "cuda:99"}, {"context_length": 30_000}, {"n_heads": 5}, {"batch_size": 10**9}):
            with pytest.raises(InputError):
                simple.main(tiny(data, run, fresh=True, **changes))
        assert contents(run) == before

    def test_a_run_killed_as_it_began_is_no_dead_end(self, data: Path, run: Path) -> None:
        for path in run.iterdir():
            if path.name != "config.json":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (run / ".bpe.json.123.tmp").write_text("half")
        assert simple.main(tiny(data, run, fresh=True, steps=1))
        shutil.rmtree(run)
        run.mkdir()
        (run / ".config.json.123.tmp").write_text("half")
        assert simple.main(tiny(data, run, fresh=True, steps=1))
        assert not list(run.rglob(".*"))

    def test_a_deletion_that_was_killed_is_no_dead_end(self, data: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        (run / "train_state" / "step_000012").mkdir(parents=True)
        (run / "snapshots").mkdir()
        assert simple.main(tiny(data, run, fresh=True, steps=1))


class TestFreshDemo:
    """Beside the run `my` lie `my-data` and `my-tokenizer.json`."""

    def refused(self, out: Path, message: str) -> None:
        before = contents(out.parent)
        for fresh in (True, False):
            with pytest.raises(InputError, match=message):
                demo.main(demo.Config(out=out, fresh=fresh, steps=2))
            assert contents(out.parent) == before

    def test_an_unrelated_folder(self, run: Path) -> None:
        (run.parent / "my-data").mkdir()
        (run.parent / "my-data" / "thesis.txt").write_text("precious")
        self.refused(run, r"my-data holds thesis\.txt, which is not ours to delete")

    def test_data_of_the_users_own(self, run: Path, data: Path) -> None:
        shutil.copytree(data, run.parent / "my-data")
        self.refused(run, "my-data was not made by a demo: move it, or choose another --out")

    def test_a_tokenizer_of_the_users_own(self, run: Path, demo_presets: Config, data: Path) -> None:
        other_tokenizer(run.parent / "my-tokenizer.json")
        self.refused(run, r"my-tokenizer\.json was not made by a demo")
        shutil.copytree(data, run.parent / "my-data")
        self.refused(run, r"my-tokenizer\.json was not made by a demo")

    @pytest.mark.parametrize("converted", [False, True])
    def test_a_run_of_the_users_own(self, converted: bool, run: Path, tmp_path: Path) -> None:
        if converted:
            convert.main(convert.Config(run=run, latent_dim=8, out=tmp_path / "converted"))
            run = tmp_path / "converted"
        before = contents(tmp_path)
        with pytest.raises(InputError, match=f"{run} was not made by a demo: move it, or choose another --out"):
            demo.main(demo.Config(out=run, fresh=True))
        assert contents(tmp_path) == before

    def test_its_own_go_and_come_again(
        self, demo_presets: Config, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = demo.Config(out=tmp_path / "my", steps=2)
        first = demo.main(config)
        assert first is not None
        assert (tmp_path / "my-tokenizer.json").read_bytes() == (data / "bpe.json").read_bytes()
        results = config.out / "results.json"
        for damage in (b"", b"[]", b"\0" * 100, b"[" * 5000, json.dumps({**first, "samples": 3}).encode()):
            results.write_bytes(damage)
            caplog.clear()
            assert demo.stored_results(config) is None
            assert "results.json is damaged: measuring anew" in caplog.text
        assert demo.main(config) == first == json.loads(results.read_bytes()) == demo.stored_results(config)
        again = demo.main(replace(config, fresh=True, seed=1))
        assert again["validation_loss"] != first["validation_loss"]
        assert [line["step"] for line in read_metrics(config.out)] == [2]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run that another process is training in."""
    command = [sys.executable, "-c", HOLD, tmp_path / "my"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        yield tmp_path / "my"
        process.stdin.close()
        assert process.wait() == 0


def test_two_processes_never_write_one_run(held: Path, data: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, held)
    before = contents(held.parent)
    for start, config in (
        (simple.main, tiny(data, held, snapshot_every=6)),
        (simple.main, tiny(data, held, fresh=True)),
        (demo.main, demo.Config(out=held)),
        (demo.main, demo.Config(out=held, fresh=True)),
        (variants.main, variants.Config(out=held)),
    ):
        with pytest.raises(InputError, match=f"another process is training in {held}: wait until it has finished"):
            start(config)
        assert contents(held.parent) == before
