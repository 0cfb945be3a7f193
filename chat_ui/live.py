"""A message of the model's that is being written: shown on every page of its thread, and saved as it grows."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from chat_ui.history import History
from chat_ui.texts import shown
from chat_ui.writing import Writing

if TYPE_CHECKING:
    import chainlit as cl
    from chainlit.session import WebsocketSession

SAVE_SECONDS = 2
PAINT_SECONDS = 0.1


def below(message_id: str, thread_id: str, name: str, props: Mapping[str, Any]) -> dict[str, Any]:
    """Return the element that stands below a message, as the page and the history have it."""
    return {
        "id": str(uuid.uuid5(uuid.UUID(message_id), name)),
        "threadId": thread_id,
        "forId": message_id,
        "type": "custom",
        "name": name,
        "props": {**props, "message": message_id, "thread": thread_id},
        "display": "inline",
        "mime": "application/json",
    }


class Live:
    """Answers to one question, by one model or by two side by side, and the message that holds them.

    Args:
        message: of Chainlit's, still empty.
        writings: one, or two for a comparison.
        session: of the page that asked.
        history: where it is saved.
    """

    def __init__(
        self, message: cl.Message, writings: list[Writing], session: WebsocketSession, history: History
    ) -> None:
        self.message = message
        self.writings = writings
        self.sessions = [session]
        self.history = history
        self._shown = False
        self._text = ""
        self._painted = 0.0

    @property
    def is_comparison(self) -> bool:
        """Whether two models answer."""
        return len(self.writings) > 1

    @property
    def is_ending(self) -> bool:
        """Whether nothing more will be written, though not all may be saved yet."""
        return all(writing.stopped or writing.reason for writing in self.writings)

    @asynccontextmanager
    async def saving(self) -> AsyncIterator[None]:
        """Save the message now and then while the block runs, and once more at its end, then with what stands below."""
        ended = asyncio.Event()
        saver = asyncio.create_task(self._save_until(ended))
        try:
            yield
        finally:
            ended.set()
            await saver
            await self._finish()

    async def wrote(self, piece: str) -> None:
        """Show a new piece of text."""
        if self.is_comparison:  # whose texts stand in the element, which is sent as a whole
            if time.monotonic() - self._painted > PAINT_SECONDS:
                await self.changed()
            return
        self.message.content += piece
        text = shown(self.message.content)
        goes_on = text.startswith(self._text)  # or else what was shown of it before is replaced
        new = text[len(self._text) :] if goes_on else text
        self._text = text
        if not self._shown:
            self.message.streaming = self._shown = True
            await self.emit("stream_start", self.step())
        else:
            await self.emit("stream_token", {"id": self.message.id, "token": new, "isSequence": not goes_on})

    async def changed(self) -> None:
        """Show what has changed below the text; or the whole, if two models answer."""
        if not self._shown:
            if not self.is_comparison and not self.writings[0].waiting and not self.writings[0].reason:
                return  # the page shows that something is coming
            self._shown = True
            self.message.streaming = not self.is_comparison
            await self.emit("new_message", self.step())
        self._painted = time.monotonic()
        await self.emit("element", self.element())

    async def emit(self, event: str, data: Any) -> None:
        """Send an event to all pages that show this message."""
        for session in self.sessions:
            await session.emit(event, data)

    def element(self) -> dict[str, Any]:
        """Return what stands below the message."""
        return below(self.message.id, self.message.thread_id, *_props(self.writings))

    def stop(self) -> None:
        """End all answers at their next token."""
        for writing in self.writings:
            writing.stop()

    def step(self) -> dict[str, Any]:
        """Return the message as a page gets it."""
        return self.message.to_dict() | {"output": shown(self.message.content)}

    async def _save_until(self, ended: asyncio.Event) -> None:
        while True:
            try:
                async with asyncio.timeout(SAVE_SECONDS):
                    await ended.wait()
                return
            except TimeoutError:
                await self.history.save_step(self.message.to_dict() | {"streaming": False})
                if self.history.is_deleted(self.message.thread_id):
                    self.stop()

    async def _finish(self) -> None:
        from chainlit.chat_context import chat_contexts
        from chainlit.session import WebsocketSession

        message = self.message
        message.streaming = False
        message.metadata = _facts(self.writings)
        if not self.is_comparison:
            message.content = self.writings[0].text
        for session in self.sessions:
            if WebsocketSession.get_by_id(session.id) is None:
                continue  # its page has been closed: nobody would free its messages again
            messages = chat_contexts.setdefault(session.id, [])
            messages[:] = [known for known in messages if known.id != message.id] + [message]
        await self.emit("update_message" if self._shown else "new_message", self.step())
        await self.emit("element", self.element())
        await self.history.save_step(message.to_dict(), self.element())


def _props(writings: list[Writing]) -> tuple[str, dict[str, Any]]:
    """Return the name of the element that draws answers, and what it draws."""
    if len(writings) == 1:
        return "Answer", writings[0].props()
    return "Compare", {"sides": [writing.props() | {"text": shown(writing.text)} for writing in writings], "chosen": 0}


def _facts(writings: list[Writing]) -> dict[str, Any]:
    """Return what is kept with a finished message."""
    if len(writings) == 1:
        return writings[0].facts()
    return {"sides": [writing.facts() | {"text": writing.text} for writing in writings], "chosen": 0}
