"""The chat itself: what happens when somebody opens a page, sends a message, stops, edits or asks for another answer.

Chainlit draws the page and carries events; `guard.py` lets only sound ones through to here. The life of an answer is in
`writing.py`, and how it is shown and saved in `live.py`. Answers that are being written are kept by their thread, so
that a page that is opened again meanwhile goes on with the answer instead of missing it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from chat_ui.audit import Audit
from chat_ui.classifying import Classifying
from chat_ui.conversations import conversation_of
from chat_ui.database import now
from chat_ui.engine import ModelInfo, Models, Request, Service
from chat_ui.history import History
from chat_ui.limits import RateLimit
from chat_ui.live import Live, below
from chat_ui.settings import Settings, clamped, widgets
from chat_ui.texts import shown
from chat_ui.writing import Writing
from utils.files import InputError

if TYPE_CHECKING:
    import chainlit as cl
    from chainlit.session import WebsocketSession
    from chainlit.types import ThreadDict

    from chat_ui.filters import Filter

logger = logging.getLogger(__name__)

ALONE = "alone"  # the choice "compare with nothing"
ENDING_SECONDS = 5  # that an answer may take to be saved
STARTERS = {
    "Ask about a novel": "Who marries Mr. Darcy?",
    "Say hello": "Hello, how are you?",
    "Begin a chapter": "It was a bright morning in the village, and",
    "Emma's opinion": "Emma was of the opinion that",
}
NO_MODEL = "There is no checkpoint yet: `make chat-model` makes a small one that answers; then reload this page."


class App:
    """Answers what the pages send.

    Args:
        service: the engine.
        models: what can be chosen.
        history: where what was said is kept.
        audit: where what was done is written down.
        rate: how many messages a user may send.
        refuse: the content filter.
    """

    def __init__(
        self,
        service: Service,
        models: Models,
        history: History,
        audit: Audit,
        rate: RateLimit,
        refuse: Filter | None = None,
    ) -> None:
        self.service = service
        self.models = models
        self.history = history
        self.audit = audit
        self.rate = rate
        self.refuse = refuse
        self.closing = False
        """Whether the server takes no more messages."""
        self.live: dict[str, Live] = {}
        """Answers that are being written, by the id of their thread."""
        self.tasks: dict[str, asyncio.Task[None]] = {}
        """What writes them, from the moment a message is there."""
        self.stopped: set[str] = set()
        """Threads of `tasks` whose reader has stopped the answer before it was in `live`."""

    def install(self) -> None:
        """Tell Chainlit what to call."""
        import chainlit as cl
        from chainlit.config import config

        cl.on_chat_start(self.start)
        config.code.on_chat_resume = self.resume  # the decorator's would end the sign that an answer is coming
        cl.on_message(self.reply)
        cl.set_starters(self.starters)
        cl.data_layer(lambda: self.history)
        cl.action_callback("regenerate")(self.regenerate)
        cl.action_callback("choose")(self.choose)

    # A page opens

    async def starters(self, user: object = None, language: str | None = None) -> list[cl.Starter]:
        """Return what one may begin with."""
        import chainlit as cl

        return [cl.Starter(label=label, message=message) for label, message in STARTERS.items()]

    async def start(self) -> None:
        """Greet a new page: offer the models and the settings."""
        available = await self._offer(None, Settings())
        if not any(info.kind != "gpt2" for info in available):
            await tell(NO_MODEL + " Or choose GPT-2 below, which is downloaded first." * bool(available))
        self.audit.write("open", **who())

    async def resume(self, thread: ThreadDict) -> None:
        """Go on with a thread from the history; with its answer too, if that is still being written."""
        live = self.live.get(thread["id"])  # sought before the thread is read again, or it might end between the two
        await self._read_again(thread)
        used = None
        for step in thread["steps"]:
            if step["type"] != "assistant_message":
                continue
            facts = step["metadata"]
            used = facts.get("model", used)
            is_live = live is not None and step["id"] == live.message.id
            if facts.get("unfinished") and not is_live:  # the server was killed while it wrote
                writing = Writing(facts["model"], facts["label"], reason="cancelled")
                thread["elements"].append(below(step["id"], thread["id"], "Answer", writing.props()))
            step["output"] = shown(step["output"])
        if live is not None:
            used = live.writings[0].model
        await self._offer(used, clamped(_session().chat_settings))
        if live is not None:
            await self._follow(live, thread)
        self.audit.write("resume", **who())

    async def _read_again(self, thread: ThreadDict) -> None:
        """Read a thread that Chainlit has read: its answer may have ended since, and is no longer to be followed."""
        try:
            known = await self.history.get_thread(thread["id"])
        except HTTPException:
            return  # the database has just gone: what was read will do
        thread.update(known or {})

    async def _follow(self, live: Live, thread: ThreadDict) -> None:
        """Put an answer that is being written, or was a moment ago, into a thread, and show on its page how it goes on.

        After the last `await` nothing of it can be missed until Chainlit has taken over the thread.
        """
        session = _session()
        if self.live.get(thread["id"]) is live:
            await session.emit("task_start", {})
            if self.live.get(thread["id"]) is live:
                live.sessions.append(session)
            else:
                await session.emit("task_end", {})
        thread["steps"] = _with(thread["steps"], live.step() | {"parentId": None})
        thread["elements"] = _with(thread["elements"], live.element())

    async def _offer(self, used: str | None, settings: Settings) -> list[ModelInfo]:
        """Show the models and the settings, and return the models."""
        import chainlit as cl
        from chainlit.mode import Mode, ModeOption

        available = await asyncio.to_thread(self.models.available)
        names = [info.name for info in available]
        chosen = used if used in names else next(iter(names), None)
        options = [ModeOption(i.name, i.name, _description(i), "bot", i.name == chosen) for i in available]
        others = [ModeOption(i.name, f"and {i.name}", _description(i), "columns-2") for i in available]
        others.insert(0, ModeOption(ALONE, "Compare with", "One model answers.", "columns-2", True))
        modes = [Mode("model", "Model", options), Mode("compare", "Compare", others)]
        await cl.context.emitter.set_modes(modes if available else [])
        await cl.ChatSettings(widgets(settings)).send()
        return available

    # A message comes

    async def send(self, message: dict[str, Any]) -> None:
        """Take a message that `guard.py` has found sound, and have it answered."""
        import chainlit as cl

        if await self._may_write():
            taken = await cl.context.emitter.process_message({"message": message, "fileReferences": None})
            self._write_answer_to(taken)

    async def edit(self, message_id: str, text: str) -> None:
        """Change a message of the reader's, forget what was said after it, and have it answered anew."""
        if await self._may_write() and (message := await _rewind_to(message_id)) is not None:
            message.content = text
            await message.update()
            self._write_answer_to(message)

    async def regenerate(self, action: cl.Action) -> None:
        """Forget an answer and what was said after it, and have its question answered anew."""
        if await self._may_write() and (message := await _rewind_to(action.payload.get("id"))) is not None:
            self._write_answer_to(message)

    async def choose(self, action: cl.Action) -> None:
        """Go on with one of two answers that stand side by side."""
        import chainlit as cl

        side = action.payload.get("side")
        for message in cl.chat_context.get():
            facts = message.metadata or {}
            if message.id == action.payload.get("id") and "sides" in facts and side in range(len(facts["sides"])):
                facts["chosen"] = side
                props = {"sides": [_shown(facts) for facts in facts["sides"]], "chosen": side}
                element = below(message.id, message.thread_id, "Compare", props)
                await _session().emit("element", element)
                await self.history.save_step(message.to_dict(), element)

    def stop(self) -> None:
        """End the answer of the current thread, also one that is still to begin: the page shows the button before."""
        thread_id = _session().thread_id
        if live := self.live.get(thread_id):
            live.stop()
        elif thread_id in self.tasks:
            self.stopped.add(thread_id)
        else:
            return
        self.audit.write("stop", **who())

    async def _may_write(self) -> bool:
        """Return whether a message can be answered now; tell the reader why if not."""
        session = _session()
        user = session.user.identifier
        live = self.live.get(session.thread_id)
        if live is not None and live.is_ending:  # the reader need not know that it is still being saved
            await asyncio.wait([self.tasks[session.thread_id]], timeout=ENDING_SECONDS)
        if self.closing:
            await tell("The server is being restarted: send this again in a minute.")
        elif session.thread_id in self.tasks:
            await tell("One answer at a time: wait for the one that is being written, or stop it.")
        elif not self.rate.allow(user):
            self.audit.write("rate limited", **who())
            await tell(
                f"That is more than {self.rate.most} messages per minute: wait {self.rate.wait(user):.0f} seconds."
            )
        else:
            return True
        return False

    def _write_answer_to(self, message: cl.Message) -> None:
        from chainlit.config import config

        session = _session()

        async def write() -> None:
            await session.emit("task_start", {})
            try:
                await config.code.on_message(message)
            finally:
                del self.tasks[session.thread_id]
                self.stopped.discard(session.thread_id)
                live = self.live.pop(session.thread_id, None)
                for page in live.sessions if live else [session]:
                    await page.emit("task_end", {})

        self.tasks[session.thread_id] = session.current_task = asyncio.create_task(write())

    async def reply(self, message: cl.Message) -> None:
        """Answer a message, with one model or with two side by side. Whatever goes wrong, the reader is told."""
        import chainlit as cl

        settings = clamped(_session().chat_settings)
        conversation = conversation_of(cl.chat_context.get(), settings.system_prompt)
        infos = await self._chosen(message.modes or {})
        if not infos or conversation is None:
            await tell(NO_MODEL)
            return
        self.audit.write("message", text=message.content, models=[info.name for info in infos], **who())
        if self.refuse is not None and (reason := self.refuse(message.content) or self.refuse(settings.system_prompt)):
            await tell(reason)
            return
        try:
            await self._write(infos, [Request(info.name, conversation, settings.sampling()) for info in infos])
        except Exception:
            logger.exception("an answer failed")
            await tell("This answer failed, through a fault of the server's.")
        if self.history.problem is not None:
            await cl.context.emitter.send_toast(self.history.problem, "warning")

    async def _chosen(self, modes: dict[str, str]) -> list[ModelInfo]:
        """Return the models that are to answer: those chosen, or else the first; none if there is none."""
        infos = []
        for mode in ("model", "compare"):
            if (name := modes.get(mode)) and name != ALONE and name not in [info.name for info in infos]:
                try:
                    infos.append(await asyncio.to_thread(self.models.info, name))
                except InputError as error:
                    await tell(str(error))
        return infos or (await asyncio.to_thread(self.models.available))[:1]

    async def _write(self, infos: list[ModelInfo], requests: list[Request]) -> None:
        import chainlit as cl

        session = _session()
        writings = [_writing(info) for info in infos]
        facts = {"model": infos[0].name, "label": infos[0].label, "unfinished": True}
        live = Live(cl.Message("", author=infos[0].label, metadata=facts), writings, session, self.history)
        live.message.created_at = now()
        self.live[session.thread_id] = live
        if session.thread_id in self.stopped:
            live.stop()
        async with live.saving():
            runs = (
                writing.run(self.service, request, wrote=live.wrote, changed=live.changed, refuse=self.refuse)
                for writing, request in zip(writings, requests, strict=True)
            )
            await asyncio.gather(*runs)
        for writing in writings:
            self.audit.write("answer", text=writing.text, **writing.facts(), **who())

    async def drain(self, seconds: float) -> None:
        """Take no more messages, and return when all answers are finished and saved; cut them off after some time."""
        self.closing = True
        await self.service.drain(seconds)
        if self.tasks:
            await asyncio.wait(self.tasks.values(), timeout=seconds)


