"""The store: an open metadata database with one repository for each table."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Literal, Self, get_args

from metastore import health, migrations, urls
from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.memory import MemoryFolder, sweep
from metastore.codec import expect
from metastore.leasing.guard import keeper_of
from metastore.leasing.queue import background_work
from metastore.repositories import RepositorySet, leasable, repository_types
from metastore.repositories.base import Scope, load_statements

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from pathlib import Path
    from types import TracebackType

    from metastore.backends.base import Backend
    from metastore.health import Health
    from metastore.leasing.holding import Held

__all__ = ["MetadataStore", "Transaction", "write_template"]

Durability = Literal["full", "normal"]

MAX_READERS = 64
"""The most connections that a store reads with; each is a thread."""

GIVE_BACK_LIMIT = 2.0
"""How long a store that closes waits for leases and tickets to be given back, in seconds. What is
left then expires."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Transaction(RepositorySet):
    """The store's repositories inside one transaction: committed together or not at all."""


class MetadataStore(RepositorySet):
    """The metadata of an execution service. Made by `MetadataStore.open`.

    Every operation on its repositories commits by itself; a transaction's commit together.
    Once an awaited write has returned it is durable. A write that was cancelled may have been
    committed all the same; pass your own `id` to `create` to make a repetition harmless.
    """

    def __init__(
        self,
        backend: Backend,
        url: urls.DatabaseUrl,
        clock: Callable[[], datetime],
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(Scope(backend, clock, backend))
        self._backend = backend
        self._url = url
        self._clock = clock
        self._on_close = on_close

    @classmethod
    def open(
        cls,
        url: str | None = None,
        *,
        migrate: bool = False,
        durability: Durability = "full",
        clock: Callable[[], datetime] | None = None,
        readers: int = 1,
    ) -> _Opening:
        """Open a database: `async with MetadataStore.open() as store`, or await and `close()`.

        Args:
            url: `sqlite:///relative.db`, `sqlite:////absolute.db`, or `sqlite://` for a database
                in memory that ends with the store; None means `METASTORE_DB_URL`, and that unset
                `sqlite:///.artifacts/data/metadata.db`.
            migrate: Bring the schema up to date first, creating the database if there is none.
            durability: `full` survives a loss of power; `normal` survives a crash of the
                program, and may lose the last commits when the machine goes down.
            clock: What time it is, aware of its zone; tests move it.
            readers: How many connections read. One is the fastest for most loads.

        Raises:
            SchemaOutdated: the database is older than the code, missing or empty.
            SchemaTooNew: it is newer than the code.
            LimitsMismatch: its processes hold leases under other limits than the code's.
            StoreCorrupt: it is damaged, or no metastore.
            StoreReadOnly: it takes no writes.
            MigrationFailed: `migrate` failed; the schema is as it was.
            InvalidValue: the URL is of no known form, or another argument is refused.
        """
        expect("migrate", migrate, bool, "a boolean")
        # It becomes part of a PRAGMA.
        if not isinstance(durability, str) or durability not in get_args(Durability):
            expect("durability", durability, (), f"one of {', '.join(get_args(Durability))}")
        if type(readers) is not int or not 1 <= readers <= MAX_READERS:
            expect("readers", readers, (), f"an integer from 1 to {MAX_READERS}")
        if clock is not None:
            expect("clock", clock, Callable, "a function without arguments")
        return _Opening(
            cls, url, migrate, durability, _utc_now if clock is None else clock, readers
        )

    @contextlib.asynccontextmanager
    async def transaction(self, lease: Held | None = None) -> AsyncIterator[Transaction]:
        """Open a transaction: committed at the end of the body, undone when the body raises.

        With a `lease` (of a worktree or a task, or a project's lock) it commits only while that
        is still held. It has the writer to itself, so keep the body short; inside, use its
        repositories, not the store's.

        Raises:
            LeaseLost: the lease is gone; nothing was stored.
            TransactionActive: this task has a transaction open already.
            InvalidValue: `lease` is none.
        """
        guard = None if lease is None else keeper_of(lease, leasable(self)).guard(lease)
        async with self._backend.transaction(guard) as executor:
            now = self._clock()
            yield Transaction(Scope(executor, lambda: now, None))

    async def health(self, *, integrity: bool = False, audit: bool = False) -> Health:
        """Report how the database is: whether it answers and takes writes, how full, how old.

        What is wrong is in the report, and nothing is raised for it. It takes milliseconds, and
        a few seconds at most where the database does not answer. `integrity` also reads the whole
        database, beside the store's own reads, to look for damage, and `audit` all events and tool
        executions, to look for tampering.

        Raises:
            TransactionActive: this task has a transaction open.
        """
        return await health.examine(
            self._backend, self._url, self, integrity=integrity, audit=audit
        )

    async def close(self) -> None:
        """Close the store; idempotent. Operations in flight are answered, later ones refused."""
        try:
            # What a cancelled caller took is given back while that is possible.
            await background_work(self._backend, timeout=GIVE_BACK_LIMIT)
            await self._backend.close()
        finally:
            self._on_close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class _Opening:
    """What `MetadataStore.open` returns: awaitable, and an async context manager."""

    def __init__(
        self,
        store_type: type[MetadataStore],
        url: str | None,
        migrate: bool,
        durability: Durability,
        clock: Callable[[], datetime],
        readers: int,
    ) -> None:
        self._store_type = store_type
        self._url = url
        self._migrate = migrate
        self._durability = durability
        self._clock = clock
        self._readers = readers
        self._store: MetadataStore | None = None

    def __await__(self) -> Generator[object, None, MetadataStore]:
        return self._open().__await__()

    async def __aenter__(self) -> MetadataStore:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._store is not None:
            await self._store.close()

    async def _open(self) -> MetadataStore:
        url = urls.resolve(self._url)
        if url.path is None:
            return await self._open_in_memory()
        if self._migrate:
            await asyncio.to_thread(migrations.upgrade, url)
        return await self._connect(url, url.path)

    async def _open_in_memory(self) -> MetadataStore:
        # A file in memory-backed storage behaves in everything like the file of production:
        # a reader beside the writer, snapshots, WAL. SQLite's own memory databases do not.
        folder = MemoryFolder()
        try:
            path = folder.path / "metadata.db"
            await asyncio.to_thread(_prepare_in_memory, path)
            return await self._connect(
                urls.resolve(f"sqlite:///{path}"), path, on_close=folder.remove
            )
        except BaseException:
            folder.remove()
            raise

    async def _connect(
        self, url: urls.DatabaseUrl, path: Path, on_close: Callable[[], None] = lambda: None
    ) -> MetadataStore:
        await asyncio.to_thread(_prepare, url, path)
        backend = await SqliteBackend.open(
            path,
            durability=self._durability,
            readers=self._readers,
            check=lambda connection: migrations.check(url, connection),
        )
        store = self._store_type(backend, url, self._clock, on_close)
        try:
            await store.lease_limits.check()
        except BaseException:
            # The caller removes what it made.
            await backend.close()
            raise
        return store


def _prepare(url: urls.DatabaseUrl, path: Path) -> None:
    load_statements(repository_types())
    if not database_file.exists(path):
        migrations.check_revision(str(url), [], [it.id for it in migrations.known()])


def _prepare_in_memory(path: Path) -> None:
    sweep()
    write_template(path)


def write_template(path: Path) -> None:
    """Make a migrated, empty database at `path`, where there is no file yet.

    Copied, which takes a fraction of the time that migrating does.

    Raises:
        FileExistsError: there is a file.
        StoreReadOnly: the folder takes no new file.
    """
    if not database_file.create(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.write_bytes(_template())


@cache
def _template() -> bytes:
    """Return a migrated, empty database: made once for each process."""
    with MemoryFolder() as folder:
        path = folder.path / "template.db"
        migrations.upgrade(urls.resolve(f"sqlite:///{path}"))
        return path.read_bytes()
