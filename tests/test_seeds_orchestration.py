"""What the seed of the orchestrator names for its tables is there, under the name it gives it."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from docs.schema_page import migrated
from metastore import TaskStatus, WorkflowStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = {
    "tasks": {
        "id": "TEXT NOT NULL",
        "title": "TEXT NOT NULL",
        "description": "TEXT",
        "task_type": "TEXT NOT NULL",
        "status": "TEXT NOT NULL",
        "config": "TEXT NOT NULL",
        "metadata": "TEXT",
        "workspace_path": "TEXT",
        "created_at": "TEXT NOT NULL",
        "updated_at": "TEXT NOT NULL",
        "started_at": "TEXT",
        "completed_at": "TEXT",
        "error": "TEXT",
    },
    "workflows": {
        "id": "TEXT NOT NULL",
        "name": "TEXT NOT NULL",
        "description": "TEXT",
        "definition": "TEXT NOT NULL",
        "status": "TEXT NOT NULL",
        "created_at": "TEXT NOT NULL",
        "updated_at": "TEXT NOT NULL",
    },
    "workflow_tasks": {
        "workflow_id": "TEXT NOT NULL",
        "task_id": "TEXT NOT NULL",
        "sequence": "INTEGER NOT NULL",
        "created_at": "TEXT NOT NULL",
    },
}

PRIMARY_KEYS = {
    "tasks": ["id"],
    "workflows": ["id"],
    "workflow_tasks": ["workflow_id", "task_id"],
}

INDEXES = {
    ("tasks", "idx_tasks_status"): "status",
    ("tasks", "idx_tasks_type"): "task_type",
    ("tasks", "idx_tasks_created"): "created_at",
    ("tasks", "idx_tasks_workspace"): "workspace_path",
    ("workflows", "idx_workflows_status"): "status",
    ("workflows", "idx_workflows_created"): "created_at",
    ("workflows", "idx_workflows_name"): "name",
    ("workflow_tasks", "idx_workflow_tasks_workflow"): "workflow_id",
    ("workflow_tasks", "idx_workflow_tasks_task"): "task_id",
    ("workflow_tasks", "idx_workflow_tasks_sequence"): "sequence",
}
"""Each index, and the column that it must begin with to serve its queries."""

STATUSES = {
    "tasks": ["pending", "running", "completed", "failed", "cancelled"],
    "workflows": ["draft", "active", "archived", "paused"],
}

INSERTS = {
    "tasks": "INSERT INTO tasks (id, title, task_type, status) VALUES (:id, 't', 'tool', :status)",
    "workflows": "INSERT INTO workflows (id, name, definition, status) "
    "VALUES (:id, 'w', '{}', :status)",
}

ID = "01990000-0000-7000-8000-00000000000"


@pytest.fixture
def schema() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(migrated()) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        yield connection


@pytest.mark.parametrize("table", COLUMNS)
def test_columns(schema: sqlite3.Connection, table: str) -> None:
    columns = {
        name: f"{type_} NOT NULL" if not_null else type_
        for _, name, type_, not_null, _, _ in schema.execute(f"PRAGMA table_info({table})")
    }
    assert columns.items() >= COLUMNS[table].items()


@pytest.mark.parametrize("table", PRIMARY_KEYS)
def test_primary_keys(schema: sqlite3.Connection, table: str) -> None:
    columns = schema.execute(
        "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (table,)
    ).fetchall()
    assert [name for (name,) in columns] == PRIMARY_KEYS[table]


@pytest.mark.parametrize(("table", "index"), INDEXES)
def test_indexes(schema: sqlite3.Connection, table: str, index: str) -> None:
    names = {name for _, name, *_ in schema.execute(f"PRAGMA index_list({table})")}
    assert index in names
    [first, *_] = schema.execute(f"PRAGMA index_info({index})").fetchall()
    assert first[2] == INDEXES[table, index]
    [(text,)] = schema.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (index,))
    assert "WHERE" not in text, "it leaves rows out"


@pytest.mark.parametrize("table", STATUSES)
def test_status_checks(schema: sqlite3.Connection, table: str) -> None:
    kind = {"tasks": TaskStatus, "workflows": WorkflowStatus}[table]
    assert list(kind) == STATUSES[table]
    for number, status in enumerate(STATUSES[table]):
        schema.execute(INSERTS[table], {"id": f"{ID}{number}", "status": status})
    for refused in ("", "PENDING", "unknown", None):
        with pytest.raises(sqlite3.IntegrityError):
            schema.execute(INSERTS[table], {"id": f"{ID}9", "status": refused})


def test_foreign_keys__cascade(schema: sqlite3.Connection) -> None:
    keys = {
        (column, parent): on_delete
        for _, _, parent, column, _, _, on_delete, _ in schema.execute(
            "PRAGMA foreign_key_list(workflow_tasks)"
        )
    }
    assert keys == {("workflow_id", "workflows"): "CASCADE", ("task_id", "tasks"): "CASCADE"}
    for gone in ("tasks", "workflows"):
        _fill(schema)
        schema.execute(f"DELETE FROM {gone}")
        assert schema.execute("SELECT count(*) FROM workflow_tasks").fetchone() == (0,)
        schema.execute("DELETE FROM tasks")
        schema.execute("DELETE FROM workflows")


def _fill(schema: sqlite3.Connection) -> None:
    schema.execute(INSERTS["tasks"], {"id": f"{ID}1", "status": "pending"})
    schema.execute(INSERTS["workflows"], {"id": f"{ID}2", "status": "draft"})
    schema.execute(
        "INSERT INTO workflow_tasks (workflow_id, task_id) VALUES (?, ?)", (f"{ID}2", f"{ID}1")
    )


def test_defaults(schema: sqlite3.Connection) -> None:
    _fill(schema)
    assert schema.execute("SELECT sequence FROM workflow_tasks").fetchone() == (0,)
    for table in COLUMNS:
        [(created_at,)] = schema.execute(f"SELECT created_at FROM {table}")
        [(now,)] = schema.execute("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')")
        assert created_at <= now
        assert created_at[:10] == now[:10] or created_at[11:13] == "23"


@pytest.mark.parametrize("table", ["tasks", "workflows"])
def test_trigger__stamps_what_is_changed_by_hand(schema: sqlite3.Connection, table: str) -> None:
    _fill(schema)
    old = "2001-01-01T00:00:00.000Z"
    schema.execute(f"UPDATE {table} SET updated_at = ?", (old,))
    schema.execute(f"UPDATE {table} SET description = 'by hand'")
    [(updated_at,)] = schema.execute(f"SELECT updated_at FROM {table}")
    assert updated_at > old
