"""The databases that are measured on: made by the migrations, filled by SQL."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from metastore import migrations, urls
from metastore.backends.sqlite import database_file

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

__all__ = [
    "DIRECTORY",
    "EVENTS",
    "FREE_IN_CROWD",
    "JOBS",
    "WORKTREES",
    "connected",
    "copy",
    "create",
    "crowd_repository",
    "event_id",
    "fill",
    "insert_events",
    "insert_jobs",
    "insert_sessions",
    "insert_tasks",
    "insert_worktrees",
    "job",
    "remove",
    "replenish_tasks",
    "repository",
    "scratch",
    "session",
    "task",
    "url",
    "worktree",
]

DIRECTORY = Path(".artifacts/bench")
"""Where results are kept, and databases while they are measured: on a disk, not in memory."""

WORKTREES = 1_024
"""Free worktrees of `repository()`: one for each task that reserves."""

CROWD = 2_000
"""Worktrees of `crowd_repository()`, which are acquired."""

FREE_IN_CROWD = 600
"""How many of them are free: enough for as many tasks as there ever are."""

JOBS = 512
PENDING_TASKS = 5_000

FEW_TASKS, MANY_TASKS = 5_000, 15_000
"""Pending tasks below which more are inserted before a window that completes them, and up to how
many: seldom, for every connection forgets its pages when another one has written."""

SESSIONS = 64
EVENTS = 10_000
"""Events of `session(0)`, which are paged."""


# Ids that can be told without asking. They sort before those that are made while it is measured.


def repository() -> str:
    """Return the id of the repository whose worktrees are reserved by id."""
    return "00000000-0000-7000-8000-000000000001"


def crowd_repository() -> str:
    """Return the id of the repository whose worktrees are acquired, most of which are busy."""
    return "00000000-0000-7000-8000-000000000002"


def session(number: int) -> str:
    """Return the id of a session."""
    return f"00000000-0000-7000-8001-{number:012x}"


def job(number: int) -> str:
    """Return the id of a job."""
    return f"00000000-0000-7000-8004-{number:012x}"


def task(number: int) -> str:
    """Return the id of a task."""
    return f"00000000-0000-7000-8005-{number:012x}"


def worktree(number: int) -> str:
    """Return the id of a worktree."""
    return f"00000000-0000-7000-8002-{number:012x}"


def event_id(number: int) -> str:
    """Return the id of an event."""
    return f"00000000-0000-7000-8003-{number:012x}"


@cache
def _scratch_directory() -> Path:
    directory = DIRECTORY / str(os.getpid())
    directory.mkdir(parents=True, exist_ok=True)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def scratch(name: str) -> Path:
    """Return where to put a database that is gone when this process ends."""
    return _scratch_directory() / name


def url(path: Path) -> str:
    """Return what opens the database at `path`."""
    return f"sqlite:///{path.absolute()}"


def create(path: Path) -> None:
    """Make an empty, migrated database at `path`, in place of what may be there."""
    remove(path)
    migrations.upgrade(urls.resolve(url(path)))


@contextlib.contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect to fill a database, without waiting for the disk; leave it without a WAL."""
    connection = database_file.connect(path)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -262144")
        yield connection
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def fill(path: Path) -> None:
    """Make the database that the operations are measured on."""
    create(path)
    with connected(path) as connection:
        for number, key in enumerate((repository(), crowd_repository())):
            connection.execute(
                "INSERT INTO repositories (id, name, remote_url) VALUES (?, ?, ?)",
                (key, f"app-{number}", f"git@example.com:app-{number}.git"),
            )
        insert_worktrees(connection, repository(), 0, WORKTREES, free=WORKTREES)
        insert_worktrees(connection, crowd_repository(), WORKTREES, CROWD, free=FREE_IN_CROWD)
        insert_sessions(connection, SESSIONS)
        insert_jobs(connection, JOBS)
        insert_tasks(connection, 0, PENDING_TASKS)
        insert_events(connection, EVENTS, abreast=1, lifetime=EVENTS)


def insert_sessions(connection: sqlite3.Connection, count: int) -> None:
    """Insert debug sessions of `repository()`."""
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO sessions (id, session_type, repository_id) VALUES (?, 'debug', ?)",
        ((session(number), repository()) for number in range(count)),
    )
    connection.execute("COMMIT")


def insert_jobs(connection: sqlite3.Connection, count: int) -> None:
    """Insert running jobs with limits that they do not reach."""
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO jobs (id, task, repo_owner, repo_name, branch_base, status, started_at, "
        "budget_nano_usd, max_requests) VALUES (?, 'Fix the build', 'acme', 'app', 'main', "
        "'running', '2026-01-01T00:00:00.000Z', 1000000000000000000, 1000000000)",
        ((job(number),) for number in range(count)),
    )
    connection.execute("COMMIT")


