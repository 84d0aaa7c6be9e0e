"""The names that tie a table's layers together, and the shapes on both sides of each statement.

Nothing here runs an operation: the statements are prepared against the migrated schema, the
repositories are read as source.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import shutil
import sys
from collections import Counter
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    get_args,
    get_origin,
    get_type_hints,
)

import pytest
from aiosql.types import QueryDatum, SQLOperationType

import metastore
from docs import query_plans
from docs.schema_page import migrated, parse_table
from docs.statement_types import class_name
from metastore import NewEvent, deletion, paging, resources, statements
from metastore.backends.sqlite.columns import COLUMNS
from metastore.codec import Row, _columns
from metastore.repositories import RepositorySet, base
from metastore.statements import Catalogue, Statement, read_statements
from metastore.store import MetadataStore, Transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator

    from metastore.repositories.base import TableRepository

PACKAGE = Path(inspect.getfile(metastore)).parent
TESTS = Path(__file__).parent

WITHOUT_REPOSITORY = {
    "memory_file_chunks": "memory_files keeps its large files in it",
    "memory_file_uploads": "memory_files keeps the files that are being written in it",
    "fencing_floors": "triggers keep it and statements of the leased tables read it",
    "audit_checkpoints": "audit_chains makes them and checks them",
    "audit_heads": "audit_chains notes in it what checkpoints cover",
    "audit_entries": "triggers keep it and audit_chains checks it",
    "audit_changes": "triggers keep it and checkpoints empty it",
    "sqlite_sequence": "SQLite's own, behind AUTOINCREMENT",
    "task_turns": "triggers on tasks keep it and claims read it",
}
"""Tables that no repository operates on, and why."""

NOT_STORED = {
    "TokenStatus": "worked out from a token's timestamps",
}
"""Enumerations of the repositories that are no column's, and why."""

COLUMN_TYPES = {
    str: "TEXT",
    datetime: "TEXT",
    dict: "TEXT",
    list: "TEXT",
    Any: "TEXT",
    int: "INTEGER",
    bool: "INTEGER",
    float: "REAL",
    bytes: "BLOB",
    tuple: "BLOB",
}
"""What a column is declared as for each type of a row, see metastore/backends/sqlite/columns.py."""

NOT_COLUMNS = {
    "now": "the time of the operation, which may set several columns or none",
    "latest_credible_expiry": "the latest expiry to believe",
    "latest_credible_ticket": "the latest expiry of a ticket to believe",
    "latest_credible_beat": "compared with last_heartbeat",
    "position": "a place in a line of lease_waiters",
    "unused_since": "compared with last_used_at",
    "known_key_id": "compared with the secret_key_id of all secrets",
    "after": "where a page begins",
    "after_id": "where a page begins",
    "after_key": "where a page begins",
    "after_path": "where a page begins",
    "after_place": "where a page begins: an id, or nothing",
    "after_ref": "where a page begins",
    "after_request": "where a page begins",
    "after_chain": "where a page begins: a session or task",
    "after_position": "where a page begins within the session",
    "after_row": "where a page begins within the task",
    "after_number": "where a page begins: a checkpoint or an entry",
    "until_number": "the last entry that a checkpoint covers",
    "until_position": "the last event that a checkpoint covers",
    "after_run": "the checkpoint behind which runs may have died",
    "until_run": "the checkpoint up to which runs are looked at",
    "byte_limit": "at how many bytes a page or a piece ends",
    **dict.fromkeys(
        (
            "number",
            "digest",
            "previous",
            "run",
            "entry",
            "chains",
            "links",
            "heads",
            "heads_hash",
            "entries_hash",
            "schema_hash",
            "next_key",
            "signature",
        ),
        "a column of audit_checkpoints, in a statement of audit_chains",
    ),
    "task_id": "audit_changes.task_id, in a statement of audit_chains",
    "after_resource": "where a page begins within the checkpoint",
    "beaten_before": "compared with last_heartbeat",
    "limit": "how long a page is, or how many rows a piece takes",
    "since": "compared with created_at",
    "until": "compared with created_at",
    "by_provider": "whether a group has one provider",
    "by_model": "whether a group has one model",
    "by_day": "whether a group has one day",
    "since_day": "compared with the day of created_at",
    "last_day": "compared with the day of created_at",
    "except_request": "the request whose own reservation does not count",
    "link": "one of jobs.pr_links",
    "before": "compared with created_at",
    "sequence": "memory_file_chunks.sequence, in a statement of memory_files",
    "project_id": "projects.id, in a statement of sessions",
    "path": "projects.path, in a statement of sessions",
    "line_id": "lease_waiters.resource_id, in a statement of tasks",
    "task_types": "the types that a claim looks at, an array",
    "workflow_id": "workflow_tasks.workflow_id, in a statement of tasks",
}
"""Parameters that are no column of their statement's table, and what they are instead.

Any other is named as the column whose value it is, which is how the codec knows its type.
"""

