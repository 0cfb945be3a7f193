"""The training loop: it learns, it resumes exactly, and it says what is wrong in one line."""

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpt_model import GPT, convert
from gpt_model.config import PRESETS as MODEL_PRESETS
from gpt_model.costs import training_memory
from pretraining import simple
from pretraining.least_memory import least_memory
from pretraining.metrics import read_metrics
from pretraining.open_run import open_run
from tests.forked import fork
from tests.tiny_run import other_tokenizer, tiny, train_silently
from utils.files import InputError, sha256
from working_with_text_data import train_tokenizer
from working_with_text_data.shards import write_shard

ROOT = Path(__file__).parent.parent.parent


def test_writes_a_whole_run_directory(finished_run: Path, data: Path) -> None:
    assert {path.name for path in finished_run.iterdir()} >= {
        "config.json", "model.safetensors", "bpe.json", "train_state", "metrics.jsonl", "loss.svg", "snapshots",
    }  # fmt: skip
    config = json.loads((finished_run / "config.json").read_bytes())
    assert config["model"]["vocab_size"] == 512
    assert config["training"]["precision"] == "float32"
    assert (finished_run / "bpe.json").read_bytes() == (data / "bpe.json").read_bytes()
    assert sorted(path.name for path in (finished_run / "snapshots").iterdir()) == [
        f"step_{step:06d}.safetensors" for step in (0, 6, 12)
    ]
    assert "<svg" in (finished_run / "loss.svg").read_text()
    assert [line["step"] for line in read_metrics(finished_run)] == [5, 10, 12]
    assert isinstance(GPT.from_run(finished_run), GPT)


def test_learns(data: Path, tmp_path: Path) -> None:
    simple.main(tiny(data, tmp_path / "run", steps=150, eval_every=50, checkpoint_every=1000))
    losses = [line["val_loss"] for line in read_metrics(tmp_path / "run") if "val_loss" in line]
    assert losses[-1] < 5.4 < math.log(512)
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "galore"])
def test_accumulating_micro_batches_is_one_large_batch(data: Path, tmp_path: Path, optimizer: str) -> None:
    weights = []
    for size in (None, 2, 1):
        out = tmp_path / str(size)
        simple.main(tiny(data, out, micro_batch_size=size, steps=3, optimizer=optimizer))
        weights.append(GPT.from_run(out).state_dict())
    for name, tensor in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-3)


def test_the_demo_trains_what_the_preset_of_its_name_describes() -> None:
    described = MODEL_PRESETS["demo"]
    trained = {**vars(simple.PRESETS["demo"]), "vocab_size": train_tokenizer.PRESETS["demo"].vocab_size}
    assert described.items() <= trained.items()


@pytest.mark.parametrize(("schedule", "at_a_quarter", "last"), [("linear", 0.75, 1 / 80), ("cosine", 0.8536, 0.0004)])
def test_the_learning_rate_rises_then_falls_to_zero(schedule: str, at_a_quarter: float, last: float) -> None:
    factors = [simple.learning_rate_factor(step, 100, 0.2, schedule) for step in range(100)]
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[20] == 1
    assert factors[40] == pytest.approx(at_a_quarter, abs=1e-4)
    assert factors[60] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(last, abs=1e-4)
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert simple.learning_rate_factor(0, 1, 0.05, schedule) == 1


