"""Picks the backend of a dialect: the only place that does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastore.backends.sqlite import template
from metastore.backends.sqlite import url as sqlite_url
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.schema import SqliteSchema
from metastore.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metastore.backends.base import (
        Backend,
        Columns,
        DatabaseUrl,
        Durability,
        PlantedFaults,
        Schema,
        SchemaCheck,
    )

    Upgrade = Callable[[DatabaseUrl], object]

__all__ = [
    "DEFAULT_URL",
    "columns_of",
    "create_empty",
    "is_missing",
    "open_backend",
    "parse",
    "plant_faults",
    "schema_of",
    "shell_command",
    "url_of_file",
]

DEFAULT_URL = "sqlite:///.artifacts/data/metadata.db"
"""The database to use when none is named."""

_SQLITE_SCHEMA = SqliteSchema()


def parse(url: str) -> DatabaseUrl:
    """Take a URL apart.

    `sqlite:///rel.db` is relative to the working directory, `sqlite:////abs.db` absolute,
    `sqlite://` in memory. The rest is taken literally: `#`, `?` and `%` are part of the file's
    name.

    Raises:
        InvalidValue: its form is unknown.
    """
    if not isinstance(url, str) or not url.startswith("sqlite://"):
        raise InvalidValue(None, "url", "must begin with sqlite://", value_type=type(url).__name__)
    return sqlite_url.parse(url)


def url_of_file(path: Path | str) -> DatabaseUrl:
    """Return the URL of the database in a file.

    Raises:
        InvalidValue: a database cannot have this name.
    """
    return sqlite_url.of_file(path)


def is_missing(url: DatabaseUrl) -> bool:
    """Return whether there is no database at `url` yet: no file, or an empty one."""
    return template.is_missing(url)


async def open_backend(
    url: DatabaseUrl,
    *,
    durability: Durability = "full",
    readers: int = 1,
    check: SchemaCheck = lambda _: None,
    upgrade: Upgrade = lambda _: None,
) -> Backend:
    """Connect to the database at `url`, whose schema must pass `check`.

    Args:
        url: The database.
        durability: What a commit survives.
        readers: The number of reading connections.
        check: Raises what is wrong with the schema.
        upgrade: Creates the schema of a database in memory.

    Raises:
        StoreCorrupt: it is missing, empty, not a metastore database, or damaged.
        StoreReadOnly: it cannot be opened for writing.
    """
    if url.in_memory:
        return await template.open_in_memory(
            upgrade, durability=durability, readers=readers, check=check
        )
    return await SqliteBackend.open(url, durability=durability, readers=readers, check=check)


def columns_of(dialect: str) -> Columns:
    """Return how a dialect's databases store the values of rows."""
    _refuse_unknown(dialect)
    return SqliteBackend.columns


def schema_of(dialect: str) -> Schema:
    """Return how a dialect's schemas are migrated and compared."""
    _refuse_unknown(dialect)
    return _SQLITE_SCHEMA


def _refuse_unknown(dialect: str) -> None:
    if dialect != "sqlite":
        raise InvalidValue(None, f"dialect {dialect!r}", "is not supported")


def create_empty(url: DatabaseUrl, upgrade: Upgrade) -> None:
    """Create an empty database at `url`, with the schema that `upgrade` makes.

    It is a copy of a template, which takes a fraction of the time of migrating.

    Raises:
        FileExistsError: there is a file already.
        StoreReadOnly: the folder does not allow a new file.
    """
    template.write(url, upgrade)


def shell_command(url: DatabaseUrl) -> str:
    """Return the command that opens a database in its shell."""
    return template.shell_command(url)


def plant_faults(backend: Backend) -> PlantedFaults:
    """Return an object that plants faults underneath an open database.

    Raises:
        TypeError: not supported for this backend.
    """
    if not isinstance(backend, SqliteBackend):
        raise TypeError(f"faults cannot be planted in a {type(backend).__name__}")
    from metastore.backends.sqlite.planted_faults import SqliteFaults

    return SqliteFaults(backend)
