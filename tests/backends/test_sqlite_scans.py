"""Scans: statements that read a lot, on a connection of their own.

A scan is held at a gate, a function that its connection alone has, for as long as a test needs.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from aiosql.types import SQLOperationType

from metastore import StoreClosed, StoreCorrupt, StoreReadOnly
from metastore.backends.sqlite import database_file, scans
from tests.backends.conftest import add_parent, list_parents, statement

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from metastore.backends.sqlite.backend import SqliteBackend

PATIENCE = 5.0

SCAN = "Scans: the tests hold it."

scan_parents = statement(
    "SELECT id, name, at_gate() FROM parents ORDER BY id", SQLOperationType.SELECT, SCAN
)
scan_plainly = statement("SELECT id, name FROM parents ORDER BY id", SQLOperationType.SELECT, SCAN)
count_for_ever = statement(
    "WITH RECURSIVE n (i) AS (SELECT at_gate() UNION ALL SELECT i + 1 FROM n)"
    " SELECT count(*) FROM n",
    SQLOperationType.SELECT,
    SCAN,
)


class Gate:
    """Where scans wait."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.scans = 0

    def pass_through(self) -> int:
        self.scans += 1
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        return 1

    async def is_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, PATIENCE)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    connect = database_file.connect

    def connect_with_gate(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **keywords)
        connection.create_function("at_gate", 0, gate.pass_through)
        return connection

    monkeypatch.setattr(database_file, "connect", connect_with_gate)
    yield gate
    gate.opened.set()


@pytest.fixture
async def scanned(gate: Gate, backend: SqliteBackend) -> AsyncIterator[SqliteBackend]:
    """A backend of two parents."""
    for number in (1, 2):
        await backend.run(add_parent(id=number, name=f"p{number}"))
    yield backend
    gate.opened.set()


async def test_scan__holds_no_other_read_up(scanned: SqliteBackend, gate: Gate) -> None:
    [reader] = scanned._readers
    hops = reader.hops
    scan = asyncio.ensure_future(scanned.run(scan_parents()))
    await gate.is_reached()
    assert reader.hops == hops
    async with asyncio.timeout(PATIENCE):
        for number in range(3, 23):
            await scanned.run(add_parent(id=number, name=f"p{number}"))
            assert len(await scanned.run(list_parents())) == number
    assert reader.hops == hops + 20
    assert not scan.done()
    gate.opened.set()
    # What it saw is from when it began.
    assert await scan == [(1, "p1", 1), (2, "p2", 1)]
    assert reader.hops == hops + 20


