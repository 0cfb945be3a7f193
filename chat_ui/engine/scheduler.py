"""One thread that runs all models: takes what has come in, loads what is missing, lets each model do a step, tells.

    inbox -> lane of a model: queue -> batch -> events
                                ^
             models are loaded by other threads meanwhile, and their lanes wait

It knows no event loop: `emit` gets the events of a round, and `round` may be called without a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from chat_ui.engine.batch import Batch
from chat_ui.engine.events import BusyError, Event, Loading, Request
from chat_ui.engine.lane import Job, Lane
from chat_ui.engine.models import Loaded, MemoryFullError, ModelInfo, Models
from chat_ui.engine.options import Options
from chat_ui.engine.prefixes import PrefixCache
from gpt_model.costs import cache_bytes
from utils.command_line import describe
from utils.files import InputError

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.1  # at a download's progress and at time limits, while nothing runs
LOADERS = 4  # models that are loaded at the same time
CACHE_SHARE = 4  # a model's rows take at most this fraction of the memory that models may take
PREFIX_SHARE = 16  # and what is kept of its earlier texts this one

Told = list[tuple[Job, Event]]


@dataclass
class _Load:
    """A model on its way into memory."""

    future: Future[Loaded]
    progress: tuple[int, int | None] = (0, None)  # written by the loading thread, as one value
    told: tuple[int, int | None] = field(default=(-1, None))


class Scheduler:
    """Runs the models; see the module. `submit`, `cancel` and `stop` may be called from any thread.

    Args:
        models: what can be asked for.
        options: how to work.
        emit: called with what a round has to tell, if it is anything.
        fallback: the model that answers while another one is broken.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        models: Models,
        options: Options,
        emit: Callable[[Told], None],
        *,
        fallback: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = models
        self.options = options
        self.fallback = fallback
        self.clock = clock
        self.counters: Counter[str] = Counter()
        self.lanes: dict[str, Lane] = {}
        self._emit = emit
        self._told: Told = []
        self._inbox: deque[Job] = deque()
        self._n_waiting = 0  # in the inbox and in the lanes
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._letting_go = False
        self._loads: dict[str, _Load] = {}
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="load-model")

    def submit(self, request: Request, reader: object = None) -> Job:
        """Take a request, and note who reads its events.

        Raises:
            BusyError: if the queue is full, or `stop` was called.
        """
        with self._lock:
            if self._stopping:
                raise BusyError("the server is shutting down")
            if self._n_waiting >= self.options.queue:
                self.counters["refused"] += 1
                raise BusyError(f"too many people are waiting, {self._n_waiting}: try again in a little while")
            self._n_waiting += 1
            self.counters["requests"] += 1
            job = Job(request, self.clock(), reader)
            self._inbox.append(job)
        self._wake.set()
        return job

    def cancel(self, job: Job) -> None:
        """End a job in the next round."""
        job.cancelled = True
        self._wake.set()

    def stop(self) -> None:
        """Cancel everything in the next round, and let `run` return after it."""
        with self._lock:
            self._stopping = True
        self._wake.set()

    def in_use(self) -> set[str]:
        """Return the names of the models that write, or that somebody waits for. From any thread."""
        return {lane.name for lane in list(self.lanes.values()) if not lane.is_idle}

    def let_go(self) -> None:
        """Have the next round free the models that have left memory for another one. From any thread."""
        self._letting_go = True
        self._wake.set()

    def run(self) -> None:
        """Do one round after the other until `stop`; wait while there is nothing to do."""
        while not self._stopping:
            self._wake.clear()
            if not self.round():
                self._wake.wait(SECONDS_BETWEEN_LOOKS if self._n_waiting else None)
        self._take_inbox()
        for lane in self.lanes.values():
            lane.cancel_all(self.clock())
        self._flush()
        self._loaders.shutdown(wait=False, cancel_futures=True)

    def round(self) -> bool:
        """Let each model do one step; return whether there is more to do at once."""
        self._take_inbox()
        if self._letting_go:
            self._let_go()
        for lane in list(self.lanes.values()):
            try:
                self._advance(lane)
            except Exception as error:  # whatever it is, it must end neither the thread nor the other models
                log.exception("%s failed", lane.name)
                lane.fail(self.clock(), describe(error) or type(error).__name__)
        with self._lock:
            self._n_waiting = len(self._inbox) + sum(len(lane.waiting) for lane in self.lanes.values())
        self._flush()
        return any(lane.n_running for lane in self.lanes.values())

    def _advance(self, lane: Lane) -> None:
        """Let a model begin with those who wait for it, and do a step."""
        lane.drop_lost(self.clock())
        if lane.waiting and self._prepare(lane):
            lane.admit(self.clock(), is_busy=self._n_waiting > self.options.queue / 2)
        lane.step(self.clock)
        lane.tell_positions()

    @property
    def n_waiting(self) -> int:
        """Return the number of requests that no model has begun with."""
        return self._n_waiting

    @property
    def n_running(self) -> int:
        """Return the number of texts that are being read or written."""
        return sum(lane.n_running for lane in list(self.lanes.values()))

    def degraded(self) -> tuple[str, ...]:
        """Return the names of the degraded modes that are on."""
        modes = []
        if self._n_waiting >= self.options.queue:
            modes.append("queue full")
        elif self._n_waiting > self.options.queue / 2:
            modes.append("busy")
        now = self.clock()
        return (*modes, *(f"broken {x.name}" for x in list(self.lanes.values()) if x.breaker.state(now) != "closed"))

    def _flush(self) -> None:
        if self._told:
            self._emit(self._told)
            self._told = []

    def _take_inbox(self) -> None:
        while self._inbox:
            job = self._inbox.popleft()
            self._lane(job.request.model).waiting.append(job)

    def _lane(self, name: str) -> Lane:
        if name not in self.lanes:
            self.lanes[name] = Lane(name, self.options, lambda *told: self._told.append(told), self.counters)
        return self.lanes[name]

    def _prepare(self, lane: Lane) -> bool:
        """Return whether a lane has its model; if not, see to it."""
        if lane.name in self._loads:
            return self._loaded(lane)
        if lane.breaker.state(self.clock()) == "open":
            self._divert(lane, f"{lane.name} has failed several times: it rests for a while")
            return False
        try:
            loaded = self.models.get(lane.name)
        except InputError as error:  # its files have just been deleted
            lane.refuse(self.clock(), describe(error))
            return False
        if lane.batch is not None and lane.batch.loaded is loaded:
            return True
        if lane.n_running:
            return False  # the weights are others now: the old ones finish what they have begun
        lane.use(None)
        if loaded is not None:
            lane.use(self._batch(loaded))
            return True
        self._load(lane)
        return False

    def _load(self, lane: Lane) -> None:
        """Begin to load a model."""
        info = self.models.info(lane.name)
        extra = cache_bytes(info.config, self._rows(info) + 1, info.context_length, torch.float32)
        extra += self._prefix_bytes
        used = self.in_use() - {lane.name}

        def note(done: int, total: int | None) -> None:
            load.progress = (done, total)

        load = _Load(Future())
        load.future = self._loaders.submit(self.models.load, lane.name, note, extra=extra, keep=used)
        load.future.add_done_callback(lambda _: self._wake.set())
        self._loads[lane.name] = load

    def _loaded(self, lane: Lane) -> bool:
        """Return whether a model that is being loaded is there now; tell how far it is."""
        load = self._loads[lane.name]
        if not load.future.done():
            if load.progress != load.told:
                load.told = load.progress
                for job in lane.waiting:
                    self._told.append((job, Loading(*load.progress)))
            return False
        del self._loads[lane.name]
        try:
            loaded = load.future.result()
        except MemoryFullError as error:
            log.info("%s", error)  # those that use the memory will have finished some time
            return False
        except Exception as error:  # whatever is wrong with a model's files
            log.warning("%s cannot be loaded: %s", lane.name, error)
            lane.breaker.failed(self.clock())
            self._divert(lane, describe(error) or type(error).__name__)
            return False
        self.counters["model_loads"] += 1
        self._let_go()
        lane.use(self._batch(loaded))
        return True

    def _let_go(self) -> None:
        """Forget the batches of models that have left memory, which they do only when their batch lets go of them."""
        self._letting_go = False
        in_memory = set(self.models.loaded())
        for lane in self.lanes.values():
            if lane.name not in in_memory and not lane.n_running:
                lane.use(None)

    def _divert(self, lane: Lane, error: str) -> None:
        """Let another model answer those who wait, or tell them what is wrong."""
        if self.fallback in (None, lane.name) or self._lane(self.fallback).breaker.state(self.clock()) == "open":
            lane.refuse(self.clock(), error)
            return
        for job in lane.waiting:
            job.degraded += ("fallback",)
        self._lane(self.fallback).waiting.extend(lane.waiting)
        lane.waiting.clear()

    def _batch(self, loaded: Loaded) -> Batch:
        reuses = self._prefix_bytes and not self.options.exact
        return Batch(
            loaded,
            self._rows(loaded.info),
            chunk=self.options.prefill_chunk,
            prefixes=PrefixCache(self._prefix_bytes) if reuses else None,
            exact=self.options.exact,
        )

    @property
    def _prefix_bytes(self) -> int:
        return min(self.options.prefix_mib * 2**20, self.models.memory // PREFIX_SHARE)

    def _rows(self, info: ModelInfo) -> int:
        """Return how many texts a model writes at once: their caches share a part of the memory."""
        per_row = cache_bytes(info.config, 1, info.context_length, torch.float32)
        return max(1, min(self.options.rows, self.models.memory // CACHE_SHARE // per_row))
