from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    LeaseLost,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    TransactionActive,
)
from metastore.backends.base import Guard
from metastore.backends.sqlite import database_file, lanes
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.url import of_file
from tests.backends.conftest import (
    add_child,
    add_parent,
    drop_parent,
    list_parents,
    rename_parent,
    statement,
)
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Ask = "Callable[[str], list[Any]]"


async def settle(*operations: Any) -> list[Any]:
    """Run operations at once, so that they share a batch, and return results and errors."""
    return await asyncio.gather(*operations, return_exceptions=True)


def names(outside: Callable[[str], list[Any]]) -> list[str]:
    return [name for [name] in outside("SELECT name FROM parents ORDER BY id")]


# --- what a connection is ----------------------------------------------------------------------


async def test_open__every_connection_is_hardened(backend: SqliteBackend) -> None:
    for lane in (backend._writer, *backend._readers):
        ask = lane.connection.raw.execute
        assert ask("PRAGMA foreign_keys").fetchone() == (1,)
        assert ask("PRAGMA secure_delete").fetchone() == (1,)
        # SQLite 3.40 takes json_valid for unsafe, and our CHECKs need it.
        assert ask("PRAGMA trusted_schema").fetchone() == (not database_file._CHECKS_MAY_USE_JSON,)
        assert ask("PRAGMA synchronous").fetchone() == (2,)
        assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
        assert ask("PRAGMA busy_timeout").fetchone()[0] >= 5_000
        assert lane.connection.isolation_level is None
    assert backend._readers[0].connection.raw.execute("PRAGMA query_only").fetchone() == (1,)


async def test_open__durability_normal_is_a_choice(path: Path) -> None:
    backend = await SqliteBackend.open(of_file(path), durability="normal")
    assert backend._writer.connection.raw.execute("PRAGMA synchronous").fetchone() == (1,)
    await backend.close()


@pytest.mark.parametrize("name", ["a#b.db", "a?mode=memory.db", "a%20b.db", "ä ö.db", "a&b=c.db"])
async def test_open__a_path_is_taken_literally(tmp_path: Path, path: Path, name: str) -> None:
    path.rename(tmp_path / name)
    backend = await SqliteBackend.open(of_file(tmp_path / name))
    await backend.run(add_parent(id=1, name="x"))
    await backend.close()
    assert sorted(os.listdir(tmp_path)) == [name]


async def test_open__a_missing_or_empty_file_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreCorrupt):
        await SqliteBackend.open(of_file(tmp_path / "missing.db"))
    assert not (tmp_path / "missing.db").exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreCorrupt):
        await SqliteBackend.open(of_file(tmp_path / "empty.db"))
    assert (tmp_path / "empty.db").stat().st_size == 0


async def test_open__foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    noise = tmp_path / "noise.db"
    noise.write_bytes(os.urandom(8192))
    for file in (foreign, noise, tmp_path):
        before = file.read_bytes() if file.is_file() else None
        with pytest.raises(StoreCorrupt):
            await SqliteBackend.open(of_file(file))
        assert before is None or file.read_bytes() == before


async def test_create__files_are_private(path: Path, backend: SqliteBackend) -> None:
    old = os.umask(0)
    try:
        await backend.run(add_parent(id=1, name="x"))
        files = list(path.parent.iterdir())
        assert len(files) == 3
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(old)


# --- group commit ------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
async def test_batch__operations_that_wait_share_a_hop_and_a_commit(
    backend: SqliteBackend,
) -> None:
    statements: list[str] = []
    backend._writer.connection.raw.set_trace_callback(statements.append)
    hops = backend._writer.hops
    await settle(*(backend.run(add_parent(id=n, name=str(n))) for n in range(100)))
    backend._writer.connection.raw.set_trace_callback(None)
    assert backend._writer.hops - hops == 1
    assert statements.count("BEGIN IMMEDIATE") == statements.count("COMMIT") == 1


