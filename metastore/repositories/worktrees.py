"""worktrees: the checkouts that workers lease, fenced by version."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, TypedDict

import msgspec

from metastore import deletion
from metastore.codec import Id, Label, Row, expect
from metastore.errors import LeaseUnavailable
from metastore.leasing.limits import (
    LONG_AGO,
    checked_ttl,
    checked_wait,
    latest_credible_expiry,
    latest_credible_ticket,
)
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.leasable import LeasableRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from metastore.statement_types import WorktreesStatements
    from metastore.statements import Call

__all__ = ["Lease", "Worktree", "WorktreeState", "Worktrees"]


class WorktreeState(StrEnum):
    """Whether a worktree is handed out."""

    READY = "ready"
    RETIRED = "retired"


class Worktree(Row, frozen=True):
    """A checkout of a repository.

    Attributes:
        environment_hashes: a digest for each part of the environment that was set up in it.
        version: the fencing number; it grows whenever the worktree is taken or released.
    """

    id: Id
    repository_id: Id
    path: str
    branch: Label | None
    commit_sha: Label | None
    environment_hashes: dict[str, str]
    state: WorktreeState
    lease_owner: Label | None
    lease_token: str | None
    leased_at: datetime | None
    lease_expires_at: datetime | None
    version: int
    created_at: datetime
    updated_at: datetime


class Lease(msgspec.Struct, frozen=True):
    """The right to use a worktree until it expires. Its holder presents it.

    Attributes:
        worktree: the row as it was when the lease was granted or last renewed.
        owner: whom it was granted to.
        token: tells this lease from every other of the same owner.
        fencing_number: larger than that of every earlier holder of the worktree.
        expires_at: when it ends unless it is renewed.
    """

    resource: ClassVar[str] = "worktrees"

    worktree: Worktree
    owner: str
    token: str
    fencing_number: int
    expires_at: datetime

    @property
    def worktree_id(self) -> str:
        """The id of the leased worktree."""
        return self.worktree.id

    @property
    def resource_id(self) -> str:
        """The same, as for everything that is leased."""
        return self.worktree.id

    @classmethod
    def of(cls, worktree: Worktree) -> Lease:
        """Return the lease that a leased row describes."""
        if (
            worktree.lease_owner is None
            or worktree.lease_token is None
            or worktree.lease_expires_at is None
        ):
            raise ValueError("the worktree is not leased")
        return cls(
            worktree,
            worktree.lease_owner,
            worktree.lease_token,
            worktree.version,
            worktree.lease_expires_at,
        )


class _Held(TypedDict):
    """What a statement asks of a lease to know that it is still held."""

    id: str
    version: int
    lease_owner: str
    lease_token: str


class Worktrees(LeasableRepository[Worktree, Lease]):
    """The checkouts that workers lease."""

    table = "worktrees"
    row_type = Worktree
    _sql: WorktreesStatements
    held_type = Lease
    leased = "worktrees"

    async def create(
        self,
        *,
        repository_id: Id,
        path: str,
        branch: str | None = None,
        commit_sha: str | None = None,
        environment_hashes: Mapping[str, str] | None = None,
        id: Id | None = None,
    ) -> Worktree:
        """Register a checkout, free to be leased.

        Raises:
            AlreadyExists: a worktree is registered at this path, or under this id.
            InvalidReference: there is no such repository.
            InvalidValue: an argument is invalid.
        """
        return await self._created(
            self._sql.create_worktree(
                id=self._id(id),
                repository_id=repository_id,
                path=path,
                branch=branch,
                commit_sha=commit_sha,
                environment_hashes=_canonical("environment_hashes", environment_hashes),
                created_at=self._now(),
            )
        )

    async def get(self, worktree_id: Id) -> Worktree:
        """Return a worktree.

        Raises:
            NotFound: no worktree has this id.
            InvalidValue: `worktree_id` is not a valid id.
        """
        return await self._one(self._sql.get_worktree(id=worktree_id), worktree_id)

    async def find_by_path(self, path: str) -> Worktree | None:
        """Return the worktree that is registered at `path`, or None.

        Raises:
            InvalidValue: `path` is invalid.
        """
        return await self._find(self._sql.find_worktree_by_path(path=path))

    async def find_by_lease_token(self, lease_token: str) -> Worktree | None:
        """Return the worktree that is leased under this token, also if it has expired, or None.

        Raises:
            InvalidValue: `lease_token` is invalid.
        """
        return await self._find(
            self._sql.find_worktree_by_lease_token(lease_token=lease_token, after=LONG_AGO)
        )

    async def list_by_repository(
        self, repository_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Worktree, str]:
        """Return a page of a repository's worktrees, in the order of registration.

        Raises:
            InvalidValue: `repository_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_worktrees_by_repository(
            repository_id=repository_id,
            after_id=after,
            limit=checked_limit(limit),
        )
        return await self._page(call, limit, by_id)

    async def reserve(self, worktree: Worktree, *, owner: str, ttl: timedelta) -> Lease:
        """Take `worktree` for `owner` until `ttl` from now.

        `worktree` is the row as the caller last read it: its version is the fence, and the
        loser of a race changes nothing. Bypasses the queue of the repository.

        Raises:
            LeaseUnavailable: it is held, retired, or moved since it was read; carries the row as
                it is now.
            NotFound: there is no such worktree any more.
            InvalidValue: `worktree` is no worktree, or another value is refused.
        """
        expect("worktree", worktree, Worktree, "a worktree as it was read")
        now = self._now()
        token = secrets.token_hex(16)
        taken = await self._take(
            self._sql.reserve_worktree(
                id=worktree.id,
                version=worktree.version,
                lease_owner=owner,
                lease_token=token,
                lease_expires_at=now + checked_ttl(ttl),
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
            ),
            abandon=self._abandonment(worktree.repository_id, token),
        )
        if taken is None:
            raise LeaseUnavailable(worktree.repository_id, await self.get(worktree.id))
        return taken

    async def acquire(
        self,
        repository_id: Id,
        *,
        owner: str,
        ttl: timedelta,
        prefer_commit: str | None = None,
        prefer_environment: Mapping[str, str] | None = None,
        wait: timedelta | None = None,
    ) -> Lease:
        """Take the best free worktree of a repository for `owner` until `ttl` from now.

        The best is at `prefer_commit` in `prefer_environment`, then at the commit, then in the
        environment, then any; among equals the least recently used. Expired leases are taken
        over. With `wait`, the caller queues for that long when none is free: first come, first
        served, across processes.

        Raises:
            LeaseUnavailable: none is free, or became free in time.
            TransactionActive: `wait` was given in a transaction.
            InvalidValue: an argument is invalid.
        """
        checked_ttl(ttl)
        checked_wait(wait)
        token = secrets.token_hex(16)

        def attempt(position: int) -> Call:
            now = self._now()
            return self._sql.acquire_worktree(
                repository_id=repository_id,
                commit_sha=prefer_commit,
                environment_hashes=_canonical("prefer_environment", prefer_environment),
                position=position,
                lease_owner=owner,
                lease_token=token,
                lease_expires_at=now + ttl,
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
                latest_credible_ticket=latest_credible_ticket(now),
            )

        def is_available(position: int) -> Call:
            now = self._now()
            return self._sql.worktree_is_available(
                repository_id=repository_id,
                position=position,
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
                latest_credible_ticket=latest_credible_ticket(now),
            )

        lease = await self._take_in_turn(
            repository_id,
            owner=owner,
            wait=wait,
            attempt=attempt,
            is_available=is_available,
            abandon=self._abandonment(repository_id, token),
        )
        if lease is None:
            raise LeaseUnavailable(repository_id)
        return lease

    async def renew(self, lease: Lease, *, ttl: timedelta) -> Lease:
        """Extend a lease until `ttl` from now and return it.

        Raises:
            LeaseLost: it expired or went to another holder; nothing was changed.
            InvalidValue: `lease` is no lease, or another value is refused.
        """
        now = self._now()
        row = await self._unless_lost(
            lease,
            self._sql.renew_worktree(
                **_held(lease),
                lease_expires_at=now + checked_ttl(ttl),
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
            ),
        )
        return Lease.of(row)

    async def record_checkout(
        self,
        lease: Lease,
        *,
        branch: str | None,
        commit_sha: str | None,
        environment_hashes: Mapping[str, str] | None = None,
    ) -> Lease:
        """Record what the holder has checked out, so that later holders can prefer it.

        Without `environment_hashes` those of the worktree stay as they are; `{}` clears them.

        Raises:
            LeaseLost: the lease expired or went to another holder; nothing was changed.
            InvalidValue: `lease` is no lease, or another value is refused.
        """
        now = self._now()
        row = await self._unless_lost(
            lease,
            self._sql.record_worktree_checkout(
                **_held(lease),
                branch=branch,
                commit_sha=commit_sha,
                environment_hashes=(
                    None
                    if environment_hashes is None
                    else _canonical("environment_hashes", environment_hashes)
                ),
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
            ),
        )
        return Lease.of(row)

    async def release(self, lease: Lease) -> Worktree:
        """Release a leased worktree and return it.

        Raises:
            LeaseLost: the lease expired or went to another holder; nothing was changed.
            InvalidValue: `lease` is no lease.
        """
        now = self._now()
        return await self._unless_lost(
            lease,
            self._sql.release_worktree(
                **_held(lease), now=now, latest_credible_expiry=latest_credible_expiry(now)
            ),
        )

    @asynccontextmanager
    async def lease(
        self,
        repository_id: Id,
        *,
        owner: str,
        ttl: timedelta,
        prefer_commit: str | None = None,
        prefer_environment: Mapping[str, str] | None = None,
        wait: timedelta | None = None,
    ) -> AsyncIterator[Lease]:
        """Hold a worktree for the duration of a body: `acquire`, renew in the background, release.

        When the lease is lost, the body is cancelled and `LeaseLost` raised in its place.

        Raises:
            LeaseUnavailable: none is free, or became free in time.
            LeaseLost: the lease was lost before the body ended.
            TransactionActive: `wait` was given in a transaction.
            InvalidValue: an argument is invalid.
        """
        lease = await self.acquire(
            repository_id,
            owner=owner,
            ttl=ttl,
            prefer_commit=prefer_commit,
            prefer_environment=prefer_environment,
            wait=wait,
        )
        async with self._holding(
            lease,
            ttl,
            renew=lambda: self.renew(lease, ttl=ttl),
            end=lambda _: self.release(lease),
        ):
            yield lease

    async def retire(self, worktree_id: Id) -> Worktree:
        """Take a worktree that nobody holds out of use and return it.

        Raises:
            LeaseUnavailable: it is held; carries the row as it is now.
            NotFound: no worktree has this id.
            InvalidValue: `worktree_id` is not a valid id.
        """
        now = self._now()
        row = await self._find(
            self._sql.retire_worktree(
                id=worktree_id, now=now, latest_credible_expiry=latest_credible_expiry(now)
            )
        )
        return row or await self._refuse_held(worktree_id)

    async def reinstate(self, worktree_id: Id) -> Worktree:
        """Put a retired worktree back into use and return it.

        Raises:
            NotFound: there is no retired worktree with this id.
            InvalidValue: `worktree_id` is not a valid id.
        """
        return await self._one(
            self._sql.reinstate_worktree(id=worktree_id, now=self._now()), worktree_id
        )

    async def delete(self, worktree_id: Id) -> None:
        """Delete a worktree that nobody holds. Its fencing numbers are never reused.

        From one that many sessions ran in these are separated piece by piece, and other writers
        are served in between; it is retired first, and in `deletions` until it is gone. A deletion
        that was cut short is finished by calling this again. In a transaction it is one statement.

        Raises:
            LeaseUnavailable: it is held; carries the row as it is now.
            NotFound: no worktree has this id, or another caller has deleted it meanwhile.
            InvalidValue: `worktree_id` is not a valid id.
        """
        now = self._now()
        latest = latest_credible_expiry(now)
        plan = deletion.Plan(
            weigh=self._sql.weigh_worktree(id=worktree_id, limit=deletion.SMALL_ROWS + 1),
            begin=(
                self._sql.retire_worktree(id=worktree_id, now=now, latest_credible_expiry=latest),
                self._sql.mark_worktree_deletion(id=worktree_id, now=now),
            ),
            pieces=(
                (self._sql.leave_worktree(id=worktree_id, now=now, limit=deletion.PIECE_ROWS),),
            ),
            whole=self._sql.delete_worktree(id=worktree_id, now=now, latest_credible_expiry=latest),
        )
        if not await self._deleted(plan):
            await self._refuse_held(worktree_id)

    async def _refuse_held(self, worktree_id: Id) -> Worktree:
        worktree = await self.get(worktree_id)
        raise LeaseUnavailable(worktree.repository_id, worktree)

    def _held_of(self, row: Worktree) -> Lease:
        return Lease.of(row)

    def _check(self, held: Lease, now: datetime) -> Call:
        return self._sql.worktree_is_leased(
            **_held(held), now=now, latest_credible_expiry=latest_credible_expiry(now)
        )

    def _counts(self, now: datetime) -> tuple[Call, Call]:
        latest = latest_credible_expiry(now)
        return (
            self._sql.count_live_worktree_leases(now=now, latest_credible_expiry=latest),
            self._sql.count_expired_worktree_leases(now=now, latest_credible_expiry=latest),
        )

    def _abandonment(self, repository_id: Id, token: str) -> Callable[[], Call]:
        return lambda: self._sql.abandon_worktree(
            repository_id=repository_id, lease_token=token, now=self._now()
        )


def _canonical(name: str, environment_hashes: Mapping[str, str] | None) -> dict[str, str]:
    """Return the hashes in the one order that makes equal environments equal text.

    Raises:
        InvalidValue: the argument `name` is no mapping of texts to texts.
    """
    if environment_hashes is None:
        return {}
    expect(name, environment_hashes, Mapping, "a mapping of texts to texts")
    for text in (text for pair in environment_hashes.items() for text in pair):
        expect(name, text, str, "a mapping of texts to texts")
    return dict(sorted(environment_hashes.items()))


def _held(lease: Lease) -> _Held:
    expect("lease", lease, Lease, "a lease that was granted")
    return {
        "id": lease.worktree.id,
        "version": lease.fencing_number,
        "lease_owner": lease.owner,
        "lease_token": lease.token,
    }
