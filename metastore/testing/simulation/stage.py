"""A database file that is reset for each run."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Self

from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.lanes import roll_back
from metastore.backends.sqlite.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["CLOSED", "Stage"]

CLOSED = sqlite3.connect(":memory:", check_same_thread=False)
"""The stand-in for a connection that a run has closed and the stage reuses."""

CLOSED.close()


class Stage:
    """A database that starts each run from the same image, and reuses connections of earlier runs.

    A connection reads the whole schema before its first statement, and compiles each statement
    once: in a run of a tenth of a second that would be a quarter of the work. So connections
    that a run closes, or leaves open when it ends, are handed out again in the next one, with
    the settings of a new connection and, since the file was written over, with an empty cache.

    Use it as a context manager, or `close` it.
    """

    def __init__(self, image: bytes) -> None:
        self._image = image
        self._is_set = False
        self._set_up()

    def _set_up(self) -> None:
        self._folder = MemoryFolder()
        self.path: Path = self._folder.path / "metadata.db"
        self.path.write_bytes(self._image)
        # Open until no connection is: closing it would drop the locks of every connection.
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._cleaner: sqlite3.Connection | None = None
        self._idle: defaultdict[tuple[str, bool], list[sqlite3.Connection]] = defaultdict(list)
        self._used: list[tuple[tuple[str, bool], sqlite3.Connection]] = []
        self._is_set = True

    def connect(
        self,
        make: Callable[..., sqlite3.Connection],
        path: Path,
        *,
        durability: str = "full",
        read_only: bool = False,
    ) -> sqlite3.Connection:
        """Return a connection as `make`, which is `database_file.connect`, would."""
        key = durability, read_only
        if path != self.path:
            return make(path, durability=durability, read_only=read_only)
        if self._idle[key]:
            connection = self._idle[key].pop()
            connection.execute(f"PRAGMA busy_timeout = {database_file.BUSY_TIMEOUT_MS}")
        else:
            connection = make(path, durability=durability, read_only=read_only)
        self._used.append((key, connection))
        return connection

    def reset(self) -> None:
        """Reset the database to its image. Nothing may be using its connections."""
        if not self._is_set:
            self._set_up()
            return
        used, self._used = self._used, []
        if not used:
            return
        for key, connection in used:
            if _park(connection):
                self._idle[key].append(connection)
        with contextlib.suppress(sqlite3.Error):
            if self._cleaner is None:
                self._cleaner = database_file.connect(self.path, durability="normal")
                self._cleaner.execute("PRAGMA busy_timeout = 0")
            if self._write_over(self._cleaner):
                return
        # A statement is still reading, or the schema changed: start with a new file.
        self.close()
        self._set_up()

    def _write_over(self, cleaner: sqlite3.Connection) -> bool:
        # A changed schema may have the same version, so no connection would read it again.
        if _schema_version(cleaner) != self._schema_version:
            return False
        # A restarted WAL makes the other connections drop their caches at the next read.
        if not _emptied_log(cleaner):
            return False
        os.pwrite(self._descriptor, self._image, 0)
        os.ftruncate(self._descriptor, len(self._image))
        return True

    @property
    def _schema_version(self) -> int:
        return int.from_bytes(self._image[40:44], "big")

    def content(self) -> bytes:
        """Return the database as the last run left it, and close its connections."""
        self._disconnect()
        return self.path.read_bytes()

    def close(self) -> None:
        """Close every connection, and remove the file."""
        if not self._is_set:
            return
        self._is_set = False
        self._disconnect()
        os.close(self._descriptor)
        self._folder.remove()

    def _disconnect(self) -> None:
        idle = [connection for each in self._idle.values() for connection in each]
        for connection in [*idle, *(it for _, it in self._used), self._cleaner]:
            if connection is not None:
                connection.close()
        self._idle.clear()
        self._used.clear()
        self._cleaner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _park(connection: sqlite3.Connection) -> bool:
    """Roll back what is open on a connection; return whether it can be reused."""
    if getattr(connection, "is_leaked", False):
        return False
    try:
        roll_back(connection)
        connection.set_progress_handler(None, 0)
    except sqlite3.ProgrammingError:
        # It was closed.
        return False
    return not connection.in_transaction


def _emptied_log(connection: sqlite3.Connection) -> bool:
    found: Any = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return tuple(found) == (0, 0, 0)


def _schema_version(connection: sqlite3.Connection) -> int:
    [version] = connection.execute("PRAGMA schema_version").fetchone()
    return int(version)
