"""What the hooks of `whole_run` leave out, fail and record."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies

from tests import whole_run


@pytest.mark.parametrize(
    ("expression", "left"),
    [("", ["", "slow"]), ("not slow", ["", "slow"]), ("exhaustive", ["", "slow", "exhaustive"])],
)
def test_exhaustive_tests_run_where_they_are_asked_for(expression: str, left: list[str]) -> None:
    deselected: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    config: Any = SimpleNamespace(option=SimpleNamespace(markexpr=expression), hook=hook)
    items: list[Any] = [
        SimpleNamespace(mark=mark, get_closest_marker=lambda name, mark=mark: name == mark)
        for mark in ("", "slow", "exhaustive")
    ]
    whole_run.pytest_collection_modifyitems(config, items)
    assert [item.mark for item in items] == left
    assert len(items) + len(deselected) == 3


@pytest.mark.parametrize("n_workers", [1, 2, 5])
@pytest.mark.parametrize("slow_ones", [set(), {3, 4, 5, 6, 19}, set(range(20))])
def test_each_worker_begins_with_its_share_of_the_slow_tests(n_workers: int, slow_ones: set[int]) -> None:
    items: list[Any] = [
        SimpleNamespace(number=i, get_closest_marker=lambda name, slow=i in slow_ones: slow) for i in range(20)
    ]
    ordered = [item.number for item in whole_run._slow_first(items, n_workers)]
    assert sorted(ordered) == list(range(20))
    size = 20 // n_workers
    for part in (ordered[i : i + size] for i in range(0, 20, size)):
        n_slow = len(slow_ones & set(part))
        assert set(part[:n_slow]) <= slow_ones
        assert n_slow in (len(slow_ones) // n_workers, -(-len(slow_ones) // n_workers))


def finish(record: Path, exit_status: int = 0, **peaks: int) -> int:
    """Return the exit status of a run in which one test has passed, and one was skipped, after its hook."""
    reports = {
        "passed": [SimpleNamespace(nodeid="test_a.py::test[1]", user_properties=[("say", "said"), ("other", "not")])],
        "skipped": [SimpleNamespace(longrepr=("test_b.py", 7, "Skipped: no GPU"))],
    }
    plugins = SimpleNamespace(get_plugin=lambda name: SimpleNamespace(stats=reports))
    config = SimpleNamespace(option=SimpleNamespace(record=record), pluginmanager=plugins)
    session: Any = SimpleNamespace(config=config, exitstatus=exit_status)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_run, "_peaks", peaks)
        whole_run.pytest_sessionfinish(session)
    return session.exitstatus


def test_too_much_memory_fails_the_run(tmp_path: Path) -> None:
    assert finish(tmp_path / "record.json", gw0=3_999_000_000, gw1=4_001_000_000) == pytest.ExitCode.TESTS_FAILED
    assert not list(tmp_path.iterdir())


def test_what_has_passed_is_recorded(tmp_path: Path) -> None:
    assert finish(tmp_path / "record.json", gw0=1_230_000_000) == 0
    record = json.loads((tmp_path / "record.json").read_bytes())
    assert record["peak_gigabytes"] == {"gw0": 1.23}
    assert record["passed"] == {"test_a.py::test": 1}
    assert record["skipped"] == {"Skipped: no GPU": 1}
    assert record["said"] == ["said"]
    assert {"commit", "date", "cpu"} <= record["machine"].keys()


def test_a_failed_run_is_not_recorded(tmp_path: Path) -> None:
    assert finish(tmp_path / "record.json", exit_status=1, gw0=1) == 1
    assert not list(tmp_path.iterdir())


def test_an_example_may_take_as_long_as_the_machine_needs() -> None:
    """With a deadline, Hypothesis would say of an example that was slow once and quick again that it is flaky."""
    seconds = iter([0.3])

    @given(strategies.none())
    def slow_once(nothing: None) -> None:
        time.sleep(next(seconds, 0))

    slow_once()
    assert next(seconds, None) is None