MAY_SCAN_OR_SORT = {
    "cost_entries.list_cost_discrepancies": "the doctor adds up every entry there is",
    **dict.fromkeys(
        ("cost_entries.sum_costs", "cost_entries.sum_costs_by_job"),
        "sorts into the groups that were asked for, not into those of the index",
    ),
    "jobs.add_job_pr_link": "the array that json_each walks is no table",
    **dict.fromkeys(
        (
            "audit_chains.list_audited_events",
            "audit_chains.list_audited_events_of",
            "audit_chains.list_audited_tool_executions",
            "audit_chains.list_audited_tool_executions_of",
        ),
        "walks the sizes of a page, to end it at so many bytes",
    ),
    "audit_chains.list_changed_sessions": "groups a page of events",
    "audit_chains.list_schema": "the schema is short",
    **dict.fromkeys(
        (
            "audit_chains.get_latest_audit_checkpoint",
            "audit_chains.get_latest_audit_signature",
            "audit_chains.get_audit_extent",
        ),
        "takes the last row, or one of the short sqlite_sequence",
    ),
    **dict.fromkeys(
        (
            "jobs.weigh_job",
            "sessions.weigh_session",
            "tasks.weigh_task",
            "workflows.weigh_workflow",
            "worktrees.weigh_worktree",
            "memory_files.has_discarded_memory_files",
        ),
        "counts what subqueries found, which end at a limit",
    ),
    **dict.fromkeys(
        (
            "jobs.delete_items_of_job",
            "jobs.delete_metrics_of_job",
            "jobs.delete_steps_of_job",
            "jobs.delete_summaries_of_job",
            "memory_files.discard_files_of_job",
            "sessions.cut_events",
            "sessions.delete_artifacts_of_session",
            "sessions.delete_commands_of_session",
            "sessions.delete_debugger_state_of_session",
            "sessions.delete_steps_of_session",
            "tasks.cut_tool_executions",
        ),
        "walks the rows of one piece",
    ),
    "sessions.purge_events_from_chain": "reads the one row that it made of a piece",
    "auth_tokens.bootstrap_token": "a person runs it once, when an installation begins",
    **dict.fromkeys(
        (
            "memory_items.search_memory_items_with_all",
            "memory_items.search_memory_items_with_any",
            "memory_items.search_memory_items_of_kind_with_all",
            "memory_items.search_memory_items_of_kind_with_any",
        ),
        "the arrays of tags that json_each walks are no tables",
    ),
    "tasks.claim_task_in_turn": "takes the first row of ix_task_turns_next, whatever it is",
    "tasks.claim_task_of_types": "walks the types that were asked for, and sorts a task of each",
    "tasks.claim_task_of_types_in_turn": "the same",
    "tasks.task_of_types_is_available": "the same, and sorts nothing",
}
"""Statements whose plan may hold a SCAN or a temporary B-tree, and why."""


def _repositories() -> dict[str, type[TableRepository[Any]]]:
    return {
        name: get_type_hints(attribute.func)["return"]
        for name, attribute in vars(RepositorySet).items()
        if isinstance(attribute, cached_property)
    }


REPOSITORIES = _repositories()
STATEMENTS: dict[str, Statement] = {
    f"{table}.{name}": statement
    for table, repository in REPOSITORIES.items()
    for name, statement in vars(Catalogue(table, repository.row_type, COLUMNS)).items()
}


