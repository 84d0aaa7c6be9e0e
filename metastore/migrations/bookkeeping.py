"""yoyo's bookkeeping on one connection, hardened: one transaction for each migration.

The tables are yoyo's own, in yoyo's shape, so that its tools can read them, and one of ours
beside them, which keeps the checksums.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import socket
import sqlite3
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import msgspec
import uuid_utils
from yoyo import default_migration_table, internalmigrations
from yoyo.backends.core.sqlite3 import SQLiteBackend

from metastore import resources
from metastore.backends.sqlite.errors import translate
from metastore.errors import InvalidValue, MetastoreError, MigrationFailed, StoreCorrupt
from metastore.migrations.files import Migration, SqlStatement, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = [
    "APPLIED_SQL",
    "BOOKKEEPING_TABLES",
    "HistoryEntry",
    "MigrationStatus",
    "Recorded",
    "SchemaBackend",
    "files_of",
    "has_table",
    "refuse_later",
    "refuse_untrusted",
    "statuses",
    "typed_errors",
]

APPLIED_SQL = "SELECT migration_id FROM _yoyo_migration ORDER BY migration_id"
"""Reads the ids of the migrations that a database has."""

BOOKKEEPING_TABLES = frozenset(
    ("_yoyo_migration", "_yoyo_log", "_yoyo_version", "yoyo_lock", "_metastore_checksum")
)
"""The tables of yoyo and of this layer: no part of the schema that migrations make."""

_APPLIED_AT_SQL = "SELECT migration_id, applied_at_utc FROM _yoyo_migration ORDER BY migration_id"
_CHECKSUMS_SQL = "SELECT migration_id, checksum, rollback_checksum FROM _metastore_checksum"
_RECORD_SQL = "INSERT OR REPLACE INTO _metastore_checksum VALUES (:id, :up, :rollback, :when)"
_FORGET_SQL = "DELETE FROM _metastore_checksum WHERE migration_id = :id"
_HISTORY_SQL = (
    "SELECT migration_id, operation, created_at_utc, username, hostname FROM _yoyo_log "
    "ORDER BY created_at_utc, rowid"
)

_log = logging.getLogger(__name__)


class MigrationStatus(msgspec.Struct, frozen=True):
    """What one database knows of one migration.

    Attributes:
        id: the migration.
        state: `applied`; `pending`; `edited`: the file changed since it was applied; `missing`:
            applied, but its file is gone; `unknown`: applied, and newer than the code;
            `unverified`: applied by other means than this layer, so that nothing is recorded
            of what the file held.
        applied_at: when it was applied; None while it is pending.
        rollback_edited: whether the rollback file changed since. That is reported, no more: a
            faulty rollback must be open to repair.
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
        hostname: where.
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


