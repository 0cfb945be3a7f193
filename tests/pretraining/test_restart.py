"""torchrun starts the processes again after one of them was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DIES_ONCE = """
import os, signal
from pretraining.engine.world import join_world

with join_world("cpu", timeout=240) as world:
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and world.rank == 1:
        print(os.environ["MASTER_PORT"], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if world.all(world.rank) == [0, 1] and world.rank == 1:
        print(os.environ["MASTER_PORT"])
"""


@pytest.mark.slow
def test_processes_that_are_started_again_find_one_another(tmp_path: Path) -> None:
    """They meet at another port, so that none of them reads where a process of the first try had listened. On the same
    port some tries go well, too."""
    script = tmp_path / "dies_once.py"
    script.write_text(DIES_ONCE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, script], env={**os.environ, **paths, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(set(done.stdout.split())) == 2, done.stdout
