"""Page size, cache, memory map, checkpoints, statistics: what is chosen, and what else there is.

Every variant runs the same operations with 64 tasks on a copy of the same database, in many short
windows that take turns. What is reported is the rate and the processor time that an operation
takes, over all windows and in parts of what the choice has: the second says more on a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sqlite3
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import click

from benchmarks import database, growth, operations, page
from benchmarks.contenders.ours import Ours
from metastore.backends.sqlite import lanes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

__all__ = ["main"]

TASKS = 64
OPERATIONS = ("append", "acquire_release", "get", "page")
ANYWHERE = "page anywhere"
"""A page of any session of a table that is larger than the caches."""


class Variant(NamedTuple):
    """A setting.

    Attributes:
        what: what the table calls it.
        page_size: of the file; None as it is made.
        pragmas: what every connection is told.
        checkpoint_after: row changes between checkpoints; None as it is.
        analysis_limit: how many rows of each index ANALYZE looks at before the file is opened, 0
            for all; None for no statistics, as it is.
    """

    what: str
    page_size: int | None = None
    pragmas: tuple[str, ...] = ()
    checkpoint_after: int | None = None
    analysis_limit: int | None = None


NEVER = 1 << 60

CHOICE = Variant("as it is")
VARIANTS = (
    CHOICE,
    *(Variant(f"page_size {size:,}", page_size=size) for size in (8_192, 16_384)),
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
    Variant(
        "SQLite's wal_autocheckpoint, 1,000 pages",
        pragmas=("wal_autocheckpoint = 1000",),
        checkpoint_after=NEVER,
    ),
    Variant("temp_store in memory", pragmas=("temp_store = MEMORY",)),
    Variant("statistics of ANALYZE", analysis_limit=0),
    Variant("statistics of PRAGMA optimize, 400 rows", analysis_limit=400),
)


class Subject(NamedTuple):
    """A variant with its store, and its store of many events."""

    variant: Variant
    small: Ours
    big: Ours


@click.command()
@click.option("--rounds", default=40, show_default=True)
@click.option("--seconds", default=0.05, show_default=True, help="How long each window takes.")
@click.option("--events", default=500_000, show_default=True, help="Events of the big table.")
@click.option("--only", multiple=True, help="Measure only variants whose names hold this.")
@click.option("--write", is_flag=True, help="Write the table into docs/performance.md.")
def main(rounds: int, seconds: float, events: int, only: tuple[str, ...], write: bool) -> None:
    """Print what each setting changes."""
    small = database.scratch("pragmas.db")
    database.fill(small)
    big = growth.fill_events(events)
    variants = [
        it for it in VARIANTS if it is CHOICE or not only or any(name in it.what for name in only)
    ]
    figures = asyncio.run(_measure(variants, small, big, events, rounds, seconds))
    for path in (small, big):
        database.remove(path)
    text = _table(figures)
    click.echo(text)
    if write:
        page.replace_section("pragmas", text)


class Window(NamedTuple):
    """What was measured in one window, in seconds."""

    durations: list[float]
    elapsed: float
    processor: float


class Figure(NamedTuple):
    """An operation of a variant, over all windows.

    Attributes:
        rate: operations a second.
        processor: seconds of processor time that one took.
        tail: how long one in a thousand took at least, in seconds.
    """

    rate: float
    processor: float
    tail: float

    @classmethod
    def of(cls, windows: list[Window]) -> Figure:
        """Add up windows, so that each has its share of what happens in few of them."""
        durations = sorted(duration for it in windows for duration in it.durations)
        return cls(
            rate=len(durations) / sum(it.elapsed for it in windows),
            processor=sum(it.processor for it in windows) / len(durations),
            tail=durations[int(len(durations) * 0.999)],
        )


Figures = dict[str, dict[str, Figure]]
"""Each operation, for each variant."""


async def _measure(
    variants: list[Variant], small: Path, big: Path, events: int, rounds: int, seconds: float
) -> Figures:
    windows: dict[str, dict[str, list[Window]]] = {it.what: {} for it in variants}
    async with AsyncExitStack() as stack:
        subjects = [await _subject(stack, it, small, big) for it in variants]
        for number in range(-1, rounds):
            if number % 10 == 0:
                click.echo(f"round {number + 1} of {rounds}", err=True)
            for name in (*OPERATIONS, ANYWHERE):
                first = number % len(subjects)
                for subject in subjects[first:] + subjects[:first]:
                    works = await _works(subject, name, events)
                    with _checkpoint_after(subject.variant.checkpoint_after):
                        window = await _window(works, seconds)
                    if number >= 0:
                        windows[subject.variant.what].setdefault(name, []).append(window)
    return {
        what: {name: Figure.of(them) for name, them in of_variant.items()}
        for what, of_variant in windows.items()
    }


async def _subject(stack: AsyncExitStack, variant: Variant, small: Path, big: Path) -> Subject:
    stores = []
    for path in (small, big):
        copied = path.with_stem(f"{path.stem}-{variant.what.replace(' ', '-')}")
        database.copy(path, copied)
        stack.callback(database.remove, copied)
        _change(copied, variant)
        store = Ours()
        await store.open(copied)
        stack.push_async_callback(store.close)
        backend: Any = store.store._backend  # noqa: SLF001 - nothing public sets them
        for lane in (backend._writer, *backend._readers):  # noqa: SLF001
            for pragma in variant.pragmas:
                await lane.call(lambda raw, pragma=pragma: raw.execute(f"PRAGMA {pragma}"))
        stores.append(store)
    return Subject(variant, *stores)


def _change(path: Path, variant: Variant) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if variant.page_size is not None:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute(f"PRAGMA page_size = {variant.page_size}")
            connection.execute("VACUUM")
            connection.execute("PRAGMA journal_mode = WAL")
        if variant.analysis_limit is not None:
            connection.execute(f"PRAGMA analysis_limit = {variant.analysis_limit}")
            connection.execute("ANALYZE")


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
    return mock.patch.object(lanes, "CHECKPOINT_AFTER", changes)


async def _window(works: list[Callable[[], Awaitable[object]]], seconds: float) -> Window:
    durations: list[float] = []
    gc.collect()
    processor = time.process_time()
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
    return Window(durations, elapsed, time.process_time() - processor)


def _table(figures: Figures) -> str:
    names = (*OPERATIONS, ANYWHERE)
    choice = figures[CHOICE.what]
    rows = [[CHOICE.what, *(_absolute(choice[name]) for name in names), _tail(choice)]]
    for what, own in figures.items():
        if what != CHOICE.what:
            rows.append([what, *(_relative(own[it], choice[it]) for it in names), _tail(own)])
    titles = [operations.ALL[name].title if name in operations.ALL else name for name in names]
    return page.table(["rate, processor time", *titles, "append, p99.9"], rows)


def _absolute(figure: Figure) -> str:
    return f"{figure.rate:,.0f}/s, {figure.processor * 1e6:.0f} µs"


def _relative(figure: Figure, choice: Figure) -> str:
    return f"{figure.rate / choice.rate:.2f}, {figure.processor / choice.processor:.2f}"


def _tail(figures: dict[str, Figure]) -> str:
    return f"{figures['append'].tail * 1e3:.1f} ms"


if __name__ == "__main__":
    main()
