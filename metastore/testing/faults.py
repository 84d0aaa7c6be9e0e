"""Faults on demand: a database that is locked, full, read-only, or fails when it commits."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from metastore.backends import opening
from metastore.leasing.queue import background_work

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AbstractContextManager

    from metastore.store import MetadataStore

__all__ = ["Faults", "Outcome"]

SHORT_WAIT = timedelta(milliseconds=20)
"""How long a store waits for another's lock while a test holds that."""


class Outcome(NamedTuple):
    """What became of something that was cancelled.

    Attributes:
        result: what it returned, if it had ended before.
        error: what it raised: `asyncio.CancelledError` if the cancellation reached it.
    """

    result: Any
    error: BaseException | None

    @property
    def was_cancelled(self) -> bool:
        """Whether the cancellation reached it."""
        return isinstance(self.error, asyncio.CancelledError)


class Faults:
    """Plants faults underneath an open store, and removes them at the end of the body.

    The fault takes effect for whatever is asked of the store from then on, and is gone for what
    is asked of it afterwards.
    """

    def __init__(self, store: MetadataStore) -> None:
        self._planted = opening.plant_faults(store.backend)

    def busy(self, wait: timedelta = SHORT_WAIT) -> AbstractContextManager[None]:
        """Let another connection hold the write lock. Reads go on; writes get `StoreBusy`.

        Args:
            wait: How long the store waits for the lock before it gives up.

        Raises:
            StoreBusy: the store has a transaction open itself.
        """
        return self._planted.busy(wait)

    def full(self) -> AbstractContextManager[None]:
        """Let the disk take nothing more. Whatever changes something gets `StoreFull`."""
        return self._planted.full()

    def read_only(self) -> AbstractContextManager[None]:
        """Let the database take no writes: `StoreReadOnly`."""
        return self._planted.read_only()

    def lost_commit(self, times: int | None = None) -> AbstractContextManager[None]:
        """Let commits fail with an I/O error, and store nothing: `StoreIOError`.

        A batch whose commit failed is tried again, each operation by itself: with `times=1` the
        callers that shared it do not notice.

        Args:
            times: How many commits fail; None for all.
        """
        return self._planted.lost_commit(times)

    async def cancelled(self, work: Awaitable[Any], *, after: int) -> Outcome:
        """Run `work` in a task, cancel it after so many turns of the loop, and return its outcome.

        A write that was cancelled may have been committed. Whatever it has begun has ended when
        this returns.
        """
        task = asyncio.ensure_future(work)
        try:
            for _ in range(after):
                await asyncio.sleep(0)
        finally:
            task.cancel()
        await asyncio.wait([task])
        await background_work()
        await self._planted.settled()
        if task.cancelled():
            return Outcome(None, asyncio.CancelledError())
        error = task.exception()
        return Outcome(None if error else task.result(), error)
