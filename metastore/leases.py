"""What leases of worktrees and locks of projects have in common."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from metastore.codec import CLOCK_SKEW, MAX_TTL
from metastore.errors import InvalidTransition, LeaseLost, MetastoreError, StoreClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from datetime import timedelta
    from typing import Any

__all__ = ["LONG_AGO", "background_work", "finish_in_background", "horizon", "kept"]

LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
"""Before every expiry."""

RETRY_INTERVAL = 0.1
"""How soon a renewal that failed for a passing reason is tried again, in seconds."""

Held = TypeVar("Held")

_background: set[asyncio.Task[None]] = set()


def horizon(now: datetime) -> datetime:
    """Return the latest expiry that is believed: an honest clock wrote none behind it."""
    return now + MAX_TTL + CLOCK_SKEW


def finish_in_background(work: Awaitable[object]) -> None:
    """Run `work` to its end although its caller goes on or was cancelled.

    It gives something back; what the store then refuses is lost already, or expires.
    """

    async def finish() -> None:
        with contextlib.suppress(MetastoreError):
            await work

    task = asyncio.get_running_loop().create_task(finish())
    _background.add(task)
    task.add_done_callback(_background.discard)


async def background_work() -> None:
    """Wait until what this loop finishes in the background has ended."""
    loop = asyncio.get_running_loop()
    while tasks := [task for task in _background if task.get_loop() is loop]:
        await asyncio.wait(tasks)


@contextlib.asynccontextmanager
async def kept(
    held: Held,
    *,
    ttl: timedelta,
    renew: Callable[[], Awaitable[object]],
    release: Callable[[], Coroutine[Any, Any, object]],
    lost: Callable[[], LeaseLost],
) -> AsyncIterator[Held]:
    """Hold `held` for the time of a body: renew it in the background, release it at the end.

    When it is lost, the body is cancelled and `LeaseLost` is raised in place of the
    cancellation.
    """
    body = asyncio.current_task()
    if body is None:
        raise RuntimeError("a lease is held by a task")
    keeper = _Keeper(body, ttl.total_seconds(), renew)
    try:
        yield held
    except asyncio.CancelledError:
        if keeper.stop() and body.uncancel() == 0:
            raise lost() from None
        finish_in_background(release())
        raise
    except BaseException:
        # What went wrong in the body is the news, not that its lease went with it.
        if keeper.stop():
            await _take_back_cancellation(body)
        finish_in_background(release())
        raise
    if keeper.stop():
        await _take_back_cancellation(body)
        raise lost()
    await asyncio.shield(asyncio.ensure_future(release()))


async def _take_back_cancellation(body: asyncio.Task[Any]) -> None:
    """Undo the cancellation of a body that ended without being ended by it."""
    # It may still be on its way: the body met no await since.
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    body.uncancel()


class _Keeper:
    """Renews a lease in a task of its own and cancels the body when the lease is gone."""

    def __init__(
        self, body: asyncio.Task[Any], ttl: float, renew: Callable[[], Awaitable[object]]
    ) -> None:
        self._body = body
        self._ttl = ttl
        self._renew = renew
        self._lost = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> bool:
        """Renew no more; tell whether the lease was lost and the body cancelled for it."""
        self._task.cancel()
        return self._lost

    async def _run(self) -> None:
        await self._renew_until_lost()
        self._lost = True
        self._body.cancel()

    async def _renew_until_lost(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._ttl
        pause = self._ttl / 3
        while True:
            await asyncio.sleep(pause)
            begun = loop.time()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._renew()
            except (LeaseLost, StoreClosed, TimeoutError):
                return
            except InvalidTransition:
                # What it was taken for has ended, which no retry changes. It runs until its expiry,
                # so that a body that ends its own session can still finish and release.
                await asyncio.sleep(deadline - loop.time())
                return
            except MetastoreError:
                # Busy or full for the moment; the lease still runs, so try again soon.
                pause = min(pause, RETRY_INTERVAL)
            else:
                deadline = begun + self._ttl
                pause = self._ttl / 3
