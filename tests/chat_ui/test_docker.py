"""The chat's image, without Docker: where only its volumes can be written, what it starts finds a place for all."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from chat_ui.accounts import Accounts
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "chat_ui" / "docker"
# A root that is a read-only folder of the machine's own folders, /tmp among them, and of the image's volumes.
READ_ONLY = """
set -e
here=$1; shift
root=$here/root; mkdir "$root"; mount -t tmpfs none "$root"
for entry in /*; do
    if [ -L "$entry" ]; then cp -P "$entry" "$root$entry"
    elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
    fi
done
for volume in state accounts runs; do mkdir "$root/$volume"; mount --bind "$here/$volume" "$root/$volume"; done
mount -o remount,ro "$root"
exec chroot "$root" "$@"
"""


def instruction(name: str) -> list[str]:
    """Return the arguments of an instruction of the Dockerfile that has them as JSON."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", "")
    return json.loads(re.search(rf"^{name} (\[.*\])$", text, re.MULTILINE)[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("unshare") is None, reason="there is no unshare")
def test_it_starts_where_only_its_volumes_can_be_written(tmp_path: Path, finished_run: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not make namespaces")
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["x-chat"]
    assert service["read_only"]
    given = ["https://chat.example.org" if word.startswith("${CHAT_ORIGIN:") else word for word in service["command"]]
    for volume in ("state", "accounts", "runs"):
        (tmp_path / volume).mkdir()
    shutil.copytree(finished_run, tmp_path / "runs" / "demo")
    Accounts(tmp_path / "accounts" / "accounts.json").add("ada", "correct horse")
    port = free_port()
    program, *arguments = instruction("ENTRYPOINT")
    assert program == "python"
    command = [sys.executable, *arguments, *given, "--port", str(port), "--no-gpt2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CHAINLIT_AUTH_SECRET": "s" * 48,
        "XDG_CACHE_HOME": "/state/cache",
    }
    server = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", str(tmp_path), *command],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/ready"):
            assert server.poll() is None, server.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.1)
        assert (tmp_path / "state" / "chat" / "history.sqlite").exists()
        assert (tmp_path / "state" / "chat").stat().st_mode & 0o077 == 0
    finally:
        server.terminate()
        said = server.communicate(timeout=60)[1]
    assert "The chat is at https://chat.example.org" in said


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False
