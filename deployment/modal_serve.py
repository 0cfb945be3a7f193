"""Serve the chat app and its HTTP API on Modal: more machines for more people, none for nobody.

    python -m deployment.modal_serve up --accounts runs/chat/accounts.json
    python -m deployment.modal_serve status
    python -m deployment.modal_serve down

`@app.server` carries it: Modal starts machines when more people are connected than `--users` per machine, and stops
them when nobody is. It is open to the network ("unauthenticated" in Modal's words), because a browser cannot send the
headers that Modal would ask for; the chat app asks for a login instead, and does not start without accounts.

Modal can keep a visitor on one machine (`@modal.sessioned()`), but then every request must carry a header that no
browser's WebSocket can send. So one connection stays on its machine, and what must outlive it is in the history: on the
volume for one machine, in the PostgreSQL that the secret's DATABASE_URL names for several.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import modal

from deployment.cloud import HOME, add_project, base_image, deploy, listing, machine, one_line_errors
from deployment.costs import dollars_per_hour, parse_gpus
from deployment.job import VOLUME
from utils.files import InputError, read_json
from utils.ranges import Range, check_ranges

log = logging.getLogger(__name__)

APP = "chat"
STATE = Path("/state")
STATE_VOLUME = "chat-state"
ACCOUNTS = "chat/accounts.json"  # of that volume
PORT = 8000
HEALTH = "/health"
SHARED_KEYS = ["DATABASE_URL", "CHAINLIT_AUTH_SECRET"]  # what several machines must have in common
COMMAND = (
    "python", "-m", "chat_ui.server", "--host", "0.0.0.0", "--port", str(PORT), "--runs", str(VOLUME / "runs"),
    "--state", str(STATE / "chat"), "--no-gpt2",
)  # fmt: skip
GOODBYE = 30  # seconds for answers that are being written


@dataclass(frozen=True)
class Config:
    """Serve the chat on Modal: up, down or status."""

    action: Literal["up", "down", "status"] = "status"
    """What to do."""
    gpu: str = "L4"
    """Kind and number, as in L4 or L40S; or none."""
    cpus: Annotated[float, Range(0.125, 64)] = 4
    """Physical processor cores."""
    memory: Annotated[float, Range(0.5, 336)] = 16
    """GiB."""
    users: Annotated[int, Range(1, 1000)] = 16
    """Connections per machine; with more, another one is started."""
    most_users: Annotated[int, Range(1, 10_000)] = 64
    """Connections that a machine takes at most; further ones are refused (429) until another one is up."""
    least_machines: Annotated[int, Range(0, 100)] = 0
    """Machines that are up even if nobody comes. 0: the first visitor waits for one."""
    most_machines: Annotated[int, Range(1, 100)] = 1
    """Machines at most. Several need a secret with DATABASE_URL and CHAINLIT_AUTH_SECRET."""
    idle: Annotated[int, Range(2, 3600)] = 300
    """Seconds without visitors after which a machine stops."""
    volume: str = "language-models"
    """The volume with runs/, which is only read."""
    accounts: Path | None = None
    """The accounts file that `python -m chat_ui.accounts` has made, to be sent along."""
    secret: str | None = None
    """A Modal secret whose variables the server gets."""
    snapshot: bool = False
    """Have machines start from a snapshot of their memory. Modal calls this alpha. It is taken before the chat's server
    starts, which must see the GPU: so it saves only the start of Python and of what Modal imports."""

    def __post_init__(self) -> None:
        check_ranges(self)
        parse_gpus(self.gpu)
        if self.most_users < self.users:
            raise InputError(f"most_users must be at least users, {self.users}, got {self.most_users}")
        if self.least_machines > self.most_machines:
            raise InputError(
                f"least_machines must be at most most_machines, {self.most_machines}, got {self.least_machines}"
            )
        if self.most_machines > 1 and self.secret is None:
            raise InputError(f"several machines need --secret with {' and '.join(SHARED_KEYS)}")


class ChatServer:
    """What runs on each machine: the chat's own server, started and ended with it."""

    @modal.enter()
    def start(self) -> None:
        """Start the server, and wait until it answers; Modal sends nobody before.

        Raises:
            RuntimeError: if it ends, as it does without accounts, so that the reason is in the logs.
        """
        modal.Volume.from_name(os.environ["CHAT_VOLUME"]).reload()
        command = [sys.executable if part == "python" else part for part in json.loads(os.environ["CHAT_COMMAND"])]
        if url := os.environ.get("CHAT_URL"):
            command += ["--origin", url]
        self.process = subprocess.Popen(command, cwd=HOME, start_new_session=True)
        while not answers(f"http://127.0.0.1:{PORT}{HEALTH}"):
            if self.process.poll() is not None:
                raise RuntimeError(f"the chat server ended with exit status {self.process.returncode}")
            time.sleep(0.2)

    @modal.exit()
    def stop(self) -> None:
        """Have the server finish what it is writing, and end it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GOODBYE)


def answers(url: str) -> bool:
    """Return whether an address answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def make_app(
    config: Config, *, url: str = "", command: tuple[str, ...] = COMMAND
) -> tuple[modal.App, modal.server.Server]:
    """Return the app, and its server."""
    app = modal.App(APP, include_source=False)
    keys = SHARED_KEYS if config.most_machines > 1 else []
    runs = modal.Volume.from_name(config.volume).with_mount_options(read_only=True)
    served = app.server(
        image=add_project(base_image()),
        **machine(config.gpu, config.cpus, config.memory),
        env={"CHAT_VOLUME": config.volume, "CHAT_COMMAND": json.dumps(command), "CHAT_URL": url},
        secrets=[modal.Secret.from_name(config.secret, required_keys=keys)] if config.secret else [],
        volumes={str(VOLUME): runs, str(STATE): modal.Volume.from_name(STATE_VOLUME, create_if_missing=True)},
        target_concurrency=config.users,
        max_concurrency=config.most_users,
        min_containers=config.least_machines,
        max_containers=config.most_machines,
        scaledown_window=config.idle,
        startup_timeout=300,
        port=PORT,
        unauthenticated=True,
        exit_grace_period=GOODBYE,
        enable_memory_snapshot=config.snapshot,
    )(ChatServer)
    return app, served


