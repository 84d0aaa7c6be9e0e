"""The names that tie a table's layers together, and the shapes on both sides of each statement.

Nothing here runs an operation: the statements are prepared against the migrated schema, the
repositories are read as source.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import sys
from collections import Counter
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import pytest
from aiosql.types import SQLOperationType

import metastore
from docs import query_plans
from docs.schema_page import migrated, parse_table
from metastore import resources
from metastore.codec import _columns
from metastore.repositories import RepositorySet
from metastore.statements import Catalogue, Statement, read_statements
from metastore.store import MetadataStore, Transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

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
"""What a column is declared as for each type of a row, see metastore/codec.py."""

NOT_COLUMNS = {
    "now": "the time of the operation, which may set several columns or none",
    "horizon": "the latest expiry to believe",
    "ticket_horizon": "the latest expiry of a ticket to believe",
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
    "until_run": "the run that has just ended, or one behind all runs",
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
    for name, statement in vars(Catalogue(table, repository.row_type)).items()
}

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
        "metastore/repositories": _stems(PACKAGE / "repositories", "*.py") - {"__init__", "base"},
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
    assert repository.row_type.__module__ == repository.__module__


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


# Statements against the schema.


class _Asked(dict[str, None]):
    """NULL for every parameter, and which of them SQLite asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __missing__(self, name: str) -> None:
        self.names.add(name)


@each_statement
def test_statement__is_prepared_with_the_parameters_it_declares(
    schema: sqlite3.Connection, name: str
) -> None:
    statement = STATEMENTS[name]
    asked = _Asked()
    schema.execute(f"EXPLAIN {statement.sql}", asked)
    # By number, from 1, as they are bound.
    assert asked.names == {str(number + 1) for number in range(len(statement.parameters))}
    assert len(set(statement.parameters)) == len(statement.parameters)


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
    datum = read_statements(statement.table)[statement.name]
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
        return tuple(column for column, *_ in schema.execute(asked, _Asked()).description)
    _, _, returning = statement.sql.partition("RETURNING")
    return tuple(column.strip() for column in returning.split(",") if column.strip())


def _is_decoded(statement: Statement) -> bool:
    return any(use.decoded for use in _uses(statement.table) if use.statement == statement.name)


# Repositories against their statements.


class Use(NamedTuple):
    """A place where a repository calls a statement.

    Attributes:
        parameters: the names it passes.
        decoded: whether what comes back is turned into rows of the table.
    """

    statement: str
    line: int
    parameters: frozenset[str]
    decoded: bool


DECODING = {"_all", "_find", "_one", "_created", "_advanced"}
"""The methods of TableRepository that turn what a statement returns into rows."""


