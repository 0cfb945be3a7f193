"""Beyond one machine: each file is taken by the engine it is for, as far as that engine can be had here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from deployment.cloud import ROOT
from deployment.launch import scale
from gpt_model.config import GPTConfig
from gpt_model.costs import n_parameters
from tests.deployment.slurm import slurm, why_not

LAUNCH = ROOT / "deployment" / "launch"
TINY = (
    "--context-length 32 --d-model 32 --n-layers 2 --n-heads 2 --position learned --batch-size 4 --precision float32 "
    "--compile off --device cpu --eval-every 500 --eval-blocks 8 --checkpoint-every 20"
)


def environment_here() -> dict[str, str]:
    """Return an environment in which `python` is this one, and finds the project from anywhere."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_torchrun_understands_what_the_script_gives_it(tmp_path: Path) -> None:
    """What torchrun does with it on two machines: tests/pretraining/test_two_nodes.py."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf \'%s\\n\' "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PROCESSES_PER_NODE": "4"}
    command = [LAUNCH / "nodes.sh", "3", "first", "pretraining.advanced", "gpt2-xl", "--data", "a b"]
    separate, *given = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert separate == "1"  # what that is good for: tests/pretraining/test_restart.py
    assert given[:2] == ["-m", "torch.distributed.run"]
    read = get_args_parser().parse_args(given[2:])
    assert (read.nnodes, read.nproc_per_node, read.rdzv_backend, read.rdzv_endpoint) == (
        "3",
        "4",
        "c10d",
        "first:29500",
    )
    assert (read.module, read.training_script) == (True, "pretraining.advanced")
    assert read.training_script_args == ["gpt2-xl", "--data", "a b"]


@pytest.mark.parametrize(("name", "arguments"), [("nodes.sh", ["2"]), ("train.sbatch", [])])
def test_a_wrong_call_says_how_it_is_meant(name: str, arguments: list[str]) -> None:
    done = subprocess.run(["bash", LAUNCH / name, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert subprocess.run(["bash", "-n", LAUNCH / name], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_slurm_runs_it_and_goes_on_after_taking_the_machine_away(data: Path, tmp_path: Path) -> None:
    """In a real Slurm: the job is told to end, saves, is queued again, and finishes."""
    (tmp_path / "slurm").mkdir()
    with slurm(tmp_path / "slurm") as settings:
        environment = {**environment_here(), "SLURM_CONF": settings["SLURM_CONF"], "GLOO_SOCKET_IFNAME": "lo"}

        def ask(*command: object) -> str:
            line = [*map(str, command)]
            return subprocess.run(
                line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
            ).stdout

        job = ask(
            "sbatch", "--parsable", "--nodes=1", "--gpus-per-node=1", "--cpus-per-task=2", LAUNCH / "train.sbatch",
            "pretraining.advanced", "--data", data, "--out", tmp_path / "run", *shlex.split(TINY), "--steps", 300,
        ).strip()  # fmt: skip
        log = tmp_path / f"train-{job}.log"
        wait_for(lambda: list((tmp_path / "run" / "train_state").glob("step_*/checksums.json")), log)
        ask("scancel", "--signal=USR1", "--batch", job)  # as two minutes before the time is over
        wait_for(lambda: "finished" in read(log), log)
        wait_for(lambda: not ask("squeue", "--noheader"), log)

        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").write_text("#!/bin/sh\necho started; exec sleep 600\n")
        (tmp_path / "bin" / "python").chmod(0o755)
        environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"
        other = ask("sbatch", "--parsable", "--nodes=1", "--gpus-per-node=1", LAUNCH / "train.sbatch", "x").strip()
        wait_for(lambda: "started" in read(tmp_path / f"train-{other}.log"), log)
        ask("scancel", other)
        wait_for(lambda: not ask("squeue", "--noheader"), log, 60)  # it has ended, and is not queued again
    said = read(log)
    assert "queued again" in said
    assert "going on after step" in said


def read(log: Path) -> str:
    return log.read_bytes().decode("utf-8", "replace") if log.exists() else ""


def wait_for(condition, log: Path, seconds: float = 200) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, read(log)[-2000:]
        time.sleep(0.2)


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / name).read_text())


def test_kubernetes_has_fields_for_all_of_the_train_job() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    given = document("trainjob.yaml")
    assert models.TrainerV1alpha1TrainJob.from_dict(given).to_dict() == given


def test_the_train_job_is_of_kubeflows_second_trainer() -> None:
    given = document("trainjob.yaml")
    assert (given["apiVersion"], given["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = given["spec"]["trainer"]
    gpus = trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert gpus == trainer["numProcPerNode"]
    assert trainer["args"][0] == "pretraining.advanced"


def test_skypilot_takes_its_file() -> None:
    sky = pytest.importorskip("sky", reason="pip install skypilot")
    task = sky.Task.from_yaml(str(LAUNCH / "sky.yaml"))
    assert task.num_nodes == 2


def test_the_skypilot_file_has_what_its_schema_asks_for() -> None:
    given = document("sky.yaml")
    known = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
    assert given.keys() <= known
    assert given["resources"].keys() <= {"accelerators", "use_spot", "disk_size", "infra", "cpus", "memory"}
    assert "-m $ARGUMENTS" in given["run"]
    for script in (given["setup"], given["run"]):
        assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def test_the_image_is_pinned_and_nobody_is_root_in_it() -> None:
    text = (LAUNCH / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11-slim-bookworm$", text, re.MULTILINE)
    assert "-r requirements.lock" in text
    assert text.index("USER learner") < text.index("COPY")
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().split()
    assert {"**/.*", "runs", "data"} <= set(ignored)  # neither secrets nor gigabytes go into the image


def test_the_devcontainer_builds_that_image_and_needs_no_gpu() -> None:
    folder = ROOT / ".devcontainer"
    given = json.loads((folder / "devcontainer.json").read_text())
    assert (folder / given["build"]["dockerfile"]).resolve() == (LAUNCH / "Dockerfile").resolve()
    assert (folder / given["build"]["context"]).resolve() == ROOT
    assert given["hostRequirements"]["gpu"] == "optional"
    assert given["remoteUser"] == "learner"


def test_docker_can_read_the_dockerfile() -> None:
    if shutil.which("docker") is None:
        pytest.skip("there is no docker")
    done = subprocess.run(
        ["docker", "build", "--check", "-f", LAUNCH / "Dockerfile", ROOT], capture_output=True, text=True, check=False
    )
    if "Cannot connect" in done.stderr or "buildx" in done.stderr or "unknown flag" in done.stderr:
        pytest.skip(f"docker does not run here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr


# -- the arithmetic of 1,000 GPUs


def test_the_models_are_as_large_as_their_names() -> None:
    assert n_parameters(scale.model_of("gpt2-xl")) == n_parameters(GPTConfig.preset("gpt2-xl"))
    assert 6.5e9 < n_parameters(scale.SEVEN_B) < 7.0e9


def test_memory_and_communication_by_hand() -> None:
    assert [scale.state_bytes(10**9, 8, way) for way in ("ddp", "zero1", "fsdp")] == [16e9, 9e9, 2e9]
    # 8 GPUs: 8 GB for a billion parameters, 7/8 of them at 450 GB/s; many: nearly all at a machine's 400 GB/s
    assert scale.communication_seconds(10**9, 8, "ddp") == pytest.approx(7e9 / 450e9)
    assert scale.communication_seconds(10**9, 1000, "ddp") == pytest.approx(7.992e9 / 400e9)


def test_more_gpus_are_faster_until_they_have_nothing_to_do() -> None:
    plans = [scale.plan(scale.Config(), gpus) for gpus in scale.GPUS]
    assert [plan.step for plan in plans[:3]] == sorted((plan.step for plan in plans[:3]), reverse=True)
    assert plans[2].efficiency == 1
    assert plans[3].rows < 1
    assert plans[3].efficiency < 0.6
    large = scale.plan(scale.Config(size="7b", tokens_per_step=4_194_304), 1000)
    assert large.efficiency > plans[3].efficiency
    assert large.parallel != "ddp"  # 106 GB of state do not fit
    assert large.memory < 80 * 2**30


def test_checkpoints_are_written_more_often_where_more_can_break() -> None:
    few, many = (scale.plan(scale.Config(), gpus) for gpus in (8, 1000))
    assert many.every < few.every
    assert many.parallel == few.parallel == "ddp"
    assert many.checkpoint == few.checkpoint  # one process writes all of it


@pytest.mark.parametrize(
    "config",
    [
        scale.Config(),
        scale.Config(tokens_per_step=4_194_304),
        scale.Config(size="7b", tokens_per_step=4_194_304),
    ],
)
def test_the_page_has_what_comes_out(config: scale.Config, capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(config)
    shown = capsys.readouterr().out
    page = (LAUNCH / "README.md").read_text(encoding="utf-8")
    assert scale.table(config) in page
    assert scale.table(config) in shown
    assert f"{scale.utilisation():.0%}" in page
