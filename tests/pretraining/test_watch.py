"""Watching a run: the numbers it has, on any terminal; and one line if there is nothing to see."""

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from pretraining import watch
from pretraining.watch import Config, seconds_left, status
from utils.files import InputError
from utils.tracking import METRICS, append_line

ENTRY = {"step": 600, "seconds": 60.0, "loss": 3.0161, "tokens_per_second": 15608}


class Terminal(io.StringIO):
    """A terminal that shows Unicode."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 1,000 steps that has no numbers yet, and a terminal of the usual size."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    (tmp_path / "config.json").write_text(json.dumps({"model": {}, "training": {"steps": 1000}}))
    return tmp_path


def add(run: Path, *steps: int) -> None:
    for step in steps:
        append_line(run / METRICS, {**ENTRY, "step": step, "seconds": step / 10})


def test_what_a_run_says_of_itself() -> None:
    assert status([ENTRY], None, 0) == "step 600, loss 3.016, 15,608 tokens/s"
    before = {"step": 500, "seconds": 40.0, "loss": 3.5, "val_loss": 3.4077}
    assert status([before, {**ENTRY, "mfu": 0.3684}], 1000, 0) == (
        "step 600 of 1,000, loss 3.016, held out 3.408, 15,608 tokens/s, MFU 36.8%, 01:20 left"
    )
    assert status([{"step": 10, "loss": 9}], 1000, 7300) == "step 10 of 1,000, loss 9.000, nothing new for 2:01:40"
    assert status([before, {**ENTRY, "step": 1000}], 1000, 7300).endswith("15,608 tokens/s, finished")


def test_the_time_left_is_reckoned_from_the_recent_steps() -> None:
    slow = [{"step": step, "loss": 1, "seconds": 100 * step} for step in range(1, 101)]
    fast = [{"step": step, "loss": 1, "seconds": 10_000 + (step - 100)} for step in range(101, 201)]
    assert seconds_left([*slow, *fast], 300) == 100
    assert seconds_left(slow[:1], 300) == 299 * 100
    assert seconds_left([slow[0], slow[0]], 300) is None  # by a clock that stands still nothing can be reckoned


@pytest.mark.parametrize("columns", [20, 40, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_picture_fits_into_any_terminal(
    run: Path, columns: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    add(run, *range(10, 700, 10))
    append_line(run / METRICS, {**ENTRY, "step": 700, "val_loss": 3.5})
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", output)
    watch.main(Config(run=run))
    output.flush()
    lines = output.buffer.getvalue().decode(encoding).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= max(columns, watch.NARROWEST)
    assert "held out 3.500" in " ".join(lines)
    assert any("⣀" in line for line in lines) == (encoding == "utf-8")
    assert any("*" in line for line in lines) == (encoding != "utf-8")


def test_a_run_is_followed_to_its_last_step(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer does while the watcher sleeps shows up, a line that is half-written as soon as it is whole."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    screens = []
    days = iter([lambda: add(run, 10), lambda: tear(run), lambda: add(run, 990), lambda: add(run, 1000)])

    def tear(run: Path) -> None:
        with (run / METRICS).open("a") as file:
            file.write('{"step": 20, "lo')

    def sleep(seconds: float) -> None:
        assert seconds == 0.5
        screens.append(sys.stdout.getvalue())
        sys.stdout.seek(0)
        sys.stdout.truncate()
        next(days)()

    monkeypatch.setattr(time, "sleep", sleep)
    watch.main(Config(run=run, every=0.5))
    assert f"{run}: waiting for the first numbers" in screens[0]
    assert "step 10 of 1,000" in screens[1]
    assert "step 10 of 1,000" in screens[2]
    assert "step 1,000 of 1,000, loss 3.016, 15,608 tokens/s, finished" in sys.stdout.getvalue()
    assert all(screen.startswith("\x1b[H") and screen.endswith("\x1b[J") for screen in screens)


def test_ctrl_c_ends_it_quietly(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(time, "sleep", interrupt)
    watch.main(Config(run=run))
    assert sys.stdout.getvalue().endswith("\n")


def test_a_run_that_was_killed_is_told_from_one_that_trains(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = int(time.time())
    monkeypatch.setattr(time, "time", lambda: now)  # however long the test takes
    add(run, 10, 20)
    watch.main(Config(run=run, once=True))
    assert "nothing new" not in capsys.readouterr().out
    os.utime(run / METRICS, (now - 3600, now - 3600))
    watch.main(Config(run=run, once=True))
    assert capsys.readouterr().out.endswith("15,608 tokens/s, nothing new for 1:00:00\n")


def test_nothing_to_see_is_one_line(run: Path) -> None:
    with pytest.raises(InputError, match="has no numbers yet: they come every few steps"):
        watch.main(Config(run=run, once=True))
    with pytest.raises(InputError, match="none is not a run directory: it has no config.json"):
        watch.main(Config(run=run / "none"))
