"""The database file: how it is created, recognised and connected to.

While a process is connected it never opens the database, its `-wal` or its `-shm` by itself:
closing any second descriptor drops the process's POSIX locks, and other processes then write
into the middle of its transactions. Whatever must touch the file by descriptor happens here,
before the first connection.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from metastore.audit import link_hash
from metastore.errors import StoreCorrupt, StoreReadOnly

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "APPLICATION_ID",
    "BUSY_TIMEOUT_MS",
    "WAL_SIZE_LIMIT",
    "connect",
    "create",
    "exists",
    "is_metastore",
    "mark",
]

APPLICATION_ID = 0x6D657461
"""`meta` in ASCII: what `PRAGMA application_id` and `file(1)` show for a metastore."""

BUSY_TIMEOUT_MS = 10_000
"""How long a connection waits for another's lock before it gives up, in milliseconds."""

WAL_SIZE_LIMIT = 16 << 20
"""What is left of the WAL when it is begun anew, in bytes: large enough to be overwritten, which
costs less than to grow."""

STATEMENT_CACHE = 512
"""Prepared statements kept per connection: every statement the program has, with room."""


def _checks_may_use_json() -> bool:
    """Tell whether an untrusted schema may hold `json_valid`: SQLite 3.40 takes it for unsafe."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("CREATE TABLE documents (document TEXT CHECK (json_valid(document)))")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


_CHECKS_MAY_USE_JSON = _checks_may_use_json()


def exists(path: Path) -> bool:
    """Tell whether there is something at `path`.

    For a name that is too long for any file, where `Path.exists` raises, there is not.
    """
    return os.path.exists(path)  # noqa: PTH110 - see above


def create(path: Path) -> bool:
    """Create an empty database file with mode 0600 unless it exists.

    Folders that are missing on the way are made for this user only, 0700. SQLite gives the
    `-wal` and `-shm` files the mode of the database file.

    Returns:
        Whether the file was created.

    Raises:
        StoreReadOnly: the folder takes no new file.
    """
    try:
        _make_folder(path.parent)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    except OSError as error:
        raise StoreReadOnly(f"cannot create {path}: {error.strerror}") from error
    os.close(descriptor)
    return True


def _make_folder(folder: Path) -> None:
    # Path.mkdir gives the mode to the last folder only. That one is tried first, so that a path
    # that cannot be leaves nothing behind.
    missing = []
    for it in (folder, *folder.parents):
        try:
            it.mkdir(mode=0o700, exist_ok=True)
            break
        except FileNotFoundError:
            missing.append(it)
    for it in reversed(missing):
        it.mkdir(mode=0o700, exist_ok=True)


def connect(
    path: Path,
    *,
    durability: Literal["full", "normal"] = "full",
    read_only: bool = False,
) -> sqlite3.Connection:
    """Connect to the existing file `path` with the settings that every connection has.

    `isolation_level=None` leaves BEGIN and COMMIT to us; the file is never created here.
    `read_only` makes the connection refuse to write (`PRAGMA query_only`).

    Raises:
        sqlite3.Error: the file is missing, unreadable or no database.
    """
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_MS / 1000,
        cached_statements=STATEMENT_CACHE,
    )
    try:
        # For statements only: the schema holds no function of ours, so that the sqlite3 shell
        # works on it.
        connection.create_function("metastore_sha256", -1, link_hash, deterministic=True)
        if _CHECKS_MAY_USE_JSON:
            # Nothing in the schema may call what it should not.
            connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA synchronous = {durability}")
        # Checkpoints are explicit, see SqliteBackend: SQLite before 3.51.3 may damage the file
        # when one connection checkpoints while another writes.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def is_metastore(connection: sqlite3.Connection) -> bool:
    """Tell whether the file belongs to metastore; an empty database belongs to nobody yet.

    Raises:
        StoreCorrupt: the file belongs to another program.
    """
    # In this order: whoever creates a metastore marks it before the first table is there.
    [objects] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    if application_id == APPLICATION_ID:
        return True
    if application_id or objects:
        [(_, _, file)] = connection.execute("PRAGMA database_list").fetchall()
        raise StoreCorrupt("is a database of another program", path=file)
    return False


def mark(connection: sqlite3.Connection) -> None:
    """Make an empty database metastore's own, in WAL mode. Run outside a transaction."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