def _read(table: str) -> dict[str, QueryDatum]:
    row_type: type[Row] = REPOSITORIES[table].row_type
    return read_statements(table, row_type, "sqlite")


each_table = pytest.mark.parametrize("table", REPOSITORIES)
each_statement = pytest.mark.parametrize("name", STATEMENTS)


@pytest.fixture(scope="module")
def schema() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(migrated()) as connection:
        yield connection


# One stem for each table.


def test_stems__are_the_tables_of_the_schema(schema: sqlite3.Connection) -> None:
    tables = {
        name for (name,) in schema.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    }
    expected = tables - WITHOUT_REPOSITORY.keys()
    stems = {
        "sql": _stems(resources.statements_directory(), "*.sql"),
        "metastore/repositories": _stems(PACKAGE / "repositories", "*.py")
        - {"__init__", "base", "leasable"},
        "tests/repositories": {
            stem.removeprefix("test_") for stem in _stems(TESTS / "repositories", "test_*.py")
        },
        "attributes": set(REPOSITORIES),
    }
    assert stems == dict.fromkeys(stems, expected)
    assert tables >= WITHOUT_REPOSITORY.keys(), "an exception has outlived its table"


def _stems(directory: Path, pattern: str) -> set[str]:
    return {path.name.partition(".")[0] for path in directory.glob(pattern)}


@each_table
def test_stems__a_repository_names_its_table(table: str) -> None:
    repository = REPOSITORIES[table]
    assert repository.table == table
    assert repository.__module__ == f"metastore.repositories.{table}"
    module = sys.modules[repository.__module__]
    assert getattr(module, repository.row_type.__name__) is repository.row_type
    assert repository.row_type.__name__ in module.__all__


def test_stems__the_store_and_a_transaction_offer_the_same() -> None:
    for offered in (MetadataStore, Transaction):
        assert {name for name in REPOSITORIES if hasattr(offered, name)} == REPOSITORIES.keys()


# Statement files.


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _statement_files() -> list[Path]:
    return sorted(resources.statements_directory().glob("*.sql"))


def _texts_of_statements(path: Path) -> list[str]:
    """Return what follows each `-- name: ` of a file."""
    return re.split(r"^-- name: ", _text(path), flags=re.MULTILINE)[1:]


each_file = pytest.mark.parametrize("path", _statement_files(), ids=lambda path: path.name)


@each_file
def test_statement_file__opens_with_what_its_table_is_for(path: Path) -> None:
    table = path.name.partition(".")[0]
    assert _text(path).startswith(f"-- {table}: ")


@each_file
def test_statement_file__names_each_statement_once(path: Path) -> None:
    names = Counter(re.split(r"\W", text, maxsplit=1)[0] for text in _texts_of_statements(path))
    assert names
    assert [name for name, count in names.items() if count > 1] == []


def test_statement_files__share_no_name_between_tables() -> None:
    names = Counter(name.partition(".")[2] for name in STATEMENTS)
    assert [name for name, count in names.items() if count > 1] == []


@each_statement
def test_statement__says_why_it_exists(name: str) -> None:
    assert STATEMENTS[name].doc.strip()


@each_statement
def test_statement__that_scans_says_why_and_only_reads(name: str) -> None:
    statement = STATEMENTS[name]
    marks = re.findall(r"\bScans\b.*", statement.doc)
    assert statement.scans == bool(marks)
    assert not (marks and statement.writes)
    assert all(re.fullmatch(r"Scans: .{10,}", mark) for mark in marks)


@pytest.mark.parametrize(
    "path",
    [path for path in _statement_files() if path.name.count(".") == 2],
    ids=lambda path: path.name,
)
def test_overlay__says_why_each_statement_differs(path: Path) -> None:
    for text in _texts_of_statements(path):
        header, comment = text.splitlines()[:2]
        assert comment.startswith("-- Differs: "), header


# What is right with one writer only.

NEEDS = re.compile(r"^Needs: one writer, or .{10,}\.$", re.MULTILINE)

