"""What a backend offers to the store and its repositories."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import date, datetime

    from metastore.errors import MetastoreError, StoreCorrupt
    from metastore.statements import Call

__all__ = [
    "NO_TABLES",
    "Backend",
    "Columns",
    "Executor",
    "Facts",
    "Guard",
    "KnownFault",
    "RowCheck",
    "Values",
]

Values = tuple[Any, ...]
"""A row as the database returns it: one value for each column."""


class Columns(msgspec.Struct, frozen=True, eq=False):
    """How a database holds the values of rows.

    What is written has been checked before. What is read may be damaged: a function that reads
    raises any error for that.

    Attributes:
        dialect: whose statements it runs: `sql/<table>.<dialect>.sql` over `sql/<table>.sql`.
        write_time: raises OverflowError for a time that is not in the years 1 to 9999 in UTC.
        write_json: takes the document as UTF-8.
        write_day: the day, in UTC, of a time, as a parameter that days are compared with.
        read_day: the day that a statement returned.
        storage: the type in which the driver returns a column's values, and how people call it, by
            the type of the row's attribute. All others are text.
    """

    dialect: str
    write_time: Callable[[datetime], Any]
    read_time: Callable[[Any], datetime]
    write_boolean: Callable[[bool], Any]
    read_boolean: Callable[[Any], bool]
    write_json: Callable[[bytes], Any]
    write_day: Callable[[datetime], Any]
    read_day: Callable[[Any], date]
    storage: Mapping[Any, tuple[type, str]]


class Guard(NamedTuple):
    """A condition that must hold when a transaction begins and when it commits.

    Attributes:
        check: makes the statement to ask; it returns a row while the condition holds. It is
            called anew each time, so that the time it asks for is the time of asking.
        error: makes what is raised when no row came back.
    """

    check: Callable[[], Call]
    error: Callable[[], MetastoreError]


class RowCheck(NamedTuple):
    """How the rows of a table are checked.

    Attributes:
        columns: the columns to read.
        flaw: returns what is wrong with a row of their values; None if nothing is.
    """

    columns: tuple[str, ...]
    flaw: Callable[[Values], StoreCorrupt | None]


NO_TABLES: Mapping[str, RowCheck] = MappingProxyType({})


class KnownFault(msgspec.Struct, frozen=True):
    """A fault of the database's own software in the release that runs.

    Attributes:
        name: what it is called.
        versions: which releases have it.
        effect: what it does.
        handling: what metastore does about it, and what is left to do.
        source: where it is described.
    """

    name: str
    versions: str
    effect: str
    handling: str
    source: str


class Facts(NamedTuple):
    """What a backend knows of its database. What could not be found out is None.

    Attributes:
        read_error: why it cannot be read; None if it can.
        write_error: why it takes no writes; None if it does.
        schema_error: why its schema is not the code's; None if it is.
        software: the database's software and its release, `SQLite 3.40.1`.
        known_faults: what is wrong with that release.
        folder: where the database is.
        file_modes: the permission bits of its files, by path.
        database_bytes: how big it is; None also if its file is gone.
        wal_bytes: how big the WAL is; None also if there is none.
        damage: what is broken in it, one line each; None if it was not searched.
    """

    read_error: MetastoreError | None
    write_error: MetastoreError | None
    schema_error: MetastoreError | None
    software: str
    known_faults: list[KnownFault]
    folder: str
    file_modes: dict[str, int]
    database_bytes: int | None
    wal_bytes: int | None
    free_disk_bytes: int | None
    journal_mode: str | None
    synchronous: str | None
    damage: list[str] | None


class Executor(Protocol):
    """Where statements run: a backend, each operation for itself, or one open transaction."""

    def run(self, call: Call) -> Awaitable[list[Values]]:
        """Run one statement and return its rows.

        Raises:
            MetastoreError: the database refused; nothing was changed.
        """

    def run_all(self, *calls: Call) -> Awaitable[list[list[Values]]]:
        """Run several statements as one: all of them take effect or none.

        The operation ends, and is undone, at the first statement that expects a row (`^` and
        `<!`) and returns none. The answers up to there are returned, so that an answer shorter
        than the calls, or with an empty end, tells the caller where it stopped.

        Raises:
            MetastoreError: the database refused one of them; nothing was changed.
        """

    def erase(self) -> Awaitable[bool]:
        """Take what was deleted or overwritten out of the log too; tell whether that was done.

        It is tried for a moment, while nobody reads what is to go. A transaction does it when it
        has committed, and returns False.
        """


class Backend(Executor, Protocol):
    """An open database."""

    @property
    def columns(self) -> Columns:
        """How it holds the values of rows, and the dialect that it speaks."""

    def transaction(self, guard: Guard | None = None) -> AbstractAsyncContextManager[Executor]:
        """Open a transaction: committed at the end of the body, undone when it raises."""

    @property
    def changes(self) -> int:
        """A number that grows whenever anything may have been committed, by any process.

        Only `wait_for_change` keeps it up to date with other processes.
        """

    async def wait_for_change(self, seen: int, timeout: float) -> None:
        """Return when `changes` is not `seen` any more, at the latest after `timeout` seconds."""

    async def inspect(
        self,
        *,
        check: Callable[[Any], None],
        integrity: bool = False,
        tables: Mapping[str, RowCheck] = NO_TABLES,
    ) -> Facts:
        """Return how the database is, within a few seconds unless `integrity` is asked for.

        Args:
            check: raises what is wrong with the schema on a driver's connection.
            integrity: Whether to read everything in search of damage.
            tables: With `integrity`, the tables whose rows are checked one by one.

        Raises:
            TransactionActive: this task has a transaction open.
        """

    async def close(self) -> None:
        """Close the database. Operations in flight are answered; later ones are refused."""
