"""What is asked of an SQLite database to tell how it is."""

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
"""How long the attempt to write waits for another process's lock, in milliseconds."""

MOST_DAMAGE = 100
"""Lines that a search for damage returns at most."""

MOST_DAMAGED_ROWS = 50
"""Lines among them that name a row: what else is broken is to be seen as well."""

LARGE_WAL = 64 << 20
"""The size of a WAL, in bytes, that checkpoints do not let it reach in ordinary operation."""

LOW_DISK = 128 << 20
"""The free space on the disk, in bytes, below which there is little time left."""

_SYNCHRONOUS = ("off", "normal", "full", "extra")


class Settings(NamedTuple):
    """What a connection says of its database and of itself.

    Attributes:
        schema_error: why the schema is not the code's; None if it is.
        trusts_schema: whether functions that SQLite takes for unsafe may be called by the schema.
    """

    journal_mode: str
    synchronous: str
    trusts_schema: bool
    schema_error: MetastoreError | None


def read_settings(check: SchemaCheck, connection: sqlite3.Connection) -> Settings:
    """Read from the database, and `check` its schema.

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
    """Begin to write, and undo it.

    Raises:
        sqlite3.Error: the database takes no writes.
        StoreFull: it may not grow any more.
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
    """Read the whole database and return what is broken, one line each.

    The rows of `tables` come first: a line that names a row helps the most to mend it.
    """
    lines: list[str] = []
    # SQLite takes text as it is; a row whose text is not UTF-8 is still to be read and named.
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
    """What a column holds as text although it is not UTF-8."""


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
        # Row by row: SQLite may find what is broken, and then stumble over it.
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
        f"{count} of {child} without the row of {parent} that they refer to"
        for (child, parent), count in counts.items()
    ]


class Files(NamedTuple):
    """What the file system says of a database's files. What could not be found out is None."""

    modes: dict[str, int]
    database_bytes: int | None
    wal_bytes: int | None
    free_disk_bytes: int | None


def files(path: Path) -> Files:
    """Look at the database's files by name: nothing may open them beside the driver."""
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
    """Return what is known of a database, by name, see `Facts.details`."""
    return {
        "wal_bytes": files.wal_bytes,
        "free_disk_bytes": files.free_disk_bytes,
        "journal_mode": settings and settings.journal_mode,
        "synchronous": settings and settings.synchronous,
        "file_modes": {path: f"{mode:04o}" for path, mode in files.modes.items()},
    }


def problems(settings: Settings | None, files: Files, folder: Path) -> Iterator[str]:
    """Say what is wrong with a database's files and settings, and what to do about it."""
    for path, mode in files.modes.items():
        if mode & 0o077:
            yield f"Others may read {path} (its mode is {mode:04o}). Run: chmod 600 '{path}'."
    if settings is not None and settings.journal_mode != "wal":
        yield (
            f"The journal mode is {settings.journal_mode} and not wal, so that readers and writers "
            "block each other. Move the database to a local file system that can share memory."
        )
    if files.wal_bytes is not None and files.wal_bytes >= LARGE_WAL:
        yield (
            f"The WAL has {_megabytes(files.wal_bytes)}: no checkpoint can finish while somebody "
            "reads an old state. Close what reads for long, such as a sqlite3 shell inside a "
            "transaction; the file is removed when the last process closes the database."
        )
    if files.free_disk_bytes is not None and files.free_disk_bytes < LOW_DISK:
        yield (
            f"Only {_megabytes(files.free_disk_bytes)} are free in {folder}, and on a full "
            "disk every write is refused. Make room."
        )


def notes(settings: Settings | None) -> Iterator[str]:
    """Say what is informational about a database's settings."""
    if settings is not None and settings.synchronous not in ("full", "extra"):
        yield (
            f"synchronous is {settings.synchronous}: when the machine goes down, the last commits "
            "may be lost. Open the store with durability='full' if they must not be."
        )


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
