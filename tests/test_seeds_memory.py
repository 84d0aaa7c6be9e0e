"""What the agent platform's document names of a job's memory is in the schema.

The lists below are the document's: tables, columns in their order, and what its prose demands.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from docs.schema_page import migrated

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

SEED: dict[str, list[tuple[str, str, str]]] = {
    "memory_items": [
        ("string", "id", "PK"),
        ("string", "job_id", "FK"),
        ("string", "kind", ""),
        ("string", "key", ""),
        ("text", "content", ""),
        ("datetime", "created_at", ""),
        ("datetime", "updated_at", ""),
    ],
    "memory_files": [
        ("string", "id", "PK"),
        ("string", "job_id", "FK"),
        ("string", "path", ""),
        ("binary", "bytes", ""),
        ("datetime", "created_at", ""),
    ],
    "message_summaries": [
        ("string", "id", "PK"),
        ("string", "job_id", "FK"),
        ("string", "step_id", ""),
        ("string", "role", ""),
        ("text", "summary", ""),
        ("int", "tokens", ""),
        ("datetime", "created_at", ""),
    ],
    "embedding_index": [
        ("string", "id", "PK"),
        ("string", "scope", ""),
        ("string", "ref_id", ""),
        ("text", "text", ""),
        ("json", "vector", ""),
        ("datetime", "created_at", ""),
    ],
    "context_metrics": [
        ("string", "id", "PK"),
        ("string", "job_id", "FK"),
        ("string", "step_id", ""),
        ("int", "tokens_final", ""),
        ("int", "tokens_clipped", ""),
        ("int", "compact_ops", ""),
        ("json", "details", ""),
        ("datetime", "created_at", ""),
    ],
}

ADDED = {
    "memory_items": {"tags"},
    "memory_files": {"size_bytes", "sha256"},
    "embedding_index": {"dimensions"},
}
"""Columns that the document does not have: guardrails want tags, integrity wants a digest."""

TYPES = {
    "string": "TEXT",
    "text": "TEXT",
    "datetime": "TEXT",
    "json": "TEXT",
    "int": "INTEGER",
    "binary": "BLOB",
}
VECTOR = "BLOB"
"""Vectors are float32 and no JSON: five times smaller, and not parsed on every search."""

each_table = pytest.mark.parametrize("table", SEED)
each_column = pytest.mark.parametrize(
    ("table", "type_", "column", "role"),
    [(table, *column) for table, columns in SEED.items() for column in columns],
)


@pytest.fixture(scope="module")
def schema() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(migrated()) as connection:
        yield connection


def create_text(schema: sqlite3.Connection, table: str) -> str:
    [(text,)] = schema.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,))
    return re.sub(r"\s+", " ", str(text))


@each_table
def test_table__has_the_columns_of_the_document_and_no_others_unsaid(
    schema: sqlite3.Connection, table: str
) -> None:
    found = {name for _, name, *_ in schema.execute(f"PRAGMA table_info({table})")}
    assert found == {name for _, name, _ in SEED[table]} | ADDED.get(table, set())


@each_column
def test_column__has_the_type_and_role_of_the_document(
    schema: sqlite3.Connection, table: str, type_: str, column: str, role: str
) -> None:
    columns = {
        name: (declared, key)
        for _, name, declared, _, _, key in schema.execute(f"PRAGMA table_info({table})")
    }
    declared, key = columns[column]
    assert declared == (VECTOR if column == "vector" else TYPES[type_])
    assert bool(key) == (role == "PK")
    text = create_text(schema, table)
    if type_ == "datetime":
        assert f"CHECK ({column} GLOB" in text
    if type_ == "json" and column != "vector":
        assert f"json_valid({column})" in text
    if role == "FK":
        assert f"{column} TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE" in text


@each_table
def test_foreign_keys__are_those_of_the_diagram_and_indexed(
    schema: sqlite3.Connection, table: str
) -> None:
    keys = {
        column: (parent, on_delete)
        for _, _, parent, column, _, _, on_delete, _ in schema.execute(
            f"PRAGMA foreign_key_list({table})"
        )
    }
    columns = {name for _, name, _ in SEED[table]}
    expected = {
        "job_id": ("jobs", "CASCADE"),
        "step_id": ("job_steps", "SET NULL"),
    }
    assert keys == {name: target for name, target in expected.items() if name in columns}
    first = {
        next(schema.execute(f"PRAGMA index_info({index})"))[2]
        for _, index, *_ in schema.execute(f"PRAGMA index_list({table})").fetchall()
    }
    assert keys.keys() <= first


def test_memory_items__are_json_with_tags_within_limits(schema: sqlite3.Connection) -> None:
    """The document: JSON notes, with guardrails (limits, tags)."""
    text = create_text(schema, "memory_items")
    assert "CHECK (json_valid(content))" in text
    assert "json_type(tags) = 'array'" in text
    limits = {name for _, name, *_ in schema.execute("PRAGMA table_info(memory_limits)")}
    assert limits > {"max_items", "max_item_bytes", "max_item_tags"}
    assert schema.execute("SELECT count(*) FROM memory_limits").fetchall() == [(1,)]


def test_memory_files__have_paths_inside_a_sandbox(schema: sqlite3.Connection) -> None:
    """The document: paths refer to the sandbox."""
    assert "CONSTRAINT memory_files_path_check" in create_text(schema, "memory_files")
