"""A small Hugging Face Hub on loopback that misbehaves on request, for tests of whatever downloads.

    with Hub(root) as hub:                                     # serves root/<owner>/<name>/<file>
        hub.use(monkeypatch)
        hub.faults["model.safetensors"] = [Cut(1000), Status(500)]  # the first answers go wrong, the next are right

Any revision is served, since a repository here is only a folder. Large files (`LARGE`) have their sha256 as ETag
and in X-Linked-Etag, the others the sha1 of their git blob, as on the real Hub. `hub.requests` says what came in
and how many bytes of the body went out.
"""

import hashlib
import re
import socket
import struct
import threading
import urllib.parse
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

LARGE = (".safetensors", ".bin")


@dataclass
class Cut:
    """Send this many bytes of the body, then close the connection; or reset it, whereby some of them may be lost."""

    after: int
    reset: bool = False


@dataclass
class Pause:
    """Send this many bytes of the body, then nothing, until the client goes, `go` is set or the hub is closed."""

    after: int
    go: threading.Event = field(default_factory=threading.Event)


@dataclass
class Flip:
    """Invert the byte at this offset."""

    at: int


@dataclass
class Status:
    """Answer with this status and no file."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Headers:
    """Answer rightly, but for these headers; None leaves one out."""

    changes: dict[str, str | None]


@dataclass
class Request:
    """What a client asked for, and how many bytes of the file it was sent."""

    file: str
    headers: dict[str, str]  # names in lower case
    status: int = 0
    sent: int = 0
    answered: threading.Event = field(default_factory=threading.Event)


class Hub:
    """Serves a folder until the `with` block ends. Its attributes may be changed meanwhile."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[Request] = []
        self.faults: dict[str, list[Cut | Pause | Flip | Status | Headers]] = defaultdict(list)
        self.token: str | None = None  # when set, whoever does not bring it gets a 401
        self.ignores_range = False
        self.ignores_if_range = False
        self.content: Hub | None = None  # large files are redirected there, as the real Hub does to its CDN
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Send whatever downloads here, child processes too."""
        monkeypatch.setenv("HF_ENDPOINT", self.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)

    def sent(self, file: str) -> list[int]:
        """The bytes sent for each request of a file. A client may have them all before the hub has counted them."""
        requests = [request for request in self.requests if request.file == file]
        assert all(request.answered.wait(timeout=60) for request in requests)
        return [request.sent for request in requests]


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # not on stderr
        pass

    def do_GET(self) -> None:
        try:
            self.answer()
        finally:
            self.request_.answered.set()

    def answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/([^?]+)", self.path)
        file = urllib.parse.unquote(match[3]) if match else self.path
        self.request_ = Request(file, {name.lower(): value for name, value in self.headers.items()})
        hub.requests.append(self.request_)
        fault = hub.faults[file].pop(0) if hub.faults[file] else None
        path = hub.root / match[1] / file if match else None
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.start(401, {"X-Error-Message": "Access restricted", "Content-Length": "0"})
        elif isinstance(fault, Status):
            self.start(fault.code, {"Content-Length": "0", **fault.headers})
        elif path is None or not path.is_file():
            self.start(404, {"X-Error-Message": "Entry not found", "Content-Length": "0"})
        else:
            data = path.read_bytes()
            large = path.suffix in LARGE
            etag = hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0%b" % (len(data), data))
            headers = {"ETag": f'"{etag.hexdigest()}"'}
            if large:
                headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
            if large and hub.content:
                self.start(302, {**headers, "Location": hub.content.url + self.path, "Content-Length": "0"})
            else:
                self.send_file(data, headers, fault)

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.request_.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self, data: bytes, headers: dict[str, str], fault: object) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        first, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        same = hub.ignores_if_range or self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if wanted and same and not hub.ignores_range:
            first, status = int(wanted[1]), 206
            if first >= len(data):
                return self.start(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        headers["Content-Length"] = str(len(data) - first)
        if isinstance(fault, Headers):
            headers = {name: value for name, value in {**headers, **fault.changes}.items() if value is not None}
        self.start(status, headers)
        if isinstance(fault, Flip):
            data = data[: fault.at] + bytes([data[fault.at] ^ 255]) + data[fault.at + 1 :]
        body = data[first:]
        if isinstance(fault, Cut | Pause):
            self.send(body[: fault.after])
            if isinstance(fault, Cut):
                if fault.reset:  # what closing then does: linger on, for no seconds
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return None
            if not self.wait(fault):
                return None
            body = body[fault.after :]
        return self.send(body)

    def send(self, data: bytes) -> None:
        try:
            for at in range(0, len(data), 65_536):
                self.wfile.write(data[at : at + 65_536])
                self.request_.sent += len(data[at : at + 65_536])
        except OSError:  # the client has gone
            self.close_connection = True

    def wait(self, pause: Pause) -> bool:
        """Whether to go on; otherwise the client has gone, or the hub is to close."""
        self.connection.settimeout(0.01)
        while not pause.go.is_set():
            try:
                if self.server.hub.closing.is_set() or not self.connection.recv(1):  # type: ignore[attr-defined]
                    return False
            except TimeoutError:
                continue
            except OSError:
                return False
        self.connection.settimeout(None)
        return True
