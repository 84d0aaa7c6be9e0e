"""Database URLs: the database that a store, a migration or a command uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from metastore.backends import opening

if TYPE_CHECKING:
    from metastore.backends.base import DatabaseUrl

__all__ = ["ENVIRONMENT_VARIABLE", "resolve"]

ENVIRONMENT_VARIABLE = "METASTORE_DB_URL"


def resolve(url: str | None) -> DatabaseUrl:
    """Parse `url`, in one of the forms that `opening.parse` describes.

    None means the environment variable `METASTORE_DB_URL`, or if that is unset
    `opening.DEFAULT_URL`.

    Raises:
        InvalidValue: the form of the URL is unknown.
    """
    if url is None:
        url = os.environ.get(ENVIRONMENT_VARIABLE) or opening.DEFAULT_URL
    return opening.parse(url)
