"""The workspace's only door: a login that can be guessed slowly at best, and what lies behind it.

code-server has a password, but lets anybody try as many as they like, and its cookie never expires. So it runs without
either on a Unix socket, which no network reaches, and this server is what the tunnel leads to. It asks for the
password, makes guessing slow, hands out tokens that expire, and passes on requests that carry one.

    browser --HTTPS--> tunnel --> gateway: password, token --> code-server.sock

A token is its own expiry, signed: "1790000000.MAC". The key is made anew at each start, so a restart ends all sessions.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
from aiohttp import web

COOKIE = "workspace_session"
LEAST_PASSWORD = 12  # characters
FREE_FAILURES = 3
MOST_DELAY = 60.0  # seconds: whoever guesses must not lock the owner out for good
MOST_FORM = 4096  # bytes
# Those of one connection, not of what it carries: RFC 9110, section 7.6.1. Lengths are made anew.
HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "content-length",
}  # fmt: skip
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Workspace</title>
<meta name="viewport" content="width=device-width"><style>body{{font:16px system-ui;margin:20vh auto;max-width:20em}}
input,button{{font:inherit;width:100%;padding:.5em;margin:.25em 0;box-sizing:border-box}}</style></head><body>
<h1>Workspace</h1><form method="post" action="/login"><label>Password
<input type="password" name="password" autocomplete="current-password" autofocus required></label>
<button>Open</button></form><p role="alert">{message}</p></body></html>"""