DECIDES_ALONE = {
    **dict.fromkeys(
        (
            "cost_entries.charge_correction",
            "memory_files.delete_discarded_files_of_job",
            "memory_files.discard_memory_file",
            "sessions.delete_events_up_to_cut",
            "sessions.purge_events_from_chain",
            "tasks.delete_tool_executions_up_to_cut",
            "tasks.purge_tool_executions_from_chain",
        ),
        "reads what its own transaction wrote or locked before",
    ),
    **dict.fromkeys(
        (
            "audit_chains.delete_audit_heads",
            "client_sessions.close_stale_client_sessions",
            "jobs.delete_costs_of_job",
            "jobs.delete_items_of_job",
            "jobs.delete_metrics_of_job",
            "jobs.delete_reservations_of_job",
            "jobs.delete_steps_of_job",
            "jobs.delete_summaries_of_job",
            "memory_files.delete_discarded_chunks",
            "memory_files.delete_discarded_uploads",
            "memory_files.discard_files_of_job",
            "sessions.cut_events",
            "sessions.delete_artifacts_of_session",
            "sessions.delete_commands_of_session",
            "sessions.delete_debugger_state_of_session",
            "sessions.delete_locks_of_session",
            "sessions.delete_steps_of_session",
            "tasks.cut_tool_executions",
            "tasks.leave_workflow_to_delete_task",
            "workflows.delete_last_tasks_of_workflow",
            "worktrees.leave_worktree",
        ),
        "takes a piece of what is to go or to end: whatever another has taken is skipped",
    ),
    "audit_chains.note_audit_head": "a state that is noted twice is noted all the same",
    "memory_limits.set_memory_limits": "the conflicting row decides, and it is locked",
    "workflows.mark_workflow_deletion": "a workflow that is gone meanwhile has nothing to delete",
}
"""Shared statements that write and look at other rows, and why they need no single writer."""


def _texts_by_name(dialect: str = "") -> dict[str, str]:
    """Return the header, reason and text of each statement that is shared, or a dialect's own."""
    return {
        f"{path.name.partition('.')[0]}.{re.match(r'[a-z_]*', text)[0]}": text  # type: ignore[index]
        for path in _statement_files()
        if path.stem.partition(".")[2] == dialect
        for text in _texts_of_statements(path)
    }


def _without_overlay(dialect: str) -> set[str]:
    """Return the statements that are right with one writer only, and that `dialect` shares."""
    needing = {name for name, text in _texts_by_name().items() if _needs_one_writer(text)}
    return needing - _texts_by_name(dialect).keys()


def _needs_one_writer(text: str) -> bool:
    return NEEDS.search(_comment_of(text)) is not None


def _comment_of(text: str) -> str:
    return "\n".join(re.findall(r"^-- (.*)", text, re.MULTILINE))


def _dialects() -> set[str]:
    overlays = {path.stem.partition(".")[2] for path in _statement_files()} - {""}
    return overlays | set(resources.dialects())


def test_needs__a_dialect_of_many_writers_has_its_own_statements() -> None:
    lacking = {dialect: _without_overlay(dialect) for dialect in _dialects() - {"sqlite"}}
    assert lacking == {dialect: set() for dialect in lacking}


def test_needs__a_dialect_without_overlays_lacks_every_marked_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(resources.statements_directory(), tmp_path / "sql")
    monkeypatch.setattr(resources, "statements_directory", lambda: tmp_path / "sql")
    own = tmp_path / "sql" / "steps.many_writers.sql"
    own.write_text("-- steps.\n\n-- name: create_step(id)!\nSELECT 1;\n", encoding="utf-8")
    assert "many_writers" in _dialects()
    marked = {name for name, text in _texts_by_name().items() if "Needs:" in text}
    assert _without_overlay("many_writers") == marked - {"steps.create_step"}
    assert {"auth_tokens.bootstrap_token", "events.append_events"} < marked


