"""The engine as its users see it: requests go in, answers come out as events of the caller's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from chat_ui.engine.classifying import Opinion, opinion_of
from chat_ui.engine.events import BusyError, Event, Finished, Piece, Request, Result, Token
from chat_ui.engine.models import Models
from chat_ui.engine.options import Options
from chat_ui.engine.scheduler import Scheduler, Told
from finetuning.classification.text_classifier import TextClassifier
from finetuning.instruction.conversation import Conversation
from utils.files import InputError

SECONDS_BETWEEN_LOOKS = 0.05  # at whether all answers are finished
SECONDS_TO_STOP = 30.0


@dataclass(frozen=True)
class Status:
    """What the engine is doing; for health checks and metrics."""

    running: int
    """Texts being read or written."""
    waiting: int
    """Requests in the queue."""
    loaded: tuple[str, ...]
    """Models in memory."""
    degraded: tuple[str, ...]
    """Names of the degraded modes that are on: "busy", "queue full", "broken MODEL"."""
    alive: bool
    """Whether the scheduler's thread runs."""
    counters: dict[str, int]
    """Totals since the start: requests, refused, finished_stop, finished_length, finished_cancelled, finished_error,
    prompt_tokens, reused_tokens, completion_tokens, cached_answers, model_loads. What has not happened is not there."""


class Answer:
    """One request on its way: an asynchronous iterator of its events, to be read once, in the loop that submitted it.

    Who stops reading before the end should `cancel`, or the texts are written for nobody.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self._scheduler = scheduler
        self._events: deque[Event] = deque()
        self._unfinished = request.n
        self._ready = asyncio.Event()
        self._job = scheduler.submit(request, self)

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events; ends after the last choice has finished."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event when it is there."""
        while not self._events:
            if not self._unfinished:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        event = self._events.popleft()
        self._unfinished -= isinstance(event, Finished)
        return event

    def receive(self, event: Event) -> None:
        """Take an event; for the service, in the loop."""
        self._events.append(event)
        self._ready.set()

    def cancel(self) -> None:
        """End it at the next token: each choice that is not finished finishes with "cancelled". From any thread."""
        self._scheduler.cancel(self._job)

    async def results(self) -> list[Result]:
        """Wait for the end; return the choices in their order. If the waiting is cancelled, so is the answer."""
        texts = [""] * self.request.n
        tokens: list[list[Token]] = [[] for _ in texts]
        finished: dict[int, Finished] = {}
        try:
            async for event in self:
                if isinstance(event, Piece):
                    texts[event.choice] += event.text
                    tokens[event.choice] += event.tokens
                elif isinstance(event, Finished):
                    finished[event.choice] = event
        except asyncio.CancelledError:
            self.cancel()
            raise
        return [Result(text, tuple(tokens[choice]), finished[choice]) for choice, text in enumerate(texts)]


class Service:
    """Runs the models. A context manager: it ends with `close`.

    Args:
        models: what can be asked for.
        options: how it works; `Options()` by default.
        fallback: the name of the model that answers while another one is broken; None: an error says so.

    Raises:
        UnknownModelError: if there is no model of the fallback's name.
        InputError: if the fallback is a classifier.
    """

    def __init__(self, models: Models, options: Options | None = None, *, fallback: str | None = None) -> None:
        if fallback is not None:
            models.writer(fallback)
        self.models = models
        self.options = options or Options()
        self._scheduler = Scheduler(models, self.options, self._deliver, fallback=fallback)
        self._closing = False
        self._classifying = ThreadPoolExecutor(1, thread_name_prefix="classify")
        self._opinions: set[Future[Opinion]] = set()  # that are not finished
        self._thread = threading.Thread(target=self._scheduler.run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Answer:
        """Take a request; to be called in the event loop that will read the answer. Returns at once.

        What is wrong with the model's files, or with ids that are not in its vocabulary, comes later, as `Finished`
        with the reason "error".

        Raises:
            UnknownModelError: if there is no such model.
            InputError: if the model is a classifier, or something else in the request cannot be right.
            BusyError: if the queue is full, or the service is closing.
        """
        info = self.models.writer(request.model)
        if request.n > self.options.rows:
            raise InputError(f"n must be at most {self.options.rows}, the texts written at once, got {request.n}")
        if isinstance(request.prompt, Conversation) and info.kind == "tuned" and request.prompt.is_answered:
            raise InputError("the last turn must be the user's: there is nothing to answer")
        if self._closing:
            raise BusyError("the server is shutting down")
        return Answer(self._scheduler, request)

    def classify(self, name: str, text: str) -> Future[Opinion]:
        """Have a classifier read a text. Returns at once; a thread takes one text after the other.

        What is wrong with the model or the text is raised by the future's `result`.

        Raises:
            BusyError: if too many texts wait, or the service is closing.
        """
        if self._closing:
            raise BusyError("the server is shutting down")
        if len(self._opinions) > self.options.queue:
            raise BusyError(f"too many people are waiting, {self.options.queue}: try again in a little while")
        opinion = self._classifying.submit(lambda: opinion_of(self._classifier(name), text))
        self._opinions.add(opinion)
        opinion.add_done_callback(self._opinions.discard)
        return opinion

    def _classifier(self, name: str) -> TextClassifier:
        classifier = self.models.load_classifier(name, keep=self._scheduler.in_use())
        self._scheduler.let_go()
        return classifier

    def status(self) -> Status:
        """Return what is going on."""
        scheduler = self._scheduler
        return Status(
            running=scheduler.n_running,
            waiting=scheduler.n_waiting,
            loaded=tuple(self.models.loaded()),
            degraded=scheduler.degraded(),
            alive=self._thread.is_alive(),
            counters=dict(scheduler.counters),
        )

    async def drain(self, seconds: float) -> None:
        """Take no more requests; return when all answers are finished, or cancel the rest after so many seconds."""
        self._closing = True
        end = self._scheduler.clock() + seconds
        while self._scheduler.clock() < end and (self._scheduler.n_running or self._scheduler.n_waiting):
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        self._scheduler.stop()

    def close(self) -> None:
        """Cancel what is running and end the threads. Returns when they have ended."""
        self._scheduler.stop()
        self._classifying.shutdown(wait=False, cancel_futures=True)
        self._thread.join(SECONDS_TO_STOP)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _deliver(self, told: Told) -> None:
        """Hand events to the event loops of those who wait for them; called by the scheduler's thread."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Answer, Event]]] = defaultdict(list)
        for job, event in told:
            assert isinstance(job.reader, Answer)
            by_loop[job.reader.loop].append((job.reader, event))
        for loop, events in by_loop.items():
            try:
                loop.call_soon_threadsafe(_receive, events)
            except RuntimeError:  # the loop is closed: nobody reads any more
                for answer, _ in events:
                    answer.cancel()


def _receive(events: list[tuple[Answer, Event]]) -> None:
    for answer, event in events:
        answer.receive(event)
