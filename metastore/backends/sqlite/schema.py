"""Migrations and schemas on SQLite: connecting, running, reading."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from metastore.backends.base import SchemaState, SqlStatement, StatementFailed
from metastore.backends.sqlite import database_file, schema_comparison
from metastore.backends.sqlite.errors import translate
from metastore.errors import InvalidValue, MetastoreError, StoreCorrupt, StoreReadOnly

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from metastore.backends.base import DatabaseUrl, Difference, Objects, Rows

__all__ = ["SqliteSchema", "SqliteSchemaConnection", "read_state"]

_APPLIED_SQL = "SELECT migration_id FROM _yoyo_migration ORDER BY migration_id"
_BLANK = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)


class SqliteSchemaConnection:
    """A connection on which migrations run, see `SchemaConnection`.

    Foreign keys are off, as SQLite's procedure for rebuilding a table requires; orphaned rows are
    counted before each commit instead.
    """

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw
        raw.execute("PRAGMA foreign_keys = OFF")

    def begin(self) -> None:
        """Begin a transaction, which excludes every other writer until it ends."""
        self.raw.execute("BEGIN IMMEDIATE")

    def begin_snapshot(self) -> None:
        """Begin a read transaction, which sees one state of the database."""
        self.raw.execute("BEGIN")

    def commit(self) -> None:
        """Commit the transaction."""
        self.raw.execute("COMMIT")

    def rollback(self) -> None:
        """Roll back the transaction; harmless if an error has already ended it."""
        self.raw.rollback()

    def run(self, sql: str) -> None:
        """Run a statement of a migration. See `SchemaConnection.run`."""
        try:
            self.raw.execute(sql).fetchall()
        except sqlite3.Error as error:
            if store_error := _store_error(error, connection=self.raw):
                raise store_error from error
            raise StatementFailed(str(error)) from error

    def execute(self, sql: str, parameters: Mapping[str, Any]) -> Rows:
        """Run a bookkeeping statement. See `SchemaConnection.execute`."""
        return self.raw.execute(sql, parameters)

    def tables(self) -> list[str]:
        """Return the names of all tables."""
        rows = self.raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return [name for (name,) in rows.fetchall()]

    def orphans(self) -> Counter[tuple[str, str]]:
        """Count the rows whose parent row is missing. See `SchemaConnection.orphans`."""
        try:
            rows = self.raw.execute("PRAGMA foreign_key_check").fetchall()
        except sqlite3.Error as error:
            raise StatementFailed(str(error)) from error
        return Counter((child, parent) for child, _, parent, _ in rows)

    def objects(self, ignore_tables: Collection[str]) -> Objects:
        """Return the objects of the schema. See `schema_comparison.objects`."""
        rows = self.raw.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
        )
        return schema_comparison.objects(rows.fetchall(), ignore_tables)

    def close(self) -> None:
        """Close the connection."""
        self.raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SqliteSchema:
    """How SQLite schemas are migrated and compared, see `Schema`."""

    forbidden: Mapping[str, str] = MappingProxyType(
        {
            "PRAGMA": "pragmas belong to the connection, and some do nothing in a transaction",
            "ATTACH": "a migration changes one database",
            "DETACH": "a migration changes one database",
            "VACUUM": "it cannot run inside a transaction",
        }
    )
    objects = staticmethod(schema_comparison.objects)
    fingerprint = staticmethod(schema_comparison.fingerprint)

    def compare(self, live: Objects, expected: Objects) -> list[Difference]:
        """Return the differences between a live schema and the expected one."""
        return schema_comparison.compare(live, expected)

    def split(self, text: str) -> Iterator[SqlStatement]:
        """Split a file where SQLite itself sees a statement end.

        Triggers, strings and comments may contain semicolons.
        """
        begin = position = 0
        while begin < len(text):
            semicolon = text.find(";", position)
            position = semicolon + 1 if semicolon >= 0 else len(text)
            if semicolon >= 0 and not sqlite3.complete_statement(text[begin:position]):
                continue
            match = _BLANK.match(text, begin, position)
            start = match.end() if match else begin
            if text[start:position].strip("; \n"):
                yield SqlStatement(text.count("\n", 0, start) + 1, text[start:position])
            begin = position

    def script(self, id_: str, sql: str) -> str:
        """Return the script of one migration, for people to read."""
        return (
            f"BEGIN IMMEDIATE;\n\n{sql.strip()}\n\n"
            f"-- PRAGMA foreign_key_check must return no row; {id_} is recorded.\nCOMMIT;\n"
        )

    def connect(
        self, url: DatabaseUrl, known_ids: Collection[str], *, create: bool, adopt: bool = False
    ) -> SqliteSchemaConnection | None:
        """Connect to a metastore database to change its schema. See `Schema.connect`."""
        path = _file(url)
        if create:
            database_file.create(path)
        elif not database_file.exists(path):
            return None
        if not path.is_file():
            raise StoreCorrupt("is not a file", path=path)
        if adopt or path.stat().st_size == 0:
            _protect(path)
        with self.typed_errors(url):
            connection = database_file.connect(path)
            try:
                if not _is_metastore(connection, path, known_ids, adopt=adopt):
                    if not (create or adopt):
                        connection.close()
                        return None
                    _claim(connection)
                return SqliteSchemaConnection(connection)
            except BaseException:
                connection.close()
                raise

    def connect_to_read(
        self, url: DatabaseUrl, known_ids: Collection[str]
    ) -> SqliteSchemaConnection | None:
        """Connect to read a schema. See `Schema.connect_to_read`."""
        path = _file(url)
        if not database_file.exists(path):
            return None
        if not path.is_file():
            raise StoreCorrupt("is not a file", path=path)
        with self.typed_errors(url):
            connection = database_file.connect(path, read_only=True)
            try:
                # A database that only yoyo migrated can be read, to be compared and adopted.
                ours = _is_metastore(connection, path, known_ids, adopt=True)
                if ours or _has_table(connection, "_yoyo_migration"):
                    return SqliteSchemaConnection(connection)
            except BaseException:
                connection.close()
                raise
            connection.close()
            return None

    def connect_to_model(self) -> SqliteSchemaConnection:
        """Connect to an empty scratch database, to build a schema for comparison."""
        return SqliteSchemaConnection(sqlite3.connect(":memory:", isolation_level=None))

    @contextlib.contextmanager
    def typed_errors(self, url: DatabaseUrl) -> Iterator[None]:
        """Turn the driver's errors about a database into metastore's."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            found = _store_error(error, path=url.path)
            if found is None or isinstance(found, StoreCorrupt):
                found = StoreCorrupt(str(error), path=url.path)
            raise found from error


