"""The tables of the history, how they came to be, and the connection to the database that holds them.

SQLite in a file by default; PostgreSQL where DATABASE_URL names one, for several servers with one history. A migration
is never changed once it is released: a new one is added, and each database remembers which ones it has had.
"""

import json
import mmap
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    MetaData,
    Table,
    Text,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from utils.files import InputError

METADATA = MetaData()

USERS = Table(
    "users",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("identifier", Text, nullable=False, unique=True),
    Column("created_at", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
)
THREADS = Table(
    "threads",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text),
    Column("created_at", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
)
STEPS = Table(
    "steps",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("thread_id", Text, ForeignKey("threads.id", ondelete="CASCADE"), nullable=False),
    Column("parent_id", Text),
    Column("type", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("output", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("rest", JSON, nullable=False),
)
ELEMENTS = Table(
    "elements",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("thread_id", Text, ForeignKey("threads.id", ondelete="CASCADE"), nullable=False),
    Column("step_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("props", JSON, nullable=False),
)
REVOKED = Table(
    "revoked_logins",
    METADATA,
    Column("digest", Text, primary_key=True),
    Column("until", BigInteger, nullable=False),
)
TABLES = (USERS, THREADS, STEPS, ELEMENTS, REVOKED)  # each after those that it refers to

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE users (id TEXT PRIMARY KEY, identifier TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL,
        metadata JSON NOT NULL)""",
        """CREATE TABLE threads (id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        name TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, metadata JSON NOT NULL)""",
        "CREATE INDEX threads_of_user ON threads (user_id, updated_at)",
        """CREATE TABLE steps (id TEXT PRIMARY KEY, thread_id TEXT NOT NULL REFERENCES threads (id) ON DELETE CASCADE,
        parent_id TEXT, type TEXT NOT NULL, name TEXT NOT NULL, output TEXT NOT NULL, created_at TEXT NOT NULL,
        rest JSON NOT NULL)""",
        "CREATE INDEX steps_of_thread ON steps (thread_id, created_at)",
        """CREATE TABLE elements (id TEXT PRIMARY KEY,
        thread_id TEXT NOT NULL REFERENCES threads (id) ON DELETE CASCADE, step_id TEXT NOT NULL, name TEXT NOT NULL,
        props JSON NOT NULL)""",
        "CREATE INDEX elements_of_thread ON elements (thread_id)",
    ),
    ("CREATE TABLE revoked_logins (digest TEXT PRIMARY KEY, until BIGINT NOT NULL)",),
)

MIGRATION_LOCK = 7_263_011  # any number, the same for all servers of one PostgreSQL
BUSY_SECONDS = 5  # that a write waits for another one to SQLite
CONNECT_SECONDS = 5


def now() -> str:
    """Return the time as the history has it: UTC in ISO 8601, to the microsecond, with a Z."""
    return datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def connect(url: str | None, file: Path) -> AsyncEngine:
    """Return an engine for the database of the history. Nothing is opened yet.

    Args:
        url: of a PostgreSQL database, as DATABASE_URL has it; None for SQLite.
        file: of SQLite.

    Raises:
        InputError: if the URL names no PostgreSQL database.
    """
    if url is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(f"sqlite+aiosqlite:///{file}", json_serializer=_dumps)
        event.listen(engine.sync_engine, "do_connect", _check_opens)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        if _can_share_memory(file.parent):
            event.listen(engine.sync_engine, "connect", _write_ahead)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InputError("DATABASE_URL must look like postgresql://user:password@host/database") from error
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+asyncpg"):
        raise InputError(f"DATABASE_URL must name a postgresql database, got {parsed.drivername}://...")
    return create_async_engine(
        parsed.set(drivername="postgresql+asyncpg"),
        json_serializer=_dumps,
        pool_pre_ping=True,  # a connection that the database has closed is replaced
        pool_timeout=CONNECT_SECONDS,
        connect_args={"timeout": CONNECT_SECONDS, "command_timeout": BUSY_SECONDS},
    )


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _check_opens(dialect: object, record: object, arguments: list[str], settings: dict[str, Any]) -> None:
    """Open the file once before aiosqlite does, so that what cannot be opened fails here.

    Where aiosqlite itself fails, its thread goes on for a moment, and ends with a traceback if the event loop is closed
    before it (omnilib/aiosqlite#387).
    """
    sqlite3.connect(arguments[0]).close()


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions; `_begin_sqlite` does
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _can_share_memory(folder: Path) -> bool:
    """Return whether processes can share memory through files of a folder, as write-ahead logging has to.

    They cannot on some network volumes, and in folders that a virtual machine shares with its host.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(mmap.PAGESIZE)
        try:
            mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
        except OSError:
            return False
    return True


def _write_ahead(connection: sqlite3.Connection, record: object) -> None:
    """Switch a new file to write-ahead logging. Where two servers do so at once, SQLite refuses one without waiting."""
    cursor = connection.cursor()
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.close()
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # whatever the reason, which is above it
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: object) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a transaction that writes: SQLite then waits for another one at its beginning, where that is allowed."""
    async with engine.execution_options(writes=True).begin() as connection:
        yield connection


async def migrate(engine: AsyncEngine) -> None:
    """Bring a database to the newest form, all or nothing; two servers may start at once.

    Raises:
        InputError: if it was made by a newer version of this program.
    """
    async with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        await connection.execute(text("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, at TEXT)"))
        done = (await connection.execute(text("SELECT COUNT(*) FROM migrations"))).scalar_one()
        if done > len(MIGRATIONS):
            raise InputError(f"the history has had {done} migrations, and this version knows {len(MIGRATIONS)}: update")
        for number, statements in enumerate(MIGRATIONS[done:], done + 1):
            for statement in statements:
                await connection.execute(text(statement))
            await connection.execute(
                text("INSERT INTO migrations (number, at) VALUES (:number, :at)"), {"number": number, "at": now()}
            )
