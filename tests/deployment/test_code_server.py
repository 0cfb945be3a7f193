"""The real code-server behind the gateway, in a browser. It takes minutes to install, so this is not an everyday test.

Install it as the image does (`modal_workspace.image`), and name it: CODE_SERVER=/opt/code/node_modules/.bin/code-server
"""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from aiohttp import web

from deployment import modal_workspace
from deployment.gateway import Door, Gateway
from deployment.modal_workspace import CODE_SERVER, EDITOR, end_group

PASSWORD = "correct horse battery"
SIZE = {"width": 1280, "height": 800}

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif("CODE_SERVER" not in os.environ, reason="CODE_SERVER names no installed code-server"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium"),
]


def test_a_browser_gets_in_with_the_right_password_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "hello.py").write_text("print('hello')\n")
    socket = tmp_path / "editor.sock"
    monkeypatch.setattr(modal_workspace, "SOCKET", socket)
    command = [os.environ["CODE_SERVER"], *EDITOR[1:]]
    command[command.index("--socket") + 1] = str(socket)
    environment = {**os.environ, "HOME": str(tmp_path)}
    version = subprocess.run([command[0], "--version"], env=environment, capture_output=True, text=True, check=True)
    assert CODE_SERVER in version.stdout
    editor = subprocess.Popen([*command, "."], cwd=tmp_path / "project", env=environment, start_new_session=True)
    try:
        asyncio.run(asyncio.wait_for(visit(socket, editor, tmp_path), 240))
    finally:
        end_group(editor)
    assert list(tmp_path.rglob("heartbeat"))  # by which idleness is known


async def visit(socket: Path, editor: subprocess.Popen[bytes], folder: Path) -> None:
    from playwright.async_api import async_playwright

    await modal_workspace.answers(editor)
    gateway = Gateway(Door(PASSWORD, 12), socket)
    runner = web.AppRunner(gateway.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://localhost:{site._server.sockets[0].getsockname()[1]}"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = await browser.new_page(viewport=SIZE)
        await page.goto(url)
        assert page.url.endswith("/login")
        await page.fill("input[type=password]", "wrong")
        await page.click("button")
        assert await page.text_content("[role=alert]") == "Wrong password."
        await page.fill("input[type=password]", PASSWORD)
        await page.click("button")
        await page.wait_for_selector(".monaco-workbench", timeout=120_000)
        await page.get_by_text("hello.py").first.wait_for(timeout=120_000)  # over a WebSocket, through the gateway
        await page.screenshot(path=folder / "workspace.png")
        await browser.close()
    await runner.cleanup()
