"""What each part of an append, a get and a page costs: measured alone, or by leaving it out.

Parts that compute are timed by the processor time they take, so that a busy machine does not
change them much; only the flush, which is waiting, is timed by the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
import uuid
from dataclasses import make_dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from benchmarks import database, page
from benchmarks.audit import UNCHAINED
from benchmarks.contenders.base import CONTEXT, EVENT, MESSAGE
from metastore import Event, MetadataStore, Worktree, codec
from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.columns import COLUMNS
from metastore.repositories.base import _catalogue, _decoder

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    from metastore.statements import Call

__all__ = ["main"]

BATCH = 64
"""Operations that are asked for at once and share their hops, and their commit."""

ROUNDS = 15

TRIGGERS_OF_EVENTS = ("events_no_update", "events_no_delete")
INDEXES_OF_EVENTS = ("ix_events_session_id", "ix_events_created_at")


class Part(NamedTuple):
    """A part of an operation, and what it costs in microseconds.

    Attributes:
        what: `of which` marks a part of the part above, which is not counted again.
        alone: for an operation that nobody shares anything with; None if nothing can be said.
        shared: for one of `BATCH`.
    """

    what: str
    alone: float | None
    shared: float | None


class Whole(NamedTuple):
    """A whole operation, in microseconds: by the clock, and of processor time in all threads."""

    clock: float
    processor: float


@click.command()
@click.option("--write", is_flag=True, help="Write the tables into docs/performance.md.")
def main(write: bool) -> None:
    """Print what each part of an append, a get and a page costs."""
    path = database.scratch("costs.db")
    database.fill(path)
    wholes = asyncio.run(_wholes(path))
    hop = Part("a hop to a thread and back", *wholes.pop("hop"))
    tables = {
        f"cost of {name}": _table([*parts, *_sum(parts, wholes[name])])
        for name, parts in {
            "an append": [*_append(path), hop],
            "a get": [*_get(path), hop],
            "a page": [*_page(path), hop],
        }.items()
    }
    tables["cost of the alternatives"] = page.table(
        ("", "µs"), ((what, f"{cost:.2f}") for what, cost in _alternatives(path))
    )
    database.remove(path)
    for name, text in tables.items():
        click.echo(f"### {name}\n\n{text}\n")
        if write:
            page.replace_section(name, text)


def _table(parts: Iterable[Part]) -> str:
    return page.table(
        ("", "alone, µs", f"one of {BATCH}, µs"),
        ((it.what, _cell(it.alone), _cell(it.shared)) for it in parts),
    )


def _cell(cost: float | None) -> str:
    if cost is None:
        return page.NOTHING
    return f"{cost:.2f}" if cost >= 0.05 else "≈ 0"


def _sum(parts: list[Part], wholes: tuple[Whole, Whole]) -> Iterator[Part]:
    """Yield what no part accounts for, and the whole."""
    alone, shared = wholes
    counted = [it for it in parts if not it.what.startswith(("of which", "the flush"))]
    yield Part(
        "the rest: futures, the queue, the tasks' own turns",
        alone.processor - sum(it.alone or 0 for it in counted),
        shared.processor - sum(it.shared or 0 for it in counted),
    )
    yield Part("**the whole, processor time**", alone.processor, shared.processor)
    yield Part("**the whole, by the clock**", alone.clock, shared.clock)


# What happens in the caller, and to its rows.


def _append(path: Path) -> list[Part]:
    statements, decode = (
        _catalogue("events", Event, COLUMNS),
        _decoder("events", Event, COLUMNS),
    )
    row = _new_event(1)
    encode = codec.parameter_encoders(Event, row, COLUMNS)
    result = (10_001, *_call(1).parameters)
    bound = _processor_time(lambda: statements.append_event(**row), 5_000)
    encoded = {name: _processor_time(partial(encode[name], row[name]), 20_000) for name in row}
    inserts = _inserts(path)
    return [
        _same("a UUIDv7", _processor_time(codec.new_id, 20_000)),
        _same("the time", _processor_time(lambda: datetime.now(UTC), 20_000)),
        _same("validate, encode and bind 7 values", bound),
        _same("of which the document", encoded["context"]),
        _same("of which the time", encoded["created_at"]),
        _same(
            "of which the ids and texts",
            sum(encoded.values()) - encoded["context"] - encoded["created_at"],
        ),
        _same("INSERT", inserts.statement),
        *(_same(f"of which {what}", cost) for what, cost in inserts.parts.items()),
        Part("BEGIN and COMMIT", inserts.commit_alone, inserts.commit_of_batch / BATCH),
        Part("the flush to the disk, by the clock", inserts.flush, inserts.flush / BATCH),
        _same("an Event of a row", _processor_time(lambda: decode([result]), 10_000)),
    ]


def _get(path: Path) -> list[Part]:
    statements, decode = (
        _catalogue("worktrees", Worktree, COLUMNS),
        _decoder("worktrees", Worktree, COLUMNS),
    )
    key = database.worktree(7)
    with contextlib.closing(database_file.connect(path, read_only=True)) as connection:
        call = statements.get_worktree(id=key)
        [row] = _run(connection, call)
        selected = _processor_time(lambda: _run(connection, call), 5_000)
    return [
        _same("bind the id", _processor_time(lambda: statements.get_worktree(id=key), 20_000)),
        _same("SELECT", selected),
        _same("a Worktree of a row", _processor_time(lambda: decode([row]), 10_000)),
    ]


def _page(path: Path) -> list[Part]:
    statements, decode = (
        _catalogue("events", Event, COLUMNS),
        _decoder("events", Event, COLUMNS),
    )
    asked = {"session_id": database.session(0), "after": 5_000, "limit": 51}
    with contextlib.closing(database_file.connect(path, read_only=True)) as connection:
        call = statements.list_events_by_session(**asked)
        rows = _run(connection, call)
        selected = _processor_time(lambda: _run(connection, call), 300)
    contexts, stamps = [row[6] for row in rows], [row[7] for row in rows]
    load = msgspec.json.Decoder().decode
    bind = _processor_time(lambda: statements.list_events_by_session(**asked), 10_000)
    parts: dict[str, Callable[[], object]] = {
        "51 Events of 51 rows": lambda: decode(rows),
        "of which 51 documents": lambda: list(map(load, contexts)),
        "of which 51 times": lambda: list(map(datetime.fromisoformat, stamps)),
        "of which 51 Structs": lambda: [Event(*row) for row in rows],
    }
    return [
        _same("bind the session and position", bind),
        _same("SELECT", selected),
        *(_same(what, _processor_time(work, 500)) for what, work in parts.items()),
    ]


def _alternatives(path: Path) -> list[tuple[str, float]]:
    """Time what was chosen beside what else there is, for 50 rows where it says so."""
    with contextlib.closing(database_file.connect(path, read_only=True)) as connection:
        columns = ", ".join(Event.__struct_fields__)
        rows = connection.execute(f"SELECT {columns} FROM events LIMIT 50").fetchall()
    frozen, mutable = (
        make_dataclass("Event", Event.__struct_fields__, frozen=it, slots=True)
        for it in (True, False)
    )
    text = json.dumps(CONTEXT)
    dump, load = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
    timed: dict[str, Callable[[], object]] = {
        "50 rows: frozen msgspec.Struct": lambda: [Event(*row) for row in rows],
        "50 rows: dataclass with slots": lambda: [mutable(*row) for row in rows],
        "50 rows: frozen dataclass with slots": lambda: [frozen(*row) for row in rows],
        "50 rows: dict": lambda: [dict(zip(Event.__struct_fields__, row)) for row in rows],  # noqa: B905
        "a document to text: msgspec": lambda: dump(CONTEXT),
        "a document to text: json": lambda: json.dumps(CONTEXT),
        "a document of text: msgspec": lambda: load(text),
        "a document of text: json": lambda: json.loads(text),
        "an id: UUIDv7 of uuid_utils": codec.new_id,
        "an id: uuid.uuid4": lambda: str(uuid.uuid4()),
    }
    return [
        (what, _processor_time(work, 500 if what.startswith("50") else 5_000))
        for what, work in timed.items()
    ]


def _same(what: str, cost: float) -> Part:
    return Part(what, cost, cost)


def _processor_time(work: Callable[[], object], number: int) -> float:
    """Return the microseconds of processor time that `work` takes, when least disturbed."""
    times = []
    for _ in range(15):
        begun = time.process_time()
        for _ in range(number):
            work()
        times.append((time.process_time() - begun) / number)
    return min(times) * 1e6


def _run(connection: sqlite3.Connection, call: Call) -> list[Any]:
    return connection.execute(call.statement.sql, call.bound).fetchall()


def _new_event(number: int) -> dict[str, Any]:
    return {
        "id": codec.new_id(),
        "session_id": database.session(1 + number % 63),
        "event_type": EVENT,
        "level": "info",
        "message": MESSAGE,
        "context": CONTEXT,
        "created_at": datetime.now(UTC),
    }


def _call(number: int) -> Call:
    return _catalogue("events", Event, COLUMNS).append_event(**_new_event(number))


# The INSERT: again and again on copies of the database that lack one thing each.


class Inserts(NamedTuple):
    """What inserting events costs in SQLite, in microseconds.

    Attributes:
        statement: one INSERT, one of a batch.
        parts: how much less it costs without something.
        commit_of_batch: BEGIN and COMMIT around a batch, processor time; `commit_alone` around one.
        flush: how long the disk takes, by the clock.
    """

    statement: float
    parts: dict[str, float]
    commit_of_batch: float
    commit_alone: float
    flush: float


class Variant(NamedTuple):
    """A connection to a copy of the database, and the INSERT to run on it."""

    connection: sqlite3.Connection
    sql: str


class Cost(NamedTuple):
    """Processor time of one INSERT of a batch and of its commit, and the commit by the clock."""

    statement: float
    commit: float
    clock: float


def _inserts(path: Path) -> Inserts:
    sql = _catalogue("events", Event, COLUMNS).append_event.sql
    changes = {
        "the hash chain": ([], UNCHAINED),
        "CHECKs": (["PRAGMA ignore_check_constraints = ON"], sql),
        "the foreign key": (["PRAGMA foreign_keys = OFF"], sql),
        "the triggers that forbid": ([f"DROP TRIGGER {it}" for it in TRIGGERS_OF_EVENTS], sql),
        **{f"index {it}": ([f"DROP INDEX {it}"], sql) for it in INDEXES_OF_EVENTS},
    }
    with contextlib.ExitStack() as stack:

        def variant(name: str, statements: list[str], sql: str) -> Variant:
            return Variant(stack.enter_context(_changed(path, name, statements)), sql)

        whole = variant("whole", [], sql)
        lazy = variant("lazy", ["PRAGMA synchronous = OFF"], sql)
        lacking = {
            what: variant(f"lacking-{number}", *change)
            for number, (what, change) in enumerate(changes.items())
        }
        wholes: list[Cost] = []
        saved: dict[str, list[float]] = {what: [] for what in changes}
        alone: list[Cost] = []
        unflushed: list[Cost] = []
        for _ in range(ROUNDS):
            wholes.append(cost := _insert(whole, BATCH))
            for what, it in lacking.items():
                saved[what].append(cost.statement - _insert(it, BATCH).statement)
            alone.append(_insert(whole, 1))
            unflushed.append(_insert(lazy, 1))
    return Inserts(
        statement=statistics.median(it.statement for it in wholes),
        parts={what: statistics.median(it) for what, it in saved.items()},
        commit_of_batch=statistics.median(it.commit for it in wholes),
        commit_alone=statistics.median(it.commit for it in alone),
        flush=statistics.median(
            one.clock - other.clock for one, other in zip(alone, unflushed, strict=True)
        ),
    )


@contextlib.contextmanager
def _changed(path: Path, name: str, statements: list[str]) -> Iterator[sqlite3.Connection]:
    scratch = path.with_stem(f"costs-{name}")
    database.copy(path, scratch)
    with contextlib.closing(database_file.connect(scratch)) as connection:
        for statement in statements:
            connection.execute(statement)
        yield connection
    database.remove(scratch)


def _insert(variant: Variant, size: int) -> Cost:
    """Insert a batch of this size a few times, and return the medians."""
    costs = []
    for _ in range(8):
        rows = [_call(number).parameters for number in range(size)]
        execute = variant.connection.execute
        begun = time.thread_time()
        execute("BEGIN IMMEDIATE")
        opened = time.thread_time()
        for row in rows:
            execute(variant.sql, row).fetchall()
        inserted, clock = time.thread_time(), time.perf_counter()
        execute("COMMIT")
        clock = time.perf_counter() - clock
        commit = time.thread_time() - inserted + opened - begun
        costs.append(Cost((inserted - opened) / size, commit, clock))
    return Cost(*(statistics.median(it) * 1e6 for it in zip(*costs, strict=True)))


# The whole, threads included.


async def _wholes(path: Path) -> dict[str, tuple[Any, Any]]:
    """Return what the operations cost alone and as one of a batch; of a hop the processor time."""
    async with MetadataStore.open(database.url(path)) as store:
        backend: Any = store._backend  # noqa: SLF001 - what a lane adds to a statement
        lane = backend._readers[0]  # noqa: SLF001
        worktrees, events = store.worktrees, store.events
        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "hop": lambda: lane.call(lambda _: None),
            "an append": lambda: events.append(
                database.session(1), EVENT, MESSAGE, context=CONTEXT
            ),
            "a get": lambda: worktrees.get(database.worktree(7)),
            "a page": lambda: events.list_by_session(database.session(0), after=5_000),
        }
        wholes: dict[str, tuple[Any, Any]] = {
            name: (await _cost(work, 1), await _cost(work, BATCH))
            for name, work in operations.items()
        }
    hop: Whole = wholes["hop"][0]
    return wholes | {"hop": (hop.processor, hop.processor / BATCH)}


async def _cost(work: Callable[[], Awaitable[object]], size: int) -> Whole:
    """Return the cost of one of so many that are asked for at once."""

    async def task() -> None:
        await work()

    clocks, processors = [], []
    for _ in range(ROUNDS):
        repetitions = 256 // size
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(repetitions):
            if size == 1:
                await work()
            else:
                await asyncio.gather(*(task() for _ in range(size)))
        processors.append((time.process_time() - processor) / (repetitions * size))
        clocks.append((time.perf_counter() - clock) / (repetitions * size))
    return Whole(statistics.median(clocks) * 1e6, min(processors) * 1e6)


if __name__ == "__main__":
    main()
