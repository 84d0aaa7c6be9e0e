"""The same operations on small tables and on big ones."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import database
from benchmarks.contenders.base import CONTEXT, EVENT, MESSAGE
from benchmarks.results import GrowthFigure
from metastore import MetadataStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    Call = Callable[[], Awaitable[object]]

__all__ = ["fill_events", "measure_growth", "place_in_session"]

SMALL_EVENTS = 10_000
BIG_EVENTS = 10_000_000
BIG_EVENTS_QUICK = 300_000
ABREAST = 10
"""Sessions that run side by side at any time."""

LIFETIME = 10_000
"""Events from a session's first to its last: every tenth of them is its own."""

SMALL_WORKTREES = 100
BIG_WORKTREES = 100_000

REGIONS = {"the start": 0.0, "a quarter": 0.25, "the middle": 0.5, "the end": 0.98}
"""Where pages are read, in parts of the table; from anywhere in the 2 % behind it."""

REPETITIONS = 200


class Subject(NamedTuple):
    """An open store, and how many rows its table has."""

    store: MetadataStore
    rows: int


def measure_growth(rounds: int, *, quick: bool, say: Callable[[str], None]) -> list[GrowthFigure]:
    """Measure pages of events and acquisitions of worktrees."""
    big_events = BIG_EVENTS_QUICK if quick else BIG_EVENTS
    say(f"filling a table with {big_events:,} events")
    events = [(fill_events(rows), rows) for rows in (SMALL_EVENTS, big_events)]
    say(f"filling a table with {BIG_WORKTREES:,} worktrees")
    worktrees = [_with_worktrees(rows) for rows in (SMALL_WORKTREES, BIG_WORKTREES)]
    figures = asyncio.run(_measure(rounds, events, worktrees, say))
    for path, _ in (*events, *worktrees):
        database.remove(path)
    return figures


def fill_events(rows: int) -> Path:
    """Make a database with so many events, of sessions that ran one after the other."""
    path = database.scratch(f"events-{rows}.db")
    database.create(path)
    with database.connected(path) as connection:
        connection.execute(
            "INSERT INTO repositories (id, name, remote_url) VALUES (?, 'app', 'app')",
            (database.repository(),),
        )
        database.insert_sessions(connection, rows // LIFETIME * ABREAST)
        database.insert_events(connection, rows, abreast=ABREAST, lifetime=LIFETIME)
    return path


def _with_worktrees(rows: int) -> tuple[Path, int]:
    path = database.scratch(f"worktrees-{rows}.db")
    database.create(path)
    with database.connected(path) as connection:
        connection.execute(
            "INSERT INTO repositories (id, name, remote_url) VALUES (?, 'app', 'app')",
            (database.repository(),),
        )
        database.insert_worktrees(connection, database.repository(), 0, rows, free=1)
    return path, rows


async def _measure(
    rounds: int,
    events: list[tuple[Path, int]],
    worktrees: list[tuple[Path, int]],
    say: Callable[[str], None],
) -> list[GrowthFigure]:
    async with AsyncExitStack() as stack:

        async def subject(path: Path, rows: int) -> Subject:
            opening = MetadataStore.open(database.url(path))
            return Subject(await stack.enter_async_context(opening), rows)

        small, big = [
            (await subject(*of_events), await subject(*of_worktrees))
            for of_events, of_worktrees in zip(events, worktrees, strict=True)
        ]
        figures: dict[str, GrowthFigure] = {}
        for number in range(-1, rounds):
            say("growth, warming up" if number < 0 else f"growth, round {number + 1} of {rounds}")
            for one, other in zip(_works(*small, number), _works(*big, number), strict=True):
                times = await _medians(one, other)
                if number >= 0:
                    figure = figures.setdefault(
                        one.what, GrowthFigure(one.what, one.rows, other.rows, [], [])
                    )
                    figure.small_us.append(times[0])
                    figure.big_us.append(times[1])
        return list(figures.values())


class Work(NamedTuple):
    """What is timed on a table.

    Attributes:
        calls: each is timed.
        undo: called with what a call returned, and not timed.
    """

    what: str
    rows: int
    calls: list[Call]
    undo: Callable[[Any], Awaitable[object]] | None = None


def _works(events: Subject, worktrees: Subject, seed: int) -> Iterator[Work]:
    chance = random.Random(seed)  # noqa: S311 - where exactly does not matter
    for region, share in REGIONS.items():
        first = int(events.rows * share)
        places = [first + chance.randrange(events.rows // 50) for _ in range(REPETITIONS)]
        yield Work(
            f"page of all events from {region}",
            events.rows,
            [partial(events.store.events.list, after=min(it, events.rows - 50)) for it in places],
        )
        yield Work(
            f"page of a session's events from {region}",
            events.rows,
            [_session_page(events, place) for place in places],
        )
    session, _ = place_in_session(events.rows - 1)
    append = partial(events.store.events.append, session, EVENT, MESSAGE, context=CONTEXT)
    yield Work("append to the last session", events.rows, [append] * REPETITIONS)
    keys = [database.event_id(chance.randrange(events.rows)) for _ in range(REPETITIONS)]
    yield Work(
        "get of any event", events.rows, [partial(events.store.events.get, it) for it in keys]
    )
    acquire = partial(
        worktrees.store.worktrees.acquire,
        database.repository(),
        owner="runner-7",
        ttl=timedelta(hours=1),
    )
    yield Work(
        "acquire the only free worktree",
        worktrees.rows,
        [acquire] * REPETITIONS,
        worktrees.store.worktrees.release,
    )


def _session_page(subject: Subject, place: int) -> Call:
    session, after = place_in_session(place)
    return partial(subject.store.events.list_by_session, session, after=after)


def place_in_session(place: int) -> tuple[str, int]:
    """Return a session that runs at `place`, and where a page of it begins that is not short."""
    generation, offset = divmod(place, LIFETIME)
    session = database.session(generation * ABREAST + place % ABREAST)
    return session, generation * LIFETIME + min(offset, LIFETIME - 51 * ABREAST)


async def _medians(*works: Work) -> list[float]:
    """Return the median time of each, in microseconds; they take turns call by call."""
    times: list[list[float]] = [[] for _ in works]
    for calls in zip(*(work.calls for work in works), strict=True):
        for work, call, taken in zip(works, calls, times, strict=True):
            begun = time.perf_counter()
            result = await call()
            taken.append(time.perf_counter() - begun)
            if work.undo is not None:
                await work.undo(result)
    return [statistics.median(taken) * 1e6 for taken in times]
