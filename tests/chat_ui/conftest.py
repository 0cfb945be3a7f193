"""What tests of the chat share: databases, and Chainlit in a folder that is thrown away."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from chat_ui import frontend, server
from tests.chat_ui.fakes import FakeModels, FakeService, House, Serve, model, serving

POSTGRES_PROGRAMS = [*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/local/bin"), Path("/usr/bin")]


@pytest.fixture(scope="session", autouse=True)
def chainlit_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chainlit is imported once per process, and then knows one folder."""
    home = tmp_path_factory.mktemp("chainlit")
    frontend.prepare(home)
    frontend.load()
    return home


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty PostgreSQL, which the tests start, and of which each test makes a database of its own."""
    programs = next((folder for folder in POSTGRES_PROGRAMS if (folder / "initdb").exists()), None)
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("postgres")
    data, user = folder / "data", []
    if os.geteuid() == 0:  # it refuses to run as root
        if "postgres" not in [entry.pw_name for entry in pwd.getpwall()]:
            pytest.skip("PostgreSQL needs a user that is not root")
        for parent in [folder, *folder.parents][:4]:
            parent.chmod(parent.stat().st_mode | 0o055)
        shutil.chown(folder, "postgres")
        user = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *arguments: str) -> None:
        subprocess.run([*user, str(programs / program), *arguments], check=True, capture_output=True, cwd=folder)

    call("initdb", "--pgdata", str(data), "--auth=trust", "--username=chat", "--no-sync", "--encoding=UTF8")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c shared_buffers=16MB"
    call("pg_ctl", "--pgdata", str(data), "--wait", "--log", str(folder / "log"), "--options", options, "start")
    yield f"postgresql://chat@/postgres?host={folder}"
    with suppress(FileNotFoundError):  # it has ended by itself
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)  # its immediate end


async def _make_database(server: str, name: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Whatever keeps the history: None for SQLite, or the address of an empty database of PostgreSQL."""
    if request.param == "sqlite":
        return None
    server: str = request.getfixturevalue("postgres")
    name = f"test_{os.getpid()}_{next(numbers)}"
    asyncio.run(_make_database(server, name))
    return server.replace("/postgres?", f"/{name}?")


numbers = iter(range(1_000_000))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves the app with a fake engine."""
    import chainlit.data
    from chainlit.config import config as chainlit_config
    from chainlit.session import ws_sessions_id, ws_sessions_sid

    for sessions in (ws_sessions_id, ws_sessions_sid):  # of an earlier test, whose event loop ended before they did
        sessions.clear()
    monkeypatch.delenv("DATABASE_URL", raising=False)

    @asynccontextmanager
    async def opened(*infos: Any, **settings: Any) -> AsyncIterator[House]:
        code = chainlit_config.code
        code.password_auth_callback = code.header_auth_callback = code.oauth_callback = None
        chainlit.data._data_layer_initialized, chainlit.data._data_layer = False, None
        monkeypatch.setattr(chainlit_config.project, "session_timeout", 0.05)
        models = FakeModels(*(infos or (model("demo"), model("other", kind="base"))))
        service = FakeService(models)
        config = server.Config(state=tmp_path / "state", runs=tmp_path, **settings)
        app = server.build(config, models, service)  # type: ignore[arg-type]
        async with serving(app) as base:
            house = House(base, app, service)
            try:
                yield house
            finally:
                for page in house.pages:
                    await page.close()

    return opened
