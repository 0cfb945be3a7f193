"""Two servers behind the nginx of docker/, with one history in PostgreSQL: what one says the other knows."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from chat_ui.accounts import Accounts
from tests.chat_ui.fakes import PATIENCE, Page
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "chat_ui" / "docker"

Process = subprocess.Popen[bytes]

pytestmark = pytest.mark.slow


@contextmanager
def nginx(folder: Path, servers: list[int]) -> Iterator[str]:
    """Run nginx as docker/nginx.conf has it, but for the addresses; yield the address of its TLS side."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is not installed")
    port, plain = free_port(), free_port()
    conf = (DOCKER / "nginx.conf").read_text()
    for old, new in {
        "listen 80;": f"listen 127.0.0.1:{plain};", "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "chat-1:8000": f"127.0.0.1:{servers[0]}", "chat-2:8000": f"127.0.0.1:{servers[1]}",
        "/etc/nginx/certificates": str(folder), "worker_processes auto;": "worker_processes 1; user root;",
    }.items():  # fmt: skip
        assert old in conf
        conf = conf.replace(old, new)
    (folder / "nginx.conf").write_text(f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n{conf}")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem"], check=True, capture_output=True,
    )  # fmt: skip
    process = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf"], stderr=subprocess.PIPE)
    try:
        yield f"https://localhost:{port}"
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def servers(folder: Path, run: Path, database: str, origin: str, ports: list[int]) -> Iterator[list[Process]]:
    shutil.copytree(run, folder / "runs" / "demo")
    Accounts(folder / "accounts.json").add("ada", "correct horse")
    environment = os.environ | {"DATABASE_URL": database, "CHAINLIT_AUTH_SECRET": "of both servers, and of nobody else"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "chat_ui.server", "--port", str(port), "--runs", str(folder / "runs"), "--no-gpt2",
             "--state", str(folder / str(port)), "--accounts", str(folder / "accounts.json"), "--origin", origin,
             "--trust-proxy", "127.0.0.1"], cwd=ROOT, env=environment,
        )
        for port in ports
    ]  # fmt: skip
    try:
        for port, process in zip(ports, processes, strict=True):
            wait_until_ready(port, process)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_until_ready(port: int, process: Process) -> None:
    for _ in range(1200):
        try:
            httpx.get(f"http://127.0.0.1:{port}/ready").raise_for_status()
            return
        except httpx.HTTPError:
            assert process.poll() is None
            time.sleep(0.1)
    raise AssertionError("it did not start within two minutes")


def test_one_of_two_servers_dies(tmp_path: Path, postgres: str, finished_run: Path) -> None:
    ports = [free_port(), free_port()]

    async def scene(base: str, processes: list[Process]) -> None:
        page = Page(base)
        assert (await page.log_in("ada", "correct horse")).status_code == 200
        await page.open()
        first = await page.ask("Emma was")
        assert first["output"]
        sockets = [await open_sockets(port) for port in ports]
        assert sorted(sockets) == [0, 1]
        processes[sockets.index(1)].kill()
        async with asyncio.timeout(PATIENCE):
            await page.socket.wait()
        again = Page(base)  # as a browser does, with the same login
        again.http.cookies = page.http.cookies
        await again.open(thread=await page.thread())
        resumed = await again.until("resume_thread")
        assert first["output"] in [step["output"] for step in resumed["steps"]]
        assert (await again.ask("and"))["output"]
        assert (await again.http.get("/metrics")).status_code == 404  # not for those outside
        assert (await again.http.get("/health")).status_code == 200
        for opened in (page, again):
            await opened.close()

    with nginx(tmp_path, ports) as base, servers(tmp_path, finished_run, postgres, base, ports) as processes:
        asyncio.run(scene(base, processes))
        survivor = next(process for process in processes if process.poll() is None)
        survivor.terminate()
        assert survivor.wait(2 * PATIENCE) == 0


async def open_sockets(port: int) -> int:
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"http://127.0.0.1:{port}/metrics")).text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("chat_sockets "))))
