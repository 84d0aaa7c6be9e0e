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
"""The default busy timeout of the store while a test holds the write lock."""


class Outcome(NamedTuple):
    """The outcome of a cancelled awaitable.

    Attributes:
        result: what it returned, if it completed first.
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

    A fault affects operations requested within the body, and none requested later.
    """

    def __init__(self, store: MetadataStore) -> None:
        self._planted = opening.plant_faults(store.backend)

    def busy(self, wait: timedelta = SHORT_WAIT) -> AbstractContextManager[None]:
        """Hold the write lock on another connection. Reads continue; writes raise `StoreBusy`.

        Args:
            wait: The busy timeout of the store.

        Raises:
            StoreBusy: the store has a transaction open itself.
        """
        return self._planted.busy(wait)

    def full(self) -> AbstractContextManager[None]:
        """Let the disk be full: every change raises `StoreFull`."""
        return self._planted.full()

    def read_only(self) -> AbstractContextManager[None]:
        """Make the database read-only: `StoreReadOnly`."""
        return self._planted.read_only()

    def lost_commit(self, times: int | None = None) -> AbstractContextManager[None]:
        """Make commits fail with an I/O error, and store nothing: `StoreIOError`.

        The operations of a failed batch are retried one by one: with `times=1`, the callers that
        shared it do not notice.

        Args:
            times: How many commits fail; None for all.
        """
        return self._planted.lost_commit(times)

    async def cancelled(self, work: Awaitable[Any], *, after: int) -> Outcome:
        """Run `work` in a task, cancel it after `after` turns of the loop, and return its outcome.

        A cancelled write may have been committed. Everything it started has ended when this
        returns.
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
