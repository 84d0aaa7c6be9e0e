"""Translates SQLite's errors into metastore's."""

from __future__ import annotations

import errno
import os
import re
import resource
import sqlite3
from pathlib import Path
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
    StoreIOError,
    StoreReadOnly,
)

if TYPE_CHECKING:
    from metastore.statements import Call

__all__ = ["translate"]

_CONSTRAINT = 19
_COLUMN = re.compile(r"(\w+)\.(\w+)")
_TRIGGER = re.compile(r"(\w+)\.(\w+) (must .+)")
_NOT_UTF_8 = re.compile(r"Could not decode to UTF-8 column '(\w+)'")

_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_IOERR_SHORT_READ")
_READ_FAILED = ("SQLITE_IOERR_READ", "SQLITE_IOERR_CORRUPTFS", "SQLITE_IOERR_DATA")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_WRITES = {errno.EROFS, errno.EACCES, errno.EPERM}

_NO_NAMELESS_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}

_PROBE_BYTES = 64 << 10
"""The size of a probe, and how close to its limit a file counts as full: more than SQLite adds to
a file at a time, and less than any useful disk or quota has to spare."""


def translate(
    error: Exception,
    connection: sqlite3.Connection | None = None,
    call: Call | None = None,
    *,
    path: Path | None = None,
) -> MetastoreError:
    """Return the metastore error for `error`, with `error` as its cause.

    `connection` is used to find out which foreign key failed, which SQLite does not report, and
    which file is open, unless `path` is given.

    Raises:
        Exception: `error` itself, if it is a bug in the program and not a database error.
    """
    if isinstance(error, UnicodeDecodeError):
        # The driver could not decode SQLite's message, which quotes a damaged schema.
        return StoreCorrupt("the schema holds text that is not UTF-8", path=path)
    if not isinstance(error, sqlite3.Error):
        raise error
    if damaged := _NOT_UTF_8.match(str(error)):
        # Without the cause: it quotes the text, and holds on to the cursor and its snapshot.
        return _not_utf_8(damaged[1], connection, call)
    try:
        translated = _translate(error, connection, call, path)
    except sqlite3.Error as worse:
        if worse is error:
            raise
        # Raised while finding out which constraint it was.
        translated = _translate(worse, None, call, path)
    translated.__cause__ = error
    return translated


def _translate(
    error: sqlite3.Error,
    connection: sqlite3.Connection | None,
    call: Call | None,
    path: Path | None,
) -> MetastoreError:
    name = getattr(error, "sqlite_errorname", "") or ""
    message = str(error)
    table = call.statement.table if call else None
    # By the code: Python 3.11 has no name for the newest kind, the type error of STRICT tables.
    is_constraint = getattr(error, "sqlite_errorcode", 0) & 0xFF == _CONSTRAINT
    if is_constraint and connection is not None and call is not None:
        return _constraint(name, message, connection, call)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return StoreBusy(f"another process holds the database: {message}")
    if name.startswith("SQLITE_FULL"):
        return StoreFull(f"the database cannot grow: {message}")
    if name.startswith("SQLITE_CANTOPEN"):
        return _refused_by_the_system(name, message, path or _file_of(connection))
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return StoreReadOnly(f"the database is read-only: {message}")
    if name.startswith(_DAMAGE):
        return StoreCorrupt(message, table=table)
    if name.startswith("SQLITE_IOERR"):
        return _refused_by_the_system(name, message, path or _file_of(connection))
    if name == "SQLITE_TOOBIG":
        return InvalidValue(table, "value", "is too big")
    if name == "SQLITE_INTERRUPT" or "closed database" in message:
        return StoreClosed("the store is closed")
    if name in ("SQLITE_ERROR", "SQLITE_SCHEMA", "SQLITE_MISMATCH") and call is not None:
        # The statements are fixed and match the schema, so the schema or a row was damaged: a table
        # is gone, JSON is malformed, a sum overflows.
        return StoreCorrupt(message, table=table)
    raise error


def _not_utf_8(
    column: str, connection: sqlite3.Connection | None, call: Call | None
) -> StoreCorrupt:
    """Return the error for text that is not UTF-8, with its row if known."""
    table = call.statement.table if call else None
    row_id = None
    if connection is not None and call is not None and not call.statement.writes:
        row_id = _row_with_bad_text(connection, call)
    return StoreCorrupt("holds text that is not UTF-8", table=table, row_id=row_id, column=column)