def test_needs__is_said_of_every_shared_statement_that_decides_on_other_rows() -> None:
    deciding = {
        name
        for name, text in _texts_by_name().items()
        if re.search(r"^(INSERT|UPDATE|DELETE)\b", text, re.MULTILINE)
        and re.search(r"\bSELECT\b", text)
    }
    marked = {name for name, text in _texts_by_name().items() if _needs_one_writer(text)}
    assert deciding - marked == DECIDES_ALONE.keys()
    # And of what guards a transaction by reading, or moves many rows.
    assert marked - deciding == {
        "embedding_index.check_embedding_scope",
        "project_locks.project_is_locked",
        "tasks.task_is_claimed",
        "workflow_tasks.make_room_for_workflow_task",
        "worktrees.worktree_is_leased",
    }


@each_file
def test_needs__says_why(path: Path) -> None:
    marks = [text for text in _texts_of_statements(path) if "Needs:" in text]
    assert [text for text in marks if not _needs_one_writer(text)] == []


def test_overlays__replace_no_statement_of_every_dialect() -> None:
    """What every dialect words in its own way would be shared by none, and tested by none."""
    own = [_texts_by_name(dialect).keys() for dialect in resources.dialects()]
    assert set.intersection(set(_texts_by_name()), *own) == set()


# Stars.


class Thing(Row, frozen=True):
    """A row of a table whose columns are in another order."""

    id: str
    name: str
    size: int


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return what is sent for the only statement of the table `things`."""
    monkeypatch.setattr(resources, "statements_directory", lambda: tmp_path)

    def sent(text: str) -> str:
        (tmp_path / "things.sql").write_text(f"-- name: it()\n{text};\n", encoding="utf-8")
        read_statements.cache_clear()
        return read_statements("things", Thing, "sqlite")["it"].sql

    return sent


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("SELECT *\nFROM things", "SELECT\n    id,\n    name,\n    size\nFROM things"),
        (
            "DELETE FROM things\nRETURNING *",
            "DELETE FROM things\nRETURNING\n    id,\n    name,\n    size",
        ),
        (
            "SELECT t.*\nFROM things AS t",
            "SELECT\n    t.id,\n    t.name,\n    t.size\nFROM things AS t",
        ),
        (
            "SELECT *\nFROM (\n    SELECT t.*\n    FROM things AS t\n)",
            "SELECT\n    id,\n    name,\n    size\nFROM (\n"
            "    SELECT\n        t.id,\n        t.name,\n        t.size\n    FROM things AS t\n)",
        ),
        ("SELECT count(*) FROM things", "SELECT count(*) FROM things"),
        ("SELECT 2 * size FROM things", "SELECT 2 * size FROM things"),
        ("SELECT 'it''s SELECT * ' AS name", "SELECT 'it''s SELECT * ' AS name"),
    ],
)
def test_star__is_spelled_out_from_the_row_type(
    things: Callable[[str], str], text: str, sent: str
) -> None:
    assert things(text) == sent


@each_statement
def test_star__never_reaches_the_database(name: str) -> None:
    without_text = re.sub(r"'(?:[^']|'')*'", "''", STATEMENTS[name].sql)
    assert re.findall(r"(?:\b(?:SELECT|DISTINCT|ALL|RETURNING)\b|,|\.)\s*\*", without_text) == []


# Statements against the schema.


class _Asked(dict[str, None]):
    """NULL for every parameter, and which of them SQLite asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __missing__(self, name: str) -> None:
        self.names.add(name)


