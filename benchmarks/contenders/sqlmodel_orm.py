"""SQLModel with SQLAlchemy's asyncio extension, on aiosqlite."""

from __future__ import annotations

import json
from datetime import datetime  # noqa: TC003 - the models' columns are made of annotations
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Text, bindparam, delete, func, insert, literal_column, or_, update
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlmodel import Column, Field, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

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

    from sqlalchemy.ext.asyncio import AsyncEngine

    from benchmarks.contenders.base import NewEvent

__all__ = ["SqlmodelOrm", "make"]


class Event(SQLModel, table=True):
    """A row of `events`."""

    __tablename__ = "events"
    # What the statement computes, the hash, is not read back.
    __mapper_args__: ClassVar[dict[str, Any]] = {"eager_defaults": False}

    position: int | None = Field(default=None, primary_key=True)
    id: str
    session_id: str
    event_type: str
    level: str
    message: str
    context: dict[str, Any] = Field(sa_column=Column(JSON))
    created_at: datetime = Field(sa_column=Column(Time))
    hash: str | None = None


class AuditChain(SQLModel, table=True):
    """A row of `audit_chains`, as far as it is of interest here."""

    __tablename__ = "audit_chains"

    resource: str = Field(primary_key=True)
    resource_id: str = Field(primary_key=True)
    last: str


class Worktree(SQLModel, table=True):
    """A row of `worktrees`."""

    __tablename__ = "worktrees"

    id: str = Field(primary_key=True)
    repository_id: str
    path: str
    branch: str | None = None
    commit_sha: str | None = None
    environment_hashes: dict[str, Any] = Field(sa_column=Column(JSON))
    state: str
    lease_owner: str | None = None
    lease_token: str | None = None
    leased_at: datetime | None = Field(default=None, sa_column=Column(Time))
    lease_expires_at: datetime | None = Field(default=None, sa_column=Column(Time))
    version: int
    created_at: datetime = Field(sa_column=Column(Time))
    updated_at: datetime = Field(sa_column=Column(Time))


class CostEntry(SQLModel, table=True):
    """A row of `cost_entries`."""

    __tablename__ = "cost_entries"

    id: str = Field(primary_key=True)
    job_id: str
    request_id: str
    provider: str
    model: str
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    cost_nano_usd: int
    created_at: datetime = Field(sa_column=Column(Time))


class BudgetReservation(SQLModel, table=True):
    """A row of `budget_reservations`."""

    __tablename__ = "budget_reservations"

    id: str = Field(primary_key=True)
    job_id: str
    request_id: str
    amount_nano_usd: int
    expires_at: datetime = Field(sa_column=Column(Time))
    created_at: datetime = Field(sa_column=Column(Time))


class Job(SQLModel, table=True):
    """A row of `jobs`."""

    __tablename__ = "jobs"

    id: str = Field(primary_key=True)
    task: str
    repo_owner: str
    repo_name: str
    branch_base: str
    status: str
    budget_nano_usd: int | None = None
    max_requests: int | None = None
    max_minutes: int | None = None
    model_cto: str | None = None
    model_coder: str | None = None
    cost_nano_usd: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    requests_made: int
    started_at: datetime | None = Field(default=None, sa_column=Column(Time))
    finished_at: datetime | None = Field(default=None, sa_column=Column(Time))
    cancelled: bool
    last_action: str | None = None
    pr_links: list[str] = Field(sa_column=Column(JSON))
    agents_hash: str | None = None
    created_at: datetime = Field(sa_column=Column(Time))
    updated_at: datetime = Field(sa_column=Column(Time))


class Task(SQLModel, table=True):
    """A row of `tasks`."""

    __tablename__ = "tasks"

    id: str = Field(primary_key=True)
    title: str
    description: str | None = None
    task_type: str
    status: str
    config: dict[str, Any] = Field(sa_column=Column(JSON))
    # `metadata` is SQLAlchemy's own name.
    task_metadata: dict[str, Any] | None = Field(default=None, sa_column=Column("metadata", JSON))
    workspace_path: str | None = None
    created_at: datetime = Field(sa_column=Column(Time))
    updated_at: datetime = Field(sa_column=Column(Time))
    started_at: datetime | None = Field(default=None, sa_column=Column(Time))
    completed_at: datetime | None = Field(default=None, sa_column=Column(Time))
    error: str | None = None
    lease_owner: str | None = None
    lease_token: str | None = None
    leased_at: datetime | None = Field(default=None, sa_column=Column(Time))
    lease_expires_at: datetime | None = Field(default=None, sa_column=Column(Time))
    version: int


# Literals, for an index on an expression, or a partial one, is not found by a bound parameter.
READY = col(Worktree.state) == literal_column("'ready'")
FREE_SINCE = func.coalesce(Worktree.lease_expires_at, literal_column("''"), type_=Time)


