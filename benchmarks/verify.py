"""Checks that a contender does all of the work before it is timed."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from benchmarks import database
from benchmarks.contenders.base import CONTEXT, COST_NANO_USD, MESSAGE, OWNER, NewEvent
from metastore import MetadataStore

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from benchmarks.contenders.base import Contender

__all__ = ["ShirkingError", "verify"]


class ShirkingError(Exception):
    """A contender leaves out some of the work."""


async def verify(contender: Contender, path: Path) -> None:
    """Check settings, results and refusals on the freshly filled database at `path`.

    Raises:
        ShirkingError: something is not as it has to be.
    """
    await _settings(contender)
    await _events(contender)
    await _leases(contender)
    await _costs(contender)
    await _reservations(contender)
    await _claims(contender)
    await _chains(path)


async def _settings(contender: Contender) -> None:
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    for name, value in expected.items():
        _same(name, await contender.pragma(name), value)


async def _events(contender: Contender) -> None:
    session = database.session(1)
    appended = await contender.append(session)
    _same("the position", value(appended, "position"), database.EVENTS + 1)
    _same("the message", value(appended, "message"), MESSAGE)
    new = [NewEvent("verify", str(number), "info", CONTEXT) for number in range(60)]
    await contender.append_many(session, new)
    page = await contender.page(session, database.EVENTS + 1)
    _same("a page", [value(row, "message") for row in page], [str(n) for n in range(50)])
    _same("the context", [value(row, "context") for row in page], [CONTEXT] * 50)
    _typed("created_at", value(page[0], "created_at"), datetime)
    await _refused("an event without a session", contender.append(database.session(10**6)))
    faulty = [*new, NewEvent("verify", "", "no level", CONTEXT)]
    await _refused("an unknown level", contender.append_many(session, faulty))
    _same("an append after refusals", value(await contender.append(session), "message"), MESSAGE)
    page = await contender.page(session, database.EVENTS + 51)
    _same("what is stored after refusals", len(page), 11)


async def _leases(contender: Contender) -> None:
    worktree = await contender.get(database.worktree(0))
    _typed("environment_hashes", value(worktree, "environment_hashes"), dict)
    _typed("updated_at", value(worktree, "updated_at"), datetime)
    version = value(worktree, "version")
    held = await contender.reserve(worktree)
    await _refused("a reservation of what has moved", contender.reserve(worktree))
    stored = await contender.get(database.worktree(0))
    _same("the owner", value(stored, "lease_owner"), OWNER)
    _same("the fence", value(stored, "version"), version + 1)
    free = await contender.release(held)
    _same("the fence", value(free, "version"), version + 2)
    _same("the owner", value(free, "lease_owner"), None)
    await _refused("a second release", contender.release(held))
    taken = [await contender.acquire(database.crowd_repository()) for _ in range(2)]
    keys = {value(getattr(it, "worktree", it), "id") for it in taken}
    _same("how many were acquired", len(keys), 2)
    for it in taken:
        await contender.release(it)
    await contender.transaction(database.session(2), database.worktree(0))
    _same("the transaction's events", len(await contender.page(database.session(2), 0)), 2)
    after = await contender.get(database.worktree(0))
    _same("the transaction's fence", value(after, "version"), version + 4)


async def _costs(contender: Contender) -> None:
    job = [await contender.record_cost(database.job(0)) for _ in range(3)][-1]
    _same("the requests", value(job, "requests_made"), 3)
    _same("the cost", value(job, "cost_nano_usd"), 3 * COST_NANO_USD)
    _same("the pull requests", list(value(job, "pr_links")), [])
    _typed("started_at", value(job, "started_at"), datetime)
    await _refused("a cost without a job", contender.record_cost(database.job(10**6)))


async def _reservations(contender: Contender) -> None:
    reserved = await contender.reserve_budget(database.job(1))
    job = await contender.record_cost(database.job(1), reserved)
    _same("the requests", value(job, "requests_made"), 1)
    await contender.reserve_budget(database.job(2))
    await contender.record_cost(database.job(2))
    await _refused("a reservation without a job", contender.reserve_budget(database.job(10**6)))


async def _claims(contender: Contender) -> None:
    held = [await contender.claim() for _ in range(2)]
    tasks = [getattr(it, "task", it) for it in held]
    _same("the claimed", [value(it, "id") for it in tasks], [database.task(0), database.task(1)])
    _same("the state", value(tasks[0], "status"), "running")
    _typed("config", value(tasks[0], "config"), dict)
    done = await contender.complete(held[0])
    _same("the state", value(done, "status"), "completed")
    _typed("completed_at", value(done, "completed_at"), datetime)
    await _refused("a second completion", contender.complete(held[0]))
    again = await contender.claim()
    _same("the next", value(getattr(again, "task", again), "id"), database.task(2))
    for it in (held[1], again):
        await contender.complete(it)


async def _chains(path: Path) -> None:
    """Let the store verify what the contender appended; what was there has no chain."""
    async with MetadataStore.open(database.url(path)) as store:
        report = await store.audit_chains.verify()
        chain = await store.audit_chains.get("events", database.session(1))
    found = [it for it in report.findings if it.resource_id != database.session(0)]
    _same("what does not fit the chains", found, [])
    _same("the length of the chain", chain.length, 62)


def value(row: Any, name: str) -> Any:
    """Return a column of a row, whatever the contender's rows are."""
    return row[name] if isinstance(row, dict) else getattr(row, name)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ShirkingError(f"{what} is {found!r}, not {expected!r}")


def _typed(what: str, found: object, kind: type) -> None:
    if not isinstance(found, kind):
        raise ShirkingError(f"{what} is {found!r}, no {kind.__name__}")


async def _refused(what: str, attempt: Awaitable[object]) -> None:
    try:
        await attempt
    except Exception:  # noqa: BLE001 - each has its own
        return
    raise ShirkingError(f"{what} is accepted")
