"""The state of each migration in a database, and which states are not to be trusted."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from metastore.errors import MigrationFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from metastore.migrations.files import Migration

__all__ = [
    "BOOKKEEPING_TABLES",
    "HistoryEntry",
    "MigrationStatus",
    "Recorded",
    "refuse_later",
    "refuse_untrusted",
    "statuses",
]

BOOKKEEPING_TABLES = frozenset(
    ("_yoyo_migration", "_yoyo_log", "_yoyo_version", "yoyo_lock", "_metastore_checksum")
)
"""The tables of yoyo and of this layer, which are not part of the migrated schema."""


class MigrationStatus(msgspec.Struct, frozen=True):
    """The state of one migration in one database.

    Attributes:
        id: the migration.
        state: `applied`; `pending`; `edited`: the file changed since it was applied; `missing`:
            applied, but its file is gone; `unknown`: applied, and newer than the code;
            `unverified`: applied by other means than this layer, so no checksum of the file is
            recorded.
        applied_at: when it was applied; None while it is pending.
        rollback_edited: whether the rollback file changed since. This is only reported: it must be
            possible to repair a faulty rollback.
    """

    id: str
    state: Literal["applied", "pending", "edited", "missing", "unknown", "unverified"]
    applied_at: datetime | None = None
    rollback_edited: bool = False


class HistoryEntry(msgspec.Struct, frozen=True):
    """One line of a database's migration log.

    Attributes:
        migration_id: the migration.
        operation: `apply`, `rollback`, `mark` or `unmark`, the last two without running it.
        at: when it was committed.
        username: who ran it.
        hostname: the host it ran on.
    """

    migration_id: str
    operation: str
    at: datetime
    username: str
    hostname: str


class Recorded(NamedTuple):
    """The checksums of a migration's files as they were when it was applied."""

    checksum: str
    rollback_checksum: str


def statuses(
    migrations: Sequence[Migration],
    applied: Mapping[str, datetime],
    recorded: Mapping[str, Recorded],
) -> list[MigrationStatus]:
    """Return the state of every migration that the code or the database knows, oldest first."""
    files = {migration.id: migration for migration in migrations}
    newest = migrations[-1].id
    return [
        _status(id_, files.get(id_), applied.get(id_), recorded.get(id_), newest)
        for id_ in sorted(files.keys() | applied.keys())
    ]


def _status(
    id_: str, files: Migration | None, at: datetime | None, recorded: Recorded | None, newest: str
) -> MigrationStatus:
    if files is None:
        return MigrationStatus(id_, "unknown" if id_ > newest else "missing", at)
    if at is None:
        return MigrationStatus(id_, "pending")
    if recorded is None:
        return MigrationStatus(id_, "unverified", at)
    same = recorded.checksum == files.checksum
    rollback_edited = recorded.rollback_checksum != files.rollback_checksum
    return MigrationStatus(id_, "applied" if same else "edited", at, rollback_edited)


_DISTRUST = {
    "edited": "was edited after it was applied: restore the file, and put the change into a "
    "new migration",
    "missing": "was applied, but its file is gone: restore it",
    "unverified": "was not applied by metastore, so no checksum of its file is recorded: "
    "`metastore migrate verify --adopt` compares the schema and records it",
}


def refuse_untrusted(row: MigrationStatus, files: Migration | None) -> None:
    """Raise `MigrationFailed` unless the migration is pending, or applied and unchanged."""
    if row.state in _DISTRUST:
        raise MigrationFailed(row.id, _DISTRUST[row.state], path=files.path if files else None)


def refuse_later(files: Migration, applied: Iterable[str], reason: str) -> None:
    """Raise `MigrationFailed` if a later migration than `files` is applied."""
    later = [id_ for id_ in applied if id_ > files.id]
    if later:
        raise MigrationFailed(files.id, reason.format(later[-1]), path=files.path)
