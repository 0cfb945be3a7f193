"""The chat served by the stand-in for Modal: no machine until somebody comes, then its own server answers."""

import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import modal
import pytest

from deployment import modal_serve
from deployment.cloud import upload
from deployment.modal_serve import COMMAND, Config, make_app
from deployment.stand_in.control_plane import ControlPlane
from utils.files import InputError

# Answers as the chat's server would, with what it was told, until it is told to end.
STAND_IN = """
import http.server, json, os, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        said = {"path": self.path, "arguments": sys.argv[1:], "runs": sorted(os.listdir("/vol/runs")),
                "accounts": open("/state/chat/accounts.json").read()}
        self.wfile.write(json.dumps(said).encode())
try:
    open("/vol/runs/written", "w")
except OSError as error:
    print("READ-ONLY", error, flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Answer).serve_forever()
"""


@pytest.fixture
def filled(plane: ControlPlane) -> ControlPlane:
    """A volume with a run."""
    with modal.Volume.from_name("language-models", create_if_missing=True).batch_upload(force=True) as batch:
        batch.put_file(Path(__file__), "/runs/mine/config.json")
    return plane


def get(url: str, key: str = "", body: dict | None = None) -> str:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def test_up_visit_and_down(
    filled: ControlPlane, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    accounts = tmp_path / "accounts.json"
    accounts.write_text('{"alice": "hash"}')
    url = modal_serve.up(Config(accounts=accounts), command=("python", "-c", STAND_IN))
    assert "0 to 1 of them cost $0.00 to" in caplog.messages[0]
    assert not filled.running()  # nobody has come, and nothing is paid
    page = get(f"{url}/page")
    assert '"path": "/page"' in page
    assert f'"--origin", "{url}"' in page  # browsers from elsewhere are refused by the app
    assert '"mine"' in page  # beside what other tests have put there
    assert "alice" in page
    assert len(filled.running()) == 1
    assert "READ-ONLY" in filled.output()  # the server cannot change what was trained
    assert modal_serve.status(Config()) == {"state": "up", "url": url, "healthy": True}

    modal_serve.down(Config())
    with pytest.raises((OSError, urllib.error.URLError)):
        get(url)
    assert modal_serve.status(Config()) == {"state": "down"}
    with pytest.raises(InputError, match="cannot stop the chat: Modal does not have it"):
        modal_serve.down(Config())


@pytest.mark.slow
def test_the_real_chat_answers_whoever_has_a_key(plane: ControlPlane, finished_run: Path, tmp_path: Path) -> None:
    """The chat's own server in Modal's container runtime, with a model from the volume and accounts from here."""
    from chat_ui.accounts import Accounts

    accounts = Accounts(tmp_path / "accounts.json")
    accounts.add("alice", "a long password")
    key = accounts.new_key("alice")
    upload(modal.Volume.from_name("language-models", create_if_missing=True), finished_run, "runs/tiny")
    url = modal_serve.up(Config(accounts=tmp_path / "accounts.json"))
    assert get(f"{url}/health")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(f"{url}/v1/models")
    models = json.loads(get(f"{url}/v1/models", key))["data"]
    assert [model["id"] for model in models] == ["tiny"]
    asked = {"model": "tiny", "prompt": "It is a truth", "max_tokens": 4}
    answer = json.loads(get(f"{url}/v1/completions", key, asked))
    assert answer["usage"]["completion_tokens"] == 4
    assert key not in plane.output()
    modal_serve.down(Config())


def test_a_server_that_ends_says_why_in_the_logs(filled: ControlPlane, tmp_path: Path) -> None:
    accounts = tmp_path / "accounts.json"
    accounts.write_text("{}")
    url = modal_serve.up(Config(accounts=accounts), command=("python", "-c", "raise SystemExit('error: no history')"))
    with pytest.raises((OSError, urllib.error.URLError)):
        get(url)
    assert "error: no history" in filled.output()
    modal_serve.down(Config())


def test_specifications() -> None:
    config = Config(gpu="L40S:2", least_machines=1, most_machines=4, secret="chat", snapshot=True)
    _, server = make_app(config)
    info = server.info()
    assert info.gpus == [("L40S", 2)]
    assert info.port == 8000
    assert info.unauthenticated  # of Modal's own headers, which browsers cannot send
    assert info.exit_grace_period == 30
    assert info.volumes["/vol"].read_only
    assert set(info.volumes) == {"/vol", "/state"}


def test_the_command_is_one_that_the_chat_knows() -> None:
    import tyro

    from chat_ui.server import Config as Chat

    assert COMMAND[:3] == ("python", "-m", "chat_ui.server")
    told = tyro.cli(Chat, args=[*COMMAND[3:], "--origin", "https://chat.example.org"])
    assert (told.host, told.port, told.runs) == ("0.0.0.0", 8000, Path("/vol/runs"))
    assert told.origin == ("https://chat.example.org",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most_users": 3}, "most_users must be at least users"),
        ({"least_machines": 2}, "least_machines must be at most most_machines"),
        ({"most_machines": 2}, "several machines need --secret with DATABASE_URL"),
        ({"gpu": "L99"}, "there is no GPU 'L99'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(Config(), **changes)


def test_nothing_is_served_without_volume_accounts_or_secret(
    filled: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_serve, "STATE_VOLUME", "without-accounts")
    with pytest.raises(InputError, match=r"nobody could log in: make accounts with python -m chat_ui\.accounts"):
        modal_serve.up(Config())
    with pytest.raises(InputError, match="cannot serve the chat: Modal does not have it"):
        modal_serve.up(Config(volume="not-there"))
    with pytest.raises(OSError, match="No such file"):
        modal_serve.up(Config(accounts=tmp_path / "none.json"))
    with pytest.raises(InputError, match="Modal does not have it"):
        modal_serve.up(Config(secret="not-there"))