def up(config: Config, *, command: tuple[str, ...] = COMMAND) -> str:
    """Deploy the server, or what has changed of it; return its address.

    Raises:
        InputError: if the accounts cannot be read, or there are none; if the volume or the secret is not there.
    """
    hourly = dollars_per_hour(parse_gpus(config.gpu), config.cpus, config.memory)
    log.info(
        "a machine costs $%.2f per hour while it is up; %d to %d of them cost $%.2f to $%.2f per hour",
        hourly, config.least_machines, config.most_machines, hourly * config.least_machines,
        hourly * config.most_machines,
    )  # fmt: skip
    if config.accounts is not None:
        read_json(config.accounts)
    with one_line_errors("serve the chat"):
        modal.Volume.from_name(config.volume).hydrate()
        state = modal.Volume.from_name(STATE_VOLUME, create_if_missing=True)
        if config.accounts is not None:
            with state.batch_upload(force=True) as batch:
                batch.put_file(config.accounts, f"/{ACCOUNTS}", mode=0o600)
        elif config.secret is None and ACCOUNTS not in [entry.path for entry in listing(state, "chat")]:
            raise InputError(
                "nobody could log in: make accounts with python -m chat_ui.accounts --add NAME, and give them by "
                "--accounts runs/chat/accounts.json"
            )
        app, served = make_app(config, command=command)
        deploy(app)
        url = served.get_url() or ""
        # The server accepts browsers only from its own address, which Modal gives it now: once more, with that.
        app, served = make_app(config, url=url, command=command)
        deploy(app)
    log.info("the chat is at %s", url)
    return url


def down(config: Config) -> None:
    """Stop the server and all its machines; runs, history and accounts stay in their volumes.

    Raises:
        InputError: if it is not up.
    """
    with one_line_errors("stop the chat"):
        modal.Server.from_name(APP, "ChatServer").hydrate()
        modal.App.lookup(APP).stop()
    log.info("the chat is down")


def status(config: Config) -> dict[str, Any]:
    """Print whether the server is up and healthy, and return it. Asking wakes a machine, if none is up."""
    try:
        with one_line_errors("look at the chat"):
            url = modal.Server.from_name(APP, "ChatServer").get_url()
    except InputError as error:
        if "does not have it" not in str(error):
            raise
        print("the chat is down")
        return {"state": "down"}
    healthy = answers(f"{url}{HEALTH}")
    print(f"the chat is at {url}, and {'healthy' if healthy else 'does not answer'}")
    return {"state": "up", "url": url, "healthy": healthy}


def main(config: Config) -> None:
    """Do what was asked for."""
    {"up": up, "down": down, "status": status}[config.action](config)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, first="action")