class _Module:
    """A repository's source, and what it passes to its statements.

    It follows what the repositories are written in: keywords, dict literals, local names, `|`,
    `**`, and helpers of the same module that return a dict. Anything else is an error, so that
    no call goes unread.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        self._tree = ast.parse(_text(Path(inspect.getfile(REPOSITORIES[table]))))
        self._parents = {
            child: parent
            for parent in ast.walk(self._tree)
            for child in ast.iter_child_nodes(parent)
        }

    def uses(self) -> Iterator[Use]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._sql":
                yield self._use(node)

    def _use(self, node: ast.Attribute) -> Use:
        called: ast.AST = node
        parent = self._parents[called]
        if isinstance(parent, ast.IfExp):
            called, parent = parent, self._parents[parent]
        many = isinstance(parent, ast.Attribute) and parent.attr == "many"
        if many:
            called, parent = parent, self._parents[parent]
        if not isinstance(parent, ast.Call) or parent.func is not called:
            raise self._unread(node)
        parameters = self._of_rows(parent.args[0]) if many else self._of_call(parent)
        return Use(node.attr, node.lineno, parameters, self._is_decoded(parent))

    def _is_decoded(self, call: ast.Call) -> bool:
        parent = self._parents[call]
        if isinstance(parent, ast.keyword):
            parent = self._parents[parent]
        return (
            isinstance(parent, ast.Call)
            and isinstance(parent.func, ast.Attribute)
            and parent.func.attr in DECODING
        )

    def _of_call(self, call: ast.Call) -> frozenset[str]:
        if call.args:
            raise self._unread(call)
        spread = [self._of_dict(keyword.value) for keyword in call.keywords if not keyword.arg]
        named = [keyword.arg for keyword in call.keywords if keyword.arg]
        return frozenset(named).union(*spread)

    def _of_rows(self, rows: ast.expr) -> frozenset[str]:
        """Return the keys of the dicts in a list."""
        match rows:
            case ast.ListComp(elt=row):
                return self._of_dict(row)
            case ast.List(elts=[*found]) if found:
                return self._same(rows, [self._of_dict(row) for row in found])
            case ast.Name():
                return self._of_rows(self._assigned(rows))
        raise self._unread(rows)

    def _of_dict(self, value: ast.expr) -> frozenset[str]:
        """Return the keys of a dict."""
        match value:
            case ast.Dict():
                return self._of_literal(value)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return self._of_dict(left) | self._of_dict(right)
            case ast.Name():
                return self._of_dict(self._assigned(value))
            case ast.Call(func=ast.Name(id="dict"), args=[]):
                return self._of_call(value)
            case ast.Call(func=ast.Name(id=helper) | ast.Attribute(attr=helper)):
                returned = [
                    node.value
                    for node in ast.walk(self._function(helper, value))
                    if isinstance(node, ast.Return) and node.value is not None
                ]
                return self._same(value, [self._of_dict(found) for found in returned])
        raise self._unread(value)

    def _of_literal(self, literal: ast.Dict) -> frozenset[str]:
        keys: set[str] = set()
        for key, value in zip(literal.keys, literal.values, strict=True):
            match key:
                case None:
                    keys |= self._of_dict(value)
                case ast.Constant(value=str(name)):
                    keys.add(name)
                case _:
                    raise self._unread(literal)
        return frozenset(keys)

    def _same(self, node: ast.AST, found: list[frozenset[str]]) -> frozenset[str]:
        if len(set(found)) != 1:
            raise self._unread(node)
        return found[0]

    def _assigned(self, name: ast.Name) -> ast.expr:
        """Return what a local name is assigned, if that is one thing."""
        function = self._parents[name]
        while not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            function = self._parents[function]
        found = []
        for node in ast.walk(function):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value):
                    pass
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                    pass
                case _:
                    continue
            if target == name.id:
                found.append(value)
        if len(found) != 1:
            raise self._unread(name)
        return found[0]

    def _function(self, name: str, node: ast.AST) -> ast.AST:
        found = [
            function
            for function in ast.walk(self._tree)
            if isinstance(function, ast.FunctionDef) and function.name == name
        ]
        if len(found) != 1:
            raise self._unread(node)
        return found[0]

    def _unread(self, node: ast.AST) -> AssertionError:
        line = getattr(node, "lineno", 0)
        return AssertionError(
            f"{self._table}.py:{line}: {ast.unparse(node)}: cannot tell which parameters these are"
        )


def _uses(table: str) -> list[Use]:
    return list(_Module(table).uses())


@each_table
def test_repository__passes_what_its_statements_declare(table: str) -> None:
    different = {
        f"{table}.py:{use.line} {use.statement}": {
            "passed": sorted(use.parameters),
            "declared": sorted(declared),
        }
        for use in _uses(table)
        if use.parameters
        != (declared := frozenset(read_statements(table)[use.statement].parameters or ()))
    }
    assert different == {}


@each_table
def test_repository__uses_every_statement_of_its_file(table: str) -> None:
    assert {use.statement for use in _uses(table)} == read_statements(table).keys()


def test_repositories__hold_no_sql() -> None:
    sources = [*PACKAGE.glob("repositories/*.py"), PACKAGE / "store.py", PACKAGE / "leases.py"]
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
