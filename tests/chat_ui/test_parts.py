"""The small parts of the app: settings, limits, accounts, the audit log, conversations, time up, filters."""

import asyncio
import json
import math
import os
import signal
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from argon2 import PasswordHasher

from chat_ui import accounts, audit, frontend, health, limits, server
from chat_ui.conversations import conversation_of
from chat_ui.filters import load_filter
from chat_ui.settings import LARGEST_SEED, LONGEST_SYSTEM_PROMPT, Settings, clamped, widgets
from chat_ui.texts import JOINER, clean, said, shown
from tests.ports import free_port
from utils.files import InputError


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"temperature": -5}, {"temperature": 0.0}),
        ({"temperature": 1e308}, {"temperature": 2.0}),
        ({"temperature": math.nan}, {"temperature": 0.8}),
        ({"temperature": "hot"}, {"temperature": 0.8}),
        ({"temperature": True}, {"temperature": 0.8}),
        ({"temperature": [1]}, {"temperature": 0.8}),
        ({"max_new_tokens": 10**6}, {"max_new_tokens": 1024}),
        ({"max_new_tokens": 0.4}, {"max_new_tokens": 1}),
        ({"top_p": 0}, {"top_p": 0.05}),
        ({"top_k": "7"}, {"top_k": 7}),
        ({"top_k": "9" * 5000}, {"top_k": 50}),
        ({"seed": ""}, {"seed": None}),
        ({"seed": "12"}, {"seed": 12}),
        ({"seed": str(2**60)}, {"seed": LARGEST_SEED}),
        ({"system_prompt": "x" * 10_000 + "\0"}, {"system_prompt": "x" * LONGEST_SYSTEM_PROMPT}),
        ({"unknown": 1}, {}),
        ("nonsense", {}),
    ],
)
def test_settings_are_clamped_whatever_is_sent(sent: Any, kept: dict[str, Any]) -> None:
    settings = clamped(sent)
    assert settings == clamped(kept)
    assert all(getattr(settings, name) == value for name, value in kept.items())
    settings.sampling()  # which would refuse what is out of its ranges


def test_the_panel_shows_the_settings() -> None:
    shown = {widget.id: widget.initial for widget in widgets(Settings(seed=3, top_k=9))}
    assert (shown["seed"], shown["top_k"]) == ("3", 9)
    assert shown.keys() == vars(Settings()).keys()
    assert Settings(top_k=0, top_p=1).sampling().top_k is None
    assert Settings(top_k=0, top_p=1).sampling().top_p is None


def test_a_limit_slides_and_forgets_the_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    limit = limits.RateLimit(2, 60)
    assert [limit.allow("ada") for _ in range(3)] == [True, True, False]
    assert limit.allow("bob")
    now[0] += 59
    assert limit.wait("ada") == pytest.approx(1)
    now[0] += 1
    assert limit.allow("ada")
    limit.forget("ada")
    assert limit.wait("ada") == 0
    monkeypatch.setattr(limits, "MOST_KEYS", 3)
    for number in range(100):
        limit.allow(str(number))
    assert len(limit._events) == 3


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "HASHER", PasswordHasher(time_cost=1, memory_cost=64))


@pytest.mark.usefixtures("cheap")
def test_accounts(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "accounts.json"
    known = accounts.Accounts(file)
    assert not known.verify("ada", "correct horse")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, readline=lambda: "correct horse\n"))
    accounts.main(accounts.Config(add="ada", accounts=file))
    assert capsys.readouterr().out == "users: ada\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "correct horse" not in file.read_text()
    assert known.verify("ada", "correct horse")
    assert not known.verify("ada", "correct horsE")
    accounts.main(accounts.Config(key="ada", accounts=file))
    key = capsys.readouterr().out.strip()
    assert known.holder(key) == "ada"
    assert known.holder(key[:-1]) is None
    assert key not in file.read_text()
    accounts.main(accounts.Config(remove="ada", accounts=file))
    assert not known.verify("ada", "correct horse")
    assert known.holder(key) is None
    for wrong, message in [
        (accounts.Config(remove="ada", accounts=file), "there is no user 'ada'"),
        (accounts.Config(key="bob", accounts=file), "there is no user 'bob'"),
        (accounts.Config(add="a b", accounts=file), "letters, digits"),
    ]:
        with pytest.raises(InputError, match=message):
            accounts.main(wrong)
    with pytest.raises(InputError, match="at least 10"):
        known.add("ada", "short")
    with pytest.raises(InputError, match="must be text in UTF-8"):
        known.add("ada", b"typed in Latin-1: \xe4".decode(errors="surrogateescape"))
    file.write_text("[]")
    with pytest.raises(InputError, match="holds no accounts"):
        known.names()


