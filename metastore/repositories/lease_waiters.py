"""lease_waiters: who waits for a worktree or a project, first come first served."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from metastore.codec import Id, Label, Row, new_id
from metastore.errors import TransactionActive
from metastore.leases import give_back, latest_credible_expiry
from metastore.paging import Page, checked_limit, page_of
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.statement_types import LeaseWaitersStatements
    from metastore.statements import Call

__all__ = [
    "BACK_OF_QUEUE",
    "LeaseWaiter",
    "LeaseWaiters",
    "LeasedResource",
    "latest_credible_ticket",
]

BACK_OF_QUEUE = (1 << 63) - 1
"""The position of a caller without a ticket: behind everybody who waits."""

TICKET_TTL = timedelta(seconds=5)
"""How long a ticket counts that nobody keeps alive."""

KEEP_INTERVAL = 1.5
"""How often a waiter keeps its ticket alive, in seconds."""

LOOK_INTERVAL = 0.25
"""How often a waiter looks without having noticed a commit, in seconds: leases also expire."""

Taken = TypeVar("Taken")


def latest_credible_ticket(now: datetime) -> datetime:
    """Return the latest expiry of a ticket to believe."""
    return latest_credible_expiry(now, TICKET_TTL)


class LeasedResource(StrEnum):
    """The tables whose rows are leased."""

    WORKTREES = "worktrees"
    PROJECT_LOCKS = "project_locks"
    TASKS = "tasks"


class LeaseWaiter(Row, frozen=True):
    """A ticket: a place in the line for a resource.

    Attributes:
        position: the place; smaller ones come first.
        resource_id: the repository or project that is waited for.
    """

    position: int
    id: Id
    resource: LeasedResource
    resource_id: Id
    owner: Label
    created_at: datetime
    expires_at: datetime


class LeaseWaiters(TableRepository[LeaseWaiter]):
    """The lines in front of repositories and projects."""

    table = "lease_waiters"
    row_type = LeaseWaiter
    _sql: LeaseWaitersStatements

    async def list_by_resource(
        self, resource: str, resource_id: str, *, after: int = 0, limit: int = 50
    ) -> Page[LeaseWaiter, int]:
        """Return a page of the live tickets for a resource, first come first."""
        now = self._now()
        rows = await self._all(
            self._sql.list_lease_waiters(
                resource=resource,
                resource_id=resource_id,
                now=now,
                ticket_horizon=latest_credible_ticket(now),
                after=after,
                limit=checked_limit(limit),
            )
        )
        return page_of(rows, limit, lambda row: row.position)

    async def wait_in_line(
        self,
        resource: LeasedResource,
        resource_id: str,
        *,
        owner: str,
        wait: timedelta,
        is_available: Callable[[int], Awaitable[bool]],
        take: Callable[[LeaseWaiter], Awaitable[Taken | None]],
    ) -> Taken | None:
        """Wait for a turn and take what is waited for; None when `wait` has passed.

        `is_available` and `take` are asked with the ticket that was drawn; `take` gives the
        ticket back when it succeeds.

        Raises:
            TransactionActive: nothing can become free while a transaction is open.
        """
        backend = self._scope.backend
        if backend is None:
            raise TransactionActive("a transaction cannot wait for a lease")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait.total_seconds()
        # Known before it is drawn, so that a draw that was cancelled in flight is undone too.
        ticket_id = new_id()
        taken = None
        try:
            ticket = await self._draw(ticket_id, resource, resource_id, owner)
            keep_at = loop.time() + KEEP_INTERVAL
            while True:
                seen = backend.changes
                if await is_available(ticket.position):
                    taken = await take(ticket)
                    if taken is not None:
                        return taken
                remaining = deadline - loop.time()
                if remaining <= 0:
                    return None
                if loop.time() >= keep_at:
                    ticket = await self._keep(ticket)
                    keep_at = loop.time() + KEEP_INTERVAL
                await backend.wait_for_change(seen, min(remaining, LOOK_INTERVAL))
        finally:
            if taken is None:
                # A ticket that cannot be given back expires.
                await give_back(self._leave(ticket_id), backend=backend)

    def leaving(self, ticket: LeaseWaiter) -> Call:
        """Return the statement that gives a ticket back, to go with the one that takes."""
        return self._sql.delete_lease_waiter(id=ticket.id)

    async def _draw(
        self, ticket_id: str, resource: LeasedResource, resource_id: str, owner: str
    ) -> LeaseWaiter:
        now = self._now()
        _, rows = await self._run_all(
            self._sql.delete_expired_lease_waiters(
                resource=resource,
                resource_id=resource_id,
                now=now,
                ticket_horizon=latest_credible_ticket(now),
            ),
            self._sql.create_lease_waiter(
                id=ticket_id,
                resource=resource,
                resource_id=resource_id,
                owner=owner,
                created_at=now,
                expires_at=now + TICKET_TTL,
            ),
        )
        [ticket] = self._decode(rows)
        return ticket

    async def _keep(self, ticket: LeaseWaiter) -> LeaseWaiter:
        # Of a clock that has jumped back, the old expiry is not believed until this rewrites it.
        kept = await self._find(
            self._sql.keep_lease_waiter(id=ticket.id, expires_at=self._now() + TICKET_TTL)
        )
        # Cleared away while it did not count: back to the end of the queue.
        return kept or await self._draw(
            ticket.id, ticket.resource, ticket.resource_id, ticket.owner
        )

    async def _leave(self, ticket_id: str) -> None:
        # A coroutine, because a closed store refuses before there is anything to await.
        await self._run(self._sql.delete_lease_waiter(id=ticket_id))
