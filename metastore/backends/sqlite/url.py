"""SQLite URLs."""

from __future__ import annotations

import os
from pathlib import Path

from metastore.backends.base import DatabaseUrl
from metastore.errors import InvalidValue

__all__ = ["of_file", "parse"]


def parse(text: str) -> DatabaseUrl:
    """Parse a URL that begins with `sqlite://`.

    Relative paths and symbolic links are resolved here, once: the result names the same file even
    if the process changes its directory or a link is moved.

    Raises:
        InvalidValue: its form is unknown.
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
    """Return the URL of the database in a file."""
    return parse(f"sqlite:///{path}")


def _resolved(name: str) -> Path:
    """Return the file itself: SQLite keeps the WAL beside it, not beside a link to it."""
    if os.path.exists(name):  # noqa: PTH110 - Path.exists raises where a name is too long
        return Path(os.path.realpath(name))
    # A dangling link is kept as it is: no new database is created behind it.
    folder, name = os.path.split(os.path.abspath(name))  # noqa: PTH100 - the same
    return Path(os.path.realpath(folder), name)
