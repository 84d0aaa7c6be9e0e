"""Health: how a database is, what is wrong with it, and what to do about that."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from metastore import migrations
from metastore.audit import Finding  # noqa: TC001 - msgspec reads the annotation
from metastore.backends import sqlite_file
from metastore.backends.base import NO_TABLES, KnownFault
from metastore.backends.sqlite import SqliteBackend
from metastore.errors import (
    InvalidValue,
    MetastoreError,
    SchemaOutdated,
    SchemaTooNew,
    StoreBusy,
    StoreFull,
    StoreIOError,
    StoreReadOnly,
    StoreReplaced,
)
from metastore.repositories import RepositorySet, repository_types
from metastore.repositories.base import Scope, row_checks

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from metastore.backends.base import Backend, Facts
    from metastore.repositories.cost_entries import CostDiscrepancy
    from metastore.urls import DatabaseUrl

__all__ = ["Health", "LeaseCount", "diagnose", "examine"]

LARGE_WAL = 64 << 20
"""The size of a WAL, in bytes, that checkpoints do not let it reach in ordinary operation."""

COUNT_TIMEOUT = 30.0
"""How long counting the leases and reading the schema may take, in seconds."""

LOW_DISK = 128 << 20
"""The free space on the disk, in bytes, below which there is little time left."""


class LeaseCount(msgspec.Struct, frozen=True):
    """How many leases, or locks, are held.

    Attributes:
        live: those that run.
        expired: those that ran out, and were neither released nor taken over.
    """

    live: int
    expired: int


class Health(msgspec.Struct, frozen=True):
    """How a database is. What could not be found out is None.

    Attributes:
        url: the database.
        checked_at: when it was examined, by the machine's clock.
        reachable: whether it can be read.
        writable: whether it takes writes; tried, and undone.
        schema_revision: the newest migration it has.
        schema_head: the newest migration the code knows.
        wal_bytes: how big its WAL is.
        free_disk_bytes: what is free on its disk.
        worktree_leases: how many worktrees are leased.
        project_locks: how many projects are locked.
        task_claims: how many tasks are claimed.
        software: the database's software and its release.
        known_faults: what is wrong with that release.
        synchronous: when the operating system is asked to write to the disk.
        file_modes: the permission bits of the database's files, by path, as in `0600`.
        damage: what is broken in the database; None if it was not searched.
        tampering: what was changed in history behind the store's back; None if it was not searched.
        problems: what is wrong, and what to do about it; a sentence or two each.
        notes: what is worth to know, and nothing to worry about.
    """

    url: str
    checked_at: datetime
    reachable: bool
    writable: bool
    schema_revision: str | None
    schema_head: str
    database_bytes: int | None
    wal_bytes: int | None
    free_disk_bytes: int | None
    worktree_leases: LeaseCount | None
    project_locks: LeaseCount | None
    task_claims: LeaseCount | None
    software: str | None
    known_faults: list[KnownFault]
    journal_mode: str | None
    synchronous: str | None
    file_modes: dict[str, str]
    damage: list[str] | None
    tampering: list[Finding] | None
    problems: list[str]
    notes: list[str]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


async def examine(
    backend: Backend,
    url: DatabaseUrl,
    repositories: RepositorySet,
    *,
    integrity: bool = False,
    audit: bool = False,
) -> Health:
    """Return how an open database is.

    Args:
        backend: The database.
        url: Its URL.
        repositories: What counts its leases and checks its history.
        integrity: Whether to read all of it in search of damage, and to add the costs up.
        audit: Whether to read all of its history in search of tampering.

    Raises:
        TransactionActive: this task has a transaction open.
    """

    def check(connection: sqlite3.Connection) -> None:
        migrations.check(url, connection)

    tables = row_checks(repository_types()) if integrity else NO_TABLES
    facts = await backend.inspect(check=check, integrity=integrity, tables=tables)
    head = migrations.head(url.dialect)
    leases = locks = claims = tampering = audit_error = None
    count_error: MetastoreError | None = None
    schema: list[Finding] = []
    discrepancies: list[CostDiscrepancy] = []
    if facts.read_error is None and facts.schema_error is None:
        try:
            async with asyncio.timeout(COUNT_TIMEOUT):
                leases = LeaseCount(*await repositories.worktrees.count_leases())
                locks = LeaseCount(*await repositories.project_locks.count())
                claims = LeaseCount(*await repositories.tasks.count_claims())
                schema = await repositories.audit_chains.schema_findings()
            if integrity:
                discrepancies = await repositories.cost_entries.discrepancies()
        except TimeoutError:
            count_error = StoreBusy(f"that took more than {COUNT_TIMEOUT:g} s")
        except MetastoreError as error:
            count_error = error
        if audit:
            try:
                tampering = (await repositories.audit_chains.verify()).findings
            except MetastoreError as error:
                audit_error = error
    return Health(
        url=str(url),
        checked_at=datetime.now(UTC),
        reachable=facts.read_error is None,
        writable=facts.write_error is None,
        schema_revision=_revision(facts, head),
        schema_head=head,
        database_bytes=facts.database_bytes,
        wal_bytes=facts.wal_bytes,
        free_disk_bytes=facts.free_disk_bytes,
        worktree_leases=leases,
        project_locks=locks,
        task_claims=claims,
        software=facts.software,
        known_faults=facts.known_faults,
        journal_mode=facts.journal_mode,
        synchronous=facts.synchronous,
        file_modes={path: f"{mode:04o}" for path, mode in facts.file_modes.items()},
        damage=facts.damage,
        tampering=tampering,
        problems=[
            *_problems(facts, count_error),
            *map(_cost_problem, discrepancies),
            *_schema_problems(schema),
            *_audit_problems(tampering, audit_error),
        ],
        notes=list(_notes(facts, worktree=leases, project=locks, task=claims)),
    )


async def diagnose(url: DatabaseUrl, *, integrity: bool = False, audit: bool = False) -> Health:
    """Return how the database at `url` is, also where a store cannot be opened on it.

    Raises:
        InvalidValue: the URL names no file.
    """
    if url.path is None:
        raise InvalidValue(None, "url", "names a database in memory, which is nobody else's")
    try:
        # Without a look at its schema: one that is not the code's is to be reported.
        backend = await SqliteBackend.open(url.path)
    except MetastoreError as error:
        return _unreachable(url, url.path, error)
    try:
        repositories = RepositorySet(Scope(backend, lambda: datetime.now(UTC), backend))
        return await examine(backend, url, repositories, integrity=integrity, audit=audit)
    finally:
        await backend.close()


def _unreachable(url: DatabaseUrl, path: Path, error: MetastoreError) -> Health:
    head = migrations.head(url.dialect)
    if not sqlite_file.exists(path) or (path.is_file() and path.stat().st_size == 0):
        error = SchemaOutdated(str(url), None, head)
    return Health(
        url=str(url),
        checked_at=datetime.now(UTC),
        reachable=False,
        writable=False,
        schema_revision=None,
        schema_head=head,
        database_bytes=None,
        wal_bytes=None,
        free_disk_bytes=None,
        worktree_leases=None,
        project_locks=None,
        task_claims=None,
        software=None,
        known_faults=[],
        journal_mode=None,
        synchronous=None,
        file_modes={},
        damage=None,
        tampering=None,
        problems=[f"The database cannot be opened: {error}. {_advice(error)}".rstrip()],
        notes=[],
    )


def _revision(facts: Facts, head: str) -> str | None:
    if facts.read_error is not None:
        return None
    match facts.schema_error:
        case None:
            return head
        case SchemaOutdated(revision=revision) | SchemaTooNew(revision=revision):
            return revision
    return None


def _problems(facts: Facts, count_error: MetastoreError | None) -> Iterator[str]:
    if isinstance(facts.read_error, StoreReplaced):
        yield (
            f"The database's file {'is gone' if facts.read_error.is_missing else 'is another one'}"
            f": {facts.read_error}. What was acknowledged before is in the file that was moved, if "
            "there is one; the store has stopped, and refuses everything."
        )
        return
    if facts.read_error is not None:
        yield f"The database cannot be read: {facts.read_error}. {_advice(facts.read_error)}"
    if facts.schema_error is not None:
        yield f"The schema is not the one of this metastore: {facts.schema_error}."
    if count_error is not None:
        yield f"The leases cannot be counted: {count_error}. {_advice(count_error)}"
    if facts.write_error is not None:
        yield f"The database takes no writes: {facts.write_error}. {_advice(facts.write_error)}"
    if facts.damage:
        lines = len(facts.damage)
        yield (
            f"The database is damaged ({lines} finding{'s' * (lines > 1)}, the first: "
            f"{facts.damage[0]}). Stop what writes to it, keep its files, and restore a backup."
        )
    for path, mode in facts.file_modes.items():
        if mode & 0o077:
            yield f"Others may read {path} (its mode is {mode:04o}). Run: chmod 600 '{path}'."
    if facts.journal_mode not in ("wal", None):
        yield (
            f"The journal mode is {facts.journal_mode} and not wal, so that readers and writers "
            "block each other. Move the database to a local file system that can share memory."
        )
    if facts.wal_bytes is not None and facts.wal_bytes >= LARGE_WAL:
        yield (
            f"The WAL has {_megabytes(facts.wal_bytes)}: it cannot be copied back while somebody "
            "reads an old state. Close what reads for long, such as a sqlite3 shell inside a "
            "transaction; the file is removed when the last process closes the database."
        )
    if facts.free_disk_bytes is not None and facts.free_disk_bytes < LOW_DISK:
        yield (
            f"Only {_megabytes(facts.free_disk_bytes)} are free in {facts.folder}, and on a full "
            "disk every write is refused. Make room."
        )


def _cost_problem(found: CostDiscrepancy) -> str:
    return (
        f"The totals of job {found.job_id} are not the sum of its cost entries: somebody wrote "
        "past metastore. The entries are what was spent; correct jobs by them."
    )


def _schema_problems(found: list[Finding]) -> Iterator[str]:
    if found:
        yield (
            f"The schema is not as its migrations make it, in {len(found)} "
            f"place{'s' * (len(found) > 1)} (the first: {found[0].detail}). What a trigger that "
            "somebody added has written carries the store's own hashes: find out who can "
            "write to the file, and list the differences with metastore migrate verify."
        )


def _audit_problems(tampering: list[Finding] | None, error: MetastoreError | None) -> Iterator[str]:
    if error is not None:
        yield f"History cannot be checked: {error}. {_advice(error)}".rstrip()
    unreadable = [finding for finding in tampering or () if finding.what == "unreadable"]
    if unreadable:
        yield (
            f"History cannot be checked in {len(unreadable)} "
            f"place{'s' * (len(unreadable) > 1)} (the first: {unreadable[0]}). Look at the whole "
            "database with metastore doctor --integrity, and compare with a backup."
        )
    changed = [
        finding
        for finding in tampering or ()
        if finding.what != "unreadable" and finding.resource != "schema"
    ]
    if changed:
        places = len(changed)
        yield (
            f"History was changed behind the store's back, in {places} place{'s' * (places > 1)} "
            f"(the first: {changed[0]}). Keep the file as it is, find out who can write to it, "
            "and compare with a backup."
        )


def _advice(error: MetastoreError) -> str:
    match error:
        case StoreBusy():
            return (
                "Find and end what keeps a transaction open: a sqlite3 shell, or a stuck process."
            )
        case StoreFull():
            return "Make room on its disk."
        case StoreIOError():
            return "Look in the system's log for a failing disk, and make a backup while you can."
        case StoreReadOnly():
            return "Look at the owner and mode of the file and its folder, and how it is mounted."
    return ""


def _notes(facts: Facts, **counts: LeaseCount | None) -> Iterator[str]:
    for what, count in counts.items():
        if count is not None and count.expired:
            yield (
                f"{count.expired} of the leased {what}s: the lease ran out and was not released, "
                "so its holder died or was away for too long. Whoever comes next takes it over; "
                "there is nothing to clean up."
            )
    if facts.synchronous not in ("full", "extra", None):
        yield (
            f"synchronous is {facts.synchronous}: when the machine goes down, the last commits "
            "may be lost. Open the store with durability='full' if they must not be."
        )
    for fault in facts.known_faults:
        yield f"{facts.software} has a known fault, {fault.name}: {fault.effect}. {fault.handling}."


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
