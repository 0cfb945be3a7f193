"""One answer on its way from the engine to a page: what is known of it so far, and what to show below it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chat_ui.engine import Answer, BusyError, Finished, Loading, Opinion, Piece, Queued, Request, Service, Started
from utils.files import InputError

if TYPE_CHECKING:
    from chat_ui.filters import Filter

FLUSH_SECONDS = 0.05  # a page that is repainted more often only costs
ENDED = {"cancelled": "stopped", "length": "as long as it may be", "error": "failed"}


@dataclass
class Writing:
    """An answer that is being written."""

    model: str
    """Which model answers, by its name; another than was asked for, once it is known, if that one is broken."""
    label: str
    """Its name for people."""
    nbytes: int = 0
    """Of its weights."""
    text: str = ""
    waiting: str = ""
    """What it waits for, for a person to read; "" while text comes and afterwards."""
    reason: str = ""
    """Why it ended, as the engine says; "" until then."""
    error: str = ""
    figures: list[str] = field(default_factory=list)
    """Speed and size, each with its unit, when it is finished."""
    notes: list[str] = field(default_factory=list)
    """What the reader should know: another model answers, or turns were forgotten."""
    stopped: bool = False
    """Whether it was told to end."""
    removed: bool = False
    """Whether the content filter has taken it away."""
    answer: Answer | asyncio.Future[Opinion] | None = None
    _unshown: str = ""

    def stop(self) -> None:
        """End it at the next token."""
        self.stopped = True
        if self.answer is not None:
            self.answer.cancel()

    def props(self) -> dict[str, Any]:
        """Return what the page shows below the text."""
        ended = ENDED.get(self.reason, "")
        return {
            "label": self.label,
            "waiting": self.waiting,
            "figures": [*self.figures, *([ended] if ended else [])],
            "notes": self.notes,
            "error": self.error,
            "done": bool(self.reason),
        }

    def facts(self) -> dict[str, Any]:
        """Return what is kept of it beside its text."""
        names = ("model", "label", "reason", "figures", "error")
        return {name: getattr(self, name) for name in names}

    async def run(
        self,
        service: Service,
        request: Request,
        *,
        wrote: Callable[[str], Awaitable[None]],
        changed: Callable[[], Awaitable[None]],
        refuse: Filter | None = None,
    ) -> None:
        """Have it written, until it is finished, stopped or failed; whatever goes wrong is told in `error`.

        Args:
            service: the engine.
            request: for one choice.
            wrote: called with each new piece of text, after it was added.
            changed: called when something else has changed.
            refuse: the content filter, which may end an answer.
        """
        try:
            self.answer = service.submit(request)
        except (BusyError, InputError) as error:
            self.fail(str(error))
            return
        if self.stopped:  # before there was anything to end
            self.answer.cancel()
        painter = asyncio.create_task(self._paint(wrote, refuse))
        try:
            await self._follow(changed)
        finally:
            painter.cancel()
            if not self.reason:  # this task was cancelled
                self.stop()
                self.reason = "cancelled"
        await self._flush(wrote, refuse)

    async def _follow(self, changed: Callable[[], Awaitable[None]]) -> None:
        context = 0
        async for event in self.answer:  # type: ignore[union-attr]
            if isinstance(event, Piece):
                self._unshown += event.text
                continue
            if isinstance(event, Queued):
                self.waiting = f"waiting: number {event.position} in the queue"
            elif isinstance(event, Loading):
                self.waiting = _progress(event)
            elif isinstance(event, Started):
                self.model, context = event.model, event.context_length
                self.notes = _notes(event)
                self.waiting = ""
            elif isinstance(event, Finished):
                self._finish(event, context)
                return
            await changed()

    async def _paint(self, wrote: Callable[[str], Awaitable[None]], refuse: Filter | None) -> None:
        """Show what was written a few times per second, since each time costs the page a repainting."""
        while True:
            await self._flush(wrote, refuse)
            await asyncio.sleep(FLUSH_SECONDS)

    async def _flush(self, wrote: Callable[[str], Awaitable[None]], refuse: Filter | None) -> None:
        piece, self._unshown = self._unshown, ""
        if not piece or self.removed:
            return
        self.text += piece
        if refuse is not None and refuse(self.text):
            self.text, self.removed = "", True
            self.stop()
            self.fail("The content filter has removed this answer.")
            return
        await wrote(piece)

    def _finish(self, event: Finished, context: int) -> None:
        self.reason, self.waiting = event.reason, ""
        self.error = event.error or self.error
        n_written, n_read = event.usage.completion_tokens, event.usage.prompt_tokens
        speed = event.timings.tokens_per_second(n_written)
        figures = [f"{n_written:,} token{'s' * (n_written != 1)}"]
        if event.cached:
            figures.append("remembered from an equal request")
        elif n_written:
            figures.append(f"first after {1000 * event.timings.first_token:,.0f} ms")
        if speed and not event.cached:
            figures.append(f"{speed:,.0f} tokens/s")
        if context:
            figures.append(f"context {min(n_read + n_written, context):,} of {context:,}")
        if self.nbytes:
            figures.append(f"{self.nbytes / 1e6:,.0f} MB of weights")
        self.figures = figures

    def fail(self, error: str) -> None:
        """End it with an error, in one line for a person to read."""
        self.reason, self.waiting, self.error = "error", "", error


def _progress(event: Loading) -> str:
    if event.total_bytes is None:
        return f"loading the model: {event.done_bytes / 1e6:,.0f} MB"
    share = event.done_bytes / max(event.total_bytes, 1)
    return f"loading the model: {share:.0%} of {event.total_bytes / 1e6:,.0f} MB"


def _notes(event: Started) -> list[str]:
    words = {"busy": "many are waiting, so the answer is shorter", "fallback": f"{event.model} answers in its place"}
    notes = [words.get(name, name) for name in event.degraded]
    if event.forgotten_turns:
        notes.append(f"the oldest {event.forgotten_turns} turns do not fit into the context and were left out")
    return notes
