"""Logging in through a provider, which is a stand-in on loopback."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI, Form, Request

from chat_ui import server
from tests.chat_ui.fakes import FakeModels, FakeService, model, serving


def provider() -> FastAPI:
    """A provider whose codes are names."""
    app = FastAPI()

    @app.post("/token")
    async def token(code: str = Form(), client_secret: str = Form()) -> dict[str, str]:
        assert client_secret == "secret"
        return {"access_token": f"token of {code}"}

    @app.get("/user")
    async def user(request: Request) -> dict[str, str]:
        return {"email": request.headers["authorization"].removeprefix("Bearer token of ")}

    return app


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds the app with a provider at an address."""
    from chainlit import oauth_providers
    from chainlit.config import config

    def built(address: str) -> FastAPI:
        code = config.code
        code.password_auth_callback = code.header_auth_callback = code.oauth_callback = None
        for name, value in {
            "CLIENT_ID": "id", "CLIENT_SECRET": "secret", "SCOPES": "email", "AUTH_URL": f"{address}/authorize",
            "TOKEN_URL": f"{address}/token", "USER_INFO_URL": f"{address}/user",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"OAUTH_GENERIC_{name}", value)
        monkeypatch.setattr(oauth_providers, "providers", [oauth_providers.GenericOAuthProvider()])
        models = FakeModels(model("demo"))
        settings = server.Config(state=tmp_path, runs=tmp_path, oauth_allow=("*@example.org",))
        return server.build(settings, models, FakeService(models))  # type: ignore[arg-type]

    monkeypatch.delenv("DATABASE_URL", raising=False)
    yield built
    config.code.oauth_callback = None


def test_a_provider_vouches_for_those_who_are_allowed(build: Any) -> None:
    async def enter(base: str, name: str, state: str | None = None) -> httpx.AsyncClient:
        client = httpx.AsyncClient(base_url=base, timeout=20)
        begun = await client.get("/auth/oauth/generic")
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["redirect_uri"] == [f"{base}/auth/oauth/generic/callback"]
        state = state or asked["state"][0]
        await client.get("/auth/oauth/generic/callback", params={"code": name, "state": state})
        return client

    async def scenario() -> None:
        async with serving(provider()) as address, serving(build(address)) as base:
            ada = await enter(base, "ada@example.org")
            assert (await ada.get("/user")).json()["identifier"] == "ada@example.org"
            for client in (await enter(base, "mallory@evil.org"), await enter(base, "ada@example.org", state="forged")):
                assert (await client.get("/user")).status_code == 401
                await client.aclose()
            assert (await ada.post("/auth/header")).status_code == 400  # nobody is let in without
            assert (await ada.get("/v1/models")).status_code == 401
            await ada.aclose()

    asyncio.run(scenario())
