"""A workspace, from `up` to `down`: deployed to the stand-in for Modal and run there in Modal's container runtime."""

import asyncio
import re
import shutil
import time
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from deployment import workspace
from deployment.gateway import COOKIE
from deployment.workspace import Config, settings_of
from tests.deployment.control_plane import ControlPlane
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
                              "body": (await request.read()).decode(), "files": sorted(os.listdir("."))})
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
    config = Config(action="up", gpu="L40S", wait=60)
    settings = replace(settings_of(config), editor=("python", "-c", EDITOR), every=0.2)
    began = time.monotonic()
    url = loopback(workspace.up(config, settings=settings))
    assert time.monotonic() - began < 60
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
    assert {"pretraining", "gpt_model", "deployment"} <= set(page["files"])
    assert found["socket"] == "HELLO"
    assert (found["forged"], found["other site"]) == (401, 403)

    with pytest.raises(InputError, match="workspace main is up already"):
        workspace.up(config, settings=settings)
    said = workspace.status(replace(config, action="status"))
    assert said["state"] == "up"
    assert 0 < said["spent"] < 0.1
    assert "memory: " in capsys.readouterr().out
    assert loopback(workspace.url(config)) == url

    workspace.down(config)
    assert "stopped (down)" in caplog.messages[-1]
    with pytest.raises(InputError, match="workspace main is not up"):
        workspace.down(config)
    assert workspace.status(config) == {"state": "down"}
    workspace.logs(config)
    logs = capsys.readouterr().out
    assert "workspace main stopped: down" in logs
    assert ("backed up: " in logs) == (shutil.which("restic") is not None)
    assert (plane.volume("workspace-main") / "project" / "touched").read_text() == "/a%20b?c=d"
    assert not any(task.container.process.poll() is None for task in plane.tasks.values() if task.ended)
    nothing_secret_is_said(plane, password, logs)


def nothing_secret_is_said(plane: ControlPlane, password: str, logs: str) -> None:
    """Passwords travel in the one request that makes the secret, and are in no image, argument, log or file."""
    assert password not in logs + plane.output()
    for name, request in plane.asked:
        if name != "SecretGetOrCreate":
            assert password.encode() not in request.SerializeToString(), name
    for path in plane.root.rglob("*"):
        if path.is_file():
            assert password.encode() not in path.read_bytes(), path