@each_statement
def test_statement__is_prepared_with_the_parameters_it_declares(
    schema: sqlite3.Connection, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "NUMBERED", True)
    table, _, of = name.partition(".")
    statement = Statement(table, _read(table)[of], REPOSITORIES[table].row_type, COLUMNS)
    asked = _Asked()
    schema.execute(f"EXPLAIN {statement.sql}", asked)
    # By number, from 1, as they are bound.
    assert asked.names == {str(number + 1) for number in range(len(statement.parameters))}
    assert len(set(statement.parameters)) == len(statement.parameters)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bind in order of occurrence, as on a Python that warns of numbered parameters."""
    monkeypatch.setattr(statements, "NUMBERED", False)
    base._catalogue.cache_clear()
    yield
    base._catalogue.cache_clear()


@pytest.mark.usefixtures("plain")
@each_statement
def test_statement__binds_plainly_where_numbers_are_warned_of(
    schema: sqlite3.Connection, name: str
) -> None:
    table, _, of = name.partition(".")
    datum = _read(table)[of]
    statement = Statement(table, datum, REPOSITORIES[table].row_type, COLUMNS)
    assert statement.places is not None
    assert "?1" not in statement.sql
    # Each place names the parameter that stands there.
    names = re.findall(r"(?<![:\w]):([a-z_0-9]+)", re.sub(r"--[^\n]*|'[^']*'", "", datum.sql))
    assert [statement.parameters[it] for it in statement.places] == names
    values = tuple(range(len(statement.parameters)))
    assert statements.Call(statement, values).bound == statement.places
    assert statements.Call(statement, [values, values]).bound == [statement.places] * 2
    schema.execute(f"EXPLAIN {statement.sql}", statement.places)


@pytest.mark.usefixtures("plain")
async def test_statements__that_bind_plainly_do_the_same(store: MetadataStore) -> None:
    repository = await store.repositories.create(name="app", remote_url="u")
    sessions = [
        await store.sessions.create(session_type="debug", repository_id=repository.id)
        for _ in range(2)
    ]
    for session in sessions:
        appended = await store.events.append(session.id, "a", "one")
        await store.events.append_many(session.id, [NewEvent("b", "two"), NewEvent("c", "three")])
        [first, *rest] = (await store.events.list_by_session(session.id)).items
        assert first == appended
        assert [it.message for it in rest] == ["two", "three"]
    for path in ("/a", "/b"):
        await store.worktrees.create(repository_id=repository.id, path=path)
    leases = [
        await store.worktrees.acquire(repository.id, owner=owner, ttl=timedelta(minutes=1))
        for owner in ("ann", "bob")
    ]
    assert len({lease.worktree_id for lease in leases}) == 2
    for lease in leases:
        await store.worktrees.release(lease)
    assert (await store.audit_chains.verify()).findings == []


def test_statements__name_parameters_as_columns() -> None:
    others = {
        parameter
        for statement in STATEMENTS.values()
        for parameter in statement.parameters
        if parameter not in REPOSITORIES[statement.table].row_type.__struct_fields__
    }
    assert others == NOT_COLUMNS.keys()


@each_statement
def test_statement__reads_or_writes_as_its_operator_says(name: str) -> None:
    statement = STATEMENTS[name]
    # Behind a WITH, the first word that stands at the beginning of a line.
    [verb, *_] = re.findall(r"^(?!WITH)[A-Z]+", statement.sql, re.MULTILINE)
    datum = _read(statement.table)[statement.name]
    assert verb in ({"INSERT", "UPDATE", "DELETE"} if statement.writes else {"SELECT"})
    returns = datum.operation_type is SQLOperationType.INSERT_RETURNING
    assert bool(re.search(r"\bRETURNING\b", statement.sql)) == (
        returns and not statement.returns_row_number
    )


@each_statement
def test_statement__returns_rows_of_the_table_as_the_row_type_has_them(
    schema: sqlite3.Connection, name: str
) -> None:
    statement = STATEMENTS[name]
    fields = REPOSITORIES[statement.table].row_type.__struct_fields__
    columns = _returned(schema, statement)
    # What an audit reads as bytes is no row of the table, whatever it adds up to.
    as_bytes = "AS BLOB" in statement.sql
    if _is_decoded(statement) or (len(columns) == len(fields) and not as_bytes):
        assert columns == fields


def _returned(schema: sqlite3.Connection, statement: Statement) -> tuple[str, ...]:
    """Return the names of the columns that a statement returns."""
    if not statement.writes:
        asked = f"SELECT * FROM ({statement.sql}) LIMIT 0"
        bound = _Asked() if statement.places is None else [None] * len(statement.places)
        return tuple(column for column, *_ in schema.execute(asked, bound).description)
    _, _, returning = statement.sql.partition("RETURNING")
    return tuple(column.strip() for column in returning.split(",") if column.strip())


DECODING = {"_all", "_find", "_one", "_created", "_advanced", "_unless_lost"}
"""The methods of repositories' bases that turn what a statement returns into rows."""


