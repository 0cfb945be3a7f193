"""What is found out about the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.alone import alone
from utils import hardware
from utils.files import InputError

ROOT = Path(__file__).parent.parent.parent


def test_devices() -> None:
    assert hardware.pick_device("cpu") == torch.device("cpu")
    assert hardware.pick_device().type == ("cuda" if torch.cuda.is_available() else hardware.pick_device().type)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_here_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"device must be auto or one of this machine's, .*cpu.*; got '{name}'"):
        hardware.pick_device(name)


def test_bfloat16_is_chosen_where_it_is_faster(monkeypatch: object) -> None:
    """On one machine the answer must not change from call to call."""
    assert len({hardware.bfloat16_pays(torch.device("cpu")) for _ in range(3)}) == 1
    assert not hardware.bfloat16_pays(torch.device("meta"))


def test_without_a_compiler_there_is_one_warning_and_no_compilation(tmp_path: Path) -> None:
    code = (
        "import logging; logging.basicConfig(format='%(message)s'); from utils.hardware import compiler_works;"
        "print(compiler_works('cpu'), compiler_works('cpu'))"
    )
    environment = {
        **os.environ,
        "CXX": "no-such-compiler",
        "PATH": "/nowhere",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=True,
    )
    assert result.stdout == "False False\n"
    assert result.stderr.count("torch.compile does not work here") == 1


def test_the_description_says_what_a_measurement_needs() -> None:
    description = hardware.describe()
    assert description["torch"] == torch.__version__
    assert description["cpu"]
    assert description["cores"] == os.cpu_count()


def test_keeping_memory_changes_no_result() -> None:
    assert alone(sum_with_memory_kept) == sum(range(10_000_000))


def sum_with_memory_kept() -> int:
    hardware.keep_freed_memory()
    return int(torch.arange(10_000_000).sum())
