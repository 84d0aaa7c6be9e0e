"""Everything that the seeds name for the registry and execution tables exists.

The lists are the seeds', under the names that the schema gives them: the debug server's spine
(its tables and what it tells of each) and TestBoost's reference (columns, indexes, constraints,
cascades). What differs stands in `EXCEPTIONS` with the reason.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

import pytest

from metastore import migrations, urls
from metastore.codec import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Column(NamedTuple):
    """What a seed says of a column."""

    type: str
    null: bool = False
    default: str | None = None
    primary_key: bool = False


UUID = Column("TEXT")
TEXT = Column("TEXT")
TIME = Column("TEXT")
KEY = Column("TEXT", primary_key=True)
OBJECT = Column("TEXT", default="'{}'")


def nullable(column: Column) -> Column:
    return column._replace(null=True)


# The debug server names its tables and tells what each holds.
SPINE: dict[str, set[str]] = {
    "repositories": {"name", "remote_url", "default_branch"},
    "worktrees": {"lease_owner", "lease_token", "commit_sha", "environment_hashes", "version"},
    "sessions": {"repository_id", "worktree_id", "auth_token_id", "metadata"},
    "commands": {"status", "exit_code", "created_at", "started_at", "completed_at", "log_path"},
    "artifacts": {"artifact_type", "metadata"},
    "auth_tokens": {"token_hash", "scopes", "expires_at", "last_used_at"},
    "debugger_state": {"session_id", "state"},
}

# TestBoost lists every column.
COLUMNS: dict[str, dict[str, Column]] = {
    "sessions": {
        "id": KEY,
        "session_type": TEXT,
        "status": Column("TEXT", default="'pending'"),
        "mode": Column("TEXT", default="'interactive'"),
        "project_path": TEXT,
        "config": OBJECT,
        "result": nullable(TEXT),
        "error_message": nullable(TEXT),
        "created_at": TIME,
        "updated_at": TIME,
        "completed_at": nullable(TIME),
    },
    "steps": {
        "id": KEY,
        "session_id": UUID,
        "name": TEXT,
        "sequence": Column("INTEGER"),
        "status": Column("TEXT", default="'pending'"),
        "input": nullable(TEXT),
        "output": nullable(TEXT),
        "error_message": nullable(TEXT),
        "started_at": nullable(TIME),
        "completed_at": nullable(TIME),
    },
    "events": {
        "id": KEY,
        "session_id": UUID,
        "event_type": TEXT,
        "level": TEXT,
        "message": TEXT,
        "context": OBJECT,
        "created_at": TIME,
    },
    "artifacts": {
        "id": KEY,
        "session_id": UUID,
        "artifact_type": TEXT,
        "name": TEXT,
        "content_path": TEXT,
        "metadata": OBJECT,
        "created_at": TIME,
    },
    "projects": {
        "id": KEY,
        "path": TEXT,
        "name": nullable(TEXT),
        "config": OBJECT,
        "created_at": TIME,
        "updated_at": TIME,
    },
    "project_locks": {
        "id": KEY,
        "project_id": UUID,
        "session_id": UUID,
        "acquired_at": TIME,
        "expires_at": TIME,
    },
}

EXCEPTIONS: dict[tuple[str, str], tuple[Column, str]] = {
    ("sessions", "project_path"): (
        nullable(TEXT),
        "sessions serve two systems: a CHECK demands it of TestBoost's three types only",
    ),
    ("events", "id"): (
        UUID,
        "position is the key: the order in which events became visible; id stays UNIQUE",
    ),
}

INDEXES: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "ix_sessions_status": ("sessions", ("status",), False),
    "ix_sessions_project_path": ("sessions", ("project_path",), False),
    "ix_sessions_created_at": ("sessions", ("created_at",), False),
    "ix_sessions_status_created": ("sessions", ("status", "created_at"), False),
    "ix_sessions_active": ("sessions", ("id",), False),
    "ix_steps_session_id": ("steps", ("session_id",), False),
    "ix_steps_session_sequence": ("steps", ("session_id", "sequence"), True),
    "ix_events_session_id": ("events", ("session_id",), False),
    "ix_events_created_at": ("events", ("created_at",), False),
    "ix_artifacts_session_id": ("artifacts", ("session_id",), False),
    "ix_artifacts_type": ("artifacts", ("artifact_type",), False),
    "ix_project_locks_project_id": ("project_locks", ("project_id",), True),
    "ix_project_locks_expires_at": ("project_locks", ("expires_at",), False),
    "ix_projects_path": ("projects", ("path",), True),
}

UNIQUE = {("repositories", "name"), ("worktrees", "path"), ("auth_tokens", "token_hash"),
          ("projects", "path"), ("project_locks", "project_id"), ("events", "id")}  # fmt: skip

VALUES: dict[tuple[str, str], set[str]] = {
    ("sessions", "session_type"): {
        "maven_maintenance", "test_generation", "docker_deployment", "debug",
    },
    ("sessions", "status"): {
        "pending", "in_progress", "paused", "completed", "failed", "cancelled",
    },
    ("sessions", "mode"): {"interactive", "autonomous", "analysis_only", "debug"},
    ("events", "level"): {"debug", "info", "warning", "error"},
    ("artifacts", "artifact_type"): {
        "log", "coverage", "junit_xml", "crash_dump", "test_file", "report", "diff", "backup",
    },
}  # fmt: skip

LENGTHS = {("steps", "name"): 100, ("events", "event_type"): 50, ("artifacts", "name"): 255,
           ("projects", "name"): 255}  # fmt: skip

# (parent, child, column): what becomes of the child when the parent is deleted.
POLICIES: dict[tuple[str, str, str], str] = {
    ("sessions", "steps", "session_id"): "CASCADE",
    ("sessions", "events", "session_id"): "CASCADE",
    ("sessions", "artifacts", "session_id"): "CASCADE",
    ("sessions", "commands", "session_id"): "CASCADE",
    ("sessions", "debugger_state", "session_id"): "CASCADE",
    ("sessions", "project_locks", "session_id"): "CASCADE",
    ("projects", "sessions", "project_path"): "RESTRICT",
    ("projects", "project_locks", "project_id"): "CASCADE",
    ("repositories", "worktrees", "repository_id"): "RESTRICT",
    ("repositories", "sessions", "repository_id"): "RESTRICT",
    ("worktrees", "sessions", "worktree_id"): "SET NULL",
    ("auth_tokens", "sessions", "auth_token_id"): "SET NULL",
    ("commands", "artifacts", "command_id"): "SET NULL",
}


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeds") / "metadata.db"
    migrations.upgrade(urls.resolve(f"sqlite:///{path}"))
    return path


@pytest.fixture
def schema(migrated: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(migrated, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("BEGIN")
    yield connection
    connection.execute("ROLLBACK")
    connection.close()


def columns_of(schema: sqlite3.Connection, table: str) -> dict[str, Column]:
    return {
        name: Column(type_, not (not_null or key), default, bool(key))
        for _, name, type_, not_null, default, key in schema.execute(f"PRAGMA table_info({table})")
    }


# --- what the lists name is there --------------------------------------------------------------


@pytest.mark.parametrize("table", SPINE)
def test_spine__table_and_columns(schema: sqlite3.Connection, table: str) -> None:
    assert SPINE[table] <= columns_of(schema, table).keys()


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table, columns in COLUMNS.items() for name in columns]
)
def test_reference__column(schema: sqlite3.Connection, table: str, name: str) -> None:
    named = COLUMNS[table][name]
    expected, _ = EXCEPTIONS.get((table, name), (named, ""))
    found = columns_of(schema, table)[name]
    if expected.default is None and name.endswith("_at"):
        # The database stamps what the seed leaves to the application.
        found = found._replace(default=None)
    assert found == expected


@pytest.mark.parametrize("name", INDEXES)
def test_reference__index(schema: sqlite3.Connection, name: str) -> None:
    table, leading, unique = INDEXES[name]
    found = {row[1]: bool(row[2]) for row in schema.execute(f"PRAGMA index_list({table})")}
    columns = tuple(row[2] for row in schema.execute(f"PRAGMA index_info({name})"))
    assert found.get(name) == unique
    assert columns[: len(leading)] == leading


def test_reference__the_recommended_indexes_are_as_written(schema: sqlite3.Connection) -> None:
    def text(name: str) -> str:
        [(sql,)] = schema.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,))
        return " ".join(sql.split())

    assert "(status, created_at DESC" in text("ix_sessions_status_created")
    assert text("ix_sessions_active").endswith("WHERE status IN ('pending', 'in_progress')")


@pytest.mark.parametrize(("table", "column"), UNIQUE)
def test_unique__one_index_on_the_column_alone(
    schema: sqlite3.Connection, table: str, column: str
) -> None:
    unique = [row[1] for row in schema.execute(f"PRAGMA index_list({table})") if row[2]]
    assert [column] in [
        [row[2] for row in schema.execute(f"PRAGMA index_info({name})")] for name in unique
    ]


# --- and holds ---------------------------------------------------------------------------------


class Rows:
    """Writes one good row of each table, with what it needs, by plain SQL."""

    def __init__(self, schema: sqlite3.Connection) -> None:
        self.schema = schema

    def add(self, table: str, **values: object) -> str:
        row: dict[str, object] = {"id": new_id(), **getattr(self, table)(values), **values}
        columns = ", ".join(row)
        self.schema.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(row))})",
            tuple(row.values()),
        )
        return str(row["id"])

    def repositories(self, _: dict[str, object]) -> dict[str, object]:
        return {"name": new_id(), "remote_url": ""}

    def worktrees(self, given: dict[str, object]) -> dict[str, object]:
        return {
            "repository_id": given.get("repository_id") or self.add("repositories"),
            "path": f"/{new_id()}",
        }

    def projects(self, _: dict[str, object]) -> dict[str, object]:
        return {"path": f"/{new_id()}"}

    def auth_tokens(self, _: dict[str, object]) -> dict[str, object]:
        return {
            "user_name": "u",
            "name": "n",
            "token_prefix": "mst_",
            "token_hash": (new_id() * 2).replace("-", "")[:64],
            "scopes": "[]",
        }

    def sessions(self, given: dict[str, object]) -> dict[str, object]:
        if given.get("session_type") == "debug":
            return {"repository_id": given.get("repository_id") or self.add("repositories")}
        path = given.get("project_path")
        if path is None:
            path = f"/{new_id()}"
            self.add("projects", path=path)
        return {"session_type": "test_generation", "project_path": path}

    def project_locks(self, given: dict[str, object]) -> dict[str, object]:
        return {
            "project_id": given.get("project_id") or self.add("projects"),
            "session_id": given.get("session_id") or self.add("sessions"),
            "acquired_at": "2026-01-01T00:00:00.000Z",
            "expires_at": "2026-01-01T00:00:01.000Z",
            "fencing_number": 1,
        }

    def steps(self, given: dict[str, object]) -> dict[str, object]:
        return {**self._of_session(given), "name": "n", "sequence": 1}

    def events(self, given: dict[str, object]) -> dict[str, object]:
        return {**self._of_session(given), "event_type": "e", "level": "info", "message": ""}

    def commands(self, given: dict[str, object]) -> dict[str, object]:
        return {
            **self._of_session(given),
            "sequence": 1,
            "argv": '["true"]',
            "working_directory": "/",
        }

    def artifacts(self, given: dict[str, object]) -> dict[str, object]:
        return {
            **self._of_session(given),
            "artifact_type": "log",
            "name": "n",
            "content_path": "/n",
        }

    def debugger_state(self, given: dict[str, object]) -> dict[str, object]:
        return {**self._of_session(given), "sequence": 1, "state": "{}"}

    def _of_session(self, given: dict[str, object]) -> dict[str, object]:
        return {"session_id": given.get("session_id") or self.add("sessions")}


@pytest.fixture
def rows(schema: sqlite3.Connection) -> Rows:
    return Rows(schema)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [(*where, value) for where, values in VALUES.items() for value in sorted(values)],
)
def test_values__each_that_is_named_goes_in(
    rows: Rows, table: str, column: str, value: str
) -> None:
    rows.add(table, **{column: value})


@pytest.mark.parametrize(("table", "column"), VALUES)
def test_values__no_other_does(rows: Rows, table: str, column: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=f"{table}_{column}_check"):
        rows.add(table, **{column: "unheard of"})


@pytest.mark.parametrize(("table", "column"), LENGTHS)
def test_lengths__are_the_seeds(rows: Rows, table: str, column: str) -> None:
    longest = LENGTHS[table, column]
    rows.add(table, **{column: "x" * longest})
    with pytest.raises(sqlite3.IntegrityError, match=f"{table}_{column}_check"):
        rows.add(table, **{column: "x" * (longest + 1)})


def test_sessions__each_type_has_what_its_system_demands(rows: Rows) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="sessions_debug_needs_repository"):
        rows.add("sessions", session_type="debug", repository_id=None)
    with pytest.raises(sqlite3.IntegrityError, match="sessions_workflow_needs_project"):
        rows.add("sessions", session_type="docker_deployment", project_path=None)


def test_project_locks__expire_after_they_were_acquired(rows: Rows) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="project_locks_"):
        rows.add("project_locks", expires_at="2026-01-01T00:00:00.000Z")


@pytest.mark.parametrize(("parent", "child", "column"), POLICIES)
def test_policies__a_parent_is_deleted(
    schema: sqlite3.Connection, rows: Rows, parent: str, child: str, column: str
) -> None:
    policy = POLICIES[parent, child, column]
    declared = {
        row[3]: (row[2], row[6]) for row in schema.execute(f"PRAGMA foreign_key_list({child})")
    }
    assert declared[column] == (parent, policy)
    parent_id = rows.add(parent)
    key = parent_id
    if column == "project_path":
        [(key,)] = schema.execute("SELECT path FROM projects WHERE id = ?", (parent_id,))
    child_id = rows.add(child, **{column: key})
    delete = f"DELETE FROM {parent} WHERE id = ?"
    if policy == "RESTRICT":
        with pytest.raises(sqlite3.IntegrityError):
            schema.execute(delete, (parent_id,))
        return
    schema.execute(delete, (parent_id,))
    left = schema.execute(f"SELECT {column} FROM {child} WHERE id = ?", (child_id,)).fetchall()
    assert left == ([] if policy == "CASCADE" else [(None,)])


# --- what every table keeps to -----------------------------------------------------------------


def tables(schema: sqlite3.Connection) -> list[str]:
    return [
        name
        for (name,) in schema.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
        if name not in migrations.BOOKKEEPING_TABLES
    ]


def test_tables__are_strict_and_speak_of_themselves(schema: sqlite3.Connection) -> None:
    for table in tables(schema):
        [(sql,)] = schema.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,))
        assert sql.rstrip().endswith("STRICT"), table
        assert re.match(r"CREATE TABLE \w+ \(\s+-- \w", sql), f"{table} says nothing of itself"


def test_foreign_keys__state_a_policy_and_have_an_index(schema: sqlite3.Connection) -> None:
    for table in tables(schema):
        for key in schema.execute(f"PRAGMA foreign_key_list({table})").fetchall():
            assert key[6] != "NO ACTION", f"{table}.{key[3]} states no ON DELETE"
            # As the database looks for children when it deletes a parent.
            plan = " ".join(
                row[3]
                for row in schema.execute(
                    f"EXPLAIN QUERY PLAN SELECT 1 FROM {table} WHERE {key[3]} = ?", ("x",)
                )
            )
            assert "USING" in plan, f"{table}.{key[3]} has no index"
            assert "SCAN" not in plan


def test_updated_at__a_trigger_stamps_what_a_hand_left_unstamped(
    schema: sqlite3.Connection, rows: Rows
) -> None:
    stamped = [table for table in tables(schema) if "updated_at" in columns_of(schema, table)]
    assert {"repositories", "worktrees", "projects", "sessions"} <= set(stamped)
    old = "2020-01-01T00:00:00.000Z"
    given = "2021-01-01T00:00:00.000Z"
    for table in ("repositories", "worktrees", "projects", "sessions"):
        row_id = rows.add(table, created_at=old, updated_at=old)

        def updated(table: str = table, row_id: str = row_id) -> str:
            read = f"SELECT updated_at FROM {table} WHERE id = ?"
            [(moment,)] = schema.execute(read, (row_id,))
            return str(moment)

        schema.execute(f"UPDATE {table} SET created_at = created_at WHERE id = ?", (row_id,))
        assert updated() > "2026"
        schema.execute(f"UPDATE {table} SET updated_at = ? WHERE id = ?", (given, row_id))
        assert updated() == given
    for table in stamped:
        assert schema.execute(
            "SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND name = ?",
            (f"{table}_updated_at",),
        ).fetchone(), table


def test_fencing__floors_keep_what_is_deleted(schema: sqlite3.Connection, rows: Rows) -> None:
    worktree = rows.add("worktrees", version=41)
    lock = rows.add("project_locks", fencing_number=17)
    schema.execute("DELETE FROM worktrees WHERE id = ?", (worktree,))
    schema.execute("DELETE FROM project_locks WHERE id = ?", (lock,))
    floors = dict(schema.execute("SELECT resource, number FROM fencing_floors").fetchall())
    assert (floors["worktrees"], floors["project_locks"]) == (41, 17)
    for statement in (
        "UPDATE fencing_floors SET number = 1 WHERE resource = 'worktrees'",
        "DELETE FROM fencing_floors",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            schema.execute(statement)
    other = rows.add("worktrees", version=5)
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        schema.execute("UPDATE worktrees SET version = 4 WHERE id = ?", (other,))


def test_events__are_history(schema: sqlite3.Connection, rows: Rows) -> None:
    session = rows.add("sessions")
    rows.add("events", session_id=session)
    for statement in ("UPDATE events SET message = 'x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="history"):
            schema.execute(statement)
    schema.execute("DELETE FROM sessions WHERE id = ?", (session,))
    assert schema.execute("SELECT count(*) FROM events").fetchone() == (0,)


def test_debugger_state__only_of_an_active_session(rows: Rows) -> None:
    session = rows.add("sessions", status="cancelled")
    with pytest.raises(sqlite3.IntegrityError, match="not active"):
        rows.add("debugger_state", session_id=session)
