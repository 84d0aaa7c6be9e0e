"""Every CHECK of the schema refuses a row, by its name: a migration drops none unnoticed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from typing import TYPE_CHECKING

import pytest

from metastore import MetadataStore
from metastore.codec import new_id
from metastore.testing.template import write_template
from tests.batteries.test_damage import fill

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKED = {
    "artifacts": "id artifact_type name size_bytes sha256 metadata created_at",
    "audit_chains": "resource purged_at",
    "audit_checkpoints": "number created_at",
    "audit_entries": "kind resource created_at",
    "auth_tokens": "id user_name token_hash scopes created_at expires_at last_used_at revoked_at",
    "budget_reservations": "id request_id amount_nano_usd expires_at created_at",
    "client_sessions": (
        "id client_id connection_type is_active metadata created_at updated_at last_heartbeat"
    ),
    "commands": "id sequence argv status log_path created_at started_at completed_at",
    "configurations": "incarnation key value_type is_secret value version created_at updated_at",
    "context_metrics": "id tokens_final tokens_clipped compact_ops details created_at",
    "cost_entries": (
        "id request_id provider model tokens_in tokens_out tokens_cached "
        "tokens_cache_write tokens_reasoning cost_nano_usd created_at"
    ),
    "debugger_state": "id sequence state created_at",
    "deletions": "resource created_at",
    "embedding_index": "id scope ref_id vector created_at",
    "events": "id level context created_at",
    "fencing_floors": "resource number",
    "job_steps": "id name step_type status started_at finished_at created_at",
    "jobs": (
        "id task repo_owner repo_name branch_base status budget_nano_usd max_requests "
        "max_minutes cost_nano_usd tokens_in tokens_out tokens_cached requests_made "
        "cancelled pr_links started_at finished_at created_at updated_at"
    ),
    "lease_limits": "id max_ttl_ms clock_skew_ms",
    "lease_waiters": "id resource created_at expires_at",
    "memory_file_chunks": "sequence",
    "memory_file_uploads": "discarded_at id created_at",
    "memory_files": "id path size_bytes sha256 created_at",
    "memory_items": "id kind key content tags created_at updated_at",
    "memory_limits": (
        "id max_items max_item_bytes max_item_tags max_files max_file_bytes "
        "max_job_file_bytes created_at updated_at"
    ),
    "message_summaries": "id role tokens created_at",
    "project_locks": "id acquired_at expires_at fencing_number",
    "projects": "id path config created_at updated_at",
    "repositories": "id name metadata created_at updated_at",
    "sessions": (
        "id session_type status mode config result metadata created_at updated_at completed_at"
    ),
    "steps": "id name status input output started_at completed_at",
    "task_turns": "pending",
    "tasks": (
        "id title task_type status config metadata workspace_path created_at updated_at "
        "started_at completed_at leased_at lease_expires_at version"
    ),
    "tool_executions": "id tool_name arguments output status duration_ms created_at completed_at",
    "workflow_tasks": "created_at",
    "workflows": "id name definition status created_at updated_at",
    "worktrees": (
        "id path environment_hashes state leased_at lease_expires_at version created_at updated_at"
    ),
}
"""The columns with a CHECK of their own, by table: `<table>_<column>_check`. It refuses the empty
text, a negative number, or bytes that are no vector."""

OTHERS = {
    "worktrees_lease_check": "lease_owner = NULL",
    "projects_name_check": "name = printf('%256s', 'x')",
    "sessions_debug_needs_repository": "session_type = 'debug', repository_id = NULL",
    "sessions_workflow_needs_project": "session_type = 'test_generation', project_path = NULL",
    "events_event_type_check": "event_type = printf('%51s', 'x')",
    "jobs_cancelled_on_request": "status = 'cancelled', cancelled = 0",
    "jobs_started_when_running": "started_at = NULL",
    "memory_file_chunks_bytes_check": "bytes = x''",
    "tasks_lease_check": "lease_owner = NULL",
    "tasks_lease_needs_running": "status = 'completed'",
    "tool_executions_end_check": "status = 'running'",
    "configurations_secret_key_id_check": "is_secret = 1",
    "audit_chains_length_check": "length = purged - 1",
    "cost_entries_corrects_check": "corrects = id",
    "embedding_index_dimensions_check": "dimensions = 0, vector = x''",
}
"""The other constraints, and what they refuse."""

REFUSED = {"TEXT": "''", "INTEGER": "-1", "BLOB": "x'00'"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Two rows and more in every table, and nothing but its constraints to guard them."""
    path = tmp_path_factory.mktemp("checks") / "metadata.db"
    write_template(path)

    async def make() -> None:
        async with MetadataStore.open(f"sqlite:///{path}") as store:
            await fill(store)

    asyncio.run(make())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        triggers = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        # What is there only while somebody waits, writes or deletes.
        [(job_id,), *_] = connection.execute("SELECT id FROM jobs").fetchall()
        for resource in ("worktrees", "tasks"):
            connection.execute(
                "INSERT INTO lease_waiters (id, resource, resource_id, owner, expires_at)"
                " VALUES (?, ?, ?, 'o', '2999-01-01T00:00:00.000Z')",
                (new_id(), resource, new_id()),
            )
            connection.execute(
                "INSERT INTO memory_file_uploads (id, job_id) VALUES (?, ?)", (new_id(), job_id)
            )
            connection.execute(
                "INSERT INTO deletions (resource, resource_id) VALUES (?, ?)", (resource, new_id())
            )
        connection.execute("PRAGMA foreign_keys = OFF")
        yield connection


def _table(database: sqlite3.Connection, constraint: str) -> str:
    [table] = [
        name
        for name, sql in database.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'table'"
        )
        if constraint.startswith(f"{name}_") and f"CONSTRAINT {constraint} CHECK" in sql
    ]
    return str(table)


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column) for table, columns in CHECKED.items() for column in columns.split()],
)
def test_check__of_a_column_refuses(database: sqlite3.Connection, table: str, column: str) -> None:
    [type_] = [
        type_
        for _, name, type_, *_ in database.execute(f"PRAGMA table_info({table})")
        if name == column
    ]
    _refuses(database, table, f"{column} = {REFUSED[type_]}", f"{table}_{column}_check")


@pytest.mark.parametrize("constraint", OTHERS)
def test_check__of_several_columns_or_of_a_size_refuses(
    database: sqlite3.Connection, constraint: str
) -> None:
    _refuses(database, _table(database, constraint), OTHERS[constraint], constraint)


def _refuses(database: sqlite3.Connection, table: str, values: str, constraint: str) -> None:
    database.execute("BEGIN")
    try:
        with pytest.raises(sqlite3.IntegrityError) as refused:
            database.execute(f"UPDATE {table} SET {values}")
    finally:
        database.execute("ROLLBACK")
    assert str(refused.value) == f"CHECK constraint failed: {constraint}"


def test_checks__are_all_listed(database: sqlite3.Connection) -> None:
    tables = database.execute("SELECT sql FROM sqlite_schema WHERE type = 'table'").fetchall()
    listed = {f"{table}_{it}_check" for table, them in CHECKED.items() for it in them.split()}
    assert {it for (sql,) in tables for it in re.findall(r"CONSTRAINT (\w+) CHECK", sql)} == (
        listed | OTHERS.keys()
    )
