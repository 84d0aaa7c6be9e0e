"""Everything that seed 003 says of jobs, their steps and their costs is in the schema."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from metastore import migrations, urls

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = {
    "jobs": (
        "id task repo_owner repo_name branch_base status budget_usd max_requests max_minutes "
        "model_cto model_coder cost_usd tokens_in tokens_out requests_made started_at finished_at "
        "cancelled last_action pr_links agents_hash created_at updated_at"
    ),
    "job_steps": "id job_id name step_type status details started_at finished_at created_at",
    "cost_entries": "id job_id provider model tokens_in tokens_out cost_usd created_at",
}
"""The columns that the seed draws, in its order."""

TYPES = {
    "string": "TEXT", "text": "TEXT", "datetime": "TEXT", "json": "TEXT",
    "int": "INTEGER", "boolean": "INTEGER", "money": "INTEGER",
}  # fmt: skip
"""How each type of the seed is stored; its floats are money."""

SEED_TYPES = {
    "budget_usd": "money",
    "cost_usd": "money",
    "max_requests": "int",
    "max_minutes": "int",
    "tokens_in": "int",
    "tokens_out": "int",
    "requests_made": "int",
    "cancelled": "boolean",
    "pr_links": "json",
    "details": "text",
}
"""The types of the columns that are neither a string nor a datetime."""

RENAMED = {"budget_usd": "budget_nano_usd", "cost_usd": "cost_nano_usd"}
"""Money is in whole nano-dollars."""

STEP_STATUSES = ("planned", "running", "completed")
"""Those that the seed names, ahead of its etc."""

CONTAINED_IN_JOBS = ("job_steps", "cost_entries")


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("seed") / "metadata.db"
    migrations.upgrade(urls.resolve(f"sqlite:///{path}"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        yield connection


def seed_columns() -> list[tuple[str, str]]:
    return [(table, column) for table, names in COLUMNS.items() for column in names.split()]


@pytest.mark.parametrize(("table", "column"), seed_columns())
def test_column__is_there_with_its_type(
    schema: sqlite3.Connection, table: str, column: str
) -> None:
    types = {row[1]: row[2] for row in schema.execute(f"PRAGMA table_info({table})")}
    seed_type = SEED_TYPES.get(column, "string")
    assert types[RENAMED.get(column, column)] == TYPES[seed_type]


@pytest.mark.parametrize("table", COLUMNS)
def test_columns__keep_the_order_of_the_seed(schema: sqlite3.Connection, table: str) -> None:
    wanted = [RENAMED.get(column, column) for column in COLUMNS[table].split()]
    found = [row[1] for row in schema.execute(f"PRAGMA table_info({table})")]
    assert [column for column in found if column in wanted] == wanted


@pytest.mark.parametrize("table", COLUMNS)
def test_key__is_the_id(schema: sqlite3.Connection, table: str) -> None:
    keys = [row[1] for row in schema.execute(f"PRAGMA table_info({table})") if row[5]]
    assert keys == ["id"]


@pytest.mark.parametrize("table", CONTAINED_IN_JOBS)
def test_contained_in_jobs__and_gone_with_them(schema: sqlite3.Connection, table: str) -> None:
    keys = schema.execute(
        'SELECT "from", "table", "to", on_delete FROM pragma_foreign_key_list(?)', (table,)
    ).fetchall()
    assert ("job_id", "jobs", "id", "CASCADE") in keys
    indexed = schema.execute(
        "SELECT 1 FROM pragma_index_list(?) AS i, pragma_index_info(i.name) AS c "
        "WHERE c.seqno = 0 AND c.name = 'job_id'",
        (table,),
    ).fetchall()
    assert indexed


@pytest.mark.parametrize("status", STEP_STATUSES)
def test_step_status__is_taken(schema: sqlite3.Connection, status: str) -> None:
    schema.execute("SAVEPOINT seed")
    schema.execute(
        "INSERT INTO jobs (id, task, repo_owner, repo_name, branch_base) "
        "VALUES (?, 't', 'o', 'r', 'b')",
        ("0" * 36,),
    )
    schema.execute(
        "INSERT INTO job_steps (id, job_id, name, step_type, status) VALUES (?, ?, 'n', 's', ?)",
        ("1" * 36, "0" * 36, status),
    )
    assert schema.execute("SELECT status FROM job_steps").fetchall() == [(status,)]
    schema.execute("ROLLBACK TO seed")
    schema.execute("RELEASE seed")
