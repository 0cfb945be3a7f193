"""One file of a Hugging Face repository, complete and verified, over a connection that may break at any byte.

The file grows as `model.safetensors.<ETag>.part` beside its target. An ETag is the server's name for exactly these
bytes, so whoever finds a part, this process or one started tomorrow, asks for the rest of that version and no other:
`Range` says from which byte, `If-Range` of which version (RFC 9110, https://www.rfc-editor.org/rfc/rfc9110, sections
13.1.5 and 14.2). Only a file whose checksum is right takes the target's place.

The environment is read when a download starts: HF_ENDPOINT (a mirror), HF_TOKEN, HF_HUB_OFFLINE, all as in
huggingface_hub, and the proxy variables that `urllib` knows. huggingface_hub itself begins anew what another process
has begun, and compares no checksum.
"""

import glob
import hashlib
import http.client
import logging
import os
import re
import shutil
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit

from tqdm import tqdm

from utils.files import InputError, printable, sha256, sync_folder

log = logging.getLogger(__name__)

_DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new attempt; whenever more has come, they start anew
_LONGEST_DELAY = 300.0  # seconds: what a server may ask for with Retry-After
_TIMEOUT = 30.0  # seconds of silence after which a connection counts as lost
_LONGEST_QUOTE = 200  # characters of what a server says that are shown


class DownloadError(OSError):
    """A file could not be had. The message is one line: which file, why, and what to do about it."""


class NoConnectionError(DownloadError):
    """The server cannot be reached, or HF_HUB_OFFLINE says not to try."""


def endpoint() -> str:
    """Return the address of the Hub: HF_ENDPOINT, or the public one."""
    url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", url)
        parts.hostname and parts.hostname.encode("idna")
    except ValueError:  # of the port, of brackets, of a name that cannot be one
        right = False
    if not right:
        raise InputError(f"HF_ENDPOINT must be an address such as https://huggingface.co, got {url!r}")
    return url.rstrip("/")


