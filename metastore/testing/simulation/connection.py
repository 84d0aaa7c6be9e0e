"""A connection whose hops the scheduler suspends between any two statements."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.lanes import roll_back
from metastore.testing.simulation.stage import CLOSED
from metastore.testing.simulation.strands import Killed, Strand

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from metastore.testing.simulation.process import Process

__all__ = ["SimulatedConnection", "StatementKind", "kind_of"]

_WRITTEN = re.compile(r"\b(?:INSERT(?: OR \w+)? INTO|UPDATE|DELETE FROM)\s+(\w+)")
_VERB = re.compile(r"(?:\s|--[^\n]*\n)*(\w+)")


class StatementKind(NamedTuple):
    """What the scheduler needs to know about a statement.

    Attributes:
        verb: its first word.
        tables: the tables that it writes itself, not those that its triggers write.
    """

    verb: str
    tables: frozenset[str]


@cache
def kind_of(sql: str) -> StatementKind:
    """Classify a statement."""
    verb = _VERB.match(sql)
    return StatementKind(
        verb.group(1).upper() if verb else "", frozenset(_WRITTEN.findall(sql)) - {"SET"}
    )


class SimulatedConnection:
    """The part of `connection.Connection` that lanes use, without a thread of its own."""

    def __init__(self, process: Process, raw: sqlite3.Connection, name: str) -> None:
        self.process = process
        self.name = name
        self.wakes_at = 0.0
        self.is_dead = False
        self.is_closed = False
        self.hop_began_at = 0.0
        self._driver = raw
        self._adopted: list[sqlite3.Connection] = []
        self._statements = _Statements(self, raw)
        # For the scheduler: the hop in flight, suspended until `wakes_at`, and those queued.
        self.strand: Strand | None = None
        self.posted: deque[Callable[[], None]] = deque()

    # Used by lanes.

    @property
    def raw(self) -> sqlite3.Connection:
        """The driver's connection, which stops at every statement."""
        return cast("sqlite3.Connection", self._statements)

    def post(self, function: Callable[[], None]) -> None:
        """Run `function` after everything posted before."""
        self.posted.append(function)

    def pause(self, seconds: float) -> None:
        """Let virtual time pass, while others continue."""
        scheduler = self.process.scheduler
        self.wakes_at = scheduler.time + seconds * scheduler.sluggishness
        if self.strand is None:
            scheduler.time = self.wakes_at
        self.suspend()

    def adopt(self, connection: sqlite3.Connection) -> None:
        """Close another connection together with this one."""
        self._adopted.append(connection)

    def leak(self) -> None:
        """Leave the file open, see `database_file.leak`."""
        for connection in (self._driver, *self._adopted):
            database_file.leak(connection)

    def stop(self) -> None:
        """Close the connection after everything posted before."""
        self.post(self._close)

    async def close(self) -> None:
        """Close the connection and wait until that has happened."""
        await self.close_within(None)

    async def close_within(self, timeout: float | None) -> None:
        """Close the connection; wait at most `timeout` seconds for it."""
        if self.is_closed:
            return
        loop = self.process.loop
        closed = asyncio.Event()

        def close() -> None:
            self._close()
            loop.call_soon_threadsafe(closed.set)

        self.post(close)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await closed.wait()

    def interrupt_now(self) -> None:
        """Do nothing: hops are suspended between statements, so none is running."""

    async def interrupt(self) -> None:
        """Interrupt the statement that runs. See `interrupt_now`."""

    def _close(self) -> None:
        # The stage reuses them in the next run.
        for connection in (self._driver, *self._adopted):
            roll_back(connection)
        self._driver = self._statements.driver = CLOSED
        self._adopted.clear()
        self.is_closed = True

    # Used by the scheduler.

    @property
    def holds_lock(self) -> bool:
        """Whether it may hold the write lock."""
        return not self.is_closed and self._driver.in_transaction

    def step(self) -> None:
        """Run the hop in flight, or else the next one, until it is suspended or ends."""
        self.wakes_at = 0.0
        if self.strand is None:
            self.hop_began_at = self.process.uptime
            hop = self.posted.popleft()
            if not self.process.scheduler.may_suspend(self):
                # On the scheduler's own thread: switching threads may cost more than the hop.
                with contextlib.suppress(Exception, Killed):
                    hop()
                return
            self.strand = Strand.of(hop)
        self.strand.resume()
        if self.strand.is_finished:
            self.strand = None

    @property
    def can_suspend(self) -> bool:
        """Whether the hop in flight runs on a thread of its own."""
        return self.strand is not None

    def suspend(self) -> None:
        """Let the scheduler decide what happens next. Called inside a hop.

        Raises:
            Killed: it decided that the process dies.
        """
        if self.strand is not None and not self.is_dead:
            self.strand.suspend()
        self.check_alive()

    def check_alive(self) -> None:
        """Continue only in a live process.

        Raises:
            Killed: the process is dead.
        """
        if self.is_dead:
            raise Killed

    def kill(self) -> None:
        """Drop the connection as the death of a process does: uncommitted work is rolled back."""
        self.is_dead = True
        self.posted.clear()
        if not self.is_closed:
            roll_back(self._driver)
            self._close()

    def unwind(self) -> None:
        """Let the hop in flight of a dead process end."""
        while self.strand is not None:
            self.step()


class _Fetched:
    """A cursor whose statement has completed."""

    __slots__ = ("_rows", "lastrowid")

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._rows = cursor.fetchall()
        self.lastrowid = cursor.lastrowid

    def fetchall(self) -> list[Any]:
        """Return the rows."""
        return self._rows


class _Statements:
    """The driver's connection, with the scheduler between any two of its statements."""

    __slots__ = ("_changes_before", "_connection", "_written", "driver")

    def __init__(self, connection: SimulatedConnection, driver: sqlite3.Connection) -> None:
        self._connection = connection
        self.driver = driver
        # An earlier run may have used it.
        self._changes_before = driver.total_changes
        self._written: frozenset[str] = frozenset()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return not self._connection.is_dead and self.driver.in_transaction

    @property
    def total_changes(self) -> int:
        """How many rows the connection has changed."""
        return 0 if self._connection.is_dead else self.driver.total_changes - self._changes_before

    def __getattr__(self, name: str) -> Any:
        self._connection.check_alive()
        return getattr(self.driver, name)

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        """Execute a statement when the scheduler gets to it."""
        return self._run(self.driver.execute, sql, parameters)

    def executemany(self, sql: str, rows: Any) -> Any:
        """Execute a statement for each of the rows when the scheduler gets to it."""
        return self._run(self.driver.executemany, sql, rows)

    def _run(self, statement: Callable[..., sqlite3.Cursor], sql: str, parameters: Any) -> Any:
        kind = kind_of(sql)
        connection, driver = self._connection, self.driver
        process = connection.process
        connection.check_alive()
        if kind.verb == "PRAGMA":
            return statement(sql, parameters)
        process.before(connection, kind, parameters)
        autocommit = not driver.in_transaction
        cursor: Any = statement(sql, parameters)
        if autocommit and kind.tables:
            # The statement commits only once its rows are fetched.
            cursor = _Fetched(cursor)
        self._written |= kind.tables
        if not driver.in_transaction:
            written, self._written = self._written, frozenset()
            if written and kind.verb != "ROLLBACK":
                process.after_commit(connection, written)
        return cursor
