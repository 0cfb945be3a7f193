"""Start, stop and look at GPU workspaces on Modal: VS Code in the browser, this project ready to run.

    python -m deployment.workspace up --gpu L40S
    python -m deployment.workspace status
    python -m deployment.workspace down

`up` prints what an hour costs before anything starts. A workspace stops by itself when nobody uses it, when its time is
over, and when its budget is spent; what is in /workspace stays. See modal_workspace.py for what runs there.
"""

import logging
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import modal

from deployment import modal_workspace
from deployment.cloud import deploy, listing, one_line_errors, show_logs, unfinished
from deployment.costs import dollars_per_hour, parse_gpus
from deployment.modal_workspace import BACKUP_PASSWORD, PASSWORD, STATES, Settings
from deployment.monitor import describe, duration
from utils.files import InputError
from utils.ranges import Range, check_ranges

log = logging.getLogger(__name__)

PASSWORD_BYTES = 16  # of randomness: beyond guessing
GIB = 2**30
PATIENCE = 90  # seconds that `down` waits for a workspace to back up and go, before it is made to
PUBLIC_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp\d+|sk-\S+) [A-Za-z0-9+/=]+( .*)?")


@dataclass(frozen=True)
class Config:
    """Start, stop or look at a GPU workspace: up, down, status, url or logs."""

    action: Literal["up", "down", "status", "url", "logs"] = "status"
    """What to do."""
    name: str = "main"
    """Which workspace; each has a volume and a password of its own."""
    gpu: str = "L40S"
    """Kind and number, as in L40S or H100:8; or none."""
    cpus: Annotated[float, Range(0.125, 64)] = 8
    """Physical processor cores."""
    memory: Annotated[float, Range(0.5, 336)] = 32
    """GiB."""
    volume: Annotated[float, Range(1, 10**6)] = 100
    """GiB that /workspace may hold; once it holds more, the workspace does not start again."""
    idle: Annotated[float, Range(1, 1440)] = 30
    """Minutes without work for the GPU, without a key pressed in a terminal, and without a window of the editor, after
    which it stops. A window that is left open counts as use."""
    hours: Annotated[float, Range(0.1, 23.5)] = 8
    """Hours after which it stops in any case. Modal allows 24."""
    budget: Annotated[float, Range(0, 10**6, open_below=True)] = 20
    """Dollars after which it stops in any case."""
    repository: str = ""
    """A public https:// address to clone into /workspace/project; by default this project is copied there."""
    ssh_key: Path | None = None
    """A public key, as ~/.ssh/id_ed25519.pub, whose owner may log in by SSH. Passwords are never taken."""
    wait: Annotated[float, Range(0, 3600)] = 600
    """Seconds that `up` waits for the address. The first start builds the image, which takes some minutes."""

    def __post_init__(self) -> None:
        check_ranges(self)
        parse_gpus(self.gpu)
        if not re.fullmatch(r"[a-z0-9](-?[a-z0-9]){0,30}", self.name):
            raise InputError(f"name must be small letters, digits and single dashes, 32 at most, got {self.name!r}")
        if self.repository and not re.fullmatch(r"https://[^\s@]+", self.repository):
            raise InputError(
                f"repository must be a public https:// address, without a password in it, got {self.repository!r}"
            )


def settings_of(config: Config) -> Settings:
    """Return what the container is told.

    Raises:
        InputError: if the SSH key is not a public key.
    """
    hourly = dollars_per_hour(parse_gpus(config.gpu), config.cpus, config.memory)
    return Settings(
        name=config.name, gpu=config.gpu, dollars_per_hour=hourly, idle_minutes=config.idle, hours=config.hours,
        budget=config.budget, volume_gib=config.volume, repository=config.repository,
        ssh_key=_public_key(config.ssh_key) if config.ssh_key else "",
    )  # fmt: skip


