"""What the systems before metastore said about their data holds in metastore's tables.

The lists are theirs, in their notation: the debug server's metadata store and TestBoost's schema.
`EXCEPTIONS` names every line that metastore changes on purpose, with the reason; everything else
is tried out on a database that the migrations made.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from metastore import migrations
from metastore.codec import timestamp
from metastore.leasing.limits import CLOCK_SKEW, MAX_TTL

if TYPE_CHECKING:
    from collections.abc import Iterator

    Row = dict[str, Any]

# What the documents list. A column is NOT NULL unless it says NULL.

DEBUG_SERVER_COLUMNS = """
    repositories.id                 UUID PRIMARY KEY
    repositories.remote_url         TEXT
    repositories.default_branch     TEXT DEFAULT 'main'

    worktrees.id                    UUID PRIMARY KEY
    worktrees.repository_id         UUID
    worktrees.lease_owner           TEXT NULL
    worktrees.lease_token           TEXT NULL
    worktrees.commit_sha            TEXT NULL
    worktrees.environment_hashes    JSONB DEFAULT '{}'
    worktrees.version               INTEGER DEFAULT 0

    sessions.repository_id          UUID
    sessions.worktree_id            UUID NULL
    sessions.auth_token_id          UUID
    sessions.metadata               JSONB DEFAULT '{}'

    commands.id                     UUID PRIMARY KEY
    commands.session_id             UUID
    commands.argv                   JSONB
    commands.status                 TEXT DEFAULT 'pending'
    commands.exit_code              INTEGER NULL
    commands.log_path               TEXT NULL
    commands.created_at             TIMESTAMP
    commands.started_at             TIMESTAMP NULL
    commands.completed_at           TIMESTAMP NULL

    artifacts.command_id            UUID NULL

    auth_tokens.id                  UUID PRIMARY KEY
    auth_tokens.token_hash          TEXT UNIQUE
    auth_tokens.scopes              JSONB
    auth_tokens.expires_at          TIMESTAMP NULL
    auth_tokens.last_used_at        TIMESTAMP NULL

    debugger_state.id               UUID PRIMARY KEY
    debugger_state.session_id       UUID
    debugger_state.state            JSONB
"""

TESTBOOST_COLUMNS = """
    sessions.id                     UUID PRIMARY KEY
    sessions.session_type           VARCHAR(50)
    sessions.status                 VARCHAR(20) DEFAULT 'pending'
    sessions.mode                   VARCHAR(20) DEFAULT 'interactive'
    sessions.project_path           TEXT
    sessions.config                 JSONB DEFAULT '{}'
    sessions.result                 JSONB NULL
    sessions.error_message          TEXT NULL
    sessions.created_at             TIMESTAMP
    sessions.updated_at             TIMESTAMP
    sessions.completed_at           TIMESTAMP NULL

    steps.id                        UUID PRIMARY KEY
    steps.session_id                UUID
    steps.name                      VARCHAR(100)
    steps.sequence                  INTEGER
    steps.status                    VARCHAR(20) DEFAULT 'pending'
    steps.input                     JSONB NULL
    steps.output                    JSONB NULL
    steps.error_message             TEXT NULL
    steps.started_at                TIMESTAMP NULL
    steps.completed_at              TIMESTAMP NULL

    events.id                       UUID PRIMARY KEY
    events.session_id               UUID
    events.event_type               VARCHAR(50)
    events.level                    VARCHAR(10)
    events.message                  TEXT
    events.context                  JSONB DEFAULT '{}'
    events.created_at               TIMESTAMP

    artifacts.id                    UUID PRIMARY KEY
    artifacts.session_id            UUID
    artifacts.artifact_type         VARCHAR(50)
    artifacts.name                  VARCHAR(255)
    artifacts.content_path          TEXT
    artifacts.metadata              JSONB DEFAULT '{}'
    artifacts.created_at            TIMESTAMP

    projects.id                     UUID PRIMARY KEY
    projects.path                   TEXT UNIQUE
    projects.name                   VARCHAR(255) NULL
    projects.config                 JSONB DEFAULT '{}'
    projects.created_at             TIMESTAMP
    projects.updated_at             TIMESTAMP

    project_locks.id                UUID PRIMARY KEY
    project_locks.project_id        UUID UNIQUE
    project_locks.session_id        UUID
    project_locks.acquired_at       TIMESTAMP
    project_locks.expires_at        TIMESTAMP
