"""How many people a server bears: so many users at once, each of whom asks, reads the answer, and asks again.

    python -m chat_ui.load --users 50                       # starts a server of its own on this machine
    python -m chat_ui.load --users 1 50 200 --pause 5       # each user reads for about five seconds
    python -m chat_ui.load --users 50 --url http://127.0.0.1:8000/v1

Answers are streamed over the API, one connection per user. The users and the server share this machine's cores.
"""

import asyncio
import json
import logging
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from utils.files import InputError, read_json, write_atomically
from utils.hardware import describe
from utils.measuring import markdown_table, spread
from utils.outputs import check_output_file
from utils.ranges import Count, Range, check_ranges

log = logging.getLogger(__name__)

SECONDS_TO_START = 60.0
SECONDS_OF_AN_ANSWER = 600.0
QUESTIONS = (
    "It is a truth universally acknowledged, that",
    "Emma was",
    "Mr. Knightley said to her,",
    "She had been reading the letter when",
    "The garden at Mansfield",
    "Nobody in the room could",
)


@dataclass(frozen=True)
class Config:
    """Let many users talk to a model at once, and print how long they wait."""

    users: tuple[Annotated[int, Range(1, 10_000)], ...] = (50,)
    """How many at once; several numbers are measured one after the other."""
    messages: Count = 3
    """Questions of each user."""
    max_tokens: Count = 40
    """Tokens of an answer at most."""
    pause: Annotated[float, Range(0, 3600)] = 0.0
    """Seconds that a user reads, in the mean, before the next question; 0: all always want something."""
    url: str | None = None
    """The API of a server that runs, such as http://127.0.0.1:8000/v1; by default one is started for this."""
    key: str = "none"
    """The key for that server, if it wants one."""
    runs: Path = Path("runs")
    """The folder of runs for a server that is started."""
    model: str | None = None
    """Which model; by default the first that the server offers."""
    out: Path | None = None
    """A JSON file to store the measurements in, with the hardware; one of this script's is replaced."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.users:
            raise InputError("users must name at least one number")


@dataclass
class Seen:
    """What the users of one measurement saw."""

    first_token: list[float] = field(default_factory=list)
    """Seconds from each question to the first token."""
    response: list[float] = field(default_factory=list)
    """Seconds from each question to the end of its answer."""
    tokens: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """How often which error came."""


def main(config: Config) -> list[dict[str, Any]]:
    """Measure, print a table, and return its rows.

    Raises:
        InputError: if the server cannot be reached or started, or has no such model.
    """
    if config.out is not None:
        check_output_file(config.out, overwrite=True, is_ours=_is_ours)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request
    with _server(config) as url:
        rows = [asyncio.run(_measure(config, url, users)) for users in config.users]
    sys.stdout.write(f"{table(rows)}\n")
    if config.out is not None:
        names = ("users", "messages", "max_tokens", "pause", "model")
        settings = {name: getattr(config, name) for name in names}
        with write_atomically(config.out) as file:
            file.write(json.dumps({"machine": describe(), "load": settings, "rows": rows}, indent=1).encode())
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return measurements in Markdown."""
    columns = ["users:", "answers:", "failed:", "first token, ms:", "p95:", "answer, ms:", "p95:", "tokens/s:"]
    cells = []
    for row in rows:
        counts = [f"{row[name]:,}" for name in ("users", "answers", "failed")]
        first, whole = row["first_token_ms"], row["response_ms"]
        times = [f"{value:,.0f}" for value in (first["median"], first["p95"], whole["median"], whole["p95"])]
        cells.append([*counts, *times, f"{row['tokens_per_second']:,.0f}"])
    return markdown_table(columns, cells)


