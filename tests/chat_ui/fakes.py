"""An engine that says what it is told, word by word, and a page without a browser."""

import asyncio
import dataclasses
import itertools
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import httpx
import socketio
import uvicorn

from chat_ui.engine import (
    BusyError,
    Event,
    Finished,
    Loading,
    ModelInfo,
    Opinion,
    Piece,
    Queued,
    Request,
    Started,
    Status,
    Timings,
    UnknownModelError,
    Usage,
)
from gpt_model import GPTConfig

Serve = Callable[..., Any]  # the fixture `house`
PATIENCE = 60  # seconds that anything may take on a machine that others use too
TINY = GPTConfig(vocab_size=300, context_length=64, d_model=8, n_layers=1, n_heads=1)


def model(name: str, **changes: Any) -> ModelInfo:
    """What is known of a model that nobody loads."""
    info = ModelInfo(name, "tuned", datetime(2026, 11, 27, 12, 0), "chatml", TINY, None)
    return dataclasses.replace(info, **changes)


class FakeModels:
    """Models that are only names."""

    def __init__(self, *infos: ModelInfo) -> None:
        self.infos = list(infos)

    def available(self) -> list[ModelInfo]:
        return self.infos

    def info(self, name: str) -> ModelInfo:
        for info in self.infos:
            if info.name == name:
                return info
        raise UnknownModelError(f"there is no model {name!r}")


class FakeAnswer:
    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self.cancelled = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    def cancel(self) -> None:
        self.cancelled.set()


class FakeService:
    """An engine that answers "MODEL heard: " and the last thing said; a text with "slowly" waits for `go_on`."""

    def __init__(self, models: FakeModels) -> None:
        self.models = models
        self.requests: list[Request] = []
        self.go_on: Callable[[], bool] = lambda: False
        self.closing = False
        self.running = 0

    def submit(self, request: Request) -> FakeAnswer:
        self.requests.append(request)
        text = request.prompt.turns[-1].text
        if "too many" in text:
            raise BusyError("the queue is full: try again in a moment")
        self.models.info(request.model)
        answer = FakeAnswer(self._write(request, text, lambda: answer))
        return answer

    def classify(self, name: str, text: str) -> Future[Opinion]:
        """Say "bad", unless the text is good."""
        opinion: Future[Opinion] = Future()
        chances = (("good", 0.75), ("bad", 0.25)) if "good" in text else (("bad", 0.75), ("good", 0.25))
        opinion.set_result(Opinion(chances, (), 3))
        return opinion

    async def _write(self, request: Request, text: str, answer: Callable[[], FakeAnswer]) -> AsyncIterator[Event]:
        self.running += 1
        timings, reason, error = Timings(0.01, 0.05, 1.05), "stop", None
        words = f"{request.model} heard: {text}".split(" ")
        yield Queued(1)
        if "download" in text:
            yield Loading(250_000_000, 500_000_000)
            while not self.go_on():
                await asyncio.sleep(0.001)
        yield Started(request.model, 3, TINY.context_length)
        n_words = 0
        for word in itertools.chain(words, itertools.repeat("on") if "slowly" in text else ()):
            while "slowly" in text and n_words > 4 and not self.go_on() and not answer().cancelled.is_set():
                await asyncio.sleep(0.001)
            if answer().cancelled.is_set():
                reason = "cancelled"
                break
            if "slowly" in text and n_words > 9:
                break
            yield Piece(0, word + " ", ())
            n_words += 1
            await asyncio.sleep(0)
            if "break" in text and n_words == 2:
                reason, error = "error", "the model broke"
                break
        self.running -= 1
        yield Finished(0, reason, Usage(3, n_words), timings, error)

    def status(self) -> Status:
        return Status(self.running, 0, ("demo",), (), not self.closing, {"requests": float(len(self.requests))})

    async def drain(self, seconds: float) -> None:
        self.closing = True
        end = asyncio.get_running_loop().time() + seconds
        while self.running and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.001)

    def close(self) -> None:
        self.closing = True


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an app in this event loop, and yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        task = asyncio.create_task(server._serve([listener]))
        try:
            while not server.started:
                assert not task.done(), task.result()
                await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