class TestExactResume:
    """The weights after the last step do not depend on what happened on the way."""

    @pytest.mark.parametrize("optimizer", ["muon", "adamw"])
    def test_stopping_at_any_step(
        self, data: Path, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tiny(data, tmp_path / "whole", optimizer=optimizer, dropout=0.2)
        assert simple.main(config)
        step = simple.Trainer.step

        def step_then_ctrl_c(trainer: simple.Trainer) -> float:
            loss = step(trainer)
            os.kill(os.getpid(), signal.SIGINT)
            return loss

        stopped = dataclasses.replace(config, out=tmp_path / "stopped")
        monkeypatch.setattr(simple.Trainer, "step", step_then_ctrl_c)
        assert [simple.main(stopped) for _ in range(12)] == [False] * 11 + [True]
        assert sha256(stopped.out / "model.safetensors") == sha256(config.out / "model.safetensors")
        assert [line["step"] for line in read_metrics(stopped.out)] == [5, 10, 12]

    def test_with_bfloat16_and_compiled(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = tiny(data, tmp_path / "whole", precision="bfloat16", compile="on", dropout=0.1, steps=8)
        assert simple.main(config)
        step = simple.Trainer.step

        def stop_at_three(trainer: simple.Trainer) -> float:
            if trainer.steps == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer)

        stopped = dataclasses.replace(config, out=tmp_path / "stopped")
        monkeypatch.setattr(simple.Trainer, "step", stop_at_three)
        assert not simple.main(stopped)
        monkeypatch.setattr(simple.Trainer, "step", step)
        assert simple.main(stopped)
        assert sha256(stopped.out / "model.safetensors") == sha256(config.out / "model.safetensors")

    @pytest.mark.slow
    @pytest.mark.parametrize(("kills", "steps"), [(5, 200), pytest.param(20, 600, marks=pytest.mark.exhaustive)])
    def test_kill_at_random_moments(
        self, kills: int, steps: int, data: Path, tmp_path: Path, rng: random.Random
    ) -> None:
        """SIGKILL while it starts, steps and writes: with a checkpoint each step, many moments are in a write.

        Day by day 5 times, exhaustively 20 times, of which at least one must fall into a write.
        """
        changes = {"steps": steps, "checkpoint_every": 1, "eval_every": 100, "dropout": 0.1}
        assert simple.main(tiny(data, tmp_path / "whole", **changes))
        killed, in_a_write = tmp_path / "killed", 0
        config = tiny(data, killed, **changes)
        for kill in range(kills):
            process = fork(train_silently, config)
            before = newest(killed)
            deadline = time.monotonic() + 60
            # half of the kills wait for the first new checkpoint, so that the run gets on; others come anywhere
            while kill % 2 and newest(killed) == before and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3 if kill % 2 else 1.0))
            assert process.is_alive(), "it ended before it could be killed"
            process.kill()
            process.join()
            in_a_write += bool(list((killed / "train_state").glob(".*.tmp")))
        assert simple.main(config)
        assert in_a_write or kills < 20, "no kill fell into a checkpoint write: the test wants more of them"
        assert sha256(killed / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
        steps = [line["step"] for line in read_metrics(killed)]
        assert steps == sorted(set(steps))


TRAIN = """
import json, sys
from pathlib import Path
from pretraining import simple
from tests.tiny_run import other_tokenizer, tiny
sys.exit(not simple.main(tiny(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))))
"""


def newest(run: Path) -> str:
    return max((path.name for path in (run / "train_state").glob("step_*")), default="")


def test_trains_without_a_compiler(data: Path, tmp_path: Path) -> None:
    """Asked to compile where there is no C++ compiler, it warns once and goes on without."""
    nothing = {"CXX": "no-such-compiler", "PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    changes = json.dumps({"compile": "on", "steps": 3})
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, data, tmp_path / "run", changes]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **nothing}, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stderr.count("torch.compile does not work here") == 1
    assert isinstance(GPT.from_run(tmp_path / "run"), GPT)


