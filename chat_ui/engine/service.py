"""The engine as its users see it: requests go in, answers come out as events of the caller's event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from chat_ui.engine.events import Event, Request, Result
from chat_ui.engine.models import Models
from utils.ranges import Count, Range, check_ranges


@dataclass(frozen=True)
class Options:
    """How the engine works."""

    rows: Annotated[int, Range(1, 1024)] = 16
    """Texts that one model writes at the same time; further ones wait."""
    queue: Annotated[int, Range(0, 100_000)] = 64
    """Requests that may wait for a row of a model; further ones are refused with `BusyError`."""
    busy_max_tokens: Count = 128
    """Tokens of an answer at most while more than half of the queue is taken (the degraded mode "busy")."""
    prefill_chunk: Count = 128
    """Tokens of a prompt that are read between two steps of those who write."""
    time_limit: Annotated[float, Range(0, 86_400, open_below=True)] = 300
    """Seconds after which an answer ends with "length"; one that has waited as long ends with "error"."""
    prefix_mib: Annotated[int, Range(0, 2**20)] = 256
    """MiB for keys and values of earlier texts, so that a conversation's next turn need not read them again."""
    responses: Annotated[int, Range(0, 10**6)] = 256
    """Answers to deterministic requests (temperature 0, or a seed) that are kept for the next equal one."""
    exact: bool = False
    """Compute with a fixed row count and without reuse, so that a text is equal to the bit whatever runs beside it.
    Slower."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Status:
    """What the engine is doing; for health checks and metrics."""

    running: int
    """Texts being written."""
    waiting: int
    """Requests in the queue."""
    loaded: tuple[str, ...]
    """Models in memory."""
    degraded: tuple[str, ...]
    """Names of the degraded modes that are on: "busy", "queue full", "broken MODEL"."""
    alive: bool
    """Whether the scheduler's thread runs."""
    counters: dict[str, float]
    """Totals since the start: requests, finished_stop, finished_length, finished_cancelled, finished_error, refused,
    prompt_tokens, reused_tokens, completion_tokens, cached_answers, model_loads."""


class Answer:
    """One request on its way: an asynchronous iterator of its events, to be read once, in the loop that submitted it."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events; ends after the last choice has finished."""
        raise NotImplementedError

    async def __anext__(self) -> Event:
        """Return the next event when it is there."""
        raise NotImplementedError

    def cancel(self) -> None:
        """End it at the next token: each choice that is not finished finishes with "cancelled". From any thread."""
        raise NotImplementedError

    async def results(self) -> list[Result]:
        """Wait for the end; return the choices in their order. If the waiting is cancelled, so is the answer."""
        raise NotImplementedError


class Service:
    """Runs the models. A context manager: it ends with `close`.

    Args:
        models: what can be asked for.
        options: how it works; `Options()` by default.
        fallback: the name of the model that answers while another one is broken; None: an error says so.
    """

    def __init__(self, models: Models, options: Options | None = None, *, fallback: str | None = None) -> None:
        raise NotImplementedError

    def submit(self, request: Request) -> Answer:
        """Take a request; to be called in the event loop that will read the answer. Returns at once.

        What is wrong with the model's files, or with ids that are not in its vocabulary, comes later, as `Finished`
        with the reason "error".

        Raises:
            UnknownModelError: if there is no such model.
            InputError: if something else in the request cannot be right.
            BusyError: if the queue is full, or the service is closing.
        """
        raise NotImplementedError

    def status(self) -> Status:
        """Return what is going on."""
        raise NotImplementedError

    async def drain(self, seconds: float) -> None:
        """Take no more requests; return when all answers are finished, or cancel the rest after so many seconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel what is running and end the threads. Returns when they have ended."""
        raise NotImplementedError

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
