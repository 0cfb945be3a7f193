"""Measured peaks, and what a piece of work takes."""

import sys
import time

import pytest
import torch

from tests.alone import alone
from utils import peaks

CPU = torch.device("cpu")
SIZE = 40_000_000  # bytes of one tensor
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says")


def test_seconds_are_those_of_one_call() -> None:
    began = time.perf_counter()
    took = peaks.seconds(lambda: time.sleep(0.01), CPU, repeats=3)
    assert 0.009 < took <= (time.perf_counter() - began) / 3


def test_peaks_are_not_exceeded_by_other_work() -> None:
    """Other programs may slow down what is measured first, so a peak that seems too low is measured again."""
    a = torch.randn(300, 300)
    x = torch.ones(50_000_000)
    for _ in range(10):
        measured = peaks.measured_peaks(CPU, [torch.float32], rounds=3)
        flops = 2 * 300**3 / peaks.seconds(lambda: a @ a, CPU, repeats=20)
        read = x.nbytes / peaks.seconds(x.max, CPU, repeats=3)
        if flops < 2 * measured["flops_per_second"]["float32"] and read < 2 * measured["bytes_per_second"]:
            break
    else:
        pytest.fail(
            f"a product runs at {flops:.3g} flop/s, a maximum reads {read:.3g} bytes/s, the peaks are {measured}"
        )
    assert list(measured["flops_per_second"]) == ["float32"]


@on_linux
def test_peak_memory_counts_what_is_held_at_once() -> None:
    after_another, at_once = alone(peaks_of_lists)
    assert after_another == pytest.approx([SIZE, SIZE], rel=0.1)  # what was freed before must not hide anything
    assert at_once == pytest.approx([2 * SIZE, 2 * SIZE], rel=0.1)


def peaks_of_lists() -> tuple[list[int | None], list[int | None]]:
    """What tensors made one after the other take at most, and two held at once: each measured twice, in turn."""

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(SIZE // 4)

    def both_at_once() -> list[torch.Tensor]:
        return [torch.ones(SIZE // 4) for _ in range(2)]

    both_at_once()  # loads the code
    measured = [peaks.peak_memory(work, CPU) for work in (one_after_the_other, both_at_once) * 2]
    return measured[::2], measured[1::2]


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