def _is_decoded(statement: Statement) -> bool:
    """Tell whether a repository turns what a statement returns into rows of the table."""
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in DECODING
        and f"self._sql.{statement.name}(" in ast.unparse(call)
        for call in ast.walk(_module(statement.table))
    )


# Repositories and the types of their statements, which mypy checks the rest of.


@cache
def _module(table: str) -> ast.Module:
    return ast.parse(_text(Path(inspect.getfile(REPOSITORIES[table]))))


@cache
def _users(table: str) -> list[ast.Module]:
    """Return the modules that run the statements of a table: its repository, and what that asks."""
    texts = [_text(path) for path in PACKAGE.rglob("*.py")]
    return [ast.parse(text) for text in texts if re.search(rf"\b{class_name(table)}\b", text)]


@each_table
def test_repository__uses_every_statement_of_its_file(table: str) -> None:
    used = {
        node.attr
        for module in _users(table)
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._sql"
    }
    assert used == _read(table).keys()


@each_table
def test_repository__declares_the_type_of_its_statements(table: str) -> None:
    assert REPOSITORIES[table].__annotations__["_sql"] == class_name(table)


@each_table
def test_repository__passes_no_keywords_that_mypy_cannot_see(table: str) -> None:
    """Of a `dict[str, …]` mypy believes that it has every key; a TypedDict has those it names."""
    nodes = list(ast.walk(_module(table)))
    types = {
        ast.unparse(node.target): ast.unparse(node.annotation)
        for node in nodes
        if isinstance(node, ast.AnnAssign)
    } | {
        node.name: ast.unparse(node.returns)
        for node in nodes
        if isinstance(node, ast.FunctionDef) and node.returns is not None
    }
    for shared, called in ((deletion.cut, "deletion.cut"), (paging.older_than, "older_than")):
        types[called] = str(inspect.signature(shared).return_annotation)
    untyped = {
        call.lineno: ast.unparse(keyword.value)
        for call in nodes
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("self._sql.")
        for keyword in call.keywords
        if keyword.arg is None
        and types.get(ast.unparse(keyword.value).partition("(")[0], "dict").startswith("dict")
    }
    assert untyped == {}


def test_repositories__hold_no_sql() -> None:
    sources = [
        *PACKAGE.glob("repositories/*.py"),
        *PACKAGE.glob("leasing/*.py"),
        PACKAGE / "store.py",
    ]
    found = [
        f"{source.name}:{node.lineno}"
        for source in sources
        for node in ast.walk(ast.parse(_text(source)))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\s", node.value)
    ]
    assert len(sources) > len(REPOSITORIES)
    assert found == []


# Row types against their tables.


class Column(NamedTuple):
    """A column as a table or a row type has it."""

    name: str
    type: str
    nullable: bool


# Only `metastore audit verify` has to do with them.
NOT_SHOWN = {"events": ["hash"]}


@each_table
def test_row_type__has_the_columns_of_its_table(schema: sqlite3.Connection, table: str) -> None:
    fields = [
        Column(name, _column_type(column.type), column.nullable)
        for name, column in _columns(REPOSITORIES[table].row_type).items()
    ]
    columns = [
        Column(name, type_, not (not_null or key))
        for _, name, type_, not_null, _, key in schema.execute(f"PRAGMA table_info({table})")
        if name not in NOT_SHOWN.get(table, ())
    ]
    assert fields == columns


def _column_type(kind: Any) -> str:
    return "TEXT" if _is_enumeration(kind) else COLUMN_TYPES[kind]


def _is_enumeration(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, StrEnum)


@each_table
def test_row_type__decodes_as_json_what_the_table_checks_to_be(
    schema: sqlite3.Connection, table: str
) -> None:
    decoded = {
        name
        for name, column in _columns(REPOSITORIES[table].row_type).items()
        if column.type in (dict, list, Any)
    }
    assert decoded == set(re.findall(r"json_valid\(\s*(\w+)\s*\)", _create_text(schema, table)))


