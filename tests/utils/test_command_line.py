"""What every script prints reaches every console, and what ends it is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
"""A script."""
import logging
import sys
from dataclasses import dataclass
from typing import Annotated

from tqdm import tqdm

from utils.command_line import run
from utils.files import InputError
from utils.ranges import Range, check_ranges


@dataclass(frozen=True)
class Config:
    """Do a thing."""

    text: str = "é→日\\n"
    """What to print."""
    times: Annotated[int, Range(1, 10**9)] = 1
    """How often."""
    note: str = "seen"
    """What to log."""
    fail: str = ""
    """What to fail with."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> None:
    if config.fail == "memory":
        raise MemoryError
    if config.fail == "GPU":
        raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB.")
    if config.fail == "code":
        raise RuntimeError("a mistake of ours")
    if config.fail == "mistake":
        raise RuntimeError("ours")
    if config.fail == "tensor":
        torch.empty(2**60)
    if config.fail == "file":
        open("no\\x1b[2Jsuch\\nfile")
    if config.fail not in ("", "never"):
        raise InputError(f"bad\\x1b[2J {config.fail}")
    with tqdm(disable=config.fail != "never"):
        logging.getLogger("a chapter").info("%s", config.note)
        logging.getLogger("httpx").info("a request")
    for _ in range(config.times):
        sys.stdout.write(config.text)


if __name__ == "__main__":
    run(main, Config)
'''
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("script")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    return folder


def shell(folder: Path, command: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which $SCRIPT is the script."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCRIPT": f"{sys.executable} -m script", **variables}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("utf-8", "é→日\n".encode()), ("cp1252", b"\xe9\\u2192\\u65e5\n"), ("ascii", b"\\xe9\\u2192\\u65e5\n")],
)
def test_characters_a_console_cannot_hold_are_written_out(folder: Path, encoding: str, printed: bytes) -> None:
    result = shell(folder, "$SCRIPT", PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stdout, result.stderr) == (0, printed, b"seen\n")


def test_a_reader_that_has_seen_enough_ends_it_quietly(folder: Path) -> None:
    for arguments in ("--times 1000000", "--help"):
        result = shell(folder, f"$SCRIPT {arguments} | head -c 3; exit ${{PIPESTATUS[0]}}")
        assert (result.returncode, len(result.stdout), result.stderr) == (0, 3, b"seen\n" * ("times" in arguments)), (
            arguments
        )


def test_streams_that_are_closed(folder: Path) -> None:
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        result = shell(folder, f"$SCRIPT {closed}")
        assert (result.returncode, result.stderr) == (0, b"" if "2>&-" in closed else b"seen\n"), closed


def test_what_is_logged_commands_no_terminal_either(folder: Path) -> None:
    result = shell(folder, r"$SCRIPT --note $'\e[2J a table\nof two lines'")
    assert (result.returncode, result.stderr) == (0, b"\\x1b[2J a table\nof two lines\n")


def test_what_packages_say_of_their_own_is_for_debugging(folder: Path) -> None:
    assert shell(folder, "$SCRIPT").stderr == b"seen\n"
    assert shell(folder, "$SCRIPT", LOG_LEVEL="DEBUG").stderr == b"seen\na request\n"


def test_what_is_logged_beside_a_progress_bar_has_a_line_of_its_own(folder: Path) -> None:
    result = shell(folder, "$SCRIPT --fail never")
    assert b"\rseen\n" in result.stderr
    assert result.stderr.startswith(b"\r0it")


def test_help_in_the_narrowest_terminal_comes_to_an_end(folder: Path) -> None:
    result = shell(folder, "$SCRIPT --help", COLUMNS="1")
    assert result.returncode == 0
    assert b"What to print." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--times 0", "error: times must be at least 1 and at most 1,000,000,000, got 0"),
        ("--fail it", r"error: bad\x1b[2J it"),
        ("--fail memory", "error: there is not enough memory for this"),
        ("--fail GPU", "error: there is not enough memory for this"),
        ("--fail file", r"error: no\x1b[2Jsuch\nfile: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_that_commands_no_terminal(folder: Path, arguments: str, line: str) -> None:
    result = shell(folder, f"$SCRIPT {arguments}")
    assert (result.returncode, result.stdout, result.stderr.decode()) == (1, b"", line + "\n")


def test_a_mistake_of_ours_shows_where_it_is(folder: Path) -> None:
    result = shell(folder, "$SCRIPT --fail code")
    assert result.returncode == 1
    assert b"Traceback" in result.stderr
    assert b"RuntimeError: a mistake of ours" in result.stderr
