"""The server: pages, history and API of the chat from one process.

    python -m chat_ui.server --host 127.0.0.1 --port 8000 --runs runs

On this machine's own address nobody logs in. On any other it refuses to start until there are accounts
(`python -m chat_ui.accounts --add NAME`) or OAuth is set up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chat_ui import api, database, export, frontend, guard
from chat_ui.accounts import Accounts
from chat_ui.app import App
from chat_ui.audit import Audit
from chat_ui.engine import Models, Options, Service
from chat_ui.filters import load_filter
from chat_ui.health import Health, Uptime
from chat_ui.history import History
from chat_ui.limits import RateLimit
from chat_ui.logins import Logins
from chat_ui.security import Security
from utils.command_line import run
from utils.files import InputError
from utils.locks import alone
from utils.outputs import check_writable
from utils.ranges import Count, Range, check_ranges

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI
    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

REQUESTS_PER_MESSAGE = 10  # that a page sends, at most: its parts, the list of threads


@dataclass(frozen=True)
class Config:
    """Serve the checkpoints of this project, and GPT-2, to browsers and to programs."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 for all. Other machines need a login, see `python -m chat_ui.accounts`."""
    port: Annotated[int, Range(1, 65_535)] = 8000
    """The port to listen on."""
    runs: Path = Path("runs")
    """A folder with run directories, at any depth; each is a model to talk to."""
    gpt2: bool = True
    """Offer GPT-2 too, which is downloaded when it is first chosen."""
    state: Path = Path("runs/chat")
    """A folder for what the server keeps: history, accounts, audit log. Each server needs one of its own."""
    accounts: Path | None = None
    """The file of accounts, which servers may share; None: accounts.json in the state folder."""
    origin: tuple[str, ...] = ()
    """Addresses under which browsers reach the server behind a proxy, such as https://chat.example.org."""
    trust_proxy: str | None = None
    """Addresses or networks of proxies in front, such as 127.0.0.1,10.1.0.0/16, that say who asks; *: anybody may."""
    oauth_allow: tuple[str, ...] = ()
    """Names that an OAuth provider may vouch for, such as '*@example.org'; the provider is set up by OAUTH_..."""
    requests_per_minute: Count = 100
    """Messages, and requests to the API, that a user may send per minute."""
    content_filter: str | None = None
    """A function, as module:function, that is given a text and returns why it is refused, or None."""
    audit_texts: bool = False
    """Write into the audit log what was said, too."""
    memory_mib: Annotated[int, Range(1, 2**30)] | None = None
    """MiB of weights to hold in memory at most; None: half of the machine's."""
    rows: Annotated[int, Range(1, 1024)] = 16
    """Texts that one model writes at the same time; further ones wait."""
    queue: Annotated[int, Range(0, 100_000)] = 64
    """Requests that may wait; further ones are refused."""
    fallback: str | None = None
    """The name of a model that answers while another one is broken."""
    shutdown_seconds: Annotated[float, Range(0, 3600)] = 20
    """How long answers that are being written may go on when the server is told to end."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for origin in self.origin:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise InputError(f"origin must look like https://chat.example.org, without a path, got {origin!r}")
        if self.trust_proxy not in (None, "*"):
            for address in self.trust_proxy.split(","):
                _check_network(address.strip())


def _check_network(address: str) -> None:
    try:
        ipaddress.ip_network(address)
    except ValueError as error:
        raise InputError(
            f"trust_proxy must hold addresses, or networks such as 10.1.0.0/16, or be *: {error}"
        ) from error


def main(config: Config) -> None:
    """Serve until the process is told to end; then finish what is being written."""
    check_writable(config.state, "--state")
    _check_port(config)
    with alone(config.state, "serving from", "--state"):
        config.state.mkdir(mode=0o700, exist_ok=True)  # what people write is for nobody else on this machine
        app = build(config)
        logger.info("The chat is at %s", _address(config))
        asyncio.run(_serve(_settings(config, app), app.state.chat, config.shutdown_seconds))


def _settings(config: Config, app: ASGIApp) -> uvicorn.Config:
    import uvicorn

    return uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_level="warning",
        ws_max_size=2 * 500_000,
        proxy_headers=config.trust_proxy is not None,
        forwarded_allow_ips=config.trust_proxy,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def build(config: Config, models: Models | None = None, service: Service | None = None) -> FastAPI:
    """Return the whole app, as an ASGI server takes it.

    Args:
        config: of the command line.
        models: what can be talked to; by default the runs and GPT-2.
        service: the engine; by default one of the models.

    Raises:
        InputError: if something in the configuration cannot be right.
    """
    from fastapi import FastAPI

    refuse = load_filter(config.content_filter) if config.content_filter else None
    engine = database.connect(os.environ.get("DATABASE_URL"), config.state / "history.sqlite")
    history = History(engine)
    audit = Audit(config.state / "audit.jsonl", texts=config.audit_texts)
    accounts = Accounts(config.accounts or config.state / "accounts.json")
    logins = Logins(config.host, accounts, config.oauth_allow, history, audit)
    frontend.prepare(config.state)
    frontend.load()
    logins.install()
    models = models or Models(config.runs, gpt2=config.gpt2, memory=config.memory_mib and config.memory_mib * 2**20)
    service = service or Service(models, Options(rows=config.rows, queue=config.queue), fallback=config.fallback)
    chat = App(service, models, history, audit, RateLimit(config.requests_per_minute), refuse)
    chat.install()
    health = Health(chat, service, logins, Uptime(config.state / "uptime.json"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await _open(history)
        watching = asyncio.create_task(health.watch())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        health.uptime.beat()
        service.close()
        await history.close()
        audit.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.chat = chat
    _add_routes(app, config, chat, logins, health)
    return app


def _add_routes(app: FastAPI, config: Config, chat: App, logins: Logins, health: Health) -> None:
    from chainlit.server import sio
    from starlette.middleware.gzip import GZipMiddleware

    guard.install(sio, chat, logins)
    app.include_router(health.router)
    app.include_router(export.router(chat.history, logins))
    authorize = api.gate(logins.api_user, chat.rate, chat.audit)
    app.include_router(api.router(chat.service, authorize=authorize, refuse=chat.refuse))
    app.router.routes.extend(frontend.routes())
    app.add_middleware(GZipMiddleware, minimum_size=1024)
    app.add_middleware(
        Security,
        logins=logins,
        origins=config.origin,
        requests_per_minute=config.requests_per_minute * REQUESTS_PER_MESSAGE,
    )


async def _open(history: History) -> None:
    """Bring the database of the history up to date; a server whose database is gone starts nevertheless."""
    from chat_ui.history import FAULTS, GONE

    try:
        await database.migrate(history.engine)
    except FAULTS as error:
        logger.warning("the history cannot be opened: %s", " ".join(str(error).split())[:300])
        history.problem = GONE


def _address(config: Config) -> str:
    """Return what to type into a browser."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return config.origin[0] if config.origin else f"http://{host}:{config.port}"


def _check_port(config: Config) -> None:
    """Check that nobody else listens there, before a model is loaded."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except (OSError, UnicodeError) as error:
            raise InputError(f"cannot listen on {config.host} port {config.port}: {error}") from error


async def _serve(settings: uvicorn.Config, chat: App, seconds: float) -> None:
    """Serve until the process is told to end; answers that are being written are then finished and saved first."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Take the signals in the event loop, and do not send them again in the end: to end is no failure.

            A second one changes nothing: uvicorn would leave out the end of the app, and show a traceback.
            """
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, setattr, self, "should_exit", True)
            yield

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logger.info("Ending; answers that are being written get up to %g seconds", seconds)
            await chat.drain(seconds)
            await super().shutdown(sockets)

    await Server(settings).serve()


if __name__ == "__main__":
    run(main, Config)
