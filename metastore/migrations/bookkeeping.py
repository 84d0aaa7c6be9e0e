"""yoyo's bookkeeping, hardened: one transaction for each migration.

The tables are yoyo's, so that its tools can read them, plus one of ours for the checksums.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uuid_utils
from yoyo import default_migration_table, internalmigrations
from yoyo.backends.base import DatabaseBackend

from metastore import resources
from metastore.backends.base import StatementFailed
from metastore.errors import MetastoreError, MigrationFailed
from metastore.migrations.files import Migration, read
from metastore.migrations.status import (
    BOOKKEEPING_TABLES,
    HistoryEntry,
    Recorded,
    refuse_later,
    refuse_untrusted,
    statuses,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from metastore.backends.base import Rows, Schema, SchemaConnection, SqlStatement
    from metastore.migrations.status import MigrationStatus

__all__ = ["Bookkeeping"]

_APPLIED_AT_SQL = "SELECT migration_id, applied_at_utc FROM _yoyo_migration ORDER BY migration_id"
_CHECKSUMS_SQL = "SELECT migration_id, checksum, rollback_checksum FROM _metastore_checksum"
_RECORD_SQL = "INSERT INTO _metastore_checksum VALUES (:id, :up, :rollback, :when)"
_FORGET_SQL = "DELETE FROM _metastore_checksum WHERE migration_id = :id"
_HISTORY_SQL = (
    "SELECT migration_id, operation, created_at_utc, username, hostname FROM _yoyo_log "
    "ORDER BY created_at_utc, id"
)

_log = logging.getLogger(__name__)


class Bookkeeping(DatabaseBackend):  # type: ignore[misc]  # yoyo ships no types
    """yoyo's bookkeeping on our own connection, one transaction for each migration."""

    _internal_schema_updated: bool = False

    def __init__(self, schema: Schema, dialect: str, connection: SchemaConnection) -> None:
        # yoyo's constructor would open a connection itself.
        self.DatabaseError = MetastoreError
        self.migration_table = default_migration_table
        self.has_transactional_ddl = True
        self.schema = schema
        self._dialect = dialect
        self._connection = connection

    @property
    def connection(self) -> SchemaConnection:
        """The connection on which everything runs."""
        return self._connection

    # Shared by `metastore migrate` and yoyo's own commands.

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> bool:
        """Apply one migration and record it, in one transaction.

        Returns:
            Whether it was applied here; another migrator may have been faster.

        Raises:
            MigrationFailed: a statement failed, a row lost the row it refers to, or the migration
                is out of order. The database is unchanged.
            StoreBusy: another process kept the database locked.
        """
        del mark  # yoyo passes False for post-apply scripts only, which are refused when read
        files = self.files_of(migration)
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
            self._check_references(files, files.path)
            self.mark_one(files, log=False)
            self.log_migration(files, "apply")
        return True

    def rollback_one(self, migration: Any, force: bool = False) -> bool:
        """Roll back one migration and delete its record, in one transaction.

        Returns:
            Whether it was rolled back here; another migrator may have been faster.

        Raises:
            MigrationFailed: as for `apply_one`, or the migration was edited after it was
                applied. The database is unchanged.
            StoreBusy: another process kept the database locked.
        """
        files = self.files_of(migration)
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
            self._check_references(files, files.rollback_path)
            self.unmark_one(files, log=False)
            self.log_migration(files, "rollback")
        return True

    def mark_one(self, migration: Any, log: bool = True) -> None:
        """Record a migration as applied, with the checksums of its files."""
        super().mark_one(migration, log)
        self.record(self.files_of(migration))

    def unmark_one(self, migration: Any, log: bool = True) -> None:
        """Delete the record of an applied migration, and its checksums."""
        super().unmark_one(migration, log)
        self.execute(_FORGET_SQL, {"id": migration.id})

    def record(self, files: Migration) -> None:
        """Record the checksums of an applied migration's files."""
        self.execute(_FORGET_SQL, {"id": files.id})
        checksums = {"up": files.checksum, "rollback": files.rollback_checksum}
        now = f"{_format_time(datetime.now(UTC))}Z"
        self.execute(_RECORD_SQL, {"id": files.id, **checksums, "when": now})

    def run(self, files: Migration, path: Path, statements: Iterable[SqlStatement]) -> None:
        """Execute the statements of one file.

        Raises:
            MigrationFailed: one of them failed; carries its line and text.
            StoreBusy, StoreFull, StoreReadOnly, StoreCorrupt: the statement did not cause it.
        """
        for statement in statements:
            try:
                self.connection.run(statement.sql)
            except StatementFailed as failed:
                begins = statement.sql.partition("\n")[0]
                raise MigrationFailed(
                    files.id,
                    f"{failed}, in: {begins}",
                    path=path,
                    line=statement.line,
                    statement=statement.sql,
                ) from failed.__cause__

    def _check_references(self, files: Migration, path: Path) -> None:
        try:
            orphans = self.connection.orphans()
        except StatementFailed as failed:
            raise MigrationFailed(files.id, str(failed), path=path) from failed.__cause__
        if orphans:
            what = "; ".join(
                f"{count} of {child} without their row of {parent}"
                for (child, parent), count in orphans.items()
            )
            raise MigrationFailed(files.id, f"leaves rows behind: {what}", path=path)

    def applied(self) -> dict[str, datetime]:
        """Return the applied migrations, oldest first, and when each was applied."""
        if "_yoyo_migration" not in self.list_tables():
            return {}
        rows = self.execute(_APPLIED_AT_SQL).fetchall()
        return {id_: _parse_time(at) for id_, at in rows}

    def checksums(self) -> dict[str, Recorded]:
        """Return the recorded checksums of the applied migrations."""
        if "_metastore_checksum" not in self.list_tables():
            return {}
        rows = self.execute(_CHECKSUMS_SQL).fetchall()
        return {id_: Recorded(*checksums) for id_, *checksums in rows}

    def status(self, migrations: Sequence[Migration]) -> list[MigrationStatus]:
        """Return the state of every migration that the code or the database knows."""
        return statuses(migrations, self.applied(), self.checksums())

    def history(self) -> list[HistoryEntry]:
        """Return the log, oldest entry first."""
        if "_yoyo_log" not in self.list_tables():
            return []
        rows = self.execute(_HISTORY_SQL).fetchall()
        return [HistoryEntry(id_, what, _parse_time(at), *who) for id_, what, at, *who in rows]

    # Methods that yoyo's base class leaves abstract, or that must be replaced.

    def begin(self) -> None:
        """Begin a transaction, which excludes every other migrator until it ends."""
        self.connection.begin()
        self._in_transaction = True

    def commit(self) -> None:
        """Commit, or leave the database unchanged."""
        try:
            self.connection.commit()
        except BaseException:
            self.rollback()
            raise
        self._in_transaction = False

    def rollback(self) -> None:
        """Roll back the transaction; harmless if an error has already ended it."""
        self._in_transaction = False
        self.connection.rollback()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state of the database, whatever other migrators do in the meantime."""
        self.connection.begin_snapshot()
        try:
            yield
        finally:
            self.connection.rollback()

    @contextlib.contextmanager
    def lock(self, timeout: float = 10) -> Iterator[None]:
        """Do nothing: each transaction takes a lock, which cannot outlive the process."""
        del timeout
        yield

    def list_tables(self, **_: Any) -> list[str]:
        """Return the names of all tables."""
        return self.connection.tables()

    def execute(self, sql: str, params: Mapping[str, Any] | None = None) -> Rows:
        """Run a bookkeeping statement. Times become text in the format of yoyo's adapter."""
        texts = {
            name: _format_time(value) if isinstance(value, datetime) else value
            for name, value in (params or {}).items()
        }
        return self.connection.execute(sql, texts)

    def ensure_internal_schema_updated(self) -> None:
        """Create the missing tables of yoyo and ours, all in one transaction."""
        if self._internal_schema_updated:
            return
        if not self._has_bookkeeping():
            with self.transaction():
                if internalmigrations.needs_upgrading(self):
                    internalmigrations.upgrade(self)
                if self.lock_table not in self.list_tables():
                    self.execute(self.format_sql(self.create_lock_table_sql))
                directory = resources.migrations_directory(self._dialect) / "bookkeeping"
                self.execute((directory / "checksums.sql").read_text(encoding="utf-8"))
        self._internal_schema_updated = True

    def _has_bookkeeping(self) -> bool:
        return BOOKKEEPING_TABLES.issubset(
            self.list_tables()
        ) and not internalmigrations.needs_upgrading(self)

    def files_of(self, migration: Any) -> Migration:
        """Return the migration for a yoyo object, read by our rules."""
        if isinstance(migration, Migration):
            return migration
        return read(self.schema, Path(migration.path))

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """Return a row for yoyo's log.

        yoyo resolves the host's full name over DNS, which may take longer than a transaction
        should, and fails for a user id without a name, as in containers.
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


def _refuse_force(files: Migration, force: bool) -> None:
    if force:
        raise MigrationFailed(
            files.id, "--force would continue after an error and leave a migration half applied"
        )


def _format_time(value: datetime) -> str:
    return value.replace(tzinfo=None).isoformat(timespec="milliseconds")


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