"""

# What metastore adds, by design: no document has these.
ADDED_COLUMNS = """
    repositories.name               TEXT UNIQUE
    repositories.metadata           JSONB DEFAULT '{}'
    repositories.created_at         TIMESTAMP
    repositories.updated_at         TIMESTAMP

    worktrees.path                  TEXT UNIQUE
    worktrees.branch                TEXT NULL
    worktrees.state                 TEXT DEFAULT 'ready'
    worktrees.leased_at             TIMESTAMP NULL
    worktrees.lease_expires_at      TIMESTAMP NULL
    worktrees.created_at            TIMESTAMP
    worktrees.updated_at            TIMESTAMP

    project_locks.fencing_number    INTEGER

    auth_tokens.user_name           TEXT
    auth_tokens.name                TEXT
    auth_tokens.token_prefix        TEXT
    auth_tokens.created_at          TIMESTAMP
    auth_tokens.revoked_at          TIMESTAMP NULL
    auth_tokens.replaced_by         UUID NULL

    commands.sequence               INTEGER
    commands.working_directory      TEXT
    commands.error_message          TEXT NULL

    artifacts.size_bytes            INTEGER NULL
    artifacts.sha256                TEXT NULL

    debugger_state.sequence         INTEGER
    debugger_state.label            TEXT NULL
    debugger_state.created_at       TIMESTAMP

    lease_waiters.id                UUID UNIQUE
    lease_waiters.resource          TEXT
    lease_waiters.resource_id       TEXT
    lease_waiters.owner             TEXT
    lease_waiters.created_at        TIMESTAMP
    lease_waiters.expires_at        TIMESTAMP
"""

# An index may have more columns than these, behind them.
INDEXES = """
    ix_sessions_status              ON sessions (status)
    ix_sessions_project_path        ON sessions (project_path)
    ix_sessions_created_at          ON sessions (created_at)
    ix_sessions_status_created      ON sessions (status, created_at DESC)
    ix_sessions_active              ON sessions (id) WHERE status IN ('pending', 'in_progress')
    ix_steps_session_id             ON steps (session_id)
    ix_steps_session_sequence       ON steps (session_id, sequence)
    ix_events_session_id            ON events (session_id)
    ix_events_created_at            ON events (created_at)
    ix_artifacts_session_id         ON artifacts (session_id)
    ix_artifacts_type               ON artifacts (artifact_type)
    ix_projects_path                UNIQUE ON projects (path)
    ix_project_locks_project_id     UNIQUE ON project_locks (project_id)
    ix_project_locks_expires_at     ON project_locks (expires_at)
"""

ADDED_INDEXES = """
    ix_worktrees_lease_expires_at ON worktrees (lease_expires_at) WHERE lease_expires_at IS NOT NULL
    ix_auth_tokens_user_name      ON auth_tokens (user_name, id)
    ix_lease_waiters_resource     ON lease_waiters (resource, resource_id, position)
