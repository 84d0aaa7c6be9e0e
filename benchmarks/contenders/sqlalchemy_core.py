"""SQLAlchemy Core with its asyncio extension, on aiosqlite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Boolean,
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
    AMOUNT_NANO_USD,
    CALL,
    CONTEXT,
    COST_NANO_USD,
    EVENT,
    MESSAGE,
    OWNER,
    TTL,
    check_budget,
    encode_json,
    encode_time,
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
    Column("hash", Text),
)

audit_chains = Table(
    "audit_chains",
    metadata,
    Column("resource", Text, primary_key=True),
    Column("resource_id", Text, primary_key=True),
    Column("last", Text),
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
    Column("amount_nano_usd", Integer),
    Column("expires_at", Time),
    Column("created_at", Time),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("task", Text),
    Column("repo_owner", Text),
    Column("repo_name", Text),
    Column("branch_base", Text),
    Column("status", Text),
    Column("budget_nano_usd", Integer),
    Column("max_requests", Integer),
    Column("max_minutes", Integer),
    Column("model_cto", Text),
    Column("model_coder", Text),
    Column("cost_nano_usd", Integer),
    Column("tokens_in", Integer),
    Column("tokens_out", Integer),
    Column("tokens_cached", Integer),
    Column("requests_made", Integer),
    Column("started_at", Time),
    Column("finished_at", Time),
    Column("cancelled", Boolean),
    Column("last_action", Text),
    Column("pr_links", JSON),
    Column("agents_hash", Text),
    Column("created_at", Time),
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
# The hash is computed in the statement, by a function that is registered with the connection; it
# covers texts, so that the document and the time are encoded before, and once.
NEW_EVENT = {
    name: bindparam(f"new_{name}", type_=Text)
    for name in ("id", "session_id", "event_type", "level", "message", "context", "created_at")
}
LAST = (
    select(audit_chains.c.last)
    .where(
        audit_chains.c.resource == "events", audit_chains.c.resource_id == NEW_EVENT["session_id"]
    )
    .scalar_subquery()
)
APPEND = insert(events).values(
    hash=func.metastore_sha256(func.coalesce(LAST, ""), *NEW_EVENT.values()), **NEW_EVENT
)
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

FORGET = delete(budget_reservations).where(
    budget_reservations.c.job_id == bindparam("job"),
    budget_reservations.c.expires_at <= bindparam("now"),
)
GET_JOB = select(jobs).where(jobs.c.id == bindparam("job"))
PROMISED = select(
    func.coalesce(func.sum(budget_reservations.c.amount_nano_usd), 0), func.count()
).where(
    budget_reservations.c.job_id == bindparam("job"),
    budget_reservations.c.expires_at > bindparam("now"),
    budget_reservations.c.request_id != bindparam("request"),
)
PROMISE = insert(budget_reservations)

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
COMPLETE = (
    update(tasks)
    .where(
        tasks.c.id == bindparam("key"),
        tasks.c.version == bindparam("fence"),
        tasks.c.lease_owner == bindparam("owner"),
        tasks.c.lease_token == bindparam("token"),
        tasks.c.lease_expires_at > bindparam("now", type_=Time),
    )
    .values(
        status="completed",
        completed_at=bindparam("now", type_=Time),
        lease_owner=None,
        lease_token=None,
        leased_at=None,
        lease_expires_at=None,
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

    async def reserve_budget(self, job_id: str) -> str:
        """Reserve."""
        now, request_id = utc_now(), new_id()
        asked = {"job": job_id, "now": now, "request": request_id}
        promise = {
            "id": new_id(),
            "job_id": job_id,
            "request_id": request_id,
            "amount_nano_usd": AMOUNT_NANO_USD,
            "expires_at": now + TTL,
            "created_at": now,
        }
        async with self.engine.begin() as connection:
            await connection.execute(FORGET, asked)
            job = await self._one(connection, GET_JOB, asked)
            check_budget(job, *await self._one(connection, PROMISED, asked))
            await connection.execute(PROMISE, promise)
        return request_id

    async def record_cost(self, job_id: str, reserved: str | None = None) -> Row[Any]:
        """Record."""
        now, request_id = utc_now(), reserved or new_id()
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

    async def complete(self, held: Row[Any]) -> Row[Any]:
        """Complete."""
        async with self.engine.begin() as connection:
            return await self._one(connection, COMPLETE, _release(held))

    @staticmethod
    async def _append(connection: AsyncConnection, session_id: str) -> dict[str, Any]:
        result = await connection.execute(APPEND, _event(session_id))
        return {
            "position": result.inserted_primary_key[0],
            "session_id": session_id,
            "event_type": EVENT,
            "level": "info",
            "message": MESSAGE,
            "context": CONTEXT,
        }

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
        "new_id": new_id(),
        "new_session_id": session_id,
        "new_event_type": event_type,
        "new_level": level,
        "new_message": message,
        "new_context": encode_json(context),
        "new_created_at": encode_time(utc_now()),
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