def read_state(connection: sqlite3.Connection) -> SchemaState:
    """Return the state of a schema, whichever program made it.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    views = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'view'").fetchall()
    applied = []
    if _has_table(connection, "_yoyo_migration"):
        applied = connection.execute(_APPLIED_SQL).fetchall()
    return SchemaState([id_ for (id_,) in applied], [name for (name,) in views])


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    [count] = connection.execute(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?", (name,)
    ).fetchone()
    return bool(count)


def _file(url: DatabaseUrl) -> Path:
    if url.path is None:
        raise InvalidValue(
            None, "url", "names a database in memory, which is migrated when it is opened"
        )
    return url.path


def _protect(path: Path) -> None:
    try:
        # By name: this process may have the file open through SQLite.
        path.chmod(0o600)
    except OSError as error:
        raise StoreReadOnly(f"cannot protect {path}: {error.strerror}") from error


def _is_metastore(
    connection: sqlite3.Connection, path: Path, known_ids: Iterable[str], *, adopt: bool
) -> bool:
    """Return whether this is a metastore database; with `adopt`, one that yoyo migrated is not yet.

    Raises:
        StoreCorrupt: it belongs to another program, or, without `adopt`, to yoyo alone.
    """
    # One snapshot: another migrator may be initialising this database.
    connection.execute("BEGIN")
    try:
        return database_file.is_metastore(connection)
    except StoreCorrupt:
        if not _has_table(connection, "_yoyo_migration"):
            raise
        if set(read_state(connection).applied).isdisjoint(known_ids):
            raise
        if adopt:
            return False
        raise StoreCorrupt(
            "was migrated by yoyo's own backend; `metastore migrate verify --adopt` compares "
            "the schema and makes it a metastore database",
            path=path,
        ) from None
    finally:
        connection.rollback()


def _claim(connection: sqlite3.Connection) -> None:
    """Turn an empty database into a metastore database.

    Unlike a statement, the switch to WAL does not wait for another connection's lock.
    """
    deadline = time.monotonic() + database_file.BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            database_file.initialise(connection)
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _store_error(
    error: Exception,
    *,
    connection: sqlite3.Connection | None = None,
    path: Path | None = None,
) -> MetastoreError | None:
    """Return the store's error for a failure that no statement caused; None for others."""
    try:
        translated = translate(error, connection, path=path)
    except sqlite3.Error:
        return None
    return None if isinstance(translated, InvalidValue) else translated