class Page:
    """What a browser does: logs in, opens a socket, sends messages, and keeps what comes."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.http = httpx.AsyncClient(base_url=base, timeout=PATIENCE, verify=False)
        self.socket = socketio.AsyncClient(reconnection=False, ssl_verify=False)
        self.session = str(uuid.uuid4())
        self.events: list[tuple[str, Any]] = []
        self.socket.on("*", self._keep)
        self._changed = asyncio.Event()

    async def _keep(self, event: str, data: Any = None) -> None:
        self.events.append((event, data))
        self._changed.set()

    async def log_in(self, name: str = "", password: str = "") -> httpx.Response:
        if name:
            return await self.http.post("/login", data={"username": name, "password": password})
        return await self.http.post("/auth/header")

    @property
    def token(self) -> str:
        """Its login."""
        return self.http.cookies["access_token"]

    async def open(self, thread: str = "", origin: str | None = None, **auth: Any) -> "Page":
        await self.connect(thread, origin, **auth)
        await self.until("chat_settings")
        await self.when(lambda: self.of("resume_thread") or len(self.of("task_end")) > 1)  # one is of the connection
        self._n_ends = len(self.of("task_end"))
        return self

    async def connect(self, thread: str = "", origin: str | None = None, **auth: Any) -> None:
        """Open the socket only."""
        if not self.http.cookies:
            await self.log_in()
        cookie = "; ".join(f"{name}={value}" for name, value in self.http.cookies.items())
        auth = {"clientType": "webapp", "sessionId": self.session, "threadId": thread, "userEnv": "{}"} | auth
        headers = {"Cookie": cookie, "Origin": origin or self.base}
        await self.socket.connect(
            self.base, socketio_path="/ws/socket.io", transports=["websocket"], headers=headers, auth=auth,
            wait_timeout=PATIENCE,
        )  # fmt: skip
        await self.socket.emit("connection_successful")

    async def when(self, happened: Callable[[], Any]) -> None:
        """Wait for events until something holds."""
        async with asyncio.timeout(PATIENCE):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    async def until(self, event: str, count: int = 1) -> Any:
        """Wait until an event has come so often, and return its last data."""
        await self.when(lambda: len(self.of(event)) >= count)
        return self.of(event)[-1]

    async def ended(self, count: int) -> None:
        """Wait until so many answers have ended since the page was opened."""
        await self.until("task_end", self._n_ends + count)

    async def shows(self, text: str) -> None:
        """Wait until the last answer, or notice, has a text in it."""
        await self.when(lambda: self.answers() and text in self.answers()[-1]["output"])

    def of(self, event: str) -> list[Any]:
        return [data for name, data in self.events if name == event]

    async def send(self, text: Any, **modes: str) -> str:
        """Send a message, and return its id; nothing is waited for."""
        message = {"id": str(uuid.uuid4()), "name": "x", "type": "user_message", "output": text, "threadId": ""}
        await self.socket.emit("client_message", {"message": message | {"modes": modes}, "fileReferences": []})
        return message["id"]

    async def ask(self, text: str, **modes: str) -> dict[str, Any]:
        """Send a message, and return the finished answer."""
        n_ends = len(self.of("task_end")) - self._n_ends
        await self.send(text, **modes)
        await self.ended(n_ends + 1)
        return self.answers()[-1]

    def answers(self) -> list[dict[str, Any]]:
        """All messages of the other side, as they were last shown."""
        shown: dict[str, dict[str, Any]] = {}
        for event, data in self.events:
            if event in ("new_message", "update_message", "stream_start") and data["type"] == "assistant_message":
                shown[data["id"]] = dict(data)
            elif event == "resume_thread":
                shown |= {step["id"]: dict(step) for step in data["steps"] if step["type"] == "assistant_message"}
            elif event == "stream_token":
                shown[data["id"]]["output"] += data["token"]
            elif event == "delete_message":
                shown.pop(data["id"], None)
        return list(shown.values())

    async def thread(self) -> str:
        """Wait until the server has named the thread, which it does when it has stored it, and return its id."""
        return (await self.until("first_interaction"))["thread_id"]

    def below(self) -> list[dict[str, Any]]:
        """What stands below the answers, as it was last shown."""
        return list({data["id"]: data["props"] for data in self.of("element")}.values())

    async def act(self, name: str, **payload: Any) -> httpx.Response:
        action = {"name": name, "payload": payload, "id": str(uuid.uuid4()), "label": "", "tooltip": ""}
        return await self.http.post("/project/action", json={"sessionId": self.session, "action": action})

    async def close(self) -> None:
        if self.socket.connected:
            await self.socket.emit("clear_session")
            await self.socket.disconnect()
        if self.socket.eio.http is not None:  # which a refused connection leaves open
            await self.socket.eio.http.close()
        await self.http.aclose()


class House:
    """A server, its parts, and the pages that are open."""

    def __init__(self, base: str, app: Any, service: FakeService) -> None:
        self.base = base
        self.chat = app.state.chat
        self.service = service
        self.pages: list[Page] = []

    def page(self) -> Page:
        self.pages.append(Page(self.base))
        return self.pages[-1]

    async def open(self, **settings: Any) -> Page:
        return await self.page().open(**settings)