def _hash(session_id: Any, *covered: Any) -> Any:
    """Return the hash of an event as the expression that the INSERT computes it with.

    The function is registered with the connection; what it covers are texts.
    """
    last = (
        select(AuditChain.last)
        .where(AuditChain.resource == "events", AuditChain.resource_id == session_id)
        .scalar_subquery()
    )
    return func.metastore_sha256(func.coalesce(last, ""), *covered)


NEW_EVENT = {
    name: bindparam(f"new_{name}", type_=Text)
    for name in ("id", "session_id", "event_type", "level", "message", "context", "created_at")
}
APPEND_MANY = insert(Event.__table__).values(
    hash=_hash(NEW_EVENT["session_id"], *NEW_EVENT.values()), **NEW_EVENT
)


class SqlmodelOrm:
    """A session for each operation; objects stay usable after commit, as is advised for asyncio."""

    engine: AsyncEngine

    def __init__(self, pool_size: int | None) -> None:
        self._pool_size = pool_size

    async def open(self, path: Path) -> None:
        """Make the engine."""
        self.engine = make_engine(path, self._pool_size)
        self._session = async_sessionmaker(self.engine, class_=AsyncSession, expire_on_commit=False)

    async def close(self) -> None:
        """Dispose of it."""
        await self.engine.dispose()

    async def pragma(self, name: str) -> Any:
        """Return a setting."""
        async with self.engine.connect() as connection:
            return (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()

    async def append(self, session_id: str) -> Event:
        """Append."""
        async with self._session() as session:
            event = _event(session_id)
            session.add(event)
            await session.commit()
            return event

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many: the bulk insert, which is faster than `add_all`."""
        now = encode_time(utc_now())
        rows = [
            {
                "new_id": new_id(),
                "new_session_id": session_id,
                "new_event_type": it.event_type,
                "new_level": it.level,
                "new_message": it.message,
                "new_context": encode_json(it.context),
                "new_created_at": now,
            }
            for it in events
        ]
        async with self._session() as session:
            await session.execute(APPEND_MANY, rows)
            await session.commit()

    async def get(self, worktree_id: str) -> Worktree:
        """Get."""
        async with self._session() as session:
            return await session.get_one(Worktree, worktree_id)

    async def page(self, session_id: str, after: int) -> list[Event]:
        """Page."""
        async with self._session() as session:
            result = await session.exec(
                select(Event)
                .where(Event.session_id == session_id, col(Event.position) > after)
                .order_by(col(Event.position))
                .limit(50)
            )
            return list(result.all())

    async def reserve(self, worktree: Worktree) -> Worktree:
        """Reserve."""
        async with self._session() as session:
            held = await self._reserve(session, worktree)
            await session.commit()
            return held

    async def release(self, held: Worktree) -> Worktree:
        """Release."""
        async with self._session() as session:
            worktree = await self._release(session, held)
            await session.commit()
            return worktree

    async def acquire(self, repository_id: str) -> Worktree:
        """Acquire."""
        now = utc_now()
        free = (
            select(Worktree.id)
            .where(READY, Worktree.repository_id == repository_id, now >= FREE_SINCE)
            .order_by(FREE_SINCE, col(Worktree.updated_at))
            .limit(1)
            .correlate(None)
            .scalar_subquery()
        )
        async with self._session() as session:
            held = await self._update(session, (Worktree.id == free,), _take(now))
            await session.commit()
            return held

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """Run the five statements."""
        async with self._session() as session:
            worktree = await session.get_one(Worktree, worktree_id)
            session.add(_event(session_id))
            await session.flush()
            held = await self._reserve(session, worktree)
            session.add(_event(session_id))
            await session.flush()
            await self._release(session, held)
            await session.commit()

    async def reserve_budget(self, job_id: str) -> str:
        """Reserve."""
        now, request_id = utc_now(), new_id()
        promised = select(
            func.coalesce(func.sum(BudgetReservation.amount_nano_usd), 0), func.count()
        ).where(
            BudgetReservation.job_id == job_id,
            col(BudgetReservation.expires_at) > now,
            BudgetReservation.request_id != request_id,
        )
        async with self._session() as session:
            await session.execute(
                delete(BudgetReservation).where(
                    col(BudgetReservation.job_id) == job_id,
                    col(BudgetReservation.expires_at) <= now,
                ),
                execution_options={"synchronize_session": False},
            )
            job = await session.get_one(Job, job_id)
            check_budget(job, *(await session.exec(promised)).one())
            session.add(
                BudgetReservation(
                    id=new_id(),
                    job_id=job_id,
                    request_id=request_id,
                    amount_nano_usd=AMOUNT_NANO_USD,
                    expires_at=now + TTL,
                    created_at=now,
                )
            )
            await session.commit()
            return request_id

    async def record_cost(self, job_id: str, reserved: str | None = None) -> Job:
        """Record."""
        now, request_id = utc_now(), reserved or new_id()
        async with self._session() as session:
            session.add(
                CostEntry(
                    id=new_id(),
                    job_id=job_id,
                    request_id=request_id,
                    cost_nano_usd=COST_NANO_USD,
                    created_at=now,
                    **CALL,
                )
            )
            await session.flush()
            await session.execute(
                delete(BudgetReservation).where(
                    col(BudgetReservation.job_id) == job_id,
                    col(BudgetReservation.request_id) == request_id,
                ),
                execution_options={"synchronize_session": False},
            )
            result = await session.execute(
                update(Job)
                .where(col(Job.id) == job_id)
                .values(
                    cost_nano_usd=Job.cost_nano_usd + COST_NANO_USD,
                    tokens_in=Job.tokens_in + CALL["tokens_in"],
                    tokens_out=Job.tokens_out + CALL["tokens_out"],
                    tokens_cached=Job.tokens_cached + CALL["tokens_cached"],
                    requests_made=Job.requests_made + 1,
                    updated_at=now,
                )
                .returning(Job),
                execution_options={"synchronize_session": False},
            )
            job = result.scalars().one()
            await session.commit()
            return job

    async def claim(self) -> Task:
        """Claim."""
        now = utc_now()
        expired = (
            select(Task.id)
            .where(col(Task.lease_expires_at) <= now)
            .order_by(col(Task.lease_expires_at))
            .limit(1)
            .correlate(None)
            .scalar_subquery()
        )
        pending = (
            select(Task.id)
            .where(col(Task.status) == literal_column("'pending'"))
            .order_by(col(Task.created_at), col(Task.id))
            .limit(1)
            .correlate(None)
            .scalar_subquery()
        )
        values = {**_lease(now), "status": "running", "started_at": now}
        async with self._session() as session:
            result = await session.execute(
                update(Task)
                .where(Task.id == func.coalesce(expired, pending))
                .values(version=Task.version + 1, **values)
                .returning(Task),
                execution_options={"synchronize_session": False},
            )
            task = result.scalars().one()
            await session.commit()
            return task

    async def complete(self, held: Task) -> Task:
        """Complete."""
        now = utc_now()
        async with self._session() as session:
            result = await session.execute(
                update(Task)
                .where(
                    Task.id == held.id,
                    Task.version == held.version,
                    Task.lease_owner == held.lease_owner,
                    Task.lease_token == held.lease_token,
                    col(Task.lease_expires_at) > now,
                )
                .values(
                    status="completed",
                    completed_at=now,
                    lease_owner=None,
                    lease_token=None,
                    leased_at=None,
                    lease_expires_at=None,
                    updated_at=now,
                )
                .returning(Task),
                execution_options={"synchronize_session": False},
            )
            task = result.scalars().one()
            await session.commit()
            return task

    async def _reserve(self, session: AsyncSession, worktree: Worktree) -> Worktree:
        now = utc_now()
        return await self._update(
            session,
            (
                Worktree.id == worktree.id,
                Worktree.version == worktree.version,
                READY,
                or_(
                    col(Worktree.lease_expires_at).is_(None),
                    col(Worktree.lease_expires_at) <= now,
                ),
            ),
            _take(now),
        )

    async def _release(self, session: AsyncSession, held: Worktree) -> Worktree:
        now = utc_now()
        return await self._update(
            session,
            (
                Worktree.id == held.id,
                Worktree.version == held.version,
                Worktree.lease_owner == held.lease_owner,
                Worktree.lease_token == held.lease_token,
                col(Worktree.lease_expires_at) > now,
            ),
            {
                "lease_owner": None,
                "lease_token": None,
                "leased_at": None,
                "lease_expires_at": None,
                "version": Worktree.version + 1,
                "updated_at": now,
            },
        )

    @staticmethod
    async def _update(
        session: AsyncSession, conditions: tuple[Any, ...], values: dict[str, Any]
    ) -> Worktree:
        result = await session.execute(
            update(Worktree).where(*conditions).values(values).returning(Worktree),
            execution_options={"synchronize_session": False, "populate_existing": True},
        )
        return result.scalars().one()


def _event(session_id: str) -> Event:
    event = Event(
        id=new_id(),
        session_id=session_id,
        event_type=EVENT,
        level="info",
        message=MESSAGE,
        context=CONTEXT,
        created_at=utc_now(),
    )
    event.hash = _hash(
        session_id,
        event.id,
        session_id,
        EVENT,
        "info",
        MESSAGE,
        json.dumps(CONTEXT),
        encode_time(event.created_at),
    )
    return event


def _take(now: datetime) -> dict[str, Any]:
    return {"version": Worktree.version + 1, **_lease(now)}


def _lease(now: datetime) -> dict[str, Any]:
    return {
        "lease_owner": OWNER,
        "lease_token": new_token(),
        "leased_at": now,
        "lease_expires_at": now + TTL,
        "updated_at": now,
    }


def make(pool_size: int | None) -> SqlmodelOrm:
    """Return the contender."""
    return SqlmodelOrm(pool_size)
