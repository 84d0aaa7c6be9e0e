"""The entry point for yoyo's commands: `yoyo apply` runs the code of `metastore migrate`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

from yoyo import default_migration_table

from metastore import urls
from metastore.backends import opening
from metastore.errors import InvalidValue, MetastoreError
from metastore.migrations import operations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastore.backends.base import DatabaseUrl

__all__ = ["MetastoreBackend"]


class MetastoreBackend:
    """The backend of yoyo's own commands for `metastore://`: the bookkeeping of a database.

    `metastore://` is the database that `METASTORE_DB_URL` names, or the default one;
    `metastore:///relative.db` and `metastore:////absolute.db` name a file. Errors reach yoyo as
    its `InvalidArgument`, which it prints in one line.
    """

    def __init__(self, dburi: Any, migration_table: str) -> None:
        self.uri = dburi
        self._opened = contextlib.ExitStack()
        with _reported():
            if migration_table != default_migration_table:
                raise InvalidValue(None, "migration table", f"must be {default_migration_table}")
            self.url = _url_from_yoyo(dburi)
            self._bookkeeping = self._opened.enter_context(
                operations.connect_to_write(self.url, create=True)
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bookkeeping, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def init_database(self) -> None:
        """Create missing bookkeeping tables."""
        with _reported(self.url):
            self._bookkeeping.ensure_internal_schema_updated()

    def to_apply(self, migrations: Any) -> Any:
        """Return the pending migrations, unless an applied one cannot be trusted."""
        with _reported(self.url), self._bookkeeping.snapshot():
            files = [self._bookkeeping.files_of(migration) for migration in migrations]
            for directory in {it.path.parent for it in files}:
                known = operations.known(self.url.dialect, directory)
                operations.pending(str(self.url), self._bookkeeping, known)
        return self._bookkeeping.to_apply(migrations)

    def apply_migrations(self, migrations: Any, force: bool = False) -> None:
        """Apply each of the migrations."""
        with _reported(self.url):
            self._bookkeeping.apply_migrations(migrations, force)

    def rollback_migrations(self, migrations: Any, force: bool = False) -> None:
        """Roll each of the migrations back."""
        with _reported(self.url):
            self._bookkeeping.rollback_migrations(migrations, force)

    def mark_migrations(self, migrations: Any) -> None:
        """Record each of the migrations as applied, without applying it."""
        with _reported(self.url):
            self._bookkeeping.mark_migrations(migrations)

    def unmark_migrations(self, migrations: Any) -> None:
        """Delete the records of the migrations, without rolling them back."""
        with _reported(self.url):
            self._bookkeeping.unmark_migrations(migrations)


def _url_from_yoyo(dburi: Any) -> DatabaseUrl:
    # yoyo has parsed the URL by its own rules, and the original is lost.
    if dburi.hostname or dburi.args:
        raise InvalidValue(
            None,
            "url",
            "must be metastore://, metastore:///relative.db or metastore:////absolute.db; "
            f"{urls.ENVIRONMENT_VARIABLE} accepts any file name",
        )
    return opening.url_of_file(dburi.database) if dburi.database else urls.resolve(None)


@contextlib.contextmanager
def _reported(url: DatabaseUrl | None = None) -> Iterator[None]:
    errors = opening.schema_of(url.dialect).typed_errors(url) if url else contextlib.nullcontext()
    try:
        with errors:
            yield
    except (MetastoreError, OSError) as error:
        # yoyo prints this error on one line, and a traceback for any other.
        from yoyo.scripts.main import InvalidArgument

        raise InvalidArgument(str(error)) from error
