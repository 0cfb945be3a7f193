"""For those who watch the server: whether it lives, whether it can serve, and its figures for Prometheus."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from chat_ui.engine import Service
from chat_ui.logins import Logins, is_loopback
from utils.files import InputError, read_json, write_atomically

if TYPE_CHECKING:
    from chat_ui.app import App

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10
TARGET = 0.999  # share of the time that the server is to be up
DELAYS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)  # seconds


class Uptime:
    """Knows for which share of the time since its first start the server was up, also across restarts.

    It writes down every ten seconds that it lives, so a server that is killed loses no more than that.

    Args:
        file: where it is kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._started = time.time()
        self._first, self._up_before = self._started, 0.0
        with suppress(FileNotFoundError, InputError, KeyError, TypeError, ValueError):
            known = read_json(file)
            self._first, self._up_before = float(known["first_start"]), float(known["seconds_up"])

    def share(self) -> float:
        """Return the share, from 0 to 1."""
        total = time.time() - self._first
        return min(self._seconds_up() / total, 1) if total > 0 else 1.0

    def beat(self) -> None:
        """Write down that the server lives."""
        content = {"first_start": self._first, "seconds_up": self._seconds_up()}
        try:
            with write_atomically(self.file) as file:
                file.write(json.dumps(content).encode())
        except OSError as error:
            logger.warning("the time up cannot be written down: %s", error)

    def _seconds_up(self) -> float:
        return self._up_before + time.time() - self._started


class Health:
    """The routes /health, /ready and /metrics.

    Args:
        app: the chat.
        service: the engine.
        logins: who may read the figures from elsewhere.
        uptime: the share of time up.
    """

    def __init__(self, app: App, service: Service, logins: Logins, uptime: Uptime) -> None:
        self.app = app
        self.service = service
        self.logins = logins
        self.uptime = uptime
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]
        self.delays = Histogram(
            "chat_event_loop_delay_seconds", "How late the event loop was", buckets=DELAYS, registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        Gauge("chat_up_target_ratio", "Share of the time that it is to be up", registry=self.registry).set(TARGET)
        self.router = APIRouter()
        self.router.add_api_route("/health", self.health)
        self.router.add_api_route("/ready", self.ready)
        self.router.add_api_route("/metrics", self.metrics)

    async def health(self) -> dict[str, str]:
        """Answer that the process lives; one that does not answer should be restarted."""
        return {"status": "ok"}

    async def ready(self, response: Response) -> dict[str, object]:
        """Answer whether requests should be sent here: 503 if not; and which degraded modes are on."""
        status = self.service.status()
        ready = status.alive and not self.app.closing
        response.status_code = 200 if ready else 503
        degraded = list(status.degraded)
        if self.app.history.problem is not None or not await self.app.history.answers():
            degraded.append("no history")
        return {"ready": ready, "closing": self.app.closing, "engine": status.alive, "degraded": degraded}

    async def metrics(self, request: Request) -> Response:
        """Return the figures as Prometheus reads them; from another machine only to who has a key."""
        if not is_loopback(request.client.host if request.client else ""):
            await self.logins.api_user(request)
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def collect(self) -> Iterator[Metric]:
        """Yield the figures that are counted elsewhere, at the moment when they are read."""
        from chainlit.session import ws_sessions_id, ws_sessions_sid

        status = self.service.status()
        gauges = {
            "chat_up_ratio": ("Share of the time since the first start that it was up", self.uptime.share()),
            "chat_sockets": ("Open sockets", len(ws_sessions_sid)),
            "chat_sessions": ("Sessions in memory", len(ws_sessions_id)),
            "chat_answers_running": ("Texts being written", status.running),
            "chat_requests_waiting": ("Requests in the queue", status.waiting),
            "chat_models_loaded": ("Models in memory", len(status.loaded)),
            "chat_degraded_modes": ("Degraded modes that are on", len(status.degraded)),
            "chat_history_saved": ("1 if what is said is saved", float(self.app.history.problem is None)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, value in status.counters.items():
            yield CounterMetricFamily(f"chat_engine_{name}", "Total since the start", value=value)
        yield CounterMetricFamily(
            "chat_history_faults", "Times that the database failed", value=self.app.history.n_faults
        )

    async def watch(self) -> None:
        """Measure how late the event loop is, and write down that the server lives, until it is cancelled."""
        interval = 0.1
        beats = 0
        while True:
            before = time.perf_counter()
            await asyncio.sleep(interval)
            self.delays.observe(max(time.perf_counter() - before - interval, 0))
            beats += 1
            if beats % (BEAT_SECONDS / interval) == 0:
                await asyncio.to_thread(self.uptime.beat)
