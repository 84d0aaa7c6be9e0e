"""Peewee with its asyncio database, on aiosqlite."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from peewee import SQL, IntegerField, JSONField, Select, TextField, fn
from playhouse.pwasyncio import AsyncModel, AsyncSqliteDatabase

from benchmarks.contenders.base import (
    BUSY_TIMEOUT,
    CALL,
    CONTEXT,
    COST_NANO_USD,
    EVENT,
    MESSAGE,
    OWNER,
    TTL,
    encode_time,
    new_id,
    new_token,
    utc_now,
)

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.base import NewEvent

__all__ = ["PeeweeOrm", "make"]


class TimeField(TextField):
    """A time, in the text that the tables hold."""

    def db_value(self, value: Any) -> Any:
        """Encode."""
        return encode_time(value) if isinstance(value, datetime) else value

    def python_value(self, value: Any) -> Any:
        """Decode."""
        return datetime.fromisoformat(value) if isinstance(value, str) else value


class Event(AsyncModel):
    """A row of `events`."""

    position = IntegerField(primary_key=True)
    id = TextField()
    session_id = TextField()
    event_type = TextField()
    level = TextField()
    message = TextField()
    context = JSONField()
    created_at = TimeField()

    class Meta:
        """Where it is."""

        table_name = "events"


class Worktree(AsyncModel):
    """A row of `worktrees`."""

    id = TextField(primary_key=True)
    repository_id = TextField()
    path = TextField()
    branch = TextField(null=True)
    commit_sha = TextField(null=True)
    environment_hashes = JSONField()
    state = TextField()
    lease_owner = TextField(null=True)
    lease_token = TextField(null=True)
    leased_at = TimeField(null=True)
    lease_expires_at = TimeField(null=True)
    version = IntegerField()
    created_at = TimeField()
    updated_at = TimeField()

    class Meta:
        """Where it is."""

        table_name = "worktrees"


class CostEntry(AsyncModel):
    """A row of `cost_entries`."""

    id = TextField(primary_key=True)
    job_id = TextField()
    request_id = TextField()
    provider = TextField()
    model = TextField()
    tokens_in = IntegerField()
    tokens_out = IntegerField()
    tokens_cached = IntegerField()
    cost_nano_usd = IntegerField()
    created_at = TimeField()

    class Meta:
        """Where it is."""

        table_name = "cost_entries"


class BudgetReservation(AsyncModel):
    """A row of `budget_reservations`, as far as it is of interest here."""

    id = TextField(primary_key=True)
    job_id = TextField()
    request_id = TextField()

    class Meta:
        """Where it is."""

        table_name = "budget_reservations"


class Job(AsyncModel):
    """A row of `jobs`, as far as it is of interest here."""

    id = TextField(primary_key=True)
    status = TextField()
    cost_nano_usd = IntegerField()
    tokens_in = IntegerField()
    tokens_out = IntegerField()
    tokens_cached = IntegerField()
    requests_made = IntegerField()
    updated_at = TimeField()

    class Meta:
        """Where it is."""

        table_name = "jobs"


# SQL, for an index on an expression, or a partial one, is not found by a bound parameter.
FREE_SINCE = fn.coalesce(Worktree.lease_expires_at, SQL("''"))
READY = SQL("state = 'ready'")


class PeeweeOrm:
    """A connection of the pool for each operation, as it advises for a request."""

    database: AsyncSqliteDatabase

    def __init__(self, pool_size: int | None) -> None:
        self._settings = {} if pool_size is None else {"pool_size": pool_size}

    async def open(self, path: Path) -> None:
        """Make the pool."""
        self.database = AsyncSqliteDatabase(
            str(path),
            pragmas={"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1},
            timeout=BUSY_TIMEOUT,
            acquire_timeout=BUSY_TIMEOUT,
            **self._settings,
        )
        self.database.bind([Event, Worktree, CostEntry, BudgetReservation, Job])

    async def close(self) -> None:
        """Close it."""
        await self.database.close_pool()

    async def pragma(self, name: str) -> Any:
        """Return a setting."""
        async with self.database:
            return (await self.database.aexecute_sql(f"PRAGMA {name}")).fetchone()[0]

    async def append(self, session_id: str) -> Event:
        """Append."""
        async with self.database:
            return await Event.acreate(**_event(session_id))

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many: one INSERT."""
        rows = [_event(session_id, *it) for it in events]
        async with self.database:
            await self.database.aexecute(Event.insert_many(rows))

    async def get(self, worktree_id: str) -> Worktree:
        """Get."""
        async with self.database:
            return await Worktree.aget_by_id(worktree_id)

    async def page(self, session_id: str, after: int) -> list[Event]:
        """Page."""
        query = (
            Event.select()
            .where(Event.session_id == session_id, Event.position > after)
            .order_by(Event.position)
            .limit(50)
        )
        async with self.database:
            return await self.database.list(query)

    async def reserve(self, worktree: Worktree) -> Worktree:
        """Reserve."""
        async with self.database:
            return await self._reserve(worktree)

    async def release(self, held: Worktree) -> Worktree:
        """Release."""
        async with self.database:
            return await self._release(held)

    async def acquire(self, repository_id: str) -> Worktree:
        """Acquire."""
        now = utc_now()
        inner = Worktree.alias()
        free_since = fn.coalesce(inner.lease_expires_at, SQL("''"))
        free: Select = (
            inner.select(inner.id)
            .where(
                READY,
                inner.repository_id == repository_id,
                free_since <= encode_time(now),
            )
            .order_by(free_since, inner.updated_at)
            .limit(1)
        )
        async with self.database:
            return await self._update(_take(now), Worktree.id == free)

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """Run the five statements."""
        async with self.database, self.database.atomic("IMMEDIATE"):
            worktree = await Worktree.aget_by_id(worktree_id)
            await Event.acreate(**_event(session_id))
            held = await self._reserve(worktree)
            await Event.acreate(**_event(session_id))
            await self._release(held)

    async def record_cost(self, job_id: str) -> Job:
        """Record."""
        now, request_id = utc_now(), new_id()
        async with self.database, self.database.atomic("IMMEDIATE"):
            await CostEntry.acreate(
                id=new_id(),
                job_id=job_id,
                request_id=request_id,
                cost_nano_usd=COST_NANO_USD,
                created_at=now,
                **CALL,
            )
            await self.database.aexecute(
                BudgetReservation.delete().where(
                    BudgetReservation.job_id == job_id, BudgetReservation.request_id == request_id
                )
            )
            query = (
                Job.update(
                    cost_nano_usd=Job.cost_nano_usd + COST_NANO_USD,
                    tokens_in=Job.tokens_in + CALL["tokens_in"],
                    tokens_out=Job.tokens_out + CALL["tokens_out"],
                    tokens_cached=Job.tokens_cached + CALL["tokens_cached"],
                    requests_made=Job.requests_made + 1,
                    updated_at=now,
                )
                .where(Job.id == job_id)
                .returning(Job)
            )
            [row] = await self.database.list(query)
            return row

    async def _reserve(self, worktree: Worktree) -> Worktree:
        now = utc_now()
        return await self._update(
            _take(now),
            Worktree.id == worktree.id,
            Worktree.version == worktree.version,
            READY,
            Worktree.lease_expires_at.is_null() | (Worktree.lease_expires_at <= now),
        )

    async def _release(self, held: Worktree) -> Worktree:
        now = utc_now()
        values = {
            "lease_owner": None,
            "lease_token": None,
            "leased_at": None,
            "lease_expires_at": None,
            "updated_at": now,
        }
        return await self._update(
            values,
            Worktree.id == held.id,
            Worktree.version == held.version,
            Worktree.lease_owner == held.lease_owner,
            Worktree.lease_token == held.lease_token,
            Worktree.lease_expires_at > now,
        )

    async def _update(self, values: dict[str, Any], *conditions: Any) -> Worktree:
        query = (
            Worktree.update(version=Worktree.version + 1, **values)
            .where(*conditions)
            .returning(Worktree)
        )
        [row] = await self.database.list(query)
        return row


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


def _take(now: datetime) -> dict[str, Any]:
    return {
        "lease_owner": OWNER,
        "lease_token": new_token(),
        "leased_at": now,
        "lease_expires_at": now + TTL,
        "updated_at": now,
    }


def make(pool_size: int | None) -> PeeweeOrm:
    """Return the contender."""
    return PeeweeOrm(pool_size)
