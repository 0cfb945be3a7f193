"""A login lets in whom it should, and nobody once it has ended, whatever carries it."""

import asyncio
import json
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import httpx
import pytest
from argon2 import PasswordHasher

from chat_ui import accounts as accounts_module
from chat_ui import database
from chat_ui import logins as logins_module
from chat_ui.accounts import Accounts
from chat_ui.audit import Audit
from chat_ui.history import History
from chat_ui.logins import Logins
from tests.chat_ui.fakes import PATIENCE, House, Page, Serve

PASSWORD = "correct horse"


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Accounts:
    """Accounts of ada and bob, whose passwords cost little to check."""
    monkeypatch.setattr(accounts_module, "HASHER", PasswordHasher(time_cost=1, memory_cost=64))
    made = Accounts(tmp_path / "state" / "accounts.json")
    for name in ("ada", "bob"):
        made.add(name, PASSWORD)
    return made


async def logged_in(house: House, name: str) -> Page:
    page = house.page()
    assert (await page.log_in(name, PASSWORD)).status_code == 200
    return page


def carriers(token: str) -> list[dict[str, str]]:
    """Return the headers in which Chainlit finds a token."""
    half = len(token) // 2
    return [
        {"Cookie": f"access_token={token}"},
        {"Cookie": f'x={{"a":1}}; access_token={token}'},
        {"Cookie": f"a b=1; access_token={token}"},
        {"Cookie": f"access_token_0={token[:half]}; access_token_1={token[half:]}"},
        {"Authorization": f"Bearer {token}"},
    ]


async def opens(base: str, headers: dict[str, str] | list[tuple[str, str]]) -> bool:
    """Return whether a socket with some headers is accepted: socketio's own client would change its cookies."""
    url = f"{base}/ws/socket.io/?EIO=4&transport=websocket"
    async with aiohttp.ClientSession() as client:
        try:
            async with client.ws_connect(url, headers=headers) as socket:
                await socket.receive_str()  # the greeting of the layer below
                await socket.send_str("40" + json.dumps({"sessionId": str(uuid.uuid4())}))
                return (await socket.receive_str()).startswith("40")
        except aiohttp.WSServerHandshakeError:
            return False


async def answers(client: httpx.AsyncClient, base: str, token: str) -> list[tuple[Any, ...]]:
    """Return what each carrier of a token gets from the page's addresses, and whether its socket opens."""
    found = []
    for headers in carriers(token):
        user = await client.get("/user", headers=headers)
        threads = await client.post(
            "/project/threads", headers=headers, json={"pagination": {"first": 5}, "filter": {}}
        )
        found.append((user.status_code, threads.status_code, await opens(base, headers)))
    return found


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize("end", ["logout", "removal"])
def test_a_login_that_has_ended_lets_nobody_in_whatever_carries_it(house: Serve, accounts: Accounts, end: str) -> None:
    async def scenario() -> None:
        async with house(host="0.0.0.0") as home, httpx.AsyncClient(base_url=home.base) as client:
            ada = await logged_in(home, "ada")
            token = ada.token
            by_header = (200, 200, False)  # a socket takes cookies only
            assert await answers(client, home.base, token) == [(200, 200, True)] * 4 + [by_header]
            if end == "logout":
                assert (await client.post("/logout", headers=carriers(token)[1])).status_code == 200
            else:
                accounts.remove("ada")
            assert await answers(client, home.base, token) == [(401, 401, False)] * 5

    asyncio.run(scenario())


@pytest.mark.usefixtures("accounts")
def test_no_link_logs_a_reader_out(house: Serve) -> None:
    async def scenario() -> None:
        async with house(host="0.0.0.0") as home:
            ada = await logged_in(home, "ada")
            for method in ("GET", "HEAD", "OPTIONS", "PUT"):
                foreign = {"Sec-Fetch-Site": "cross-site"}
                assert (await ada.http.request(method, "/logout", headers=foreign)).status_code == 405
                assert (await ada.http.get("/user")).status_code == 200
            foreign = {"Origin": "https://evil.example"}
            assert (await ada.http.post("/logout", headers=foreign)).status_code == 403
            assert (await ada.http.get("/user")).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["logout", "removal", "expiry"])
