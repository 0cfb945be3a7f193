"""The gate before Chainlit's socket: only events that our pages send, of the shape that they send, come through.

A browser is not the only thing that can open a socket. Chainlit takes what comes: ids and types that the client
chooses, several messages at once, settings beyond their sliders. It also stores "Task manually stopped." as an answer.
So each event that we need is taken here, and put into the form in which the app expects it; the others are removed.
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.requests import cookie_parser

from chat_ui.app import App, tell
from chat_ui.database import now
from chat_ui.logins import Logins
from chat_ui.rows import is_uuid
from chat_ui.settings import LIMITS
from chat_ui.texts import LONGEST_MESSAGE, clean

if TYPE_CHECKING:
    import socketio
    from chainlit.session import WebsocketSession

Find: TypeAlias = "Callable[[str], Awaitable[WebsocketSession | None]]"

logger = logging.getLogger(__name__)

MOST_SOCKETS = 2_000
LARGEST_EVENT = 500_000  # bytes; well above the longest message, so that a longer one is answered with words
OWN_EVENTS = ("connect", "connection_successful", "disconnect", "clear_session")
LONGEST_NAME = 200  # of a model


def install(sio: socketio.AsyncServer, app: App, logins: Logins) -> None:
    """Put the gate before Chainlit's handlers."""
    import chainlit.socket

    find = functools.partial(_find_session, sio, logins)
    handlers: dict[str, Callable[..., Awaitable[Any]]] = sio.handlers["/"]
    for event in set(handlers) - set(OWN_EVENTS):
        del handlers[event]
    handlers["connect"] = _connect(chainlit.socket.connect, app, logins)
    handlers["connection_successful"] = _once(chainlit.socket.connection_successful, find)
    sio.on("client_message", _in_session(_message, app, find))
    sio.on("edit_message", _in_session(_edit, app, find))
    sio.on("chat_settings_change", _in_session(_settings, app, find))
    sio.on("stop", _in_session(_stop, app, find))
    sio.eio.max_http_buffer_size = LARGEST_EVENT
    sio.eio.transports = ["websocket"]
    _forget_ended_sessions()


def _forget_ended_sessions() -> None:
    """Free the messages of a session when it ends: Chainlit would keep them for ever."""
    from chainlit.chat_context import chat_contexts
    from chainlit.session import WebsocketSession

    delete = WebsocketSession.delete

    async def forgetting(self: WebsocketSession) -> None:
        chat_contexts.pop(self.id, None)
        await delete(self)

    WebsocketSession.delete = forgetting  # type: ignore[method-assign]


async def _find_session(sio: socketio.AsyncServer, logins: Logins, sid: str) -> WebsocketSession | None:
    """Return the session of a socket; None if there is none, or its login has ended, which ends the socket too."""
    from chainlit.session import WebsocketSession

    session = WebsocketSession.get(sid)
    if session is None or await _may_stay(logins, session.token):
        return session
    await session.emit("reload", {})  # upon which the page shows where to log in
    await sio.disconnect(sid)
    return None


async def _may_stay(logins: Logins, token: str | None) -> bool:
    return not logins.required or (token is not None and await logins.is_valid(token))


def _connect(connect: Callable[..., Awaitable[Any]], app: App, logins: Logins) -> Callable[..., Awaitable[Any]]:
    async def checked(sid: str, environ: dict[str, Any], auth: Any = None) -> Any:
        from chainlit.auth import get_token_from_cookies
        from chainlit.session import WebsocketSession, ws_sessions_id
        from socketio.exceptions import ConnectionRefusedError

        if not isinstance(auth, dict) or not is_uuid(auth.get("sessionId")):
            raise ConnectionRefusedError("malformed")
        if app.closing or len(ws_sessions_id) >= MOST_SOCKETS:
            raise ConnectionRefusedError("full")
        thread_id = auth.get("threadId") if is_uuid(auth.get("threadId")) else ""
        if thread_id and not await app.history.answers():
            thread_id = ""  # whose it is cannot be known now, so a new one is begun
        token = get_token_from_cookies(cookie_parser(environ.get("HTTP_COOKIE", "")))
        if not await _may_stay(logins, token):  # of two headers with cookies, another one may have passed before
            raise ConnectionRefusedError("this login has ended")
        accepted = await connect(
            sid,
            environ,
            {"sessionId": auth["sessionId"], "threadId": thread_id, "clientType": "webapp", "userEnv": None},
        )
        if session := WebsocketSession.get(sid):
            session.token = token  # a session that goes on still has that of its first socket
        return accepted

    return checked


def _once(greet: Callable[[str], Awaitable[None]], find: Find) -> Callable[[str], Awaitable[None]]:
    """Let a socket say only once that it is there, since a thread is loaded each time."""

    async def checked(sid: str) -> None:
        session = await find(sid)
        if session is not None and getattr(session, "greeted_socket", None) != sid:
            session.greeted_socket = sid  # type: ignore[attr-defined]
            await greet(sid)

    return checked


def _in_session(handle: Callable[[App, Any], Awaitable[None]], app: App, find: Find) -> Callable[..., Awaitable[None]]:
    async def handler(sid: str, payload: Any = None) -> None:
        from chainlit.context import init_ws_context

        session = await find(sid)
        if session is None:
            return
        init_ws_context(session)
        try:
            await handle(app, payload)
        except _MalformedError as error:
            app.audit.write("malformed event", user=session.user.identifier if session.user else "", why=str(error))

    return handler


class _MalformedError(Exception):
    """An event that no page of ours sends."""


async def _message(app: App, payload: Any) -> None:
    from chainlit.context import context

    sent = _sent(payload)
    if (text := await _text(sent)) is None:
        return
    modes = sent.get("modes")
    if not isinstance(modes, dict):
        modes = {}
    message = {
        "id": sent["id"],
        "threadId": context.session.thread_id,
        "name": context.session.user.identifier if context.session.user else "",
        "type": "user_message",
        "output": text,
        "createdAt": now(),
        "modes": {mode: str(modes[mode])[:LONGEST_NAME] for mode in ("model", "compare") if mode in modes},
        "metadata": {},
    }
    await app.send(message)


async def _edit(app: App, payload: Any) -> None:
    sent = _sent(payload)
    if (text := await _text(sent)) is not None:
        await app.edit(sent["id"], text)


async def _settings(app: App, payload: Any) -> None:
    from chainlit.context import context

    if not isinstance(payload, dict):
        raise _MalformedError("settings")
    for name in (*LIMITS, "system_prompt"):
        value = payload.get(name)
        if isinstance(value, str | int | float) and len(str(value)) <= LONGEST_MESSAGE:
            context.session.chat_settings[name] = value


async def _stop(app: App, payload: Any) -> None:
    app.stop()


def _sent(payload: Any) -> dict[str, Any]:
    """Return the message in an event."""
    message = payload.get("message") if isinstance(payload, dict) else None
    if not isinstance(message, dict) or not is_uuid(message.get("id")) or uuid.UUID(message["id"]).version != 4:
        raise _MalformedError("message")
    return message


async def _text(message: dict[str, Any]) -> str | None:
    """Return the cleaned text of a message; None after telling the reader that it cannot be taken."""
    text = message.get("output")
    if not isinstance(text, str) or not text.strip():
        raise _MalformedError("text")
    if len(text) > LONGEST_MESSAGE:
        await tell(f"This message has {len(text):,} characters; at most {LONGEST_MESSAGE:,} can be read.")
        return None
    return clean(text)
