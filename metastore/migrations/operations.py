"""Migrations: the layer over yoyo that brings a database from one revision to another.

yoyo's file format and bookkeeping tables, and a stricter way of applying: a migration is applied,
checked, recorded with a checksum and committed in one transaction, or not at all. Migrators on
the same database wait for each other at `BEGIN IMMEDIATE`, a lock that dies with its process,
and look again inside the transaction whether their migration is still to be done.

`yoyo apply` runs the same code, through the backend that yoyo finds under the scheme
`metastore://`.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from yoyo import default_migration_table

from metastore import resources, urls
from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.schema_comparison import (
    Difference,
    SchemaObject,
    compare,
    from_rows,
    objects,
)
from metastore.backends.sqlite.schema_comparison import fingerprint as fingerprint_of
from metastore.errors import (
    InvalidValue,
    MetastoreError,
    MigrationFailed,
    SchemaOutdated,
    SchemaTooNew,
    StoreCorrupt,
    StoreReadOnly,
)
from metastore.migrations.bookkeeping import (
    APPLIED_SQL,
    BOOKKEEPING_TABLES,
    HistoryEntry,
    MigrationStatus,
    SchemaBackend,
    files_of,
    has_table,
    refuse_later,
    refuse_untrusted,
    statuses,
    typed_errors,
)
from metastore.migrations.files import Migration, find, head, ids, known, new

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from metastore.urls import DatabaseUrl

__all__ = [
    "APPLIED_SQL",
    "BOOKKEEPING_TABLES",
    "Difference",
    "HistoryEntry",
    "MetastoreBackend",
    "Migration",
    "MigrationStatus",
    "adopt",
    "check",
    "check_revision",
    "differences",
    "downgrade",
    "fingerprint",
    "fingerprints",
    "head",
    "history",
    "known",
    "new",
    "plan",
    "rollbacks",
    "status",
    "upgrade",
    "verify",
]


class MetastoreBackend(SchemaBackend):
    """What yoyo's own commands get for `metastore://`.

    `metastore://` is the database that `METASTORE_DB_URL` names, or the default one;
    `metastore:///relative.db` and `metastore:////absolute.db` name a file. Errors reach yoyo as
    its `InvalidArgument`, which it prints in one line.
    """

    def __init__(self, dburi: Any, migration_table: str) -> None:
        with _reported_by_yoyo():
            if migration_table != default_migration_table:
                raise InvalidValue(None, "migration table", f"must be {default_migration_table}")
            self.url = _url_from_yoyo(dburi)
            super().__init__(_connect_to_write(self.url, create=True))
        self.uri = dburi

    def init_database(self) -> None:
        """Create the bookkeeping tables where they are missing."""
        with _reported_by_yoyo(self.url):
            self.ensure_internal_schema_updated()

    def to_apply(self, migrations: Any) -> Any:
        """Return the migrations that are not applied, unless the applied ones are not to trust."""
        with _reported_by_yoyo(self.url), self.snapshot():
            for directory in {files_of(migration).path.parent for migration in migrations}:
                _pending(str(self.url), self, known(directory=directory))
        return super().to_apply(migrations)

    def apply_migrations(self, migrations: Any, force: bool = False) -> None:
        """Apply each of the migrations."""
        with _reported_by_yoyo(self.url):
            super().apply_migrations(migrations, force)

    def rollback_migrations(self, migrations: Any, force: bool = False) -> None:
        """Roll each of the migrations back."""
        with _reported_by_yoyo(self.url):
            super().rollback_migrations(migrations, force)

    def mark_migrations(self, migrations: Any) -> None:
        """Record each of the migrations as applied, without applying it."""
        with _reported_by_yoyo(self.url):
            super().mark_migrations(migrations)

    def unmark_migrations(self, migrations: Any) -> None:
        """Forget that the migrations were applied, without undoing them."""
        with _reported_by_yoyo(self.url):
            super().unmark_migrations(migrations)


def upgrade(
    url: DatabaseUrl, revision: str | None = None, *, directory: Path | None = None
) -> list[str]:
    """Apply what is pending, up to `revision`, and create the database if there is none.

    Each migration is a transaction of its own: after a failure the ones before it stay applied,
    of the failed one nothing does, and the next upgrade goes on there.

    Args:
        url: the database, a file.
        revision: the last migration to apply: its id, its number, or an unambiguous beginning of
            its id; None or `head` for all.
        directory: the folder of the migrations, where it is not metastore's own.

    Returns:
        The ids of the migrations that were applied.

    Raises:
        MigrationFailed: a migration failed, or those applied before are not to be trusted:
            edited since, missing, out of order, or applied by other means.
        SchemaTooNew: the database has migrations that the code does not know.
        InvalidValue: `revision` names no migration, or the URL no file.
        StoreBusy: another process kept the database locked.
        StoreCorrupt: the file is damaged, or belongs to another program.
        StoreReadOnly: the file or its folder takes no writes.
        StoreFull: there is no space left.
    """
    migrations = known(url.dialect, directory)
    last = find(revision or "head", [migration.id for migration in migrations])
    connection = _connect_to_write(url, create=True, directory=directory)
    with typed_errors(_file(url)), SchemaBackend(connection) as backend:
        backend.ensure_internal_schema_updated()
        with backend.snapshot():
            pending = _pending(str(url), backend, migrations)
        return [it.id for it in pending if it.id <= last and backend.apply_one(it)]


def downgrade(url: DatabaseUrl, revision: str, *, directory: Path | None = None) -> list[str]:
    """Roll back, newest first, what was applied after `revision`.

    Args:
        url: the database, a file.
        revision: the migration to go back to, which stays applied; `-N` for the last N; `base`
            for all.
        directory: the folder of the migrations, where it is not metastore's own.

    Returns:
        The ids of the migrations that were rolled back.

    Raises:
        MigrationFailed: a rollback failed, or a migration was edited after it was applied, is
            missing, or was applied by other means.
        SchemaOutdated: there is no metastore at `url`.
        SchemaTooNew: the database has migrations that the code does not know.
        InvalidValue: `revision` names no applied migration, or the URL no file.
        StoreBusy, StoreCorrupt, StoreReadOnly, StoreFull: as for `upgrade`.
    """
    migrations = known(url.dialect, directory)
    connection = _connect_to_write(url, create=False, directory=directory)
    with typed_errors(_file(url)), SchemaBackend(connection) as backend:
        backend.ensure_internal_schema_updated()
        with backend.snapshot():
            applied = _to_roll_back(str(url), backend, migrations, revision)
        return [it.id for it in applied if backend.rollback_one(it)]


def rollbacks(url: DatabaseUrl, revision: str, *, directory: Path | None = None) -> list[Migration]:
    """Return what `downgrade` would roll back, newest first. Changes nothing.

    Raises:
        MigrationFailed, SchemaOutdated, SchemaTooNew, InvalidValue: as `downgrade` would.
    """
    migrations = known(url.dialect, directory)
    with _reading(url, directory) as backend:
        if backend is None:
            raise SchemaOutdated(str(url), None, migrations[-1].id)
        return _to_roll_back(str(url), backend, migrations, revision)


def plan(url: DatabaseUrl, revision: str | None = None, *, directory: Path | None = None) -> str:
    """Return the SQL that `upgrade` would run. Changes nothing, and creates nothing.

    Raises:
        MigrationFailed, SchemaTooNew, InvalidValue, StoreCorrupt: as `upgrade` would.
    """
    migrations = known(url.dialect, directory)
    last = find(revision or "head", [migration.id for migration in migrations])
    with _reading(url, directory) as backend:
        pending = _pending(str(url), backend, migrations) if backend else migrations
    return "\n".join(
        f"BEGIN IMMEDIATE;\n\n{migration.sql.strip()}\n\n"
        f"-- PRAGMA foreign_key_check must return no row; {migration.id} is recorded.\nCOMMIT;\n"
        for migration in pending
        if migration.id <= last
    )


def status(url: DatabaseUrl, *, directory: Path | None = None) -> list[MigrationStatus]:
    """Return the state of every migration that the code or the database knows, oldest first.

    Raises:
        MigrationFailed: the migration files are not in order.
        InvalidValue: the URL names no file.
        StoreCorrupt: the file is damaged, or belongs to another program.
    """
    migrations = known(url.dialect, directory)
    with _reading(url, directory) as backend:
        return backend.status(migrations) if backend else statuses(migrations, {}, {})


def history(url: DatabaseUrl, *, directory: Path | None = None) -> list[HistoryEntry]:
    """Return what was applied and rolled back, oldest first; nothing where there is no database.

    Raises:
        InvalidValue: the URL names no file.
        StoreCorrupt: the file is damaged, or belongs to another program.
    """
    with _reading(url, directory) as backend:
        return backend.history() if backend else []


def verify(url: DatabaseUrl, *, directory: Path | None = None) -> list[Difference]:
    """Compare the live schema with the one that its applied migrations make, object by object.

    Migrations that are edited, missing, unknown or unverified are differences too. Where one
    is missing or unknown nobody can say what the schema should be, and the differences name
    only migrations. Changes nothing.

    Raises:
        MigrationFailed: the migration files are not in order, or do not run any more.
        SchemaOutdated: there is no metastore at `url`.
        InvalidValue: the URL names no file.
        StoreCorrupt: the file is damaged, or belongs to another program.
    """
    migrations = known(url.dialect, directory)
    with _reading(url, directory) as backend:
        if backend is None:
            raise SchemaOutdated(str(url), None, migrations[-1].id)
        return _verify(backend, migrations)


def adopt(url: DatabaseUrl, *, directory: Path | None = None) -> list[str]:
    """Record the checksums of edited and unverified migrations, if the schema is theirs.

    This is how a database that yoyo's own backend has migrated becomes metastore's, and how an
    edit that changes nothing, of a comment say, is accepted. Rows are not compared: whether a
    migration that writes rows has written these is for its author to judge.

    Returns:
        The ids of the migrations whose checksums were recorded.

    Raises:
        MigrationFailed: the schema is not the one that the migrations make.
        SchemaOutdated, InvalidValue, StoreBusy, StoreCorrupt, StoreReadOnly, StoreFull: as for
            `downgrade`.
    """
    migrations = {migration.id: migration for migration in known(url.dialect, directory)}
    # Once before anything is touched, and once more under the lock.
    _refuse_to_adopt(verify(url, directory=directory))
    connection = _connect_to_write(url, create=False, adopt=True, directory=directory)
    with typed_errors(_file(url)), SchemaBackend(connection) as backend:
        backend.ensure_internal_schema_updated()
        with backend.transaction():
            differences = _verify(backend, list(migrations.values()))
            _refuse_to_adopt(differences)
            for difference in differences:
                backend.record(migrations[difference.name])
    return [difference.name for difference in differences]


def check(url: DatabaseUrl, connection: sqlite3.Connection) -> None:
    """Refuse a database whose schema is not the code's.

    Raises:
        SchemaOutdated: a migration is not applied.
        SchemaTooNew: the database has a migration that the code does not know.
        StoreCorrupt: a view has taken the place of a table. It may have no end.
    """
    for (view,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'view'"):
        if view in _tables():
            raise StoreCorrupt("is a view where a table belongs", path=_file(url), table=view)
    applied: list[str] = []
    if has_table(connection, "_yoyo_migration"):
        applied = [id_ for (id_,) in connection.execute(APPLIED_SQL).fetchall()]
    check_revision(str(url), applied, ids(url.dialect))


@cache
def _tables() -> frozenset[str]:
    """Return the names of the tables that statements are about."""
    return frozenset(it.name.partition(".")[0] for it in resources.statements_directory().iterdir())


def check_revision(url_text: str, applied: Sequence[str], known_ids: Sequence[str]) -> None:
    """Compare the migrations that a database has, read with `APPLIED_SQL`, with the code's.

    Raises:
        SchemaOutdated: one of the code's is not applied.
        SchemaTooNew: one is applied that the code does not know.
    """
    unknown = sorted(set(applied) - set(known_ids))
    if unknown:
        raise SchemaTooNew(url_text, unknown[-1], known_ids[-1])
    if set(known_ids) - set(applied):
        raise SchemaOutdated(url_text, max(applied, default=None), known_ids[-1])


def differences(rows: Sequence[Sequence[str]]) -> list[Difference]:
    """Compare a schema with the one that the code's migrations make.

    Args:
        rows: type, name, table and text of each object of the schema.
    """
    return compare(from_rows(rows, BOOKKEEPING_TABLES), _schemas()[-1])


def fingerprint(rows: Sequence[Sequence[str]]) -> str:
    """Return a hash over a schema, given as for `differences`; comments and spaces do not count."""
    return fingerprint_of(from_rows(rows, BOOKKEEPING_TABLES))


@cache
def fingerprints() -> frozenset[str]:
    """Return the hashes of all schemas that the migrations make, from the first to the last."""
    return frozenset(map(fingerprint_of, _schemas()))


@cache
def _schemas() -> list[dict[tuple[str, str], SchemaObject]]:
    """Return the schema after each migration."""
    found = []
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        made = SchemaBackend(connection)
        for migration in known():
            made.run(migration, migration.path, migration.statements)
            found.append(objects(connection, BOOKKEEPING_TABLES))
    return found


def _pending(
    url_text: str, backend: SchemaBackend, migrations: Sequence[Migration]
) -> list[Migration]:
    """Return what is to be applied, after a look at whether what was applied is as it was."""
    files = {migration.id: migration for migration in migrations}
    rows = backend.status(migrations)
    for row in rows:
        if row.state == "unknown":
            raise SchemaTooNew(url_text, rows[-1].id, migrations[-1].id)
        refuse_untrusted(row, files.get(row.id))
    pending = [files[row.id] for row in rows if row.state == "pending"]
    if pending:
        applied = [row.id for row in rows if row.state != "pending"]
        refuse_later(pending[0], applied, "is not applied, but {} after it is: out of order")
    return pending


def _to_roll_back(
    url_text: str, backend: SchemaBackend, migrations: Sequence[Migration], revision: str
) -> list[Migration]:
    files = {migration.id: migration for migration in migrations}
    rows = [row for row in backend.status(migrations) if row.state != "pending"]
    rows = rows[_rows_to_keep(revision, [row.id for row in rows], list(files)) :]
    for row in rows:
        if row.state == "unknown":
            raise SchemaTooNew(url_text, rows[-1].id, migrations[-1].id)
        refuse_untrusted(row, files.get(row.id))
    return [files[row.id] for row in reversed(rows)]


def _rows_to_keep(revision: str, applied: list[str], known_ids: list[str]) -> int:
    """Return how many of the applied migrations a downgrade to `revision` leaves."""
    if revision == "base":
        return 0
    if re.fullmatch(r"-\d+", revision):
        if -int(revision) > len(applied):
            raise InvalidValue(
                None, f"revision {revision!r}", f"goes below base: {len(applied)} are applied"
            )
        return len(applied) + int(revision)
    id_ = find(revision, sorted({*known_ids, *applied}))
    if id_ not in applied:
        raise InvalidValue(None, f"revision {revision!r}", f"names {id_}, which is not applied")
    return applied.index(id_) + 1


def _verify(backend: SchemaBackend, migrations: Sequence[Migration]) -> list[Difference]:
    rows = [row for row in backend.status(migrations) if row.state != "pending"]
    distrusted = [
        Difference(row.state, "migration", row.id)
        for row in rows
        if row.state != "applied" and row.state != "pending"
    ]
    if any(difference.kind in ("missing", "unknown") for difference in distrusted):
        return distrusted
    applied = {row.id for row in rows}
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        made = SchemaBackend(connection)
        for migration in migrations:
            if migration.id in applied:
                made.run(migration, migration.path, migration.statements)
        expected = objects(connection, BOOKKEEPING_TABLES)
    live = objects(backend.connection, BOOKKEEPING_TABLES)
    return distrusted + compare(live, expected)


def _refuse_to_adopt(differences: Iterable[Difference]) -> None:
    for difference in differences:
        if difference.kind not in ("edited", "unverified"):
            raise MigrationFailed("adopt", f"not while {difference}")


def _url_from_yoyo(dburi: Any) -> DatabaseUrl:
    # yoyo has taken the URL apart by rules of its own, and cannot give back what it was.
    if dburi.hostname or dburi.args:
        raise InvalidValue(
            None,
            "url",
            "must be metastore://, metastore:///relative.db or metastore:////absolute.db; "
            f"{urls.ENVIRONMENT_VARIABLE} takes a file of any name",
        )
    return urls.resolve(f"sqlite:///{dburi.database}" if dburi.database else None)


def _file(url: DatabaseUrl) -> Path:
    if url.path is None:
        raise InvalidValue(
            None, "url", "names a database in memory, which is migrated when it is opened"
        )
    return url.path


def _connect_to_write(
    url: DatabaseUrl, *, create: bool, adopt: bool = False, directory: Path | None = None
) -> sqlite3.Connection:
    """Connect to a metastore; `create` one where there is none, or `adopt` one of yoyo's."""
    path = _file(url)
    if create:
        database_file.create(path)
    elif not database_file.exists(path):
        raise SchemaOutdated(str(url), None, head(url.dialect, directory))
    if not path.is_file():
        raise StoreCorrupt("is no file", path=path)
    if adopt or path.stat().st_size == 0:
        _protect(path)
    with typed_errors(path):
        connection = database_file.connect(path)
        try:
            if not _is_metastore(connection, path, ids(url.dialect, directory), adopt=adopt):
                if not (create or adopt):
                    raise SchemaOutdated(str(url), None, head(url.dialect, directory))
                _claim(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _protect(path: Path) -> None:
    try:
        # By name: this process may have the file open through SQLite.
        path.chmod(0o600)
    except OSError as error:
        raise StoreReadOnly(f"cannot protect {path}: {error.strerror}") from error


def _is_metastore(
    connection: sqlite3.Connection, path: Path, known_ids: Iterable[str], *, adopt: bool
) -> bool:
    """Tell whether the file is a metastore; with `adopt`, one that yoyo migrated is none yet.

    Raises:
        StoreCorrupt: it belongs to another program, or, without `adopt`, to yoyo alone.
    """
    # One snapshot: another migrator may be making this database a metastore.
    connection.execute("BEGIN")
    try:
        return database_file.is_metastore(connection)
    except StoreCorrupt:
        if not has_table(connection, "_yoyo_migration"):
            raise
        applied = {id_ for (id_,) in connection.execute(APPLIED_SQL).fetchall()}
        if applied.isdisjoint(known_ids):
            raise
        if adopt:
            return False
        raise StoreCorrupt(
            "was migrated by yoyo's own backend; metastore migrate verify --adopt compares the "
            "schema and makes it a metastore",
            path=path,
        ) from None
    finally:
        connection.rollback()


def _claim(connection: sqlite3.Connection) -> None:
    """Make an empty database metastore's.

    The switch to WAL does not wait for another connection's lock as statements do.
    """
    deadline = time.monotonic() + database_file.BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            database_file.mark(connection)
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@contextlib.contextmanager
def _reading(url: DatabaseUrl, directory: Path | None) -> Iterator[SchemaBackend | None]:
    """Connect to a database to look at one state of it; None where there is no metastore yet."""
    path = _file(url)
    if not database_file.exists(path):
        yield None
        return
    if not path.is_file():
        raise StoreCorrupt("is no file", path=path)
    with (
        typed_errors(path),
        contextlib.closing(database_file.connect(path, read_only=True)) as found,
    ):
        # A database that yoyo migrated alone is read, so that it can be compared and adopted.
        ours = _is_metastore(found, path, ids(url.dialect, directory), adopt=True)
        if not ours and not has_table(found, "_yoyo_migration"):
            yield None
            return
        backend = SchemaBackend(found)
        with backend.snapshot():
            yield backend


@contextlib.contextmanager
def _reported_by_yoyo(url: DatabaseUrl | None = None) -> Iterator[None]:
    try:
        with typed_errors(_file(url)) if url else contextlib.nullcontext():
            yield
    except (MetastoreError, OSError) as error:
        # yoyo prints this one in a line of its own, and leaves every other to a traceback.
        from yoyo.scripts.main import InvalidArgument

        raise InvalidArgument(str(error)) from error
