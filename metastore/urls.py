"""Database URLs: which database a store, a migration or a command works on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from metastore.errors import InvalidValue

__all__ = ["DEFAULT_URL", "ENVIRONMENT_VARIABLE", "DatabaseUrl", "resolve"]

DEFAULT_URL = "sqlite:///.artifacts/data/metadata.db"
ENVIRONMENT_VARIABLE = "METASTORE_DB_URL"


class DatabaseUrl(msgspec.Struct, frozen=True):
    """A database URL, taken apart.

    Attributes:
        text: the URL as it was given.
        dialect: the SQL dialect spoken there; it names the folder under `migrations/`.
        path: the database file, absolute and without symbolic links; None in memory.
    """

    text: str
    dialect: Literal["sqlite"]
    path: Path | None

    def __str__(self) -> str:
        return self.text


def resolve(url: str | None) -> DatabaseUrl:
    """Return the database that `url` names.

    None means the environment variable `METASTORE_DB_URL`, and that unset the default,
    `sqlite:///.artifacts/data/metadata.db`. `sqlite:///rel.db` is relative to the working
    directory, `sqlite:////abs.db` absolute, `sqlite://` in memory. What follows the slashes is
    taken literally: `#`, `?` and `%` are characters of the file's name.

    A relative path and symbolic links are followed here, once: the result names the same file
    wherever the process goes, and whatever becomes of the links.

    Raises:
        InvalidValue: the URL is of no form that metastore knows.
    """
    if url is not None and not isinstance(url, str):
        raise InvalidValue(None, "url", "must begin with sqlite://", value_type=type(url).__name__)
    text = url if url is not None else os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_URL
    scheme, separator, rest = text.partition("://")
    if not separator or scheme != "sqlite":
        raise InvalidValue(None, "url", "must begin with sqlite://", value_type="str")
    if not rest:
        return DatabaseUrl(text, "sqlite", None)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidValue(None, "url", "must not hold lone surrogates", value_type="str") from None
    if not rest.startswith("/") or rest == "/" or "\0" in rest:
        raise InvalidValue(
            None, "url", "must be sqlite:///relative.db or sqlite:////absolute.db", value_type="str"
        )
    try:
        path = _resolved(rest[1:])
    except OSError as error:
        reason = f"is relative to a working directory that is gone: {error.strerror}"
        raise InvalidValue(None, "url", reason, value_type="str") from None
    return DatabaseUrl(text, "sqlite", path)


def _resolved(name: str) -> Path:
    """Return the file itself: SQLite keeps the WAL beside that, not beside a link to it."""
    if os.path.exists(name):  # noqa: PTH110 - Path.exists raises where a name is too long
        return Path(os.path.realpath(name))
    # Of a link that leads nowhere, the link: a new database is not made in its stead.
    folder, name = os.path.split(os.path.abspath(name))  # noqa: PTH100 - the same
    return Path(os.path.realpath(folder), name)