"""

QUERY_PATTERNS = {
    "ix_sessions_status": "SELECT * FROM sessions WHERE status = 'failed'",
    "ix_sessions_project_path": "SELECT * FROM sessions WHERE project_path = '/app'",
    "ix_sessions_created_at": "SELECT * FROM sessions WHERE created_at < '' ORDER BY created_at",
    "ix_sessions_status_created": (
        "SELECT * FROM sessions WHERE status = 'failed' ORDER BY created_at DESC"
    ),
    "ix_steps_session_sequence": "SELECT * FROM steps WHERE session_id = '' ORDER BY sequence",
    "ix_events_session_id": "SELECT * FROM events WHERE session_id = '' ORDER BY position",
    "ix_project_locks_expires_at": "SELECT * FROM project_locks WHERE expires_at <= ''",
}

ENUMERATIONS = {
    "sessions.session_type": "maven_maintenance test_generation docker_deployment",
    "sessions.status": "pending in_progress paused completed failed cancelled",
    "sessions.mode": "interactive autonomous analysis_only debug",
    "events.level": "debug info warning error",
    "artifacts.artifact_type": (
        "test_file report diff backup "  # TestBoost's
        "log coverage junit_xml crash_dump"  # the debug server's
    ),
    # Left open by the documents, and closed here.
    "steps.status": "pending running completed failed skipped",
    "commands.status": "pending running completed failed cancelled timeout",
    # Those of the columns that metastore adds.
    "worktrees.state": "ready retired",
    "lease_waiters.resource": "worktrees project_locks tasks",
}


class Policy(NamedTuple):
    """What becomes of a child when its parent is deleted.

    Attributes:
        before: takes away what else holds on to the parent.
    """

    parent: str
    child: str
    column: str
    policy: str
    before: str = "SELECT 1"

    def __str__(self) -> str:
        return f"{self.parent}-{self.child}.{self.column}"


POLICIES = [
    Policy("sessions", "steps", "session_id", "CASCADE"),
    Policy("sessions", "events", "session_id", "CASCADE"),
    Policy("sessions", "artifacts", "session_id", "CASCADE"),
    Policy("projects", "sessions", "project_path", "RESTRICT"),
    Policy(
        *("projects", "project_locks", "project_id", "CASCADE"),
        before="UPDATE sessions SET project_path = NULL",
    ),
    Policy("sessions", "project_locks", "session_id", "CASCADE"),
    # The debug server's foreign keys, for which its documents leave the policy open.
    Policy("sessions", "commands", "session_id", "CASCADE"),
    Policy("sessions", "debugger_state", "session_id", "CASCADE"),
    Policy("repositories", "worktrees", "repository_id", "RESTRICT", "DELETE FROM sessions"),
    Policy("repositories", "sessions", "repository_id", "RESTRICT", "DELETE FROM worktrees"),
    Policy("worktrees", "sessions", "worktree_id", "SET NULL"),
    Policy("auth_tokens", "sessions", "auth_token_id", "SET NULL"),
    Policy("auth_tokens", "auth_tokens", "replaced_by", "SET NULL"),
    Policy("commands", "artifacts", "command_id", "SET NULL"),
]

# Where metastore is not what a line above says: how it is here, and why.
EXCEPTIONS = {
    "sessions.session_type IN": (
        "maven_maintenance test_generation docker_deployment debug",
        "the debug server's sessions share the table",
    ),
    "sessions.project_path": (
        "TEXT NULL",
        "a debug session has a repository; the others still need a project, by a CHECK",
    ),
    "sessions.repository_id": (
        "UUID NULL",
        "a workflow has a project; debug sessions still need a repository, by a CHECK",
    ),
    "sessions.auth_token_id": ("UUID NULL", "a session outlives the token that opened it"),
    "events.id": ("UUID UNIQUE", "the primary key is position, the order of the events"),
    "ix_steps_session_sequence": (
        "UNIQUE ON steps (session_id, sequence)",
        "an order in which two steps have one place is none",
    ),
}

STARTED, ENDED = "2026-01-31T23:59:59.123Z", "2026-02-01T00:29:59.123Z"
LONG_AGO = "2020-01-01T00:00:00.000Z"
LEASE = {
    "lease_owner": "runner",
    "lease_token": "token",
    "leased_at": STARTED,
    "lease_expires_at": ENDED,
}

MALFORMED: dict[str, list[Any]] = {
    "UUID": ["0195", b"\0" * 36],
    "TEXT": [b"text"],
    "INTEGER": ["one", 1.5],
    "JSONB": ["{", "", "{'a': 1}", b"{}"],
    "TIMESTAMP": ["2026-01-31 23:59:59.123", "2026-01-31T23:59:59Z", "", 1769903999],
}


class Line(NamedTuple):
    """A column or an index, as the lists have it or the exceptions change it."""

    name: str
    says: str

    @classmethod
    def all(cls, text: str) -> list[Line]:
        found = (line.split(None, 1) for line in text.splitlines() if line)
        return [cls(name, EXCEPTIONS.get(name, (says,))[0]) for name, says in found]

    @property
    def table(self) -> str:
        return self.name.partition(".")[0]

    @property
    def column(self) -> str:
        return self.name.partition(".")[2]

    @property
    def type(self) -> str:
        return self.says.split()[0]

    def __str__(self) -> str:
        return self.name


COLUMNS = Line.all(DEBUG_SERVER_COLUMNS + TESTBOOST_COLUMNS + ADDED_COLUMNS)


def family(number: int) -> dict[str, Row]:
    """Return a valid row for every table, which refer to each other, parents first."""
    tables = [
        *("repositories", "worktrees", "projects", "auth_tokens", "sessions", "project_locks"),
        *("steps", "events", "commands", "artifacts", "debugger_state", "lease_waiters"),
    ]
    ids = {table: f"{at:08}-0000-7000-8000-{number:012}" for at, table in enumerate(tables)}
    session = {"session_id": ids["sessions"]}
    rows: dict[str, Row] = {
        "repositories": {"name": f"app {number}", "remote_url": "git@example.com:app.git"},
        "worktrees": {"repository_id": ids["repositories"], "path": f"/worktrees/{number}"},
        "projects": {"path": f"/projects/{number}"},
        "auth_tokens": {
            "user_name": "ops",
            "name": "laptop",
            "token_prefix": "mst_0123",
            "token_hash": f"{number:064x}",
            "scopes": "[]",
        },
        "sessions": {
            "session_type": "debug",
            "project_path": f"/projects/{number}",
            "repository_id": ids["repositories"],
            "worktree_id": ids["worktrees"],
            "auth_token_id": ids["auth_tokens"],
        },
        "project_locks": session
        | {
            "project_id": ids["projects"],
            "acquired_at": STARTED,
            "expires_at": ENDED,
            "fencing_number": number,
        },
        "steps": session | {"name": "compile", "sequence": 1},
        "events": session | {"event_type": "log", "level": "info", "message": "it compiles"},
        "commands": session | {"sequence": 1, "argv": '["make"]', "working_directory": "/app"},
        "artifacts": session
        | {
            "command_id": ids["commands"],
            "artifact_type": "log",
            "name": "make.log",
            "content_path": "/logs/make.log",
        },
        "debugger_state": session | {"sequence": 1, "state": "{}"},
        "lease_waiters": {
            "resource": "worktrees",
            "resource_id": ids["repositories"],
            "owner": "runner",
            "expires_at": ENDED,
        },
    }
    return {table: {"id": ids[table]} | rows[table] for table in tables}


class Database:
    """A migrated database that holds one row of every table."""

    def __init__(self, image: bytes) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.deserialize(image)
        self.connection.execute("PRAGMA foreign_keys = ON")
        self.families = 1
        self.rows = family(1)
        for table, row in self.rows.items():
            self._insert(table, row)

    def __call__(self, sql: str, *parameters: Any) -> list[Any]:
        return self.connection.execute(sql, parameters).fetchall()

    def one(self, sql: str, *parameters: Any) -> Any:
        [[value]] = self(sql, *parameters)
        return value

    def insert(self, table: str, *, without: str = "", **changes: Any) -> Row:
        """Insert a row that is valid but for `changes`, with parents of its own."""
        self.families += 1
        for other, row in family(self.families).items():
            if other != table:
                self._insert(other, row)
                continue
            row = {name: value for name, value in row.items() if name != without} | changes
            self._insert(table, row)
            break
        names = [name for _, name, *_ in self(f"PRAGMA table_info ({table})")]
        [values] = self(f"SELECT * FROM {table} WHERE rowid = last_insert_rowid()")
        return dict(zip(names, values, strict=True))

    def refuses(self, match: str, table: str, **changes: Any) -> None:
        """Fail unless `insert` fails with a message like `match`."""
        with pytest.raises(sqlite3.IntegrityError, match=match):
            self.insert(table, **changes)

    def delete(self, table: str) -> None:
        """Delete the row that was there from the beginning."""
        self(f"DELETE FROM {table} WHERE id = ?", self.rows[table]["id"])

    def _insert(self, table: str, row: Row) -> None:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        self(f"INSERT INTO {table} ({names}) VALUES ({marks})", *row.values())


@pytest.fixture(scope="module")
def image() -> bytes:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for migration in migrations.known("sqlite"):
            for statement in migration.statements:
                connection.execute(statement.sql)
        return connection.serialize()


@pytest.fixture
def db(image: bytes) -> Iterator[Database]:
    database = Database(image)
    with closing(database.connection):
        yield database


def test_exceptions__are_of_lines_that_exist() -> None:
    listed = {line.name for line in [*COLUMNS, *Line.all(INDEXES)]} | {
        f"{name} IN" for name in ENUMERATIONS
    }
    assert EXCEPTIONS.keys() <= listed


class TestColumns:
    @pytest.mark.parametrize("line", COLUMNS, ids=str)
    def test_null(self, db: Database, line: Line) -> None:
        # A session has a repository or a project, or both.
        changes: Row = {line.column: None}
        if line.column == "repository_id":
            changes["session_type"] = "test_generation"
        if line.says.endswith(" NULL"):
            assert db.insert(line.table, **changes)[line.column] is None
        else:
            db.refuses(f"NOT NULL.*{line}", line.table, **{line.column: None})

    @pytest.mark.parametrize(
        "line",
        [line for line in COLUMNS if "NULL" not in line.says and line.type != "TIMESTAMP"],
        ids=str,
    )
    def test_default(self, db: Database, line: Line) -> None:
        if default := re.search(r"DEFAULT '?([^']+)", line.says):
            assert str(db.insert(line.table, without=line.column)[line.column]) == default[1]
        else:
            db.refuses(f"NOT NULL.*{line}", line.table, without=line.column)

    @pytest.mark.parametrize(
        "line", [line for line in COLUMNS if line.column in ("created_at", "updated_at")], ids=str
    )
    def test_default__is_the_moment_of_creation(self, db: Database, line: Line) -> None:
        moment = datetime.fromisoformat(db.insert(line.table)[line.column])
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)

    @pytest.mark.parametrize("line", COLUMNS, ids=str)
    def test_type(self, db: Database, line: Line) -> None:
        name, _, length = line.type.strip(")").partition("(")
        values = list(MALFORMED["TEXT" if name == "VARCHAR" else name])
        if length:
            values.append("x" * (int(length) + 1))
        if "'{}'" in line.says:
            values += ["[]", "1"]
        # What refers to a row of the same parent would be refused first.
        apart = {
            ("sessions", "repository_id"): "worktree_id",
            ("artifacts", "session_id"): "command_id",
        }
        alone = {apart[line.table, line.column]: None} if (line.table, line.column) in apart else {}
        for value in values:
            changes = {line.column: value, **alone}
            db.refuses(f"{line.column}|FOREIGN KEY", line.table, **changes)

    @pytest.mark.parametrize(
        "line",
        [line for line in COLUMNS if "VARCHAR" in line.type and line.name not in ENUMERATIONS],
        ids=str,
    )
    def test_type__takes_a_text_of_full_length(self, db: Database, line: Line) -> None:
        text = "ä" * int(line.type[8:-1])
        assert db.insert(line.table, **{line.column: text})[line.column] == text

    @pytest.mark.parametrize(
        "name",
        [
            *("repositories.name", "worktrees.path", "projects.path", "auth_tokens.user_name"),
            *("steps.name", "artifacts.name"),
        ],
    )
    def test_name__is_not_empty(self, db: Database, name: str) -> None:
        table, column = name.split(".")
        db.refuses(f"{table}_{column}_check", table, **{column: ""})

    @pytest.mark.parametrize(
        "line", [line for line in COLUMNS if re.search("PRIMARY|UNIQUE", line.says)], ids=str
    )
    def test_unique(self, db: Database, line: Line) -> None:
        taken = db.rows[line.table][line.column]
        db.refuses(f"UNIQUE.*{line}", line.table, **{line.column: taken})
        [key] = [name for _, name, *_, pk in db(f"PRAGMA table_info ({line.table})") if pk]
        assert (key == line.column) == ("PRIMARY KEY" in line.says)


class TestIndexes:
    @pytest.mark.parametrize("line", Line.all(INDEXES + ADDED_INDEXES), ids=str)
    def test_is_there(self, db: Database, line: Line) -> None:
        listed = re.fullmatch(r"(UNIQUE )?ON (\w+) \(([^)]+)\)(?: WHERE (.+))?", line.says)
        assert listed is not None
        unique, table, columns, condition = listed.groups()
        assert [
            (bool(is_unique), bool(partial))
            for _, name, is_unique, _, partial in db(f"PRAGMA index_list ({table})")
            if name == line.name
        ] == [(bool(unique), bool(condition))]
        leading = [
            f"{name} DESC" if descending else name
            for _, _, name, descending, *_ in db(f"PRAGMA index_xinfo ({line.name})")
        ]
        expected = columns.split(", ")
        assert leading[: len(expected)] == expected
        # A unique one that had more columns would let doubles in.
        assert not unique or leading[len(expected) :] == [None]
        sql = db.one("SELECT sql FROM sqlite_schema WHERE name = ?", line.name)
        assert not condition or sql.endswith(f"WHERE {condition}")

    @pytest.mark.parametrize(("name", "sql"), QUERY_PATTERNS.items(), ids=QUERY_PATTERNS)
    def test_serves_its_query(self, db: Database, name: str, sql: str) -> None:
        [plan] = [detail for *_, detail in db(f"EXPLAIN QUERY PLAN {sql}")]
        assert f"USING INDEX {name} (" in plan


class TestEnumerations:
    @pytest.mark.parametrize("name", ENUMERATIONS)
    def test_takes_its_values_and_no_other(self, db: Database, name: str) -> None:
        table, column = name.split(".")
        values = EXCEPTIONS.get(f"{name} IN", (ENUMERATIONS[name],))[0].split()
        assert set(ENUMERATIONS[name].split()) <= set(values)
        for value in values:
            assert db.insert(table, **{column: value})[column] == value
        for value in ("", "unknown", values[0].upper(), f"{values[0]} "):
            db.refuses(f"{table}_{column}_check", table, **{column: value})
        sql = db.one("SELECT sql FROM sqlite_schema WHERE name = ?", table)
        check = re.search(rf"{table}_{column}_check CHECK \(([^)]+)\)", sql)
        assert check is not None
        assert sorted(re.findall("'([^']*)'", check[1])) == sorted(values)


class TestPolicies:
    @pytest.mark.parametrize("policy", POLICIES, ids=str)
    def test_deleting_the_parent(self, db: Database, policy: Policy) -> None:
        parent, child, column, then, before = policy
        row = db.rows[child]
        if parent == child:
            row = db.insert(child, **{column: db.rows[parent]["id"]})
        db(before)
        left = f"SELECT {column} FROM {child} WHERE id = ?"
        if then == "RESTRICT":
            with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
                db.delete(parent)
            assert db(left, row["id"]) == [(row[column],)]
            db.delete(child)
        db.delete(parent)
        assert db(left, row["id"]) == ([(None,)] if then == "SET NULL" else [])

    def test_moving_a_project__takes_its_sessions_along(self, db: Database) -> None:
        db("UPDATE projects SET path = '/elsewhere'")
        assert db.one("SELECT project_path FROM sessions") == "/elsewhere"

    def test_every_foreign_key__states_its_policy_and_has_an_index(self, db: Database) -> None:
        for table, sql in db("SELECT name, sql FROM sqlite_schema WHERE type = 'table'"):
            for reference in re.findall(r"REFERENCES [^,\n]*", sql):
                assert " ON DELETE " in reference, f"{table}: {reference}"
            for _, _, _, column, *_ in db(f"PRAGMA foreign_key_list ({table})"):
                query = f"EXPLAIN QUERY PLAN SELECT 1 FROM {table} WHERE {column} = ?"
                [plan] = [detail for *_, detail in db(query, "x")]
                assert re.search(rf"INDEX \w+ \({column}=\?\)", plan), f"{table}: {plan}"

    def test_purge__takes_what_belongs_to_the_session(self, db: Database) -> None:
        # The documents delete table by table. Here events go with their session only, and the
        # cascades take the rest.
        db.insert("debugger_state", without="created_at")
        db("UPDATE sessions SET status = 'failed', created_at = ? WHERE rowid = 1", LONG_AGO)
        db(
            "DELETE FROM sessions WHERE status IN ('completed', 'failed', 'cancelled')"
            " AND created_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-365 days')"
        )
        for table in ("artifacts", "events", "steps", "commands", "debugger_state"):
            assert db.one(f"SELECT count(*) FROM {table}") == 1
        assert db("PRAGMA foreign_key_check") == []


class TestSessions:
    def test_debug__needs_a_repository(self, db: Database) -> None:
        db.insert("sessions", project_path=None)
        db.refuses("sessions_debug_needs_repository", "sessions", repository_id=None)

    @pytest.mark.parametrize("type_", ENUMERATIONS["sessions.session_type"].split())
    def test_workflow__needs_a_project(self, db: Database, type_: str) -> None:
        db.insert("sessions", session_type=type_, repository_id=None)
        db.refuses(
            "sessions_workflow_needs_project", "sessions", session_type=type_, project_path=None
        )


class TestWorktrees:
    def test_lease__is_whole_or_not_there(self, db: Database) -> None:
        assert db.insert("worktrees", **LEASE)["lease_owner"] == "runner"
        for name, value in LEASE.items():
            db.refuses("worktrees_lease_check", "worktrees", **{name: value})
            db.refuses("worktrees_lease_check", "worktrees", **LEASE | {name: None})

    def test_lease__ends_after_it_began(self, db: Database) -> None:
        lease = LEASE | {"lease_expires_at": STARTED}
        db.refuses("worktrees_lease_expires_at_check", "worktrees", **lease)

    def test_version__only_grows(self, db: Database) -> None:
        db("UPDATE worktrees SET version = 7")
        db("UPDATE worktrees SET version = 7, branch = 'main'")
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            db("UPDATE worktrees SET version = 6")
        db.refuses("worktrees_version_check", "worktrees", version=-1)


class TestProjectLocks:
    def test_ends_after_it_began(self, db: Database) -> None:
        db.refuses("project_locks_expires_at_check", "project_locks", expires_at=STARTED)

    def test_fencing_number__only_grows(self, db: Database) -> None:
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            db("UPDATE project_locks SET fencing_number = 0")
        db.refuses("project_locks_fencing_number_check", "project_locks", fencing_number=-1)


class TestFencingFloors:
    FLOOR = "SELECT number FROM fencing_floors WHERE resource = ?"

    def test_begin_at_zero(self, db: Database) -> None:
        floors = db("SELECT resource, number FROM fencing_floors ORDER BY resource")
        assert floors == [("project_locks", 0), ("tasks", 0), ("worktrees", 0)]

    def test_keep_the_highest_number_of_deleted_worktrees(self, db: Database) -> None:
        for version in (5, 9, 7):
            db("DELETE FROM worktrees WHERE id = ?", db.insert("worktrees", version=version)["id"])
        assert db.one(self.FLOOR, "worktrees") == 9
        assert db.one(self.FLOOR, "project_locks") == 0

    def test_keep_the_highest_number_of_deleted_locks(self, db: Database) -> None:
        # A cascade counts as well.
        lock = db.insert("project_locks", fencing_number=9)
        db("DELETE FROM sessions WHERE id = ?", lock["session_id"])
        db.delete("project_locks")
        assert db.one(self.FLOOR, "project_locks") == 9
        assert db.one(self.FLOOR, "worktrees") == 0

    @pytest.mark.parametrize(
        "sql",
        [
            "UPDATE fencing_floors SET number = 4 WHERE resource = 'tasks'",
            "UPDATE fencing_floors SET resource = 'tasks' WHERE resource = 'worktrees'",
            "DELETE FROM fencing_floors WHERE resource = 'tasks'",
            "INSERT INTO fencing_floors (resource) VALUES ('unknown')",
        ],
    )
    def test_neither_fall_nor_go(self, db: Database, sql: str) -> None:
        db("UPDATE fencing_floors SET number = 5 WHERE resource = 'tasks'")
        with pytest.raises(sqlite3.IntegrityError, match="fencing_floors"):
            db(sql)
        assert db.one(self.FLOOR, "tasks") == 5


class TestEvents:
    @pytest.mark.parametrize("sql", ["UPDATE events SET message = 'else'", "DELETE FROM events"])
    def test_are_neither_updated_nor_deleted(self, db: Database, sql: str) -> None:
        with pytest.raises(sqlite3.IntegrityError, match="events are history"):
            db(sql)
        assert db.one("SELECT message FROM events") == "it compiles"

    def test_position__is_not_given_again_after_a_purge(self, db: Database) -> None:
        last = db.insert("events")["position"]
        db("DELETE FROM sessions")
        assert db.insert("events")["position"] > last


def test_lease_waiters__a_place_in_line_is_not_given_again(db: Database) -> None:
    last = db.insert("lease_waiters")["position"]
    db("DELETE FROM lease_waiters")
    assert db.insert("lease_waiters")["position"] > last


class TestCommands:
    def test_log_path__is_absolute(self, db: Database) -> None:
        for path in ("/logs/1.log", "C:/logs/1.log"):
            assert db.insert("commands", log_path=path)["log_path"] == path
        for path in ("logs/1.log", "./1.log", ""):
            db.refuses("commands_log_path_check", "commands", log_path=path)

    def test_argv__is_a_list_that_is_not_empty(self, db: Database) -> None:
        for argv in ("[]", "{}", '"make"'):
            db.refuses("commands_argv_check", "commands", argv=argv)


class TestArtifacts:
    def test_size_and_hash(self, db: Database) -> None:
        db.insert("artifacts", size_bytes=0, sha256="0" * 64)
        db.refuses("artifacts_size_bytes_check", "artifacts", size_bytes=-1)
        db.refuses("artifacts_sha256_check", "artifacts", sha256="0" * 63)


class TestAuthTokens:
    def test_token_hash__is_a_sha256(self, db: Database) -> None:
        for value in ("0" * 63, "0" * 65, "G" * 64, "A" * 64, "mst_secret"):
            db.refuses("auth_tokens_token_hash_check", "auth_tokens", token_hash=value)

    def test_scopes__are_a_list(self, db: Database) -> None:
        for scopes in ("{}", '"*"'):
            db.refuses("auth_tokens_scopes_check", "auth_tokens", scopes=scopes)


class TestDebuggerState:
    @pytest.mark.parametrize("status", ENUMERATIONS["sessions.status"].split())
    def test_only_an_active_session_takes_a_checkpoint(self, db: Database, status: str) -> None:
        db("UPDATE sessions SET status = ?", status)
        insert = (
            "INSERT INTO debugger_state (id, session_id, sequence, state) VALUES (?, ?, 2, '{}')"
        )
        values = "0" * 36, db.rows["sessions"]["id"]
        if status in ("pending", "in_progress", "paused"):
            db(insert, *values)
        else:
            with pytest.raises(sqlite3.IntegrityError, match="the session is not active"):
                db(insert, *values)

    def test_of_no_session(self, db: Database) -> None:
        db.refuses("FOREIGN KEY", "debugger_state", session_id="0" * 36)


@pytest.mark.parametrize("table", ["steps", "commands", "debugger_state"])
def test_sequence__is_taken_once_per_session(db: Database, table: str) -> None:
    session_id = db.rows["sessions"]["id"]
    db.refuses(f"UNIQUE.*{table}.session_id, {table}.sequence", table, session_id=session_id)
    assert db.insert(table, session_id=session_id, sequence=2)["sequence"] == 2


@pytest.mark.parametrize("table", ["commands", "debugger_state"])
def test_sequence__is_not_negative(db: Database, table: str) -> None:
    db.refuses(f"{table}_sequence_check", table, sequence=-1)


class TestUpdatedAt:
    @pytest.mark.parametrize("table", ["repositories", "worktrees", "projects", "sessions"])
    def test_trigger__stamps_what_was_changed_by_hand(self, db: Database, table: str) -> None:
        stamp = f"SELECT updated_at FROM {table}"
        db(f"UPDATE {table} SET created_at = ?, updated_at = ?", LONG_AGO, LONG_AGO)
        assert db.one(stamp) == LONG_AGO, "the statement stamps, and the trigger sleeps"
        db(f"UPDATE {table} SET created_at = ?", STARTED)
        moment = datetime.fromisoformat(db.one(stamp))
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)

    def test_trigger__is_on_every_table_that_has_the_column(self, db: Database) -> None:
        tables = db(
            "SELECT t.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c"
            " WHERE t.type = 'table' AND c.name = 'updated_at'"
        )
        triggers = db("SELECT tbl_name FROM sqlite_schema WHERE name = tbl_name || '_updated_at'")
        assert len(tables) >= 4
        assert sorted(triggers) == sorted(tables)


class TestViews:
    @pytest.mark.parametrize(
        ("ahead", "expired"),
        [
            pytest.param(timedelta(days=1), 0, id="live"),
            pytest.param(MAX_TTL + CLOCK_SKEW / 2, 0, id="within the skew"),
            pytest.param(MAX_TTL + CLOCK_SKEW * 2, 1, id="not believed"),
        ],
    )
    @pytest.mark.parametrize("resource", ["worktrees", "project_locks", "tasks"])
    def test_active_leases__ends_in_the_future(
        self, db: Database, resource: str, ahead: timedelta, expired: int
    ) -> None:
        until = timestamp(datetime.now(UTC) + ahead)
        db.insert("worktrees", version=3, **LEASE)
        db(
            "INSERT INTO tasks (id, title, task_type, status, lease_owner, lease_token,"
            " leased_at, lease_expires_at, version)"
            " VALUES (?, 'build', 'tool', 'running', 'worker', 'token', ?, ?, 2)",
            *("00000000-0000-7000-8000-000000000009", STARTED, ENDED),
        )
        column = "expires_at" if resource == "project_locks" else "lease_expires_at"
        db(f"UPDATE {resource} SET {column} = ? WHERE {column} IS NOT NULL", until)
        found = dict(db("SELECT resource, expired FROM active_leases"))
        assert found == {"worktrees": 1, "project_locks": 1, "tasks": 1} | {resource: expired}

    def test_active_leases(self, db: Database) -> None:
        assert [row[0] for row in db("SELECT resource FROM active_leases")] == ["project_locks"]
        far = LEASE | {"lease_expires_at": timestamp(datetime.now(UTC) + timedelta(days=1))}
        worktree = db.insert("worktrees", version=3, **far)
        lock = db.rows["project_locks"]
        task = "00000000-0000-7000-8000-000000000009"
        db(
            "INSERT INTO tasks (id, title, task_type, status, lease_owner, lease_token,"
            " leased_at, lease_expires_at, version)"
            " VALUES (?, 'build', 'tool', 'running', 'worker', 'token', ?, ?, 2)",
            *(task, STARTED, ENDED),
        )
        [leased, claim, locked] = db("SELECT * FROM active_leases ORDER BY resource DESC")
        assert leased == (
            *("worktrees", worktree["id"], worktree["path"], "runner", 3),
            *(STARTED, far["lease_expires_at"], 0),
        )
        assert locked == (
            *("project_locks", lock["id"], "/projects/1", lock["session_id"], 1),
            *(STARTED, ENDED, 1),
        )
        assert claim == ("tasks", task, "build", "worker", 2, STARTED, ENDED, 1)

    def test_session_overview(self, db: Database) -> None:
        session = {"session_id": db.rows["sessions"]["id"]}
        for sequence, status in enumerate(("failed", "timeout", "cancelled", "completed"), 2):
            db.insert("commands", sequence=sequence, status=status, **session)
        db.insert("steps", sequence=2, status="completed", **session)
        db.insert("events", message="it failed", created_at=ENDED, **session)
        [found] = db(
            "SELECT repository, last_event, last_event_at, steps, steps_completed, commands,"
            " commands_failed, artifacts, events FROM session_overview WHERE id = ?",
            session["session_id"],
        )
        assert found == ("app 1", "it failed", ENDED, 2, 1, 5, 2, 1, 2)

    def test_session_overview__shows_a_session_that_has_nothing(self, db: Database) -> None:
        id_ = db.insert("sessions", session_type="test_generation", repository_id=None)["id"]
        [counts] = db(
            "SELECT steps, commands, artifacts, events, last_event FROM session_overview"
            " WHERE id = ?",
            id_,
        )
        assert counts == (0, 0, 0, 0, None)
