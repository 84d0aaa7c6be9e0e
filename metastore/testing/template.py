"""Empty databases for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastore import migrations
from metastore.backends import opening

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_template"]


def write_template(path: Path) -> None:
    """Make a migrated, empty database at `path`, where there is no file yet.

    Copied, which takes a fraction of the time that migrating does.

    Raises:
        FileExistsError: there is a file.
        StoreReadOnly: the folder takes no new file.
    """
    opening.create_empty(opening.url_of_file(path), migrations.upgrade)