def test_a_second_ctrl_c_stops_at_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt_twice(trainer: simple.Trainer) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on after the second")

    monkeypatch.setattr(simple.Trainer, "step", interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        simple.main(tiny(data, tmp_path / "run"))
    assert isinstance(GPT.from_run(tmp_path / "run"), GPT)  # the checkpoint from before the first step


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_with_the_last_good_checkpoint_intact(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    forward = GPT.forward

    def broken(model: GPT, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, loss = forward(model, *args, **kwargs)
        broken.calls += model.training
        if loss is not None and broken.calls > 6:
            # not a number, or finite with an infinite slope
            loss = loss * math.nan if what == "loss" else loss.detach() + (loss - loss.detach()).sqrt()
        return logits, loss

    broken.calls = 0
    monkeypatch.setattr(GPT, "forward", broken)
    with pytest.raises(InputError, match=r"at step 7: the last checkpoint is intact; try a lower --lr"):
        simple.main(tiny(data, tmp_path / "run"))
    monkeypatch.undo()
    weights = GPT.from_run(tmp_path / "run").state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert newest(tmp_path / "run") == "step_000004"


class TestRunDirectories:
    def test_a_finished_run_is_left_as_it_is(self, data: Path, finished_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        before = sha256(run / "model.safetensors")
        assert simple.main(tiny(data, run, snapshot_every=6))
        assert sha256(run / "model.safetensors") == before

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"n_layers": 3}, "holds a run with n_layers 2, not 3"),
            ({"steps": 11}, "has taken 12 steps, so it cannot end after 11: choose more --steps"),
            ({"precision": "bfloat16"}, "holds a run with precision float32, not bfloat16"),
        ],
    )
    def test_other_settings_are_another_run(
        self, data: Path, finished_run: Path, changes: dict[str, object], message: str
    ) -> None:
        before = sha256(finished_run / "model.safetensors")
        with pytest.raises(InputError, match=message):
            simple.main(tiny(data, finished_run, **{"snapshot_every": 6, **changes}))
        assert sha256(finished_run / "model.safetensors") == before

    def test_what_was_auto_stays_what_it_became(self, data: Path, finished_run: Path) -> None:
        auto = {"precision": "auto", "compile": "auto", "device": "auto"}
        config, _, _ = open_run(tiny(data, finished_run, snapshot_every=6, **auto))
        assert (config.precision, config.compile, config.device) == ("float32", "off", "cpu")

    def test_fresh_starts_over(self, data: Path, finished_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        assert simple.main(tiny(data, run, fresh=True, steps=2))
        assert [line["step"] for line in read_metrics(run)] == [2]

    def test_a_folder_that_is_no_run_is_left_alone(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("precious")
        for fresh, message in ((False, "is not a run directory"), (True, r"holds thesis\.txt, which is not ours")):
            with pytest.raises(InputError, match=message):
                simple.main(tiny(data, tmp_path, fresh=fresh))
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_another_programs_config_is_not_deleted(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
        with pytest.raises(InputError, match="is not a run directory, so it is not deleted"):
            simple.main(tiny(data, tmp_path, fresh=True))
        with pytest.raises(InputError, match=r"config\.json is damaged"):
            simple.main(tiny(data, tmp_path))
        assert (tmp_path / "config.json").exists()

    def test_data_of_another_tokenizer(self, data: Path, finished_run: Path, tmp_path: Path) -> None:
        shutil.copytree(data, tmp_path / "data")
        file = tmp_path / "data" / "bpe.json"
        file.write_bytes(file.read_bytes() + b"\n")  # the same tokenizer, laid out otherwise
        assert simple.main(tiny(tmp_path / "data", finished_run, snapshot_every=6))
        other_tokenizer(file)
        with pytest.raises(InputError, match="have different tokenizers"):
            simple.main(tiny(tmp_path / "data", finished_run, snapshot_every=6))
        run = Path(shutil.copytree(finished_run, tmp_path / "run"))
        (run / "bpe.json").unlink()
        with pytest.raises(InputError, match="have different tokenizers"):
            simple.main(tiny(tmp_path / "data", run, snapshot_every=6))
        assert not (run / "bpe.json").exists()

    def test_weights_without_a_checkpoint_are_kept(self, data: Path, finished_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        shutil.rmtree(run / "train_state")
        before = sha256(run / "model.safetensors")
        with pytest.raises(InputError, match="has weights but no checkpoint to go on from"):
            simple.main(tiny(data, run, snapshot_every=6))
        assert sha256(run / "model.safetensors") == before
        assert simple.main(tiny(data, run, fresh=True, steps=1))

    def test_a_converted_model_is_kept(self, data: Path, finished_run: Path, tmp_path: Path) -> None:
        convert.main(convert.Config(run=finished_run, latent_dim=8, out=tmp_path / "run"))
        before = sha256(tmp_path / "run" / "model.safetensors")
        with pytest.raises(InputError, match="has weights but no checkpoint to go on from"):
            simple.main(tiny(data, tmp_path / "run", attention="mla", latent_dim=8))
        assert sha256(tmp_path / "run" / "model.safetensors") == before

    def test_the_root_of_the_disk_is_no_run(self, data: Path) -> None:
        with pytest.raises(InputError, match="--out must name a file or a folder, got '/'"):
            simple.main(tiny(data, Path("/")))

    def test_what_a_power_cut_leaves(
        self, data: Path, finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        unfinished = run / "train_state" / ".step_000013.tmp"
        unfinished.mkdir()
        for path in (unfinished / "state.pt", run / ".model.safetensors.tmp", run / ".metrics.jsonl.123.tmp"):
            path.write_text("half")
        sound = (run / "metrics.jsonl").read_bytes()
        torn = b'{"step": 12, "lo{"step": 13}\n[[[\n{"step": 1e999}\n3\n' + b"[" * 5000 + b"\n\xff\0\0\0\n\0\0\0"
        (run / "metrics.jsonl").write_bytes(sound + torn)
        assert simple.main(tiny(data, run, snapshot_every=6))
        assert (run / "metrics.jsonl").read_bytes() == sound
        assert "metrics.jsonl: damaged lines are left out, 7 of 10" in caplog.text
        assert not list(run.rglob(".*"))

    def test_a_kill_before_the_first_checkpoint(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".config.json.1.tmp").write_text("half")
        open_run(tiny(data, tmp_path / "run"))
        (tmp_path / "run" / "bpe.json").unlink()
        assert simple.main(tiny(data, tmp_path / "run"))


class TestGoingOnOtherwise:
    """A run can be made longer, and can move to another device; both are said."""

    def test_more_steps_follow_the_new_schedule(
        self, data: Path, finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        longer = tiny(data, run, steps=24, snapshot_every=6)
        trainer = simple.Trainer(*open_run(longer))
        assert "was to take 12 steps and now takes 24: from step 13 on, the learning rate is the one" in caplog.text
        assert trainer.resume()
        trainer.step()
        rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
        factor = simple.learning_rate_factor(12, 24, longer.warmup, longer.schedule)
        assert rates == pytest.approx([longer.lr * factor, longer.matrix_lr * factor])
        caplog.clear()
        assert simple.main(longer)  # it is the plan now, and killed or not, the same command goes on
        assert not caplog.text
        assert [line["step"] for line in read_metrics(run)] == [5, 10, 12, 15, 20, 24]
        with pytest.raises(InputError, match="has taken 24 steps, so it cannot end after 12: choose more --steps"):
            simple.main(tiny(data, run, snapshot_every=6))

    def test_begun_on_a_gpu_and_resumed_without_one(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        run = tmp_path / "run"
        config, model_config, shards = open_run(tiny(data, run))
        trainer = simple.Trainer(config, model_config, shards)
        state = {**trainer.state_dict(), "cuda_rng": [torch.get_rng_state()] * 2}
        monkeypatch.setattr(trainer, "state_dict", lambda: state)
        trainer.save()
        path = run / "config.json"
        path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
        message = f"{run} was trained on cuda, which this machine does not have: give --device cpu to go on"
        with pytest.raises(InputError, match=message):
            simple.main(tiny(data, run, device="auto"))
        assert simple.main(tiny(data, run))
        assert "was trained on cuda and goes on with cpu: the result will not be the same bit for bit" in caplog.text
        assert json.loads(path.read_bytes())["training"]["device"] == "cpu"
        assert simple.main(tiny(data, run, device="auto"))


class TestSizes:
    @pytest.mark.parametrize(
        "changes",
        [
            {"n_layers": 2**10, "d_model": 2**16},
            {"batch_size": 2 * 10**9},
            {"attention": "mla", "latent_dim": 2**16, "n_layers": 2**10, "d_model": 2**16},
        ],
    )
    @pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
    def test_what_no_machine_holds_is_refused_before_it_is_built(
        self, data: Path, tmp_path: Path, changes: dict[str, object], precision: str
    ) -> None:
        with pytest.raises(InputError, match=r"a training step would need [\d,.]+ GB at least, and cpu has"):
            simple.main(tiny(data, tmp_path / "new" / "folders" / "run", precision=precision, **changes))
        assert not list(tmp_path.iterdir())

    def test_a_step_needs_at_least_what_is_compared(self, data: Path, tmp_path: Path) -> None:
        """The bound is one: with no more memory than that a step could not be taken."""
        config, model_config, shards = open_run(tiny(data, tmp_path / "run"))
        trainer = simple.Trainer(config, model_config, shards)
        trainer.step()
        kept = [*trainer.model.parameters()]
        kept += [t for optimizer in trainer.optimizers for state in optimizer.state.values() for t in state.values()]
        held = sum(tensor.nbytes for tensor in kept) + sum(p.nbytes for p in trainer.model.parameters())  # gradients
        most = training_memory(model_config, 4, 32, autocast=False, optimizer="muon").total
        assert held < least_memory(config, model_config) < most


def test_no_clipping_is_clipping_beyond_every_gradient(data: Path, tmp_path: Path) -> None:
    runs = {clip: tmp_path / str(clip) for clip in (0.0, 1e9, 0.01)}
    for clip, out in runs.items():
        assert simple.main(tiny(data, out, clip=clip, steps=3, optimizer="adamw"))
    sums = {clip: sha256(out / "model.safetensors") for clip, out in runs.items()}
    assert sums[0.0] == sums[1e9] != sums[0.01]


class TestBadData:
    def test_no_shards(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"holds no train_\*\.bin"):
            simple.main(tiny(tmp_path, tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    def test_shorter_than_one_block(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"val tokens in a row, fewer than the 30,001 of one block"):
            simple.main(tiny(data, tmp_path / "run", context_length=30_000))
        assert not (tmp_path / "run").exists()

    def test_without_a_tokenizer(self, data: Path, tmp_path: Path) -> None:
        shutil.copytree(data, tmp_path / "data")
        (tmp_path / "data" / "bpe.json").unlink()
        with pytest.raises(InputError, match=r"has no tokenizer, bpe\.json"):
            simple.main(tiny(tmp_path / "data", tmp_path / "run"))

    def test_tokens_beyond_the_vocabulary(self, data: Path, tmp_path: Path) -> None:
        shutil.copytree(data, tmp_path / "data")
        tokens = torch.full((500,), 600).numpy().astype("uint16")
        write_shard(tmp_path / "data" / "train_000001.bin", tokens)
        with pytest.raises(InputError, match="holds the token 600 but its tokenizer has only 512"):
            simple.main(tiny(tmp_path / "data", tmp_path / "run"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": 0}, "steps must be at least 1 and at most 1,000,000,000, got 0"),
            ({"micro_batch_size": 3}, "must divide batch_size 4, got 3"),
            ({"n_heads": 5}, "n_heads must divide d_model, got 5 heads for width 32"),
        ],
    )
    def test_impossible_settings(self, data: Path, tmp_path: Path, changes: dict[str, int], message: str) -> None:
        with pytest.raises(InputError, match=message):
            simple.main(tiny(data, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()
