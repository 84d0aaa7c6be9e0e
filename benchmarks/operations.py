"""What is measured: each operation as what one task does again and again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import database
from benchmarks.contenders import LEVELS
from benchmarks.contenders.base import CONTEXT, EVENT, MESSAGE, NewEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from benchmarks.contenders.base import Contender

    Once = Callable[[], Awaitable[object]]

__all__ = ["ALL", "Operation"]


class Operation(NamedTuple):
    """An operation.

    Attributes:
        title: what the tables call it.
        prepare: returns what the task of this number does each time.
        tasks: how many tasks do it at once, from 1 to many.
        replenish: puts back into the database what it uses up, before each window.
    """

    title: str
    prepare: Callable[[Contender, int], Awaitable[Once]]
    tasks: tuple[int, ...] = LEVELS
    replenish: Callable[[Path], None] | None = None


async def append(contender: Contender, task: int) -> Once:
    """Append one event."""
    session = database.session(1 + task % 63)
    return lambda: contender.append(session)


async def append_many(contender: Contender, task: int) -> Once:
    """Append 1,000 events in one call."""
    session = database.session(1 + task % 63)
    events = [
        NewEvent(EVENT, MESSAGE, "info", {**CONTEXT, "elapsed_ms": number})
        for number in range(1_000)
    ]
    return lambda: contender.append_many(session, events)


async def reserve_release(contender: Contender, task: int) -> Once:
    """Reserve a worktree of one's own and release it."""
    worktree = await contender.get(database.worktree(task))

    async def cycle() -> None:
        nonlocal worktree
        worktree = await contender.release(await contender.reserve(worktree))

    return cycle


async def acquire_release(contender: Contender, _task: int) -> Once:
    """Take any free worktree among busy ones and release it."""
    repository = database.crowd_repository()

    async def cycle() -> None:
        await contender.release(await contender.acquire(repository))

    return cycle


async def get(contender: Contender, task: int) -> Once:
    """Get a worktree by its id."""
    chance = random.Random(task)  # noqa: S311 - which one does not matter

    async def once() -> None:
        await contender.get(database.worktree(chance.randrange(database.WORKTREES)))

    return once


async def page(contender: Contender, task: int) -> Once:
    """Read 50 events of a session from anywhere in it."""
    chance = random.Random(task)  # noqa: S311 - where does not matter
    session = database.session(0)

    async def once() -> None:
        await contender.page(session, chance.randrange(database.EVENTS - 50))

    return once


async def transaction(contender: Contender, task: int) -> Once:
    """Run five statements in one transaction."""
    session, worktree = database.session(1 + task % 63), database.worktree(task)
    return lambda: contender.transaction(session, worktree)


async def record_cost(contender: Contender, task: int) -> Once:
    """Record what a model call did cost, on a job of one's own."""
    job = database.job(task % database.JOBS)
    return lambda: contender.record_cost(job)


async def reserve_record_cost(contender: Contender, task: int) -> Once:
    """Reserve money for a call, then record what it did cost, on a job of one's own."""
    job = database.job(task % database.JOBS)

    async def cycle() -> None:
        await contender.record_cost(job, await contender.reserve_budget(job))

    return cycle


async def claim_complete(contender: Contender, _task: int) -> Once:
    """Claim the oldest pending task and complete it."""

    async def cycle() -> None:
        await contender.complete(await contender.claim())

    return cycle


ALL = {
    "append": Operation("append", append),
    "append_many": Operation("append_many(1,000)", append_many, (1, 8)),
    "reserve_release": Operation("reserve + release", reserve_release),
    "acquire_release": Operation("acquire among 2,000 + release", acquire_release),
    "get": Operation("get by id", get),
    "page": Operation("page of 50 events", page),
    "transaction": Operation("transaction of five statements", transaction),
    "record_cost": Operation("cost record, with totals", record_cost),
    "reserve_record_cost": Operation("budget reserve + cost record", reserve_record_cost),
    "claim_complete": Operation(
        "task claim + complete", claim_complete, replenish=database.replenish_tasks
    ),
}
"""Every operation, by key."""
