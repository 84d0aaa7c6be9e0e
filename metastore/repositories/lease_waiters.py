"""lease_waiters: the queues for what is leased, first come first served."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeVar

from metastore.codec import Id, Label, Row, new_id
from metastore.errors import TransactionActive
from metastore.leasing.limits import TICKET_TTL, latest_credible_ticket
from metastore.leasing.queue import wait_for_turn
from metastore.paging import DEFAULT_PAGE, Page, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.statement_types import LeaseWaitersStatements
    from metastore.statements import Call

__all__ = [
    "LeaseWaiter",
    "LeaseWaiters",
    "LeasedResource",
    "LeasedResourceName",
]

Taken = TypeVar("Taken")


class LeasedResource(StrEnum):
    """The tables whose rows are leased."""

    WORKTREES = "worktrees"
    PROJECT_LOCKS = "project_locks"
    TASKS = "tasks"


LeasedResourceName = Literal["worktrees", "project_locks", "tasks"]
"""The same as text, so that a type checker sees a misspelt one."""


class LeaseWaiter(Row, frozen=True):
    """A ticket: a place in a queue.

    Attributes:
        position: the place; smaller ones come first.
        resource: the table of what is waited for.
        resource_id: whose queue it is: a repository's, a project's, or that of a set of task types.
    """

    position: int
    id: Id
    resource: LeasedResource
    resource_id: Id
    owner: Label
    created_at: datetime
    expires_at: datetime


class LeaseWaiters(TableRepository[LeaseWaiter]):
    """The queues for what is leased."""

    table = "lease_waiters"
    row_type = LeaseWaiter
    _sql: LeaseWaitersStatements

    async def list_by_resource(
        self,
        resource: LeasedResource | LeasedResourceName,
        resource_id: Id,
        *,
        after: int = 0,
        limit: int = DEFAULT_PAGE,
    ) -> Page[LeaseWaiter, int]:
        """Return a page of the live tickets for a resource, in the order of arrival.

        Raises:
            InvalidValue: `resource`, `resource_id`, `after` or `limit` is invalid.
        """
        now = self._now()
        call = self._sql.list_lease_waiters(
            resource=resource,
            resource_id=resource_id,
            now=now,
            latest_credible_ticket=latest_credible_ticket(now),
            after=after,
            limit=checked_limit(limit),
        )
        return await self._page(call, limit, lambda row: row.position)

    async def wait_in_queue(
        self,
        resource: str,
        resource_id: Id,
        *,
        owner: str,
        wait: timedelta,
        is_available: Callable[[LeaseWaiter], Awaitable[bool]],
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
        # Known before it is drawn, so that a draw that was cancelled in flight is undone too.
        ticket_id = new_id()
        return await wait_for_turn(
            backend,
            wait=wait,
            draw=lambda: self._draw(ticket_id, resource, resource_id, owner),
            keep=self._keep,
            leave=lambda: self._leave(ticket_id),
            is_available=is_available,
            take=take,
        )

    def leaving(self, ticket: LeaseWaiter) -> Call:
        """Return the statement that gives a ticket back, to go with the one that takes."""
        return self._sql.delete_lease_waiter(id=ticket.id)

    async def _draw(self, ticket_id: Id, resource: str, resource_id: Id, owner: str) -> LeaseWaiter:
        now = self._now()
        _, rows = await self._run_all(
            self._sql.delete_expired_lease_waiters(
                resource=resource,
                resource_id=resource_id,
                now=now,
                latest_credible_ticket=latest_credible_ticket(now),
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

    async def _leave(self, ticket_id: Id) -> None:
        # A coroutine, because a closed store refuses before there is anything to await.
        await self._run(self._sql.delete_lease_waiter(id=ticket_id))