def require_online() -> None:
    """Check that HF_HUB_OFFLINE is not set.

    Raises:
        NoConnectionError: if it is.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise NoConnectionError("HF_HUB_OFFLINE is set")


Progress = Callable[[int, int | None], None]
"""Called with the bytes that have come and those of the whole file, None if the server does not say."""


def download(
    repo: str,
    revision: str,
    name: str,
    target: Path,
    checksum: str | None = None,
    *,
    most_bytes: int,
    progress: Progress | None = None,
) -> str:
    """Fetch a file of a repository and return its SHA-256. Until it is whole and right, `target` stays as it was.

    Two processes must not fetch the same file at once: hold a lock.

    Args:
        checksum: the SHA-256 that the file must have. Without it the server is believed: the ETag of a large file on
            the Hub is its SHA-256, that of a small one the SHA-1 of its git blob.
        most_bytes: no more than this is taken, or a server could fill the disk.
        progress: called as the file comes, beside the progress bar.

    Raises:
        NoConnectionError: if the server cannot be reached, or HF_HUB_OFFLINE is set.
        DownloadError: if it refuses, keeps failing or has another file, or if the disk is full.
    """
    require_online()
    if target.is_dir():
        raise DownloadError(f"{target} is a folder, where a file should come: remove it, or choose another cache")
    target.parent.mkdir(parents=True, exist_ok=True)
    url = f"{endpoint()}/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}"
    return _Download(url, f"{endpoint()}/{repo}", target, checksum, most_bytes, progress).run()


@dataclass(frozen=True)
class _Download:
    """One file on its way. There is at most one part of it, and its ETag is in the part's name."""

    url: str
    repository: str  # its page, for people
    target: Path
    checksum: str | None
    most_bytes: int
    progress: Progress | None

    def run(self) -> str:
        for last_try in (False, True):
            part, checksum = self.fetch()
            if found := _verify(part, checksum):
                part.replace(self.target)
                sync_folder(self.target.parent)
                return found
            part.unlink()
            if not last_try:
                log.warning("%s came damaged, its checksum is wrong: fetching it once more", self.target.name)
        raise DownloadError(f"{self.url} came twice with a wrong checksum: the server or a proxy on the way damages it")

    def fetch(self) -> tuple[Path, str]:
        """Ask until all of the file has come; return its part, and the checksum it should have."""
        failures = 0
        furthest = 0
        reached = False
        while True:
            try:
                return self.attempt()
            except (DownloadError, InputError):
                raise
            except (ValueError, http.client.InvalidURL) as error:  # a header, or the address we were sent to
                raise DownloadError(f"{self.url}: the server's answer makes no sense: {_quoted(error)}") from error
            except (OSError, http.client.HTTPException) as error:
                self.raise_if_hopeless(error, reached)
                reached = True
                received = sum(part.stat().st_size for part in self.parts())
                if received > furthest:
                    failures = 0
                    furthest = received
                asked = _retry_after(error)
                if failures == len(_DELAYS) or asked > _LONGEST_DELAY:
                    kept = f"{_readable(received)} are kept: try later, to go on from there"
                    advice = kept if received else "try later"
                    raise DownloadError(f"{self.url}: {_reason(error)}, {failures + 1} times; {advice}") from error
                delay = max(asked, _DELAYS[failures])
                failures += 1
                log.warning("%s: %s; trying again in %g s", self.target.name, _reason(error), delay)
                time.sleep(delay)

    def attempt(self) -> tuple[Path, str]:
        """Send one request, for the whole file or for what its part lacks."""
        part = next(iter(self.parts()), None)
        etag = unquote(part.name[len(self.target.name) + 1 : -len(".part")]) if part else ""
        # its last byte is asked for again: of a complete part nothing would be left to send, which is an error
        start = max(part.stat().st_size - 1, 0) if part and etag else 0
        try:
            response, linked = self.open(start, etag)
        except HTTPError as error:
            if not (start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
                raise
            error.close()
            return self.attempt_anew()  # the part is longer than the file, so it is of another version
        with response:
            headers = response.headers
            if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                raise DownloadError(f"{self.url}: {response.status} {_quoted(response.reason)}, which brings no file")
            served = _strong_etag(headers["ETag"])
            if start and response.status == HTTPStatus.PARTIAL_CONTENT:
                begin, size = _content_range(headers["Content-Range"])
                if begin != start or served not in ("", etag):
                    return self.attempt_anew()  # a server that takes no notice of If-Range
            else:
                start = 0
                size = int(headers["Content-Length"]) if headers["Content-Length"] else None
                self.drop_parts()
                part = self.target.with_name(f"{self.target.name}.{quote(served, safe='')}.part")
            checksum = self.agreed_checksum(size, linked or headers)
            self.save(response, part, start, size)
        return part, checksum

    def attempt_anew(self) -> tuple[Path, str]:
        self.drop_parts()
        return self.attempt()

    def parts(self) -> list[Path]:
        return list(self.target.parent.glob(f"{glob.escape(self.target.name)}.*.part"))

    def drop_parts(self) -> None:
        for part in self.parts():
            part.unlink()

    def open(self, start: int, etag: str) -> tuple[http.client.HTTPResponse, Message | None]:
        """Return the server's answer, and the headers of the Hub where it sent us on to another address."""
        request = urllib.request.Request(self.url, headers={"User-Agent": "language-model-from-scratch"})
        if token := _token():
            request.add_header("Authorization", f"Bearer {token}")
        if start:
            request.add_header("Range", f"bytes={start}-")
            request.add_header("If-Range", f'"{etag}"')
        redirects = _Redirects()
        try:
            response = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT)
        except URLError as error:
            error.filename = redirects.url or self.url  # for the message: it need not be the Hub that fails
            raise
        return response, redirects.linked

    def agreed_checksum(self, size: int | None, headers: Message) -> str:
        """Return what the file's checksum must be.

        Raises:
            DownloadError: if what the server is about to send is another file.
        """
        linked_size = headers["X-Linked-Size"]
        if linked_size and size is not None and size != int(linked_size):
            raise DownloadError(f"{self.url} should have {int(linked_size):,} bytes, but the server has {size:,}")
        served = (headers["X-Linked-Etag"] or headers["ETag"] or "").removeprefix("W/").strip('"')
        if self.checksum and _is_sha256(served) and served != self.checksum:
            raise DownloadError(f"{self.url} is another file than wanted: its sha256 is {served}, not {self.checksum}")
        return self.checksum or served

    def save(self, response: http.client.HTTPResponse, part: Path, start: int, size: int | None) -> None:
        """Write what comes to the part, from `start` on, showing the progress."""
        too_large = f"{self.url} has more than the {_readable(self.most_bytes)} that such a file may have"
        if size is not None and size > self.most_bytes:
            raise DownloadError(too_large)
        free = shutil.disk_usage(part.parent).free
        if size is not None and size - start > free:
            raise DownloadError(
                f"{self.target.name} needs {_readable(size - start)} more on the disk of {part.parent}, which has "
                f"{_readable(free)}: free some space, or choose another folder"
            )
        with _writing(part):
            file = part.open("r+b" if start else "wb", buffering=0)
        bar = tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=self.target.name, leave=False)
        with file, bar:
            file.seek(start)
            while block := response.read1(1 << 20):
                if file.tell() + len(block) > self.most_bytes:  # it did not tell the size, or a wrong one
                    part.unlink()
                    raise DownloadError(too_large)
                with _writing(part):
                    rest = memoryview(block)
                    while rest:  # a disk that is nearly full takes a part of it
                        rest = rest[file.write(rest) :]
                bar.update(len(block))
                if self.progress is not None:
                    self.progress(file.tell(), size)
            received = file.tell()
            with _writing(part):
                os.fsync(file.fileno())
        if size is not None and received < size:
            raise ConnectionResetError(f"the connection ended at {_readable(received)} of {_readable(size)}")

    def raise_if_hopeless(self, error: Exception, reached: bool) -> None:
        """Raise a DownloadError that says what to do, if trying again would not help."""
        if isinstance(error, HTTPError):
            error.close()
            if error.code in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or error.code >= 500:
                return
            said = f" ({_quoted(error.headers['X-Error-Message'])})" if error.headers["X-Error-Message"] else ""
            raise DownloadError(f"{self.url}: {_reason(error)}{said}; {self.advice(error.code)}") from error
        # before the server has answered even once: there is no connection, or no such server
        if isinstance(error, URLError) and not reached and not isinstance(error.reason, ConnectionResetError):
            untrusted = isinstance(error.reason, ssl.SSLCertVerificationError)
            advice = "; SSL_CERT_FILE may name the certificates to trust" if untrusted else ""
            where = urlsplit(error.filename).netloc.rpartition("@")[2]  # without a password
            raise NoConnectionError(f"cannot reach {where}: {_reason(error)}{advice}") from error

    def advice(self, status: int) -> str:
        """Return what to do about a refusal. The Hub also says 401 of a repository that does not exist."""
        if status == HTTPStatus.UNAUTHORIZED and _token():
            return "HF_TOKEN is not valid: unset it, or make a new one at https://huggingface.co/settings/tokens"
        if status == HTTPStatus.FORBIDDEN and _token():
            return f"the account of HF_TOKEN has no access: ask for it at {self.repository}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return "set HF_TOKEN to a token from https://huggingface.co/settings/tokens"
        return f"is there such a file and revision at {self.repository}, and is HF_ENDPOINT right?"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows the Hub to its CDN: keeps what the Hub said of the file, and takes no token to another server."""

    linked: Message | None = None
    url: str | None = None  # the last one we were sent to

    def redirect_request(
        self, request: urllib.request.Request, file: IO[bytes], code: int, message: str, headers: Message, url: str
    ) -> urllib.request.Request | None:
        self.url = url
        if urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(f"{request.full_url}: the server sends us on to {url!r}, which is not an http address")
        if headers["X-Linked-Etag"] and self.linked is None:
            self.linked = headers
        new = super().redirect_request(request, file, code, message, headers, url)
        if new is not None and _origin(url) != _origin(request.full_url):
            new.remove_header("Authorization")
        return new


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch("[!-~]*", token):  # or an error further on would show it
        raise InputError("HF_TOKEN holds a character that no token has: copy it anew")
    return token


def _strong_etag(header: str | None) -> str:
    """Return the ETag without its quotes; "" for a weak one, which does not promise the same bytes."""
    return header.strip('"') if header and header.startswith('"') else ""


def _content_range(header: str | None) -> tuple[int, int]:
    """Return first byte and size of the whole from `bytes 100-199/200`; (-1, 0) if it is not of this form."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", header or "")
    return (int(match[1]), int(match[2])) if match else (-1, 0)


