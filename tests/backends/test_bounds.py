"""Nobody waits, and nobody holds the writer, longer than is promised."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiosql.types import SQLOperationType

from metastore import StoreBusy, StoreClosed
from metastore.backends.sqlite import lanes
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.url import of_file
from tests.backends.conftest import add_parent, list_parents, statement
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUSY_TIMEOUT = 0.4
CLOSED_WITHIN = 8.0
"""What the steps of a close add up to at most, and some for a busy machine, in seconds."""

# Rows that take four milliseconds each.
add_slowly = statement("INSERT INTO parents (id, name) SELECT :id, 'slow ' || nap(0.004)")


@pytest.fixture
async def backend(path: Path) -> Any:
    backend = await SqliteBackend.open(of_file(path))
    raw = backend._writer.connection.raw
    raw.create_function("nap", 1, _nap)
    yield backend
    await backend.close()


def _nap(seconds: float) -> float:
    time.sleep(seconds)
    return random.random()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock, as another process would."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


# --- waiting for another process ---------------------------------------------------------------


@pytest.mark.parametrize("callers", [1, 5, 64, 600])
async def test_busy__a_batch_waits_once(path: Path, backend: SqliteBackend, callers: int) -> None:
    backend._writer.busy_timeout_ms = round(BUSY_TIMEOUT * 1000)
    loop = asyncio.get_running_loop()
    waited: list[float] = []

    async def write(n: int) -> None:
        begun = loop.time()
        with pytest.raises(StoreBusy):
            await backend.run(add_parent(id=n, name=str(n)))
        waited.append(loop.time() - begun)

    # A batch that waits for ever fails here, instead of hanging.
    with locked(path):
        async with asyncio.timeout(BUSY_TIMEOUT * 20):
            await asyncio.gather(*(write(n) for n in range(callers)))
    assert len(waited) == callers
    assert min(waited) >= BUSY_TIMEOUT * 0.9
    # One after the other, five of them would have taken five times as long.
    assert max(waited) < BUSY_TIMEOUT * 4
    await backend.run(add_parent(id=1, name="after"))


async def test_busy__who_comes_later_waits_its_own_time(
    path: Path, backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    backend._writer.busy_timeout_ms = round(BUSY_TIMEOUT * 1000)
    loop = asyncio.get_running_loop()
    waited: dict[int, float] = {}

    async def write(n: int, delay: float) -> None:
        await asyncio.sleep(delay)
        begun = loop.time()
        try:
            await backend.run(add_parent(id=n, name=str(n)))
        finally:
            waited[n] = loop.time() - begun

    # Batches queue behind the one that waits for the lock: none of them starts to wait anew.
    tasks = [asyncio.ensure_future(write(n, (n % 4) * BUSY_TIMEOUT / 4)) for n in range(3 * 256)]
    with locked(path):
        await asyncio.wait(tasks[:1])
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {StoreBusy}
    assert max(waited.values()) < BUSY_TIMEOUT * 3
    assert outside("SELECT * FROM parents") == []


async def test_busy__a_turn_spent_waiting_for_this_process_does_not_count(
    path: Path, backend: SqliteBackend
) -> None:
    backend._writer.busy_timeout_ms = round(BUSY_TIMEOUT * 1000)
    async with backend.transaction() as tx:
        await tx.run(add_parent(id=1, name="first"))
        waiting = asyncio.create_task(_write_elsewhere(backend))
        await asyncio.sleep(2 * BUSY_TIMEOUT)
    holder = threading.Thread(target=_lock_for, args=(path, BUSY_TIMEOUT / 2))
    holder.start()
    await waiting
    holder.join()


async def _write_elsewhere(backend: SqliteBackend) -> None:
    # A task of its own has no transaction open.
    from metastore.backends.sqlite.transaction import current_transaction

    current_transaction.set(None)
    await asyncio.gather(*(backend.run(add_parent(id=n, name=str(n))) for n in range(5, 8)))


def _lock_for(path: Path, seconds: float) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)


async def test_busy__a_cancelled_caller_is_let_go_at_once(
    path: Path, backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    with locked(path):
        tasks = [
            asyncio.create_task(_run(backend, add_parent(id=n, name=str(n)))) for n in range(6)
        ]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        done, _ = await asyncio.wait(tasks[::2], timeout=1)
        assert len(done) == 3
    await asyncio.gather(*tasks[1::2])
    assert {("1",), ("3",), ("5",)} <= set(outside("SELECT name FROM parents"))


async def _run(backend: SqliteBackend, call: Any) -> None:
    await backend.run(call)


# --- holding the writer ------------------------------------------------------------------------


@pytest.mark.parametrize("in_savepoints", [False, True])
async def test_batch__commits_after_20_ms_and_lets_others_in(
    path: Path, backend: SqliteBackend, outside: Callable[[str], list[Any]], in_savepoints: bool
) -> None:
    statements: list[str] = []
    backend._writer.connection.raw.set_trace_callback(statements.append)
    rows = 60
    stop = threading.Event()
    came_in: list[int] = []

    def other_process() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            while not stop.is_set():
                with contextlib.suppress(sqlite3.OperationalError):
                    other.execute("BEGIN IMMEDIATE")
                    # The slow rows that are stored when this process has its turn.
                    came_in.extend(other.execute("SELECT count(*) FROM parents").fetchone())
                    other.execute("ROLLBACK")
                time.sleep(0.0002)

    answered: list[int] = []

    async def write(n: int) -> None:
        if in_savepoints:
            await backend.run_all(add_slowly(id=n), add_slowly(id=1_000 + n))
        else:
            await backend.run(add_slowly(id=n))
        [(stored,)] = outside(f"SELECT count(*) FROM parents WHERE id = {n}")
        assert stored == 1
        answered.append(n)

    other = threading.Thread(target=other_process)
    other.start()
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(write(n) for n in range(rows)))
    finally:
        stop.set()
        other.join()
    backend._writer.connection.raw.set_trace_callback(None)
    assert answered == list(range(rows)), "in the order of their calls"
    # 4 ms each: no more than six share a commit, whatever else the machine does.
    commits = statements.count("COMMIT")
    assert commits >= rows / 7
    between = {stored for stored in came_in if 0 < stored < rows}
    assert between, "the other process never had its turn between two commits"


async def test_batch__what_it_puts_off_keeps_its_place_in_the_queue(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    first = [asyncio.create_task(_run(backend, add_slowly(id=n))) for n in range(20)]
    await asyncio.sleep(0)
    later = [asyncio.create_task(_run(backend, add_parent(id=n, name=f"{n}"))) for n in (90, 91)]
    cancelled = first[-1]
    await asyncio.wait(first[:1])
    cancelled.cancel()
    await asyncio.wait(later)
    assert all(task.done() for task in first), "who came first was answered first"
    ids = [id_ for (id_,) in outside("SELECT id FROM parents ORDER BY rowid")]
    assert ids == [*range(19), 90, 91]


# --- closing -----------------------------------------------------------------------------------

endless = statement(
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT count(*) FROM n WHERE i < 0",
    SQLOperationType.SELECT,
)
endless_write = statement(
    "INSERT INTO parents (id, name) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 "
    "FROM n) SELECT count(*), 'x' FROM n WHERE i < 0"
)


async def test_close__interrupts_what_reads_for_ever(backend: SqliteBackend) -> None:
    reading = [asyncio.create_task(_run(backend, endless())) for _ in range(3)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(BUSY_TIMEOUT * 20):
        await backend.close()
    results = await asyncio.gather(*reading, return_exceptions=True)
    assert {type(result) for result in results} == {StoreClosed}


@pytest.mark.parametrize("neighbours", [0, 3])
async def test_close__interrupts_what_writes_for_ever(
    backend: SqliteBackend, outside: Callable[[str], list[Any]], neighbours: int
) -> None:
    calls = [endless_write(), *(add_parent(id=n, name=str(n)) for n in range(5, 5 + neighbours))]
    writing = [asyncio.create_task(_run(backend, call)) for call in calls]
    await asyncio.sleep(0.05)
    queued = asyncio.create_task(_run(backend, add_parent(id=99, name="queued")))
    await asyncio.sleep(0)
    async with asyncio.timeout(BUSY_TIMEOUT * 20):
        await backend.close()
    results = await asyncio.gather(*writing, queued, return_exceptions=True)
    assert isinstance(results[0], StoreClosed)
    assert isinstance(results[-1], StoreClosed)
    acknowledged = sum(result is None for result in results)
    assert len(outside("SELECT * FROM parents")) == acknowledged


async def test_close__does_not_wait_for_another_process(path: Path, backend: SqliteBackend) -> None:
    assert backend._writer.busy_timeout_ms > CLOSED_WITHIN * 1000
    with locked(path):
        writing = [
            asyncio.create_task(_run(backend, add_parent(id=n, name=str(n)))) for n in range(8)
        ]
        transaction = asyncio.create_task(_transaction(backend))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(BUSY_TIMEOUT * 20):
            await backend.close()
    results = await asyncio.gather(*writing, transaction, return_exceptions=True)
    assert {type(result) for result in results} <= {StoreBusy, StoreClosed}
    assert None not in results


async def _transaction(backend: SqliteBackend) -> None:
    async with backend.transaction() as tx:
        await tx.run(add_parent(id=50, name="in a transaction"))
        await asyncio.Event().wait()


async def test_close__cancelled_goes_on_closing(path: Path) -> None:
    before = threading.active_count()
    backend = await SqliteBackend.open(of_file(path))
    reading = asyncio.create_task(_run(backend, endless()))
    await asyncio.sleep(0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await backend.close()
    async with asyncio.timeout(BUSY_TIMEOUT * 20):
        await backend.close()
        with pytest.raises(StoreClosed):
            await reading
    assert threading.active_count() == before


def test_close__in_a_later_loop_than_the_one_that_opened_it(
    path: Path, outside: Callable[[str], list[Any]]
) -> None:
    before = threading.active_count()

    async def open_and_leave() -> SqliteBackend:
        backend = await SqliteBackend.open(of_file(path))
        await backend.run(add_parent(id=1, name="kept"))
        return backend

    async def close(backend: SqliteBackend) -> None:
        async with asyncio.timeout(BUSY_TIMEOUT * 20):
            await backend.close()
            await backend.close()
        with pytest.raises(StoreClosed):
            await backend.run(list_parents())

    asyncio.run(close(asyncio.run(open_and_leave())))
    assert threading.active_count() == before
    assert outside("SELECT name FROM parents") == [("kept",)]


async def test_close__leaves_a_thread_that_does_not_end_to_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "CLOSE_GRACE", 0.05)
    monkeypatch.setattr(lanes, "CLOSE_LIMIT", 0.05)
    before = threading.active_count()
    backend = await SqliteBackend.open(of_file(path))
    stuck = threading.Event()

    def get_stuck() -> None:
        stuck.wait(PATIENCE)

    backend._writer.connection.post(get_stuck)
    writing = asyncio.create_task(_run(backend, add_parent(id=1, name="stuck")))
    await asyncio.sleep(0.02)
    async with asyncio.timeout(BUSY_TIMEOUT * 20):
        await backend.close()
    assert not writing.done()
    stuck.set()
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([writing])
        while threading.active_count() != before:
            await asyncio.sleep(0.01)
