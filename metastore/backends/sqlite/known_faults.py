"""Known bugs of SQLite that matter here, by release."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from metastore.backends.base import KnownFault

__all__ = ["known_faults"]

Release = tuple[int, int, int]


class _Range(NamedTuple):
    """The releases with a bug: from `first` up to, but excluding, the release that fixed it.

    Fixes are backported: of several `fixed` releases, the one of the running minor version decides,
    or else the newest.
    """

    first: Release
    fixed: tuple[Release, ...]

    def has(self, release: Release) -> bool:
        on_its_line = [fixed for fixed in self.fixed if fixed[:2] == release[:2]]
        return self.first <= release < (on_its_line or [max(self.fixed)])[0]


_WAL_RESET = KnownFault(
    name="WAL-reset fault",
    versions="3.7.0 to 3.51.2, except 3.44.6 and later of 3.44, 3.50.7 and later of 3.50",
    effect="a checkpoint that coincides with another connection's write may skip pages and "
    "damage the database; this is rare",
    handling="metastore checkpoints only while it holds the write lock, so this cannot happen "
    "among its own processes. Do not write to the database, or checkpoint it, with other "
    "programs while it is in use, or install SQLite 3.51.3 or later",
    source="https://sqlite.org/wal.html#walresetbug",
)
_WAL_RESET_RELEASES = _Range((3, 7, 0), ((3, 44, 6), (3, 50, 7), (3, 51, 3)))

_UNSAFE_JSON = KnownFault(
    name="JSON functions deemed unsafe",
    versions="seen in 3.39.2 and 3.40.1, not in 3.49.1",
    effect="with trusted_schema off, a CHECK that calls json_valid refuses every write",
    handling="metastore leaves trusted_schema on for this release. Do not open databases from "
    "untrusted sources",
    source="probed whenever metastore starts; https://sqlite.org/pragma.html#pragma_trusted_schema "
    "describes the setting",
)


def known_faults(
    *, trusts_schema: bool, release: Release = sqlite3.sqlite_version_info
) -> list[KnownFault]:
    """Return the bugs of a release of SQLite that matter to metastore.

    Args:
        trusts_schema: Whether connections must trust the schema, see `database_file.connect`.
        release: The release; the running one by default.
    """
    faults = []
    if _WAL_RESET_RELEASES.has(release):
        faults.append(_WAL_RESET)
    if trusts_schema:
        faults.append(_UNSAFE_JSON)
    return faults
