"""What a workspace takes and costs: readings of the machine, money so far, and an alarm before the budget is spent."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

ALARMS = (0.5, 0.8, 0.95)  # shares of the budget at which to warn; at all of it the workspace stops
SHOWN = {
    "cpu_percent": ("CPU", "{:.0f}%"),
    "memory_percent": ("memory", "{:.0f}%"),
    "gpu_percent": ("GPU", "{:.0f}%"),
    "gpu_memory_bytes": ("GPU memory", "{:,.0f} bytes"),
    "gpu_watts": ("GPU power", "{:.0f} W"),
}


class Meter:
    """Counts the seconds and dollars of a workspace, and remembers what it took."""

    def __init__(
        self, dollars_per_hour: float, budget: float, *, before: float = 0.0, now: Callable[[], float] = time.time
    ) -> None:
        """Begin to count.

        Args:
            dollars_per_hour: what the machine costs.
            budget: dollars that may be spent.
            before: dollars that were spent before a preemption.
            now: a clock, in seconds.
        """
        self.dollars_per_hour = dollars_per_hour
        self.budget = budget
        self.latest: Mapping[str, float] = {}
        self._before = before
        self._now = now
        self._began = now()
        self._alarms = [share for share in ALARMS if before < share * budget]
        self._sums: dict[str, float] = defaultdict(float)
        self._peaks: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def uptime(self) -> float:
        """Return the seconds since it began."""
        return self._now() - self._began

    def spent(self) -> float:
        """Return the dollars so far."""
        return self._before + self.uptime() / 3600 * self.dollars_per_hour

    def used_up(self) -> bool:
        """Return whether the budget is spent."""
        return self.spent() >= self.budget

    def look(self, reading: Mapping[str, float]) -> None:
        """Take in a reading, such as `ResourceMonitor.latest()`."""
        self.latest = reading
        for name in SHOWN.keys() & reading.keys():
            self._sums[name] += reading[name]
            self._counts[name] += 1
            self._peaks[name] = max(self._peaks[name], reading[name])

    def alarm(self) -> str | None:
        """Return a warning once for each share of the budget that has been passed since the last call."""
        passed = [share for share in self._alarms if self.spent() >= share * self.budget]
        if not passed:
            return None
        self._alarms = [share for share in self._alarms if share not in passed]
        left = max(0.0, self.budget - self.spent()) / self.dollars_per_hour * 60
        return (
            f"BUDGET ALARM: ${self.spent():.2f} of ${self.budget:.2f} is spent; "
            f"the workspace stops in {left:.0f} minutes"
        )

    def summary(self) -> dict[str, float]:
        """Return how things are now, for `status`."""
        latest = {name: self.latest[name] for name in SHOWN.keys() & self.latest.keys()}
        return {"uptime": self.uptime(), "spent": self.spent(), **latest}

    def report(self) -> str:
        """Return what was taken in all: time, dollars, and the mean and peak of each reading."""
        lines = [f"up for {duration(self.uptime())}, ${self.spent():.2f} of ${self.budget:.2f} spent"]
        for name, (label, form) in SHOWN.items():
            if self._counts[name]:
                mean = self._sums[name] / self._counts[name]
                lines.append(f"{label}: {form.format(mean)} in the mean, {form.format(self._peaks[name])} at most")
        return "\n".join(lines)


def describe(state: Mapping[str, float]) -> str:
    """Return a summary that was stored, as lines of text."""
    lines = [f"up for {duration(state['uptime'])}, ${state['spent']:.2f} so far"]
    lines += [f"{label}: {form.format(state[name])}" for name, (label, form) in SHOWN.items() if name in state]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return seconds as hours and minutes.

    >>> duration(5400)
    '1 h 30 min'
    """
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
