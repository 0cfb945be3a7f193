"""A workspace, from `up` to `down`: deployed to the stand-in for Modal and run there in Modal's container runtime."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import modal
import pytest

from deployment import modal_workspace, workspace
from deployment.cloud import is_hidden
from deployment.gateway import COOKIE
from deployment.modal_workspace import STATES
from deployment.monitor import Meter
from deployment.stand_in.control_plane import ControlPlane
from deployment.workspace import Config, settings_of
from utils.files import InputError

# Serves on the socket as code-server would, and says what reached it.
EDITOR = """
import asyncio, os
from aiohttp import web
async def answer(request):
    if request.headers.get("Upgrade") == "websocket":
        socket = web.WebSocketResponse(); await socket.prepare(request)
        async for message in socket: await socket.send_str(message.data.upper())
        return socket
    open("touched", "w").write(request.raw_path)
    secrets = [name for name in os.environ if "PASSWORD" in name]
    return web.json_response({"path": request.raw_path, "cookie": request.headers.get("Cookie"), "secrets": secrets,
                              "body": (await request.read()).decode(), "files": sorted(os.listdir(".")),
                              "path of modules": os.environ["PYTHONPATH"]})
app = web.Application(); app.add_routes([web.route("*", "/{path:.*}", answer)])
web.run_app(app, path="/tmp/code-server.sock", print=None)
"""


def loopback(url: str) -> str:
    """Return the address behind a tunnel, whose HTTPS the stand-in leaves out."""
    return url.replace("https://", "http://")


async def visit(url: str, password: str) -> dict[str, Any]:
    """Log in as a browser would, wrongly first, and use the editor."""
    found: dict[str, Any] = {}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def login(password: str) -> aiohttp.ClientResponse:
            return await session.post(f"{url}/login", data={"password": password}, allow_redirects=False)

        async with session.get(f"{url}/secret") as answer:
            found["stranger"] = answer.status
        async with await login("wrong") as answer:
            found["wrong"] = (answer.status, answer.cookies.get(COOKIE))
        async with await login(password) as answer:
            cookie = answer.cookies[COOKIE]
            found["right"] = (answer.status, cookie["httponly"], cookie["secure"], cookie["samesite"])
        headers = {"Cookie": f"{COOKIE}={cookie.value}; theirs=1"}
        async with session.post(f"{url}/a%20b?c=d", headers=headers, data=b"text") as answer:
            found["page"] = await answer.json()
        origin = {**headers, "Origin": url}
        async with session.ws_connect(f"{url}/socket", headers=origin) as socket:
            await socket.send_str("hello")
            found["socket"] = await socket.receive_str()
        async with session.get(f"{url}/", headers={"Cookie": f"{COOKIE}={cookie.value[:-1]}"}) as answer:
            found["forged"] = answer.status
        try:
            await session.ws_connect(f"{url}/socket", headers={**headers, "Origin": "https://elsewhere.example"})
        except aiohttp.WSServerHandshakeError as error:
            found["other site"] = error.status
    return found


def test_up_login_and_down(
    plane: ControlPlane, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = Config(action="up", gpu="L40S", wait=240)
    settings = replace(settings_of(config), editor=("python", "-c", EDITOR), every=0.2)
    began = time.monotonic()
    url = loopback(workspace.up(config, settings=settings))
    assert time.monotonic() - began < 240
    # what it costs is said before anything is started
    assert "L40S, 8 cores and 32 GiB cost $2.58 per hour" in caplog.messages[0]
    password = re.search(r"shown only now: (\S{22})\n", capsys.readouterr().out)[1]

    found = asyncio.run(visit(url, password))
    assert found["stranger"] == 401
    assert found["wrong"] == (401, None)
    assert found["right"] == (302, True, True, "Lax")
    page = found["page"]
    assert page["path"] == "/a%20b?c=d"
    assert page["body"] == "text"
    assert page["cookie"] == "theirs=1"  # ours stays with the gateway
    assert page["secrets"] == []  # the terminal does not know the passwords
    assert {"pretraining", "gpt_model", "deployment", "README.md", "Makefile", "tests"} <= set(page["files"])
    assert page["path of modules"] == "/workspace/project"  # what is changed there is what runs
    assert found["socket"] == "HELLO"
    assert (found["forged"], found["other site"]) == (401, 403)

    with pytest.raises(InputError, match="workspace main is up already"):
        workspace.up(config, settings=settings)
    said = workspace.status(replace(config, action="status"))
    assert said["state"] == "up"
    assert 0 < said["spent"] < 0.1
    assert "memory: " in capsys.readouterr().out
    assert loopback(workspace.url(config)) == url

    plane.preempt()  # Modal takes the machine, and starts the call again on another
    until = time.monotonic() + 240
    while said["url"] == workspace.states()["main"]["url"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    again = workspace.status(config)
    assert again["state"] == "up"
    assert again["spent"] > said["spent"]  # what was spent before counts
    assert again["began"] == said["began"]  # and so do the hours
    assert asyncio.run(visit(loopback(again["url"]), password))["page"]["files"] == page["files"]

    follow = [sys.executable, "-m", "deployment.workspace", "logs"]
    follower = subprocess.Popen(follow, stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    assert follower.stdout.readline() == f"workspace main is up: {said['url']}\n"
    workspace.down(config)
    assert "workspace main stopped: down" in follower.communicate(timeout=60)[0]  # it ends with the workspace
    assert "stopped (down)" in caplog.messages[-1]
    with pytest.raises(InputError, match="workspace main is not up"):
        workspace.down(config)
    assert workspace.status(config) == {"state": "down"}
    logs, until = "", time.monotonic() + 20
    while "workspace main stopped: down" not in logs:  # what it said last may still be on its way
        assert time.monotonic() < until
        workspace.logs(config)
        logs = capsys.readouterr().out
    assert ("backed up: " in logs) == (shutil.which("restic") is not None)
    project = plane.volume("workspace-main") / "project"
    assert (project / "touched").read_text() == "/a%20b?c=d"
    assert (project / "deployment" / "solutions" / "01_from_laptop_to_cloud.ipynb").exists()  # for people, with lessons
    assert not [path for path in project.rglob("*") if is_hidden(path.relative_to(project))]
    assert not any(task.container.process.poll() is None for task in list(plane.tasks.values()) if task.ended)
    nothing_secret_is_said(plane, password, logs)


def test_specifications() -> None:
    """What is asked of Modal, without any server."""
    secret = modal.Secret.from_name("workspace-main")
    settings = settings_of(Config(hours=2))
    _, function = modal_workspace.make_app(settings, cpus=8, memory_gib=32, secret=secret)
    info = function.info()
    assert info.gpus == [("L40S", 1)]
    assert (info.cpu, info.memory_mib, info.timeout) == ((8, 8), (32 * 1024, 32 * 1024), 2 * 3600 + 600)
    assert {str(path): mount.name for path, mount in info.volumes.items()} == {
        "/workspace": "workspace-main", "/backups": "workspace-main-backups",
    }  # fmt: skip
    assert [re.search(r"workspace-\w+", secret)[0] for secret in info.secrets] == ["workspace-main"]


def test_a_workspace_without_a_password_does_not_start(plane: ControlPlane) -> None:
    """Nor with a short one; and it says so in one line."""
    modal.Secret.objects.create("workspace-open", {"WORKSPACE_PASSWORD": "short", "RESTIC_PASSWORD": "x"})
    with pytest.raises(InputError, match="workspace open did not start: .*password must have at least 12 characters"):
        workspace.up(Config(name="open", gpu="none"))
    modal.Secret.objects.create("workspace-half", {"WORKSPACE_PASSWORD": "long enough for it"})
    started = len(plane.tasks)
    with pytest.raises(InputError, match="cannot start a workspace: .*RESTIC_PASSWORD"):
        workspace.up(Config(name="half", gpu="none"))
    assert len(plane.tasks) == started


def test_a_password_is_made_once(plane: ControlPlane, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.secret_of("monkey")
    assert re.search(r"shown only now: \S{22}\n.*its backups.*: \S{22}\n$", capsys.readouterr().out)
    workspace.secret_of("monkey")
    assert capsys.readouterr().out == ""


def test_a_full_volume_starts_nothing(plane: ControlPlane) -> None:
    volume = modal.Volume.from_name("workspace-full", create_if_missing=True)
    volume.hydrate()
    large = plane.volume("workspace-full") / "large"
    with large.open("wb") as file:
        file.truncate(101 * 2**30)  # takes no room on the disk
    started = len(plane.tasks)
    with pytest.raises(InputError, match="the volume of workspace full is full: 101.0 of 100 GiB"):
        workspace.up(Config(name="full"))
    assert len(plane.tasks) == started


def test_of_two_that_start_at_once_one_is_refused(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second asks before the first one runs, and is there while its image is built."""

    def deploy(app: modal.App) -> None:
        running = modal.Dict.from_name(STATES, create_if_missing=True)
        running["twice", "call"] = "the first one's"

    monkeypatch.setattr(workspace, "deploy", deploy)
    monkeypatch.setattr(workspace, "unfinished", lambda call: call)
    with pytest.raises(InputError, match="workspace twice is up already"):
        workspace.up(Config(name="twice", gpu="none"))


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"idle_minutes": 0.001}, "idle"), ({"hours": 1e-5}, "time limit"), ({"budget": 1e-6}, "budget")],
)
def test_it_stops_by_itself(limit: dict, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch alone, without a container: nobody there, time over, money spent."""
    settings = replace(settings_of(Config()), every=0.01, **limit)
    states: dict[object, object] = {}

    class Asynchronous:
        def __init__(self, function: Any) -> None:
            self.function = function

        async def aio(self, *arguments: Any) -> Any:
            return self.function(*arguments)

    class Watched(modal_workspace.Workspace):
        def __init__(self) -> None:
            self.settings, self.began, self.backup = settings, time.time(), ""
            self.first_began = self.began
            self.meter = Meter(settings.dollars_per_hour, settings.budget)
            self.gateway = SimpleNamespace(last_request=0.0)
            self.monitor = SimpleNamespace(latest=lambda: {"cpu_percent": 1.0})
            self.state = SimpleNamespace(
                get=Asynchronous(states.get), put=Asynchronous(lambda key, value: states.update({key: value}))
            )
            self.backed_up = time.time()

    editor = SimpleNamespace(poll=lambda: None)
    assert asyncio.run(asyncio.wait_for(Watched().watch(editor), 20)) == reason
    assert states == {} or states["main"]["cpu_percent"] == 1.0


def test_who_uses_the_editor_a_terminal_or_the_gpu_is_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = tmp_path / "heartbeat"
    monkeypatch.setattr(modal_workspace, "HEARTBEAT", heartbeat)
    monkeypatch.setattr(modal_workspace, "TERMINALS", tmp_path)
    quiet = SimpleNamespace(began=0.0, gateway=SimpleNamespace(last_request=0.0), meter=SimpleNamespace(latest={}))
    idle = modal_workspace.Workspace.idle
    assert idle(quiet, 5000.0) == 5000.0
    heartbeat.touch()
    assert idle(quiet, heartbeat.stat().st_mtime + 7) == pytest.approx(7, abs=0.01)
    (tmp_path / "0").touch()
    os.utime(tmp_path / "0", (1.5e9, 1.0e9))  # read from, which is to say typed in, after it was last written to
    os.utime(heartbeat, (1.0e9, 1.0e9))
    assert idle(quiet, 1.5e9 + 7) == pytest.approx(7, abs=0.01)
    quiet.meter.latest = {"gpu_percent": 80.0}
    assert idle(quiet, 2e9) == 0.0


def test_the_project_is_cloned_and_kept_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / "origin"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, "-C", str(origin), *arguments], check=True, capture_output=True)

    origin.mkdir()
    git("init")
    (origin / "file").write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(modal_workspace, "PROJECT", tmp_path / "project")
    settings = replace(settings_of(Config()), repository=str(origin))
    modal_workspace.prepare(settings)
    assert (tmp_path / "project" / "file").read_text() == "one"
    (origin / "file").write_text("two")
    git("commit", "-am", "two")
    modal_workspace.prepare(settings)
    assert (tmp_path / "project" / "file").read_text() == "two"
    (tmp_path / "project" / "file").write_text("mine")  # is never overwritten
    (origin / "file").write_text("three")
    git("commit", "-am", "three")
    modal_workspace.prepare(settings)
    assert (tmp_path / "project" / "file").read_text() == "mine"
    assert "the project stays as it is: git pull failed" in capsys.readouterr().out
    monkeypatch.setattr(modal_workspace, "PROJECT", tmp_path / "other")
    with pytest.raises(InputError, match="git clone failed"):
        modal_workspace.prepare(replace(settings, repository=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "H1000"}, "there is no GPU 'H1000'"),
        ({"budget": 0.0}, "budget must be above 0"),
        ({"hours": 25.0}, "hours must be"),
        ({"name": "My Workspace"}, "name must be small letters"),
        ({"name": "a" * 40}, "name must be small letters"),
        ({"repository": "https://user:secret@example.com/a.git"}, "without a password"),
        ({"repository": "--upload-pack=evil"}, "repository must be"),
        ({"repository": "git@github.com:me/mine.git"}, "repository must be"),  # there is no key in the container
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**changes)


def test_only_public_keys_are_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(InputError, match=r"not one SSH public key: give the file that ends in .pub"):
        settings_of(Config(ssh_key=tmp_path / "key"))
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here\n")
    assert settings_of(Config(ssh_key=tmp_path / "key.pub")).ssh_key.startswith("ssh-ed25519 AAAA")


@pytest.mark.skipif(not Path("/usr/sbin/sshd").exists(), reason="there is no SSH server")
def test_ssh_lets_in_the_owner_of_the_key_only(plane: ControlPlane, tmp_path: Path) -> None:
    """A real SSH server in the workspace's container, and a real client outside."""
    for name in ("mine", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    modal.Secret.objects.create("workspace-ssh", {"WORKSPACE_PASSWORD": "p" * 12, "RESTIC_PASSWORD": "x"})
    config = Config(action="up", name="ssh", gpu="none", ssh_key=tmp_path / "mine.pub", wait=240)
    workspace.up(config, settings=replace(settings_of(config), editor=("python", "-c", EDITOR), every=0.2))
    until = time.monotonic() + 60
    while "ssh" not in workspace.states()["ssh"]:
        assert time.monotonic() < until
        time.sleep(0.1)

    def ssh(key: str, *command: str) -> subprocess.CompletedProcess[str]:
        options = [
            f"IdentityFile={tmp_path / key}", "IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=no",
            f"UserKnownHostsFile={tmp_path / 'known'}",
        ]  # fmt: skip
        program, *where = workspace.states()["ssh"]["ssh"].split()
        line = [program, "-F", os.devnull, *(part for option in options for part in ("-o", option)), *where, *command]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)

    ask = "import os, pretraining; print(os.getcwd(), pretraining.__file__)"
    assert ssh("mine", f"bash -l -c 'python -c \"{ask}\"'").stdout.split() == [
        "/workspace/project", "/workspace/project/pretraining/__init__.py",
    ]  # fmt: skip
    assert ssh("mine", f"cd /; python -c '{ask}'").stdout == "/ /workspace/project/pretraining/__init__.py\n"
    assert "PASSWORD" not in ssh("mine", "env").stdout
    other = ssh("other", "env")
    assert (other.returncode, other.stdout) == (255, "")
    assert "Permission denied (publickey)" in other.stderr
    workspace.down(config)


def nothing_secret_is_said(plane: ControlPlane, password: str, logs: str) -> None:
    """Passwords travel in the one request that makes the secret, and are in no image, argument, log or file."""
    assert password not in logs + plane.output()
    for name, request in plane.asked:
        if name != "SecretGetOrCreate":
            assert password.encode() not in request.SerializeToString(), name
    for path in plane.root.rglob("*"):
        if path.is_file():
            assert password.encode() not in path.read_bytes(), path
