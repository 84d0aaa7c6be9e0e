"""Empty databases, copied from a migrated template; databases in memory start as such a copy."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
from functools import cache
from typing import TYPE_CHECKING

from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.memory import MemoryFolder, sweep
from metastore.backends.sqlite.url import of_file
from metastore.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metastore.backends.base import DatabaseUrl, Durability, SchemaCheck

    Upgrade = Callable[[DatabaseUrl], object]

__all__ = ["is_missing", "open_in_memory", "shell_command", "write"]


def is_missing(url: DatabaseUrl) -> bool:
    """Return whether there is no database at `url` yet: no file, or an empty one."""
    path = _path(url)
    return not database_file.exists(path) or (path.is_file() and path.stat().st_size == 0)


def write(url: DatabaseUrl, upgrade: Upgrade) -> None:
    """Create an empty database. See `opening.create_empty`."""
    path = _path(url)
    if not database_file.create(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.write_bytes(_template(upgrade))


async def open_in_memory(
    upgrade: Upgrade, *, durability: Durability, readers: int, check: SchemaCheck
) -> SqliteBackend:
    """Open a new, empty database that is removed with its backend.

    A file in memory-backed storage behaves exactly like a file in production: a reader beside the
    writer, snapshots, WAL. SQLite's own in-memory databases do not.
    """
    folder = MemoryFolder()
    try:
        url = of_file(folder.path / "metadata.db")
        await asyncio.to_thread(_prepare, url, upgrade)
        return await SqliteBackend.open(
            url, durability=durability, readers=readers, check=check, on_close=folder.remove
        )
    except BaseException:
        folder.remove()
        raise


def shell_command(url: DatabaseUrl) -> str:
    """Return the command that opens a database in the sqlite3 shell."""
    return f"sqlite3 {shlex.quote(str(_path(url)))}"


def _prepare(url: DatabaseUrl, upgrade: Upgrade) -> None:
    sweep()
    write(url, upgrade)


@cache
def _template(upgrade: Upgrade) -> bytes:
    """Return a migrated, empty database, made once per process."""
    with MemoryFolder() as folder:
        path = folder.path / "template.db"
        upgrade(of_file(path))
        return path.read_bytes()


def _path(url: DatabaseUrl) -> Path:
    if url.path is None:
        raise InvalidValue(None, "url", "names a database in memory, which has no file")
    return url.path
