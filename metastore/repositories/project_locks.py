"""project_locks: who has a project to itself, and until when."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, TypedDict

from metastore.codec import Id, Row, expect, new_id
from metastore.errors import (
    InvalidReference,
    InvalidTransition,
    InvalidValue,
    LockHeld,
    NotFound,
)
from metastore.leasing.holding import lost
from metastore.leasing.limits import (
    LONG_AGO,
    checked_ttl,
    checked_wait,
    latest_credible_expiry,
    latest_credible_ticket,
)
from metastore.paging import DEFAULT_PAGE, FIRST_ID, Page, TimeCursor, checked_limit
from metastore.repositories.leasable import LeasableRepository
from metastore.repositories.projects import Projects
from metastore.repositories.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from metastore.statement_types import ProjectLocksStatements
    from metastore.statements import Call

__all__ = ["ProjectLock", "ProjectLocks"]


class ProjectLock(Row, frozen=True):
    """The lock of a project. Its holder presents it.

    Attributes:
        id: made anew for each holder.
        fencing_number: larger than that of every earlier lock of the project.
    """

    resource: ClassVar[str] = "project_locks"

    id: Id
    project_id: Id
    session_id: Id
    acquired_at: datetime
    expires_at: datetime
    fencing_number: int

    @property
    def resource_id(self) -> str:
        """The id of the locked project."""
        return self.project_id


class _Held(TypedDict):
    """What a statement asks of a lock to know that it is still held."""

    id: str
    session_id: str
    fencing_number: int


class ProjectLocks(LeasableRepository[ProjectLock, ProjectLock]):
    """The locks of projects: one session at a time holds a project."""

    table = "project_locks"
    row_type = ProjectLock
    _sql: ProjectLocksStatements
    held_type = ProjectLock
    leased = "projects"

    async def acquire(
        self,
        *,
        project_id: Id,
        session_id: Id,
        ttl: timedelta,
        wait: timedelta | None = None,
    ) -> ProjectLock:
        """Lock a project for a session until `ttl` from now.

        An expired lock is taken over. With `wait`, the session queues for that long: first come,
        first served, across processes. A session that holds the lock does not get it twice.

        Raises:
            LockHeld: it is held, and did not become free in time; carries the lock.
            InvalidReference: there is no such project or session.
            InvalidTransition: the session has ended, also while it waited; carries the session.
            InvalidValue: the session is not one of this project, or a value is refused.
            TransactionActive: `wait` was given in a transaction.
        """
        checked_ttl(ttl)
        checked_wait(wait)
        lock_id = new_id()

        def attempt(position: int) -> Call:
            now = self._now()
            return self._sql.acquire_project_lock(
                id=lock_id,
                project_id=project_id,
                session_id=session_id,
                acquired_at=now,
                expires_at=now + ttl,
                latest_credible_expiry=latest_credible_expiry(now),
                position=position,
                latest_credible_ticket=latest_credible_ticket(now),
            )

        def is_available(position: int) -> Call:
            now = self._now()
            return self._sql.project_lock_is_available(
                project_id=project_id,
                session_id=session_id,
                position=position,
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
                latest_credible_ticket=latest_credible_ticket(now),
            )

        lock = await self._take_in_turn(
            project_id,
            owner=session_id,
            wait=wait,
            attempt=attempt,
            is_available=is_available,
            abandon=lambda: self._sql.abandon_project_lock(id=lock_id),
            on_refusal=lambda: self._check_session(project_id, session_id),
        )
        if lock is None:
            raise LockHeld(project_id, await self.find_by_project(project_id))
        return lock

    async def get(self, lock_id: Id) -> ProjectLock:
        """Return a lock.

        Raises:
            NotFound: it was released or taken over.
            InvalidValue: `lock_id` is not a valid id.
        """
        return await self._one(self._sql.get_project_lock(id=lock_id), lock_id)

    async def find_by_project(self, project_id: Id) -> ProjectLock | None:
        """Return the project's lock, even if it has expired, or None.

        Raises:
            InvalidValue: `project_id` is not a valid id.
        """
        return await self._find(self._sql.find_project_lock(project_id=project_id))

    async def list_by_session(self, session_id: Id) -> list[ProjectLock]:
        """Return the locks that a session holds, expired ones included.

        Raises:
            InvalidValue: `session_id` is not a valid id.
        """
        return await self._all(self._sql.list_project_locks_by_session(session_id=session_id))

    async def list_expired(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[ProjectLock, str]:
        """Return a page of the locks that expired and were not taken over, the longest first.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        cursor = TimeCursor(LONG_AGO, FIRST_ID) if after is None else TimeCursor.parse(after)
        now = self._now()
        call = self._sql.list_expired_project_locks(
            now=now,
            latest_credible_expiry=latest_credible_expiry(now),
            after=cursor.created_at,
            after_id=cursor.id,
            limit=checked_limit(limit),
        )
        return await self._page(call, limit, lambda row: str(TimeCursor(row.expires_at, row.id)))

    async def renew(self, lock: ProjectLock, *, ttl: timedelta) -> ProjectLock:
        """Extend a lock until `ttl` from now and return it.

        Raises:
            LeaseLost: it expired or went to another session; nothing was changed.
            InvalidTransition: the session has ended; carries the session. The lock is held until
                it is released or expires.
            InvalidValue: `lock` is no lock, or another value is refused.
        """
        now = self._now()
        row = await self._find(
            self._sql.renew_project_lock(
                **_held(lock),
                expires_at=now + checked_ttl(ttl),
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
            )
        )
        if row is None:
            if not await self._run(self._check(lock, now)):
                raise lost(lock)
            raise await self._refusal(Sessions(self._scope), lock.session_id, "lock")
        return row

    async def release(self, lock: ProjectLock) -> None:
        """Release a locked project.

        Raises:
            LeaseLost: the lock expired or went to another session; nothing was changed.
            InvalidValue: `lock` is no lock.
        """
        now = self._now()
        await self._unless_lost(
            lock,
            self._sql.release_project_lock(
                **_held(lock), now=now, latest_credible_expiry=latest_credible_expiry(now)
            ),
        )

    @asynccontextmanager
    async def hold(
        self,
        *,
        project_id: Id,
        session_id: Id,
        ttl: timedelta,
        wait: timedelta | None = None,
    ) -> AsyncIterator[ProjectLock]:
        """Hold a project's lock for the duration of a body: `acquire`, renew, release.

        When the lock is lost, the body is cancelled and `LeaseLost` raised in its place. After
        the end of its session the lock is not renewed: the body has until it expires to finish.

        Raises:
            LockHeld: it is held, and did not become free in time.
            InvalidTransition: the session has ended; carries the session.
            LeaseLost: the lock was lost before the body ended.
            InvalidReference: there is no such project or session.
            InvalidValue: the session is not one of this project, or a value is refused.
            TransactionActive: `wait` was given in a transaction.
        """
        lock = await self.acquire(project_id=project_id, session_id=session_id, ttl=ttl, wait=wait)
        async with self._holding(
            lock,
            ttl,
            renew=lambda: self.renew(lock, ttl=ttl),
            end=lambda _: self.release(lock),
        ):
            yield lock

    async def _check_session(self, project_id: Id, session_id: Id) -> None:
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

    def _held_of(self, row: ProjectLock) -> ProjectLock:
        return row

    def _check(self, held: ProjectLock, now: datetime) -> Call:
        return self._sql.project_is_locked(
            **_held(held), now=now, latest_credible_expiry=latest_credible_expiry(now)
        )

    def _counts(self, now: datetime) -> tuple[Call, Call]:
        latest = latest_credible_expiry(now)
        return (
            self._sql.count_live_project_locks(now=now, latest_credible_expiry=latest),
            self._sql.count_expired_project_locks(now=now, latest_credible_expiry=latest),
        )


def _held(lock: ProjectLock) -> _Held:
    expect("lock", lock, ProjectLock, "a lock that was acquired")
    return {
        "id": lock.id,
        "session_id": lock.session_id,
        "fencing_number": lock.fencing_number,
    }
