"""Readings of the machine, with stand-ins for a GPU where there is none (tests/gpu has the real one), and timings."""

import itertools
import statistics
import sys
import threading
import time

import pytest
import torch

from utils import monitoring
from utils.monitoring import PerformanceProfiler, ResourceMonitor, Timing

GPU = torch.device("cuda", 1)


def test_the_machine_is_read_from_the_beginning_to_the_end() -> None:
    began = time.perf_counter()
    with ResourceMonitor(interval=1000) as monitor:
        text = b"x" * 50_000_000
    took = time.perf_counter() - began
    first, last = monitor.readings()
    assert 0 <= first["seconds"] < last["seconds"] < took
    assert first["memory_bytes"] > len(text)
    assert 0 < last["memory_percent"] <= 100
    assert "cpu_percent" not in first  # it is the load since the reading before
    assert 0 <= last["cpu_percent"] <= 100
    assert monitor.latest() == last
    assert monitor.joules is None
    assert monitor.joules_per_token(10) is None


def test_it_ends_at_once_however_long_the_interval_and_whatever_happens() -> None:
    began = time.perf_counter()
    with pytest.raises(ZeroDivisionError), ResourceMonitor(interval=1000):
        _ = 1 / 0
    assert time.perf_counter() - began < 100
    assert "resource monitor" not in {thread.name for thread in threading.enumerate()}


def test_only_the_newest_readings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = threading.Event()
    counter = itertools.count()

    def count() -> int:
        number = next(counter)
        if number == 50:
            enough.set()
        return number

    monkeypatch.setattr(monitoring, "_machine_sensors", lambda: {"number": count})
    with ResourceMonitor(interval=0, length=5) as monitor:
        assert enough.wait(60)
    numbers = [reading["number"] for reading in monitor.readings()]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    assert numbers[0] >= 46


def test_without_psutil_the_rest_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with ResourceMonitor() as monitor:
        pass
    assert monitor.latest().keys() == {"seconds"}


class Driver:
    """A stand-in for a GPU's driver, asked by PyTorch's functions: 100 W at first, then 300 W, and no temperature."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.power = itertools.chain([100_000], itertools.repeat(300_000))
        self.asked: set[int] = set()
        answers = {"utilization": 97, "memory_usage": 41, "device_memory_used": 2**34}
        for name, value in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda number, value=value: self.answer(number, value))
        monkeypatch.setattr(torch.cuda, "power_draw", lambda number: self.answer(number, next(self.power)))
        monkeypatch.setattr(torch.cuda, "temperature", self.refuse)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)

    def answer(self, number: int, value: int) -> int:
        self.asked.add(number)
        return value

    def refuse(self, number: int) -> int:
        raise RuntimeError("not supported")


@pytest.mark.parametrize(("device", "number"), [(GPU, 1), (torch.device("cuda"), 3)])
def test_a_gpu_is_read_and_its_energy_added_up(
    device: torch.device, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(monkeypatch)
    clock = iter([50.0, 50.0, 54.0])  # beginning, first and last reading
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with ResourceMonitor(device, interval=1000) as monitor:
        pass
    gpu = {name: value for name, value in monitor.latest().items() if name.startswith("gpu")}
    assert gpu == {
        "gpu_percent": 97, "gpu_memory_busy_percent": 41, "gpu_memory_bytes": 2**34, "gpu_watts": 300.0,
    }  # fmt: skip
    assert driver.asked == {number}
    assert monitor.joules == 4 * (100 + 300) / 2
    assert monitor.joules_per_token(400) == 2
    assert monitor.joules_per_token(0) is None


def test_a_gpu_that_is_lost_on_the_way_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    monkeypatch.setattr(torch.cuda, "power_draw", driver.refuse)
    with ResourceMonitor(GPU) as monitor:
        pass
    assert "gpu_watts" not in monitor.latest()
    assert monitor.latest()["gpu_percent"] == 97
    assert monitor.joules is None


def test_timings_are_those_of_statistics() -> None:
    durations = [1e6 + 0.1, 1e6 + 0.4, 1e6 + 0.2, 1e6 + 0.2]  # sums of squares would lose what they differ by
    timing = Timing()
    for seconds in durations:
        timing.add(seconds)
    assert timing.calls == 4
    assert timing.mean == pytest.approx(statistics.mean(durations), rel=1e-15)
    assert timing.std == pytest.approx(statistics.stdev(durations), rel=1e-8)
    assert (timing.min, timing.max) == (min(durations), max(durations))
    assert timing.total == pytest.approx(sum(durations))
    once = Timing()
    once.add(2.0)
    assert (once.mean, once.std) == (2.0, 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows its only element, which tests move on."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_profiler_measures_blocks_and_functions(clock: list[float]) -> None:
    profiler = PerformanceProfiler()

    @profiler.measure("wait")
    def wait(seconds: float) -> float:
        """Wait."""
        clock[0] += seconds
        return seconds

    assert wait.__doc__ == "Wait."
    with profiler.measure("all"):
        assert [wait(0.25), wait(0.75)] == [0.25, 0.75]
        clock[0] += 1
    with pytest.raises(ZeroDivisionError), profiler.measure("all"):
        _ = 1 / 0
    assert profiler.timings["all"] == Timing(calls=1, total=2.0, mean=2.0, min=2.0, max=2.0)
    assert profiler.timings["wait"] == Timing(calls=2, total=1.0, mean=0.5, min=0.25, max=0.75, squares=0.125)
    assert profiler.table().splitlines() == [
        "ms      calls        mean         std         min         max       total",
        "all         1   2,000.000       0.000   2,000.000   2,000.000   2,000.000",
        "wait        2     500.000     353.553     250.000     750.000   1,000.000",
    ]


def test_a_profiler_waits_for_the_gpu(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked of the GPU before does not count, what was asked meanwhile does."""
    queue = [5.0]

    def synchronize(device: torch.device) -> None:
        assert device == GPU
        clock[0] += sum(queue)
        queue.clear()

    monkeypatch.setattr(monitoring, "synchronize", synchronize)
    profiler = PerformanceProfiler(GPU)
    with profiler.measure("step"):
        queue.append(3.0)
    assert profiler.timings["step"].total == 3.0