@each_table
def test_enumerations__are_what_the_table_checks(schema: sqlite3.Connection, table: str) -> None:
    checked = {}
    for constraint in parse_table(_create_text(schema, table)).constraints:
        if members := _members(constraint.text):
            column, values = members
            checked[column] = values
            assert constraint.name == f"{table}_{column}_check"
    declared = {
        name: {member.value for member in column.type}
        for name, column in _columns(REPOSITORIES[table].row_type).items()
        if _is_enumeration(column.type)
    }
    assert checked == declared


def _members(constraint: str) -> tuple[str, set[str]] | None:
    """Return the column that a CHECK restricts to some texts, and those; None for others."""
    equal = r"(\w+) = '\w+'(?: OR \1 = '\w+')*"
    among = r"(\w+) IN \('\w+'(?:, '\w+')*\)"
    match = re.fullmatch(rf"CHECK \((?:{equal}|{among.replace('1', '2')})\)", constraint)
    if match is None:
        return None
    return match[1] or match[2], set(re.findall(r"'(\w+)'", constraint))


def test_enumerations__are_columns() -> None:
    columns = {
        column.type.__name__
        for repository in REPOSITORIES.values()
        for column in _columns(repository.row_type).values()
        if _is_enumeration(column.type)
    }
    defined = {
        name
        for repository in REPOSITORIES.values()
        for name, kind in vars(sys.modules[repository.__module__]).items()
        if _is_enumeration(kind) and kind is not StrEnum
    }
    assert defined - columns == NOT_STORED.keys()


def _create_text(schema: sqlite3.Connection, table: str) -> str:
    [(text,)] = schema.execute(
        "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?", (table,)
    ).fetchall()
    assert isinstance(text, str)
    return text


# Query plans.


def test_query_plans__are_the_golden_ones(schema: sqlite3.Connection) -> None:
    golden = _text(TESTS / "golden" / "query_plans.txt")
    if not query_plans.is_of_this_release(golden):
        pytest.skip("the golden plans were made by another release of SQLite")
    plans = query_plans.render(schema)
    assert plans == golden, "if the plans are meant to be so, run: python -m docs.generate"


def test_query_plans__no_statement_scans_or_sorts(schema: sqlite3.Connection) -> None:
    slow = {
        name: lines
        for name, sql in query_plans.searching_statements()
        if (lines := [line for line in query_plans.plan_of(schema, sql) if _is_slow(line)])
    }
    assert slow.keys() == MAY_SCAN_OR_SORT.keys(), slow


def _is_slow(line: str) -> bool:
    # `line` is the one row that says how many wait ahead.
    return bool(re.search(r"SCAN (?!CONSTANT ROW|l$|line$)|TEMP B-TREE|AUTOMATIC", line))


NAMED = [
    (module, name.removesuffix("Name"))
    for module in sorted({repository.__module__ for repository in REPOSITORIES.values()})
    for name in vars(sys.modules[module])
    if name.endswith("Name") and get_origin(vars(sys.modules[module])[name]) is Literal
]


@pytest.mark.parametrize(("module", "enumeration"), NAMED)
def test_names__are_the_values_of_their_enumeration(module: str, enumeration: str) -> None:
    """A type checker takes either; one that is missing from the other would go unnoticed."""
    members = getattr(sys.modules[module], enumeration)
    assert get_args(getattr(sys.modules[module], f"{enumeration}Name")) == tuple(members)


def test_names__stand_for_every_enumeration_that_a_method_takes() -> None:
    assert len(NAMED) == 14
    for repository in REPOSITORIES.values():
        for name, method in inspect.getmembers(repository, inspect.isfunction):
            # Its callers are the repositories of what is leased.
            if name.startswith("_") or name == "wait_in_queue":
                continue
            for parameter in inspect.signature(method).parameters.values():
                column = _columns(repository.row_type).get(parameter.name)
                if column and isinstance(column.type, type) and issubclass(column.type, StrEnum):
                    kind = column.type.__name__
                    taken = str(parameter.annotation).split(" | ")
                    assert {kind, f"{kind}Name"} <= set(taken), f"{repository.__name__}.{name}"
