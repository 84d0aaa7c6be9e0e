"""The lane for statements that read a lot, so that no short read queues behind them."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING

from metastore.backends.sqlite.errors import translate
from metastore.backends.sqlite.lanes import ReaderLane, closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.backends.base import Values
    from metastore.backends.sqlite.connection import Connection
    from metastore.backends.sqlite.lanes import Operation
    from metastore.errors import MetastoreError
    from metastore.statements import Call

__all__ = ["Scans"]

ASK_EVERY = 200_000
"""SQLite instructions, a few milliseconds, after which a scan checks whether to stop."""


class Scans:
    """Runs scans one at a time on their own connection, which the first one opens."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.closed: Callable[[], MetastoreError] | None = None
        self.lane: ScanLane | None = None
        self._connect = connect
        self._opening: asyncio.Task[ScanLane] | None = None

    def run(self, call: Call) -> Awaitable[list[Values]]:
        """Run one statement and return its rows.

        Raises:
            StoreClosed: the store was closed, before or meanwhile.
            MetastoreError: the database returned an error.
        """
        if self.closed is not None:
            raise self.closed()
        return self._run(call)

    async def _run(self, call: Call) -> list[Values]:
        lane = self.lane or await self._open()
        try:
            return await lane.run(call)
        except Exception:
            if self.closed is not None:
                # The closing store interrupted it.
                raise self.closed() from None
            raise

    async def _open(self) -> ScanLane:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._connected())
        # Others may wait for the same connection: cancelling one waiter must not stop it.
        return await asyncio.shield(self._opening)

    async def _connected(self) -> ScanLane:
        try:
            self.lane = ScanLane(await self._connect())
        except Exception as error:
            # The cause may be temporary: the next scan retries.
            self._opening = None
            if isinstance(error, sqlite3.Error):
                raise translate(error) from error
            raise
        return self.lane

    async def close(self) -> None:
        """Refuse further scans, interrupt the running one, close the connection."""
        self.refuse(closed)
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self.lane is not None:
            await self.lane.close()

    def refuse(self, refusal: Callable[[], MetastoreError]) -> None:
        """Refuse every further scan, without touching the connection."""
        self.closed = self.closed or refusal
        if self.lane is not None:
            self.lane.closed = self.closed


class ScanLane(ReaderLane):
    """A connection for one scan at a time, each with its own snapshot.

    A shared snapshot would be held until all its scans are done, and the WAL could not be reset
    meanwhile. A scan stops when its caller is gone or the store is closed.
    """

    def _next_batch(self) -> list[Operation]:
        batch: list[Operation] = []
        while self._queue and not batch:
            operation = self._queue.popleft()
            if not operation.future.done():
                batch.append(operation)
        self._grant_room()
        return batch

    def _run_batch(self, batch: list[Operation]) -> None:
        [operation] = batch
        if self.closed is not None:
            operation.fail(self.closed())
            return

        def is_unwanted() -> bool:
            return self.closed is not None or operation.future.cancelled()

        connection = self.connection.raw
        connection.set_progress_handler(is_unwanted, ASK_EVERY)
        try:
            self._read(connection, batch)
        finally:
            connection.set_progress_handler(None, 0)
