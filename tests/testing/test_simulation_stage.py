from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from metastore import MetadataStore, StoreIOError
from metastore.backends.sqlite import database_file
from metastore.testing import Fault, FaultKind, Process
from metastore.testing.simulation.simulate import image_of, run_once
from metastore.testing.simulation.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def image() -> bytes:
    async def prepare(store: MetadataStore) -> None:
        for name in ("app", "lib"):
            await store.repositories.create(name=name, remote_url="u")

    return image_of(prepare)


@pytest.fixture
def stage(image: bytes) -> Iterator[Stage]:
    with Stage(image) as stage:
        yield stage


def connect(stage: Stage, *, read_only: bool = False) -> sqlite3.Connection:
    return stage.connect(database_file.connect, stage.path, read_only=read_only)


def names(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM repositories ORDER BY 1")]


def rename(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE repositories SET name = 'x' || name")


def leave_committed(stage: Stage) -> None:
    rename(connect(stage))


def leave_checkpointed(stage: Stage) -> None:
    rename(connect(stage))
    connect(stage).execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def leave_open_transaction(stage: Stage) -> None:
    connection = connect(stage)
    connection.execute("BEGIN IMMEDIATE")
    rename(connection)


def leave_closed(stage: Stage) -> None:
    connection = connect(stage)
    rename(connection)
    connection.close()


def leave_unread_cursor(stage: Stage) -> sqlite3.Cursor:
    rename(connect(stage))
    cursor = connect(stage).execute("SELECT name FROM repositories")
    cursor.fetchone()
    return cursor


def leave_other_schema(stage: Stage) -> None:
    connect(stage).execute("ALTER TABLE repositories RENAME COLUMN name TO title")


@pytest.mark.parametrize(
    "leave",
    [
        leave_committed,
        leave_checkpointed,
        leave_open_transaction,
        leave_closed,
        leave_unread_cursor,
        leave_other_schema,
    ],
)
def test_reset__begins_anew_whatever_was_left(
    stage: Stage, image: bytes, leave: Callable[[Stage], object]
) -> None:
    for _ in range(3):
        stage.reset()
        writer, reader = connect(stage), connect(stage, read_only=True)
        assert names(writer) == names(reader) == ["app", "lib"]
        left = leave(stage)
    stage.reset()
    del left
    assert names(connect(stage)) == names(connect(stage, read_only=True)) == ["app", "lib"]
    assert stage.content() == image


def test_reset__no_connection_believes_the_schema_of_an_earlier_run(stage: Stage) -> None:
    for column in ("title", "label"):
        stage.reset()
        one, other = connect(stage), connect(stage)
        one.execute(f"ALTER TABLE repositories RENAME COLUMN name TO {column}")
        query = f"SELECT {column} FROM repositories ORDER BY 1"
        assert other.execute(query).fetchall() == [("app",), ("lib",)]


def test_reset__hands_out_connections_again_with_the_settings_of_new_ones(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [connect(stage), connect(stage, read_only=True)]
    for connection in first:
        connection.execute("PRAGMA busy_timeout = 0")
    stage.reset()
    monkeypatch.setattr(database_file, "BUSY_TIMEOUT_MS", 321)
    second = [connect(stage), connect(stage, read_only=True)]
    assert all(one is other for one, other in zip(first, second, strict=True))
    for connection in second:
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (321,)
    rename(second[0])
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        rename(second[1])


def test_run_once__on_a_used_stage_is_the_same_as_on_a_new_one(image: bytes) -> None:
    async def program(process: Process) -> None:
        for n in range(6):
            await process.store.repositories.create(name=f"{process}-{n}", remote_url="u")

    def trace_on(stage: Stage, seed: str, kind: FaultKind) -> list[str]:
        trace: list[str] = []
        faults = [Fault(0.001, kind, process, 0.1) for process in (0, 1)]
        run_once(program, seed=seed, faults=faults, processes=2, stage=stage, trace=trace)
        return trace

    runs = [(str(seed), kind) for seed in range(2) for kind in FaultKind]
    with Stage(image) as used:
        for seed, kind in runs:
            with Stage(image) as new:
                assert trace_on(used, seed, kind) == trace_on(new, seed, kind)


def test_close__removes_the_file_and_can_be_repeated(image: bytes) -> None:
    stage = Stage(image)
    connection = connect(stage)
    stage.close()
    stage.close()
    assert not stage.path.parent.exists()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_fail_next__strikes_only_the_statement_that_it_is_aimed_at(stage: Stage) -> None:
    errors: list[str] = []

    async def program(process: Process) -> None:
        error = sqlite3.OperationalError("simulated")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR, "SQLITE_IOERR"
        process.fail_next("second", error)
        for name in ("first", "second", "third", "second"):
            try:
                await process.store.repositories.create(name=f"{name}", remote_url="u")
            except StoreIOError:
                errors.append(name)

    run_once(program, seed="0", processes=1, stage=stage)
    assert errors == ["second"]
    assert names(connect(stage)) == ["app", "first", "lib", "second", "third"]
