"""What was said, kept in a database: Chainlit's data layer, written anew over a few plain tables.

Chainlit's own puts the thread id that a browser sent into the text of its SQL, lets one user write into another's
thread, and stores no lists and no creation times in SQLite. Here every value is a parameter, every id is checked to be
a UUID, and a row that belongs to somebody else is never touched.

A database that does not answer ends no conversation: what cannot be written is reported once, through `problem`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from sqlalchemy import Table, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from chat_ui.database import ELEMENTS, REVOKED, STEPS, THREADS, USERS, now, writing
from chat_ui.rows import clean_json, element_of, element_row, is_uuid, step_of, step_row, thread_of, with_parents
from chat_ui.texts import clean

if TYPE_CHECKING:  # importing Chainlit writes files: see frontend.py
    from chainlit.element import Element, ElementDict
    from chainlit.step import StepDict
    from chainlit.types import Feedback, PaginatedResponse, Pagination, ThreadDict, ThreadFilter
    from chainlit.user import PersistedUser, User

logger = logging.getLogger(__name__)

FAULTS = (SQLAlchemyError, OSError, TimeoutError)  # of a database that does not answer
LONGEST_NAME = 80  # characters of a thread's
LARGEST_PAGE = 50  # threads
MOST_OWNERS = 10_000  # remembered at once
GONE = "The history does not answer, so what is said now is not saved."


def _writes(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Turn a fault of the database into `History.problem`: a chat goes on without its history."""

    @functools.wraps(method)
    async def wrapper(self: History, *args: Any, **kwargs: Any) -> Any:
        self._n_writing += 1
        try:
            async with self._turn:
                result = await method(self, *args, **kwargs)
        except FAULTS as error:
            if self.problem is None:
                logger.warning("the history does not answer: %s", " ".join(str(error).split())[:300])
            self.problem = GONE
            self.n_faults += 1
            return None
        finally:
            self._n_writing -= 1
        self.problem = None
        return result

    return wrapper


