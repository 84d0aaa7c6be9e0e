"""Tortoise: one connection, which it guards with a lock of its own."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from tortoise import Tortoise, connections, fields
from tortoise.expressions import F, Q, RawSQL
from tortoise.functions import Coalesce, Count, Sum
from tortoise.models import Model
from tortoise.transactions import in_transaction

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
    encode_time,
    link,
    new_id,
    new_token,
    utc_now,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tortoise.backends.base.client import BaseDBAsyncClient

    from benchmarks.contenders.base import NewEvent

__all__ = ["TortoiseOrm", "make"]


class TimeField(fields.Field[datetime], datetime):
    """A time, in the text that the tables hold."""

    SQL_TYPE = "TEXT"

    def to_db_value(self, value: Any, instance: object) -> Any:
        """Encode."""
        return encode_time(value) if isinstance(value, datetime) else value

    def to_python_value(self, value: Any) -> Any:
        """Decode."""
        return datetime.fromisoformat(value) if isinstance(value, str) else value


class Event(Model):
    """A row of `events`."""

    position = fields.IntField(primary_key=True)
    id = fields.TextField()
    session_id = fields.TextField()
    event_type = fields.CharField(max_length=50)
    level = fields.TextField()
    message = fields.TextField()
    context = fields.JSONField[dict[str, Any]]()
    created_at = TimeField()
    hash = fields.TextField(null=True)

    class Meta:
        """Where it is."""

        table = "events"


class AuditChain(Model):
    """A row of `audit_chains`, as far as it is of interest here."""

    resource_id = fields.CharField(primary_key=True, max_length=36)
    resource = fields.TextField()
    # `last` is Tortoise's own name.
    end = fields.TextField(source_field="last")

    class Meta:
        """Where it is."""

        table = "audit_chains"


class Worktree(Model):
    """A row of `worktrees`."""

    id = fields.CharField(primary_key=True, max_length=36)
    repository_id = fields.TextField()
    path = fields.TextField()
    branch = fields.TextField(null=True)
    commit_sha = fields.TextField(null=True)
    environment_hashes = fields.JSONField[dict[str, Any]]()
    state = fields.TextField()
    lease_owner = fields.TextField(null=True)
    lease_token = fields.TextField(null=True)
    leased_at = TimeField(null=True)
    lease_expires_at = TimeField(null=True)
    version = fields.IntField()
    created_at = TimeField()
    updated_at = TimeField()

    class Meta:
        """Where it is."""

        table = "worktrees"


class CostEntry(Model):
    """A row of `cost_entries`."""

    id = fields.CharField(primary_key=True, max_length=36)
    job_id = fields.TextField()
    request_id = fields.TextField()
    provider = fields.TextField()
    model = fields.TextField()
    tokens_in = fields.IntField()
    tokens_out = fields.IntField()
    tokens_cached = fields.IntField()
    cost_nano_usd = fields.BigIntField()
    created_at = TimeField()

    class Meta:
        """Where it is."""

        table = "cost_entries"


class BudgetReservation(Model):
    """A row of `budget_reservations`."""

    id = fields.CharField(primary_key=True, max_length=36)
    job_id = fields.TextField()
    request_id = fields.TextField()
    amount_nano_usd = fields.BigIntField()
    expires_at = TimeField()
    created_at = TimeField()

    class Meta:
        """Where it is."""

        table = "budget_reservations"


class Job(Model):
    """A row of `jobs`."""

    id = fields.CharField(primary_key=True, max_length=36)
    task = fields.TextField()
    repo_owner = fields.TextField()
    repo_name = fields.TextField()
    branch_base = fields.TextField()
    status = fields.TextField()
    budget_nano_usd = fields.BigIntField(null=True)
    max_requests = fields.BigIntField(null=True)
    max_minutes = fields.BigIntField(null=True)
    model_cto = fields.TextField(null=True)
    model_coder = fields.TextField(null=True)
    cost_nano_usd = fields.BigIntField()
    tokens_in = fields.BigIntField()
    tokens_out = fields.BigIntField()
    tokens_cached = fields.BigIntField()
    requests_made = fields.BigIntField()
    started_at = TimeField(null=True)
    finished_at = TimeField(null=True)
    cancelled = fields.BooleanField()
    last_action = fields.TextField(null=True)
    pr_links = fields.JSONField[list[str]]()
    agents_hash = fields.TextField(null=True)
    created_at = TimeField()
    updated_at = TimeField()

    class Meta:
        """Where it is."""

        table = "jobs"


class Task(Model):
    """A row of `tasks`."""

    id = fields.CharField(primary_key=True, max_length=36)
    title = fields.TextField()
    description = fields.TextField(null=True)
    task_type = fields.TextField()
    status = fields.TextField()
    config = fields.JSONField[dict[str, Any]]()
    metadata = fields.JSONField[dict[str, Any]](null=True)
    workspace_path = fields.TextField(null=True)
    created_at = TimeField()
    updated_at = TimeField()
    started_at = TimeField(null=True)
    completed_at = TimeField(null=True)
    error = fields.TextField(null=True)
    lease_owner = fields.TextField(null=True)
    lease_token = fields.TextField(null=True)
    leased_at = TimeField(null=True)
    lease_expires_at = TimeField(null=True)
    version = fields.IntField()

    class Meta:
        """Where it is."""

        table = "tasks"


class TortoiseOrm:
    """Models.

    It has no UPDATE … RETURNING, so the changed row is made of what was read; and no expressions
    in INSERT, so the end of the chain is read before, in the same transaction.
    """

    async def open(self, path: Path) -> None:
        """Connect."""
        await Tortoise.init(
            config={
                "connections": {
                    "default": {
                        "engine": "tortoise.backends.sqlite",
                        "credentials": {
                            "file_path": str(path),
                            "journal_mode": "WAL",
                            "synchronous": "FULL",
                            "foreign_keys": "ON",
                            "busy_timeout": int(BUSY_TIMEOUT * 1000),
                        },
                    }
                },
                "apps": {"models": {"models": [__name__], "default_connection": "default"}},
            },
            _enable_global_fallback=True,
        )

    async def close(self) -> None:
        """Disconnect."""
        await Tortoise.close_connections()

    async def pragma(self, name: str) -> Any:
        """Return a setting."""
        [row] = await connections.get("default").execute_query_dict(f"PRAGMA {name}")
        return next(iter(row.values()))

    async def append(self, session_id: str) -> Event:
        """Append."""
        async with in_transaction() as connection:
            return await self._append(connection, session_id)

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many; the chain covers positions, so that they are given out before."""
        rows = [_event(session_id, *it) for it in events]
        async with in_transaction() as connection:
            [found] = await connection.execute_query_dict(
                "SELECT seq FROM sqlite_sequence WHERE name = 'events'"
            )
            chain(await _last(connection, session_id), found["seq"], rows)
            await Event.bulk_create([Event(**row) for row in rows], using_db=connection)

    async def get(self, worktree_id: str) -> Worktree:
        """Get."""
        return await Worktree.get(id=worktree_id)

    async def page(self, session_id: str, after: int) -> list[Event]:
        """Page."""
        return await (
            Event.filter(session_id=session_id, position__gt=after).order_by("position").limit(50)
        )

    async def reserve(self, worktree: Worktree) -> Worktree:
        """Reserve."""
        return await self._reserve(worktree, None)

    async def release(self, held: Worktree) -> Worktree:
        """Release."""
        return await self._release(held, None)

    async def acquire(self, repository_id: str) -> Worktree:
        """Acquire: look and take in a transaction, for the update cannot look."""
        async with in_transaction() as connection:
            worktree = (
                await Worktree.annotate(
                    free_since=RawSQL("coalesce(lease_expires_at, '')"),
                    is_ready=RawSQL("state = 'ready'"),
                )
                .filter(
                    is_ready=1,
                    repository_id=repository_id,
                    free_since__lte=encode_time(utc_now()),
                )
                .order_by("free_since", "updated_at")
                .using_db(connection)
                .first()
            )
            if worktree is None:
                raise LookupError("none is free")
            return await self._reserve(worktree, connection)

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """Run the five statements."""
        async with in_transaction() as connection:
            worktree = await Worktree.get(id=worktree_id, using_db=connection)
            await self._append(connection, session_id)
            held = await self._reserve(worktree, connection)
            await self._append(connection, session_id)
            await self._release(held, connection)

    async def reserve_budget(self, job_id: str) -> str:
        """Reserve."""
        now, request_id = utc_now(), new_id()
        async with in_transaction() as connection:
            expired = BudgetReservation.filter(job_id=job_id, expires_at__lte=now)
            await expired.using_db(connection).delete()
            job = await Job.get(id=job_id, using_db=connection)
            [[amount, count]] = await (
                BudgetReservation.filter(job_id=job_id, expires_at__gt=now)
                .exclude(request_id=request_id)
                .annotate(amount=Coalesce(Sum("amount_nano_usd"), 0), number=Count("id"))
                .using_db(connection)
                .values_list("amount", "number")
            )
            check_budget(job, amount, count)
            await BudgetReservation.create(
                using_db=connection,
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
        async with in_transaction() as connection:
            await CostEntry.create(
                using_db=connection,
                id=new_id(),
                job_id=job_id,
                request_id=request_id,
                cost_nano_usd=COST_NANO_USD,
                created_at=now,
                **CALL,
            )
            reservation = BudgetReservation.filter(job_id=job_id, request_id=request_id)
            await reservation.using_db(connection).delete()
            await (
                Job.filter(id=job_id)
                .using_db(connection)
                .update(
                    cost_nano_usd=F("cost_nano_usd") + COST_NANO_USD,
                    tokens_in=F("tokens_in") + CALL["tokens_in"],
                    tokens_out=F("tokens_out") + CALL["tokens_out"],
                    tokens_cached=F("tokens_cached") + CALL["tokens_cached"],
                    requests_made=F("requests_made") + 1,
                    updated_at=now,
                )
            )
            return await Job.get(id=job_id, using_db=connection)

    async def claim(self) -> Task:
        """Claim: look and take in a transaction, for the update cannot look."""
        now = utc_now()
        async with in_transaction() as connection:
            task = (
                await Task.filter(lease_expires_at__lte=now)
                .order_by("lease_expires_at")
                .using_db(connection)
                .first()
            ) or (
                await Task.annotate(is_pending=RawSQL("status = 'pending'"))
                .filter(is_pending=1)
                .order_by("created_at", "id")
                .using_db(connection)
                .first()
            )
            if task is None:
                raise LookupError("none is pending")
            values = {
                "status": "running",
                "started_at": now,
                "lease_owner": OWNER,
                "lease_token": new_token(),
                "leased_at": now,
                "lease_expires_at": now + TTL,
                "version": task.version + 1,
                "updated_at": now,
            }
            await Task.filter(id=task.id).using_db(connection).update(**values)
            return task.update_from_dict(values)

    async def complete(self, held: Task) -> Task:
        """Complete."""
        now = utc_now()
        values = {
            "status": "completed",
            "completed_at": now,
            "lease_owner": None,
            "lease_token": None,
            "leased_at": None,
            "lease_expires_at": None,
            "updated_at": now,
        }
        query = Task.filter(
            id=held.id,
            version=held.version,
            lease_owner=held.lease_owner,
            lease_token=held.lease_token,
            lease_expires_at__gt=now,
        )
        if await query.update(**values) == 0:
            raise LookupError("no row: the claim is lost")
        return held.update_from_dict(values)

    @staticmethod
    async def _append(connection: BaseDBAsyncClient, session_id: str) -> Event:
        row = _event(session_id)
        row["hash"] = link(await _last(connection, session_id), row)
        return await Event.create(using_db=connection, **row)

    @staticmethod
    async def _reserve(worktree: Worktree, connection: BaseDBAsyncClient | None) -> Worktree:
        now = utc_now()
        values = {
            "lease_owner": OWNER,
            "lease_token": new_token(),
            "leased_at": now,
            "lease_expires_at": now + TTL,
            "updated_at": now,
        }
        query = Worktree.filter(
            Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=now),
            id=worktree.id,
            version=worktree.version,
            state="ready",
        )
        return await _changed(worktree, query, values, connection)

    @staticmethod
    async def _release(held: Worktree, connection: BaseDBAsyncClient | None) -> Worktree:
        now = utc_now()
        values = {
            "lease_owner": None,
            "lease_token": None,
            "leased_at": None,
            "lease_expires_at": None,
            "updated_at": now,
        }
        query = Worktree.filter(
            id=held.id,
            version=held.version,
            lease_owner=held.lease_owner,
            lease_token=held.lease_token,
            lease_expires_at__gt=now,
        )
        return await _changed(held, query, values, connection)


async def _last(connection: BaseDBAsyncClient, session_id: str) -> str:
    """Return what the next event of a session follows."""
    query = AuditChain.filter(resource="events", resource_id=session_id).using_db(connection)
    return await query.first().values_list("end", flat=True) or ""


async def _changed(
    worktree: Worktree, query: Any, values: dict[str, Any], connection: BaseDBAsyncClient | None
) -> Worktree:
    if connection is not None:
        query = query.using_db(connection)
    # It counts what triggers change too.
    if await query.update(version=F("version") + 1, **values) == 0:
        raise LookupError("no row: the worktree is gone, or another's")
    return worktree.update_from_dict({"version": worktree.version + 1, **values})


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


def make() -> TortoiseOrm:
    """Return the contender."""
    return TortoiseOrm()
