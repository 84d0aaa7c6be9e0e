"""A scratch database: backends know no table of metastore's."""

from __future__ import annotations

import inspect
import re
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from aiosql.types import QueryDatum, SQLOperationType

from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.columns import COLUMNS
from metastore.backends.sqlite.url import of_file
from metastore.codec import Row
from metastore.statements import Call, Statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

SCHEMA = """
CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE children (
    id INTEGER PRIMARY KEY,
    parent_id INTEGER NOT NULL REFERENCES parents (id) ON DELETE RESTRICT,
    kind TEXT NOT NULL CONSTRAINT children_kind_check CHECK (kind = 'a' OR kind = 'b')
) STRICT;
CREATE TRIGGER parents_roll_back BEFORE INSERT ON parents WHEN NEW.name = 'roll back'
BEGIN SELECT RAISE(ROLLBACK, 'the whole transaction is gone'); END;
"""


class _NoRow(Row, frozen=True):
    pass


def statement(
    sql: str,
    operation: SQLOperationType = SQLOperationType.INSERT_UPDATE_DELETE,
    doc: str = "",
) -> Callable[..., Call]:
    """Make a statement of the scratch tables."""
    parameters = re.findall(r":(\w+)", sql)
    table = "children" if "children" in sql else "parents"
    datum = QueryDatum(
        "scratch", doc, operation, sql, None, inspect.Signature(), ("", 0), None, parameters
    )
    return Statement(table, datum, _NoRow, COLUMNS)


add_parent = statement(
    "INSERT INTO parents (id, name) VALUES (:id, :name) RETURNING id, name",
    SQLOperationType.INSERT_RETURNING,
)
rename_parent = statement(
    "UPDATE parents SET name = :name WHERE id = :id RETURNING id, name",
    SQLOperationType.INSERT_RETURNING,
)
add_child = statement("INSERT INTO children (parent_id, kind) VALUES (:parent_id, :kind)")
drop_parent = statement("DELETE FROM parents WHERE id = :id")
list_parents = statement("SELECT id, name FROM parents ORDER BY id", SQLOperationType.SELECT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "scratch.db"
    database_file.create(path)
    connection = database_file.connect(path)
    database_file.initialise(connection)
    connection.executescript(SCHEMA)
    connection.close()
    return path


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = await SqliteBackend.open(of_file(path))
    yield backend
    await backend.close()


@pytest.fixture
def outside(path: Path) -> Callable[[str], list[Any]]:
    """Ask the file itself, over a connection of its own."""

    def ask(sql: str) -> list[Any]:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    return ask
