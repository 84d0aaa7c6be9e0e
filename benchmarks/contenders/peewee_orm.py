"""Peewee with its asyncio database, on aiosqlite."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from peewee import (
    SQL,
    BooleanField,
    CompositeKey,
    IntegerField,
    JSONField,
    Select,
    TextField,
    fn,
)
from playhouse.pwasyncio import AsyncModel, AsyncSqliteDatabase

from benchmarks.contenders.base import (
    AMOUNT_NANO_USD,
    BUSY_TIMEOUT,
    CALL,
    CONTEXT,
    COST_NANO_USD,
    EVENT,
    MESSAGE,
    OWNER,
    TTL,
    chain,
    check_budget,
    encode_json,
    encode_time,
    new_id,
    new_token,
    utc_now,
)
from metastore.audit.links import link_hash

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
    context = JSONField(dumps=encode_json)
    created_at = TimeField()
    hash = TextField(null=True)

    class Meta:
        """Where it is."""

        table_name = "events"


class AuditChain(AsyncModel):
    """A row of `audit_chains`, as far as it is of interest here."""

    resource = TextField()
    resource_id = TextField()
    last = TextField()

    class Meta:
        """Where it is."""

        table_name = "audit_chains"
        primary_key = CompositeKey("resource", "resource_id")


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
    """A row of `budget_reservations`."""

    id = TextField(primary_key=True)
    job_id = TextField()
    request_id = TextField()
    amount_nano_usd = IntegerField()
    expires_at = TimeField()
    created_at = TimeField()

    class Meta:
        """Where it is."""

        table_name = "budget_reservations"


class Job(AsyncModel):
    """A row of `jobs`."""

    id = TextField(primary_key=True)
    task = TextField()
    repo_owner = TextField()
    repo_name = TextField()
    branch_base = TextField()
    status = TextField()
    budget_nano_usd = IntegerField(null=True)
    max_requests = IntegerField(null=True)
    max_minutes = IntegerField(null=True)
    model_cto = TextField(null=True)
    model_coder = TextField(null=True)
    cost_nano_usd = IntegerField()
    tokens_in = IntegerField()
    tokens_out = IntegerField()
    tokens_cached = IntegerField()
    requests_made = IntegerField()
    started_at = TimeField(null=True)
    finished_at = TimeField(null=True)
    cancelled = BooleanField()
    last_action = TextField(null=True)
    pr_links = JSONField()
    agents_hash = TextField(null=True)
    created_at = TimeField()
    updated_at = TimeField()

    class Meta:
        """Where it is."""

        table_name = "jobs"


class Task(AsyncModel):
    """A row of `tasks`."""

    id = TextField(primary_key=True)
    title = TextField()
    description = TextField(null=True)
    task_type = TextField()
    status = TextField()
    config = JSONField()
    metadata = JSONField(null=True)
    workspace_path = TextField(null=True)
    created_at = TimeField()
    updated_at = TimeField()
    started_at = TimeField(null=True)
    completed_at = TimeField(null=True)
    error = TextField(null=True)
    lease_owner = TextField(null=True)
    lease_token = TextField(null=True)
    leased_at = TimeField(null=True)
    lease_expires_at = TimeField(null=True)
    version = IntegerField()

    class Meta:
        """Where it is."""

        table_name = "tasks"


MODELS = (Event, AuditChain, Worktree, CostEntry, BudgetReservation, Job, Task)


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
        self.database.register_function(link_hash, "metastore_sha256", -1, deterministic=True)
        self.database.bind(MODELS)

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
            return await self._append(session_id)

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many: one INSERT. The chain covers positions: they are given out before."""
        rows = [_event(session_id, *it) for it in events]
        async with self.database, self.database.atomic("IMMEDIATE"):
            position = await self.database.aexecute_sql(
                "SELECT seq FROM sqlite_sequence WHERE name = 'events'"
            )
            last = await self.database.aexecute(_last(session_id).tuples())
            chain(next(iter(last), [""])[0], position.fetchone()[0], rows)
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
            await self._append(session_id)
            held = await self._reserve(worktree)
            await self._append(session_id)
            await self._release(held)

    async def reserve_budget(self, job_id: str) -> str:
        """Reserve."""
        now, request_id = utc_now(), new_id()
        promised = BudgetReservation.select(
            fn.coalesce(fn.sum(BudgetReservation.amount_nano_usd), 0), fn.count(SQL("*"))
        ).where(
            BudgetReservation.job_id == job_id,
            BudgetReservation.expires_at > now,
            BudgetReservation.request_id != request_id,
        )
        async with self.database, self.database.atomic("IMMEDIATE"):
            await self.database.aexecute(
                BudgetReservation.delete().where(
                    BudgetReservation.job_id == job_id, BudgetReservation.expires_at <= now
                )
            )
            job = await Job.aget_by_id(job_id)
            [others] = await self.database.list(promised.tuples())
            check_budget(job, *others)
            await BudgetReservation.acreate(
                id=new_id(),
                job_id=job_id,
                request_id=request_id,
                amount_nano_usd=AMOUNT_NANO_USD,
                expires_at=now + TTL,
                created_at=now,
            )
        return request_id

    async def record_cost(self, job_id: str, reserved: str | None = None) -> Job:
        """Record."""
        now, request_id = utc_now(), reserved or new_id()
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

    async def claim(self) -> Task:
        """Claim."""
        now = utc_now()
        inner, other = Task.alias(), Task.alias()
        expired: Select = (
            inner.select(inner.id)
            .where(inner.lease_expires_at <= encode_time(now))
            .order_by(inner.lease_expires_at)
            .limit(1)
        )
        pending: Select = (
            other.select(other.id)
            .where(SQL("status = 'pending'"))
            .order_by(other.created_at, other.id)
            .limit(1)
        )
        query = (
            Task.update(version=Task.version + 1, status="running", started_at=now, **_take(now))
            .where(Task.id == fn.coalesce(expired, pending))
            .returning(Task)
        )
        async with self.database:
            [row] = await self.database.list(query)
        return row

    async def complete(self, held: Task) -> Task:
        """Complete."""
        now = utc_now()
        query = (
            Task.update(
                status="completed",
                completed_at=now,
                lease_owner=None,
                lease_token=None,
                leased_at=None,
                lease_expires_at=None,
                updated_at=now,
            )
            .where(
                Task.id == held.id,
                Task.version == held.version,
                Task.lease_owner == held.lease_owner,
                Task.lease_token == held.lease_token,
                Task.lease_expires_at > now,
            )
            .returning(Task)
        )
        async with self.database:
            [row] = await self.database.list(query)
        return row

    @staticmethod
    async def _append(session_id: str) -> Event:
        row = _event(session_id)
        last = fn.coalesce(_last(session_id), "")
        covered = {
            **row,
            "context": encode_json(row["context"]),
            "created_at": encode_time(row["created_at"]),
        }
        return await Event.acreate(hash=fn.metastore_sha256(last, *covered.values()), **row)

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


def _last(session_id: str) -> Select:
    """Return the query of what the next event of a session follows."""
    return AuditChain.select(AuditChain.last).where(
        AuditChain.resource == "events", AuditChain.resource_id == session_id
    )


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
