"""`updated_at`: what a statement gave stays, and what is changed by hand is stamped."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from metastore.codec import new_id
from metastore.testing.template import write_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from metastore import MetadataStore, Session
    from metastore.testing import Clock

LONG_AGO = "2020-01-01T00:00:00.000Z"

ROWS = {
    "repositories": {"id": new_id(), "name": "app", "remote_url": ""},
    "worktrees": {"id": new_id(), "repository_id": new_id(), "path": "/w"},
    "projects": {"id": new_id(), "path": "/p"},
    "sessions": {"id": new_id(), "session_type": "debug", "repository_id": new_id()},
    "jobs": {"id": new_id(), "task": "t", "repo_owner": "o", "repo_name": "r", "branch_base": "b"},
    "memory_items": {"id": new_id(), "job_id": new_id(), "kind": "k", "key": "k", "content": "1"},
    "memory_limits": {},
    "tasks": {"id": new_id(), "title": "t", "task_type": "t"},
    "workflows": {"id": new_id(), "name": "w", "definition": "{}"},
    "client_sessions": {"id": new_id(), "client_id": "c", "connection_type": "http"},
    "configurations": {"key": "k", "value": "v", "value_type": "string"},
}
"""A row of each table that has the column, without its parents; one has its row already."""


@pytest.fixture(params=["as it is", "recursive_triggers"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Each row, changed long ago, on the connection of a person."""
    path = tmp_path / "metadata.db"
    write_template(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if request.param == "recursive_triggers":
            connection.execute("PRAGMA recursive_triggers = ON")
        for table, values in ROWS.items():
            if values:
                columns, places = ", ".join(values), ", ".join("?" * len(values))
                connection.execute(
                    f"INSERT INTO {table} ({columns}) VALUES ({places})", list(values.values())
                )
            connection.execute(f"UPDATE {table} SET updated_at = ?", (LONG_AGO,))
        yield connection


@pytest.fixture
def updated_at(database: sqlite3.Connection) -> Callable[[str], str]:
    def updated_at(table: str) -> str:
        [(moment,)] = database.execute(f"SELECT updated_at FROM {table}")
        return str(moment)

    return updated_at


def test_rows__are_of_every_table_that_has_the_column(database: sqlite3.Connection) -> None:
    tables = database.execute(
        "SELECT t.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c"
        " WHERE t.type = 'table' AND c.name = 'updated_at'"
    )
    assert {table for (table,) in tables} == ROWS.keys()


@pytest.mark.parametrize("table", ROWS)
def test_update__by_hand_is_stamped(
    database: sqlite3.Connection, updated_at: Callable[[str], str], table: str
) -> None:
    database.execute(f"UPDATE {table} SET created_at = ?", (LONG_AGO,))
    moment = datetime.fromisoformat(updated_at(table))
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)


@pytest.mark.parametrize("table", ROWS)
def test_update__with_the_time_that_the_row_has_leaves_it(
    database: sqlite3.Connection, updated_at: Callable[[str], str], table: str
) -> None:
    changed = database.execute(
        f"UPDATE {table} SET created_at = ?, updated_at = ? RETURNING updated_at",
        (LONG_AGO, LONG_AGO),
    ).fetchall()
    assert changed == [(LONG_AGO,)]
    assert updated_at(table) == LONG_AGO


@pytest.mark.parametrize("table", ROWS)
def test_update__by_hand_twice_in_a_millisecond(
    database: sqlite3.Connection, updated_at: Callable[[str], str], table: str
) -> None:
    same = 0
    for _ in range(10_000):
        before = updated_at(table)
        database.execute(f"UPDATE {table} SET created_at = ?", (LONG_AGO,))
        same += updated_at(table) == before
        if same == 3:
            break
    assert same == 3


async def test_transaction__has_one_time(
    store: MetadataStore, session: Session, clock: Clock
) -> None:
    async with store.transaction() as tx:
        started = await tx.sessions.start(session.id)
        paused = await tx.sessions.pause(session.id)
    assert started.updated_at == paused.updated_at == clock.now
    assert await store.sessions.get(session.id) == paused


async def test_clock__that_stands_still(
    store: MetadataStore, session: Session, clock: Clock
) -> None:
    clock.tick = timedelta(0)
    started = await store.sessions.start(session.id)
    assert started.updated_at == session.updated_at
    assert await store.sessions.get(session.id) == started
