"""Inspects the state of an SQLite database."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from stat import S_IMODE
from typing import TYPE_CHECKING, Any, NamedTuple

from metastore.backends.sqlite.lanes import roll_back
from metastore.backends.sqlite.schema import read_state
from metastore.errors import MetastoreError, StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from metastore.backends.base import RowCheck, SchemaCheck

__all__ = [
    "Files",
    "Settings",
    "damage",
    "details",
    "files",
    "notes",
    "probe_write",
    "problems",
    "read_settings",
]

PROBE_BUSY_TIMEOUT_MS = 1_000
"""How long the write probe waits for another process's lock, in milliseconds."""

MOST_DAMAGE = 100
"""The most lines that a damage report has."""

MOST_DAMAGED_ROWS = 50
"""The most lines of it that name rows, so that other damage is reported too."""

LARGE_WAL = 64 << 20
"""A size of the WAL, in bytes, that checkpoints prevent in normal operation."""

LOW_DISK = 128 << 20
"""The free disk space, in bytes, below which a warning is due."""

_SYNCHRONOUS = ("off", "normal", "full", "extra")


class Settings(NamedTuple):
    """The settings of a connection and its database.

    Attributes:
        schema_error: why the schema does not match the code; None if it does.
        trusts_schema: whether the schema may call functions that SQLite deems unsafe.
    """

    journal_mode: str
    synchronous: str
    trusts_schema: bool
    schema_error: MetastoreError | None


