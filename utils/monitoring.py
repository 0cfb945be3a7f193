"""What a run takes of its machine, read in the background, and how long its parts take.

    profiler = PerformanceProfiler(device)
    with ResourceMonitor(device) as monitor:
        for batch in batches:
            with profiler.measure("step"):
                step(batch)
    print(profiler.table(), monitor.latest(), monitor.joules_per_token(tokens))

What the system does not tell, or a package that is missing would have told, is left out of the readings.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch

from utils.peaks import synchronize

Sensors = dict[str, Callable[[], float]]

CPU = torch.device("cpu")


class ResourceMonitor:
    """Takes a reading every second or so, in a thread, from the beginning of a block to its end.

    A reading is a dictionary that holds "seconds", since the beginning, and of these what is known:

    - "cpu_percent": load of the machine, over all cores, since the reading before
    - "memory_bytes": memory of this process
    - "memory_percent": share of the machine's memory that is in use
    - "gpu_percent": share of the time in which the GPU computed anything at all
    - "gpu_memory_busy_percent": share of the time in which its memory was read or written
    - "gpu_memory_bytes": its memory that is in use, by all processes
    - "gpu_watts", "gpu_celsius": its power and temperature
    """

    def __init__(self, device: torch.device = CPU, *, interval: float = 1.0, length: int = 3600) -> None:
        """Prepare to read.

        Args:
            device: where the run computes; a GPU is read, too.
            interval: seconds between two readings.
            length: how many readings are kept: the newest ones.
        """
        self.interval = interval
        self.joules: float | None = None
        """Energy that the GPU has taken since the beginning; None if its power is not known."""
        self._readings: deque[dict[str, float]] = deque(maxlen=length)
        self._power: tuple[float, float] | None = None  # seconds and watts of the last reading that has them
        self._sensors = {**_machine_sensors(), **(_gpu_sensors(device) if device.type == "cuda" else {})}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resource monitor", daemon=True)

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def readings(self) -> list[dict[str, float]]:
        """Return the newest readings, the oldest of them first."""
        return list(self._readings)

    def latest(self) -> dict[str, float]:
        """Return the newest reading; an empty one before the first."""
        return dict(self._readings[-1]) if self._readings else {}

    def joules_per_token(self, tokens: int) -> float | None:
        """Return the energy per token if so many were trained on since the beginning; None if it is not known."""
        return None if self.joules is None or not tokens else self.joules / tokens

    def _run(self) -> None:
        self._read()
        while not self._stop.wait(self.interval):
            self._read()
        self._read()  # so that the energy is that of the whole time

    def _read(self) -> None:
        reading = {"seconds": time.perf_counter() - self._began}
        for name, sensor in self._sensors.items():
            try:
                reading[name] = sensor()
            except Exception:  # each package has its own, for what this GPU does not say or that it is gone
                continue
        if not self._readings:
            reading.pop("cpu_percent", None)  # there is no reading before
        if "gpu_watts" in reading:
            self._add_energy(reading["seconds"], reading["gpu_watts"])
        self._readings.append(reading)

    def _add_energy(self, now: float, watts: float) -> None:
        """Add the energy since the last reading of the power, which is taken to have changed evenly."""
        then, before = self._power or (now, watts)
        self.joules = (self.joules or 0.0) + (now - then) * (before + watts) / 2
        self._power = now, watts


def _machine_sensors() -> Sensors:
    try:
        import psutil
    except ImportError:
        return {}
    process = psutil.Process()
    return {
        "cpu_percent": psutil.cpu_percent,
        "memory_bytes": lambda: process.memory_info().rss,
        "memory_percent": lambda: psutil.virtual_memory().percent,
    }


def _gpu_sensors(device: torch.device) -> Sensors:
    # The number is found out here: in the monitor's thread, the current GPU is always the first one.
    number = torch.cuda.current_device() if device.index is None else device.index
    return {
        "gpu_percent": lambda: torch.cuda.utilization(number),
        "gpu_memory_busy_percent": lambda: torch.cuda.memory_usage(number),
        "gpu_memory_bytes": lambda: torch.cuda.device_memory_used(number),
        "gpu_watts": lambda: torch.cuda.power_draw(number) / 1000,
        "gpu_celsius": lambda: torch.cuda.temperature(number),
    }


@dataclass
class Timing:
    """How long the calls of one thing took, in seconds.

    Mean and spread are brought up to date call by call, so that millions of calls need no more memory than one
    (Welford 1962, https://doi.org/10.1080/00401706.1962.10490022).
    """

    calls: int = 0
    total: float = 0.0
    mean: float = 0.0
    min: float = math.inf
    max: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean."""

    @property
    def std(self) -> float:
        """The sample's standard deviation; 0 for a single call."""
        return math.sqrt(self.squares / (self.calls - 1)) if self.calls > 1 else 0.0

    def add(self, seconds: float) -> None:
        """Count a call."""
        self.calls += 1
        self.total += seconds
        self.min = min(self.min, seconds)
        self.max = max(self.max, seconds)
        difference = seconds - self.mean
        self.mean += difference / self.calls
        self.squares += difference * (seconds - self.mean)


class PerformanceProfiler:
    """Measures how long things take, each under a name, the work that they give the GPU included.

    Waiting for the GPU before and after each is what makes the times true, and the whole slower: measure to find
    out, not always.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self.timings: dict[str, Timing] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure a block, or as a decorator each call of a function. What ends in an exception is not counted."""
        synchronize(self.device)
        began = time.perf_counter()
        yield
        synchronize(self.device)
        self.timings.setdefault(name, Timing()).add(time.perf_counter() - began)

    def table(self) -> str:
        """Return the timings as a table in milliseconds, what takes most in all first."""
        columns = ("mean", "std", "min", "max", "total")
        width = max(map(len, [*self.timings, "ms"]))
        lines = [f"{'ms':<{width}}{'calls':>9}" + "".join(f"{column:>12}" for column in columns)]
        for name, timing in sorted(self.timings.items(), key=lambda item: -item[1].total):
            numbers = (f"{1000 * getattr(timing, column):>12,.3f}" for column in columns)
            lines.append(f"{name:<{width}}{timing.calls:>9,}" + "".join(numbers))
        return "\n".join(lines)
