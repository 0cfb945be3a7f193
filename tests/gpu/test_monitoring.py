"""The readings of a real GPU, and times that include what it does."""

import time
from collections.abc import Callable

import pytest
import torch

from utils.monitoring import PerformanceProfiler, ResourceMonitor


def test_a_busy_gpu_shows_in_the_readings(device: torch.device, say: Callable[[str], None]) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py, through which the driver is asked, is not installed")
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    with ResourceMonitor(device, interval=0.2) as monitor:
        began = time.perf_counter()
        while time.perf_counter() - began < 3:
            for _ in range(20):
                a @ a
            torch.cuda.synchronize()
    busy = monitor.readings()[-3]  # drivers report a mean over the last second
    assert busy["gpu_percent"] > 80
    assert 0 < busy["gpu_memory_busy_percent"] <= 100
    assert busy["gpu_memory_bytes"] >= a.nbytes
    assert 20 < busy["gpu_celsius"] < 110
    watts = [reading["gpu_watts"] for reading in monitor.readings()]
    assert monitor.joules is not None
    assert min(watts) * 3 < monitor.joules < max(watts) * 3.5
    say(
        f"a matrix product for 3 s: {monitor.joules:.0f} J, at most {max(watts):.0f} W, {busy['gpu_percent']:.0f}% busy"
    )


def test_a_profiler_counts_until_the_gpu_is_done(device: torch.device) -> None:
    a = torch.randn(8192, 8192, device=device)
    a @ a
    profiler = PerformanceProfiler(device)
    for _ in range(3):
        with profiler.measure("asking and computing"):
            a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    a @ a
    asking = time.perf_counter() - began
    assert profiler.timings["asking and computing"].min > 5 * asking
