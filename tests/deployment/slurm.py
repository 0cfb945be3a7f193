"""A real Slurm of one machine, on the loopback address, for as long as a block lasts."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.ports import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
# Munge says who asks; a fake GPU is handed out, so that the file's --gpus-per-node is understood.
CONFIGURATION = """
ClusterName=test
FirstJobId={job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=10
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def why_not() -> str | None:
    """Return why there can be no Slurm here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"there is no {missing[0]}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm is started by root"


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run Slurm; yield the environment in which its commands find it.

    Raises:
        RuntimeError: if it does not start.
    """
    ports = [free_port(), free_port()]
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    folder.chmod(0o755)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(host=host, folder=folder, controller=ports[0], daemon=ports[1], job=os.getpid())
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    version = "v1" if Path("/sys/fs/cgroup/freezer").exists() else "v2"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/{version}\nIgnoreSystemd=yes\n")
    environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
    munge = [
        "munged", "--foreground", "--force", f"--socket={folder}/munge.sock", f"--key-file={folder}/key",
        f"--log-file={folder}/munge.log", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/seed",
    ]  # fmt: skip
    commands = [munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]]
    with (folder / "said").open("wb") as said:
        processes = [subprocess.Popen(line, env=environment, stdout=said, stderr=said) for line in commands]
        try:
            _wait_until_idle(environment, folder)
            yield environment
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15)
                process.kill()
                process.wait()


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        shown = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, check=False
        )
        if shown.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    raise RuntimeError(f"Slurm did not start: {(folder / 'said').read_text(errors='replace')[-1500:]}")