def read_settings(check: SchemaCheck, connection: sqlite3.Connection) -> Settings:
    """Read the settings, and `check` the schema.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    schema_error = None
    try:
        check(read_state(connection))
    except MetastoreError as error:
        schema_error = error
    journal_mode, synchronous, trusts_schema = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "trusted_schema")
    )
    return Settings(journal_mode, _SYNCHRONOUS[synchronous], bool(trusts_schema), schema_error)


def probe_write(connection: sqlite3.Connection) -> None:
    """Begin a write and roll it back.

    Raises:
        sqlite3.Error: the database cannot be written.
        StoreFull: it has reached its size limit.
    """
    [busy_timeout] = connection.execute("PRAGMA busy_timeout").fetchone()
    shorter = min(busy_timeout, PROBE_BUSY_TIMEOUT_MS)
    connection.execute(f"PRAGMA busy_timeout = {shorter}")
    try:
        connection.execute("BEGIN IMMEDIATE")
        [version] = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version}")
        pages, most_pages, free_pages = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "max_page_count", "freelist_count")
        )
        if pages >= most_pages and not free_pages:
            raise StoreFull(f"the database may not grow beyond its {most_pages} pages")
    finally:
        roll_back(connection)
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout}")


def damage(tables: Mapping[str, RowCheck], connection: sqlite3.Connection) -> list[str]:
    """Read the whole database and return the damage, one line each.

    The rows of `tables` come first: a line that names a row is the most useful for a repair.
    """
    lines: list[str] = []
    # SQLite stores any bytes as text; a row with text that is not UTF-8 must still be read and
    # named.
    connection.text_factory = _text
    for table, check in tables.items():
        lines += _damaged_rows(connection, table, check)
    connection.text_factory = str
    return [*lines[:MOST_DAMAGED_ROWS], *_broken(connection), *_orphans(connection)][:MOST_DAMAGE]


def _text(raw: bytes) -> object:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return NotUtf8(raw)


class NotUtf8(bytearray):
    """The text of a column that is not UTF-8."""


def _damaged_rows(connection: sqlite3.Connection, table: str, check: RowCheck) -> list[str]:
    lines: list[str] = []
    columns = ", ".join(f'"{column}"' for column in check.columns)
    kind = "SELECT type FROM sqlite_schema WHERE lower(name) = ? AND type <> 'index'"
    try:
        for (type_,) in connection.execute(kind, (table,)):
            if type_ == "view":
                # Its rows may have no end.
                return [f"{table}: is a view where a table belongs"]
        for row in connection.execute(f'SELECT {columns} FROM "{table}"'):
            flaw = check.flaw(row)
            if flaw is not None:
                lines.append(str(flaw))
                if len(lines) == MOST_DAMAGED_ROWS:
                    break
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
            raise
        lines.append(f"{table}: {error}")
    return lines


def _broken(connection: sqlite3.Connection) -> list[str]:
    lines: list[str] = []
    try:
        # Row by row: SQLite may report damage first, and fail on it afterwards.
        for (text,) in connection.execute(f"PRAGMA integrity_check({MOST_DAMAGE})"):
            lines += text.splitlines()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        lines.append(str(error))
    return [line for line in lines if line != "ok" and not line.startswith("*** in database")]


def _orphans(connection: sqlite3.Connection) -> list[str]:
    try:
        rows = connection.execute("PRAGMA foreign_key_check").fetchall()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return [str(error)]
    counts = Counter((child, parent) for child, _, parent, _ in rows)
    return [
        f"{count} rows of {child} refer to missing rows of {parent}"
        for (child, parent), count in counts.items()
    ]


class Files(NamedTuple):
    """What the file system knows about the database files. None if unknown."""

    modes: dict[str, int]
    database_bytes: int | None
    wal_bytes: int | None
    free_disk_bytes: int | None


def files(path: Path) -> Files:
    """Inspect the database files by name: only the driver may open them."""
    found = {}
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            found[suffix] = Path(f"{path}{suffix}").stat()
    free_disk_bytes = None
    with contextlib.suppress(OSError):
        free_disk_bytes = shutil.disk_usage(path.parent).free
    return Files(
        modes={f"{path}{suffix}": S_IMODE(it.st_mode) for suffix, it in found.items()},
        database_bytes=found[""].st_size if "" in found else None,
        wal_bytes=found["-wal"].st_size if "-wal" in found else None,
        free_disk_bytes=free_disk_bytes,
    )


def details(settings: Settings | None, files: Files) -> dict[str, Any]:
    """Return facts about a database by name, see `Facts.details`."""
    return {
        "wal_bytes": files.wal_bytes,
        "free_disk_bytes": files.free_disk_bytes,
        "journal_mode": settings and settings.journal_mode,
        "synchronous": settings and settings.synchronous,
        "file_modes": {path: f"{mode:04o}" for path, mode in files.modes.items()},
    }


def problems(settings: Settings | None, files: Files, folder: Path) -> Iterator[str]:
    """Yield the problems of the database files and settings, and what to do about them."""
    for path, mode in files.modes.items():
        if mode & 0o077:
            yield f"Others may read {path} (its mode is {mode:04o}). Run: chmod 600 '{path}'."
    if settings is not None and settings.journal_mode != "wal":
        yield (
            f"The journal mode is {settings.journal_mode} and not wal, so readers and writers "
            "block each other. Move the database to a local file system with shared memory."
        )
    if files.wal_bytes is not None and files.wal_bytes >= LARGE_WAL:
        yield (
            f"The WAL has {_megabytes(files.wal_bytes)}: no checkpoint can finish while a reader "
            "holds an old snapshot. Close long reads, such as a sqlite3 shell inside a "
            "transaction; the file is removed when the last process closes the database."
        )
    if files.free_disk_bytes is not None and files.free_disk_bytes < LOW_DISK:
        yield (
            f"Only {_megabytes(files.free_disk_bytes)} are free in {folder}, and on a full "
            "disk every write is refused. Free some space."
        )


def notes(settings: Settings | None) -> Iterator[str]:
    """Yield informational remarks on the settings."""
    if settings is not None and settings.synchronous not in ("full", "extra"):
        yield (
            f"synchronous is {settings.synchronous}: if the machine goes down, the last commits "
            "may be lost. Open the store with durability='full' to prevent that."
        )


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
