"""The store: an open metadata database with one repository for each table."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self, get_args

from metastore import health, migrations, urls
from metastore.backends import opening
from metastore.backends.base import Durability, SchemaState
from metastore.codec import expect
from metastore.leasing.guard import keeper_of
from metastore.leasing.queue import background_work
from metastore.repositories import RepositorySet, leasable, repository_types
from metastore.repositories.base import Scope, load_statements

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from types import TracebackType

    from metastore.backends.base import Backend
    from metastore.health import Health
    from metastore.leasing.holding import Held

__all__ = ["MetadataStore", "Transaction"]

MAX_READERS = 64
"""The most reading connections of a store; each has a thread."""

GIVE_BACK_LIMIT = 2.0
"""How long a closing store waits for leases and tickets to be given back, in seconds. The rest
expires."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Transaction(RepositorySet):
    """The store's repositories inside one transaction: committed together or not at all."""


class MetadataStore(RepositorySet):
    """The metadata of an execution service. Opened with `MetadataStore.open`.

    Each operation on its repositories commits by itself; those of a transaction commit together.
    An awaited write is durable once it returns. A cancelled write may still have been committed;
    pass your own `id` to `create` to make a retry harmless.
    """

    def __init__(
        self,
        backend: Backend,
        clock: Callable[[], datetime],
    ) -> None:
        super().__init__(Scope(backend, clock, backend, backend.columns))
        self._backend = backend
        self._clock = clock

    @property
    def backend(self) -> Backend:
        """The open database, for metastore's own tools."""
        return self._backend

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
                in memory that is gone when the store closes; None means `METASTORE_DB_URL`, or if
                that is unset `sqlite:///.artifacts/data/metadata.db`.
            migrate: Upgrade the schema first, and create the database if there is none.
            durability: `full` survives a power failure; `normal` survives a crash of the program,
                but may lose the last commits when the machine goes down.
            clock: Returns the current time, timezone-aware; tests move it.
            readers: The number of reading connections. One is fastest for most loads.

        Raises:
            SchemaOutdated: the database is older than the code, missing or empty.
            SchemaTooNew: it is newer than the code.
            LimitsMismatch: its processes hold leases under other limits than the code's.
            StoreCorrupt: it is damaged, or not a metastore database.
            StoreReadOnly: it cannot be written.
            MigrationFailed: `migrate` failed; the schema is unchanged.
            InvalidValue: the form of the URL is unknown, or another argument is refused.
        """
        expect("migrate", migrate, bool, "a boolean")
        # It becomes part of a setting's text.
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
        """Open a transaction: committed at the end of the body, rolled back if the body raises.

        With a `lease` (a worktree's lease, a task's claim or a project's lock) it commits only
        while that is still held. It has the writer to itself, so keep the body short, and use its
        repositories in it, not the store's.

        Raises:
            LeaseLost: the lease is gone; nothing was stored.
            TransactionActive: this task has a transaction open already.
            InvalidValue: `lease` is not a lease.
        """
        guard = None if lease is None else keeper_of(lease, leasable(self)).guard(lease)
        async with self._backend.transaction(guard) as executor:
            now = self._clock()
            yield Transaction(Scope(executor, lambda: now, None, self._backend.columns))

    async def health(self, *, integrity: bool = False, audit: bool = False) -> Health:
        """Report the state of the database: reachable or not, writable or not, its size and schema.

        Problems are in the report and not raised. This takes milliseconds, or a few seconds if the
        database does not answer. `integrity` also reads the whole database, beside the store's own
        reads, and reports damage; `audit` reads all events and tool executions, and reports
        tampering.

        Raises:
            TransactionActive: this task has a transaction open.
        """
        return await health.examine(self._backend, self, integrity=integrity, audit=audit)

    async def close(self) -> None:
        """Close the store; idempotent. Operations in flight are answered, later ones refused."""
        # Leases of cancelled callers are given back while that is still possible.
        await background_work(self._backend, timeout=GIVE_BACK_LIMIT)
        await self._backend.close()

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
        columns = opening.columns_of(url.dialect)
        check = migrations.schema_check(url)
        await asyncio.to_thread(load_statements, repository_types(), columns)
        if not url.in_memory:
            if self._migrate:
                await asyncio.to_thread(migrations.upgrade, url)
            if await asyncio.to_thread(opening.is_missing, url):
                check(SchemaState(applied=[], views=[]))
        backend = await opening.open_backend(
            url,
            durability=self._durability,
            readers=self._readers,
            check=check,
            upgrade=migrations.upgrade,
        )
        store = self._store_type(backend, self._clock)
        try:
            await store.lease_limits.check()
        except BaseException:
            await backend.close()
            raise
        return store
