"""Two machines, as far as one can be two: network namespaces that a pair of virtual cables joins."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ADDRESSES = ("10.83.7.1", "10.83.7.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, str]]]:
    """The names of two namespaces, each with the name of its end of the cable."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip (iproute2), which makes network namespaces")
    names = [f"lm{os.getpid()}n{node}" for node in range(2)]
    cables = [f"lm{os.getpid()}v{node}" for node in range(2)]
    try:
        try:
            ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
            for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
                ip("netns", "add", name)
                ip("link", "set", cable, "netns", name)
                ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield list(zip(names, cables, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", cables[0]], check=False, capture_output=True)


@pytest.mark.slow
def test_two_nodes_take_the_steps_of_one(nodes: list[tuple[str, str]], tmp_path: Path) -> None:
    """A process on each, found by torchrun's c10d rendezvous; what they measure is said in `ranks.py`."""
    processes = []
    for node, ((name, cable), address) in enumerate(zip(nodes, ADDRESSES, strict=True)):
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
            f"--rdzv-endpoint={ADDRESSES[0]}:29400",
            f"--rdzv-conf=is_host={int(node == 0)},join_timeout=240,read_timeout=240",
            f"--local-addr={address}", "-m", "tests.pretraining.ranks", tmp_path, "zero1", "adamw",
        ]  # fmt: skip
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": cable, "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", name, *map(str, torchrun)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-3000:]
    assert json.loads((tmp_path / "found.json").read_text())["zero1 adamw"]["weights"] < 1e-12