class Door:
    """Who may come in: one password, tokens that expire, and a delay that doubles with each wrong guess.

    The delay is for all who try together. A tunnel does not say reliably where a request comes from, and whoever
    guesses may come from many places.
    """

    def __init__(self, password: str, hours: float, *, now: Callable[[], float] = time.time) -> None:
        """Prepare to check.

        Raises:
            ValueError: if the password is too short: nothing else protects the machine.
        """
        if len(password) < LEAST_PASSWORD:
            raise ValueError(f"the workspace's password must have at least {LEAST_PASSWORD} characters")
        self._key = secrets.token_bytes(32)
        self._password = self._hash(password)
        self._seconds = hours * 3600
        self._now = now
        self._failures = 0
        self._closed_until = 0.0

    def wait(self) -> float:
        """Return the seconds until the next guess is looked at."""
        return max(0.0, self._closed_until - self._now())

    def let_in(self, password: str) -> str | None:
        """Return a token for the right password; None for a wrong one, and for any before the delay is over."""
        if self.wait():
            return None
        if not hmac.compare_digest(self._hash(password), self._password):
            self._failures += 1
            if self._failures >= FREE_FAILURES:
                doubled = min(self._failures - FREE_FAILURES, 63)  # 2.0**1024 would be an error, and no delay
                self._closed_until = self._now() + min(MOST_DELAY, 2.0**doubled)
            return None
        self._failures = 0
        expiry = str(int(self._now() + self._seconds))
        return f"{expiry}.{self._sign(expiry)}"

    def knows(self, token: str) -> bool:
        """Return whether a token was handed out here and has not expired."""
        expiry, _, signature = token.partition(".")
        good = hmac.compare_digest(signature.encode(), self._sign(expiry).encode())
        return good and expiry.isdecimal() and self._now() < int(expiry)

    def _hash(self, password: str) -> bytes:
        return hmac.digest(self._key, password.encode("utf-8", "surrogateescape"), hashlib.sha256)

    def _sign(self, expiry: str) -> str:
        return hmac.new(self._key, b"token " + expiry.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


class Gateway:
    """An aiohttp application: /login, /logout and /healthz are its own, all else goes to the server behind."""

    def __init__(self, door: Door, behind: Path) -> None:
        """Prepare to serve; `behind` is the Unix socket of the server to protect."""
        self.door = door
        self.behind = behind
        self.last_request = 0.0
        """When somebody who was let in last opened a page or a WebSocket, by `time.time()`."""

    def application(self) -> web.Application:
        """Return what `web.AppRunner` runs."""
        app = web.Application(client_max_size=1 << 30)
        app.add_routes([
            web.get("/healthz", self._healthy),
            web.get("/login", self._ask),
            web.post("/login", self._login),
            web.post("/logout", self._logout),
            web.route("*", "/{path:.*}", self._pass_on),
        ])  # fmt: skip
        app.cleanup_ctx.append(self._client)
        return app

    async def _client(self, app: web.Application):
        connector = aiohttp.UnixConnector(path=str(self.behind))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as self._session:
            yield

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok" if self.behind.exists() else "starting"})

    async def _ask(self, _: web.Request) -> web.Response:
        return self._page("")

    async def _login(self, request: web.Request) -> web.Response:
        if (request.content_length or MOST_FORM + 1) > MOST_FORM:
            return self._page("That is no password.", status=413)
        form = await request.post()
        if wait := self.door.wait():
            return self._page(f"Too many wrong passwords. Wait {wait:.0f} seconds.", status=429, wait=wait)
        token = self.door.let_in(str(form.get("password", "")))
        if token is None:
            return self._page("Wrong password.", status=401)
        answer = web.Response(status=302, headers={"Location": "/"})
        answer.set_cookie(COOKIE, token, httponly=True, secure=True, samesite="Lax")
        return answer

    async def _logout(self, _: web.Request) -> web.Response:
        answer = web.Response(status=302, headers={"Location": "/login"})
        answer.del_cookie(COOKIE)
        return answer

    def _page(self, message: str, *, status: int = 200, wait: float = 0) -> web.Response:
        headers = {"Cache-Control": "no-store", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
        if wait:
            headers["Retry-After"] = str(int(wait) + 1)
        return web.Response(text=PAGE.format(message=message), status=status, content_type="text/html", headers=headers)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        if not self.door.knows(request.cookies.get(COOKIE, "")):
            if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
                raise web.HTTPFound("/login")
            raise web.HTTPUnauthorized
        self.last_request = time.time()
        headers = _without(request.headers.items(), request)
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._websocket(request, headers)
            return await self._http(request, headers)
        except aiohttp.ClientConnectorError as error:
            raise web.HTTPBadGateway(text="The editor is still starting.") from error

    async def _http(self, request: web.Request, headers: list[tuple[str, str]]) -> web.StreamResponse:
        body = request.content if request.can_read_body else None
        async with self._session.request(
            request.method, f"http://{request.host}{request.raw_path}", headers=headers, data=body,
            allow_redirects=False,
        ) as answer:  # fmt: skip
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def _websocket(self, request: web.Request, headers: list[tuple[str, str]]) -> web.StreamResponse:
        origin = request.headers.get("Origin", "")
        if origin.partition("://")[2] != request.host:  # another site's page, in the browser of somebody let in
            raise web.HTTPForbidden
        plain = [(name, value) for name, value in headers if not name.lower().startswith("sec-websocket")]
        async with self._session.ws_connect(
            f"http://{request.host}{request.raw_path}", headers=plain, max_msg_size=0
        ) as behind:
            front = web.WebSocketResponse(max_msg_size=0)
            await front.prepare(request)
            pumps = [asyncio.create_task(self._pump(front, behind)), asyncio.create_task(self._pump(behind, front))]
            _, unfinished = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for task in unfinished:
                task.cancel()
            await front.close()
            return front

    async def _pump(self, source, target) -> None:
        async for message in source:
            if message.type == aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
            elif message.type == aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)


def _without(headers, request: web.Request) -> list[tuple[str, str]]:
    """Return a request's headers without those of the connection, and without our cookie."""
    kept = [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | {"cookie"}]
    cookies = "; ".join(f"{name}={value}" for name, value in request.cookies.items() if name != COOKIE)
    return [*kept, ("Cookie", cookies)] if cookies else kept
