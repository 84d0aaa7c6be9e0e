"""Page size, cache, memory map and checkpoints: what is chosen, beside what else there is.

Every variant runs the same operations with 64 tasks on a copy of the same database, in interleaved
rounds. What is reported is the rate in parts of the rate that the choice has in the same round.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sqlite3
import statistics
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import click

from benchmarks import database, growth, operations, page
from benchmarks.contenders.ours import Ours
from metastore.backends import sqlite_lanes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

__all__ = ["main"]

TASKS = 64
OPERATIONS = ("append", "reserve_release", "get", "page")
ANYWHERE = "page anywhere"
"""A page of any session of a table that is larger than the caches."""


class Variant(NamedTuple):
    """A setting.

    Attributes:
        what: what the table calls it.
        page_size: of the file; None as it is made.
        pragmas: what every connection is told.
        checkpoint_after: row changes between checkpoints; None as it is.
    """

    what: str
    page_size: int | None = None
    pragmas: tuple[str, ...] = ()
    checkpoint_after: int | None = None


CHOICE = Variant("as it is")
VARIANTS = (
    CHOICE,
    *(Variant(f"page_size {size:,}", page_size=size) for size in (1_024, 2_048, 8_192, 16_384)),
    *(
        Variant(f"cache_size {megabytes} MB", pragmas=(f"cache_size = -{megabytes * 1024}",))
        for megabytes in (16, 64, 256)
    ),
    *(
        Variant(f"mmap_size {megabytes:,} MB", pragmas=(f"mmap_size = {megabytes << 20}",))
        for megabytes in (256, 1_024)
    ),
    *(
        Variant(f"checkpoint after {changes:,} changes", checkpoint_after=changes)
        for changes in (1_000, 16_000, 64_000)
    ),
)


class Subject(NamedTuple):
    """A variant with its store, and its store of many events."""

    variant: Variant
    small: Ours
    big: Ours


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--seconds", default=0.4, show_default=True, help="How long each window takes.")
@click.option("--events", default=1_000_000, show_default=True, help="Events of the big table.")
@click.option("--write", is_flag=True, help="Write the table into docs/performance.md.")
def main(rounds: int, seconds: float, events: int, write: bool) -> None:
    """Print what each setting changes."""
    small = database.scratch("pragmas.db")
    database.fill(small)
    big = growth.fill_events(events)
    rates, tails = asyncio.run(_measure(small, big, events, rounds, seconds))
    for path in (small, big):
        database.remove(path)
    text = _table(rates, tails)
    click.echo(text)
    if write:
        page.replace_section("pragmas", text)


Rates = dict[str, dict[str, list[float]]]


async def _measure(
    small: Path, big: Path, events: int, rounds: int, seconds: float
) -> tuple[Rates, Rates]:
    rates: Rates = {it.what: {} for it in VARIANTS}
    tails: Rates = {it.what: {} for it in VARIANTS}
    async with AsyncExitStack() as stack:
        subjects = [await _subject(stack, it, small, big) for it in VARIANTS]
        for number in range(-1, rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            for name in (*OPERATIONS, ANYWHERE):
                first = number % len(subjects)
                for subject in subjects[first:] + subjects[:first]:
                    works = await _works(subject, name, events)
                    with _checkpoint_after(subject.variant.checkpoint_after):
                        rate, tail = await _window(works, seconds)
                    if number >= 0:
                        rates[subject.variant.what].setdefault(name, []).append(rate)
                        tails[subject.variant.what].setdefault(name, []).append(tail)
    return rates, tails


async def _subject(stack: AsyncExitStack, variant: Variant, small: Path, big: Path) -> Subject:
    stores = []
    for path in (small, big):
        copied = path.with_stem(f"{path.stem}-{variant.what.replace(' ', '-')}")
        database.copy(path, copied)
        stack.callback(database.remove, copied)
        if variant.page_size is not None:
            _resize_pages(copied, variant.page_size)
        store = Ours()
        await store.open(copied)
        stack.push_async_callback(store.close)
        backend = store.store._backend  # noqa: SLF001 - nothing public sets them
        for lane in (backend._writer, *backend._readers):  # noqa: SLF001
            for pragma in variant.pragmas:
                await lane.call(lambda raw, pragma=pragma: raw.execute(f"PRAGMA {pragma}"))
        stores.append(store)
    return Subject(variant, *stores)


def _resize_pages(path: Path, size: int) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(f"PRAGMA page_size = {size}")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")


async def _works(subject: Subject, name: str, events: int) -> list[Callable[[], Awaitable[object]]]:
    if name != ANYWHERE:
        prepare = operations.ALL[name].prepare
        return [await prepare(subject.small, task) for task in range(TASKS)]
    chance = random.Random(7)  # noqa: S311 - where exactly does not matter

    def once() -> Awaitable[object]:
        session, after = growth.place_in_session(chance.randrange(events))
        return subject.big.page(session, after)

    return [once] * TASKS


def _checkpoint_after(changes: int | None) -> Any:
    if changes is None:
        return contextlib.nullcontext()
    return mock.patch.object(sqlite_lanes, "CHECKPOINT_AFTER", changes)


async def _window(
    works: list[Callable[[], Awaitable[object]]], seconds: float
) -> tuple[float, float]:
    """Return operations a second, and the time that one in a thousand takes longer than."""
    durations: list[float] = []
    gc.collect()
    started = time.perf_counter()

    async def repeat(work: Callable[[], Awaitable[object]]) -> None:
        begun = time.perf_counter()
        while begun < started + seconds:
            await work()
            ended = time.perf_counter()
            durations.append(ended - begun)
            begun = ended

    await asyncio.gather(*map(repeat, works))
    elapsed = time.perf_counter() - started
    durations.sort()
    return len(durations) / elapsed, durations[int(len(durations) * 0.999)]


def _table(rates: Rates, tails: Rates) -> str:
    names = (*OPERATIONS, ANYWHERE)
    choice = rates[CHOICE.what]
    rows = [
        [
            f"{CHOICE.what}, operations a second",
            *(f"{statistics.median(choice[name]):,.0f}" for name in names),
            f"{statistics.median(tails[CHOICE.what]['append']) * 1e3:.1f} ms",
        ]
    ]
    for variant in VARIANTS[1:]:
        own = rates[variant.what]
        rows.append(
            [
                variant.what,
                *(f"{_paired(own[name], choice[name]):.2f}" for name in names),
                f"{statistics.median(tails[variant.what]['append']) * 1e3:.1f} ms",
            ]
        )
    titles = [operations.ALL[name].title if name in operations.ALL else name for name in names]
    return page.table(["", *titles, "append, p99.9"], rows)


def _paired(some: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


if __name__ == "__main__":
    main()