def insert_tasks(connection: sqlite3.Connection, first: int, count: int) -> None:
    """Insert pending tasks of a hundred workspaces."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO tasks (id, title, task_type, workspace_path) VALUES (?, 'Build', 'build', ?)",
        (
            (task(number), f"/srv/workspaces/{number % 100}")
            for number in range(first, first + count)
        ),
    )
    connection.execute("COMMIT")


def replenish_tasks(path: Path) -> None:
    """Let there be more pending tasks than anybody completes in one window."""
    with contextlib.closing(database_file.connect(path)) as connection:
        counts = "SELECT count(*), count(*) FILTER (WHERE status = 'pending') FROM tasks"
        count, pending = connection.execute(counts).fetchone()
        if pending < FEW_TASKS:
            insert_tasks(connection, count, MANY_TASKS - pending)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def insert_worktrees(
    connection: sqlite3.Connection, repository_id: str, first: int, count: int, *, free: int
) -> None:
    """Insert worktrees, of which `free` are free and the others leased for a day."""
    connection.execute("BEGIN")
    connection.execute(
        """
        WITH RECURSIVE numbers (number) AS (
            SELECT :first UNION ALL SELECT number + 1 FROM numbers WHERE number < :last
        )
        INSERT INTO worktrees (
            id, repository_id, path, branch, commit_sha, environment_hashes,
            lease_owner, lease_token, leased_at, lease_expires_at
        )
        SELECT
            printf('00000000-0000-7000-8002-%012x', number),
            :repository_id,
            printf('/srv/worktrees/%08d', number),
            'main',
            printf('%040x', number % 100),
            '{"lock":"9f86d081884c7d65"}',
            iif(busy, 'runner-1', NULL),
            iif(busy, printf('%032x', number), NULL),
            iif(busy, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), NULL),
            iif(busy, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 day'), NULL)
        FROM (SELECT number, number < :last - :free + 1 AS busy FROM numbers)
        """,
        {"first": first, "last": first + count - 1, "free": free, "repository_id": repository_id},
    )
    connection.execute("COMMIT")


def insert_events(
    connection: sqlite3.Connection, count: int, *, abreast: int, lifetime: int
) -> None:
    """Insert events of sessions of which `abreast` run side by side and take turns.

    There are `lifetime` events from the first of those to the last; then the next ones begin.
    The hashes only look like ones: nothing is measured by what they cover.
    """
    with _bare(connection, "events"):
        connection.execute(
            """
            WITH RECURSIVE numbers (number) AS (
                SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number < :last
            )
            INSERT INTO events (
                id, session_id, event_type, level, message, context, created_at, hash
            )
            SELECT
                printf('00000000-0000-7000-8003-%012x', number),
                printf(
                    '00000000-0000-7000-8001-%012x',
                    number / :lifetime * :abreast + number % :abreast
                ),
                'step.progress',
                CASE number % 20 WHEN 0 THEN 'warning' WHEN 1 THEN 'error' ELSE 'info' END,
                printf('Resolved %d of 57 dependencies of the module', number % 57),
                printf(
                    '{"module":"billing-service","attempt":2,"elapsed_ms":%d,'
                    || '"resolved":[17,41,57],"cached":true}',
                    number
                ),
                strftime('%Y-%m-%dT%H:%M:%fZ', '2026-01-01', printf('+%f seconds', number * 0.05)),
                printf('%064x', number)
            FROM numbers
            """,
            {"last": count - 1, "abreast": abreast, "lifetime": lifetime},
        )
    connection.execute(
        """
        INSERT INTO audit_chains (resource, resource_id, length, last)
        SELECT 'events', session_id, count(*), printf('%d:%064x', max(position), max(position) - 1)
        FROM events
        GROUP BY session_id
        """
    )


@contextlib.contextmanager
def _bare(connection: sqlite3.Connection, table: str) -> Iterator[None]:
    """Take a table's indexes, triggers and checks away to fill it, and put them back.

    An index that is made of all rows at once takes a fraction of the time.
    """
    objects = connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE tbl_name = ? "
        "AND type IN ('index', 'trigger') AND sql IS NOT NULL",
        (table,),
    ).fetchall()
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("BEGIN")
    for kind, name, _ in objects:
        connection.execute(f"DROP {kind} {name}")
    yield
    for _, _, sql in objects:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.execute("PRAGMA ignore_check_constraints = OFF")
    connection.execute("PRAGMA foreign_keys = ON")


def copy(source: Path, target: Path) -> None:
    """Copy a database that nobody has open."""
    remove(target)
    shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Remove a database that nobody has open."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
