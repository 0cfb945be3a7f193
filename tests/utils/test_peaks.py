"""Measured peaks, and what a piece of work takes."""

import sys
import time

import pytest
import torch

from utils import peaks

CPU = torch.device("cpu")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says")


def test_seconds_are_those_of_one_call() -> None:
    assert 0.009 < peaks.seconds(lambda: time.sleep(0.01), CPU, repeats=3) < 0.1


def test_peaks_are_not_exceeded_by_other_work() -> None:
    measured = peaks.measured_peaks(CPU, [torch.float32], rounds=3)
    a = torch.randn(300, 300)
    x = torch.ones(50_000_000)
    # twice, since both run while other programs do
    assert 2 * 300**3 / peaks.seconds(lambda: a @ a, CPU, repeats=20) < 2 * measured["flops_per_second"]["float32"]
    assert x.nbytes / peaks.seconds(x.max, CPU, repeats=3) < 2 * measured["bytes_per_second"]
    assert list(measured["flops_per_second"]) == ["float32"]


@on_linux
def test_peak_memory_counts_what_is_held_at_once() -> None:
    size = 40_000_000

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(size // 4)

    def both_at_once() -> list[torch.Tensor]:
        return [torch.ones(size // 4) for _ in range(2)]

    for _ in range(2):  # what was freed before must not hide anything
        assert peaks.peak_memory(one_after_the_other, CPU) == pytest.approx(size, rel=0.1)
        assert peaks.peak_memory(both_at_once, CPU) == pytest.approx(2 * size, rel=0.1)


@on_linux
def test_free_memory_is_less_after_taking_some() -> None:
    before = peaks.free_memory(CPU)
    assert 0 < before < 2**50


def test_power_is_none_where_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peaks.watts(CPU) is None
    assert peaks.mean_watts(lambda: None, CPU) is None

    def forbidden(device: torch.device) -> int:
        raise RuntimeError("no permission")

    monkeypatch.setattr(torch.cuda, "power_draw", forbidden)
    assert peaks.watts(torch.device("cuda")) is None


def test_power_is_that_of_the_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's readings lag behind, so those of the beginning would be too low."""
    started = time.perf_counter()
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 700_000 if time.perf_counter() - started > 0.1 else 0)
    monkeypatch.setattr(peaks, "synchronize", lambda device: None)
    assert peaks.mean_watts(lambda: time.sleep(0.001), torch.device("cuda"), duration=0.3) == 700
