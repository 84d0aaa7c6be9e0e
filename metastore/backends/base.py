"""The interface that a backend offers to the store and its repositories."""

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
        dialect: its SQL dialect, which names the folder under `migrations/`.
        path: the database's file, absolute and with symbolic links resolved; None without one.
        in_memory: whether it lives in memory, and is gone when the store closes.
    """

    text: str
    dialect: str
    path: Path | None = None
    in_memory: bool = False

    def __str__(self) -> str:
        return self.text


class Columns(msgspec.Struct, frozen=True, eq=False):
    """How a database stores the values of rows.

    Values to write have been checked before. Values read may be damaged: a function that reads
    raises an exception of any kind then.

    Attributes:
        dialect: its statements: those of `sql/<table>.<dialect>.sql` replace `sql/<table>.sql`'s.
        write_time: raises OverflowError for a time outside the years 1 to 9999 in UTC.
        write_json: takes the document as UTF-8.
        write_day: the UTC day of a time, as a parameter to compare days with.
        read_day: a day that a statement returned.
        storage: the type in which the driver returns a column's values, and what to call it in a
            message, by the type of the row's attribute. All others are text.
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
        check: builds the statement, which returns a row while the condition holds. It is called
            for each check, so that the statement is bound to the current time.
        error: builds the error to raise when the statement returns no row.
    """

    check: Callable[[], Call]
    error: Callable[[], MetastoreError]


class RowCheck(NamedTuple):
    """How the rows of a table are checked.

    Attributes:
        columns: the columns to read.
        flaw: returns what is wrong with a row; None if it is sound.
    """

    columns: tuple[str, ...]
    flaw: Callable[[Values], StoreCorrupt | None]


NO_TABLES: Mapping[str, RowCheck] = MappingProxyType({})


class KnownFault(msgspec.Struct, frozen=True):
    """A known bug of the database software in the running release.

    Attributes:
        name: its name.
        versions: the affected releases.
        effect: what it does.
        handling: what metastore does about it, and what is left for the operator.
        source: where it is described.
    """

    name: str
    versions: str
    effect: str
    handling: str
    source: str


class Facts(NamedTuple):
    """What a backend knows about its database. None if unknown.

    Attributes:
        read_error: why it cannot be read; None if it can.
        write_error: why it cannot be written; None if it can.
        schema_error: why its schema does not match the code; None if it does.
        software: the database software and its release.
        known_faults: the known bugs of that release.
        database_bytes: its size; None also if it is gone.
        damage: the damage found, one line each; None if it was not checked.
        details: backend-specific facts by name; names that end in `_bytes` are sizes.
        problems: what is wrong with the details, and what to do about it; a sentence or two each.
        notes: informational remarks on the details.
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
    """Runs statements: a backend, which commits each operation, or one open transaction."""

    def run(self, call: Call) -> Awaitable[list[Values]]:
        """Run one statement and return its rows.

        Raises:
            MetastoreError: the statement failed; nothing was changed.
        """

    def run_all(self, *calls: Call) -> Awaitable[list[list[Values]]]:
        """Run several statements atomically: all of them take effect, or none.

        The operation stops, and is rolled back, at the first statement that expects a row (`^`
        and `<!`) and returns none. The answers so far are returned: a list shorter than the calls,
        or with an empty last answer, tells the caller where it stopped.

        Raises:
            MetastoreError: a statement failed; nothing was changed.
        """

    def erase(self) -> Awaitable[bool]:
        """Remove what was deleted or overwritten from the log too; return whether that succeeded.

        Retried for a moment, because a reader of the old state prevents it. A transaction does
        this after its commit, and returns False.
        """


class Backend(Executor, Protocol):
    """An open database.

    Attributes:
        url: the database; for one in memory, the file that backs it while it is open.
    """

    url: DatabaseUrl

    @property
    def columns(self) -> Columns:
        """How it stores the values of rows, and its dialect."""

    def transaction(self, guard: Guard | None = None) -> AbstractAsyncContextManager[Executor]:
        """Open a transaction: committed at the end of the body, rolled back if it raises."""

    @property
    def changes(self) -> int:
        """A counter that grows whenever any process may have committed something.

        Other processes' commits are noticed only during `wait_for_change`.
        """

    async def wait_for_change(self, seen: int, timeout: float) -> None:
        """Return once `changes` differs from `seen`, at the latest after `timeout` seconds."""

    async def inspect(
        self,
        *,
        check: SchemaCheck,
        integrity: bool = False,
        tables: Mapping[str, RowCheck] = NO_TABLES,
    ) -> Facts:
        """Return the state of the database, within a few seconds unless `integrity` is set.

        Args:
            check: Raises what is wrong with the schema.
            integrity: Whether to read everything and report damage.
            tables: With `integrity`, the tables whose rows are checked one by one.

        Raises:
            TransactionActive: this task has a transaction open.
        """

    async def close(self) -> None:
        """Close the database. Operations in flight are answered, later ones refused."""


# Schemas and their migrations.


class SqlStatement(NamedTuple):
    """A statement of a migration file, and the line where it begins, 1-based."""

    line: int
    sql: str


class StatementFailed(Exception):
    """A statement of a migration failed, and not for lack of a working database."""


