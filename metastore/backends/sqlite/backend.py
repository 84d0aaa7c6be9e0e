"""SQLite, through aiosqlite: a writer, one or more readers, and a lane for scans, per process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from metastore.backends.base import NO_TABLES, Facts
from metastore.backends.sqlite import database_file, inspection
from metastore.backends.sqlite.columns import COLUMNS
from metastore.backends.sqlite.connection import connect, open_writer
from metastore.backends.sqlite.errors import translate
from metastore.backends.sqlite.known_faults import known_faults
from metastore.backends.sqlite.lanes import CLOSE_LIMIT, Lane, ReaderLane, WriterLane, closed
from metastore.backends.sqlite.scans import Scans
from metastore.backends.sqlite.transaction import (
    OpenTransaction,
    current_transaction,
    refuse_inside_transaction,
)
from metastore.backends.sqlite.watcher import Watcher
from metastore.errors import (
    InvalidValue,
    MetastoreError,
    OpenedBeforeFork,
    StoreBusy,
    StoreClosed,
    StoreReplaced,
    WrongLoop,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
    from pathlib import Path

    from metastore.backends.base import (
        Columns,
        DatabaseUrl,
        Durability,
        Executor,
        Guard,
        RowCheck,
        SchemaCheck,
        Values,
    )
    from metastore.backends.sqlite.connection import Connection
    from metastore.statements import Call

    Connector = Callable[[], sqlite3.Connection]

__all__ = ["SqliteBackend"]

Result = TypeVar("Result")

PROBE_TIMEOUT = 3.0
"""How long an inspection waits for a free connection of this process, in seconds."""

ERASE_ATTEMPTS = 20
"""How many attempts are made to empty the WAL while readers use it."""

ERASE_PAUSE = 0.01
"""How long to wait between two attempts, in seconds."""


class SqliteBackend:
    """An open SQLite database."""

    columns: ClassVar[Columns] = COLUMNS

    def __init__(
        self,
        url: DatabaseUrl,
        path: Path,
        writer: WriterLane,
        readers: list[ReaderLane],
        scans: Scans,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.url = url
        self.path = path
        self._writer = writer
        self._on_close = on_close
        self._readers = readers
        self._scans = scans
        self._next_reader = 0
        self._watcher = Watcher(readers[0])
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        writer.on_commit = self._watcher.bump
        writer.on_replaced = self._stop
        _open_backends.add(self)

    @classmethod
    async def open(
        cls,
        url: DatabaseUrl,
        *,
        durability: Durability = "full",
        readers: int = 1,
        check: SchemaCheck = lambda _: None,
        connect: Callable[[Connector], Awaitable[Connection]] = connect,
        on_close: Callable[[], None] = lambda: None,
    ) -> SqliteBackend:
        """Connect to the existing database at `url`, whose schema must pass `check`.

        `connect` opens the connections; a simulation opens them without threads. `on_close` is
        called once they are closed.

        Raises:
            StoreCorrupt: it is missing, empty, not a metastore database, or damaged.
            StoreReadOnly: it cannot be opened for writing.
        """
        path = url.path
        if path is None:
            raise InvalidValue(None, "url", "names a database in memory, which has no file")
        lanes: list[Lane] = []
        connect_to_read = partial(
            database_file.connect, path, durability=durability, read_only=True
        )
        try:
            connection = await connect(partial(open_writer, path, durability, check))
            lanes.append(writer := WriterLane(connection, path))
            for _ in range(readers):
                connection = await connect(connect_to_read)
                lanes.append(ReaderLane(connection))
        except BaseException as error:
            for lane in lanes:
                lane.connection.stop()
            if isinstance(error, sqlite3.Error | UnicodeDecodeError):
                raise translate(error, path=path) from error
            raise
        reading = [lane for lane in lanes if isinstance(lane, ReaderLane)]

        async def connect_to_scan() -> Connection:
            connection = await connect(connect_to_read)
            try:
                writer.files.check_same(connection.raw)
            except BaseException:
                connection.stop()
                raise
            return connection

        return cls(url, path, writer, reading, Scans(connect_to_scan), on_close)

    def run(self, call: Call) -> Awaitable[list[Values]]:
        """Run one statement and return its rows. See `Executor.run`."""
        if call.statement.writes:
            refuse_inside_transaction(self._writer)
            return self._writer.run(call)
        if call.statement.scans:
            self._writer.check_usable()
            return self._scans.run(call)
        lane = self._readers[self._next_reader]
        self._next_reader = (self._next_reader + 1) % len(self._readers)
        return lane.run(call)

    def run_all(self, *calls: Call) -> Awaitable[list[list[Values]]]:
        """Run several statements as one. See `Executor.run_all`."""
        refuse_inside_transaction(self._writer)
        return self._writer.run_all(calls)

    @contextlib.asynccontextmanager
    async def transaction(self, guard: Guard | None = None) -> AsyncIterator[Executor]:
        """Open a transaction, which has the writer to itself until it ends. See `Backend`."""
        refuse_inside_transaction(self._writer)
        await self._writer.take_turn()
        transaction = OpenTransaction(self._writer, guard)
        token = current_transaction.set(transaction)
        try:
            await transaction.check_guard()
            yield transaction
            await transaction.commit()
        finally:
            # A generator closed at the end of the loop runs in another context.
            with contextlib.suppress(ValueError):
                current_transaction.reset(token)
            # Even after a cancellation, the writer is passed on only after a ROLLBACK, which is
            # queued in the thread behind any statement in flight.
            await transaction.end()
        if transaction.erases:
            await self.erase()

    async def erase(self) -> bool:
        """Remove what was deleted or overwritten from the WAL too. See `Executor.erase`."""
        refuse_inside_transaction(self._writer)
        for attempt in range(ERASE_ATTEMPTS):
            if attempt:
                await asyncio.sleep(ERASE_PAUSE)
            # The deletion is committed, and stays so even if this fails.
            with contextlib.suppress(MetastoreError):
                await self._writer.take_turn()
                try:
                    if await self._writer.call(self._writer.empty_wal):
                        return True
                finally:
                    self._writer.release_turn()
        return False

    @property
    def changes(self) -> int:
        """A counter that grows with every commit. See `Backend.changes`."""
        return self._watcher.changes

    async def wait_for_change(self, seen: int, timeout: float) -> None:
        """Wait for a commit, of this or another process. See `Backend.wait_for_change`."""
        self._writer.check_usable()
        await self._watcher.wait(seen, timeout)

    async def inspect(
        self,
        *,
        check: SchemaCheck,
        integrity: bool = False,
        tables: Mapping[str, RowCheck] = NO_TABLES,
    ) -> Facts:
        """Return the state of the database. See `Backend.inspect`."""
        refuse_inside_transaction(self._writer)
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop
        if self._writer.closed is None:
            with contextlib.suppress(MetastoreError):
                # A store whose files were replaced stops here; the error is reported below.
                self._writer.check_files()
        read = partial(inspection.read_settings, check)
        settings, read_error = await _attempt(self._readers[0].call(read), PROBE_TIMEOUT)
        _, write_error = await _attempt(self._probe_write(), PROBE_TIMEOUT)
        damage, unread = None, None
        if integrity and not isinstance(read_error, StoreClosed | StoreReplaced):
            damage, unread = await _attempt(self._damage(tables))
        files = inspection.files(self.path)
        return Facts(
            read_error=read_error,
            write_error=write_error,
            schema_error=settings and settings.schema_error,
            software=f"SQLite {sqlite3.sqlite_version}",
            known_faults=known_faults(
                trusts_schema=settings is not None and settings.trusts_schema
            ),
            database_bytes=files.database_bytes,
            damage=damage if unread is None else [str(unread)],
            details=inspection.details(settings, files),
            problems=list(inspection.problems(settings, files, self.path.parent)),
            notes=list(inspection.notes(settings)),
        )

    async def _probe_write(self) -> None:
        await self._writer.take_turn()
        try:
            self._writer.check_files()
            await self._writer.call(inspection.probe_write)
        finally:
            self._writer.release_turn()

    async def _damage(self, tables: Mapping[str, RowCheck]) -> list[str]:
        # On a separate connection: this may take long, and must not block the others.
        connect_to_read = partial(database_file.connect, self.path, read_only=True)
        lane = ReaderLane(await connect(connect_to_read))
        try:
            self._writer.files.check_same(lane.connection.raw)
            return await lane.call(partial(inspection.damage, tables))
        finally:
            await lane.connection.interrupt()
            await lane.close()

    async def close(self) -> None:
        """Close every connection; idempotent, and safe with operations in flight.

        A running batch is finished and answered, queued operations get `StoreClosed`, an open
        transaction is rolled back. It returns within seconds: statements that are still running
        then are interrupted. In a child of a fork there is nothing to close.

        Raises:
            WrongLoop: the store belongs to another loop, which is running.
        """
        if os.getpid() != self._process:
            return
        if asyncio.get_running_loop() is not self._loop:
            await self._close_from_outside()
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        _open_backends.discard(self)
        self._watcher.close()
        self._refuse(closed)
        # In sequence: SQLite removes the WAL when the last connection closes, and if two close at
        # once, neither is the last.
        try:
            await asyncio.gather(*(lane.close() for lane in self._readers), self._scans.close())
            await self._writer.close()
        finally:
            self._on_close()

    async def _close_from_outside(self) -> None:
        """Close connections whose event loop has ended or stopped without closing them."""
        if self._loop.is_running():
            raise WrongLoop
        _open_backends.discard(self)
        self._refuse(closed)
        try:
            for lane in self._lanes:
                await lane.connection.close_within(CLOSE_LIMIT)
        finally:
            self._on_close()

    @property
    def _lanes(self) -> list[Lane]:
        scans = [] if self._scans.lane is None else [self._scans.lane]
        return [*self._readers, *scans, self._writer]

    def _stop(self, refusal: Callable[[], MetastoreError]) -> None:
        """Refuse every further operation: the database's files were replaced."""
        self._refuse(refusal)
        for lane in self._lanes:
            lane.connection.leak()
            lane.refuse(refusal)
        self._watcher.close()

    def forbid(self) -> None:
        """Refuse every further operation in the child of a fork."""
        self._refuse(partial(OpenedBeforeFork, self.path))

    def _refuse(self, refusal: Callable[[], MetastoreError]) -> None:
        for lane in self._lanes:
            lane.closed = refusal
        self._scans.refuse(refusal)


async def _attempt(
    work: Coroutine[Any, Any, Result], timeout: float | None = None
) -> tuple[Result | None, MetastoreError | None]:
    """Return the result of `work`, or its error."""
    try:
        async with asyncio.timeout(timeout):
            return await work, None
    except TimeoutError:
        return None, StoreBusy(f"this process had no connection free for {timeout} s")
    except MetastoreError as error:
        return None, error


_open_backends: weakref.WeakSet[SqliteBackend] = weakref.WeakSet()


def _after_fork() -> None:
    for backend in list(_open_backends):
        backend.forbid()


os.register_at_fork(after_in_child=_after_fork)