def _public_key(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not PUBLIC_KEY.fullmatch(text):
        raise InputError(f"{path} is not one SSH public key: give the file that ends in .pub")
    return text


def states() -> modal.Dict:
    """Return where workspaces say how they are: NAME is what the container says, (NAME, "call") what we asked for."""
    return modal.Dict.from_name(STATES, create_if_missing=True)


def running(name: str) -> modal.FunctionCall | None:
    """Return the call that is a workspace, if it has not ended."""
    return unfinished(states().get((name, "call")))


def up(config: Config, *, settings: Settings | None = None) -> str:
    """Start a workspace, and return its address.

    Args:
        config: what was asked for.
        settings: what the container is told, if not what follows from that.

    Raises:
        InputError: if it is up already or its volume is full, before anything starts; if it does not come up.
    """
    settings = settings or settings_of(config)
    log.info(
        "%s, %g cores and %g GiB cost $%.2f per hour; it stops after %g idle minutes, %g hours, or $%g: $%.2f at most",
        config.gpu, config.cpus, config.memory, settings.dollars_per_hour, config.idle, config.hours, config.budget,
        min(config.budget, settings.dollars_per_hour * config.hours),
    )  # fmt: skip
    with one_line_errors("start a workspace"):
        _check_down(config.name)
        volume = modal.Volume.from_name(f"workspace-{config.name}", create_if_missing=True)
        stored = sum(entry.size for entry in listing(volume, ""))
        if stored > config.volume * GIB:
            raise InputError(
                f"the volume of workspace {config.name} is full: {stored / GIB:,.1f} of {config.volume:g} GiB; "
                "delete something (modal volume rm), or allow more with --volume"
            )
        app, _ = modal_workspace.make_app(
            settings, cpus=config.cpus, memory_gib=config.memory, secret=secret_of(config.name)
        )
        deploy(app)
        _check_down(config.name)  # another `up` may have been faster in the minutes that this takes
        states().pop(config.name, None)
        states().pop((config.name, "stop"), None)
        call = modal.Function.from_name(app.name, "serve").spawn(modal_workspace.sent(settings))
        states()[config.name, "call"] = call.object_id
        return _wait_for_url(config, call)


def _check_down(name: str) -> None:
    if running(name):
        raise InputError(f"workspace {name} is up already: see status, or choose another --name")


def _wait_for_url(config: Config, call: modal.FunctionCall) -> str:
    until = time.monotonic() + config.wait
    while time.monotonic() < until:
        if url := (states().get(config.name) or {}).get("url"):
            log.info("workspace %s is up: %s", config.name, url)
            return url
        try:
            raise InputError(f"it ended at once: {call.get(timeout=0.5)}")
        except TimeoutError:
            continue
        except Exception as error:  # the container's own, or what Modal says of it
            raise InputError(f"workspace {config.name} did not start: {error}") from error
    raise InputError(f"workspace {config.name} is not up after {config.wait:g} seconds: see logs; down gives it up")


def secret_of(name: str) -> modal.Secret:
    """Return the secret with a workspace's passwords; if there is none, make one, and show them this once."""
    secret = modal.Secret.from_name(f"workspace-{name}", required_keys=[PASSWORD, BACKUP_PASSWORD])
    try:
        secret.hydrate()
    except modal.exception.NotFoundError as error:
        if "key" in str(error).replace(f"workspace-{name}", ""):  # it is there, and lacks one
            raise
        password = secrets.token_urlsafe(PASSWORD_BYTES)
        passwords = {PASSWORD: password, BACKUP_PASSWORD: secrets.token_urlsafe(PASSWORD_BYTES)}
        modal.Secret.objects.create(f"workspace-{name}", passwords)
        print(f"The password of workspace {name}, which is shown only now: {password}")
        print(f"That of its backups, without which nobody can read them: {passwords[BACKUP_PASSWORD]}")
        secret = modal.Secret.from_name(f"workspace-{name}", required_keys=[PASSWORD, BACKUP_PASSWORD])
    return secret


def down(config: Config) -> None:
    """Stop a workspace: it backs up first; if it takes too long, it is made to stop.

    Raises:
        InputError: if it is not up.
    """
    with one_line_errors("stop a workspace"):
        call = _running(config.name)
        states()[config.name, "stop"] = True
        try:
            reason = call.get(timeout=PATIENCE)
        except TimeoutError:
            call.cancel(terminate_containers=True)
            reason = f"made to stop after {PATIENCE} seconds, and perhaps not backed up"
        spent = (states().get(config.name) or {}).get("spent", 0.0)
        log.info("workspace %s stopped (%s); it cost about $%.2f", config.name, reason, spent)


def status(config: Config) -> dict[str, Any]:
    """Print how a workspace is, and return it."""
    with one_line_errors("look at a workspace"):
        said = states().get(config.name) or {}
        call = running(config.name)
    if call is None:
        reason = f" ({said['reason']})" if "reason" in said else ""
        print(f"workspace {config.name} is not up{reason}")
        return {"state": "down"}
    print(f"workspace {config.name} is {said.get('state', 'starting')}: {said.get('url', 'no address yet')}")
    if "spent" in said:
        print(describe(said))
        print(said.get("backup") or "no backup yet")
        print(f"heard from {duration(time.time() - said['seen'])} ago")
    return {"state": "starting", **said}


def url(config: Config) -> str:
    """Print a workspace's address, and how to reach it by SSH if that was asked for.

    Raises:
        InputError: if it is not up.
    """
    with one_line_errors("look at a workspace"):
        _running(config.name)
        said = states().get(config.name) or {}
    if "url" not in said:
        raise InputError(f"workspace {config.name} is still starting")
    print(said["url"])
    if "ssh" in said:
        print(said["ssh"])
    return said["url"]


def logs(config: Config) -> None:
    """Print what the newest run of a workspace has said; if it is up, also what it says until Ctrl-C.

    Raises:
        InputError: if it never ran.
    """
    with one_line_errors("read a workspace's logs"):
        asked = states().get((config.name, "call"))
        if not asked:
            raise InputError(f"workspace {config.name} has never run")
        call = unfinished(asked)
        show_logs(call.logs.stream() if call else modal.FunctionCall.from_id(asked).logs.tail(1000))


def _running(name: str) -> modal.FunctionCall:
    call = running(name)
    if call is None:
        raise InputError(f"workspace {name} is not up")
    return call


def main(config: Config) -> None:
    """Do what was asked for."""
    {"up": up, "down": down, "status": status, "url": url, "logs": logs}[config.action](config)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, first="action")
