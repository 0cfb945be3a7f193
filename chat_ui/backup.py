"""Backup and restore of the history, from and into SQLite or PostgreSQL, while the server runs or not.

    python -m chat_ui.backup --to history-2026-11-27.jsonl.gz
    python -m chat_ui.backup --restore history-2026-11-27.jsonl.gz

The database is that of the server: DATABASE_URL, or the file in its state folder. A backup is one consistent view of
it: a first line that says what it is, a line per row, and a last line with their count, so that half a file is told
from a whole one. Rows that are there already stay as they are, so restoring twice does no harm; what a user said comes
back to the user of that name, whose id may be another one by now; and a backup of one kind of database can be restored
into the other.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from chat_ui import database
from utils.command_line import run
from utils.files import InputError, write_atomically
from utils.outputs import check_output_file

KIND = "chat history"
BATCH = 500  # rows per statement
DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError)  # of a file that is no backup, or half of one


@dataclass(frozen=True)
class Config:
    """Write the history of the chat into a file, or put such a file's content back."""

    to: Path | None = None
    """The file to write: lines of JSON, compressed with gzip."""
    restore: Path | None = None
    """The file to put back. What is in the history already stays."""
    state: Path = Path("runs/chat")
    """The folder that the server keeps its things in; with DATABASE_URL, the database is used that it names."""
    overwrite: bool = False
    """Replace an existing backup."""

    def __post_init__(self) -> None:
        if (self.to is None) == (self.restore is None):
            raise InputError("give either --to, for a backup, or --restore")


def main(config: Config) -> None:
    """Do what is asked, and print how many rows it was."""
    url = os.environ.get("DATABASE_URL")
    file = config.state / "history.sqlite"
    if config.to is not None:
        check_output_file(config.to, overwrite=config.overwrite, is_ours=_is_backup, inputs=[file], flag="--to")
        if url is None and not file.exists():
            raise InputError(f"{file} does not exist: there is no history yet")
    engine = database.connect(url, file)
    try:
        rows = asyncio.run(_run(engine, config))
    except IntegrityError as error:
        raise InputError(
            f"{config.restore} cannot be restored, since its rows do not fit together: {_in_short(error.orig)}"
        ) from error
    except SQLAlchemyError as error:
        raise InputError(f"the database does not answer: {_in_short(error)}") from error
    print(f"{rows:,} rows {'written' if config.to else 'restored'}")


async def _run(engine: AsyncEngine, config: Config) -> int:
    try:
        await database.migrate(engine)
        if config.to is not None:
            return await back_up(engine, config.to)
        assert config.restore is not None
        return await restore(engine, config.restore)
    finally:
        await engine.dispose()


async def back_up(engine: AsyncEngine, path: Path) -> int:
    """Write all rows into a file, as they are at one moment, and return their number."""
    n_rows = 0
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        with write_atomically(path) as file, gzip.open(file, "wt", encoding="utf-8") as lines:
            lines.write(json.dumps({"kind": KIND, "migrations": len(database.MIGRATIONS)}) + "\n")
            for table in database.TABLES:
                async for row in await connection.stream(select(table)):
                    lines.write(json.dumps([table.name, *row], ensure_ascii=False) + "\n")
                    n_rows += 1
            lines.write(json.dumps({"rows": n_rows}) + "\n")
    return n_rows


async def restore(engine: AsyncEngine, path: Path) -> int:
    """Put the rows of a backup into the database, all or none, and return their number.

    Raises:
        InputError: if the file is not a whole backup, or one of a newer version.
        IntegrityError: if a row refers to one that is neither in the backup nor in the database.
    """
    _check_whole(path)
    insert = (postgresql if engine.dialect.name == "postgresql" else sqlite).insert
    n_rows = 0
    ids: dict[str, str] = {}  # of users: in the backup, and in the database
    async with database.writing(engine) as connection:
        for table, rows in _batches(path):
            if table is database.THREADS:
                rows = [row | {"user_id": ids.get(row["user_id"], row["user_id"])} for row in rows]
            await connection.execute(insert(table).on_conflict_do_nothing(), rows)
            if table is database.USERS:
                ids |= await _ids_of(connection, rows)
            n_rows += len(rows)
    return n_rows


async def _ids_of(connection: AsyncConnection, users: list[dict[str, Any]]) -> dict[str, str]:
    """Return the ids that users of a backup have in the database, where somebody of their name may have been before."""
    names = [user["identifier"] for user in users]
    query = select(database.USERS.c.identifier, database.USERS.c.id).where(database.USERS.c.identifier.in_(names))
    here: dict[str, str] = dict((await connection.execute(query)).all())
    return {user["id"]: here[user["identifier"]] for user in users if user["identifier"] in here}


def _check_whole(path: Path) -> None:
    """Check that a backup is one, that we know its form, and that its end is there."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            first = json.loads(next(lines, "null"))
            if not isinstance(first, dict) or first.get("kind") != KIND:
                raise ValueError("it is no backup of a chat history")
            if first["migrations"] > len(database.MIGRATIONS):
                raise ValueError("it was written by a newer version")
            n_rows, last = -1, "null"
            for line in lines:
                n_rows, last = n_rows + 1, line
            if json.loads(last) != {"rows": n_rows}:
                raise ValueError("its end is missing")
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path} cannot be restored: {error}") from error


def _batches(path: Path) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Yield rows by table, in the order of the file, which is that in which they refer to each other."""
    tables = {table.name: table for table in database.TABLES}
    current, batch = None, []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            content = json.loads(line)
            if isinstance(content, dict):  # the last line
                break
            table = tables[content[0]]
            if table is not current or len(batch) == BATCH:
                if batch:
                    yield current, batch
                current, batch = table, []
            batch.append(dict(zip(table.columns.keys(), content[1:], strict=True)))
    if batch:
        yield current, batch


def _in_short(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _is_backup(path: Path) -> bool:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return json.loads(next(lines))["kind"] == KIND
    except DAMAGE:
        return False


if __name__ == "__main__":
    run(main, Config)
