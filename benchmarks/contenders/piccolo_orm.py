"""Piccolo: a connection for each query, and one for each transaction."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from piccolo.columns import JSON, BigInt, Boolean, Integer, Serial, Text
from piccolo.engine.sqlite import SQLiteEngine, TransactionType
from piccolo.query.functions.aggregate import Count, Sum
from piccolo.querystring import QueryString
from piccolo.table import Table

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
    link,
    new_id,
    new_token,
    utc_now,
)

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.base import NewEvent

__all__ = ["PiccoloOrm", "make"]

# It connects with SQLite's own default, synchronous = FULL, and foreign keys on.
ENGINE = SQLiteEngine(timeout=BUSY_TIMEOUT)

TIME_COLUMNS = (
    "created_at",
    "updated_at",
    "leased_at",
    "lease_expires_at",
    "started_at",
    "finished_at",
    "completed_at",
)


class Event(Table, tablename="events", db=ENGINE):
    """A row of `events`. Its times are text here: Piccolo's own format is not the tables'."""

    position = Serial(primary_key=True)
    id = Text()
    session_id = Text()
    event_type = Text()
    level = Text()
    message = Text()
    context = JSON()
    created_at = Text()
    hash = Text(null=True)


class AuditChain(Table, tablename="audit_chains", db=ENGINE):
    """A row of `audit_chains`, as far as it is of interest here."""

    resource_id = Text(primary_key=True)
    resource = Text()
    last = Text()


class Worktree(Table, tablename="worktrees", db=ENGINE):
    """A row of `worktrees`."""

    id = Text(primary_key=True)
    repository_id = Text()
    path = Text()
    branch = Text(null=True)
    commit_sha = Text(null=True)
    environment_hashes = JSON()
    state = Text()
    lease_owner = Text(null=True)
    lease_token = Text(null=True)
    leased_at = Text(null=True)
    lease_expires_at = Text(null=True)
    version = Integer()
    created_at = Text()
    updated_at = Text()


class CostEntry(Table, tablename="cost_entries", db=ENGINE):
    """A row of `cost_entries`."""

    id = Text(primary_key=True)
    job_id = Text()
    request_id = Text()
    provider = Text()
    model = Text()
    tokens_in = Integer()
    tokens_out = Integer()
    tokens_cached = Integer()
    cost_nano_usd = BigInt()
    created_at = Text()


class BudgetReservation(Table, tablename="budget_reservations", db=ENGINE):
    """A row of `budget_reservations`."""

    id = Text(primary_key=True)
    job_id = Text()
    request_id = Text()
    amount_nano_usd = BigInt()
    expires_at = Text()
    created_at = Text()


class Job(Table, tablename="jobs", db=ENGINE):
    """A row of `jobs`."""

    id = Text(primary_key=True)
    task = Text()
    repo_owner = Text()
    repo_name = Text()
    branch_base = Text()
    status = Text()
    budget_nano_usd = BigInt(null=True)
    max_requests = BigInt(null=True)
    max_minutes = BigInt(null=True)
    model_cto = Text(null=True)
    model_coder = Text(null=True)
    cost_nano_usd = BigInt()
    tokens_in = BigInt()
    tokens_out = BigInt()
    tokens_cached = BigInt()
    requests_made = BigInt()
    started_at = Text(null=True)
    finished_at = Text(null=True)
    cancelled = Boolean()
    last_action = Text(null=True)
    pr_links = JSON()
    agents_hash = Text(null=True)
    created_at = Text()
    updated_at = Text()


class Task(Table, tablename="tasks", db=ENGINE):
    """A row of `tasks`."""

    id = Text(primary_key=True)
    title = Text()
    description = Text(null=True)
    task_type = Text()
    status = Text()
    config = JSON()
    metadata = JSON(null=True)
    workspace_path = Text(null=True)
    created_at = Text()
    updated_at = Text()
    started_at = Text(null=True)
    completed_at = Text(null=True)
    error = Text(null=True)
    lease_owner = Text(null=True)
    lease_token = Text(null=True)
    leased_at = Text(null=True)
    lease_expires_at = Text(null=True)
    version = Integer()


Row = dict[str, Any]


class PiccoloOrm:
    """Select queries, which return dicts: cheaper than its objects.

    It connects for each query and has no functions of the program's, so the end of the chain is
    read before an event is stored, in the same transaction.
    """

    async def open(self, path: Path) -> None:
        """Name the file; every query connects for itself."""
        ENGINE.path = str(path)

    async def close(self) -> None:
        """There is nothing to close."""

    async def pragma(self, name: str) -> Any:
        """Return a setting."""
        [row] = await Event.raw(f"PRAGMA {name}")
        return next(iter(row.values()))

    async def append(self, session_id: str) -> Row:
        """Append."""
        async with ENGINE.transaction(transaction_type=TransactionType.immediate):
            return await self._append(session_id)

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many: one INSERT. The chain covers positions: they are given out before."""
        rows = [_event(session_id, *it) for it in events]
        async with ENGINE.transaction(transaction_type=TransactionType.immediate):
            [found] = await Event.raw("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
            chain(await _last(session_id), found["seq"], rows)
            await Event.insert(*map(_stored, rows))

    async def get(self, worktree_id: str) -> Row:
        """Get."""
        [row] = await Worktree.select().where(Worktree.id == worktree_id).output(load_json=True)
        return _decoded(row)

    async def page(self, session_id: str, after: int) -> list[Row]:
        """Page."""
        rows = await (
            Event.select()
            .where(Event.session_id == session_id, Event.position > after)
            .order_by(Event.position)
            .limit(50)
            .output(load_json=True)
        )
        return [_decoded(row) for row in rows]

    async def reserve(self, worktree: Row) -> Row:
        """Reserve."""
        now = utc_now()
        [row] = await (
            Worktree.update(_take(now))
            .where(
                Worktree.id == worktree["id"],
                Worktree.version == worktree["version"],
                Worktree.state == "ready",
                Worktree.lease_expires_at.is_null()
                | (Worktree.lease_expires_at <= encode_time(now)),
            )
            .returning(*Worktree.all_columns())
        )
        return _decoded(_loaded(row, "environment_hashes"))

    async def release(self, held: Row) -> Row:
        """Release."""
        now = encode_time(utc_now())
        [row] = await (
            Worktree.update(
                {
                    Worktree.lease_owner: None,
                    Worktree.lease_token: None,
                    Worktree.leased_at: None,
                    Worktree.lease_expires_at: None,
                    Worktree.version: Worktree.version + 1,
                    Worktree.updated_at: now,
                }
            )
            .where(
                Worktree.id == held["id"],
                Worktree.version == held["version"],
                Worktree.lease_owner == held["lease_owner"],
                Worktree.lease_token == held["lease_token"],
                Worktree.lease_expires_at > now,
            )
            .returning(*Worktree.all_columns())
        )
        return _decoded(_loaded(row, "environment_hashes"))

    async def acquire(self, repository_id: str) -> Row:
        """Acquire; what its query builder cannot say, as the SQL it takes for that."""
        now = utc_now()
        free = QueryString(
            "id = (SELECT id FROM worktrees WHERE state = 'ready' AND repository_id = {} "
            "AND coalesce(lease_expires_at, '') <= {} "
            "ORDER BY coalesce(lease_expires_at, ''), updated_at LIMIT 1)",
            repository_id,
            encode_time(now),
        )
        [row] = await Worktree.update(_take(now)).where(free).returning(*Worktree.all_columns())
        return _decoded(_loaded(row, "environment_hashes"))

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """Run the five statements."""
        async with ENGINE.transaction(transaction_type=TransactionType.immediate):
            worktree = await self.get(worktree_id)
            await self._append(session_id)
            held = await self.reserve(worktree)
            await self._append(session_id)
            await self.release(held)

    async def reserve_budget(self, job_id: str) -> str:
        """Reserve."""
        moment, request_id = utc_now(), new_id()
        now = encode_time(moment)
        promise = BudgetReservation(
            id=new_id(),
            job_id=job_id,
            request_id=request_id,
            amount_nano_usd=AMOUNT_NANO_USD,
            expires_at=encode_time(moment + TTL),
            created_at=now,
        )
        async with ENGINE.transaction(transaction_type=TransactionType.immediate):
            await BudgetReservation.delete().where(
                BudgetReservation.job_id == job_id, BudgetReservation.expires_at <= now
            )
            [job] = await Job.select().where(Job.id == job_id).output(load_json=True)
            [others] = await BudgetReservation.select(
                Sum(BudgetReservation.amount_nano_usd, alias="amount"), Count(alias="number")
            ).where(
                BudgetReservation.job_id == job_id,
                BudgetReservation.expires_at > now,
                BudgetReservation.request_id != request_id,
            )
            check_budget(_decoded(job), others["amount"] or 0, others["number"])
            await BudgetReservation.insert(promise)
        return request_id

    async def record_cost(self, job_id: str, reserved: str | None = None) -> Row:
        """Record."""
        now, request_id = encode_time(utc_now()), reserved or new_id()
        entry = CostEntry(
            id=new_id(),
            job_id=job_id,
            request_id=request_id,
            cost_nano_usd=COST_NANO_USD,
            created_at=now,
            **CALL,
        )
        async with ENGINE.transaction(transaction_type=TransactionType.immediate):
            await CostEntry.insert(entry)
            await BudgetReservation.delete().where(
                BudgetReservation.job_id == job_id, BudgetReservation.request_id == request_id
            )
            [row] = await (
                Job.update(
                    {
                        Job.cost_nano_usd: Job.cost_nano_usd + COST_NANO_USD,
                        Job.tokens_in: Job.tokens_in + CALL["tokens_in"],
                        Job.tokens_out: Job.tokens_out + CALL["tokens_out"],
                        Job.tokens_cached: Job.tokens_cached + CALL["tokens_cached"],
                        Job.requests_made: Job.requests_made + 1,
                        Job.updated_at: now,
                    }
                )
                .where(Job.id == job_id)
                .returning(*Job.all_columns())
            )
        return _decoded(_loaded(row, "pr_links"))

    async def claim(self) -> Row:
        """Claim; what its query builder cannot say, as the SQL it takes for that."""
        now = utc_now()
        oldest = QueryString(
            "id = coalesce((SELECT id FROM tasks WHERE lease_expires_at <= {} "
            "ORDER BY lease_expires_at LIMIT 1), "
            "(SELECT id FROM tasks WHERE status = 'pending' ORDER BY created_at, id LIMIT 1))",
            encode_time(now),
        )
        [row] = await (
            Task.update(
                {
                    Task.status: "running",
                    Task.started_at: encode_time(now),
                    Task.lease_owner: OWNER,
                    Task.lease_token: new_token(),
                    Task.leased_at: encode_time(now),
                    Task.lease_expires_at: encode_time(now + TTL),
                    Task.version: Task.version + 1,
                    Task.updated_at: encode_time(now),
                }
            )
            .where(oldest)
            .returning(*Task.all_columns())
        )
        return _decoded(_loaded(row, "config", "metadata"))

    async def complete(self, held: Row) -> Row:
        """Complete."""
        now = encode_time(utc_now())
        [row] = await (
            Task.update(
                {
                    Task.status: "completed",
                    Task.completed_at: now,
                    Task.lease_owner: None,
                    Task.lease_token: None,
                    Task.leased_at: None,
                    Task.lease_expires_at: None,
                    Task.updated_at: now,
                }
            )
            .where(
                Task.id == held["id"],
                Task.version == held["version"],
                Task.lease_owner == held["lease_owner"],
                Task.lease_token == held["lease_token"],
                Task.lease_expires_at > now,
            )
            .returning(*Task.all_columns())
        )
        return _decoded(_loaded(row, "config", "metadata"))

    @staticmethod
    async def _append(session_id: str) -> Row:
        row = _event(session_id)
        row["hash"] = link(await _last(session_id), row)
        [stored] = await Event.insert(_stored(row)).returning(Event.position)
        return {**row, "position": stored["position"]}


def _event(
    session_id: str,
    event_type: str = EVENT,
    message: str = MESSAGE,
    level: str = "info",
    context: dict[str, Any] = CONTEXT,
) -> Row:
    return {
        "id": new_id(),
        "session_id": session_id,
        "event_type": event_type,
        "level": level,
        "message": message,
        "context": context,
        "created_at": utc_now(),
    }


def _stored(row: Row) -> Event:
    return Event(
        **{
            **row,
            "context": encode_json(row["context"]),
            "created_at": encode_time(row["created_at"]),
        }
    )


async def _last(session_id: str) -> str:
    """Return what the next event of a session follows."""
    query = AuditChain.select(AuditChain.last).where(
        AuditChain.resource == "events", AuditChain.resource_id == session_id
    )
    rows = await query
    return rows[0]["last"] if rows else ""


def _take(now: datetime) -> dict[Any, Any]:
    return {
        Worktree.lease_owner: OWNER,
        Worktree.lease_token: new_token(),
        Worktree.leased_at: encode_time(now),
        Worktree.lease_expires_at: encode_time(now + TTL),
        Worktree.version: Worktree.version + 1,
        Worktree.updated_at: encode_time(now),
    }


def _loaded(row: Row, *columns: str) -> Row:
    """Decode documents, which RETURNING leaves as text."""
    for column in columns:
        if row[column] is not None:
            row[column] = json.loads(row[column])
    return row


def _decoded(row: Row) -> Row:
    for column in TIME_COLUMNS:
        if row.get(column) is not None:
            row[column] = datetime.fromisoformat(row[column])
    return row


def make() -> PiccoloOrm:
    """Return the contender."""
    return PiccoloOrm()
