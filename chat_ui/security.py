"""What every request passes: who may ask from where, how large and how often, and the headers that a browser obeys.

A plain ASGI layer: it sees WebSockets too, and holds no answer back. Chainlit accepts sockets and requests from pages
of any origin and lets a cookie travel without TLS; here a foreign page is refused, and the cookie is marked.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat_ui.limits import RateLimit
from chat_ui.logins import Logins, is_loopback

LARGEST_BODY = 1_000_000  # bytes
LOGINS_PER_MINUTE = 10  # tries from one address
STATIC_FOLDERS = ("/assets/", "/public/", "/avatars/")
STATIC = ("/favicon", "/logo", "/project/translations")  # a page without its words stays empty
WATCHED = ("/health", "/ready", "/metrics")  # by programs, which name the server as they like
PROTECTED = ("/user", "/project/", "/export/")  # where a login says whose things are shown
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def content_policy() -> str:
    """Return the Content-Security-Policy: a page loads and sends nothing elsewhere.

    Chainlit needs "unsafe-eval" for the parts of a page that we write in JSX (files of ours, under public/), and
    "unsafe-inline" for its settings; texts of models and readers are never put into scripts.
    """
    rules = {
        "default-src": "'self'",
        "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'self'",
        "object-src": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


HEADERS = {
    "Content-Security-Policy": content_policy(),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Security:
    """The layer around the whole app.

    Args:
        app: what is inside.
        logins: who is who.
        origins: addresses under which browsers reach the server, such as https://chat.example.org; with none, the
            one that a request itself names, which must be of this machine where nobody logs in.
        requests_per_minute: from one address, without what never changes.
    """

    def __init__(self, app: ASGIApp, logins: Logins, origins: tuple[str, ...], requests_per_minute: int) -> None:
        self.app = app
        self.logins = logins
        self.origins = origins
        self.by_tls = any(origin.startswith("https:") for origin in origins)
        self.requests = RateLimit(requests_per_minute)
        self.login_tries = RateLimit(LOGINS_PER_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None:
            refusal = await self._check_login(scope)
        if scope["type"] == "websocket":
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 4403, "reason": refusal[1]})
            return
        out = self._with_headers(scope, send)
        if refusal is not None:
            status, detail = refusal
            await JSONResponse({"detail": detail}, status)(scope, receive, out)
            return
        try:
            await self.app(scope, _limited(receive), out)
        except _TooLargeError:
            await JSONResponse({"detail": f"at most {LARGEST_BODY:,} bytes can be sent"}, 413)(scope, receive, out)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Return a status and the reason why a request is refused; None if it is not."""
        path = scope["path"]
        if not self._is_ours(scope, headers):
            return 403, "this address is not of this server, or another page sent this request"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > LARGEST_BODY:
            return 413, f"at most {LARGEST_BODY:,} bytes can be sent"
        address = (scope.get("client") or ("",))[0]
        logs_in = path == "/login" and scope["type"] == "http" and scope["method"] == "POST"
        if logs_in and not self.login_tries.allow(address):
            return 429, "too many tries to log in: wait a minute"
        if not _is_public(path) and not self.requests.allow(address):
            return 429, "too many requests: wait a minute"
        return None

    def _is_ours(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a request names an address of ours, and comes from a page of ours if it comes from a page."""
        if scope["path"] in WATCHED:
            return True
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self.origins:
            if host not in [urlsplit(origin).netloc for origin in self.origins]:
                return False
        elif not self.logins.required and not is_loopback(name):
            return False  # a name that somebody else has pointed at this machine
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            return True
        origin = headers.get("origin")
        if origin is None:  # a program, not a browser
            return True
        return origin in self.origins if self.origins else urlsplit(origin).netloc == host

    async def _check_login(self, scope: Scope) -> tuple[int, str] | None:
        """Return a refusal if the request carries a login that has ended; take note of one that ends now."""
        from chainlit.auth import reuseable_oauth

        path = scope["path"]
        ends = path == "/logout" and scope["type"] == "http" and scope["method"] == "POST"
        protected = scope["type"] == "websocket" or path.startswith(PROTECTED)
        if _is_public(path) or not (protected or ends):
            return None
        token = await reuseable_oauth(HTTPConnection(scope))  # what Chainlit finds: in cookies, or in a header
        if not token:
            return None
        if ends:
            await self.logins.revoke(token)
        elif not await self.logins.is_valid(token):
            return 401, "this login has ended"
        return None

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def out(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in HEADERS.items():
                    headers[name] = value
                if self.by_tls:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
                    message["headers"] = [_marked_secure(*header) for header in message["headers"]]
                if scope["path"].startswith("/assets/"):  # their names hold a digest of their content
                    headers["Cache-Control"] = "public, max-age=31536000, immutable"
                else:
                    headers.setdefault("Cache-Control", "no-store" if "/public/" not in scope["path"] else "no-cache")
            await send(message)

        return out


class _TooLargeError(Exception):
    """A body that is longer than it may be."""


def _is_public(path: str) -> bool:
    """Return whether everybody gets the same answer, and cheaply."""
    return path in (*STATIC, *WATCHED) or path.startswith(STATIC_FOLDERS)


def _limited(receive: Receive) -> Receive:
    """Count what arrives, since a body need not say beforehand how long it is."""
    n_bytes = 0

    async def counted() -> Message:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > LARGEST_BODY:
            raise _TooLargeError
        return message

    return counted


def _marked_secure(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    if name.lower() == b"set-cookie" and b"secure" not in value.lower():
        value += b"; Secure"
    return name, value