def _retry_after(error: Exception) -> float:
    """Return the seconds that a busy server asks us to wait."""
    header = error.headers["Retry-After"] if isinstance(error, HTTPError) else None
    return float(header) if header and header.isdecimal() else 0.0


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _verify(path: Path, checksum: str) -> str | None:
    """Return the file's SHA-256, or None if it is not the file the checksum is of."""
    found = sha256(path)
    if _is_sha256(checksum):
        return found if found == checksum else None
    if re.fullmatch("[0-9a-f]{40}", checksum):  # a small file's
        start = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        with path.open("rb") as file:
            return found if hashlib.file_digest(file, start.copy).hexdigest() == checksum else None
    log.warning("%s: the server tells no checksum, so only its size was compared", path.name)
    return found


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell a failing disk, which no new attempt would mend, from a failing connection."""
    try:
        yield
    except OSError as error:
        size = path.stat().st_size if path.exists() else 0
        kept = f"; {_readable(size)} are kept: make room and run it again to go on from there" if size else ""
        raise DownloadError(f"cannot write {path}: {error.strerror}{kept}") from error


def _reason(error: Exception) -> str:
    """Return what went wrong, in a few words."""
    if isinstance(error, HTTPError):
        return f"{error.code} {_quoted(error.reason)}"
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "no answer"
    return _quoted(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _quoted(said: object) -> str:
    """Return what a server said, in a form that is safe to print."""
    return printable(str(said))[:_LONGEST_QUOTE]


def _readable(size: int) -> str:
    return f"{tqdm.format_sizeof(size)}B"
