"""SQLAlchemy Core with its asyncio extension, on aiosqlite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    Update,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from benchmarks.contenders.base import (
    CALL,
    CONTEXT,
    COST_NANO_USD,
    EVENT,
    MESSAGE,
    OWNER,
    TTL,
    new_id,
    new_token,
    utc_now,
)
from benchmarks.contenders.sqlalchemy_engine import JSON, Time, make_engine

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from benchmarks.contenders.base import NewEvent

__all__ = ["SqlalchemyCore", "make"]

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", Text),
    Column("session_id", Text),
    Column("event_type", Text),
    Column("level", Text),
    Column("message", Text),
    Column("context", JSON),
    Column("created_at", Time),
)

worktrees = Table(
    "worktrees",
    metadata,
    Column("id", Text, primary_key=True),
    Column("repository_id", Text),
    Column("path", Text),
    Column("branch", Text),
    Column("commit_sha", Text),
    Column("environment_hashes", JSON),
    Column("state", Text),
    Column("lease_owner", Text),
    Column("lease_token", Text),
    Column("leased_at", Time),
    Column("lease_expires_at", Time),
    Column("version", Integer),
    Column("created_at", Time),
    Column("updated_at", Time),
)

cost_entries = Table(
    "cost_entries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text),
    Column("request_id", Text),
    Column("provider", Text),
    Column("model", Text),
    Column("tokens_in", Integer),
    Column("tokens_out", Integer),
    Column("tokens_cached", Integer),
    Column("cost_nano_usd", Integer),
    Column("created_at", Time),
)

budget_reservations = Table(
    "budget_reservations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text),
    Column("request_id", Text),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("status", Text),
    Column("cost_nano_usd", Integer),
    Column("tokens_in", Integer),
    Column("tokens_out", Integer),
    Column("tokens_cached", Integer),
    Column("requests_made", Integer),
    Column("updated_at", Time),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("title", Text),
    Column("description", Text),
    Column("task_type", Text),
    Column("status", Text),
    Column("config", JSON),
    Column("metadata", JSON),
    Column("workspace_path", Text),
    Column("created_at", Time),
    Column("updated_at", Time),
    Column("started_at", Time),
    Column("completed_at", Time),
    Column("error", Text),
    Column("lease_owner", Text),
    Column("lease_token", Text),
    Column("leased_at", Time),
    Column("lease_expires_at", Time),
    Column("version", Integer),
)

# Built once, as its documentation on caching advises; values are bound when they run.
APPEND = insert(events)
GET = select(worktrees).where(worktrees.c.id == bindparam("key"))
PAGE = (
    select(events)
    .where(events.c.session_id == bindparam("session"), events.c.position > bindparam("after"))
    .order_by(events.c.position)
    .limit(50)
)
# Literals, for an index on an expression, or a partial one, is not found by a bound parameter.
READY = worktrees.c.state == literal_column("'ready'")
FREE_SINCE = func.coalesce(worktrees.c.lease_expires_at, literal_column("''"), type_=Time)
TAKE = {
    "lease_owner": bindparam("owner"),
    "lease_token": bindparam("token"),
    "leased_at": bindparam("now"),
    "lease_expires_at": bindparam("expiry"),
    "version": worktrees.c.version + 1,
    "updated_at": bindparam("now"),
}
RESERVE = (
    update(worktrees)
    .where(
        worktrees.c.id == bindparam("key"),
        worktrees.c.version == bindparam("fence"),
        READY,
        or_(
            worktrees.c.lease_expires_at.is_(None),
            worktrees.c.lease_expires_at <= bindparam("now"),
        ),
    )
    .values(TAKE)
    .returning(worktrees)
)
RELEASE = (
    update(worktrees)
    .where(
        worktrees.c.id == bindparam("key"),
        worktrees.c.version == bindparam("fence"),
        worktrees.c.lease_owner == bindparam("owner"),
        worktrees.c.lease_token == bindparam("token"),
        worktrees.c.lease_expires_at > bindparam("now"),
    )
    .values(
        lease_owner=None,
        lease_token=None,
        leased_at=None,
        lease_expires_at=None,
        version=worktrees.c.version + 1,
        updated_at=bindparam("now"),
    )
    .returning(worktrees)
)
ACQUIRE = (
    update(worktrees)
    .where(
        worktrees.c.id
        == select(worktrees.c.id)
        .where(
            READY,
            worktrees.c.repository_id == bindparam("repository"),
            bindparam("now", type_=Time) >= FREE_SINCE,
        )
        .order_by(FREE_SINCE, worktrees.c.updated_at)
        .limit(1)
        .correlate(None)
        .scalar_subquery()
    )
    .values(TAKE)
    .returning(worktrees)
)

RECORD = insert_or_ignore(cost_entries).on_conflict_do_nothing()
SETTLE = delete(budget_reservations).where(
    budget_reservations.c.job_id == bindparam("job"),
    budget_reservations.c.request_id == bindparam("request"),
)
CHARGE = (
    update(jobs)
    .where(jobs.c.id == bindparam("job"))
    .values(
        cost_nano_usd=jobs.c.cost_nano_usd + bindparam("cost"),
        tokens_in=jobs.c.tokens_in + bindparam("in"),
        tokens_out=jobs.c.tokens_out + bindparam("out"),
        tokens_cached=jobs.c.tokens_cached + bindparam("cached"),
        requests_made=jobs.c.requests_made + 1,
        updated_at=bindparam("now"),
    )
    .returning(jobs)
)

CLAIM = (
    update(tasks)
    .where(
        tasks.c.id
        == func.coalesce(
            select(tasks.c.id)
            .where(tasks.c.lease_expires_at <= bindparam("now", type_=Time))
            .order_by(tasks.c.lease_expires_at)
            .limit(1)
            .correlate(None)
            .scalar_subquery(),
            select(tasks.c.id)
            .where(tasks.c.status == literal_column("'pending'"))
            .order_by(tasks.c.created_at, tasks.c.id)
            .limit(1)
            .correlate(None)
            .scalar_subquery(),
        )
    )
    .values(
        status="running",
        started_at=bindparam("now", type_=Time),
        lease_owner=bindparam("owner"),
        lease_token=bindparam("token"),
        leased_at=bindparam("now", type_=Time),
        lease_expires_at=bindparam("expiry", type_=Time),
        version=tasks.c.version + 1,
        updated_at=bindparam("now", type_=Time),
    )
    .returning(tasks)
)
GIVE_BACK = (
    update(tasks)
    .where(
        tasks.c.id == bindparam("key"),
        tasks.c.version == bindparam("fence"),
        tasks.c.lease_owner == bindparam("owner"),
        tasks.c.lease_token == bindparam("token"),
        tasks.c.lease_expires_at > bindparam("now", type_=Time),
    )
    .values(
        status="pending",
        started_at=None,
        lease_owner=None,
        lease_token=None,
        leased_at=None,
        lease_expires_at=None,
        version=tasks.c.version + 1,
        updated_at=bindparam("now", type_=Time),
    )
    .returning(tasks)
)


class SqlalchemyCore:
    """Statements built once, a connection of the pool for each operation."""

    engine: AsyncEngine

    def __init__(self, pool_size: int | None) -> None:
        self._pool_size = pool_size

    async def open(self, path: Path) -> None:
        """Make the engine."""
        self.engine = make_engine(path, self._pool_size)

    async def close(self) -> None:
        """Dispose of it."""
        await self.engine.dispose()

    async def pragma(self, name: str) -> Any:
        """Return a setting."""
        async with self.engine.connect() as connection:
            return (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()

    async def append(self, session_id: str) -> dict[str, Any]:
        """Append."""
        async with self.engine.begin() as connection:
            return await self._append(connection, session_id)

    async def append_many(self, session_id: str, new: list[NewEvent]) -> None:
        """Append many."""
        rows = [_event(session_id, *it) for it in new]
        async with self.engine.begin() as connection:
            await connection.execute(APPEND, rows)

    async def get(self, worktree_id: str) -> Row[Any]:
        """Get."""
        async with self.engine.connect() as connection:
            return await self._one(connection, GET, {"key": worktree_id})

    async def page(self, session_id: str, after: int) -> list[Row[Any]]:
        """Page."""
        async with self.engine.connect() as connection:
            result = await connection.execute(PAGE, {"session": session_id, "after": after})
            return list(result.all())

    async def reserve(self, worktree: Row[Any]) -> Row[Any]:
        """Reserve."""
        async with self.engine.begin() as connection:
            return await self._one(connection, RESERVE, _reserve(worktree))

    async def release(self, held: Row[Any]) -> Row[Any]:
        """Release."""
        async with self.engine.begin() as connection:
            return await self._one(connection, RELEASE, _release(held))

    async def acquire(self, repository_id: str) -> Row[Any]:
        """Acquire."""
        async with self.engine.begin() as connection:
            return await self._one(connection, ACQUIRE, {"repository": repository_id, **_take()})

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """Run the five statements."""
        async with self.engine.begin() as connection:
            worktree = await self._one(connection, GET, {"key": worktree_id})
            await self._append(connection, session_id)
            held = await self._one(connection, RESERVE, _reserve(worktree))
            await self._append(connection, session_id)
            await self._one(connection, RELEASE, _release(held))

    async def record_cost(self, job_id: str) -> Row[Any]:
        """Record."""
        now, request_id = utc_now(), new_id()
        entry = {
            "id": new_id(),
            "job_id": job_id,
            "request_id": request_id,
            "cost_nano_usd": COST_NANO_USD,
            "created_at": now,
            **CALL,
        }
        charge = {
            "job": job_id,
            "cost": COST_NANO_USD,
            "in": CALL["tokens_in"],
            "out": CALL["tokens_out"],
            "cached": CALL["tokens_cached"],
            "now": now,
        }
        async with self.engine.begin() as connection:
            await connection.execute(RECORD, entry)
            await connection.execute(SETTLE, {"job": job_id, "request": request_id})
            return await self._one(connection, CHARGE, charge)

    async def claim(self) -> Row[Any]:
        """Claim."""
        async with self.engine.begin() as connection:
            return await self._one(connection, CLAIM, _take())

    async def give_back(self, held: Row[Any]) -> Row[Any]:
        """Give back."""
        async with self.engine.begin() as connection:
            return await self._one(connection, GIVE_BACK, _release(held))

    @staticmethod
    async def _append(connection: AsyncConnection, session_id: str) -> dict[str, Any]:
        row = _event(session_id)
        result = await connection.execute(APPEND, row)
        return {"position": result.inserted_primary_key[0], **row}

    @staticmethod
    async def _one(
        connection: AsyncConnection, statement: Select[Any] | Update, values: dict[str, Any]
    ) -> Row[Any]:
        return (await connection.execute(statement, values)).one()


def _event(
    session_id: str,
    event_type: str = EVENT,
    message: str = MESSAGE,
    level: str = "info",
    context: dict[str, Any] = CONTEXT,
) -> dict[str, Any]:
    return {
        "id": new_id(),
        "session_id": session_id,
        "event_type": event_type,
        "level": level,
        "message": message,
        "context": context,
        "created_at": utc_now(),
    }


def _take() -> dict[str, Any]:
    now = utc_now()
    return {"owner": OWNER, "token": new_token(), "now": now, "expiry": now + TTL}


def _reserve(worktree: Row[Any]) -> dict[str, Any]:
    return {"key": worktree.id, "fence": worktree.version, **_take()}


def _release(held: Row[Any]) -> dict[str, Any]:
    return {
        "key": held.id,
        "fence": held.version,
        "owner": held.lease_owner,
        "token": held.lease_token,
        "now": utc_now(),
    }


def make(pool_size: int | None) -> SqlalchemyCore:
    """Return the contender."""
    return SqlalchemyCore(pool_size)
