"""SQLite's URLs."""

from __future__ import annotations

import os
from pathlib import Path

from metastore.backends.base import DatabaseUrl
from metastore.errors import InvalidValue

__all__ = ["of_file", "parse"]


def parse(text: str) -> DatabaseUrl:
    """Return the database that a URL names which begins with `sqlite://`.

    A relative path and symbolic links are followed here, once: the result names the same file
    wherever the process goes, and whatever becomes of the links.

    Raises:
        InvalidValue: it is of no known form.
    """
    rest = text.removeprefix("sqlite://")
    if not rest:
        return DatabaseUrl(text, "sqlite", in_memory=True)
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


def of_file(path: Path | str) -> DatabaseUrl:
    """Return the database that a file is."""
    return parse(f"sqlite:///{path}")


def _resolved(name: str) -> Path:
    """Return the file itself: SQLite keeps the WAL beside that, not beside a link to it."""
    if os.path.exists(name):  # noqa: PTH110 - Path.exists raises where a name is too long
        return Path(os.path.realpath(name))
    # Of a link that leads nowhere, the link: a new database is not made in its stead.
    folder, name = os.path.split(os.path.abspath(name))  # noqa: PTH100 - the same
    return Path(os.path.realpath(folder), name)
