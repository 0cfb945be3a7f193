"""Train on Modal: any trainer of this project as a job, on one GPU, on eight, or on several machines.

    python -m deployment.modal_train "pretraining.advanced gpt2-small --data data/web --out runs/small" \\
        --gpu H100:8 --cpus 32 --memory 128

The command is the one that would run here, without `python -m`; with several GPUs it runs under torchrun. Its paths are
those of a volume, which --upload fills and `python -m deployment.download` reads. The same command given again follows
the job while it is under way (after Ctrl-C, or --detach), and later goes on with its run. See job.py for what happens
in the containers.
"""

import importlib.util
import logging
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import modal

from deployment.cloud import (
    PACKAGES,
    add_project,
    base_image,
    deploy,
    machine,
    one_line_errors,
    show_logs,
    unfinished,
    upload,
)
from deployment.costs import MOST_GPUS, dollars_per_hour, parse_gpus
from deployment.job import VOLUME, Job, job_name, run_directory, train
from utils.files import InputError
from utils.ranges import Range, check_ranges

log = logging.getLogger(__name__)

JOBS = "language-model-jobs"  # a modal.Dict: the newest call of each app
CLUSTER_GPUS = ("H100", "H200", "B200")
MODULES = [name for name in PACKAGES if name != "deployment"]


@dataclass(frozen=True)
class Config:
    """Train on Modal."""

    job: str = "pretraining.advanced demo --data data/demo --out runs/demo"
    """The command, without `python -m`. Its paths are those of the volume."""
    gpu: str = "L40S"
    """Kind and number, as in L40S or H100:8; or none."""
    nodes: Annotated[int, Range(1, 32)] = 1
    """Machines. Several are a cluster, which needs all 8 GPUs of each."""
    cpus: Annotated[float, Range(0.125, 64)] = 8
    """Physical processor cores of each machine."""
    memory: Annotated[float, Range(0.5, 336)] = 32
    """GiB of each machine, which gets no more. Each process needs some: take 128 for eight."""
    hours: Annotated[float, Range(0.02, 24)] = 24
    """Hours that one attempt may take. The next one goes on from its last checkpoint."""
    retries: Annotated[int, Range(0, 10)] = 10
    """Attempts after the first, for crashes and time-outs. Those after a preemption do not count."""
    budget: Annotated[float, Range(0, 10**7, open_below=True)] = 50
    """Dollars of all attempts together, after which the job stops with a checkpoint."""
    volume: str = "language-models"
    """The volume with data and runs."""
    upload: Path | None = None
    """A folder to upload first, under the same relative path: data/web."""
    detach: bool = False
    """Come back as soon as the job is under way."""

    def __post_init__(self) -> None:
        check_ranges(self)
        gpus = parse_gpus(self.gpu)
        if self.nodes > 1 and (gpus.count != MOST_GPUS or gpus.name not in CLUSTER_GPUS):
            raise InputError(
                f"several machines need all {MOST_GPUS} GPUs of each: give --gpu {CLUSTER_GPUS[0]}:{MOST_GPUS}, "
                f"not {gpus}"
            )
        if self.upload is not None and (self.upload.is_absolute() or ".." in self.upload.parts):
            raise InputError(f"--upload must be a path below the current folder, as data/web, got {self.upload}")


