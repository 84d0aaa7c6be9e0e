"""Health: the state of a database, its problems, and what to do about them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from metastore import migrations
from metastore.audit.links import Finding  # noqa: TC001 - msgspec reads the annotation
from metastore.backends import opening
from metastore.backends.base import NO_TABLES, KnownFault
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
from metastore.repositories import RepositorySet, leasable, repository_types
from metastore.repositories.base import Scope, row_checks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastore.backends.base import Backend, DatabaseUrl, Facts
    from metastore.repositories.cost_entries import CostDiscrepancy

__all__ = ["Health", "LeaseCount", "diagnose", "examine"]

COUNT_TIMEOUT = 30.0
"""How long counting the leases and reading the schema may take, in seconds."""


class LeaseCount(msgspec.Struct, frozen=True):
    """How many leases, locks or claims there are.

    Attributes:
        live: the number held.
        expired: the number that expired and were neither released nor taken over.
    """

    live: int
    expired: int


class Health(msgspec.Struct, frozen=True):
    """The state of a database. None if unknown.

    Attributes:
        url: the database.
        checked_at: when it was examined, by the machine's clock.
        reachable: whether it can be read.
        writable: whether it can be written; probed with a write that is rolled back.
        schema_revision: the newest migration it has.
        schema_head: the newest migration the code knows.
        leases: how many worktrees, projects and tasks are leased, by kind.
        software: the database software and its release.
        known_faults: the known bugs of that release.
        damage: the damage found; None if it was not checked.
        tampering: changes to history behind the store's back; None if it was not checked.
        details: backend-specific facts by name; names that end in `_bytes` are sizes.
        problems: what is wrong, and what to do about it; a sentence or two each.
        notes: informational remarks.
    """

    url: str
    checked_at: datetime
    reachable: bool
    writable: bool
    schema_revision: str | None
    schema_head: str
    database_bytes: int | None
    leases: dict[str, LeaseCount] | None
    software: str | None
    known_faults: list[KnownFault]
    damage: list[str] | None
    tampering: list[Finding] | None
    details: dict[str, Any]
    problems: list[str]
    notes: list[str]

    @property
    def healthy(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


async def examine(
    backend: Backend,
    repositories: RepositorySet,
    *,
    integrity: bool = False,
    audit: bool = False,
) -> Health:
    """Return the state of an open database.

    Args:
        backend: The database.
        repositories: Its repositories, which count leases and check history.
        integrity: Whether to read everything and report damage and wrong totals.
        audit: Whether to read all history and report tampering.

    Raises:
        TransactionActive: this task has a transaction open.
    """
    url = backend.url
    check = migrations.schema_check(url)
    tables = row_checks(repository_types(), backend.columns) if integrity else NO_TABLES
    facts = await backend.inspect(check=check, integrity=integrity, tables=tables)
    head = migrations.head(url.dialect)
    leases = tampering = audit_error = None
    count_error: MetastoreError | None = None
    schema: list[Finding] = []
    discrepancies: list[CostDiscrepancy] = []
    if facts.read_error is None and facts.schema_error is None:
        try:
            async with asyncio.timeout(COUNT_TIMEOUT):
                await repositories.lease_limits.check()
                leases = {
                    repository.leased: LeaseCount(*await repository.count_held())
                    for repository in leasable(repositories)
                }
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
        leases=leases,
        software=facts.software,
        known_faults=facts.known_faults,
        damage=facts.damage,
        tampering=tampering,
        details=facts.details,
        problems=[
            *_problems(facts, count_error),
            *map(_cost_problem, discrepancies),
            *_schema_problems(schema),
            *_audit_problems(tampering, audit_error),
        ],
        notes=list(_notes(facts, leases or {})),
    )


async def diagnose(url: DatabaseUrl, *, integrity: bool = False, audit: bool = False) -> Health:
    """Return the state of the database at `url`, even if a store cannot be opened on it.

    Raises:
        InvalidValue: the URL names no file.
    """
    if url.in_memory:
        raise InvalidValue(
            None, "url", "names a database in memory, which only its own process can see"
        )
    try:
        # Without a schema check: a mismatch is to be reported, not raised.
        backend = await opening.open_backend(url)
    except MetastoreError as error:
        return _unreachable(url, error)
    try:
        repositories = RepositorySet(
            Scope(backend, lambda: datetime.now(UTC), backend, backend.columns)
        )
        return await examine(backend, repositories, integrity=integrity, audit=audit)
    finally:
        await backend.close()


def _unreachable(url: DatabaseUrl, error: MetastoreError) -> Health:
    head = migrations.head(url.dialect)
    if opening.is_missing(url):
        error = SchemaOutdated(str(url), None, head)
    return Health(
        url=str(url),
        checked_at=datetime.now(UTC),
        reachable=False,
        writable=False,
        schema_revision=None,
        schema_head=head,
        database_bytes=None,
        leases=None,
        software=None,
        known_faults=[],
        damage=None,
        tampering=None,
        details={},
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
            f"The database file {'is gone' if facts.read_error.is_missing else 'was replaced'}"
            f": {facts.read_error}. Acknowledged writes are in the original file, if it was "
            "moved; the store has stopped and refuses everything."
        )
        return
    if facts.read_error is not None:
        yield f"The database cannot be read: {facts.read_error}. {_advice(facts.read_error)}"
    if facts.schema_error is not None:
        yield f"The schema does not match this release of metastore: {facts.schema_error}."
    if count_error is not None:
        yield f"The leases cannot be counted: {count_error}. {_advice(count_error)}"
    if facts.write_error is not None:
        yield f"The database cannot be written: {facts.write_error}. {_advice(facts.write_error)}"
    if facts.damage:
        lines = len(facts.damage)
        yield (
            f"The database is damaged ({lines} finding{'s' * (lines > 1)}, the first: "
            f"{facts.damage[0]}). Stop all writers, keep the files, and restore a backup."
        )
    yield from facts.problems


def _cost_problem(found: CostDiscrepancy) -> str:
    return (
        f"The totals of job {found.job_id} are not the sum of its cost entries: someone wrote to "
        "the database directly. The entries are what was spent; correct the job to match them."
    )


def _schema_problems(found: list[Finding]) -> Iterator[str]:
    if found:
        yield (
            f"The schema is not what its migrations make, in {len(found)} "
            f"place{'s' * (len(found) > 1)} (the first: {found[0].detail}). A foreign trigger's "
            "writes carry the store's own hashes: find out who can write to the file, and list the "
            "differences with `metastore migrate verify`."
        )


def _audit_problems(tampering: list[Finding] | None, error: MetastoreError | None) -> Iterator[str]:
    if error is not None:
        yield f"History cannot be checked: {error}. {_advice(error)}".rstrip()
    unreadable = [finding for finding in tampering or () if finding.what == "unreadable"]
    if unreadable:
        yield (
            f"History cannot be checked in {len(unreadable)} "
            f"place{'s' * (len(unreadable) > 1)} (the first: {unreadable[0]}). Check the whole "
            "database with `metastore doctor --integrity`, and compare with a backup."
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
            return "End whatever keeps a transaction open: a database shell, or a stuck process."
        case StoreFull():
            return "Free space on its disk."
        case StoreIOError():
            return "Check the system log for a failing disk, and make a backup while you can."
        case StoreReadOnly():
            return "Check the owner and mode of the file and its folder, and the mount options."
    return ""


def _notes(facts: Facts, leases: dict[str, LeaseCount]) -> Iterator[str]:
    for leased, count in leases.items():
        if count.expired:
            yield (
                f"{count.expired} of the leased {leased}: the lease expired without a release, "
                "so its holder died or was paused too long. The next caller takes it over; "
                "no clean-up is needed."
            )
    yield from facts.notes
    for fault in facts.known_faults:
        yield f"{facts.software} has a known bug, {fault.name}: {fault.effect}. {fault.handling}."