def test_the_audit_log_holds_no_texts_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FILE_BYTES", 300)
    log = audit.Audit(tmp_path / "audit.jsonl")
    log.write("message", user="ada\n{", text="secret")
    entry = json.loads((tmp_path / "audit.jsonl").read_text())
    assert (entry["event"], entry["user"], entry["characters"]) == ("message", "ada\n{", 6)
    assert "text" not in entry
    for _ in range(50):
        log.write("message", text="x" * 100)
    log.close()
    files = sorted(tmp_path.glob("audit.jsonl*"))
    assert len(files) == audit.N_FILES + 1
    assert all(json.loads(line) for file in files for line in file.read_text().splitlines())
    loud = audit.Audit(tmp_path / "loud.jsonl", texts=True)
    loud.write("message", text="said")
    loud.close()
    assert json.loads((tmp_path / "loud.jsonl").read_text())["text"] == "said"


def message(kind: str, content: str, **metadata: Any) -> SimpleNamespace:
    return SimpleNamespace(type=f"{kind}_message", content=content, metadata=metadata)


def test_a_conversation_is_what_was_said_and_answered() -> None:
    sides = [{"text": "left"}, {"text": "right"}]
    said = [
        message("assistant", "a greeting"),
        message("user", "unanswered"),
        message("user", "failed"),
        message("assistant", "The server is full.", notice=True),
        message("user", "one"),
        message("assistant", "two"),
        message("user", "which"),
        message("assistant", "", sides=sides, chosen=1),
        message("user", "last"),
    ]
    conversation = conversation_of(said, "be brief")
    assert conversation is not None
    assert [turn.text for turn in conversation.turns] == ["one", "two", "which", "right", "last"]
    assert conversation.system == "be brief"
    assert conversation_of(said[:1]) is None


def test_text_that_cannot_be_stored_is_replaced() -> None:
    assert clean("a\0b\ud800\r\nc\rd\U0001f600") == "a\ufffdb\ufffd\nc\nd\U0001f600"


def test_words_after_a_colon_are_kept_apart_from_it_but_not_in_code() -> None:
    text = "note:this 10:30 ::leaf `a:b` `c:d\n```py\nx:int\n``` http://a :ü\n```\ny:int"
    page = shown(text)
    assert page.replace(JOINER, "|") == (
        "note:|this 10:30 ::|leaf `a:b` `c:|d\n```py\nx:int\n``` http://a :|ü\n```\ny:int"
    )
    assert said(page) == text


def test_time_up_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(health.time, "time", lambda: now[0])
    first = health.Uptime(tmp_path / "uptime.json")
    now[0] += 90
    first.beat()
    now[0] += 10  # killed, and started again
    second = health.Uptime(tmp_path / "uptime.json")
    now[0] += 100
    assert second.share() == pytest.approx(190 / 200)
    (tmp_path / "uptime.json").write_text("{")
    assert health.Uptime(tmp_path / "uptime.json").share() == 1


def test_a_filter_is_named_by_its_function() -> None:
    assert load_filter("chat_ui.texts:clean")("x") == "x"
    for wrong in ("nonsense", "chat_ui.texts:nothing", "no.such.module:f", ":", "chat_ui.texts:LONGEST_MESSAGE"):
        with pytest.raises(InputError, match="content_filter"):
            load_filter(wrong)


