"""What the repositories of leased tables have in common: take, wait, hold, guard, count."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from metastore import codec
from metastore.backends.base import Guard
from metastore.leasing.holding import Held, held_lease, lost
from metastore.leasing.queue import BACK_OF_QUEUE, give_back
from metastore.repositories.base import TableRepository
from metastore.repositories.lease_waiters import LeaseWaiters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime, timedelta

    from metastore.leasing.holding import Expiring
    from metastore.repositories.lease_waiters import LeaseWaiter
    from metastore.statements import Call

__all__ = ["LeasableRepository"]

AnyRow = TypeVar("AnyRow", bound=codec.Row)
AnyHeld = TypeVar("AnyHeld", bound=Held)


class LeasableRepository(TableRepository[AnyRow], ABC, Generic[AnyRow, AnyHeld]):
    """The operations on a table whose rows are leased. Each table has its own statements.

    To be a subclass is all it takes for a table to guard transactions, to be counted by health
    checks, and to expire in tests.
    """

    held_type: ClassVar[type[Any]]
    leased: ClassVar[str]

    @abstractmethod
    async def renew(self, held: AnyHeld, /, *, ttl: timedelta) -> AnyHeld:
        """Extend it until `ttl` from now, and return it.

        Raises:
            LeaseLost: it is over; nothing was changed.
            InvalidValue: `ttl` is refused.
        """

    @abstractmethod
    def _held_of(self, row: AnyRow) -> AnyHeld:
        """Return what a leased row grants its holder."""

    @abstractmethod
    def _check(self, held: AnyHeld, now: datetime) -> Call:
        """Return the statement that finds a row while `held` is held."""

    @abstractmethod
    def _counts(self, now: datetime) -> tuple[Call, Call]:
        """Return the statements that count what is held, and what expired without a release."""

    def guard(self, held: AnyHeld) -> Guard:
        """Return the condition that `held` is still held, for a transaction.

        Raises:
            InvalidValue: `held` is invalid.
        """
        return Guard(lambda: self._check(held, self._now()), lambda: lost(held))

    async def count_held(self) -> tuple[int, int]:
        """Return how many are held, and how many expired without a release."""
        live, expired = self._counts(self._now())
        return await self._scalar(live), await self._scalar(expired)

    async def _unless_lost(self, held: AnyHeld, call: Call) -> AnyRow:
        """Run a statement of a holder and return the row.

        Raises:
            LeaseLost: it returned none.
        """
        rows = self._decode(await self._run(call))
        if not rows:
            raise lost(held)
        return rows[0]

    async def _take(self, *calls: Call, abandon: Callable[[], Call]) -> AnyHeld | None:
        """Run a statement that takes a row, and what goes with it.

        `abandon` makes the statement that gives the row back if the caller is cancelled.
        """
        try:
            rows, *_ = await self._run_all(*calls)
        except asyncio.CancelledError:
            # It may have been taken all the same, and nobody would know.
            if self._scope.backend is not None:
                await give_back(self._abandon(abandon), backend=self._scope.backend)
            raise
        if not rows:
            return None
        [row] = self._decode(rows)
        return self._held_of(row)

    async def _abandon(self, abandon: Callable[[], Call]) -> None:
        # A coroutine, because a closed store refuses before there is anything to await.
        await self._run(abandon())

    async def _take_in_turn(
        self,
        queue_id: str,
        *,
        owner: str,
        wait: timedelta | None,
        attempt: Callable[[int], Call],
        is_available: Callable[[int], Call],
        abandon: Callable[[], Call],
        on_refusal: Callable[[], Awaitable[None]] | None = None,
    ) -> AnyHeld | None:
        """Take a row, or queue for one; None if there is none, or was none in time.

        Args:
            queue_id: Whose queue it is.
            owner: Who queues.
            wait: For how long; None does not queue.
            attempt: Makes the statement that takes a row from a position in the queue.
            is_available: Makes the statement that asks whether it would, without a write.
            abandon: Makes the statement that gives back what a cancelled caller took.
            on_refusal: Raises what no waiting can change.

        Raises:
            TransactionActive: `wait` was given in a transaction.
        """
        waiters = LeaseWaiters(self._scope)

        async def try_once(*calls: Call) -> AnyHeld | None:
            held = await self._take(*calls, abandon=abandon)
            if held is None and on_refusal is not None:
                await on_refusal()
            return held

        async def looks_available(ticket: LeaseWaiter) -> bool:
            return await self._scalar(is_available(ticket.position)) is not None

        held = await try_once(attempt(BACK_OF_QUEUE))
        if held is not None or wait is None:
            return held
        return await waiters.wait_in_queue(
            self.table,
            queue_id,
            owner=owner,
            wait=wait,
            is_available=looks_available,
            take=lambda ticket: try_once(attempt(ticket.position), waiters.leaving(ticket)),
        )

    def _holding(
        self,
        held: AnyHeld,
        ttl: timedelta,
        *,
        renew: Callable[[], Awaitable[Expiring | None]],
        end: Callable[[BaseException | None], Coroutine[Any, Any, object]],
    ) -> AbstractAsyncContextManager[AnyHeld]:
        """Hold `held` for the duration of a body, see `held_lease`."""
        return held_lease(
            held,
            backend=self._scope.backend,
            ttl=ttl,
            renew=renew,
            now=self._now,
            end=end,
        )
