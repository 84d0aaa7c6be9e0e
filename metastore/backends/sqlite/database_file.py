"""The database file: how it is created, recognised and connected to.

While a process is connected, it never opens the database, its `-wal` or its `-shm` itself: closing
any second descriptor drops the process's POSIX locks, and other processes then write into the
middle of its transactions. Everything that needs a descriptor of the file happens here, before the
first connection.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import weakref
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from metastore.audit.links import link_hash
from metastore.errors import (
    OpenedBeforeFork,
    StoreCorrupt,
    StoreFailed,
    StoreReadOnly,
    StoreReplaced,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "APPLICATION_ID",
    "BUSY_TIMEOUT_MS",
    "WAL_SIZE_LIMIT",
    "OpenedFiles",
    "connect",
    "create",
    "exists",
    "initialise",
    "is_metastore",
    "leak",
]

APPLICATION_ID = 0x6D657461
"""`meta` in ASCII: what `PRAGMA application_id` and `file(1)` show for a metastore database."""

BUSY_TIMEOUT_MS = 10_000
"""How long a connection waits for another's lock before it gives up, in milliseconds."""

WAL_SIZE_LIMIT = 16 << 20
"""The size to which a restarted WAL is truncated, in bytes: overwriting is cheaper than growing."""

STATEMENT_CACHE = 512
"""Prepared statements cached per connection: more than the program has."""


def _checks_may_use_json() -> bool:
    """Return whether an untrusted schema may use `json_valid`, which SQLite 3.40 deems unsafe."""
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
    """Return whether `path` exists.

    False for a name that is too long for any file, for which `Path.exists` raises.
    """
    return os.path.exists(path)  # noqa: PTH110 - see above


def create(path: Path) -> bool:
    """Create an empty database file with mode 0600 unless it exists.

    Missing parent folders are created for this user only, 0700. SQLite gives the `-wal` and `-shm`
    files the mode of the database file.

    Returns:
        Whether the file was created.

    Raises:
        StoreReadOnly: the folder does not allow a new file.
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
    # Path.mkdir applies the mode to the last folder only. That one is tried first, so that an
    # impossible path leaves nothing behind.
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

    `isolation_level=None` leaves BEGIN and COMMIT to the caller. The file is never created here.
    `read_only` makes the connection refuse to write (`PRAGMA query_only`).

    Raises:
        sqlite3.Error: the file is missing, unreadable or not a database.
        OpenedBeforeFork: a parent process had it open when this one was forked.
    """
    connection = _connect(path)
    try:
        # For statements only: the schema uses no custom function, so that the sqlite3 shell works.
        connection.create_function("metastore_sha256", -1, link_hash, deterministic=True)
        if _CHECKS_MAY_USE_JSON:
            # A manipulated schema must not call unsafe functions.
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


# A child of a fork inherits SQLite's table of open files, which claims locks that only the parent
# holds. Writes of the child to such a file could be lost, so it must not open one. Nor may it close
# what it inherited: closing changes memory that is shared with the parent.

FileId = tuple[int, int]
"""Device and inode."""

_connecting: list[FileId] = []
_inherited: set[FileId] = set()


class _Connection(sqlite3.Connection):
    """A connection that is registered while it is open, with the file it has open."""

    file: FileId | None = None
    is_leaked = False

    def close(self) -> None:
        if self.is_leaked:
            return
        super().close()
        _live.discard(self)


_live: weakref.WeakSet[_Connection] = weakref.WeakSet()


def _connect(path: Path) -> sqlite3.Connection:
    file = _file_id(os.fspath(path))
    if file in _inherited:
        raise OpenedBeforeFork(path)
    # Registered before it is open: another thread may fork in between.
    _connecting.extend([file] if file else [])
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT_MS / 1000,
            cached_statements=STATEMENT_CACHE,
            factory=_Connection,
        )
        connection.file = file
        _live.add(connection)
    finally:
        if file:
            _connecting.remove(file)
    return connection


def _file_id(path: str) -> FileId | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - Path.stat costs twice as much
    except OSError:
        return None
    return found.st_dev, found.st_ino


def leak(connection: sqlite3.Connection) -> None:
    """Keep a connection open until the process ends, even if it is dropped or closed.

    Closing deletes the WAL by name and resets shared memory. If either no longer belongs to this
    connection, that would damage another's.
    """
    if isinstance(connection, _Connection) and not connection.is_leaked:
        connection.is_leaked = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _after_fork() -> None:
    _inherited.update(_connecting)
    _connecting.clear()
    for connection in list(_live):
        if connection.file is not None:
            _inherited.add(connection.file)
        leak(connection)


os.register_at_fork(after_in_child=_after_fork)


class OpenedFiles:
    """The files that connections to a database have open, and whether they are still in place.

    Attributes:
        wal_bytes: the size of the WAL at the last check.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Remember the files of a connection that has read its database.

        Raises:
            StoreReplaced: the path now names another file than the connected one.
        """
        self._path = os.fspath(path)
        self._wal = f"{self._path}-wal"
        self._database_id = getattr(connection, "file", None)
        self._wal_id = _file_id(self._wal)
        self.wal_bytes = 0
        self.check()

    def check_same(self, connection: sqlite3.Connection) -> None:
        """Check that a new connection has the same database open.

        Raises:
            StoreReplaced: it has another one.
        """
        if getattr(connection, "file", None) != self._database_id:
            raise StoreReplaced(self._path, is_missing=False)

    def check(self) -> None:
        """Check that the files are still the ones that were opened: two calls of `stat`.

        Raises:
            StoreReplaced: one was deleted, moved or replaced.
            StoreFailed: they cannot be checked.
        """
        # Inlined: this runs before every commit.
        path = self._path
        try:
            database = os.stat(path)  # noqa: PTH116 - Path.stat costs twice as much
            if (database.st_dev, database.st_ino) != self._database_id:
                raise StoreReplaced(path, is_missing=False)
            if self._wal_id is None:
                return
            path = self._wal
            wal = os.stat(path)  # noqa: PTH116 - the same
        except (FileNotFoundError, NotADirectoryError):
            raise StoreReplaced(path, is_missing=True) from None
        except OSError as error:
            raise StoreFailed(f"{path} cannot be checked: {error.strerror}") from error
        if (wal.st_dev, wal.st_ino) != self._wal_id:
            raise StoreReplaced(path, is_missing=False)
        self.wal_bytes = wal.st_size


def is_metastore(connection: sqlite3.Connection) -> bool:
    """Return whether this is a metastore database; an empty one is not yet.

    Raises:
        StoreCorrupt: the file belongs to another program.
    """
    # In this order: application_id is set before the first table is created.
    [objects] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    if application_id == APPLICATION_ID:
        return True
    if application_id or objects:
        [(_, _, file)] = connection.execute("PRAGMA database_list").fetchall()
        raise StoreCorrupt("is a database of another program", path=file)
    return False


def initialise(connection: sqlite3.Connection) -> None:
    """Turn an empty database into a metastore database, in WAL mode. Run outside a transaction."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
