"""project_locks: who has a project to itself, and until when."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, TypedDict

from metastore.backends.base import Guard
from metastore.codec import Id, Row, duration, expect, new_id
from metastore.errors import (
    InvalidReference,
    InvalidTransition,
    InvalidValue,
    LeaseLost,
    LockHeld,
    NotFound,
)
from metastore.leases import LONG_AGO, give_back, held_lease, latest_credible_expiry
from metastore.paging import FIRST_ID, Page, TimeCursor, checked_limit, page_of
from metastore.repositories.base import TableRepository
from metastore.repositories.lease_waiters import (
    BACK_OF_QUEUE,
    LeasedResource,
    LeaseWaiter,
    LeaseWaiters,
    latest_credible_ticket,
)
from metastore.repositories.projects import Projects
from metastore.repositories.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from metastore.statement_types import ProjectLocksStatements
    from metastore.statements import Call

__all__ = ["ProjectLock", "ProjectLocks"]


class ProjectLock(Row, frozen=True):
    """The lock of a project; it is what its holder shows.

    Attributes:
        id: made anew for each holder.
        fencing_number: larger than that of every earlier lock of the project.
    """

    resource: ClassVar[LeasedResource] = LeasedResource.PROJECT_LOCKS

    id: Id
    project_id: Id
    session_id: Id
    acquired_at: datetime
    expires_at: datetime
    fencing_number: int


class _Held(TypedDict):
    """What a statement asks of a lock to know that it is still held."""

    id: str
    session_id: str
    fencing_number: int


class ProjectLocks(TableRepository[ProjectLock]):
    """The locks of projects: one session at a time has a project to itself."""

    table = "project_locks"
    row_type = ProjectLock
    _sql: ProjectLocksStatements

    async def acquire(
        self,
        *,
        project_id: str,
        session_id: str,
        ttl: timedelta,
        wait: timedelta | None = None,
    ) -> ProjectLock:
        """Lock a project for a session until `ttl` from now.

        A lock that ran out is taken over. With `wait`, the session gets in line for that long:
        first come, first served, across processes. A session that holds the lock does not get
        it twice.

        Raises:
            LockHeld: it is held, and did not become free in time; carries the lock.
            InvalidReference: there is no such project or session.
            InvalidTransition: the session has ended, also while it waited; carries the session.
            InvalidValue: the session is not one of this project.
        """
        duration("ttl", ttl)
        if wait is not None:
            duration("wait", wait, shortest=timedelta(0))
        waiters = LeaseWaiters(self._scope)
        lock_id = new_id()

        def attempt(position: int) -> Call:
            now = self._now()
            return self._sql.acquire_project_lock(
                id=lock_id,
                project_id=project_id,
                session_id=session_id,
                acquired_at=now,
                expires_at=now + ttl,
                horizon=latest_credible_expiry(now),
                position=position,
                ticket_horizon=latest_credible_ticket(now),
            )

        async def is_available(position: int) -> bool:
            now = self._now()
            return (
                await self._scalar(
                    self._sql.project_lock_is_available(
                        project_id=project_id,
                        session_id=session_id,
                        position=position,
                        now=now,
                        horizon=latest_credible_expiry(now),
                        ticket_horizon=latest_credible_ticket(now),
                    )
                )
                is not None
            )

        async def take(ticket: LeaseWaiter) -> ProjectLock | None:
            taken = await self._take(
                attempt(ticket.position), waiters.leaving(ticket), lock_id=lock_id
            )
            if taken is None:
                await self._check_session(project_id, session_id)
            return taken

        lock = await self._take(attempt(BACK_OF_QUEUE), lock_id=lock_id)
        if lock is None:
            await self._check_session(project_id, session_id)
        if lock is None and wait is not None:
            lock = await waiters.wait_in_line(
                LeasedResource.PROJECT_LOCKS,
                project_id,
                owner=session_id,
                wait=wait,
                is_available=is_available,
                take=take,
            )
        if lock is None:
            raise LockHeld(project_id, await self.find_by_project(project_id))
        return lock

    async def get(self, lock_id: str) -> ProjectLock:
        """Return a lock.

        Raises:
            NotFound: it was released or taken over.
        """
        return await self._one(self._sql.get_project_lock(id=lock_id), lock_id)

    async def find_by_project(self, project_id: str) -> ProjectLock | None:
        """Return the project's lock, also one that ran out, or None."""
        return await self._find(self._sql.find_project_lock(project_id=project_id))

    async def list_by_session(self, session_id: str) -> list[ProjectLock]:
        """Return the locks that a session has, also those that ran out."""
        return await self._all(self._sql.list_project_locks_by_session(session_id=session_id))

    async def count(self) -> tuple[int, int]:
        """Return how many locks are live, and how many ran out without a release."""
        now = self._now()
        live = await self._scalar(
            self._sql.count_live_project_locks(now=now, horizon=latest_credible_expiry(now))
        )
        expired = await self._scalar(
            self._sql.count_expired_project_locks(now=now, horizon=latest_credible_expiry(now))
        )
        return live, expired

    async def list_expired(
        self, *, after: str | None = None, limit: int = 50
    ) -> Page[ProjectLock, str]:
        """Return a page of the locks that ran out and were not taken over, the longest first."""
        cursor = TimeCursor(LONG_AGO, FIRST_ID) if after is None else TimeCursor.parse(after)
        now = self._now()
        rows = await self._all(
            self._sql.list_expired_project_locks(
                now=now,
                horizon=latest_credible_expiry(now),
                after=cursor.created_at,
                after_id=cursor.id,
                limit=checked_limit(limit),
            )
        )
        return page_of(rows, limit, lambda row: str(TimeCursor(row.expires_at, row.id)))

    async def renew(self, lock: ProjectLock, *, ttl: timedelta) -> ProjectLock:
        """Let a lock run until `ttl` from now and return it so.

        Raises:
            LeaseLost: it ran out or went to another session; nothing was changed.
            InvalidTransition: the session has ended; carries the session. The lock is held until
                it is released or runs out.
        """
        now = self._now()
        row = await self._find(
            self._sql.renew_project_lock(
                **_held(lock),
                expires_at=now + duration("ttl", ttl),
                now=now,
                horizon=latest_credible_expiry(now),
            )
        )
        if row is None:
            if not await self._run(
                self._sql.project_is_locked(
                    **_held(lock), now=now, horizon=latest_credible_expiry(now)
                )
            ):
                raise _lost(lock)
            raise await self._refusal(Sessions(self._scope), lock.session_id, "lock")
        return row

    async def release(self, lock: ProjectLock) -> None:
        """Set a locked project free.

        Raises:
            LeaseLost: the lock ran out or went to another session; nothing was changed.
        """
        now = self._now()
        row = await self._find(
            self._sql.release_project_lock(
                **_held(lock), now=now, horizon=latest_credible_expiry(now)
            )
        )
        if row is None:
            raise _lost(lock)

    @asynccontextmanager
    async def hold(
        self,
        *,
        project_id: str,
        session_id: str,
        ttl: timedelta,
        wait: timedelta | None = None,
    ) -> AsyncIterator[ProjectLock]:
        """Hold a project's lock for the time of a body: `acquire`, renew, release.

        When the lock is lost, the body is cancelled and `LeaseLost` raised in its place. After
        the end of its session the lock is not renewed: the body has until it runs out to finish.

        Raises:
            LockHeld: it is held, and did not become free in time.
            InvalidTransition: the session has ended; carries the session.
            LeaseLost: the lock was lost before the body ended.
        """
        lock = await self.acquire(project_id=project_id, session_id=session_id, ttl=ttl, wait=wait)
        async with held_lease(
            lock,
            backend=self._scope.backend,
            ttl=ttl,
            remaining=lock.expires_at - self._now(),
            renew=lambda: self.renew(lock, ttl=ttl),
            now=self._now,
            end=lambda _: self.release(lock),
            lost=lambda: _lost(lock),
        ):
            yield lock

    def guard(self, lock: ProjectLock) -> Guard:
        """Return the condition that `lock` is still held, for a transaction."""

        def check() -> Call:
            now = self._now()
            return self._sql.project_is_locked(
                **_held(lock), now=now, horizon=latest_credible_expiry(now)
            )

        return Guard(check, lambda: _lost(lock))

    async def _check_session(self, project_id: str, session_id: str) -> None:
        """Check that a session that was refused the lock may have it once the project is free.

        Raises:
            InvalidReference: there is no such project or session.
            InvalidTransition: the session has ended.
            InvalidValue: the session is not one of this project.
        """
        may_lock = self._sql.session_may_lock(project_id=project_id, session_id=session_id)
        if await self._scalar(may_lock) is not None:
            return
        try:
            project = await Projects(self._scope).get(project_id)
            session = await Sessions(self._scope).get(session_id)
        except NotFound as missing:
            column = "project_id" if missing.table == Projects.table else "session_id"
            raise InvalidReference(self.table, column, missing.table) from None
        if session.has_ended:
            raise InvalidTransition(Sessions.table, session.status, "lock", session, is_work=True)
        if session.project_path != project.path:
            raise InvalidValue(self.table, "session_id", "must be a session of the project")

    async def _take(self, *calls: Call, lock_id: str) -> ProjectLock | None:
        """Run a statement that takes a lock, and what goes with it, and return the lock."""
        try:
            rows, *_ = await self._run_all(*calls)
        except asyncio.CancelledError:
            # It may have been taken all the same, and nobody would know.
            if self._scope.backend is not None:
                await give_back(self._abandon(lock_id), backend=self._scope.backend)
            raise
        locks = self._decode(rows)
        return locks[0] if locks else None

    async def _abandon(self, lock_id: str) -> None:
        await self._run(self._sql.abandon_project_lock(id=lock_id))


def _held(lock: ProjectLock) -> _Held:
    expect("lock", lock, ProjectLock, "a lock that was acquired")
    return {
        "id": lock.id,
        "session_id": lock.session_id,
        "fencing_number": lock.fencing_number,
    }


def _lost(lock: ProjectLock) -> LeaseLost:
    return LeaseLost(LeasedResource.PROJECT_LOCKS, lock.project_id, lock.fencing_number)