def test_an_open_page_ends_with_its_login(
    house: Serve, accounts: Accounts, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with house(host="0.0.0.0") as home:
            ada, bob = await logged_in(home, "ada"), await logged_in(home, "bob")
            for page in (ada, bob):
                await page.open()
                assert (await page.ask("hello"))["output"] == "demo heard: hello "
            if end == "logout":
                assert (await ada.http.post("/logout")).status_code == 200
            elif end == "removal":
                accounts.remove("ada")
            else:
                monkeypatch.setattr(logins_module, "_payload", lambda token: None)
            await ada.send("still here?")
            async with asyncio.timeout(PATIENCE):
                await ada.socket.wait()  # it is thrown out
            assert ada.of("reload")  # which shows where to log in
            assert len(home.service.requests) == 2
            if end != "expiry":
                assert (await bob.ask("and I"))["output"] == "demo heard: and I "

    asyncio.run(scenario())


@pytest.mark.usefixtures("accounts")
def test_a_page_goes_on_with_a_new_login(house: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its socket breaks off, and the reader has logged out and in again before it is back."""
    from chainlit.config import config

    async def scenario() -> None:
        async with house(host="0.0.0.0") as home:
            monkeypatch.setattr(config.project, "session_timeout", 5)
            before = await logged_in(home, "ada")
            await before.open()
            await before.ask("hello")
            await before.socket.disconnect()
            ended = before.token
            await before.http.post("/logout")
            monkeypatch.setattr(config.project, "user_session_timeout", 1000)  # or else it is the same token
            after = await logged_in(home, "ada")
            after.session = before.session
            await after.connect()
            await after.send("and more")
            await after.shows("demo heard: and more ")
            # two headers, of which the parts of Chainlit do not read the same one
            for tokens in ([ended, after.token], [after.token, ended]):
                assert not await opens(home.base, [("Cookie", f"access_token={token}; x=") for token in tokens])

    asyncio.run(scenario())


@pytest.mark.usefixtures("accounts")
def test_a_login_that_has_ended_cannot_be_spelt_anew(house: Serve) -> None:
    async def scenario() -> None:
        async with house(host="0.0.0.0") as home, httpx.AsyncClient(base_url=home.base) as client:
            ada = await logged_in(home, "ada")
            padded = {"Authorization": f"Bearer {ada.token}="}  # whose signature decodes to the same bytes
            assert (await client.get("/user", headers=padded)).status_code == 200
            await ada.http.post("/logout")
            assert (await client.get("/user", headers=padded)).status_code == 401

    asyncio.run(scenario())


def test_what_is_no_name_fills_no_memory(accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    logins = Logins("0.0.0.0", accounts, (), None, audit)  # type: ignore[arg-type]
    checked = []
    verify = accounts.verify
    monkeypatch.setattr(accounts, "verify", lambda name, password: checked.append(name) or verify(name, password))

    async def scenario() -> None:
        for name in ("x" * 1_000_000, "two words", "", "nobody"):
            assert await logins.with_password(name, PASSWORD) is None
        assert await logins.with_password("ada", PASSWORD)

    asyncio.run(scenario())
    audit.close()
    assert len(checked) == 5  # each takes as long
    assert list(logins._failures._events) == ["nobody"]


def test_ended_logins_are_forgotten_when_they_would_have_expired(
    accounts: Accounts, database_url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chainlit.auth.jwt import create_jwt
    from chainlit.user import User

    token = create_jwt(User(identifier="ada"))
    later = int(time.time()) + 10**6

    async def scenario() -> None:
        history = History(database.connect(database_url, tmp_path / "history.sqlite"))
        await database.migrate(history.engine)
        await history.revoke("old", 1)
        await history.revoke("new", later)
        assert await history.revoked(0) == {"new"}

        audit = Audit(tmp_path / "audit.jsonl")
        logins = Logins("0.0.0.0", accounts, (), history, audit)
        assert await logins.is_valid(token)
        with monkeypatch.context() as patch:
            patch.setattr(history, "revoke", AsyncMock())  # the database does not answer
            await logins.revoke(token)
        logins._revoked.add("expired")
        logins._revoked_at -= 60
        assert not await logins.is_valid(token)
        assert logins._revoked == {"new"}
        assert len(logins._ended) == 1
        monkeypatch.setattr(logins_module, "time", SimpleNamespace(time=lambda: later, monotonic=time.monotonic))
        logins._revoked_at -= 60
        await logins.is_valid(token)
        assert not logins._revoked
        assert not logins._ended
        audit.close()
        await history.close()

    asyncio.run(scenario())
