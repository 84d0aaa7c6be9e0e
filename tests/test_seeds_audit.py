"""Everything that the orchestrator's seed names for its audit, connection and setting tables.

The lists are the seed's, under the names that the schema gives them: its `sessions` are
`client_sessions`. What differs stands in `EXCEPTIONS` with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

import pytest

from metastore import Finding, MetadataStore, migrations, urls
from metastore.codec import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Column(NamedTuple):
    """What the seed says of a column."""

    type: str = "TEXT"
    null: bool = False
    key: bool = False


KEY = Column(key=True)
TEXT = Column()
NULL = Column(null=True)
INTEGER = Column("INTEGER")

COLUMNS: dict[str, dict[str, Column]] = {
    "tool_executions": {
        "id": KEY,
        "task_id": TEXT,
        "tool_name": TEXT,
        "arguments": TEXT,
        "output": NULL,
        "status": TEXT,
        "error": NULL,
        "created_at": TEXT,
        "completed_at": NULL,
        "duration_ms": Column("INTEGER", null=True),
    },
    "client_sessions": {
        "id": KEY,
        "client_id": TEXT,
        "user_id": NULL,
        "connection_type": TEXT,
        "is_active": INTEGER,
        "metadata": NULL,
        "created_at": TEXT,
        "updated_at": TEXT,
        "last_heartbeat": TEXT,
    },
    "configurations": {
        "key": KEY,
        "value": TEXT,
        "value_type": TEXT,
        "description": NULL,
        "is_secret": INTEGER,
        "created_at": TEXT,
        "updated_at": TEXT,
    },
}

# The column that each index begins with: what the seed says it is for.
INDEXES: dict[str, dict[str, str]] = {
    "tool_executions": {
        "idx_tool_executions_task": "task_id",
        "idx_tool_executions_tool": "tool_name",
        "idx_tool_executions_status": "status",
        "idx_tool_executions_created": "created_at",
        "idx_tool_executions_task_fk": "task_id",
    },
    "client_sessions": {
        "idx_client_sessions_client": "client_id",
        "idx_client_sessions_user": "user_id",
        "idx_client_sessions_active": "is_active",
        "idx_client_sessions_heartbeat": "is_active",
        "idx_client_sessions_created": "created_at",
    },
    "configurations": {
        "idx_configurations_type": "value_type",
        "idx_configurations_secret": "is_secret",
        "idx_configurations_updated": "updated_at",
    },
}

EXCEPTIONS = {
    "idx_tool_executions_task_fk": "repeats idx_tool_executions_task, which serves both",
}

CHECKS: dict[tuple[str, str], set[object]] = {
    ("tool_executions", "status"): {"pending", "running", "completed", "failed", "timeout"},
    ("client_sessions", "is_active"): {0, 1},
    ("client_sessions", "connection_type"): {"websocket", "http", "grpc"},
    ("configurations", "is_secret"): {0, 1},
    ("configurations", "value_type"): {"string", "integer", "float", "boolean", "json"},
}

UPDATED_BY_TRIGGER = ["client_sessions", "configurations"]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    path = tmp_path / "metadata.db"
    migrations.upgrade(urls.resolve(f"sqlite:///{path}"))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    yield connection
    connection.close()


def row_of(connection: sqlite3.Connection, table: str) -> dict[str, object]:
    """Insert a row with what it must have, and return what names it."""
    if table == "configurations":
        connection.execute(
            "INSERT INTO configurations (key, value, value_type) VALUES ('k', '1', 'json')"
        )
        return {"key": "k"}
    key = new_id()
    if table == "client_sessions":
        connection.execute(
            "INSERT INTO client_sessions (id, client_id, connection_type) VALUES (?, 'c', 'http')",
            (key,),
        )
        return {"id": key}
    task = new_id()
    connection.execute("INSERT INTO tasks (id, title, task_type) VALUES (?, 't', 'tool')", (task,))
    connection.execute(
        "INSERT INTO tool_executions (id, task_id, tool_name) VALUES (?, ?, 'bash')", (key, task)
    )
    return {"id": key, "task": task}


@pytest.mark.parametrize("table", COLUMNS)
def test_columns__are_there(database: sqlite3.Connection, table: str) -> None:
    found = {
        name: Column(type_, null=not (not_null or key), key=bool(key))
        for _, name, type_, not_null, _, key in database.execute(f"PRAGMA table_info({table})")
    }
    assert {name: found.get(name) for name in COLUMNS[table]} == COLUMNS[table]


@pytest.mark.parametrize("table", INDEXES)
def test_indexes__are_there(database: sqlite3.Connection, table: str) -> None:
    found = {
        name: database.execute(f"PRAGMA index_info({name})").fetchone()[2]
        for _, name, *_ in database.execute(f"PRAGMA index_list({table})")
        if name.startswith("idx_")
    }
    wanted = {name: column for name, column in INDEXES[table].items() if name not in EXCEPTIONS}
    assert found == wanted
    for name in EXCEPTIONS.keys() & INDEXES[table].keys():
        assert INDEXES[table][name] in found.values()


@pytest.mark.parametrize(("table", "column"), CHECKS)
def test_checks__take_the_seeds_values_and_no_others(
    database: sqlite3.Connection, table: str, column: str
) -> None:
    [sql] = database.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    row_of(database, table)

    def refused(value: object) -> str:
        try:
            database.execute("BEGIN")
            database.execute(f"UPDATE {table} SET {column} = ?", (value,))
        except sqlite3.IntegrityError as error:
            return str(error)
        finally:
            database.execute("ROLLBACK")
        return ""

    constraint = f"{table}_{column}_check"
    assert constraint in sql
    for value in CHECKS[table, column]:
        assert constraint not in refused(value)
    other = 2 if isinstance(next(iter(CHECKS[table, column])), int) else "other"
    assert constraint in refused(other)


@pytest.mark.parametrize("table", UPDATED_BY_TRIGGER)
def test_updated_at__is_kept_by_a_trigger(database: sqlite3.Connection, table: str) -> None:
    row_of(database, table)
    database.execute(
        f"UPDATE {table} SET created_at = '2020-01-01T00:00:00.000Z', "
        "updated_at = '2020-01-01T00:00:00.000Z'"
    )
    database.execute(f"UPDATE {table} SET created_at = '2021-01-01T00:00:00.000Z'")
    [(stamped,)] = database.execute(f"SELECT updated_at FROM {table}")
    assert stamped > "2025"


def test_tool_executions__go_with_their_task(database: sqlite3.Connection) -> None:
    row = row_of(database, "tool_executions")
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("DELETE FROM tool_executions")
    database.execute("DELETE FROM tasks WHERE id = ?", (row["task"],))
    assert database.execute("SELECT count(*) FROM tool_executions").fetchone() == (0,)


def test_tool_executions__belong_to_a_task(database: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        database.execute(
            "INSERT INTO tool_executions (id, task_id, tool_name) VALUES (?, ?, 'bash')",
            (new_id(), new_id()),
        )


def test_events_of_before_the_chains__are_counted(tmp_path: Path) -> None:
    url = urls.resolve(f"sqlite:///{tmp_path}/old.db")
    migrations.upgrade(url)
    [chains] = [it.id for it in migrations.known("sqlite") if "audit-chains" in it.id]
    ids = [it.id for it in migrations.known("sqlite")]
    migrations.downgrade(url, ids[ids.index(chains) - 1])
    connection = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    connection.execute(
        "INSERT INTO repositories (id, name, remote_url, default_branch) VALUES (?, 'a', '', 'm')",
        (repository := new_id(),),
    )
    connection.execute(
        "INSERT INTO sessions (id, session_type, repository_id) VALUES (?, 'debug', ?)",
        (session := new_id(), repository),
    )
    for _ in range(3):
        connection.execute(
            "INSERT INTO events (id, session_id, event_type, level, message)"
            " VALUES (?, ?, 'a', 'info', 'b')",
            (new_id(), session),
        )
    connection.close()
    migrations.upgrade(url)
    connection = sqlite3.connect(tmp_path / "old.db")
    assert connection.execute(
        "SELECT resource_id, unchained, length FROM audit_chains"
    ).fetchall() == [(session, 3, 0)]
    connection.close()

    async def go_on() -> list[Finding]:
        async with MetadataStore.open(str(url)) as store:
            assert (await store.audit_chains.verify()).findings == []
            await store.events.append(session, "a", "b")
            assert (await store.audit_chains.verify()).findings == []
            with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as shell:
                shell.execute(
                    "INSERT INTO events (id, session_id, event_type, level, message)"
                    " VALUES (?, ?, 'a', 'info', 'b')",
                    (new_id(), session),
                )
                shell.commit()
            return (await store.audit_chains.verify()).findings

    [finding] = asyncio.run(go_on())
    assert finding.what == "inserted"
