"""Faults for tests, planted in the writer of an open SQLite database."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.errors import translate
from metastore.backends.sqlite.lanes import roll_back
from metastore.errors import StoreClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from metastore.backends.sqlite.backend import SqliteBackend
    from metastore.backends.sqlite.connection import Connection

__all__ = ["SqliteFaults"]

LONGEST_WAIT = timedelta(seconds=2)
"""How long a fault waits for the store to release its own lock."""

_IO_ERROR = (sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC", "disk I/O error")
_FULL = (sqlite3.SQLITE_FULL, "SQLITE_FULL", "database or disk is full")


class SqliteFaults:
    """Plants faults underneath an open store, see `PlantedFaults`.

    Functions are posted to the writer's thread, which runs them in order, between the store's own.
    Nothing is awaited, so a cancellation cannot keep a fault from being removed.
    """

    def __init__(self, backend: SqliteBackend) -> None:
        self._path = backend.path
        self._lane = backend._writer  # noqa: SLF001 - faults go where users do not
        self._writer = self._lane.connection

    @contextlib.contextmanager
    def busy(self, wait: timedelta) -> Iterator[None]:
        """Let another connection hold the write lock.

        Raises:
            StoreBusy: the store has a transaction open itself.
        """
        other = database_file.connect(self._path)
        with contextlib.closing(other), self._waiting(_milliseconds(wait)):
            try:
                other.execute(f"PRAGMA busy_timeout = {_milliseconds(LONGEST_WAIT)}")
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise translate(error) from error
            yield

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Let the disk be full."""
        with self._setting("max_page_count", 1), self._failing_commits(_FULL):
            # SQLite raises the limit to the current number of pages.
            yield

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Make the database read-only."""
        with self._setting("query_only", 1):
            yield

    @contextlib.contextmanager
    def lost_commit(self, times: int | None) -> Iterator[None]:
        """Make commits fail with an I/O error."""
        with self._failing_commits(_IO_ERROR, times):
            yield

    async def settled(self) -> None:
        """Return when the batch in flight has ended."""
        with contextlib.suppress(StoreClosed):
            await self._lane.call(lambda _: None)

    @contextlib.contextmanager
    def _waiting(self, milliseconds: int) -> Iterator[None]:
        lane, before = self._lane, self._lane.busy_timeout_ms

        def wait(milliseconds: int, _: sqlite3.Connection) -> None:
            lane.busy_timeout_ms = milliseconds

        self._post(partial(wait, milliseconds))
        try:
            yield
        finally:
            self._post(partial(wait, before))

    @contextlib.contextmanager
    def _setting(self, name: str, value: int) -> Iterator[None]:
        before: list[int] = []

        def plant(connection: sqlite3.Connection) -> None:
            before.extend(connection.execute(f"PRAGMA {name}").fetchone())
            connection.execute(f"PRAGMA {name} = {value}")

        def remove(connection: sqlite3.Connection) -> None:
            connection.execute(f"PRAGMA {name} = {before[0]}")

        self._post(plant)
        try:
            yield
        finally:
            self._post(remove)

    @contextlib.contextmanager
    def _failing_commits(
        self, error: tuple[int, str, str], times: int | None = None
    ) -> Iterator[None]:
        self._writer.post(partial(_FailingCommits.plant, self._writer, error, times))
        try:
            yield
        finally:
            self._writer.post(partial(_FailingCommits.remove, self._writer))

    def _post(self, function: Callable[[sqlite3.Connection], None]) -> None:
        self._writer.post(lambda: function(self._writer.raw))


class _FailingCommits:
    """A driver connection that does everything except commit. Used in that connection's thread."""

    def __init__(
        self, real: sqlite3.Connection, error: tuple[int, str, str], times: int | None
    ) -> None:
        self.real = real
        self._error = error
        self._times = times
        # A transaction that is already open may have changed something.
        self._changes = -1 if real.in_transaction else real.total_changes

    @classmethod
    def plant(cls, where: Connection, error: tuple[int, str, str], times: int | None) -> None:
        """Replace the driver's connection."""
        planted = cls(where.raw, error, times)
        where._connection = cast("sqlite3.Connection", planted)  # noqa: SLF001 - aiosqlite's own

    @classmethod
    def remove(cls, where: Connection) -> None:
        """Restore the driver's connection."""
        planted: object = where.raw
        if isinstance(planted, cls):
            where._connection = planted.real  # noqa: SLF001 - aiosqlite's own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Execute a statement; fail if it would commit a change."""
        verb = sql.split(maxsplit=1)[0].upper()
        if verb == "BEGIN":
            self._changes = self.real.total_changes
        elif verb == "COMMIT":
            self._fail_if_changed()
        elif not self.real.in_transaction:
            self._try(lambda: self.real.execute(sql, parameters).fetchall())
        return self.real.execute(sql, parameters)

    def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
        """Execute a statement for each row; fail if it would commit a change."""
        if not self.real.in_transaction:
            self._try(lambda: self.real.executemany(sql, rows))
        return self.real.executemany(sql, rows)

    def _try(self, write: Callable[[], object]) -> None:
        """Run an autocommit statement, and fail if it changed anything."""
        self._changes = self.real.total_changes
        self.real.execute("BEGIN IMMEDIATE")
        try:
            write()
            self._fail_if_changed()
        finally:
            roll_back(self.real)

    def _fail_if_changed(self) -> None:
        if self.real.total_changes == self._changes or self._times == 0:
            return
        if self._times is not None:
            self._times -= 1
        # As SQLite does: the transaction is rolled back when the error is reported.
        self.real.execute("ROLLBACK")
        code, name, message = self._error
        error = sqlite3.OperationalError(message)
        error.sqlite_errorcode = code
        error.sqlite_errorname = name
        raise error


def _milliseconds(span: timedelta) -> int:
    return round(span / timedelta(milliseconds=1))