async def test_scan__connects_when_first_needed_and_once(
    scanned: SqliteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    connect = scanned._scans._connect

    async def counted() -> Any:
        made.append(await connect())
        return made[-1]

    monkeypatch.setattr(scanned._scans, "_connect", counted)
    await scanned.run(list_parents())
    assert made == []
    answers = await asyncio.gather(*(scanned.run(scan_plainly()) for _ in range(3)))
    assert [len(rows) for rows in answers] == [2, 2, 2]
    await scanned.run(scan_plainly())
    assert len(made) == 1


async def test_scan__each_has_a_snapshot_of_its_own(scanned: SqliteBackend, gate: Gate) -> None:
    both = [asyncio.ensure_future(scanned.run(scan_parents())) for _ in range(2)]
    await gate.is_reached()
    await scanned.run(add_parent(id=3, name="p3"))
    gate.opened.set()
    first, second = await asyncio.gather(*both)
    assert (len(first), len(second)) == (2, 3)


async def test_scan__only_reads(scanned: SqliteBackend) -> None:
    await scanned.run(scan_plainly())
    lane = scanned._scans.lane
    assert lane is not None
    ask = lane.connection.raw.execute
    assert ask("PRAGMA query_only").fetchone() == (1,)
    assert ask("PRAGMA trusted_schema").fetchone() == (not database_file._CHECKS_MAY_USE_JSON,)


async def test_scan__in_a_transaction_sees_its_writes(scanned: SqliteBackend) -> None:
    async with scanned.transaction() as transaction:
        await transaction.run(add_parent(id=3, name="p3"))
        assert len(await transaction.run(scan_plainly())) == 3
    assert scanned._scans.lane is None


async def test_scan__error_is_its_own(scanned: SqliteBackend, path: Path) -> None:
    """A connection that failed is tried again, and those that wait for it are all told."""
    held = path.with_name("held")
    path.rename(held)
    results = await asyncio.gather(
        *(scanned.run(scan_plainly()) for _ in range(2)), return_exceptions=True
    )
    assert all(isinstance(it, StoreCorrupt | StoreReadOnly) for it in results), results
    held.rename(path)
    assert len(await scanned.run(scan_plainly())) == 2


async def test_close__interrupts_the_scan_and_refuses_the_next(
    scanned: SqliteBackend, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "ASK_EVERY", 1_000)
    running, waiting = [asyncio.ensure_future(scanned.run(count_for_ever())) for _ in range(2)]
    await gate.is_reached()
    closing = asyncio.ensure_future(scanned.close())
    await asyncio.sleep(0)
    gate.opened.set()
    async with asyncio.timeout(PATIENCE):
        await closing
        for scan in (running, waiting):
            with pytest.raises(StoreClosed):
                await scan
    with pytest.raises(StoreClosed):
        scanned.run(scan_plainly())
    assert gate.scans == 1
    await scanned.close()


async def test_close__while_the_first_scan_connects(
    scanned: SqliteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    connecting, go_on = asyncio.Event(), asyncio.Event()
    connect = scanned._scans._connect

    async def slowly() -> Any:
        connecting.set()
        await go_on.wait()
        made.append(await connect())
        return made[-1]

    monkeypatch.setattr(scanned._scans, "_connect", slowly)
    scan = asyncio.ensure_future(scanned.run(scan_plainly()))
    await connecting.wait()
    closing = asyncio.ensure_future(scanned._scans.close())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not closing.done()
    go_on.set()
    async with asyncio.timeout(PATIENCE):
        await closing
        with pytest.raises(StoreClosed):
            await scan
    [connection] = made
    assert not connection._thread.is_alive()


async def test_cancel__stops_the_scan_and_leaves_the_others(
    scanned: SqliteBackend, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "ASK_EVERY", 1_000)
    endless = asyncio.ensure_future(scanned.run(count_for_ever()))
    await gate.is_reached()
    queued, patient = [asyncio.ensure_future(scanned.run(scan_parents())) for _ in range(2)]
    await asyncio.sleep(0)
    for scan in (endless, queued):
        scan.cancel()
        with suppress(asyncio.CancelledError):
            await scan
    gate.opened.set()
    async with asyncio.timeout(PATIENCE):
        assert len(await patient) == 2


async def test_cancel__of_who_came_first_leaves_the_connection_to_the_second(
    scanned: SqliteBackend,
) -> None:
    first, second = [asyncio.ensure_future(scanned.run(scan_plainly())) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(PATIENCE):
        assert len(await second) == 2
    assert first.cancelled()


@pytest.mark.parametrize("used", [False, True])
async def test_fork__a_scan_in_the_child_raises_at_once(scanned: SqliteBackend, used: bool) -> None:
    if used:
        await scanned.run(scan_plainly())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = "used"
        try:
            scanned.run(scan_plainly())
        except StoreClosed as error:
            outcome = str(error)
        except BaseException as error:
            outcome = repr(error)
        os.write(writing, outcome.encode())
        os._exit(0)
    os.close(writing)
    outcome = os.read(reading, 1000).decode()
    os.close(reading)
    os.waitpid(child, 0)
    assert "fork" in outcome
    assert len(await scanned.run(scan_plainly())) == 2


async def test_checkpoint__goes_through_beside_scans(
    scanned: SqliteBackend, gate: Gate, outside: Callable[[str], list[Any]]
) -> None:
    """Between two scans no snapshot is left, however many wait."""
    gate.opened.set()
    scans = [asyncio.ensure_future(scanned.run(scan_parents())) for _ in range(3)]
    await asyncio.gather(*scans)
    await scanned.run(add_parent(id=3, name="p3"))
    [(busy, in_log, checkpointed)] = outside("PRAGMA wal_checkpoint(PASSIVE)")
    assert (busy, in_log) == (0, checkpointed)
