"""The stand-in refuses what Modal refuses, and takes what it takes: else no other test here would mean anything."""

import os
import subprocess
import sys
from pathlib import Path

import grpclib
import modal
import pytest
from modal_proto import api_pb2 as pb

from deployment.stand_in.containers import why_not
from deployment.stand_in.control_plane import ControlPlane
from deployment.stand_in.rules import check_cron, check_function


def function(gpu: str = "", count: int = 0, **fields: object) -> pb.Function:
    made = pb.Function(**fields)
    made.resources.gpu_config.gpu_type = gpu
    made.resources.gpu_config.count = count
    return made


GOOD = [
    function(),
    function("L40S", 1, timeout_secs=86_400),
    function("H100", 8, _experimental_group_size=4),
    function(retry_policy=pb.FunctionRetryPolicy(retries=10)),
    function(autoscaler_settings=pb.AutoscalerSettings(scaledown_window=3600)),
]
BAD = [
    function("H1000", 1),
    function("H100", 99),
    function("A10", 8),
    function(timeout_secs=999_999),
    function(retry_policy=pb.FunctionRetryPolicy(retries=11)),
    function(autoscaler_settings=pb.AutoscalerSettings(scaledown_window=7200)),
    function(_experimental_group_size=2),
    function("H100", 4, _experimental_group_size=2),
    function("L40S", 8, _experimental_group_size=2),
    function("L40S", 1, scheduler_placement=pb.SchedulerPlacement(nonpreemptible=True)),
    function(resources=pb.Resources(milli_cpu=65_000)),
]


def test_functions() -> None:
    for good in GOOD:
        check_function(good)
    for bad in BAD:
        with pytest.raises(grpclib.GRPCError):
            check_function(bad)


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("*/30 * * * *", True), ("0 4 1,15 * 1-5", True), ("nonsense", False), ("60 * * * *", False),
        ("* * * *", False), ("* * * * * *", False), ("1- * * * *", False), ("", False),
    ],
)  # fmt: skip
def test_cron_lines(line: str, good: bool) -> None:
    if good:
        check_cron(line)
    else:
        with pytest.raises(grpclib.GRPCError):
            check_cron(line)


def nothing() -> None:
    """Stand for a function."""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu": "H1000"}, "unknown GPU"),
        ({"timeout": 999_999}, "24 hours"),
        ({"schedule": modal.Cron("nonsense")}, "cron"),
        ({"secrets": [modal.Secret.from_name("not-there")]}, "not-there"),
        ({"volumes": {"/data": modal.Volume.from_name("not-there")}}, "not-there"),
    ],
)
def test_nonsense_is_not_deployed(plane: ControlPlane, settings: dict, message: str) -> None:
    app = modal.App("nonsense", include_source=False)
    app.function(image=modal.Image.debian_slim(), **settings)(nothing)
    with pytest.raises(modal.exception.Error, match=message):
        app.deploy()
    assert "nonsense" not in plane.deployed


def shell(commands: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Give commands to the shell that `python -m deployment.stand_in` opens."""
    return subprocess.run(
        [sys.executable, "-m", "deployment.stand_in"], input=commands, capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], env={**os.environ, "SHELL": "/bin/sh", **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_commands_of_its_shell_reach_it_and_nobody_else() -> None:
    if reason := why_not():
        pytest.skip(reason)
    command = f"{sys.executable} -m deployment.workspace status; echo $MODAL_SERVER_URL\n"
    result = shell(command, MODAL_SERVER_URL="unix:///nowhere")
    assert result.returncode == 0, result.stderr
    status, url = result.stdout.splitlines()
    assert status == "workspace main is not up"
    assert not Path(url.removeprefix("unix://")).exists()  # gone with the shell


def test_where_no_container_can_be_made_it_says_so() -> None:
    result = shell("", PATH="/nonexistent")
    assert result.returncode == 1
    assert result.stderr.startswith("error: Modal cannot be stood in for: containers need Linux with unshare")
