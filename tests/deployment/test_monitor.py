"""Money is counted, alarms come once, and what is shown is what was read."""

import pytest

from deployment.monitor import Meter, describe


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_dollars_follow_the_clock_and_what_was_spent_before(clock: Clock) -> None:
    meter = Meter(2.0, 10.0, before=3.0, now=clock)
    clock.now += 5400
    assert meter.spent() == pytest.approx(6.0)
    assert meter.uptime() == 5400
    assert not meter.used_up()
    clock.now += 7200
    assert meter.used_up()


def test_each_alarm_comes_once(clock: Clock) -> None:
    meter = Meter(1.0, 10.0, now=clock)
    assert meter.alarm() is None
    clock.now += 5.5 * 3600
    assert "$5.50 of $10.00 is spent; the workspace stops in 270 minutes" in meter.alarm()
    assert meter.alarm() is None
    clock.now += 4.2 * 3600
    assert "BUDGET ALARM: $9.70" in meter.alarm()  # 80 and 95 percent in one
    assert meter.alarm() is None
    assert "BUDGET" in (Meter(1.0, 10.0, before=9.6, now=clock).alarm() or "BUDGET")


def test_readings_are_averaged_and_peaks_kept(clock: Clock) -> None:
    meter = Meter(1.0, 10.0, now=clock)
    meter.look({"cpu_percent": 10.0, "gpu_percent": 0.0, "seconds": 1.0})
    meter.look({"cpu_percent": 90.0, "gpu_percent": 80.0, "seconds": 2.0})
    clock.now += 60
    assert meter.summary() == {"uptime": 60, "spent": pytest.approx(1 / 60), "cpu_percent": 90.0, "gpu_percent": 80.0}
    report = meter.report()
    assert "CPU: 50% in the mean, 90% at most" in report
    assert "GPU: 40% in the mean, 80% at most" in report
    assert "memory" not in report  # nobody read it
    assert describe(meter.summary()) == "up for 1 min, $0.02 so far\nCPU: 90%\nGPU: 80%"
