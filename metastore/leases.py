"""What leases of worktrees, locks of projects and claims of tasks have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from metastore.codec import CLOCK_SKEW, MAX_TTL
from metastore.errors import (
    InvalidTransition,
    LeaseLost,
    MetastoreError,
    StoreClosed,
    StoreReplaced,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from datetime import timedelta
    from typing import Any

__all__ = [
    "LONG_AGO",
    "background_work",
    "finish_in_background",
    "give_back",
    "held_lease",
    "latest_credible_expiry",
]

LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
"""Before every expiry."""

RETRY_INTERVAL = 0.1
"""How soon a renewal that failed for a passing reason is tried again, in seconds."""

RELEASE_PATIENCE = 1.0
"""How long an error or a cancellation waits for a release before it goes on, in seconds."""

Held = TypeVar("Held")

_logger = logging.getLogger("metastore.leases")

_background: dict[asyncio.Task[None], object] = {}
"""What is being finished in the background, and the backend it runs on."""


def latest_credible_expiry(now: datetime, longest: timedelta = MAX_TTL) -> datetime:
    """Return the latest expiry to believe: no honest clock wrote a later one.

    `longest` is the longest time that what expires may be granted for.
    """
    return now + longest + CLOCK_SKEW


def finish_in_background(work: Awaitable[object], *, backend: object) -> asyncio.Task[None]:
    """Run `work` to its end even if the caller moves on or is cancelled.

    `work` gives something back: if the store refuses, it is lost already or will expire.
    """

    async def finish() -> None:
        try:
            await work
        except MetastoreError as error:
            _logger.debug("not given back: %s", error)
        except Exception:
            _logger.exception("giving something back failed unexpectedly")

    task = asyncio.get_running_loop().create_task(finish())
    _background[task] = backend
    task.add_done_callback(_background.pop)
    return task


async def give_back(work: Awaitable[object], *, backend: object) -> None:
    """Run `work` before an error or a cancellation goes on, which it neither hides nor replaces.

    After `RELEASE_PATIENCE`, or when the caller is cancelled again, it goes on in the background.
    """
    await asyncio.wait([finish_in_background(work, backend=backend)], timeout=RELEASE_PATIENCE)


async def background_work(backend: object = None, *, timeout: float | None = None) -> None:
    """Wait until this loop has finished its background work, or that of one backend.

    After `timeout` seconds what remains is cancelled: it is lost, and expires.
    """
    loop = asyncio.get_running_loop()

    def remaining() -> list[asyncio.Task[None]]:
        return [
            task
            for task, its_backend in _background.items()
            if task.get_loop() is loop and (backend is None or its_backend is backend)
        ]

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while tasks := remaining():
                await asyncio.wait(tasks)
    if tasks := remaining():
        _logger.warning("%d releases were still under way and are abandoned", len(tasks))
        for task in tasks:
            task.cancel()
        # They only await the database, so one turn ends them. No wait without a bound.
        await asyncio.wait(tasks, timeout=RELEASE_PATIENCE)


@contextlib.asynccontextmanager
async def held_lease(
    held: Held,
    *,
    backend: object,
    ttl: timedelta,
    remaining: timedelta,
    renew: Callable[[], Awaitable[object]],
    end: Callable[[BaseException | None], Coroutine[Any, Any, object]],
    lost: Callable[[], LeaseLost],
) -> AsyncIterator[Held]:
    """Hold `held` for the duration of a body: renew it in the background, end it afterwards.

    When it is lost, the body is cancelled and `LeaseLost` is raised in place of the
    cancellation, caused by whatever unexpected error ended the renewals. An error of the body
    is never replaced: neither by a lost lease, nor by an error of `end`.

    `remaining` is what is left of `ttl`, which began when the lease was asked for. `end` is given
    what the body raised, or None; it has finished, or had `RELEASE_PATIENCE`, before an error or
    a cancellation goes on.

    Raises:
        LeaseLost: the lease was lost before the body ended.
    """
    body = asyncio.current_task()
    if body is None:
        raise RuntimeError("a lease is held by a task")
    renewer = _Renewer(body, ttl.total_seconds(), remaining.total_seconds(), renew)
    try:
        yield held
    except BaseException as error:
        was_lost = await renewer.stop()
        await give_back(end(error), backend=backend)
        if was_lost and isinstance(error, asyncio.CancelledError) and not renewer.others_cancelled:
            raise lost() from renewer.cause
        raise
    if await renewer.stop():
        # It may still run: the renewer can end for other reasons than a lost lease.
        await give_back(end(asyncio.CancelledError()), backend=backend)
        raise lost() from renewer.cause
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
        ttl: float,
        remaining: float,
        renew: Callable[[], Awaitable[object]],
    ) -> None:
        self.cause: BaseException | None = None
        self._body = body
        self._cancelling = body.cancelling()
        self._ttl = ttl
        self._remaining = min(max(remaining, 0.0), ttl)
        self._renew = renew
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
                    await self._renew()
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
                deadline = begun + self._ttl
                renew_at = begun + self._ttl / 3
