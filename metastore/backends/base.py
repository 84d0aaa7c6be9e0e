"""What a backend offers to the store and its repositories."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import (
        Awaitable,
        Callable,
        Collection,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from datetime import date, datetime, timedelta
    from pathlib import Path

    from metastore.errors import MetastoreError, StoreCorrupt
    from metastore.statements import Call

__all__ = [
    "NO_TABLES",
    "Backend",
    "Columns",
    "DatabaseUrl",
    "Difference",
    "Durability",
    "Executor",
    "Facts",
    "Guard",
    "KnownFault",
    "PlantedFaults",
    "RowCheck",
    "Rows",
    "Schema",
    "SchemaCheck",
    "SchemaConnection",
    "SchemaObject",
    "SchemaState",
    "SqlStatement",
    "StatementFailed",
    "Values",
]

Durability = Literal["full", "normal"]

Values = tuple[Any, ...]
"""A row as the database returns it: one value for each column."""


class DatabaseUrl(msgspec.Struct, frozen=True):
    """A database URL, taken apart.

    Attributes:
        text: the URL as it was given.
        dialect: the SQL dialect spoken there; it names the folder under `migrations/`.
        path: the database's file, absolute and without symbolic links, where it has one.
        in_memory: whether it lives in memory, and ends with the store.
    """

    text: str
    dialect: str
    path: Path | None = None
    in_memory: bool = False

    def __str__(self) -> str:
        return self.text


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
    """What a backend knows of its database; None where that is unknown.

    Attributes:
        read_error: why it cannot be read; None if it can.
        write_error: why it takes no writes; None if it does.
        schema_error: why its schema is not the code's; None if it is.
        software: the database's software and its release.
        known_faults: what is wrong with that release.
        database_bytes: how big it is; None also if it is gone.
        damage: what is broken in it, one line each; None if it was not searched.
        details: whatever else is known of it, by name: numbers that end in `_bytes` are sizes.
        problems: what is wrong with these, and what to do about it; a sentence or two each.
        notes: what is informational about them.
    """

    read_error: MetastoreError | None
    write_error: MetastoreError | None
    schema_error: MetastoreError | None
    software: str
    known_faults: list[KnownFault]
    database_bytes: int | None
    damage: list[str] | None
    details: dict[str, Any]
    problems: list[str]
    notes: list[str]


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
    """An open database.

    Attributes:
        url: the database; one in memory names the file that it has while it is open.
    """

    url: DatabaseUrl

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
        check: SchemaCheck,
        integrity: bool = False,
        tables: Mapping[str, RowCheck] = NO_TABLES,
    ) -> Facts:
        """Return how the database is, within a few seconds unless `integrity` is asked for.

        Args:
            check: raises what is wrong with the schema.
            integrity: Whether to read everything in search of damage.
            tables: With `integrity`, the tables whose rows are checked one by one.

        Raises:
            TransactionActive: this task has a transaction open.
        """

    async def close(self) -> None:
        """Close the database. Operations in flight are answered; later ones are refused."""


# Schemas and their migrations.


class SqlStatement(NamedTuple):
    """A statement of a migration file, and the line where it begins, 1-based."""

    line: int
    sql: str


class StatementFailed(Exception):
    """A statement of a migration was refused, through its own fault."""


class SchemaState(NamedTuple):
    """What a database says of its schema when it is opened.

    Attributes:
        applied: the ids of the migrations that it has.
        views: the names of its views.
    """

    applied: list[str]
    views: list[str]


SchemaCheck: TypeAlias = "Callable[[SchemaState], None]"
"""Raises what is wrong with a schema."""


class SchemaObject(NamedTuple):
    """A table, index, trigger or view as its database holds it."""

    type: str
    name: str
    table: str
    sql: str


Objects: TypeAlias = "Mapping[tuple[str, str], SchemaObject]"
"""What a schema holds, by type and name."""


class Difference(msgspec.Struct, frozen=True):
    """One thing in which a live database is not what its migrations make.

    Attributes:
        kind: `missing`, `extra` or `different` for an object of the schema; for a migration the
            state that `status` reports.
        type: `table`, `index`, `trigger`, `view` or `migration`.
        name: the object's name, or the migration's id.
        detail: what exactly, where there is more to say.
    """

    kind: Literal["missing", "extra", "different", "edited", "unknown", "unverified"]
    type: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.type} {self.name} is {self.kind}" + (
            f": {self.detail}" if self.detail else ""
        )


class Rows(Protocol):
    """The rows that a statement returned."""

    def fetchone(self) -> Any:
        """Return the next row; None after the last."""

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""


class SchemaConnection(Protocol):
    """A connection on which migrations run: used for nothing else, and by one thread.

    Its methods raise the store's errors (`StoreBusy`, `StoreFull`, …) for what is no fault of a
    statement.
    """

    def begin(self) -> None:
        """Begin a transaction; other migrators wait for its end."""

    def begin_snapshot(self) -> None:
        """Begin to read one state of the database."""

    def commit(self) -> None:
        """Commit the transaction.

        Raises:
            MetastoreError: it was not committed.
        """

    def rollback(self) -> None:
        """Undo the transaction, also one that an error has ended already."""

    def run(self, sql: str) -> None:
        """Run a statement of a migration.

        Raises:
            StatementFailed: it was refused.
        """

    def execute(self, sql: str, parameters: Mapping[str, Any]) -> Rows:
        """Run a statement of the bookkeeping, with parameters like `:name`."""

    def tables(self) -> list[str]:
        """Return the names of all tables."""

    def orphans(self) -> Counter[tuple[str, str]]:
        """Count the rows whose parent row is missing, by their table and its parent.

        Raises:
            StatementFailed: they cannot be counted.
        """

    def objects(self, ignore_tables: Collection[str]) -> Objects:
        """Return what the schema holds but for `ignore_tables` and all that belongs to them."""

    def close(self) -> None:
        """Close the connection."""

    def __enter__(self) -> Self:
        """Return the connection, which is closed at the end of the body."""

    def __exit__(self, *_: object) -> None:
        """Close the connection."""


class Schema(Protocol):
    """How schemas of a dialect are migrated and compared."""

    forbidden: Mapping[str, str]
    """Statements that no migration may hold, by their first word, and why."""

    def split(self, text: str) -> Iterator[SqlStatement]:
        """Split a migration file into its statements."""

    def script(self, id_: str, sql: str) -> str:
        """Return what is run for one migration, for a reader."""

    def connect(
        self, url: DatabaseUrl, known_ids: Collection[str], *, create: bool, adopt: bool = False
    ) -> SchemaConnection | None:
        """Connect to a metastore to change its schema; None where there is none.

        Args:
            url: The database.
            known_ids: The migrations of the code, by which one that yoyo migrated is recognised.
            create: Whether to make one where there is none.
            adopt: Whether to take over one that yoyo's own backend has migrated.

        Raises:
            StoreCorrupt: it belongs to another program.
            InvalidValue: the URL names a database that is migrated when it is opened.
        """

    def connect_to_read(
        self, url: DatabaseUrl, known_ids: Collection[str]
    ) -> SchemaConnection | None:
        """Connect to look at a schema; None where there is no metastore, nor one of yoyo's.

        Raises:
            StoreCorrupt: it belongs to another program.
            InvalidValue: the URL names a database that is migrated when it is opened.
        """

    def connect_to_model(self) -> SchemaConnection:
        """Connect to an empty database in which a schema is made for comparison."""

    def typed_errors(self, url: DatabaseUrl) -> AbstractContextManager[None]:
        """Turn the driver's errors into metastore's."""

    def objects(self, rows: Iterable[Sequence[str]], ignore_tables: Collection[str]) -> Objects:
        """Return the objects of rows that hold type, name, table and text of each."""

    def fingerprint(self, objects: Objects) -> str:
        """Return a hash over a schema: the same for two in which `compare` finds no difference."""

    def compare(self, live: Objects, expected: Objects) -> list[Difference]:
        """Return the differences between a live schema and the expected one."""


class PlantedFaults(Protocol):
    """Faults that tests plant underneath an open store, see `metastore.testing.Faults`."""

    def busy(self, wait: timedelta) -> AbstractContextManager[None]:
        """Let somebody else hold the write lock; the store waits for `wait`."""

    def full(self) -> AbstractContextManager[None]:
        """Let the disk take nothing more."""

    def read_only(self) -> AbstractContextManager[None]:
        """Let the database take no writes."""

    def lost_commit(self, times: int | None) -> AbstractContextManager[None]:
        """Let so many commits fail; None for all."""

    async def settled(self) -> None:
        """Return when what the store has begun has ended."""