def _is_ours(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and {"load", "rows"} <= content.keys()


async def _measure(config: Config, url: str, users: int) -> dict[str, Any]:
    """Let so many users talk; return a row of the table."""
    import httpx

    seen = Seen()
    limits = httpx.Limits(max_connections=users, max_keepalive_connections=users)
    headers = {"Authorization": f"Bearer {config.key}"}
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=SECONDS_OF_AN_ANSWER) as client:
        model = await _model(client, url, config.model)
        await _ask(client, url, model, QUESTIONS[0], 1, Seen())  # which loads the model
        before = time.perf_counter()
        await asyncio.gather(*(_user(client, url, model, config, number, seen) for number in range(users)))
        seconds = time.perf_counter() - before
    if not seen.response:
        raise InputError(f"no question was answered: {'; '.join(seen.failures)}")
    for failure, times in seen.failures.items():
        log.warning("%s times: %s", times, failure)
    return {
        "users": users,
        "model": model,
        "answers": len(seen.response),
        "failed": sum(seen.failures.values()),
        "failures": seen.failures,
        "first_token_ms": _milliseconds(seen.first_token),
        "response_ms": _milliseconds(seen.response),
        "tokens_per_second": seen.tokens / seconds,
        "seconds": seconds,
    }


async def _model(client: Any, url: str, wanted: str | None) -> str:
    """Return the model to talk to, which the server must have."""
    import httpx

    try:
        answer = await client.get(f"{url}/models")
        offered = [model["id"] for model in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise InputError(f"{url} is not the API of a chat server: {error}") from error
    if not offered or (wanted is not None and wanted not in offered):
        raise InputError(f"the server has no model {wanted or ''}: it offers {', '.join(offered) or 'none'}")
    return wanted or offered[0]


async def _user(client: Any, url: str, model: str, config: Config, number: int, seen: Seen) -> None:
    """Ask, read, and ask again with what was said so far."""
    chance = random.Random(number)
    text = ""
    for _ in range(config.messages):
        if config.pause:
            await asyncio.sleep(chance.uniform(0, 2 * config.pause))
        text += ("\n" if text else "") + chance.choice(QUESTIONS)
        text += await _ask(client, url, model, text, config.max_tokens, seen)


async def _ask(client: Any, url: str, model: str, text: str, max_tokens: int, seen: Seen) -> str:
    """Ask once, note how long it took, and return the answer; an error is counted."""
    import httpx

    body = {
        "model": model, "prompt": text, "max_tokens": max_tokens, "temperature": 0.8, "top_k": 50,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    before = time.perf_counter()
    answer, first, error = "", None, ""
    try:
        async with client.stream("POST", f"{url}/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    error = error or ("" if response.status_code == 200 else f"{response.status_code} {line[:200]}")
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                error = error or chunk.get("error", {}).get("message", "")
                if chunk.get("choices"):
                    first = first or time.perf_counter() - before
                    answer += chunk["choices"][0]["text"]
                elif "usage" in chunk:
                    seen.tokens += chunk["usage"]["completion_tokens"]
    except httpx.HTTPError as problem:
        error = f"{type(problem).__name__} {problem}"
    if error:
        seen.failures[error] = seen.failures.get(error, 0) + 1
    elif first is not None:
        seen.first_token.append(first)
        seen.response.append(time.perf_counter() - before)
    return answer


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    values = sorted(1000 * second for second in seconds)
    return {**spread(values), "p95": values[min(len(values) - 1, int(0.95 * len(values)))]}


@contextmanager
def _server(config: Config) -> Iterator[str]:
    """Yield the address of the API: of the server that is named, or of one that is started, and ended afterwards."""
    if config.url is not None:
        yield config.url.rstrip("/")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as state:
        limits = ["--requests-per-minute", "1000000", "--queue", "10000", "--shutdown-seconds", "0"]
        command = [sys.executable, "-m", "chat_ui.server", "--port", str(port), "--runs", str(config.runs)]
        with tempfile.TemporaryFile() as log_file:
            process = subprocess.Popen([*command, "--state", state, *limits], stderr=log_file)
            try:
                _wait_for(process, port)
                yield f"http://127.0.0.1:{port}/v1"
            except InputError as error:
                log_file.seek(0)
                said = log_file.read()[-500:].decode(errors="replace").strip().splitlines()
                raise InputError(f"{error}{f': {said[-1]}' if process.poll() and said else ''}") from error
            finally:
                process.terminate()
                process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until somebody listens on a port.

    Raises:
        InputError: if the process ends before, or takes too long.
    """
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise InputError("the server did not start")


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