def who() -> dict[str, str]:
    """Return who acts, for the audit log."""
    session = _session()
    return {"user": session.user.identifier if session.user else "", "thread": session.thread_id}


async def tell(text: str) -> None:
    """Show a notice of the server's in the conversation, which no model reads."""
    import chainlit as cl

    notice = cl.Message(content=text, author="Server", metadata={"notice": True})
    notice.is_error = True
    await notice.send()


async def _rewind_to(message_id: object) -> cl.Message | None:
    """Remove what was said after a question, which is named by its own id or that of its answer, and return it."""
    import chainlit as cl

    messages = cl.chat_context.get()
    place = next((place for place, message in enumerate(messages) if message.id == message_id), None)
    while place is not None and place >= 0 and messages[place].type != "user_message":
        place -= 1
    if place is None or place < 0:
        return None
    for message in messages[place + 1 :]:
        await message.remove()
    return messages[place]


def _with(known: list[Any], new: dict[str, Any]) -> list[Any]:
    """Return what is known, with something new at its end, which takes the place of what had its id."""
    return [*(each for each in known if each["id"] != new["id"]), new]


def _session() -> WebsocketSession:
    from chainlit.context import context

    return context.session  # type: ignore[return-value]


def _writing(info: ModelInfo) -> Writing:
    kind = Classifying if info.kind == "classifier" else Writing
    return kind(info.name, info.label, info.nbytes)


def _description(info: ModelInfo) -> str:
    return info.label if info.is_here else f"{info.label}; downloaded first"


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    """Return one of two answers as the page shows it, from what is kept of it."""
    return Writing(**facts).props() | {"text": shown(facts["text"])}