def job_of(config: Config) -> Job:
    """Return the job that a configuration describes.

    Raises:
        InputError: for a command that is no trainer of this project, or that would not work on several machines.
    """
    try:
        command = tuple(shlex.split(config.job))
    except ValueError as error:
        raise InputError(f"the job is not a command line ({error}): {config.job!r}") from error
    if not command or command[0].split(".")[0] not in MODULES or not _exists(command[0]):
        raise InputError(
            f"the job must begin with a module of this project, as pretraining.advanced, got {config.job!r}"
        )
    out = run_directory(command)
    if out in ("", ".") or PurePosixPath(out).is_absolute() or ".." in PurePosixPath(out).parts:
        raise InputError(f"the job must say where its run goes in the volume, as --out runs/mine, got {out!r}")
    if config.nodes > 1 and not ("--parallel ddp" in config.job or "--parallel=ddp" in config.job):
        raise InputError(
            "machines of a cluster share no disk, and only --parallel ddp has one process write: add it to the job"
        )
    gpus = parse_gpus(config.gpu)
    hourly = dollars_per_hour(gpus, config.cpus, config.memory, nodes=config.nodes)
    return Job(command, config.volume, max(1, gpus.count), config.nodes, hourly, config.budget)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def make_app(config: Config, job: Job) -> tuple[modal.App, modal.Function]:
    """Return the app of a job, and its function `train`."""
    app = modal.App(job_name(job), include_source=False)
    function = modal.clustered(size=config.nodes, rdma=True)(train) if config.nodes > 1 else train
    deployed = app.function(
        image=add_project(base_image()),
        **machine(config.gpu, config.cpus, config.memory),
        volumes={str(VOLUME): modal.Volume.from_name(config.volume, create_if_missing=True)},
        timeout=int(config.hours * 3600),
        retries=modal.Retries(max_retries=config.retries, initial_delay=1.0, backoff_coefficient=1.0),
        single_use_containers=True,  # a new attempt gets a new machine
    )(function)
    return app, deployed


def start(config: Config, job: Job) -> modal.FunctionCall:
    """Upload what is to be uploaded, and start the job; return its call, or that of the one that is under way."""
    jobs = modal.Dict.from_name(JOBS, create_if_missing=True)
    if call := _under_way(jobs, job):
        return call
    if config.upload is not None:
        volume = modal.Volume.from_name(config.volume, create_if_missing=True)
        upload(volume, config.upload, config.upload.as_posix())
    app, _ = make_app(config, job)
    deploy(app)
    if call := _under_way(jobs, job):  # somebody else may have been faster in the minutes that this takes
        return call
    call = modal.Function.from_name(app.name, "train").spawn(asdict(job))
    jobs[app.name] = call.object_id
    return call


def _under_way(jobs: modal.Dict, job: Job) -> modal.FunctionCall | None:
    call = unfinished(jobs.get(job_name(job)))
    if call:
        log.warning("a job for %s is under way: it goes on as it was started", run_directory(job.command))
    return call


def follow(call: modal.FunctionCall) -> dict[str, Any]:
    """Print what a job says while it runs; return how it ended."""
    show_logs(call.logs.stream())
    return call.get()


def main(config: Config) -> dict[str, Any] | None:
    """Run the job, and print what it says.

    Raises:
        InputError: for settings that cannot work, before anything starts; if the trainer refuses; if Modal does.
    """
    job = job_of(config)
    if config.upload is not None and not config.upload.is_dir():
        raise InputError(f"there is no folder {config.upload} to upload")
    log.info(
        "%d x (%s, %g cores, %g GiB) cost $%.2f per hour; the job stops after $%g",
        config.nodes, config.gpu, config.cpus, config.memory, job.dollars_per_hour, config.budget,
    )  # fmt: skip
    with one_line_errors("train on Modal"):
        call = start(config, job)
        out = run_directory(job.command)
        log.info("the job is %s; fetch its run with python -m deployment.download %s", call.object_id, out)
        if config.detach:
            return None
        try:
            ended = follow(call)
        except RuntimeError as error:
            raise InputError(f"the job failed after all its attempts: {error}") from error
        except KeyboardInterrupt:
            log.info("\nthe job goes on; to follow it, give the same command; to end it:")
            log.info("python -m modal app stop %s", job_name(job))
            return None
    match ended["state"]:
        case "refused":
            raise InputError(f"the trainer says: {ended['reason']}")
        case "budget":
            log.warning("the budget of $%g is spent: there is a checkpoint; give more to go on", config.budget)
        case _:
            log.info("finished; attempts: %d", ended["attempts"])
    return ended


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, first="job")
