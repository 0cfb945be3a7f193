"""The requests for one model, from the queue over its batch to their end; called by the scheduler's thread alone."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from chat_ui.engine.batch import Batch, Text, Written
from chat_ui.engine.breaker import Breaker
from chat_ui.engine.events import Event, Finished, Piece, Queued, Reason, Request, Started, Timings, Token, Usage
from chat_ui.engine.options import Options
from chat_ui.engine.prompts import Prompt, encode
from chat_ui.engine.responses import Response, ResponseCache, key_of
from gpt_model.sampling import Sampling
from utils.command_line import describe
from utils.files import InputError

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """A request on its way. Only `cancelled` may be set by another thread."""

    request: Request
    submitted: float
    reader: object = None
    """Whoever reads the events; the scheduler does not look at it."""
    cancelled: bool = False
    degraded: tuple[str, ...] = ()
    position: int = 0
    """What its reader was told last."""
    started: float = 0.0
    prompt_tokens: int = 0
    n_unfinished: int = 0
    """Choices; `request.n` from the beginning."""

    def __post_init__(self) -> None:
        self.n_unfinished = self.request.n


@dataclass(eq=False)
class Choice:
    """One of a job's texts."""

    job: Job
    number: int
    text: Text
    held: list[Token] = field(default_factory=list)
    """Tokens whose text is not certain yet."""
    tokens: list[Token] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    first_token: float | None = None


Emit = Callable[[Job, Event], None]