def _row_with_bad_text(connection: sqlite3.Connection, call: Call) -> str | None:
    """Run a read again, and return the id of the first row with such text."""
    is_bad = False

    def read(raw: bytes) -> str:
        nonlocal is_bad
        try:
            return raw.decode()
        except UnicodeDecodeError:
            is_bad = True
            return raw.decode(errors="backslashreplace")

    before = connection.text_factory
    connection.text_factory = read
    try:
        cursor = connection.execute(call.statement.sql, call.bound)
        names = [name for name, *_ in cursor.description]
        for row in cursor:
            if is_bad:
                return str(row[names.index("id")]) if "id" in names else str(row[0])
    except sqlite3.Error:
        return None
    finally:
        connection.text_factory = before
    return None


def _refused_by_the_system(name: str, message: str, file: Path | None) -> MetastoreError:
    """Classify an error of the operating system, whose number SQLite does not pass on.

    A full quota, a file size limit and a file system that turned read-only after an error all have
    the same code as a failing disk, so the file system is probed at once.
    """
    cause = None
    if file is not None and not name.startswith(_READ_FAILED):
        cause = _size_limit(file) or _probe(file.parent)
    what = f"{os.strerror(cause)}: {message} ({name})" if cause else f"{message} ({name})"
    if cause in _NO_ROOM:
        return StoreFull(f"the database cannot grow: {what}")
    if cause in _NO_WRITES or (cause is None and name.startswith("SQLITE_CANTOPEN")):
        return StoreReadOnly(f"the database is read-only: {what}")
    return StoreIOError(f"the operating system failed to access the database: {what}")


def _file_of(connection: sqlite3.Connection | None) -> Path | None:
    if connection is None:
        return None
    try:
        [(_, _, file)] = connection.execute("PRAGMA database_list").fetchall()
    except (sqlite3.Error, ValueError):
        return None
    return Path(file) if file else None


def _size_limit(file: Path) -> int | None:
    """Return EFBIG if a database file has reached the process's file size limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return None
    for suffix in ("", "-wal", "-shm"):
        try:
            size = Path(f"{file}{suffix}").stat().st_size
        except OSError:
            continue
        if size + _PROBE_BYTES > limit:
            return errno.EFBIG
    return None


def _probe(folder: Path) -> int | None:
    """Return the error number with which a write to `folder` fails; None if it succeeds.

    The file has no name, so nothing is left behind.
    """
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(bytes(_PROBE_BYTES))
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except (AttributeError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else errno.EOPNOTSUPP
        return _free_space(folder) if number in _NO_NAMELESS_FILES else number
    return None


def _free_space(folder: Path) -> int | None:
    """Return ENOSPC if the file system is full; a quota is not visible here."""
    try:
        usage = os.statvfs(folder)
    except OSError as error:
        return error.errno
    return errno.ENOSPC if usage.f_bavail * usage.f_frsize < _PROBE_BYTES else None


def _constraint(
    name: str, message: str, connection: sqlite3.Connection, call: Call
) -> MetastoreError:
    table = call.statement.table
    _, _, detail = message.partition(": ")
    if name in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"):
        found = _COLUMN.findall(detail)
        return AlreadyExists(found[0][0] if found else table, [column for _, column in found])
    # SQLite reports a firing RESTRICT as a trigger.
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
    if refused := _TRIGGER.fullmatch(message):
        at, column, reason = refused.groups()
        return InvalidValue(at, column, reason, value_type=_type_of(column, call))
    return InvalidValue(table, "trigger", message)


def _value_type(constraint: str, call: Call) -> str | None:
    """Return the type of the value that violates a CHECK named `<table>_<column>_check`."""
    return _type_of(
        constraint.removeprefix(f"{call.statement.table}_").removesuffix("_check"), call
    )


def _type_of(column: str, call: Call) -> str | None:
    """Return the type of the value that a statement has for a column."""
    if isinstance(call.parameters, tuple) and column in call.statement.parameters:
        return type(call.rows[0][column]).__name__
    return None


def _missing_parent(connection: sqlite3.Connection, call: Call) -> InvalidReference | None:
    """Return which foreign key of the statement's table has no parent row, if any."""
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
    """Return which foreign key still refers to the row to delete."""
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
        # The statement has the primary key of the row; the child may refer to another column.
        [value] = connection.execute(
            f'SELECT "{parent_column}" FROM "{table}" WHERE id = ?', (row["id"],)
        ).fetchone() or (None,)
        if value is not None and _exists(connection, child, column, value):
            return InvalidReference(child, column, table, is_needed=True)
    return InvalidReference(table)


def _exists(connection: sqlite3.Connection, table: str, column: str, value: object) -> bool:
    found = connection.execute(f'SELECT 1 FROM "{table}" WHERE "{column}" = ?', (value,))
    return found.fetchone() is not None
