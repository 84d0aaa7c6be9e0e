"""`metastore sql`."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from docs.schema_page import migrated
from metastore.cli import main
from metastore.repositories import repository_types
from metastore.statements import read_statements

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from metastore.codec import Row

TABLES = {it.table: it.row_type for it in repository_types()}

each_table = pytest.mark.parametrize("table", TABLES)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["sql", *arguments])
    assert result.exit_code == code, result.output
    return result


def names_of(table: str) -> list[str]:
    row_type: type[Row] = TABLES[table]
    return list(read_statements(table, row_type, "sqlite"))


def test_sql__lists_every_table_and_its_statements() -> None:
    header, *lines = run().stdout.splitlines()
    assert header.split() == ["table", "statement"]
    assert [tuple(line.split()) for line in lines] == [
        (table, name) for table in sorted(TABLES) for name in names_of(table)
    ]


@each_table
def test_sql__prints_a_table_as_a_script_that_the_database_prepares(table: str) -> None:
    printed = run(table).stdout
    with contextlib.closing(migrated()) as schema:
        assert _prepared(schema, printed) == len(names_of(table))
    assert [line.partition(".")[2].partition("(")[0] for line in _headers(printed, table)] == (
        names_of(table)
    )


def _headers(printed: str, table: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(f"-- {table}.")]


def _prepared(schema: sqlite3.Connection, script: str) -> int:
    """Prepare each statement of a script, and return how many there are."""

    class Unbound(dict[str, None]):
        def __missing__(self, name: str) -> None:
            return None

    count = 0
    statement = ""
    for line in script.splitlines():
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            schema.execute(f"EXPLAIN {statement}", Unbound())
            statement = ""
            count += 1
    assert not statement.strip()
    return count


def test_sql__prints_a_statement_with_its_reason_and_every_column() -> None:
    assert run("get_step").stdout == (
        "-- steps.get_step(id)\n"
        "-- No row: there is no such step.\n"
        "SELECT\n"
        "    id,\n"
        "    session_id,\n"
        "    name,\n"
        "    sequence,\n"
        "    status,\n"
        "    input,\n"
        "    output,\n"
        "    error_message,\n"
        "    started_at,\n"
        "    completed_at\n"
        "FROM steps\n"
        "WHERE id = :id;\n"
    )


def test_sql__prints_what_the_dialect_has_of_its_own() -> None:
    [header, reason, *_] = run("list_events_by_session", "--dialect", "sqlite").stdout.splitlines()
    assert header == "-- events.list_events_by_session(session_id, after, limit)"
    assert reason.startswith("-- Differs: ")


def test_sql__as_json() -> None:
    [step] = json.loads(run("get_step", "--json").stdout)
    assert (step["table"], step["name"], step["parameters"]) == ("steps", "get_step", ["id"])
    assert step["comment"] == "No row: there is no such step."
    assert step["sql"].endswith("WHERE id = :id")
    assert len(json.loads(run("--json").stdout)) == sum(map(len, map(names_of, TABLES)))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["step"], "no table or statement is named 'step'; `metastore sql` lists them"),
        (["steps", "--dialect", "klingon"], "no dialect is named 'klingon'; there is sqlite"),
    ],
)
def test_sql__an_unknown_name_is_one_line(arguments: list[str], reason: str) -> None:
    result = run(*arguments, code=1)
    assert result.stderr == f"metastore: error: {reason}\n"
    assert result.stdout == ""


def test_sql__opens_no_database(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    run("steps", "--db", f"sqlite:///{path}")
    assert not path.exists()
