"""Wakes waiters after commits of this process and of others."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from metastore.errors import StoreClosed

if TYPE_CHECKING:
    from metastore.backends.sqlite.lanes import ReaderLane

__all__ = ["Watcher"]

POLL_INTERVAL = 0.015
"""How often a waiting process polls for commits of others, in seconds."""

WAKE_DELAY = 0.003
"""How long a wake-up is delayed to collect more commits, in seconds."""


class Watcher:
    """Wakes waiters when this or another process has committed something."""

    def __init__(self, reader: ReaderLane) -> None:
        self.changes = 0
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._data_version: int | None = None
        self._wake_scheduled = False

    def bump(self) -> None:
        """Note a commit. A burst of commits wakes the waiters once."""
        self.changes += 1
        if self._waiters and not self._wake_scheduled:
            self._wake_scheduled = True
            self._loop.call_later(WAKE_DELAY, self._wake)

    def _wake(self) -> None:
        self._wake_scheduled = False
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, seen: int, timeout: float) -> None:
        """Return once `changes` differs from `seen`, at the latest after `timeout` seconds."""
        if self.changes != seen:
            # Not immediately: a waiter in a loop must not spin while others commit.
            await asyncio.sleep(min(WAKE_DELAY, timeout))
            return
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        if self._poller is None:
            self._poller = self._loop.create_task(self._poll())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await waiter
        finally:
            self._waiters.discard(waiter)

    async def _poll(self) -> None:
        # The last version is kept while nobody waits, so that a commit between a waiter's query and
        # its wait is noticed.
        with contextlib.suppress(StoreClosed):
            while self._waiters:
                version = await self._reader.data_version()
                if version != self._data_version:
                    self._data_version = version
                    self.bump()
                await asyncio.sleep(POLL_INTERVAL)
        self._poller = None

    def close(self) -> None:
        """Wake all waiters and stop polling."""
        self._wake()
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
