"""Hooks of pytest: what a run of the tests leaves out, what it says of itself in the end, and the record it stores.

Tests marked `exhaustive` run only where `-m` names that mark. Where several workers share the tests, each begins with
the slow ones, so that none is left with one in the end. Then come the lines that tests had to `say`, and the most
memory that each process held: more than `MOST_MEMORY` fails the run. `--record FILE` stores all of this.
"""

import ctypes
import gc
import json
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from utils.files import write_atomically
from utils.hardware import describe

MOST_MEMORY = 3e9  # bytes of each process that runs tests: a laptop of 8 GB has room for two

_peaks: dict[str, int] = {}  # bytes, by the name of the process
_started = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="FILE", type=Path, help="store what has passed here, unless something failed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the exhaustive tests out unless `-m` asks for them, and have each worker begin with the slow ones."""
    if "exhaustive" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
    if hasattr(config, "workerinput"):
        items[:] = _slow_first(items, config.workerinput["workercount"])


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is imported by now: a million objects that live as long as the tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)  # when fixtures have been torn down
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Hand freed memory back after each module's tests: without it a worker keeps a gigabyte that nothing uses."""
    if platform.libc_ver()[0] == "glibc" and (nextitem is None or nextitem.path != item.path):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def _slow_first(items: list[pytest.Item], n_workers: int) -> list[pytest.Item]:
    """Return the items in another order: of equal parts, one for each worker, each begins with its share of slow ones.

    With `--dist worksteal` each worker begins with such a part, and in the end steals from the other parts' ends.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    ordered: list[pytest.Item] = []
    for worker in range(n_workers):
        share = slow[worker::n_workers]
        n_others = max(0, (len(items) - len(ordered)) // (n_workers - worker) - len(share))
        ordered += share + others[:n_others]
        del others[:n_others]
    return ordered + others


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Note what a worker of xdist has told of itself; one that crashed tells nothing."""
    _peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak", 0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if hasattr(session.config, "workeroutput"):  # this process is a worker
        session.config.workeroutput["peak"] = peak
        return
    if not _peaks:
        _peaks["main"] = peak
    too_much = max(_peaks.values()) > MOST_MEMORY and not torch.cuda.is_available()  # CUDA itself takes as much
    if session.exitstatus == pytest.ExitCode.OK and too_much:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if session.exitstatus == pytest.ExitCode.OK and session.config.option.record:
        record = _record(session.config.pluginmanager.get_plugin("terminalreporter"))
        with write_atomically(session.config.option.record) as file:
            file.write(json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _said(terminalreporter):
        terminalreporter.write_line(line)
    for name, peak in sorted(_peaks.items()):
        too_much = f": more than the {MOST_MEMORY / 1e9:.0f} GB allowed" if peak > MOST_MEMORY else ""
        terminalreporter.write_line(f"{name} took up to {peak / 1e9:.2f} GB of memory{too_much}", red=bool(too_much))


def _said(reporter: pytest.TerminalReporter) -> Iterator[str]:
    for report in reporter.stats.get("passed", []):
        yield from (line for name, line in report.user_properties if name == "say")


def _record(reporter: pytest.TerminalReporter) -> dict[str, Any]:
    """Return what ran, where and when; of skipped tests, why."""
    passed = Counter(report.nodeid.partition("[")[0] for report in reporter.stats.get("passed", []))
    skipped = Counter(report.longrepr[2] for report in reporter.stats.get("skipped", []))
    return {
        "machine": describe(),
        "minutes": round((time.monotonic() - _started) / 60, 1),
        "peak_gigabytes": {name: round(peak / 1e9, 2) for name, peak in sorted(_peaks.items())},
        "n_passed": passed.total(),
        "skipped": dict(skipped),
        "passed": dict(sorted(passed.items())),
        "said": sorted(_said(reporter)),
    }
