"""Whether a server bears many open pages for long: sockets that stay open, some of which talk; memory on the way.

    python -m chat_ui.server --runs runs --requests-per-minute 1000000 --queue 10000
    python -m chat_ui.soak --sockets 200 --talking 50 --messages 2000 --out chat_ui/results/sockets.json

It does what browsers do: each page logs in, opens a socket, and asks; an answer is complete if what was streamed is
what the finished message says. `chat_ui.load` measures speed, over the API; this looks for what breaks or leaks.
"""

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from utils.files import InputError, read_json, write_atomically
from utils.hardware import describe
from utils.outputs import check_output_file
from utils.ranges import Count, Range, check_ranges

log = logging.getLogger(__name__)

OPENING = 10  # pages that are opened at once
SAMPLES = 20  # of the server's memory
SECONDS_OF_AN_ANSWER = 600.0
QUESTION = "It is a truth universally acknowledged, that"


@dataclass(frozen=True)
class Config:
    """Keep many pages open, let some of them talk, and watch the server's memory."""

    url: str = "http://127.0.0.1:8000"
    """The server, which nobody needs to log in to."""
    sockets: Annotated[int, Range(1, 10_000)] = 50
    """Pages that are open."""
    talking: Annotated[int, Range(1, 10_000)] = 50
    """How many of them wait for an answer at any time."""
    messages: Count = 200
    """Questions in all, the pages taking turns."""
    max_tokens: Annotated[int, Range(1, 1024)] = 16
    """Tokens of an answer at most."""
    out: Path | None = None
    """A JSON file to store the result in, with the hardware; one of this script's is replaced."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.talking > self.sockets:
            raise InputError(f"talking must be at most sockets, {self.sockets}, got {self.talking}")


def main(config: Config) -> None:
    """Do it, print what was seen, and store it.

    Raises:
        InputError: if the server cannot be reached.
    """
    if config.out is not None:
        check_output_file(config.out, overwrite=True, is_ours=_is_ours)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request
    result = asyncio.run(soak(config))
    memory = result["memory_mib"]
    sys.stdout.write(
        f"{result['opened']} of {config.sockets} sockets opened in {result['seconds_to_open']:.1f} s; "
        f"{result['complete']} of {config.messages} answers complete in {result['seconds']:.0f} s, "
        f"{result['failed']} failed; the server's memory: {memory[0]:.0f} MiB at first, "
        f"{memory[len(memory) // 4]:.0f} after a quarter, {memory[-1]:.0f} in the end\n"
    )
    if config.out is not None:
        settings = {name: value for name, value in asdict(config).items() if name not in ("out", "url")}
        with write_atomically(config.out) as file:
            file.write(json.dumps({"machine": describe(), "soak": settings, "result": result}, indent=1).encode())


async def soak(config: Config) -> dict[str, Any]:
    """Open the pages, let them talk, close them, and return what was seen."""
    import httpx

    pages = [_Page(config) for _ in range(config.sockets)]
    gate = asyncio.Semaphore(OPENING)

    async def opened(page: _Page) -> bool:
        async with gate:
            return await page.open()

    before = time.perf_counter()
    if not await pages[0].open():
        raise InputError(f"{config.url} opened no page: is it a chat server that nobody logs in to?")
    n_opened = 1 + sum(await asyncio.gather(*map(opened, pages[1:])))
    seconds_to_open = time.perf_counter() - before
    talkers = [page for page in pages if page.is_open]
    numbers = iter(range(config.messages))
    is_complete: list[bool] = []
    memory: list[float] = []
    async with httpx.AsyncClient() as client:

        async def talk() -> None:
            for number in numbers:
                if number % max(config.messages // SAMPLES, 1) == 0:
                    memory.append(await _memory(client, config.url))
                is_complete.append(await talkers[number % len(talkers)].ask())

        before = time.perf_counter()
        await asyncio.gather(*(talk() for _ in range(config.talking)))
        seconds = time.perf_counter() - before
        memory.append(await _memory(client, config.url))
    await asyncio.gather(*(page.close() for page in pages))
    return {
        "opened": n_opened,
        "seconds_to_open": seconds_to_open,
        "complete": sum(is_complete),
        "failed": config.messages - sum(is_complete),
        "seconds": seconds,
        "memory_mib": memory,
    }


class _Page:
    """A browser's page, as far as the server can tell."""

    def __init__(self, config: Config) -> None:
        import socketio

        self.config = config
        self.is_open = False
        self.streamed = ""
        self.finished: dict[str, Any] = {}
        self._ended = asyncio.Event()
        self._busy = asyncio.Lock()
        self.socket = socketio.AsyncClient(reconnection=False)
        self.socket.on("*", self._take)

    async def _take(self, event: str, data: Any = None) -> None:
        if event == "stream_start":
            self.streamed = data["output"]
        elif event == "stream_token":
            self.streamed = data["token"] if data["isSequence"] else self.streamed + data["token"]
        elif event in ("update_message", "new_message") and data["type"] == "assistant_message":
            self.finished = data
        elif event == "task_end":
            self._ended.set()

    async def open(self) -> bool:
        """Log in and open the socket; return whether that went well."""
        import httpx
        from socketio.exceptions import ConnectionError as SocketError

        try:
            async with httpx.AsyncClient(base_url=self.config.url, timeout=60) as client:
                cookies = (await client.post("/auth/header")).raise_for_status().cookies
            header = "; ".join(f"{name}={value}" for name, value in cookies.items())
            auth = {"clientType": "webapp", "sessionId": str(uuid.uuid4()), "threadId": "", "userEnv": "{}"}
            await self.socket.connect(
                self.config.url, socketio_path="/ws/socket.io", transports=["websocket"], auth=auth, wait_timeout=60,
                headers={"Cookie": header, "Origin": self.config.url},
            )  # fmt: skip
        except (httpx.HTTPError, SocketError) as error:
            log.warning("a page did not open: %s", error)
            return False
        await self.socket.emit("connection_successful")
        await self.socket.emit("chat_settings_change", {"max_new_tokens": self.config.max_tokens})
        self.is_open = True
        return True

    async def ask(self) -> bool:
        """Ask, and return whether the answer came, and came as a whole."""
        async with self._busy:
            self.streamed, self.finished = "", {}
            message = {"id": str(uuid.uuid4()), "output": QUESTION, "modes": {}}
            await self.socket.emit("client_message", {"message": message})
            try:
                async with asyncio.timeout(SECONDS_OF_AN_ANSWER):
                    while not self.finished.get("metadata", {}).get("reason"):
                        self._ended.clear()  # other ends are those of the greeting
                        await self._ended.wait()
            except TimeoutError:
                return False
            good = self.finished["metadata"]["reason"] in ("stop", "length")
            return good and self.finished["output"] == self.streamed

    async def close(self) -> None:
        """Close it as a browser does, for good."""
        if self.socket.connected:
            await self.socket.emit("clear_session")
            await self.socket.disconnect()
        if self.socket.eio.http is not None:
            await self.socket.eio.http.close()


async def _memory(client: Any, url: str) -> float:
    """Return the MiB that the server's process holds."""
    lines = (await client.get(f"{url}/metrics", timeout=60)).text
    return float(_number(lines, "process_resident_memory_bytes")) / 2**20


def _number(lines: str, name: str) -> str:
    found: Iterator[re.Match[str]] = re.finditer(rf"^{name} (\S+)$", lines, re.MULTILINE)
    return next((match[1] for match in found), "nan")


def _is_ours(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and {"soak", "result"} <= content.keys()


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