def _in_thread(method: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Store nothing of a session before the reader's first message, with which its thread begins."""

    @functools.wraps(method)
    async def wrapper(self: History, *args: Any, **kwargs: Any) -> None:
        if _session().has_first_interaction:
            await method(self, *args, **kwargs)

    return wrapper


def _reads(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Answer "503 Service Unavailable" where the database does not."""

    @functools.wraps(method)
    async def wrapper(self: History, *args: Any, **kwargs: Any) -> Any:
        try:
            return await method(self, *args, **kwargs)
        except FAULTS as error:
            self.problem = GONE
            self.n_faults += 1
            raise HTTPException(503, GONE) from error

    return wrapper


class History:
    """Users, their threads, and what was said in them.

    Args:
        engine: of `database.connect`, after `database.migrate`.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.problem: str | None = None
        """What to tell a reader while nothing is saved; None while all is well."""
        self.n_faults = 0
        """How often the database did not answer."""
        self._owners: dict[str, str | None] = {}  # of threads that were written to: it never changes; None: deleted
        self._n_writing = 0
        # SQLite takes one write at a time, and lets the others try again at random; here they wait in line.
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else contextlib.nullcontext()

    # Users

    @_reads
    async def get_user(self, identifier: str) -> PersistedUser | None:
        """Return a user, if there is one of that name."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(select(USERS).where(USERS.c.identifier == identifier))).first()
        if row is None:
            return None
        from chainlit.user import PersistedUser

        return PersistedUser(id=row.id, identifier=row.identifier, createdAt=row.created_at, metadata=row.metadata)

    async def create_user(self, user: User) -> PersistedUser | None:
        """Store a user who logs in, and return them; one who is there already is only returned."""
        await self._insert_user(user)
        return await self.get_user(user.identifier)

    @_writes
    async def _insert_user(self, user: User) -> None:
        row = {
            "id": str(uuid.uuid4()),
            "identifier": user.identifier,
            "created_at": now(),
            "metadata": user.metadata,
        }
        async with writing(self.engine) as connection:
            await connection.execute(self._insert(USERS).values(row).on_conflict_do_nothing())

    @_writes
    async def revoke(self, digest: str, until: int) -> None:
        """Remember that a login has ended, by the digest of its token, until it would have expired (Unix time)."""
        over = delete(REVOKED).where(REVOKED.c.until <= int(time.time()))
        async with writing(self.engine) as connection:
            await connection.execute(over)
            await connection.execute(self._insert(REVOKED).values(digest=digest, until=until).on_conflict_do_nothing())

    @_reads
    async def revoked(self, since: int) -> set[str]:
        """Return the digests of all logins that have ended and would still be valid at a time."""
        async with self.engine.connect() as connection:
            return set((await connection.execute(select(REVOKED.c.digest).where(REVOKED.c.until > since))).scalars())

    # Threads

    @_reads
    async def get_thread_author(self, thread_id: str) -> str:
        """Return the name of the user whom a thread belongs to; "" if there is no such thread."""
        if not is_uuid(thread_id):
            return ""
        query = select(USERS.c.identifier).join(THREADS).where(THREADS.c.id == thread_id)
        async with self.engine.connect() as connection:
            return (await connection.execute(query)).scalar_one_or_none() or ""

    @_reads
    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        """Return a thread with all that was said in it."""
        if not is_uuid(thread_id):
            return None
        query = select(THREADS, USERS.c.identifier).join(USERS).where(THREADS.c.id == thread_id)
        async with self.engine.connect() as connection:
            thread = (await connection.execute(query)).first()
            if thread is None:
                return None
            steps = await connection.execute(
                select(STEPS).where(STEPS.c.thread_id == thread_id).order_by(STEPS.c.created_at, STEPS.c.id)
            )
            elements = await connection.execute(select(ELEMENTS).where(ELEMENTS.c.thread_id == thread_id))
        return thread_of(thread) | {  # type: ignore[return-value]
            "steps": with_parents([step_of(row) for row in steps]),
            "elements": [element_of(row) for row in elements],
        }

    @_reads
    async def list_threads(self, pagination: Pagination, filters: ThreadFilter) -> PaginatedResponse[ThreadDict]:
        """Return a page of a user's threads, those first in which something was said last; without what was said."""
        from chainlit.types import PageInfo, PaginatedResponse

        n_rows = min(max(pagination.first, 1), LARGEST_PAGE)
        wanted = THREADS.c.user_id == (filters.userId or "")
        if filters.search:
            said = STEPS.c.output.icontains(filters.search[:LONGEST_NAME], autoescape=True)
            named = THREADS.c.name.icontains(filters.search[:LONGEST_NAME], autoescape=True)
            wanted = and_(wanted, or_(named, exists().where(STEPS.c.thread_id == THREADS.c.id, said)))
        if pagination.cursor and is_uuid(pagination.cursor):
            last = select(THREADS.c.updated_at).where(THREADS.c.id == pagination.cursor).scalar_subquery()
            after = or_(
                THREADS.c.updated_at < last, and_(THREADS.c.updated_at == last, THREADS.c.id < pagination.cursor)
            )
            wanted = and_(wanted, after)
        query = select(THREADS, USERS.c.identifier).join(USERS).where(wanted)
        query = query.order_by(THREADS.c.updated_at.desc(), THREADS.c.id.desc()).limit(n_rows + 1)
        async with self.engine.connect() as connection:
            rows = [thread_of(row) for row in await connection.execute(query)]
        page = rows[:n_rows]
        ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        return PaginatedResponse(pageInfo=PageInfo(len(rows) > n_rows, *ends), data=page)

    @_writes
    async def update_thread(
        self,
        thread_id: str,
        name: str | None = None,
        user_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
    ) -> None:
        """Change what is given of a thread; make it, if it is new and `user_id` says whose it is."""
        if not is_uuid(thread_id):
            return
        changes: dict[str, Any] = {}
        if name is not None:
            changes["name"] = " ".join(clean(name).split())[:LONGEST_NAME]
        if metadata is not None:
            changes["metadata"] = clean_json(metadata)
        async with writing(self.engine) as connection:
            if user_id:
                await self._make_thread(connection, thread_id, user_id)
            if changes:
                await connection.execute(update(THREADS).where(THREADS.c.id == thread_id).values(changes))

    async def _make_thread(self, connection: AsyncConnection, thread_id: str, user_id: str) -> None:
        row = {"id": thread_id, "user_id": user_id, "created_at": now(), "updated_at": now(), "metadata": {}}
        await connection.execute(self._insert(THREADS).values(row).on_conflict_do_nothing())

    @_writes
    async def delete_thread(self, thread_id: str) -> None:
        """Delete a thread and all that was said in it."""
        async with writing(self.engine) as connection:
            await connection.execute(delete(THREADS).where(THREADS.c.id == thread_id))
        self._remember(thread_id, None)

    def is_deleted(self, thread_id: str) -> bool:
        """Return whether a thread was deleted, and nothing has been asked in it since."""
        return self._owners.get(thread_id, "") is None

    # Steps: messages, and the runs that answers belong to

    @_in_thread
    async def create_step(self, step_dict: StepDict) -> None:
        """Store a step, or what has changed of it."""
        await self.save_step(step_dict)

    @_in_thread
    async def update_step(self, step_dict: StepDict) -> None:
        """Store what has changed of a step."""
        await self.save_step(step_dict)

    @_writes
    async def save_step(self, step: StepDict, element: Mapping[str, Any] | None = None) -> None:
        """Store a step in a thread of the current user's, and what stands below it; a row of another thread is left.

        A run is stored when it ends. Of a thread that was deleted, only a message of the user's is stored: it begins
        the thread anew, while an answer that was still being written does not bring it back.
        """
        thread_id = step["threadId"]
        if not (is_uuid(step["id"]) and is_uuid(thread_id)) or (step["type"] == "run" and not step.get("end")):
            return
        if self.is_deleted(thread_id) and step["type"] == "user_message":
            del self._owners[thread_id]
        try:
            async with writing(self.engine) as connection:
                if not await self._is_own(connection, thread_id):
                    return
                await self._save(connection, STEPS, step_row(step), ("parent_id", "name", "output", "rest"))
                if element is not None:
                    await self._save(connection, ELEMENTS, element_row(element), ("props",))
                latest = update(THREADS).where(THREADS.c.id == thread_id).values(updated_at=now())
                await connection.execute(latest)
        except IntegrityError:  # the thread has been deleted, on another page or by another server
            self._remember(thread_id, None)

    async def _save(
        self, connection: AsyncConnection, table: Table, row: Mapping[str, Any], changing: tuple[str, ...]
    ) -> None:
        query = self._insert(table).values(row)
        here = table.c.thread_id == row["thread_id"]
        changes = {name: row[name] for name in changing}
        await connection.execute(query.on_conflict_do_update(index_elements=["id"], set_=changes, where=here))

    @_in_thread
    @_writes
    async def delete_step(self, step_id: str) -> None:
        """Delete a step of the current thread, its elements, and the run that it leaves empty."""
        thread_id = _session().thread_id
        here = and_(STEPS.c.id == step_id, STEPS.c.thread_id == thread_id)
        async with writing(self.engine) as connection:
            row = (await connection.execute(select(STEPS.c.parent_id).where(here))).first()
            if row is None:
                return
            await connection.execute(delete(ELEMENTS).where(ELEMENTS.c.step_id == step_id))
            await connection.execute(delete(STEPS).where(here))
            child = STEPS.alias()
            empty = ~exists().where(child.c.parent_id == STEPS.c.id)
            run = and_(STEPS.c.id == row.parent_id, STEPS.c.thread_id == thread_id, STEPS.c.type == "run", empty)
            await connection.execute(delete(STEPS).where(run))

    # Elements: what stands below an answer, and two answers side by side

    async def create_element(self, element: Element) -> None:
        """Store nothing: our pages have no elements but those of `save_step`."""

    @_reads
    async def get_element(self, thread_id: str, element_id: str) -> ElementDict | None:
        """Return an element of a thread."""
        query = select(ELEMENTS).where(ELEMENTS.c.id == element_id, ELEMENTS.c.thread_id == thread_id)
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return row and element_of(row)

    async def delete_element(self, element_id: str, thread_id: str | None = None) -> None:
        """Delete nothing: an element goes with its step."""

    # The rest

    async def answers(self) -> bool:
        """Return whether the database answers."""
        try:
            async with asyncio.timeout(2), self.engine.connect() as connection:
                await connection.execute(select(func.count()).select_from(REVOKED))
        except FAULTS:
            return False
        return True

    async def upsert_feedback(self, feedback: Feedback) -> str:
        """Refuse: there is no feedback here."""
        raise HTTPException(404)

    async def delete_feedback(self, feedback_id: str) -> bool:
        """Refuse: there is no feedback here."""
        raise HTTPException(404)

    async def get_favorite_steps(self, user_id: str) -> list[StepDict]:
        """Return nothing: there are no favourites here."""
        return []

    async def build_debug_url(self) -> str:
        """Return nothing: there is no page for debugging."""
        return ""

    async def close(self) -> None:
        """Close all connections, when what is being written is there: Chainlit waits for none of its writes."""
        await asyncio.sleep(0)
        while self._n_writing:
            await asyncio.sleep(0.01)
        await self.engine.dispose()

    def _insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        return (postgresql if self.engine.dialect.name == "postgresql" else sqlite).insert(table)

    async def _is_own(self, connection: AsyncConnection, thread_id: str) -> bool:
        """Return whether a thread is the current user's, after making it if it is new."""
        user = _session().user
        if user is None:
            return False
        if thread_id in self._owners:
            return self._owners[thread_id] == user.identifier
        mine = select(USERS.c.id).where(USERS.c.identifier == user.identifier)
        user_id = (await connection.execute(mine)).scalar_one_or_none()
        if user_id is None:  # who logged in while the database was gone
            user_id = str(uuid.uuid4())
            row = {"id": user_id, "identifier": user.identifier, "created_at": now(), "metadata": {}}
            await connection.execute(insert(USERS).values(row))
        await self._make_thread(connection, thread_id, user_id)
        owner = select(THREADS.c.user_id).where(THREADS.c.id == thread_id)
        if (await connection.execute(owner)).scalar_one_or_none() != user_id:
            return False
        self._remember(thread_id, user.identifier)
        return True

    def _remember(self, thread_id: str, owner: str | None) -> None:
        self._owners.pop(thread_id, None)
        self._owners[thread_id] = owner  # last in the order of the dictionary
        if len(self._owners) > MOST_OWNERS:
            del self._owners[next(iter(self._owners))]


def _session() -> Any:
    from chainlit.context import context

    return context.session
