"""`make demo` as a process: it finishes, it can be interrupted, it shows what it has."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt_model import GPT
from pretraining import demo as demo_script
from pretraining.metrics import read_metrics
from tests.commands import run

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow


def command(out: Path, *arguments: str) -> list[str]:
    return ["pretraining.demo", "--out", str(out), "--steps", "8", *arguments]


def demo(out: Path, *arguments: str) -> subprocess.Popen[str]:
    whole = [sys.executable, "-m", *command(out, *arguments)]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_interrupt_resume_show_and_start_over(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = demo(out)
    deadline = time.monotonic() + 300
    while not (out / "train_state" / "step_000002").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "stopped; the same command resumes after step" in stderr
    assert not stdout
    assert isinstance(GPT.from_run(out), GPT)  # usable as it is
    begun = len(read_metrics(out))

    going_on = run(*command(out))
    assert going_on.returncode == 0, going_on.stderr
    assert f"{out}: going on after step" in going_on.stderr
    results = json.loads((out / "results.json").read_bytes())
    for expected in (
        "The same prompt, continued along the way", f"step {8:>5}  ... ", "Bits per byte",
        f"{results['bits_per_byte']:.3f}",
        "gzip", "bzip2", "xz", "validation loss", "4,240,896", "tokens/s", f"saved             {out}/", "Next:",
    ):  # fmt: skip
        assert expected in going_on.stdout
    assert list(results["samples"]) == ["0", "2", "4", "6", "8"]
    assert results["held_out_bytes"] == pytest.approx(0.05 * 4_025_029, rel=0.01)
    assert 2 < results["bits_per_byte"] < 3
    assert len(read_metrics(out)) >= begun

    again = run(*command(out))
    assert again.stdout == going_on.stdout  # the same results, at once
    assert not again.stderr

    process = demo(out, "--fresh", "--seed", "1")
    while "3/4  training" not in process.stderr.readline():
        assert process.poll() is None
    assert not (out / "results.json").exists()
    process.kill()
    process.communicate()


def test_the_next_command_can_be_pasted() -> None:
    measured = json.loads((Path(demo_script.__file__).parent / "results" / "demo.json").read_bytes())["runs"][0]
    assert "--run 'my runs/demo' --prompt" in demo_script.summary(measured, Path("my runs/demo"))