async def test_run__a_lone_operation_is_one_hop(backend: SqliteBackend) -> None:
    await backend.run(add_parent(id=1, name="x"))
    assert backend._writer.hops == 1
    assert await backend.run(list_parents()) == [(1, "x")]
    assert sum(reader.hops for reader in backend._readers) == 1


async def test_batch__nobody_is_answered_before_the_commit(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    seen: list[int] = []

    async def write(n: int) -> None:
        await backend.run(add_parent(id=n, name=str(n)))
        seen.append(outside(f"SELECT count(*) FROM parents WHERE id = {n}")[0][0])

    await asyncio.gather(*(write(n) for n in range(50)))
    assert seen == [1] * 50


FAULTS: list[tuple[str, Any, type[Exception]]] = [
    ("unique", lambda: add_parent(id=900, name="taken"), AlreadyExists),
    ("primary key", lambda: add_parent(id=1, name="other"), AlreadyExists),
    ("check", lambda: add_child(parent_id=1, kind="c"), InvalidValue),
    ("foreign key", lambda: add_child(parent_id=12345, kind="a"), InvalidReference),
    ("not null", lambda: add_parent(id=901, name=None), InvalidValue),
]


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize(("fault", "call", "error"), FAULTS, ids=[fault[0] for fault in FAULTS])
async def test_batch__a_fault_fails_only_its_caller(
    backend: SqliteBackend,
    outside: Callable[[str], list[Any]],
    position: int,
    fault: str,
    call: Callable[[], Any],
    error: type[Exception],
) -> None:
    await backend.run(add_parent(id=1, name="taken"))
    calls = [add_parent(id=n, name=f"n{n}") for n in range(10, 15)]
    calls.insert(position, call())
    results = await settle(*map(backend.run, calls))
    assert isinstance(results.pop(position), error), fault
    assert list(results) == [[(n, f"n{n}")] for n in range(10, 15)]
    assert names(outside) == ["taken", *(f"n{n}" for n in range(10, 15))]


@pytest.mark.parametrize("position", range(5))
async def test_batch__a_fault_that_ends_the_transaction_costs_no_neighbour_its_row(
    backend: SqliteBackend, outside: Callable[[str], list[Any]], position: int
) -> None:
    calls = [add_parent(id=n, name=f"n{n}") for n in range(4)]
    calls.insert(position, add_parent(id=99, name="roll back"))
    results = await settle(*map(backend.run, calls))
    assert isinstance(results.pop(position), InvalidValue)
    assert results == [[(n, f"n{n}")] for n in range(4)]
    assert names(outside) == [f"n{n}" for n in range(4)]


async def test_batch__a_failed_commit_is_told_to_every_caller(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    deferred = statement("PRAGMA defer_foreign_keys = ON")
    # A violation that is only noticed at COMMIT: the batch is lost, each is tried alone.
    results = await settle(
        backend.run(add_parent(id=1, name="a")),
        backend.run_all(deferred(), add_child(parent_id=777, kind="a")),
        backend.run(add_parent(id=2, name="b")),
    )
    assert isinstance(results[1], InvalidReference | sqlite3.IntegrityError)
    assert names(outside) == ["a", "b"]
    assert outside("SELECT count(*) FROM children") == [(0,)]


@pytest.mark.parametrize("alone", [True, False])
async def test_run_all__stops_at_the_first_missing_row_and_is_undone(
    backend: SqliteBackend, outside: Callable[[str], list[Any]], alone: bool
) -> None:
    neighbours = [] if alone else [backend.run(add_parent(id=n, name=str(n))) for n in (7, 8)]
    [answers, *_] = await settle(
        backend.run_all(
            add_parent(id=1, name="a"), rename_parent(id=5, name="z"), add_parent(id=2, name="b")
        ),
        *neighbours,
    )
    assert answers == [[(1, "a")], []]
    assert names(outside) == ([] if alone else ["7", "8"])


@pytest.mark.parametrize("alone", [True, False])
async def test_run_all__an_error_undoes_all_of_it(
    backend: SqliteBackend, outside: Callable[[str], list[Any]], alone: bool
) -> None:
    neighbours = [] if alone else [backend.run(add_parent(id=n, name=str(n))) for n in (7, 8)]
    [error, *_] = await settle(
        backend.run_all(add_parent(id=1, name="a"), add_child(parent_id=1, kind="zz")),
        *neighbours,
    )
    assert isinstance(error, InvalidValue)
    assert names(outside) == ([] if alone else ["7", "8"])


async def test_batch__a_cancelled_waiter_does_not_touch_another(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    tasks = [asyncio.ensure_future(backend.run(add_parent(id=n, name=str(n)))) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert results[1::2] == [[(n, str(n))] for n in range(1, 20, 2)]
    assert {str(n) for n in range(1, 20, 2)} <= set(names(outside))


async def test_queue__is_bounded_and_callers_wait(
    backend: SqliteBackend, monkeypatch: pytest.MonkeyPatch, outside: Callable[[str], list[Any]]
) -> None:
    monkeypatch.setattr(lanes, "MAX_QUEUE", 10)
    longest = 0
    tasks = [asyncio.ensure_future(backend.run(add_parent(id=n, name=str(n)))) for n in range(100)]
    while not all(task.done() for task in tasks):
        longest = max(longest, len(backend._writer._queue))
        await asyncio.sleep(0)
    assert longest == 10
    assert len(names(outside)) == 100


@pytest.mark.parametrize("granted", [False, True], ids=["before its turn", "in its turn"])
async def test_queue__a_cancelled_caller_lets_the_next_one_in(
    backend: SqliteBackend,
    monkeypatch: pytest.MonkeyPatch,
    outside: Callable[[str], list[Any]],
    granted: bool,
) -> None:
    monkeypatch.setattr(lanes, "MAX_QUEUE", 1)
    await backend._writer.take_turn()
    queued, waiting, last = (
        asyncio.ensure_future(backend.run(add_parent(id=n, name=str(n)))) for n in range(3)
    )
    while len(backend._writer._room) < 2:
        await asyncio.sleep(0)
    queued.cancel()
    if granted:
        backend._writer.release_turn()
        waiting.cancel()
    else:
        waiting.cancel()
        backend._writer.release_turn()
    async with asyncio.timeout(PATIENCE):
        await last
    assert names(outside) == ["2"]


async def test_queue__close_answers_all_who_wait_for_room(
    backend: SqliteBackend,
    monkeypatch: pytest.MonkeyPatch,
    outside: Callable[[str], list[Any]],
) -> None:
    monkeypatch.setattr(lanes, "MAX_QUEUE", 2)
    await backend._writer.take_turn()
    waiting = [asyncio.ensure_future(backend.run(add_parent(id=n, name=str(n)))) for n in range(7)]
    while len(backend._writer._room) < 5:
        await asyncio.sleep(0)
    backend._writer.refuse(lanes.closed)
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreClosed}
    assert names(outside) == []
    backend._writer.release_turn()


# --- errors ------------------------------------------------------------------------------------


async def test_errors__name_table_column_and_constraint(backend: SqliteBackend) -> None:
    await backend.run(add_parent(id=1, name="x"))
    with pytest.raises(AlreadyExists) as exists:
        await backend.run(add_parent(id=2, name="x"))
    assert (exists.value.table, exists.value.columns) == ("parents", ("name",))
    with pytest.raises(InvalidReference) as reference:
        await backend.run(add_child(parent_id=3, kind="a"))
    assert (reference.value.table, reference.value.column) == ("children", "parent_id")
    assert reference.value.references == "parents"
    with pytest.raises(InvalidValue) as check:
        await backend.run(add_child(parent_id=1, kind="c"))
    assert (check.value.column, check.value.value_type) == ("children_kind_check", "str")
    with pytest.raises(InvalidValue) as wrong_type:
        await backend.run(add_child(parent_id="x", kind="a"))
    assert (wrong_type.value.table, wrong_type.value.column) == ("children", "parent_id")
    await backend.run(add_child(parent_id=1, kind="a"))
    with pytest.raises(InvalidReference) as needed:
        await backend.run(drop_parent(id=1))
    assert (needed.value.table, needed.value.column) == ("children", "parent_id")
    assert needed.value.references == "parents"


async def test_errors__the_driver_is_the_cause_and_never_the_error(
    backend: SqliteBackend,
) -> None:
    await backend.run(add_parent(id=1, name="x"))
    with pytest.raises(AlreadyExists) as error:
        await backend.run(add_parent(id=1, name="y"))
    assert isinstance(error.value.__cause__, sqlite3.IntegrityError)


async def test_busy__is_told_and_passes(
    path: Path, monkeypatch: pytest.MonkeyPatch, outside: Callable[[str], list[Any]]
) -> None:
    monkeypatch.setattr(database_file, "BUSY_TIMEOUT_MS", 50)
    backend = await SqliteBackend.open(of_file(path))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    results = await settle(*(backend.run(add_parent(id=n, name=str(n))) for n in range(3)))
    assert [type(result) for result in results] == [StoreBusy] * 3
    with pytest.raises(StoreBusy):
        async with backend.transaction() as transaction:
            await transaction.run(add_parent(id=5, name="x"))
    other.execute("COMMIT")
    other.close()
    await backend.run(add_parent(id=1, name="after"))
    await backend.close()
    assert names(outside) == ["after"]


async def test_full__fails_who_does_not_fit_and_recovers(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    raw = backend._writer.connection.raw
    [pages] = raw.execute("PRAGMA page_count").fetchone()
    raw.execute(f"PRAGMA max_page_count = {pages + 1}")
    results = await settle(
        backend.run(add_parent(id=1, name="small")),
        backend.run(add_parent(id=2, name="big" * 50_000)),
        backend.run(add_parent(id=3, name="small too")),
    )
    assert isinstance(results[1], StoreFull)
    assert results[0] == [(1, "small")]
    assert results[2] == [(3, "small too")]
    assert names(outside) == ["small", "small too"]
    raw.execute("PRAGMA max_page_count = 100000")
    await backend.run(add_parent(id=2, name="big" * 50_000))
    assert len(names(outside)) == 3


# --- transactions ------------------------------------------------------------------------------


async def test_transaction__commits_at_the_end_and_sees_itself(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    async with backend.transaction() as transaction:
        await transaction.run(add_parent(id=1, name="a"))
        assert await transaction.run(list_parents()) == [(1, "a")]
        assert await backend.run(list_parents()) == []
        assert names(outside) == []
    assert names(outside) == ["a"]


async def test_transaction__an_exception_undoes_it(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with backend.transaction() as transaction:
            await transaction.run(add_parent(id=1, name="a"))
            raise ZeroDivisionError
    assert names(outside) == []
    await backend.run(add_parent(id=1, name="b"))
    assert names(outside) == ["b"]


async def test_transaction__a_failed_statement_does_not_end_it(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    async with backend.transaction() as transaction:
        await transaction.run(add_parent(id=1, name="a"))
        with pytest.raises(AlreadyExists):
            await transaction.run(add_parent(id=1, name="b"))
        with pytest.raises(InvalidValue):
            await transaction.run_all(add_parent(id=2, name="c"), add_child(parent_id=1, kind="?"))
        await transaction.run(add_parent(id=3, name="d"))
    assert names(outside) == ["a", "d"]


async def test_transaction__one_that_was_ended_underneath_stores_nothing(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    with pytest.raises(InvalidValue):
        async with backend.transaction() as transaction:
            await transaction.run(add_parent(id=1, name="a"))
            with pytest.raises(InvalidValue):
                await transaction.run(add_parent(id=2, name="roll back"))
            await transaction.run(add_parent(id=3, name="b"))
    with pytest.raises(InvalidValue):
        async with backend.transaction() as transaction:
            await transaction.run(add_parent(id=1, name="a"))
            with pytest.raises(InvalidValue):
                await transaction.run(add_parent(id=2, name="roll back"))
    assert names(outside) == []
    assert not backend._writer.connection.in_transaction


@pytest.mark.parametrize("turns", range(12))
async def test_transaction__cancelled_anywhere_leaves_nothing_open(
    backend: SqliteBackend, outside: Callable[[str], list[Any]], turns: int
) -> None:
    async def body() -> None:
        async with backend.transaction() as transaction:
            for n in range(3):
                await transaction.run(add_parent(id=n, name=str(n)))

    blocker = asyncio.ensure_future(backend.run(add_parent(id=50, name="x")))
    task = asyncio.ensure_future(body())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await blocker
    async with asyncio.timeout(PATIENCE):
        await backend.run(add_parent(id=99, name="next"))
    assert not backend._writer.connection.in_transaction
    assert set(names(outside)) in ({"x", "next"}, {"x", "next", "0", "1", "2"})


async def test_transaction__a_write_beside_it_in_its_task_is_refused(
    backend: SqliteBackend,
) -> None:
    async with backend.transaction():
        with pytest.raises(TransactionActive):
            await backend.run(add_parent(id=1, name="a"))
        with pytest.raises(TransactionActive):
            async with backend.transaction():
                pass
    await backend.run(add_parent(id=1, name="a"))


async def test_transaction__others_wait_for_its_end(backend: SqliteBackend) -> None:
    order: list[str] = []

    async def hold() -> None:
        async with backend.transaction() as transaction:
            await transaction.run(add_parent(id=1, name="a"))
            await asyncio.sleep(0.05)
            order.append("transaction")

    async def write() -> None:
        await asyncio.sleep(0.01)
        await backend.run(add_parent(id=2, name="b"))
        order.append("write")

    await asyncio.gather(hold(), write())
    assert order == ["transaction", "write"]


async def test_transaction__used_after_its_end_is_refused(backend: SqliteBackend) -> None:
    async with backend.transaction() as transaction:
        pass
    with pytest.raises(StoreClosed):
        await transaction.run(list_parents())


async def test_guard__is_asked_at_the_begin_and_at_the_commit(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    held = True
    asked = 0
    from aiosql.types import SQLOperationType

    ask = statement("SELECT 1 WHERE :held", SQLOperationType.SELECT_ONE)

    def check() -> Any:
        nonlocal asked
        asked += 1
        return ask(held=held)

    guard = Guard(check, lambda: LeaseLost("worktrees", "w", 1))
    async with backend.transaction(guard) as transaction:
        await transaction.run(add_parent(id=1, name="held"))
    assert asked == 2
    with pytest.raises(LeaseLost):
        async with backend.transaction(guard) as transaction:
            await transaction.run(add_parent(id=2, name="lost on the way"))
            held = False
    entered = False
    with pytest.raises(LeaseLost):
        async with backend.transaction(guard):
            entered = True
    assert not entered
    assert names(outside) == ["held"]
    assert not backend._writer.connection.in_transaction


# --- the end -----------------------------------------------------------------------------------


async def test_close__is_idempotent_and_safe_in_flight(
    path: Path, outside: Callable[[str], list[Any]]
) -> None:
    backend = await SqliteBackend.open(of_file(path))
    tasks = [asyncio.ensure_future(backend.run(add_parent(id=n, name=str(n)))) for n in range(600)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(backend.close(), backend.close())
        await backend.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    told_stored = {rows[0][1] for rows in results if isinstance(rows, list)}
    assert all(isinstance(error, list | StoreClosed) for error in results)
    assert set(names(outside)) == told_stored
    with pytest.raises(StoreClosed):
        await backend.run(list_parents())
    with pytest.raises(StoreClosed):
        async with backend.transaction():
            pass


async def test_close__undoes_an_open_transaction(
    path: Path, outside: Callable[[str], list[Any]]
) -> None:
    backend = await SqliteBackend.open(of_file(path))
    with pytest.raises(StoreClosed):
        async with backend.transaction() as transaction:
            await transaction.run(add_parent(id=1, name="a"))
            async with asyncio.timeout(PATIENCE):
                await backend.close()
            await transaction.run(add_parent(id=2, name="b"))
    assert names(outside) == []


async def test_close__many_cycles_leave_no_threads_and_no_descriptors(path: Path) -> None:
    async def cycle() -> None:
        backend = await SqliteBackend.open(of_file(path))
        await backend.run(list_parents())
        await backend.close()

    await cycle()
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    for _ in range(50):
        await cycle()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


async def test_open__cancelled_leaves_no_thread(path: Path) -> None:
    before = threading.active_count()
    for turns in range(8):
        task = asyncio.ensure_future(SqliteBackend.open(of_file(path)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        if isinstance(results[0], SqliteBackend):
            await results[0].close()
    async with asyncio.timeout(PATIENCE):
        while threading.active_count() != before:
            await asyncio.sleep(0.02)


FORGOTTEN = """
import asyncio, sys
from pathlib import Path
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.url import of_file
from tests.backends.conftest import add_parent

async def main():
    backend = await SqliteBackend.open(of_file(sys.argv[1]))
    await backend.run(add_parent(id=1, name="kept"))
    {rest}

{start}
"""


@pytest.mark.parametrize(
    ("rest", "start"),
    [
        ("return None", "asyncio.run(main())"),
        ("globals()['kept'] = backend", "asyncio.run(main())"),
        ("raise SystemExit(0)", "asyncio.run(main())"),
        (
            "asyncio.ensure_future(backend.run(add_parent(id=2, name='in flight')))",
            "asyncio.run(main())",
        ),
        (
            "await backend.transaction().__aenter__()",
            "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
        ),
        (
            "[asyncio.ensure_future(backend.run(add_parent(id=n, name=str(n))))"
            " for n in range(9, 99)]; await asyncio.sleep(0)",
            "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
        ),
    ],
    ids=["dropped", "referenced", "exit", "in flight", "transaction", "loop closed"],
)
def test_close__forgotten_never_hangs_the_interpreter(
    path: Path, outside: Callable[[str], list[Any]], rest: str, start: str
) -> None:
    program = FORGOTTEN.format(rest=rest, start=start)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(path)],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "ResourceWarning" not in ended.stderr
    assert "kept" in names(outside)


async def test_fork__use_in_the_child_raises_at_once(backend: SqliteBackend) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # No loop runs here; a refusal needs none.
        outcome = "used"
        try:
            backend.run(add_parent(id=1, name="child"))
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
    await backend.run(add_parent(id=2, name="parent"))


CRASH = """
import asyncio, sys
from pathlib import Path
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.url import of_file
from tests.backends.conftest import add_parent

async def write(backend, n):
    await backend.run(add_parent(id=n, name=str(n)))
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()

async def main():
    backend = await SqliteBackend.open(of_file(sys.argv[1]))
    n = 0
    while True:
        await asyncio.gather(*(write(backend, n + k) for k in range(10)))
        n += 10

asyncio.run(main())
"""


def test_crash__what_was_acknowledged_is_there(
    path: Path, outside: Callable[[str], list[Any]]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CRASH, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split("\n")[:-1]
    process.stdout.close()
    process.wait()
    assert set(acknowledged) <= set(names(outside))
    assert len(acknowledged) >= 200
    assert outside("PRAGMA integrity_check") == [("ok",)]


# --- commits of others -------------------------------------------------------------------------


async def test_watch__notices_commits_of_this_and_of_other_processes(
    backend: SqliteBackend, outside: Callable[[str], list[Any]]
) -> None:
    loop = asyncio.get_running_loop()
    # The first look at the file counts as a change.
    await backend.wait_for_change(backend.changes, PATIENCE)
    seen = backend.changes
    begun = loop.time()
    await backend.wait_for_change(seen, 0.2)
    assert loop.time() - begun >= 0.19, "nothing was committed"
    loop.call_later(0.05, outside, "INSERT INTO parents (id, name) VALUES (70, 'foreign')")
    async with asyncio.timeout(PATIENCE):
        seen = backend.changes
        await backend.wait_for_change(seen, 2 * PATIENCE)
        assert backend.changes != seen
        seen = backend.changes
        waiting = asyncio.ensure_future(backend.wait_for_change(seen, 2 * PATIENCE))
        await backend.run(add_parent(id=1, name="own"))
        await waiting
    assert backend.changes != seen


async def test_checkpoint__large_rows_do_not_wait_for_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_file, "WAL_SIZE_LIMIT", 1 << 20)
    backend = await SqliteBackend.open(of_file(path))
    wal = path.with_name(path.name + "-wal")
    for n in range(80):
        await backend.run(add_parent(id=n, name=f"{n}" + "x" * 100_000))
    assert wal.stat().st_size < 3 << 20, "8 MB were written"
    await backend.close()


async def test_checkpoint__happens_in_time_and_empties_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "CHECKPOINT_AFTER", 100)
    backend = await SqliteBackend.open(of_file(path))
    sizes = []
    for burst in range(30):
        await asyncio.gather(
            *(backend.run(add_parent(id=burst * 50 + n, name=f"{burst} {n}")) for n in range(50))
        )
        sizes.append(path.with_name(path.name + "-wal").stat().st_size)
    assert max(sizes) < 100_000, "the log is written from its beginning again"
    await backend.close()
    assert not path.with_name(path.name + "-wal").exists()


async def test_checkpoint__keeps_every_other_writer_out(
    backend: SqliteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    class Checkpointer:
        """Stands for the connection that checkpoints, and asks for the write lock beside it."""

        def execute(self, _: str) -> Any:
            with contextlib.closing(
                sqlite3.connect(path, isolation_level=None, timeout=0)
            ) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    held.append(True)
                else:
                    held.append(False)
            return self

        def fetchall(self) -> None:
            """Return nothing."""

    writer = backend._writer
    await backend.run(add_parent(id=1, name="x"))
    monkeypatch.setattr(writer, "_checkpointer", Checkpointer())
    await writer.call(writer._checkpoint)
    await writer.call(writer._checkpoint)
    assert held == [True, True]
    monkeypatch.setattr(writer, "_checkpointer", None)


async def test_wait_for_change__looks_again_after_nobody_has_waited(
    backend: SqliteBackend, path: Path
) -> None:
    async def commit(name: str) -> None:
        # So that the wait has begun.
        await asyncio.sleep(0)
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("INSERT INTO parents (name) VALUES (?)", (name,))

    async with asyncio.timeout(PATIENCE):
        # The first look learns the version that there is.
        await backend.wait_for_change(backend.changes, 2 * PATIENCE)
        for name in ("a", "b"):
            # Nobody waits for longer than it takes to notice that.
            poller = backend._watcher._poller
            if poller is not None:
                await asyncio.wait([poller])
            seen = backend.changes
            await asyncio.gather(backend.wait_for_change(seen, 2 * PATIENCE), commit(name))
            assert backend.changes != seen


async def test_checkpoint__happens_where_there_are_only_transactions(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "CHECKPOINT_AFTER", 20)
    backend = await SqliteBackend.open(of_file(path))
    for n in range(100):
        async with backend.transaction() as tx:
            await tx.run(add_parent(id=n, name=f"{n}" + "x" * 10_000))
    assert path.with_name(path.name + "-wal").stat().st_size < 1_000_000, "2 MB were written"
    await backend.close()