class SchemaState(NamedTuple):
    """The state of a schema, read when the database is opened.

    Attributes:
        applied: the ids of the applied migrations.
        views: the names of its views.
    """

    applied: list[str]
    views: list[str]


SchemaCheck: TypeAlias = "Callable[[SchemaState], None]"
"""Raises what is wrong with a schema."""


class SchemaObject(NamedTuple):
    """A table, index, trigger or view as the database stores it."""

    type: str
    name: str
    table: str
    sql: str


Objects: TypeAlias = "Mapping[tuple[str, str], SchemaObject]"
"""The objects of a schema, by type and name."""


class Difference(msgspec.Struct, frozen=True):
    """One difference between a live database and what its migrations make.

    Attributes:
        kind: `missing`, `extra` or `different` for an object of the schema; for a migration the
            state that `status` reports.
        type: `table`, `index`, `trigger`, `view` or `migration`.
        name: the object's name, or the migration's id.
        detail: specifics, if any.
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
        """Return the remaining rows."""


class SchemaConnection(Protocol):
    """A connection for migrations only, used by one thread.

    Its methods raise the driver's errors, which `Schema.typed_errors` turns into the store's.
    """

    def begin(self) -> None:
        """Begin a transaction; other migrators wait until it ends."""

    def begin_snapshot(self) -> None:
        """Begin a read transaction, which sees one state of the database."""

    def commit(self) -> None:
        """Commit the transaction."""

    def rollback(self) -> None:
        """Roll back the transaction; harmless if an error has already ended it."""

    def run(self, sql: str) -> None:
        """Run a statement of a migration.

        Raises:
            StatementFailed: it failed.
            MetastoreError: it was not the statement's fault: `StoreBusy`, `StoreFull`, …
        """

    def execute(self, sql: str, parameters: Mapping[str, Any]) -> Rows:
        """Run a bookkeeping statement, with parameters like `:name`."""

    def tables(self) -> list[str]:
        """Return the names of all tables."""

    def orphans(self) -> Counter[tuple[str, str]]:
        """Count the rows whose parent row is missing, by child and parent table.

        Raises:
            StatementFailed: they cannot be counted.
        """

    def objects(self, ignore_tables: Collection[str]) -> Objects:
        """Return the objects of the schema, except `ignore_tables` and what belongs to them."""

    def close(self) -> None:
        """Close the connection."""

    def __enter__(self) -> Self:
        """Return the connection, which is closed at the end of the body."""

    def __exit__(self, *_: object) -> None:
        """Close the connection."""


class Schema(Protocol):
    """How the schemas of a dialect are migrated and compared."""

    forbidden: Mapping[str, str]
    """Statements that a migration must not contain, by first word, with the reason."""

    def split(self, text: str) -> Iterator[SqlStatement]:
        """Split a migration file into its statements."""

    def script(self, id_: str, sql: str) -> str:
        """Return the script of one migration, for people to read."""

    def connect(
        self, url: DatabaseUrl, known_ids: Collection[str], *, create: bool, adopt: bool = False
    ) -> SchemaConnection | None:
        """Connect to a metastore database to change its schema; None if there is none.

        Args:
            url: The database.
            known_ids: The code's migrations, which identify a database that yoyo migrated.
            create: Whether to create the database if there is none.
            adopt: Whether to take over a database that yoyo's own backend migrated.

        Raises:
            StoreCorrupt: it belongs to another program.
            InvalidValue: the URL names a database that is migrated when it is opened.
        """

    def connect_to_read(
        self, url: DatabaseUrl, known_ids: Collection[str]
    ) -> SchemaConnection | None:
        """Connect to read a schema; None if neither metastore nor yoyo migrated the database.

        Raises:
            StoreCorrupt: it belongs to another program.
            InvalidValue: the URL names a database that is migrated when it is opened.
        """

    def connect_to_model(self) -> SchemaConnection:
        """Connect to an empty scratch database, to build a schema for comparison."""

    def typed_errors(self, url: DatabaseUrl) -> AbstractContextManager[None]:
        """Turn the driver's errors into metastore's."""

    def objects(self, rows: Iterable[Sequence[str]], ignore_tables: Collection[str]) -> Objects:
        """Return the objects of rows with the type, name, table and SQL of each."""

    def fingerprint(self, objects: Objects) -> str:
        """Return a hash of a schema, equal for two schemas that `compare` finds equal."""

    def compare(self, live: Objects, expected: Objects) -> list[Difference]:
        """Return the differences between a live schema and the expected one."""


class PlantedFaults(Protocol):
    """Faults that tests plant underneath an open store, see `metastore.testing.Faults`."""

    def busy(self, wait: timedelta) -> AbstractContextManager[None]:
        """Hold the write lock on another connection; the store waits for `wait`."""

    def full(self) -> AbstractContextManager[None]:
        """Let the disk be full."""

    def read_only(self) -> AbstractContextManager[None]:
        """Make the database read-only."""

    def lost_commit(self, times: int | None) -> AbstractContextManager[None]:
        """Make the next `times` commits fail; None for all."""

    async def settled(self) -> None:
        """Return once everything the store has started has ended."""
