"""Watch a run while it trains: its curve, its speed and the time left, in the terminal.

    python -m pretraining.watch runs/mine

It only reads what the trainer writes, so it can come and go, and watch over a network drive.
"""

import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from gpt_model.run_directory import read_config
from utils.files import InputError, printable
from utils.ranges import Range, check_ranges
from utils.terminal_chart import draw_chart
from utils.tracking import METRICS, read_lines

Entries = Sequence[Mapping[str, float]]

RECENT = 20  # lines of metrics from which the time left is reckoned
SILENCE = 120  # seconds without a number after which it is said
NARROWEST = 24  # columns
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"  # what a terminal obeys


@dataclass(frozen=True)
class Config:
    """Show the curve of a run in the terminal, again and again until its last step.

    Ctrl-C ends the watching; the training goes on.
    """

    run: Path
    """The run directory. It may also be given as first argument, without the flag."""
    once: bool = False
    """Show one picture and end. So it is done, too, where the output is not a terminal."""
    every: Annotated[float, Range(0.1, 3600)] = 2.0
    """Seconds between two looks."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> None:
    """Show the run once, or until it has taken its last step.

    Raises:
        InputError: if there is no such run, or nothing to show and nothing to wait for.
    """
    steps = read_config(config.run)["training"].get("steps")
    planned = steps if isinstance(steps, int) else None
    if config.once or not sys.stdout.isatty():
        entries = _read(config.run)
        if not entries:
            raise InputError(f"{config.run} has no numbers yet: they come every few steps")
        print("\n".join(picture(config.run, entries, planned, _can_show_braille())))
        return
    try:
        _watch(config, planned)
    except KeyboardInterrupt:
        print()


def _watch(config: Config, planned: int | None) -> None:
    last = 0.0
    print(HOME + CLEAR_BELOW, end="")
    while planned is None or last < planned:
        entries = _read(config.run)
        lines = [f"{printable(str(config.run))}: waiting for the first numbers"]
        if entries:
            lines = picture(config.run, entries, planned, _can_show_braille())
            last = entries[-1]["step"]
        # over the old picture, since a cleared screen would flicker
        print(HOME + "".join(f"{line}{CLEAR_LINE}\n" for line in lines) + CLEAR_BELOW, end="", flush=True)
        if planned is None or last < planned:
            time.sleep(config.every)


def _read(run: Path) -> Entries:
    """Return the lines of the run's metrics that hold a loss. The last one may be half-written: it comes again."""
    return read_lines(run / METRICS, ["step", "loss"])[0]


def picture(run: Path, entries: Entries, planned: int | None, braille: bool) -> list[str]:
    """Return the lines that show how a run goes, as many and as long as the terminal can show."""
    size = shutil.get_terminal_size()
    width = max(NARROWEST, size.columns - 1)  # some terminals break a line that is as long as they are wide
    words = textwrap.wrap(status(entries, planned, time.time() - (run / METRICS).stat().st_mtime), width)
    training = [(entry["step"], entry["loss"]) for entry in entries]
    held_out = [(entry["step"], entry["val_loss"]) for entry in entries if "val_loss" in entry]
    title = f"{printable(str(run))}: loss{', o on held-out text' if held_out else ''}"
    height = min(20, max(4, size.lines - len(words) - 4))
    return [title[-width:], *draw_chart(training, held_out, width=width, height=height, braille=braille), *words]


def status(entries: Entries, planned: int | None, silent: float) -> str:
    """Return in words how far a run has come.

    Args:
        entries: its metrics, one at least.
        planned: the number of steps it is to take, if that is known.
        silent: seconds since its last number.
    """
    last = entries[-1]
    step = f"step {last['step']:,}"
    parts = [f"{step} of {planned:,}" if planned else step, f"loss {last['loss']:.3f}"]
    parts += [f"held out {entry['val_loss']:.3f}" for entry in entries if "val_loss" in entry][-1:]
    if "tokens_per_second" in last:
        parts.append(f"{last['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in last:
        parts.append(f"MFU {last['mfu']:.1%}")
    if planned and last["step"] >= planned:
        return ", ".join([*parts, "finished"])
    left = seconds_left(entries, planned)
    if silent > SILENCE:
        parts.append(f"nothing new for {tqdm.format_interval(silent)}")
    elif left is not None:
        parts.append(f"{tqdm.format_interval(left)} left")
    return ", ".join(parts)


def seconds_left(entries: Entries, planned: int | None) -> float | None:
    """Reckon from the last lines how many seconds the run still needs; None if they do not say."""
    timed = [(entry["step"], entry["seconds"]) for entry in entries if "seconds" in entry]
    if not timed or planned is None:
        return None
    (first, then), (last, now) = timed[-RECENT:][0] if len(timed) > 1 else (0, 0), timed[-1]
    return (planned - last) * (now - then) / (last - first) if last > first else None


def _can_show_braille() -> bool:
    try:
        "\u28ff".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, first="run")
