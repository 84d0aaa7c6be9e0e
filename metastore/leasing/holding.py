"""Holding something for the duration of a body: renewed in the background, then given back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from metastore.errors import (
    InvalidTransition,
    LeaseLost,
    MetastoreError,
    StoreClosed,
    StoreReplaced,
)
from metastore.leasing.queue import give_back

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from datetime import datetime, timedelta
    from typing import Any

__all__ = ["Expiring", "Held", "held_lease", "lost"]

RETRY_INTERVAL = 0.1
"""How soon a renewal that failed for a passing reason is tried again, in seconds."""


class Expiring(Protocol):
    """What was renewed."""

    @property
    def expires_at(self) -> datetime:
        """When it ends unless it is renewed again."""


class Held(Expiring, Protocol):
    """What a holder shows: a worktree's lease, a project's lock, a task's claim.

    How it is guarded, renewed and released, the repository of its table knows.

    Attributes:
        resource: the table of the leased row.
        fencing_number: larger than that of every earlier holder.
    """

    resource: ClassVar[str]

    @property
    def resource_id(self) -> str:
        """The id of what is held."""

    @property
    def fencing_number(self) -> int:
        """The number it is held under."""


AnyHeld = TypeVar("AnyHeld", bound=Held)


def lost(held: Held) -> LeaseLost:
    """Return the error of a holder who holds no more."""
    return LeaseLost(held.resource, held.resource_id, held.fencing_number)


@contextlib.asynccontextmanager
async def held_lease(
    held: AnyHeld,
    *,
    backend: object,
    ttl: timedelta,
    renew: Callable[[], Awaitable[Expiring | None]],
    now: Callable[[], datetime],
    end: Callable[[BaseException | None], Coroutine[Any, Any, object]],
) -> AsyncIterator[AnyHeld]:
    """Hold `held` for the duration of a body: renew it in the background, end it afterwards.

    When it is lost, the body is cancelled and `LeaseLost` is raised in place of the
    cancellation, caused by whatever unexpected error ended the renewals. An error of the body
    is never replaced: neither by a lost lease, nor by an error of `end`.

    Args:
        held: What is held, as it was granted.
        backend: Where `end` runs.
        ttl: For how long each renewal lasts.
        renew: Renews it; returns None when the body has ended it and nothing is left to renew.
        now: Tells the time that expiries are compared with.
        end: Given what the body raised, or None. It has finished, or had `RELEASE_PATIENCE`,
            before an error or a cancellation goes on.

    Raises:
        LeaseLost: it was lost before the body ended.
    """
    body = asyncio.current_task()
    if body is None:
        raise RuntimeError("a lease is held by a task")
    # The TTL began when the lease was asked for, not when it was granted.
    remaining = (held.expires_at - now()).total_seconds()
    renewer = _Renewer(body, ttl, remaining, renew, now)
    try:
        yield held
    except BaseException as error:
        was_lost = await renewer.stop()
        await give_back(end(error), backend=backend)
        if was_lost and isinstance(error, asyncio.CancelledError) and not renewer.others_cancelled:
            raise lost(held) from renewer.cause
        raise
    if await renewer.stop():
        # It may still run: the renewer can end for other reasons than a lost lease.
        await give_back(end(asyncio.CancelledError()), backend=backend)
        raise lost(held) from renewer.cause
    ending = asyncio.ensure_future(end(None))
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await give_back(ending, backend=backend)
        raise


class _Renewer:
    """Renews a lease in a task of its own and cancels the body when the lease is lost.

    Attributes:
        cause: the unexpected error that ended the renewals, if one did.
    """

    def __init__(
        self,
        body: asyncio.Task[Any],
        ttl: timedelta,
        remaining: float,
        renew: Callable[[], Awaitable[Expiring | None]],
        now: Callable[[], datetime],
    ) -> None:
        self.cause: BaseException | None = None
        self._body = body
        self._cancelling = body.cancelling()
        self._span = ttl
        self._ttl = ttl.total_seconds()
        self._remaining = min(max(remaining, 0.0), self._ttl)
        self._renew = renew
        self._now = now
        self._lost = False
        self._stopped = False
        self._task = asyncio.get_running_loop().create_task(self._renew_until_lost())
        # However the task ends, the lease is renewed no more: that must not go unnoticed.
        self._task.add_done_callback(self._notice_end)

    @property
    def others_cancelled(self) -> bool:
        """Whether somebody else has cancelled the body, as of `stop`."""
        return self._body.cancelling() > self._cancelling

    async def stop(self) -> bool:
        """Stop renewing; return whether the lease was lost and the body cancelled for it."""
        self._stopped = True
        self._task.cancel()
        if self._lost:
            await self._take_back_cancellation()
        return self._lost

    def _notice_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if not self._stopped:
            self._lost = True
            self.cause = error
            self._body.cancel()

    async def _take_back_cancellation(self) -> None:
        try:
            # It may still be on its way: the body has not awaited anything since.
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._body.uncancel()
            if self.others_cancelled:
                # Two cancellations arrive as one: the other's is delivered by the next await.
                self._body.uncancel()
                self._body.cancel()
        else:
            self._body.uncancel()

    async def _renew_until_lost(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._remaining
        renew_at = loop.time() + self._remaining / 3
        while True:
            await asyncio.sleep(renew_at - loop.time())
            # The new expiry counts from here, however long the renewal then takes.
            begun = loop.time()
            try:
                async with asyncio.timeout_at(deadline):
                    renewed = await self._renew()
            except (LeaseLost, StoreClosed, StoreReplaced, TimeoutError):
                return
            except InvalidTransition:
                # What it was taken for has ended, which no retry changes. It runs until its expiry,
                # so that a body that ends its own session can still finish and release.
                await asyncio.sleep(deadline - loop.time())
                return
            except MetastoreError:
                # Busy or full for the moment; the lease still runs, so try again soon.
                if loop.time() >= deadline:
                    return
                renew_at = min(loop.time() + min(RETRY_INTERVAL, self._ttl / 3), deadline)
            else:
                if renewed is None or renewed.expires_at <= self._now() + self._span:
                    deadline = begun + self._ttl
                elif loop.time() >= deadline:
                    # A clock that jumped back behind the grant leaves the expiry where it was, and
                    # others believe that one.
                    return
                renew_at = min(begun + self._ttl / 3, deadline)
