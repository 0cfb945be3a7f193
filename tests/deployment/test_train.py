"""Training jobs on the stand-in for Modal: they survive preemption and crashes, and go on; nodes form one group."""

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modal
import psutil
import pytest

from deployment import download, modal_train
from deployment import job as job_module
from deployment.job import Job, Ledger, Trainer, job_name, launch, outcome, run_directory
from deployment.modal_train import Config, follow, job_of, make_app, start
from deployment.stand_in.control_plane import ControlPlane
from pretraining import simple
from utils.files import InputError, sha256

TINY = (
    "--context-length 32 --d-model 32 --n-layers 2 --n-heads 2 --position learned --batch-size 4 --precision float32 "
    "--compile off --device cpu --eval-every 50 --eval-blocks 8 --checkpoint-every 10"
)


@pytest.fixture
def here(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data/tiny, from which it is uploaded."""
    shutil.copytree(data, tmp_path / "data" / "tiny")
    (tmp_path / "data" / "tiny" / ".env").write_text("SECRET=1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def job_in(config: Config) -> Job:
    return replace(job_of(config), commit_every=0.3)


def test_a_preempted_job_goes_on_and_ends_as_if_nothing_had_happened(plane: ControlPlane, here: Path) -> None:
    """The whole path: upload, train, lose the machine, go on, download; bit for bit the run that nothing disturbed."""
    flags = f"--steps 60 {TINY}"
    config = Config(
        job=f"pretraining.simple --data data/tiny --out runs/tiny {flags}", gpu="none", upload=Path("data/tiny")
    )
    call = start(config, job_in(config))
    volume = plane.volume("language-models")
    assert not list(volume.rglob(".env"))
    followed = start(config, job_in(config))
    assert followed.object_id == call.object_id  # no second job writes the same run
    wait_for(lambda: list(volume.glob("runs/tiny/train_state/step_*/checksums.json")))
    plane.preempt()  # at once: a second or two later it would have finished
    assert follow(followed) == {"state": "finished", "attempts": 2}
    said = plane.output()
    assert "attempt 1 on node 1 of 1" in said
    assert "is taken away: saving" in said
    assert "runs/tiny: going on after step" in said

    download.main(download.Config("runs/tiny", out=here / "fetched"))
    simple.main(command_of(simple.Config, f"--data data/tiny --out runs/calm {flags}"))
    weights = [sha256(folder / "model.safetensors") for folder in (here / "fetched", here / "runs" / "calm")]
    assert weights[0] == weights[1]
    # what has changed since is fetched again, be it as long as it was; what has not is not
    changed, kept = volume / "runs/tiny/model.safetensors", here / "fetched" / "config.json"
    changed.write_bytes(bytes(changed.stat().st_size))
    os.utime(changed, (2e9, 2e9))
    kept_since = kept.stat().st_ino
    large = volume / "runs" / "tiny" / "large.bin"
    large.write_bytes(bytes(range(256)) * 40_000)  # comes in two blocks
    download.main(download.Config("runs/tiny", out=here / "fetched"))
    assert not any((here / "fetched" / "model.safetensors").read_bytes())
    assert kept.stat().st_ino == kept_since
    assert (here / "fetched" / "large.bin").read_bytes() == large.read_bytes()


def command_of(config_class: type, flags: str) -> Any:
    import tyro

    return tyro.cli(config_class, args=shlex.split(flags))


def test_two_nodes_form_one_group(plane: ControlPlane, here: Path) -> None:
    """A cluster of two machines, each with one process of the trainer here rather than eight."""
    config = Config(
        job=f"pretraining.advanced --data data/tiny --out runs/two --steps 6 --parallel ddp {TINY}",
        gpu="H100:8", nodes=2, upload=Path("data/tiny"),
    )  # fmt: skip
    call = start(config, replace(job_in(config), processes=1))
    assert follow(call)["state"] == "finished"
    said = plane.output()
    assert "on node 1 of 2" in said
    assert "on node 2 of 2" in said
    assert "ddp over 2 processes" in said
    assert (plane.volume("language-models") / "runs" / "two" / "model.safetensors").exists()


def test_specifications() -> None:
    """What is asked of Modal, without any server."""
    config = Config(gpu="H100:8", nodes=4, hours=12, retries=3, memory=64)
    _, function = make_app(config, job_of(replace(config, job=f"{config.job} --parallel ddp")))
    info = function.info()
    assert info.gpus == [("H100", 8)]
    assert (info.timeout, info.max_retries, info.memory_mib) == (12 * 3600, 3, (64 * 1024, 64 * 1024))
    assert (info.cluster_info.size, info.cluster_info.rdma) == (4, True)
    assert list(info.volumes) == ["/vol"]
    assert not info.secrets


@pytest.mark.parametrize(
    ("processes", "nodes", "expected"),
    [
        (1, 1, ["-m", "pretraining.simple"]),
        (8, 1, ["--standalone", "--nproc-per-node", "8", "-m", "pretraining.simple"]),
        (8, 2, ["--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.1", "--nproc-per-node", "8"]),
    ],
)
def test_many_processes_are_started_by_torchrun(processes: int, nodes: int, expected: list[str]) -> None:
    command = launch(Job(("pretraining.simple",), "volume", processes, nodes), 1, "10.0.0.1")
    assert " ".join(expected) in " ".join(command).replace(" --master-port 29500", "")
    assert ("torch.distributed.run" in command) == (processes * nodes > 1)


@pytest.fixture
def volume_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "VOLUME", tmp_path)


@pytest.mark.usefixtures("volume_here")
def test_a_refusal_is_final_and_a_crash_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    for code, expected in [
        ("print('done')", {"state": "finished", "attempts": 3}),
        ("raise SystemExit('error: no such data')", {"state": "refused", "reason": "no such data", "attempts": 3}),
    ]:
        trainer = Trainer([sys.executable, "-c", code])
        assert trainer.wait(60)
        assert outcome(trainer, 3) == expected
    trainer = Trainer([sys.executable, "-c", "import os; print('half a line', end=''); os._exit(7)"])
    assert trainer.wait(60)
    with pytest.raises(RuntimeError, match="exit status 7"):  # which has Modal try again
        outcome(trainer, 3)
    assert "half a line" in capsys.readouterr().out


@pytest.mark.usefixtures("volume_here")
def test_the_last_words_of_a_job_are_passed_on_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    passed_on = []

    def write(piece: bytes) -> None:
        time.sleep(0.5)
        passed_on.append(piece)

    slow = SimpleNamespace(buffer=SimpleNamespace(write=write, flush=lambda: None))
    monkeypatch.setattr(job_module, "sys", SimpleNamespace(stdout=slow))
    trainer = Trainer([sys.executable, "-c", "print('done')"])
    assert trainer.wait(60)
    assert outcome(trainer, 1)["state"] == "finished"
    assert b"".join(passed_on) == b"done\n"


@pytest.mark.usefixtures("volume_here")
def test_what_a_trainer_started_ends_with_it() -> None:
    child = "import os, time; print('child', os.getpid(), flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    trainer = Trainer([sys.executable, "-c", parent])
    wait_for(lambda: re.search(rb"child \d+\n", trainer._tail))
    trainer.stop()
    assert trainer.process.returncode
    number = int(trainer.tail().split()[1])
    wait_for(lambda: has_ended(number), 60)


def has_ended(number: int) -> bool:
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_budget_counts_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(job_module, "time", SimpleNamespace(monotonic=lambda: now))
    job = Job(("pretraining.simple",), "volume", dollars_per_hour=3600.0, budget=10.0)
    first = Ledger(tmp_path / "job.json", job)
    assert first.begin(write=True) == 1
    now += 6
    first.add(write=True)
    assert not first.used_up()
    second = Ledger(tmp_path / "job.json", job)
    assert second.begin(write=True) == 2
    now += 6
    second.add(write=True)
    assert second.used_up()
    dearer = Ledger(tmp_path / "job.json", replace(job, dollars_per_hour=36_000.0, budget=100.0))
    assert dearer.begin(write=True) == 3
    now += 6
    assert dearer.dollars() == pytest.approx(72)  # what the first two took cost a tenth as much
    assert not dearer.used_up()


def test_the_run_directory_is_what_out_names() -> None:
    assert run_directory(("m", "--out", "runs/a")) == run_directory(("m", "--out=runs/a")) == "runs/a"
    assert run_directory(("m", "--out")) == run_directory(("m",)) == ""
    assert run_directory(("m", "--out", "./runs//a/")) == "runs/a"


def test_a_job_is_known_by_its_volume_and_its_run_directory() -> None:
    names = [
        job_name(Job(("m", "--out", out), volume))
        for out, volume in [("runs/a-b", "v"), ("runs/a/b", "v"), ("runs/a-b", "w"), ("runs/my run, ü" * 9, "v")]
    ]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[a-zA-Z0-9-]{1,64}", name) for name in names)
    assert job_name(Job(("m", "--out", "runs/a/b/"), "v")) == names[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "H1000"}, "there is no GPU 'H1000'"),
        ({"gpu": "H100:9"}, "1 to 8 GPUs"),
        ({"gpu": "H100:4", "nodes": 2}, "need all 8 GPUs"),
        ({"gpu": "none", "nodes": 2}, "need all 8 GPUs"),
        ({"gpu": "H100:8", "nodes": 2}, "--parallel ddp"),
        ({"budget": 0.0}, "budget must be above 0"),
        ({"job": "rm -rf /"}, "must begin with a module of this project"),
        ({"job": "deployment.workspace up"}, "must begin with a module of this project"),
        ({"job": "pretraining.nothing --out runs/a"}, "must begin with a module of this project"),
        ({"job": "pretraining.simple 'x --out runs/a"}, "not a command line"),
        ({"job": "pretraining.simple --data data/a"}, "must say where its run goes"),
        ({"job": "pretraining.simple --out /runs/a"}, "must say where its run goes"),
        ({"upload": Path("../secrets")}, "below the current folder"),
        ({"upload": Path("data/none")}, "there is no folder data/none to upload"),
    ],
)
def test_wrong_jobs_are_refused_before_anything_starts(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        modal_train.main(Config(**changes))


def test_what_is_not_in_the_volume_is_not_downloaded(plane: ControlPlane, tmp_path: Path) -> None:
    modal.Volume.from_name("some", create_if_missing=True).hydrate()
    with pytest.raises(InputError, match="the volume some has no folder runs/none"):
        download.main(download.Config("runs/none", out=tmp_path / "out", volume="some"))
    with pytest.raises(InputError, match="cannot download runs/none: Modal does not have it"):
        download.main(download.Config("runs/none", out=tmp_path / "out", volume="none"))
    assert not list(tmp_path.iterdir())
    for folder in ("", "..", "/runs"):
        with pytest.raises(InputError, match="folder must be a path in the volume"):
            download.Config(folder)
