"""The same operations on small tables and on big ones."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import database
from benchmarks.results import GrowthFigure
from metastore import MetadataStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Call = Callable[[], Awaitable[object]]

__all__ = ["fill_events", "measure_growth", "place_in_session"]

SMALL_EVENTS = 10_000
BIG_EVENTS = 10_000_000
BIG_EVENTS_QUICK = 1_000_000
ABREAST = 10
"""Sessions that run side by side at any time."""

LIFETIME = 10_000
"""Events from a session's first to its last: every tenth of them is its own."""

SMALL_WORKTREES = 100
BIG_WORKTREES = 100_000

REGIONS = {"the start": 0.0, "a quarter": 0.25, "the middle": 0.5, "the end": 0.98}
"""Where pages are read, in parts of the table; from anywhere in the 2 % behind it."""

REPETITIONS = 100


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

        pages = [await subject(*it) for it in events]
        leases = [await subject(*it) for it in worktrees]
        figures = [
            *(_figure(f"page of all events from {region}", pages) for region in REGIONS),
            *(_figure(f"page of a session's events from {region}", pages) for region in REGIONS),
            _figure("acquire the only free worktree", leases),
        ]
        for number in range(-1, rounds):
            say("growth, warming up" if number < 0 else f"growth, round {number + 1} of {rounds}")
            [*small], [*big] = [await _page_times(it, number) for it in pages]
            small.append(await _acquire_time(leases[0]))
            big.append(await _acquire_time(leases[1]))
            if number >= 0:
                for figure, small_us, big_us in zip(figures, small, big, strict=True):
                    figure.small_us.append(small_us)
                    figure.big_us.append(big_us)
        return figures


def _figure(what: str, subjects: list[Subject]) -> GrowthFigure:
    small, big = subjects
    return GrowthFigure(what, small.rows, big.rows, [], [])


async def _page_times(subject: Subject, seed: int) -> list[float]:
    """Return the time of a page in each region: of all events, then of one session's."""
    chance = random.Random(seed)  # noqa: S311 - where exactly does not matter
    all_pages, session_pages = [], []
    for share in REGIONS.values():
        first = int(subject.rows * share)
        places = [first + chance.randrange(subject.rows // 50) for _ in range(REPETITIONS)]
        all_pages.append(await _median([_page(subject, place) for place in places]))
        session_pages.append(await _median([_session_page(subject, place) for place in places]))
    return [*all_pages, *session_pages]


def _page(subject: Subject, place: int) -> Call:
    after = min(place, subject.rows - 50)
    return lambda: subject.store.events.list(after=after)


def _session_page(subject: Subject, place: int) -> Call:
    session, after = place_in_session(place)
    return lambda: subject.store.events.list_by_session(session, after=after)


def place_in_session(place: int) -> tuple[str, int]:
    """Return a session that runs at `place`, and where a page of it begins that is not short."""
    generation, offset = divmod(place, LIFETIME)
    session = database.session(generation * ABREAST + place % ABREAST)
    return session, generation * LIFETIME + min(offset, LIFETIME - 51 * ABREAST)


async def _acquire_time(subject: Subject) -> float:
    worktrees = subject.store.worktrees
    times = []
    for _ in range(REPETITIONS):
        begun = time.perf_counter()
        lease = await worktrees.acquire(
            database.repository(), owner="runner-7", ttl=timedelta(hours=1)
        )
        times.append(time.perf_counter() - begun)
        await worktrees.release(lease)
    return statistics.median(times) * 1e6


async def _median(calls: list[Call]) -> float:
    times = []
    for call in calls:
        begun = time.perf_counter()
        await call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6