def test_the_secret_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    made = frontend.secret(tmp_path / "secret")
    assert frontend.secret(tmp_path / "secret") == made
    assert len(made) > 40
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_the_address_that_is_shown_opens_in_a_browser() -> None:
    for settings, shown_there in (
        ({}, "http://127.0.0.1:8000"),
        ({"host": "::1", "port": 81}, "http://[::1]:81"),
        ({"host": "0.0.0.0", "origin": ("https://chat.example.org",)}, "https://chat.example.org"),
    ):
        assert server._address(server.Config(**settings)) == shown_there


@pytest.mark.parametrize(
    ("proxies", "sender", "forwarded", "seen"),
    [
        ("10.0.0.2", "10.0.0.2", "127.0.0.1, 203.0.113.9", "203.0.113.9"),  # the first is the client's own word
        ("10.0.0.2,10.1.0.0/16", "10.0.0.2", "127.0.0.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("10.0.0.2, 10.1.0.0/16", "10.1.2.3", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.2", "203.0.113.9", "127.0.0.1", "203.0.113.9"),
        ("*", "10.0.0.2", "203.0.113.9", "203.0.113.9"),
        (None, "127.0.0.1", "203.0.113.9", "127.0.0.1"),
    ],
)
def test_who_asks_is_what_the_proxies_say(proxies: str | None, sender: str, forwarded: str, seen: str) -> None:
    clients = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        clients.append(scope["client"][0])

    settings = server._settings(server.Config(trust_proxy=proxies), app)
    settings.load()
    for kind in ("http", "websocket"):
        scope = {"type": kind, "client": (sender, 1), "headers": [(b"x-forwarded-for", forwarded.encode())]}
        asyncio.run(settings.loaded_app(scope, None, None))
    assert clients == [seen, seen]


@pytest.mark.parametrize("proxies", ["", "proxy.example.org", "10.0.0.2,", "10.0.0.2/8", "10.0.0.2,*"])
def test_proxies_are_named_by_their_addresses(proxies: str) -> None:
    with pytest.raises(InputError, match="trust_proxy must hold addresses"):
        server.Config(trust_proxy=proxies)


def test_a_second_ctrl_c_does_not_leave_out_the_end() -> None:
    happened = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            event = (await receive())["type"]
            happened.append(event)
            await send({"type": f"{event}.complete"})

    async def drain(seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)

    async def scenario() -> None:
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
        settings = uvicorn.Config(app, port=0, log_level="critical")
        await server._serve(settings, SimpleNamespace(drain=drain), 1)  # type: ignore[arg-type]

    asyncio.run(scenario())
    assert happened == ["lifespan.startup", "lifespan.shutdown"]


def test_what_the_server_refuses_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    state = tmp_path / "state"
    with pytest.raises(InputError, match="people must log in"):
        server.build(server.Config(host="0.0.0.0", state=state, runs=tmp_path, gpt2=False))
    for origin in ("chat.example.org", "https://chat.example.org/", "https://chat.example.org/path"):
        with pytest.raises(InputError, match="origin must look like"):
            server.Config(origin=(origin,))
    with pytest.raises(InputError, match="OAuth providers set up: none"):
        server.build(server.Config(oauth_allow=("*",), state=state, runs=tmp_path, gpt2=False))
    monkeypatch.setenv("DATABASE_URL", "mysql://x/y")
    with pytest.raises(InputError, match="postgresql"):
        server.build(server.Config(state=state, runs=tmp_path, gpt2=False))
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(InputError, match="cannot listen"):
        server.main(server.Config(host="192.0.2.1", state=state, runs=tmp_path))
    (tmp_path / ".other.lock").mkdir()
    with pytest.raises(InputError, match="choose another --state"):
        server.main(server.Config(port=free_port(), state=tmp_path / "other", runs=tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        server.main(server.Config(state=tmp_path / "file" / "state", runs=tmp_path))
