"""aiosqlite's connection, as the SQLite backend uses it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.schema import read_state
from metastore.errors import StoreCorrupt, StoreReadOnly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metastore.backends.base import Durability, SchemaCheck

__all__ = ["Connection", "connect", "open_writer"]


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that runs functions of ours in its thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        made: list[sqlite3.Connection] = []

        def connect_and_remember() -> sqlite3.Connection:
            made.append(connector())
            return made[0]

        super().__init__(connect_and_remember, iter_chunk_size=64)
        # Kept here too: if the caller was cancelled while connecting, aiosqlite never saw it.
        self._made = made
        # A store that was never closed must not keep the interpreter alive. To SQLite the end of
        # the thread is a crash: uncommitted work is rolled back.
        self._thread.daemon = True

    def __del__(self) -> None:
        if self._connection is not None:
            self.stop()

    @property
    def raw(self) -> sqlite3.Connection:
        """The driver's connection, for functions that run in its thread."""
        return self._conn

    def post(self, function: Callable[[], None]) -> None:
        """Run `function` in the connection's thread, after everything posted before."""
        self._tx.put_nowait((None, function))

    def pause(self, seconds: float) -> None:
        """Sleep in the connection's thread while another connection holds the lock."""
        time.sleep(seconds)

    def adopt(self, connection: sqlite3.Connection) -> None:
        """Close another connection of this thread together with this one. Run in the thread."""
        self._made.append(connection)

    def leak(self) -> None:
        """Let `close` end the thread and leave the file open, see `database_file.leak`."""
        for connection in self._made:
            database_file.leak(connection)

    def interrupt_now(self) -> None:
        """Interrupt the statement that the thread is running, if any."""
        for connection in self._made:
            with contextlib.suppress(sqlite3.Error):
                connection.interrupt()

    def stop(self, ended: Callable[[], None] = lambda: None) -> None:
        """Close the connection in its thread, and end the thread, without waiting for either.

        aiosqlite calls this when connecting fails; its own version would notify a loop that may
        be gone. `ended` is called in the thread right before it ends.
        """
        self._running = False

        def close_and_stop() -> object:
            try:
                for connection in self._made:
                    connection.close()
                self._made.clear()
            finally:
                self._connection = None
                ended()
            return _STOP_RUNNING_SENTINEL

        self._tx.put_nowait((None, close_and_stop))

    async def close(self) -> None:
        """Close the connection and wait until its thread has ended."""
        await self.close_within(None)

    async def close_within(self, timeout: float | None) -> None:
        """Close the connection; wait at most `timeout` seconds for its thread to end.

        After that, the thread finishes on its own.
        """
        if not self._running:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        self.stop(tell)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await ended.wait()
            self._thread.join()


async def connect(connector: Callable[[], sqlite3.Connection]) -> Connection:
    """Start a thread and connect in it."""
    connection = Connection(connector)
    await connection
    return connection


def open_writer(
    path: Path,
    durability: Durability,
    check: SchemaCheck,
) -> sqlite3.Connection:
    """Connect to the existing database at `path` for writing.

    Raises:
        StoreCorrupt: it is missing, empty, or not a metastore database.
        StoreReadOnly: this user may not write to it.
    """
    if not database_file.exists(path):
        raise StoreCorrupt("does not exist", path=path)
    if not path.is_file():
        raise StoreCorrupt("is not a file", path=path)
    # SQLite would open it anyway, for reading.
    if not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise StoreReadOnly(f"the database is read-only: {path} is not writable")
    connection = database_file.connect(path, durability=durability)
    try:
        is_metastore = database_file.is_metastore(connection)
        check(read_state(connection))
        if not is_metastore:
            raise StoreCorrupt("is empty", path=path)
        connection.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        connection.close()
        raise
    return connection