class SchemaBackend(SQLiteBackend):  # type: ignore[misc]  # yoyo ships no types
    """yoyo's bookkeeping on a connection of ours, one transaction for each migration.

    `connection` is used for nothing but migrations: foreign keys are off on it, as SQLite's
    procedure for rebuilding a table wants it, and are checked before each commit instead.
    """

    _internal_schema_updated: bool = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.DatabaseError = sqlite3.DatabaseError
        self.migration_table = default_migration_table
        self.has_transactional_ddl = True
        self._connection = connection
        connection.execute("PRAGMA foreign_keys = OFF")

    def __enter__(self) -> Self:
        # yoyo's own registers adapters for the whole process; `execute` does without.
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.connection.close()

    # The same for both: `metastore migrate` and yoyo's own commands.

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> bool:
        """Apply one migration and record it, in one transaction.

        Returns:
            Whether it was applied here; another migrator may have been faster.

        Raises:
            MigrationFailed: a statement failed, a row lost the row it refers to, or the
                migration's turn has not come or is over. The database is as it was.
            StoreBusy: another process kept the database locked.
        """
        del mark  # yoyo passes False for post-apply scripts only, which are refused when read
        files = files_of(migration)
        _refuse_force(files, force)
        with self.transaction():
            applied = self.applied()
            if files.id in applied:
                return False
            if files.depends is not None and files.depends not in applied:
                raise MigrationFailed(
                    files.id, f"needs {files.depends}, which is not applied", path=files.path
                )
            refuse_later(files, applied, "is not applied, but {} after it is: out of order")
            _log.info("Applying %s", files.id)
            self.run(files, files.path, files.statements)
            self._check_foreign_keys(files, files.path)
            self.mark_one(files, log=False)
            self.log_migration(files, "apply")
        return True

    def rollback_one(self, migration: Any, force: bool = False) -> bool:
        """Undo one migration and forget it, in one transaction.

        Returns:
            Whether it was rolled back here; another migrator may have been faster.

        Raises:
            MigrationFailed: as for `apply_one`, or the migration was edited after it was
                applied. The database is as it was.
            StoreBusy: another process kept the database locked.
        """
        files = files_of(migration)
        _refuse_force(files, force)
        with self.transaction():
            applied = self.applied()
            if files.id not in applied:
                return False
            refuse_later(files, applied, "cannot be rolled back before {}")
            [row] = statuses([files], {files.id: applied[files.id]}, self.checksums())
            refuse_untrusted(row, files)
            _log.info("Rolling back %s", files.id)
            self.run(files, files.rollback_path, files.rollback_statements)
            self._check_foreign_keys(files, files.rollback_path)
            self.unmark_one(files, log=False)
            self.log_migration(files, "rollback")
        return True

    def mark_one(self, migration: Any, log: bool = True) -> None:
        """Record a migration as applied, with the checksums of its files."""
        super().mark_one(migration, log)
        self.record(files_of(migration))

    def unmark_one(self, migration: Any, log: bool = True) -> None:
        """Forget that a migration was applied, and its checksums."""
        super().unmark_one(migration, log)
        self.execute(_FORGET_SQL, {"id": migration.id})

    def record(self, files: Migration) -> None:
        """Record what the files of an applied migration hold."""
        checksums = {"up": files.checksum, "rollback": files.rollback_checksum}
        now = f"{_format_time(datetime.now(UTC))}Z"
        self.execute(_RECORD_SQL, {"id": files.id, **checksums, "when": now})

    def run(self, files: Migration, path: Path, statements: Iterable[SqlStatement]) -> None:
        """Execute the statements of one file.

        Raises:
            MigrationFailed: one of them failed; carries its line and text.
            StoreBusy, StoreFull, StoreReadOnly, StoreCorrupt: not the statement's fault.
        """
        for statement in statements:
            try:
                self.connection.execute(statement.sql).fetchall()
            except sqlite3.Error as error:
                if store_error := _store_error(error, connection=self.connection):
                    raise store_error from error
                begins = statement.sql.partition("\n")[0]
                raise MigrationFailed(
                    files.id,
                    f"{error}, in: {begins}",
                    path=path,
                    line=statement.line,
                    statement=statement.sql,
                ) from error

    def _check_foreign_keys(self, files: Migration, path: Path) -> None:
        try:
            orphans = self.connection.execute("PRAGMA foreign_key_check").fetchall()
        except sqlite3.Error as error:
            raise MigrationFailed(files.id, str(error), path=path) from error
        if orphans:
            counts = Counter((child, parent) for child, _, parent, _ in orphans)
            what = "; ".join(
                f"{count} of {child} without their row of {parent}"
                for (child, parent), count in counts.items()
            )
            raise MigrationFailed(files.id, f"leaves rows behind: {what}", path=path)

    def applied(self) -> dict[str, datetime]:
        """Return the applied migrations, oldest first, and when each was applied."""
        if not has_table(self.connection, "_yoyo_migration"):
            return {}
        rows = self.connection.execute(_APPLIED_AT_SQL).fetchall()
        return {id_: _parse_time(at) for id_, at in rows}

    def checksums(self) -> dict[str, Recorded]:
        """Return what is recorded of the applied migrations' files."""
        if not has_table(self.connection, "_metastore_checksum"):
            return {}
        rows = self.connection.execute(_CHECKSUMS_SQL).fetchall()
        return {id_: Recorded(*checksums) for id_, *checksums in rows}

    def status(self, migrations: Sequence[Migration]) -> list[MigrationStatus]:
        """Return the state of every migration that the code or the database knows."""
        return statuses(migrations, self.applied(), self.checksums())

    def history(self) -> list[HistoryEntry]:
        """Return the log, oldest entry first."""
        if not has_table(self.connection, "_yoyo_log"):
            return []
        rows = self.connection.execute(_HISTORY_SQL).fetchall()
        return [HistoryEntry(id_, what, _parse_time(at), *who) for id_, what, at, *who in rows]

    # What yoyo's base class leaves to its backends, or does in a way that cannot be kept.

    def begin(self) -> None:
        """Begin a transaction, which excludes every other writer until it ends."""
        self.connection.execute("BEGIN IMMEDIATE")
        self._in_transaction = True

    def commit(self) -> None:
        """Commit, or leave the database as it was."""
        try:
            self.connection.execute("COMMIT")
        except BaseException:
            self.rollback()
            raise
        self._in_transaction = False

    def rollback(self) -> None:
        """Undo the transaction, also one that an error has ended already."""
        self._in_transaction = False
        self.connection.rollback()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state of the database, whatever other migrators do meanwhile."""
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            self.connection.rollback()

    @contextlib.contextmanager
    def lock(self, timeout: float = 10) -> Iterator[None]:
        """Do nothing: each transaction locks, and its lock cannot outlive the process."""
        del timeout
        yield

    def list_tables(self, **_: Any) -> list[str]:
        """Return the names of all tables."""
        return [name for (name,) in self.connection.execute(self.list_tables_sql).fetchall()]

    def execute(self, sql: str, params: Mapping[str, Any] | None = None) -> sqlite3.Cursor:
        """Run one statement of the bookkeeping. Times become text as yoyo's adapter makes it."""
        texts = {
            name: _format_time(value) if isinstance(value, datetime) else value
            for name, value in (params or {}).items()
        }
        cursor: sqlite3.Cursor = super().execute(sql, texts)
        return cursor

    def ensure_internal_schema_updated(self) -> None:
        """Create yoyo's tables and ours where they are missing, all in one transaction."""
        if self._internal_schema_updated:
            return
        if not self._has_bookkeeping():
            with self.transaction():
                if internalmigrations.needs_upgrading(self):
                    internalmigrations.upgrade(self)
                if self.lock_table not in self.list_tables():
                    self.execute(self.format_sql(self.create_lock_table_sql))
                directory = resources.migrations_directory("sqlite") / "bookkeeping"
                self.execute((directory / "checksums.sql").read_text(encoding="utf-8"))
        self._internal_schema_updated = True

    def _has_bookkeeping(self) -> bool:
        return BOOKKEEPING_TABLES.issubset(
            self.list_tables()
        ) and not internalmigrations.needs_upgrading(self)

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """Return a row for yoyo's log.

        yoyo asks the name server for the host's full name, which may take longer than a
        transaction should, and fails for a user id without a name, as containers have it.
        """
        try:
            username = getpass.getuser()
        except (KeyError, OSError):
            username = ""
        return {
            "id": str(uuid_utils.uuid7()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": username,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC),
            "operation": operation,
        }


def files_of(migration: Any) -> Migration:
    """Return the migration behind yoyo's object of that name, read by our rules."""
    if isinstance(migration, Migration):
        return migration
    return read(Path(migration.path))


def statuses(
    migrations: Sequence[Migration],
    applied: Mapping[str, datetime],
    recorded: Mapping[str, Recorded],
) -> list[MigrationStatus]:
    """Return the state of every migration of the code or the database, oldest first."""
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
    "edited": "was edited after it was applied: restore the file, and make the change in a "
    "migration of its own",
    "missing": "was applied, but its file is gone: restore it",
    "unverified": "was not applied by metastore, which knows nothing of what its file held: "
    "metastore migrate verify --adopt compares the schema and records it",
}


