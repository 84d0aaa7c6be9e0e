"""Tortoise: one connection, which it guards with a lock of its own."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from tortoise import Tortoise, connections, fields
from tortoise.expressions import F, Q, RawSQL
from tortoise.models import Model
from tortoise.transactions import in_transaction

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

    class Meta:
        """Where it is."""

        table = "events"


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
    """A row of `budget_reservations`, as far as it is of interest here."""

    id = fields.CharField(primary_key=True, max_length=36)
    job_id = fields.TextField()
    request_id = fields.TextField()

    class Meta:
        """Where it is."""

        table = "budget_reservations"


class Job(Model):
    """A row of `jobs`, as far as it is of interest here."""

    id = fields.CharField(primary_key=True, max_length=36)
    status = fields.TextField()
    cost_nano_usd = fields.BigIntField()
    tokens_in = fields.BigIntField()
    tokens_out = fields.BigIntField()
    tokens_cached = fields.BigIntField()
    requests_made = fields.BigIntField()
    updated_at = TimeField()

    class Meta:
        """Where it is."""

        table = "jobs"


class TortoiseOrm:
    """Models; it has no UPDATE … RETURNING, so the changed row is made of what was read."""

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
        return await Event.create(**_event(session_id))

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many, which it does in one transaction."""
        await Event.bulk_create([Event(**_event(session_id, *it)) for it in events])

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
            await Event.create(using_db=connection, **_event(session_id))
            held = await self._reserve(worktree, connection)
            await Event.create(using_db=connection, **_event(session_id))
            await self._release(held, connection)

    async def record_cost(self, job_id: str) -> Job:
        """Record."""
        now, request_id = utc_now(), new_id()
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
