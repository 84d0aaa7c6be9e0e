"""What each part of an operation costs: measured alone, and by leaving it out.

Parts that compute are timed by the processor time they take, so that a busy machine does not
change them much; what waits for threads or the disk is timed by the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from benchmarks import database, page
from benchmarks.contenders.base import CONTEXT, EVENT, MESSAGE, OWNER, TTL, new_token
from metastore import Event, MetadataStore, Worktree, codec
from metastore.backends import sqlite_file
from metastore.repositories.base import _catalogue, _decoder

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from metastore.statements import Call

__all__ = ["main"]

BATCH = 64
"""Statements in one commit, as with 64 tasks."""

REPETITIONS = 40

COLUMNS = "position, id, session_id, event_type, level, message, context, created_at, hash"
UNCHAINED = f"""
INSERT INTO events (id, session_id, event_type, level, message, context, created_at)
VALUES (:id, :session_id, :event_type, :level, :message, :context, :created_at)
RETURNING {COLUMNS}
"""

TRIGGERS_OF_EVENTS = ("events_no_update", "events_no_delete")
INDEXES_OF_EVENTS = ("ix_events_session_id", "ix_events_created_at")


class Part(NamedTuple):
    """A part of an operation and what it costs, in microseconds."""

    what: str
    microseconds: float


@click.command()
@click.option("--write", is_flag=True, help="Write the tables into docs/performance.md.")
def main(write: bool) -> None:
    """Print what each part of an append, a get and a page costs."""
    path = database.scratch("costs.db")
    database.fill(path)
    tables = {
        "costs in Python": _in_python(path),
        "costs in SQLite": _in_sqlite(path),
        "costs between": asyncio.run(_between(path)),
    }
    database.remove(path)
    for name, parts in tables.items():
        text = page.table(("", "µs"), ((it.what, f"{it.microseconds:.2f}") for it in parts))
        click.echo(f"### {name}\n\n{text}\n")
        if write:
            page.replace_section(name, text)


def _processor_time(work: Callable[[], object], number: int) -> float:
    """Return the microseconds of processor time that `work` takes."""
    times = []
    for _ in range(9):
        begun = time.process_time()
        for _ in range(number):
            work()
        times.append((time.process_time() - begun) / number)
    return min(times) * 1e6


def _in_python(path: Path) -> list[Part]:
    now = datetime.now(UTC)
    key = codec.new_id()
    statements, decode = _catalogue("events", Event), _decoder(Event)
    worktrees, decode_worktree = _catalogue("worktrees", Worktree), _decoder(Worktree)
    values = {
        "id": key,
        "session_id": key,
        "event_type": EVENT,
        "level": "info",
        "message": MESSAGE,
        "context": CONTEXT,
        "created_at": now,
    }
    encode = codec.parameter_encoders(Event, values)
    with contextlib.closing(sqlite_file.connect(path, read_only=True)) as connection:
        rows = _run(
            connection,
            statements.list_events_by_session(session_id=database.session(0), after=7, limit=50),
        )
        [worktree] = _run(connection, worktrees.get_worktree(id=database.worktree(7)))
    row, stamp = rows[0], codec.timestamp(now)
    contexts = [row[6] for row in rows]
    decode_json = msgspec.json.Decoder().decode
    timed: list[tuple[str, Callable[[], object], int]] = [
        ("a UUIDv7", codec.new_id, 20_000),
        ("the time", lambda: datetime.now(UTC), 20_000),
        *(
            (f"encode {name}", lambda name=name: encode[name](values[name]), 20_000)
            for name in ("id", "event_type", "level", "message", "context", "created_at")
        ),
        ("bind the 7 values of an event", lambda: statements.append_event(**values), 10_000),
        ("bind the id of a get", lambda: worktrees.get_worktree(id=key), 20_000),
        (
            "bind the 7 values of a reservation",
            lambda: worktrees.reserve_worktree(
                id=key,
                version=1,
                lease_owner=OWNER,
                lease_token=new_token(),
                lease_expires_at=now + TTL,
                now=now,
                horizon=now,
            ),
            10_000,
        ),
        ("an Event of a row", lambda: decode([row]), 20_000),
        ("a Worktree of a row", lambda: decode_worktree([worktree]), 20_000),
        ("50 Events of 50 rows", lambda: decode(rows), 1_000),
        ("of which: 50 JSON documents", lambda: list(map(decode_json, contexts)), 1_000),
        (
            "of which: 50 times",
            lambda: [datetime.fromisoformat(stamp) for _ in range(50)],
            1_000,
        ),
        (
            "of which: 50 Structs",
            lambda: [Event(*values) for values in rows],
            1_000,
        ),
    ]
    return [Part(what, _processor_time(work, number)) for what, work, number in timed]


def _run(connection: sqlite3.Connection, call: Call) -> list[Any]:
    return connection.execute(call.statement.sql, call.parameters).fetchall()


def _in_sqlite(path: Path) -> list[Part]:
    """Time the statements, in one thread; then the INSERT again without one thing after another."""
    statements, worktrees = _catalogue("events", Event), _catalogue("worktrees", Worktree)
    append = statements.append_event.sql
    plain = append.partition("RETURNING")[0]
    parts = []
    with contextlib.closing(sqlite_file.connect(path)) as connection:
        get = worktrees.get_worktree(id=database.worktree(7))
        listing = statements.list_events_by_session(
            session_id=database.session(0), after=5_000, limit=51
        )
        for what, call, number in (
            ("SELECT of a get", get, 10_000),
            ("SELECT of a page of 50", listing, 500),
        ):
            cost = _processor_time(lambda call=call: _run(connection, call), number)
            parts.append(Part(what, cost))
        whole = _inserts(connection, append)
        without_returning = _inserts(connection, plain)
        unchained = _inserts(connection, UNCHAINED)
        parts += [
            Part(f"INSERT of an event, one of {BATCH}", whole.statement),
            Part(f"its part of BEGIN and COMMIT, one of {BATCH}", whole.commit / BATCH),
            Part("BEGIN and COMMIT for it alone", _commit_alone(connection, append)),
            Part("of the INSERT: RETURNING", whole.statement - without_returning.statement),
            Part("of the INSERT: the hash chain", whole.statement - unchained.statement),
        ]
    parts += _left_out(path, append)
    return parts


class _Inserts(NamedTuple):
    statement: float
    commit: float


def _inserts(connection: sqlite3.Connection, sql: str, repetitions: int = REPETITIONS) -> _Inserts:
    """Return the microseconds of an INSERT of many, and of the commit of all."""
    statements, commits = [], []
    for _ in range(repetitions):
        rows = [_parameters(number) for number in range(BATCH)]
        connection.execute("BEGIN IMMEDIATE")
        begun = time.thread_time()
        for row in rows:
            connection.execute(sql, row).fetchall()
        statements.append(time.thread_time() - begun)
        begun = time.perf_counter()
        connection.execute("COMMIT")
        commits.append(time.perf_counter() - begun)
    return _Inserts(statistics.median(statements) / BATCH * 1e6, statistics.median(commits) * 1e6)


def _parameters(number: int) -> dict[str, Any]:
    statement = _catalogue("events", Event).append_event
    call = statement(
        id=codec.new_id(),
        session_id=database.session(1 + number % 63),
        event_type=EVENT,
        level="info",
        message=MESSAGE,
        context=CONTEXT,
        created_at=datetime.now(UTC),
    )
    parameters: dict[str, Any] = call.parameters
    return parameters


def _commit_alone(connection: sqlite3.Connection, sql: str) -> float:
    times = []
    for number in range(10 * REPETITIONS):
        row = _parameters(number)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(sql, row).fetchall()
        begun = time.perf_counter()
        connection.execute("COMMIT")
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def _left_out(path: Path, sql: str) -> list[Part]:
    """Return what an INSERT costs less on a copy that lacks something."""
    changes = {
        "CHECKs": ["PRAGMA ignore_check_constraints = ON"],
        "the foreign key": ["PRAGMA foreign_keys = OFF"],
        "triggers": [f"DROP TRIGGER {name}" for name in TRIGGERS_OF_EVENTS],
        **{f"index {name}": [f"DROP INDEX {name}"] for name in INDEXES_OF_EVENTS},
    }
    scratch = path.with_name("costs-scratch.db")
    with contextlib.ExitStack() as stack:
        connections = {
            what: stack.enter_context(_changed(path, scratch.with_stem(f"scratch-{n}"), statements))
            for n, (what, statements) in enumerate({"nothing": [], **changes}.items())
        }
        times: dict[str, list[float]] = {what: [] for what in connections}
        for _ in range(15):
            for what, connection in connections.items():
                times[what].append(_inserts(connection, sql, repetitions=6).statement)
    return [
        Part(
            f"of the INSERT: {what}",
            statistics.median(
                whole - less for whole, less in zip(times["nothing"], times[what], strict=True)
            ),
        )
        for what in changes
    ]


@contextlib.contextmanager
def _changed(path: Path, scratch: Path, statements: list[str]) -> Iterator[sqlite3.Connection]:
    database.copy(path, scratch)
    with contextlib.closing(sqlite_file.connect(scratch)) as connection:
        for statement in statements:
            connection.execute(statement)
        yield connection
    database.remove(scratch)


async def _between(path: Path) -> list[Part]:
    """Time what goes from thread to thread, by the clock."""
    async with MetadataStore.open(database.url(path)) as store:
        lane = store._backend._readers[0]  # noqa: SLF001 - what it adds to a statement
        worktrees, key = store.worktrees, database.worktree(7)
        events = store.events

        def nothing() -> Awaitable[object]:
            return lane.call(lambda _: None)

        def append() -> Awaitable[object]:
            return events.append(database.session(1), EVENT, MESSAGE, context=CONTEXT)

        def get() -> Awaitable[object]:
            return worktrees.get(key)

        def listing() -> Awaitable[object]:
            return events.list_by_session(database.session(0), after=5_000)

        return [
            Part("a hop to a thread and back, with nothing to do", await _alone(nothing)),
            Part("append, alone", await _alone(append)),
            Part(f"append, one of {BATCH}", await _together(append)),
            Part("get, alone", await _alone(get)),
            Part(f"get, one of {BATCH}", await _together(get)),
            Part("page of 50, alone", await _alone(listing)),
            Part(f"page of 50, one of {BATCH}", await _together(listing)),
        ]


async def _alone(work: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(1_000):
        begun = time.perf_counter()
        await work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


async def _together(work: Callable[[], Awaitable[object]]) -> float:
    """Return the time of one of many that are asked for at once, in parts of all of them."""

    async def task() -> None:
        await work()

    times = []
    for _ in range(50):
        begun = time.perf_counter()
        await asyncio.gather(*(task() for _ in range(BATCH)))
        times.append((time.perf_counter() - begun) / BATCH)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    main()
