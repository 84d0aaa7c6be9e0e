"""SQLite's errors in metastore's terms."""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING

from metastore.errors import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    MetastoreError,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
)

if TYPE_CHECKING:
    from metastore.statements import Call

__all__ = ["translate"]

_CONSTRAINT = 19
_COLUMN = re.compile(r"(\w+)\.(\w+)")


def translate(
    error: Exception, connection: sqlite3.Connection | None = None, call: Call | None = None
) -> MetastoreError:
    """Return the metastore error that `error` is, with `error` as its cause.

    `connection` is asked which foreign key failed, which SQLite does not say.

    Raises:
        Exception: `error` itself, where it is no error of the database but of the program.
    """
    if not isinstance(error, sqlite3.Error):
        raise error
    translated = _translate(error, connection, call)
    translated.__cause__ = error
    return translated


def _translate(
    error: sqlite3.Error, connection: sqlite3.Connection | None, call: Call | None
) -> MetastoreError:
    name = getattr(error, "sqlite_errorname", "") or ""
    message = str(error)
    # By the code: Python 3.11 has no name for the newest kind, the type error of STRICT tables.
    is_constraint = getattr(error, "sqlite_errorcode", 0) & 0xFF == _CONSTRAINT
    if is_constraint and connection is not None and call is not None:
        return _constraint(name, message, connection, call)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreBusy(f"another process holds the database: {message}")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC")) or (
        name in ("SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE")
    ):
        return StoreFull(f"no space left for the database: {message}")
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return StoreReadOnly(f"the database takes no writes: {message}")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR", "SQLITE_FORMAT")):
        return StoreCorrupt(message)
    if name == "SQLITE_TOOBIG":
        return InvalidValue(call.statement.table if call else None, "value", "is too big")
    if name == "SQLITE_INTERRUPT" or "closed database" in message:
        return StoreClosed("the store is closed")
    raise error


def _constraint(
    name: str, message: str, connection: sqlite3.Connection, call: Call
) -> MetastoreError:
    table = call.statement.table
    _, _, detail = message.partition(": ")
    if name in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"):
        found = _COLUMN.findall(detail)
        return AlreadyExists(found[0][0] if found else table, [column for _, column in found])
    # A RESTRICT that fires is reported as a trigger.
    if name == "SQLITE_CONSTRAINT_FOREIGNKEY" or message.startswith("FOREIGN KEY"):
        return _missing_parent(connection, call) or _needed_by(connection, call)
    if name == "SQLITE_CONSTRAINT_NOTNULL":
        [(at, column)] = _COLUMN.findall(detail)
        return InvalidValue(at, column, "must not be NULL", value_type="NoneType")
    if message.startswith("cannot store"):
        [(at, column)] = _COLUMN.findall(message)
        return InvalidValue(at, column, message.partition(" in ")[0])
    if name == "SQLITE_CONSTRAINT_CHECK":
        return InvalidValue(table, detail, "is violated", value_type=_value_type(detail, call))
    return InvalidValue(table, "trigger", message)


def _value_type(constraint: str, call: Call) -> str | None:
    """Return the type of the value that a CHECK named `<table>_<column>_check` refused."""
    column = constraint.removeprefix(f"{call.statement.table}_").removesuffix("_check")
    if isinstance(call.parameters, tuple) and column in call.statement.parameters:
        return type(call.rows[0][column]).__name__
    return None


def _missing_parent(connection: sqlite3.Connection, call: Call) -> InvalidReference | None:
    """Return which foreign key of the statement's table names no row, if one does."""
    table = call.statement.table
    rows = call.rows
    keys = connection.execute(
        'SELECT "from", "table", "to" FROM pragma_foreign_key_list(?)', (table,)
    ).fetchall()
    for column, parent, parent_column in keys:
        for value in {row[column] for row in rows if row.get(column) is not None}:
            if not _exists(connection, parent, parent_column, value):
                return InvalidReference(table, column, parent)
    return None


def _needed_by(connection: sqlite3.Connection, call: Call) -> InvalidReference:
    """Return which foreign key still names the row that the statement was to delete."""
    table = call.statement.table
    row = call.rows[0]
    if "id" not in row:
        return InvalidReference(table)
    keys = connection.execute(
        'SELECT s.name, k."from", k."to" '
        "FROM sqlite_schema AS s, pragma_foreign_key_list(s.name) AS k "
        "WHERE s.type = 'table' AND k.\"table\" = ?",
        (table,),
    ).fetchall()
    for child, column, parent_column in keys:
        # The statement names its row by the primary key; the child may refer to another column.
        [value] = connection.execute(
            f'SELECT "{parent_column}" FROM "{table}" WHERE id = ?', (row["id"],)
        ).fetchone() or (None,)
        if value is not None and _exists(connection, child, column, value):
            return InvalidReference(child, column, table)
    return InvalidReference(table)


def _exists(connection: sqlite3.Connection, table: str, column: str, value: object) -> bool:
    found = connection.execute(f'SELECT 1 FROM "{table}" WHERE "{column}" = ?', (value,))
    return found.fetchone() is not None
