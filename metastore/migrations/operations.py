"""Operations on a database's migrations: upgrade, downgrade, plan, verify, adopt.

The file format and the bookkeeping tables are yoyo's, but migrations are applied more strictly:
each is applied, checked, recorded with a checksum and committed in one transaction, or not at all.
Concurrent migrators wait for each other at BEGIN, on a lock that dies with its process, and check
again inside the transaction whether their migration is still pending.
"""

from __future__ import annotations

import contextlib
import re
from functools import cache
from typing import TYPE_CHECKING

from metastore import resources
from metastore.backends import opening
from metastore.backends.base import Difference
from metastore.errors import (
    InvalidValue,
    MigrationFailed,
    SchemaOutdated,
    SchemaTooNew,
    StoreCorrupt,
)
from metastore.migrations import files
from metastore.migrations.files import find
from metastore.migrations.status import (
    BOOKKEEPING_TABLES,
    refuse_later,
    refuse_untrusted,
    statuses,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from metastore.backends.base import (
        DatabaseUrl,
        Objects,
        Schema,
        SchemaCheck,
        SchemaConnection,
        SchemaState,
    )
    from metastore.migrations.bookkeeping import Bookkeeping
    from metastore.migrations.files import Migration
    from metastore.migrations.status import HistoryEntry, MigrationStatus

__all__ = [
    "adopt",
    "check_revision",
    "connect_to_write",
    "differences",
    "downgrade",
    "fingerprint",
    "fingerprints",
    "head",
    "history",
    "known",
    "new",
    "pending",
    "plan",
    "rollbacks",
    "schema_check",
    "status",
    "upgrade",
    "verify",
]


def known(dialect: str, directory: Path | None = None) -> list[Migration]:
    """Read and check all migrations of a dialect, oldest first.

    Raises:
        MigrationFailed: a file is missing, unreadable, out of order, or contains what a
            migration must not.
    """
    return files.known(opening.schema_of(dialect), _directory(dialect, directory))


def head(dialect: str, directory: Path | None = None) -> str:
    """Return the id of a dialect's newest migration.

    Raises:
        MigrationFailed: there is none.
    """
    return files.head(_directory(dialect, directory))


def new(name: str, dialect: str, directory: Path | None = None) -> tuple[Path, Path]:
    """Create a dialect's next migration. See `files.new`."""
    return files.new(opening.schema_of(dialect), name, _directory(dialect, directory))


def _ids(dialect: str, directory: Path | None = None) -> list[str]:
    return files.ids(_directory(dialect, directory))


def _directory(dialect: str, directory: Path | None) -> Path:
    return directory or resources.migrations_directory(dialect)


def upgrade(
    url: DatabaseUrl, revision: str | None = None, *, directory: Path | None = None
) -> list[str]:
    """Apply what is pending, up to `revision`, and create the database if there is none.

    Each migration is its own transaction: after a failure, those before it stay applied, nothing of
    the failed one does, and the next upgrade continues there.

    Args:
        url: the database, a file.
        revision: the last migration to apply: its id, its number, or an unambiguous prefix of its
            id; None or `head` for all.
        directory: the folder of the migrations, if not metastore's own.

    Returns:
        The ids of the migrations that were applied.

    Raises:
        MigrationFailed: a migration failed, or an applied one cannot be trusted: it was edited, is
            missing, is out of order, or was applied by other means.
        SchemaTooNew: the database has migrations that the code does not know.
        InvalidValue: `revision` names no migration, or the URL no file.
        StoreBusy: another process kept the database locked.
        StoreCorrupt: the file is damaged, or belongs to another program.
        StoreReadOnly: the file or its folder cannot be written.
        StoreFull: there is no space left.
    """
    migrations = known(url.dialect, directory)
    last = find(revision or "head", [migration.id for migration in migrations])
    with connect_to_write(url, create=True, directory=directory) as backend:
        backend.ensure_internal_schema_updated()
        with backend.snapshot():
            to_do = pending(str(url), backend, migrations)
        return [it.id for it in to_do if it.id <= last and backend.apply_one(it)]


def downgrade(url: DatabaseUrl, revision: str, *, directory: Path | None = None) -> list[str]:
    """Roll back what was applied after `revision`, newest first.

    Args:
        url: the database, a file.
        revision: the migration to go back to, which stays applied; `-N` for the last N; `base`
            for all.
        directory: the folder of the migrations, if not metastore's own.

    Returns:
        The ids of the migrations that were rolled back.

    Raises:
        MigrationFailed: a rollback failed, or a migration was edited after it was applied, is
            missing, or was applied by other means.
        SchemaOutdated: there is no metastore database at `url`.
        SchemaTooNew: the database has migrations that the code does not know.
        InvalidValue: `revision` names no applied migration, or the URL no file.
        StoreBusy, StoreCorrupt, StoreReadOnly, StoreFull: as for `upgrade`.
    """
    migrations = known(url.dialect, directory)
    with connect_to_write(url, create=False, directory=directory) as backend:
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
        to_do = pending(str(url), backend, migrations) if backend else migrations
    schema = opening.schema_of(url.dialect)
    return "\n".join(schema.script(it.id, it.sql) for it in to_do if it.id <= last)


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
    """Return the log of applied and rolled back migrations, oldest first; empty without a database.

    Raises:
        InvalidValue: the URL names no file.
        StoreCorrupt: the file is damaged, or belongs to another program.
    """
    with _reading(url, directory) as backend:
        return backend.history() if backend else []


def verify(url: DatabaseUrl, *, directory: Path | None = None) -> list[Difference]:
    """Compare the live schema with the one that its applied migrations make, object by object.

    Edited, missing, unknown and unverified migrations are differences too. If one is missing or
    unknown, the expected schema is unknown, and only migrations are reported. Changes nothing.

    Raises:
        MigrationFailed: the migration files are not in order, or no longer run.
        SchemaOutdated: there is no metastore database at `url`.
        InvalidValue: the URL names no file.
        StoreCorrupt: the file is damaged, or belongs to another program.
    """
    migrations = known(url.dialect, directory)
    with _reading(url, directory) as backend:
        if backend is None:
            raise SchemaOutdated(str(url), None, migrations[-1].id)
        return _verify(url.dialect, backend, migrations)


def adopt(url: DatabaseUrl, *, directory: Path | None = None) -> list[str]:
    """Record the checksums of edited and unverified migrations, if the schema is theirs.

    This turns a database that yoyo's own backend migrated into a metastore database, and accepts
    an edit without effect, such as a comment. Rows are not compared: check yourself what
    migrations that write rows have written.

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
    with connect_to_write(url, create=False, adopt=True, directory=directory) as backend:
        backend.ensure_internal_schema_updated()
        with backend.transaction():
            differences = _verify(url.dialect, backend, list(migrations.values()))
            _refuse_to_adopt(differences)
            for difference in differences:
                backend.record(migrations[difference.name])
    return [difference.name for difference in differences]


def schema_check(url: DatabaseUrl) -> SchemaCheck:
    """Return what refuses a database at `url` whose schema is not the code's.

    It raises:
        SchemaOutdated: a migration is not applied.
        SchemaTooNew: the database has a migration that the code does not know.
        StoreCorrupt: a view has taken the place of a table. It may have no end.
    """

    def check(state: SchemaState) -> None:
        for view in state.views:
            if view in _tables():
                raise StoreCorrupt("is a view where a table belongs", path=url.path, table=view)
        check_revision(str(url), state.applied, _ids(url.dialect))

    return check


@cache
def _tables() -> frozenset[str]:
    """Return the names of the tables that statements are about."""
    return frozenset(it.name.partition(".")[0] for it in resources.statements_directory().iterdir())


def check_revision(url_text: str, applied: Sequence[str], known_ids: Sequence[str]) -> None:
    """Compare the migrations that a database has, with the code's.

    Raises:
        SchemaOutdated: one of the code's is not applied.
        SchemaTooNew: one is applied that the code does not know.
    """
    unknown = sorted(set(applied) - set(known_ids))
    if unknown:
        raise SchemaTooNew(url_text, unknown[-1], known_ids[-1])
    if set(known_ids) - set(applied):
        raise SchemaOutdated(url_text, max(applied, default=None), known_ids[-1])


def differences(dialect: str, rows: Sequence[Sequence[str]]) -> list[Difference]:
    """Compare a schema with the one that the code's migrations make.

    Args:
        dialect: the schema's.
        rows: type, name, table and text of each object of the schema.
    """
    schema = opening.schema_of(dialect)
    return schema.compare(schema.objects(rows, BOOKKEEPING_TABLES), _schemas(dialect)[-1])


def fingerprint(dialect: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a hash over a schema, given as for `differences`; comments and spaces do not count."""
    schema = opening.schema_of(dialect)
    return schema.fingerprint(schema.objects(rows, BOOKKEEPING_TABLES))


@cache
def fingerprints(dialect: str) -> frozenset[str]:
    """Return the hashes of the schemas after each migration."""
    return frozenset(map(opening.schema_of(dialect).fingerprint, _schemas(dialect)))


@cache
def _schemas(dialect: str) -> list[Objects]:
    """Return the schema after each migration."""
    found = []
    with _model(dialect) as model:
        for migration in known(dialect):
            model.run(migration, migration.path, migration.statements)
            found.append(model.connection.objects(BOOKKEEPING_TABLES))
    return found


@contextlib.contextmanager
def _model(dialect: str) -> Iterator[Bookkeeping]:
    """Connect to an empty database in which a schema is made for comparison."""
    schema = opening.schema_of(dialect)
    with schema.connect_to_model() as connection:
        yield _bookkeeping(schema, dialect, connection)


def pending(
    url_text: str, backend: Bookkeeping, migrations: Sequence[Migration]
) -> list[Migration]:
    """Return the pending migrations, after checking the applied ones."""
    by_id = {migration.id: migration for migration in migrations}
    rows = backend.status(migrations)
    for row in rows:
        if row.state == "unknown":
            raise SchemaTooNew(url_text, rows[-1].id, migrations[-1].id)
        refuse_untrusted(row, by_id.get(row.id))
    to_do = [by_id[row.id] for row in rows if row.state == "pending"]
    if to_do:
        applied = [row.id for row in rows if row.state != "pending"]
        refuse_later(to_do[0], applied, "is not applied, but {} after it is: out of order")
    return to_do


def _to_roll_back(
    url_text: str, backend: Bookkeeping, migrations: Sequence[Migration], revision: str
) -> list[Migration]:
    by_id = {migration.id: migration for migration in migrations}
    rows = [row for row in backend.status(migrations) if row.state != "pending"]
    rows = rows[_rows_to_keep(revision, [row.id for row in rows], list(by_id)) :]
    for row in rows:
        if row.state == "unknown":
            raise SchemaTooNew(url_text, rows[-1].id, migrations[-1].id)
        refuse_untrusted(row, by_id.get(row.id))
    return [by_id[row.id] for row in reversed(rows)]


def _rows_to_keep(revision: str, applied: list[str], known_ids: list[str]) -> int:
    """Return how many of the applied migrations a downgrade to `revision` keeps."""
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


def _verify(
    dialect: str, backend: Bookkeeping, migrations: Sequence[Migration]
) -> list[Difference]:
    rows = [row for row in backend.status(migrations) if row.state != "pending"]
    distrusted = [
        Difference(row.state, "migration", row.id)
        for row in rows
        if row.state != "applied" and row.state != "pending"
    ]
    if any(difference.kind in ("missing", "unknown") for difference in distrusted):
        return distrusted
    applied = {row.id for row in rows}
    with _model(dialect) as model:
        for migration in migrations:
            if migration.id in applied:
                model.run(migration, migration.path, migration.statements)
        expected = model.connection.objects(BOOKKEEPING_TABLES)
    live = backend.connection.objects(BOOKKEEPING_TABLES)
    return distrusted + opening.schema_of(dialect).compare(live, expected)


def _refuse_to_adopt(differences: Iterable[Difference]) -> None:
    for difference in differences:
        if difference.kind not in ("edited", "unverified"):
            raise MigrationFailed("adopt", f"not while {difference}")


@contextlib.contextmanager
def connect_to_write(
    url: DatabaseUrl, *, create: bool, adopt: bool = False, directory: Path | None = None
) -> Iterator[Bookkeeping]:
    """Connect to a database; `create` it if missing, or `adopt` one that yoyo migrated."""
    schema = opening.schema_of(url.dialect)
    found = schema.connect(url, _ids(url.dialect, directory), create=create, adopt=adopt)
    if found is None:
        raise SchemaOutdated(str(url), None, head(url.dialect, directory))
    with schema.typed_errors(url), found as connection:
        yield _bookkeeping(schema, url.dialect, connection)


@contextlib.contextmanager
def _reading(url: DatabaseUrl, directory: Path | None) -> Iterator[Bookkeeping | None]:
    """Connect to read one state of a database; None if it is not a metastore database yet."""
    schema = opening.schema_of(url.dialect)
    found = schema.connect_to_read(url, _ids(url.dialect, directory))
    if found is None:
        yield None
        return
    with schema.typed_errors(url), found as connection:
        backend = _bookkeeping(schema, url.dialect, connection)
        with backend.snapshot():
            yield backend


def _bookkeeping(schema: Schema, dialect: str, connection: SchemaConnection) -> Bookkeeping:
    # Importing yoyo takes longer than opening a store, which does not need it.
    from metastore.migrations.bookkeeping import Bookkeeping

    return Bookkeeping(schema, dialect, connection)