class Lane:
    """What is going on with one model.

    Args:
        name: of the model.
        options: how the engine works.
        emit: called with each event.
        counters: totals, shared by all lanes.
    """

    def __init__(self, name: str, options: Options, emit: Emit, counters: Counter[str]) -> None:
        self.name = name
        self.options = options
        self.emit = emit
        self.counters = counters
        self.breaker = Breaker()
        self.waiting: deque[Job] = deque()
        self.batch: Batch | None = None
        self._running: dict[Text, Choice] = {}
        self._responses = ResponseCache(0)

    @property
    def n_running(self) -> int:
        """Return the number of texts that are being read or written."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """Return whether nothing waits and nothing runs."""
        return not self.waiting and not self._running

    def use(self, batch: Batch | None) -> None:
        """Work with another batch from now on; nothing may be running."""
        self.batch = batch
        self._responses = ResponseCache(0 if self.options.exact else self.options.responses)

    def drop_lost(self, now: float) -> None:
        """End what was cancelled, has waited too long, or has written for too long."""
        for job in [job for job in self.waiting if job.cancelled]:
            self.waiting.remove(job)
            self.end(job, now, "cancelled")
        for job in [job for job in self.waiting if now - job.submitted > self.options.time_limit]:
            self.waiting.remove(job)
            self.end(job, now, "error", f"the model had no time for this within {self.options.time_limit:g} seconds")
        for choice in list(self._running.values()):
            limit = choice.job.request.time_limit or self.options.time_limit
            if choice.job.cancelled:
                self._finish(choice, now, "cancelled")
            elif now - choice.job.started > limit:
                self._finish(choice, now, "length")

    def admit(self, now: float, *, is_busy: bool) -> None:
        """Start the jobs for which there are rows, first come, first served.

        Args:
            now: the time.
            is_busy: whether to shorten answers, since many are waiting.
        """
        assert self.batch is not None
        while self.waiting and min(self.waiting[0].request.n, self.batch.n_rows) <= self.batch.n_free:
            job = self.waiting.popleft()
            try:
                self._start(job, now, is_busy)
            except InputError as error:
                self.end(job, now, "error", describe(error), is_invalid=True)
            except Exception as error:  # whatever a prompt can do, it must not end the thread
                log.exception("a prompt for %s could not be read", self.name)
                self.end(job, now, "error", describe(error) or type(error).__name__)

    def _start(self, job: Job, now: float, is_busy: bool) -> None:
        assert self.batch is not None
        loaded = self.batch.loaded
        if job.request.n > self.batch.n_rows:
            raise InputError(f"n must be at most {self.batch.n_rows} for {self.name}, got {job.request.n}")
        prompt = encode(job.request, loaded)
        sampling = job.request.sampling
        if sampling.stop_tokens is None:
            sampling = replace(sampling, stop_tokens=loaded.stop_tokens)
        if is_busy and sampling.max_new_tokens > self.options.busy_max_tokens:
            sampling = shortened(sampling, self.options.busy_max_tokens)
            job.degraded += ("busy",)
        self.batch.check(sampling)
        self._begin(job, prompt, now)
        for number in range(job.request.n):
            own = sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + number) % 2**63)
            self._start_choice(Choice(job, number, Text(list(prompt.ids), own, job.request.logprobs)), now)

    def _begin(self, job: Job, prompt: Prompt, now: float) -> None:
        context = self.batch.loaded.info.context_length if self.batch else 0
        job.started = now
        job.prompt_tokens = min(len(prompt.ids), context)
        self.counters["prompt_tokens"] += job.prompt_tokens
        self.emit(job, Started(self.name, job.prompt_tokens, context, prompt.forgotten_turns, job.degraded))

    def _start_choice(self, choice: Choice, now: float) -> None:
        assert self.batch is not None
        text = choice.text
        stored = self._responses.get(key_of(text.ids, text.sampling, text.logprobs))
        if stored is None:
            self._running[text] = choice
            self.batch.add(text)
            return
        self.counters["cached_answers"] += 1
        choice.tokens = list(stored.tokens)
        if stored.tokens or stored.text:
            self.emit(choice.job, Piece(choice.number, stored.text, stored.tokens))
        self._say_finished(choice, now, stored.reason, cached=True)

    def step(self, clock: Callable[[], float]) -> None:
        """Let the model write one token of each text.

        Args:
            clock: tells the time.
        """
        if self.batch is None or self.batch.is_idle:
            return
        written = self.batch.step()
        now = clock()
        for event in written:
            self._tell(event, now)

    def fail(self, now: float, error: str) -> None:
        """End all running texts, after a failure of the model, and forget the batch. Those who wait get a new one."""
        self.breaker.failed(now)
        self.batch = None
        for choice in list(self._running.values()):
            self._finish(choice, now, "error", error)

    def refuse(self, now: float, error: str) -> None:
        """End all waiting jobs."""
        while self.waiting:
            self.end(self.waiting.popleft(), now, "error", error)

    def tell_positions(self) -> None:
        """Tell the waiting jobs where they are in the queue, if that has changed."""
        for position, job in enumerate(self.waiting, 1):
            if job.position != position:
                job.position = position
                self.emit(job, Queued(position))

    def end(self, job: Job, now: float, reason: Reason, error: str | None = None, *, is_invalid: bool = False) -> None:
        """End a job that has not started; `is_invalid`: because of what it asks."""
        total = now - job.submitted
        for number in range(job.request.n):
            job.n_unfinished -= 1
            self.counters[f"finished_{reason}"] += 1
            timings = Timings(total, total, total)
            usage = Usage(job.prompt_tokens, 0)
            self.emit(job, Finished(number, reason, usage, timings, error, is_invalid=is_invalid))

    def cancel_all(self, now: float) -> None:
        """End everything."""
        for job in [*self.waiting, *(choice.job for choice in self._running.values())]:
            job.cancelled = True
        self.drop_lost(now)

    def _tell(self, written: Written, now: float) -> None:
        """Pass on what a step did for a text."""
        choice = self._running[written.text]
        if written.token is not None:
            choice.first_token = now if choice.first_token is None else choice.first_token
            choice.held.append(written.token)
        if written.piece or (written.ended and choice.held):
            self._say_piece(choice, written.piece)
        if written.ended:
            if written.text.is_models_fault:
                self.breaker.failed(now)
            elif written.text.error is None:
                self.breaker.succeeded()
            error = written.text.error
            is_invalid = error is not None and not written.text.is_models_fault
            self._finish(choice, now, written.ended, error, is_invalid=is_invalid)

    def _say_piece(self, choice: Choice, piece: str) -> None:
        tokens = tuple(choice.held)
        choice.held.clear()
        choice.tokens += tokens
        choice.pieces.append(piece)
        self.emit(choice.job, Piece(choice.number, piece, tokens))

    def _finish(
        self, choice: Choice, now: float, reason: Reason, error: str | None = None, *, is_invalid: bool = False
    ) -> None:
        """End a text that is running."""
        text = choice.text
        if text.ended is None and self.batch is not None:
            rest = text.streamed.add(b"", final=True)
            if rest or choice.held:
                self._say_piece(choice, rest)
            self.batch.remove(text)
        elif text.ended in ("stop", "length"):
            ids = text.ids[: text.n_prompt]
            response = Response("".join(choice.pieces), tuple(choice.tokens), text.ended)
            self._responses.put(key_of(ids, text.sampling, text.logprobs), response)
        self._say_finished(choice, now, reason, error, is_invalid=is_invalid)
        del self._running[text]  # last: who sees from another thread that nothing runs must find all of it counted

    def _say_finished(
        self, choice: Choice, now: float, reason: Reason, error: str | None = None, **facts: bool
    ) -> None:
        job = choice.job
        job.n_unfinished -= 1
        n_tokens = len(choice.tokens)
        self.counters[f"finished_{reason}"] += 1
        self.counters["completion_tokens"] += n_tokens
        self.counters["reused_tokens"] += choice.text.n_reused
        first = now if choice.first_token is None else choice.first_token
        timings = Timings(job.started - job.submitted, first - job.submitted, now - job.submitted)
        usage = Usage(job.prompt_tokens, n_tokens, choice.text.n_reused)
        self.emit(job, Finished(choice.number, reason, usage, timings, error, **facts))


def shortened(sampling: Sampling, longest: int) -> Sampling:
    """Return the same settings for a text of at most so many tokens."""
    return replace(sampling, max_new_tokens=longest, min_new_tokens=min(longest, sampling.min_new_tokens))
