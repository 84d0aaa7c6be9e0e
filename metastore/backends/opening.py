"""Where a dialect becomes a backend: what there is for each, and nowhere else."""

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
"""The database that is meant where none is named."""

_SQLITE_SCHEMA = SqliteSchema()


def parse(url: str) -> DatabaseUrl:
    """Take a URL apart.

    `sqlite:///rel.db` is relative to the working directory, `sqlite:////abs.db` absolute,
    `sqlite://` in memory. What follows the slashes is taken literally: `#`, `?` and `%` are
    characters of the file's name.

    Raises:
        InvalidValue: it is of no known form.
    """
    if not isinstance(url, str) or not url.startswith("sqlite://"):
        raise InvalidValue(None, "url", "must begin with sqlite://", value_type=type(url).__name__)
    return sqlite_url.parse(url)


def url_of_file(path: Path | str) -> DatabaseUrl:
    """Return the database that a file is.

    Raises:
        InvalidValue: no database can have this name.
    """
    return sqlite_url.of_file(path)


def is_missing(url: DatabaseUrl) -> bool:
    """Tell whether there is no database at `url` yet: nothing at all, or an empty file."""
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
        readers: How many connections read.
        check: Raises what is wrong with the schema.
        upgrade: Makes the schema of a database in memory.

    Raises:
        StoreCorrupt: it is missing, empty, no metastore, or damaged.
        StoreReadOnly: it cannot be opened for writing.
    """
    if url.in_memory:
        return await template.open_in_memory(
            upgrade, durability=durability, readers=readers, check=check
        )
    return await SqliteBackend.open(url, durability=durability, readers=readers, check=check)


def columns_of(dialect: str) -> Columns:
    """Return how a dialect's databases hold the values of rows."""
    _refuse_unknown(dialect)
    return SqliteBackend.columns


def schema_of(dialect: str) -> Schema:
    """Return how a dialect's schemas are migrated and compared."""
    _refuse_unknown(dialect)
    return _SQLITE_SCHEMA


def _refuse_unknown(dialect: str) -> None:
    if dialect != "sqlite":
        raise InvalidValue(None, f"dialect {dialect!r}", "is none that metastore speaks")


def create_empty(url: DatabaseUrl, upgrade: Upgrade) -> None:
    """Make an empty database at `url`, where there is none yet, with the schema of `upgrade`.

    Copied, which takes a fraction of the time that migrating does.

    Raises:
        FileExistsError: there is one.
        StoreReadOnly: the folder takes no new file.
    """
    template.write(url, upgrade)


def shell_command(url: DatabaseUrl) -> str:
    """Return the command that opens a database in its shell."""
    return template.shell_command(url)


def plant_faults(backend: Backend) -> PlantedFaults:
    """Return what plants faults underneath an open database.

    Raises:
        TypeError: there is nothing for this backend.
    """
    if not isinstance(backend, SqliteBackend):
        raise TypeError(f"faults cannot be planted in a {type(backend).__name__}")
    from metastore.backends.sqlite.planted_faults import SqliteFaults

    return SqliteFaults(backend)