def refuse_untrusted(row: MigrationStatus, files: Migration | None) -> None:
    """Raise `MigrationFailed` unless the migration is applied as its file says, or pending."""
    if row.state in _DISTRUST:
        raise MigrationFailed(row.id, _DISTRUST[row.state], path=files.path if files else None)


def refuse_later(files: Migration, applied: Iterable[str], reason: str) -> None:
    """Raise `MigrationFailed` if a later migration than `files` is applied."""
    later = [id_ for id_ in applied if id_ > files.id]
    if later:
        raise MigrationFailed(files.id, reason.format(later[-1]), path=files.path)


def _refuse_force(files: Migration, force: bool) -> None:
    if force:
        raise MigrationFailed(
            files.id, "--force would go on after an error and leave half a migration behind"
        )


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Tell whether the database has a table of this name."""
    [count] = connection.execute(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?", (name,)
    ).fetchone()
    return bool(count)


def _store_error(
    error: Exception,
    *,
    connection: sqlite3.Connection | None = None,
    path: Path | None = None,
) -> MetastoreError | None:
    """Return what the store calls an error that is no fault of a statement; None for others."""
    try:
        translated = translate(error, connection, path=path)
    except sqlite3.Error:
        return None
    return None if isinstance(translated, InvalidValue) else translated


@contextlib.contextmanager
def typed_errors(path: Path) -> Iterator[None]:
    """Turn the driver's errors about the file `path` into metastore's."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        found = _store_error(error, path=path)
        if found is None or isinstance(found, StoreCorrupt):
            found = StoreCorrupt(str(error), path=path)
        raise found from error


def _format_time(value: datetime) -> str:
    return value.replace(tzinfo=None).isoformat(timespec="milliseconds")


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
