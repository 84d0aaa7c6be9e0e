"""Migrations that are killed, raced, undone and tampered with."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from metastore import MetadataStore, SchemaTooNew, migrations, urls
from metastore.backends.sqlite.schema import SqliteSchemaConnection
from metastore.testing.template import write_template
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from metastore.backends.base import DatabaseUrl

ROOT = Path(__file__).resolve().parents[2]
BOOKKEEPING = ("_yoyo_*", "*yoyo_*", "_metastore_*", "sqlite_*")


def url_of(path: Path) -> DatabaseUrl:
    return urls.resolve(f"sqlite:///{path}")


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "metastore",
        "migrate",
        *arguments,
        "--db",
        f"sqlite:///{path}",
    ]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def query(path: Path, sql: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def schema(path: Path) -> list[Any]:
    where = " AND ".join(f"tbl_name NOT GLOB '{pattern}'" for pattern in BOOKKEEPING)
    return query(
        path, f"SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE {where} ORDER BY 1, 2"
    )


def applied(path: Path) -> list[str]:
    rows = migrations.status(url_of(path))
    return [row.id for row in rows if row.state == "applied"]


@pytest.mark.parametrize(
    "kills",
    [pytest.param(4, id="short"), pytest.param(100, id="torture", marks=pytest.mark.torture)],
)
def test_kill__during_an_upgrade_leaves_whole_migrations(
    tmp_path: Path, record_property: Callable[[str, object], None], kills: int
) -> None:
    known = [migration.id for migration in migrations.known("sqlite")]
    expected = tmp_path / "expected.db"
    write_template(expected)
    dice = random.Random(7)
    halfway = killed = finished = 0
    while killed < kills or halfway < max(1, kills // 20):
        n = killed + finished
        assert n < 10 * kills, f"{finished} of {n} kills came too late"
        path = tmp_path / f"{n}.db"
        process = start(path, "upgrade")
        # From the moment on when there is a file, until about when all is applied.
        deadline = time.monotonic() + PATIENCE
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            pass
        time.sleep(dice.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        finished += process.returncode == 0
        assert n + 1 == killed + finished, process.returncode
        done: list[str] = []
        if path.exists() and path.stat().st_size:
            done = applied(path)
            assert done == known[: len(done)]
            halfway += 0 < len(done) < len(known)
            # Killed before the file was marked, it is still nobody's.
            assert not done or migrations.verify(url_of(path)) == []
            assert query(path, "PRAGMA integrity_check") == [("ok",)]
        # Without help: no lock is left over.
        left = known[len(done) :]
        assert migrations.upgrade(url_of(path)) == left
        assert applied(path) == known
        assert schema(path) == schema(expected)
    record_property(
        "figures", f"{killed} kills, {halfway} between two migrations, {finished} came too late"
    )


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(1, id="short"), pytest.param(20, id="torture", marks=pytest.mark.torture)],
)
def test_race__eight_migrators_apply_each_migration_once(
    tmp_path: Path, record_property: Callable[[str, object], None], rounds: int
) -> None:
    known = [migration.id for migration in migrations.known("sqlite")]
    shared = 0
    for n in range(rounds):
        path = tmp_path / f"{n}.db"
        processes = [start(path, "upgrade") for _ in range(8)]
        outputs = [process.communicate(timeout=5 * PATIENCE) for process in processes]
        assert [process.returncode for process in processes] == [0] * 8, outputs
        history = [entry.migration_id for entry in migrations.history(url_of(path))]
        assert history == known
        shared += sum(any(id_ in out for id_ in known) for out, _ in outputs) > 1
        assert migrations.verify(url_of(path)) == []
    record_property("figures", f"{rounds} rounds of 8, in {shared} several applied some each")


# --- down and up -------------------------------------------------------------------------------


def fill(path: Path, count: int) -> dict[str, int]:
    """Write so many rows into every table that is filled, by plain SQL, and count them."""
    ids = [f"00000000-0000-7000-8000-{n:012}" for n in range(count)]
    later = "2026-01-01T00:00:00.000Z"
    rows: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
        "repositories": ("id, name, remote_url", [(it, f"n{it}", "u") for it in ids]),
        "worktrees": ("id, repository_id, path", [(it, it, f"/{it}") for it in ids]),
        "projects": ("id, path", [(it, f"/p/{it}") for it in ids]),
        "auth_tokens": (
            "id, user_name, name, token_prefix, token_hash, scopes",
            [(it, "u", "n", "mst_", f"{n:064x}", "[]") for n, it in enumerate(ids)],
        ),
        "sessions": (
            "id, session_type, project_path",
            [(it, "test_generation", f"/p/{it}") for it in ids],
        ),
        "project_locks": (
            "id, project_id, session_id, acquired_at, expires_at, fencing_number",
            [(it, it, it, "2025" + later[4:], later, n) for n, it in enumerate(ids)],
        ),
        "steps": ("id, session_id, name, sequence", [(it, it, "n", 1) for it in ids]),
        "events": (
            "id, session_id, event_type, level, message", [(it, it, "t", "info", "m") for it in ids]
        ),
        "commands": (
            "id, session_id, sequence, argv, working_directory",
            [(it, it, 1, '["a"]', "/") for it in ids]
        ),
        "artifacts": (
            "id, session_id, artifact_type, name, content_path",
            [(it, it, "log", "n", "c") for it in ids]
        ),
        "debugger_state": ("id, session_id, sequence, state", [(it, it, 1, "{}") for it in ids]),
        "lease_waiters": (
            "id, resource, resource_id, owner, expires_at",
            [(it, "worktrees", it, "o", later) for it in ids],
        ),
    }  # fmt: skip
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for table, (columns, values) in rows.items():
            marks = ", ".join("?" * len(values[0]))
            connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)
    return dict.fromkeys(rows, count)


def tables_of(path: Path) -> dict[str, int]:
    names = [name for type_, name, *_ in schema(path) if type_ == "table"]
    return {name: query(path, f"SELECT count(*) FROM {name}")[0][0] for name in names}


@pytest.mark.parametrize(
    "count",
    [pytest.param(50, id="short"), pytest.param(1_000, id="torture", marks=pytest.mark.torture)],
)
def test_down_and_up__the_schema_is_identical_and_the_other_tables_keep_their_rows(
    tmp_path: Path, record_property: Callable[[str, object], None], count: int
) -> None:
    known = [migration.id for migration in migrations.known("sqlite")]
    path = tmp_path / "metadata.db"
    # The schema after each migration, and which tables it has.
    schemas = []
    for id_ in known:
        migrations.upgrade(url_of(path), id_)
        schemas.append(schema(path))
    filled = fill(path, count)
    assert filled.items() <= tables_of(path).items()
    content = {name: query(path, f"SELECT * FROM {name} ORDER BY 1") for name in filled}
    kept = 0
    for index in range(len(known) - 2, -1, -1):
        assert migrations.downgrade(url_of(path), known[index]) == [known[index + 1]]
        assert schema(path) == schemas[index]
        for name in tables_of(path).keys() & filled.keys():
            # What the rollback does not promise to lose is all there.
            rows = query(path, f"SELECT * FROM {name} ORDER BY 1")
            # Columns that later migrations added come last and go with them.
            assert rows == [row[: len(rows[0])] for row in content[name]]
            kept += count
        assert query(path, "PRAGMA foreign_key_check") == []
    assert migrations.upgrade(url_of(path)) == known[1:]
    assert schema(path) == schemas[-1]
    assert migrations.downgrade(url_of(path), "base") == known[::-1]
    assert schema(path) == []
    migrations.upgrade(url_of(path))
    assert schema(path) == schemas[-1]
    assert migrations.verify(url_of(path)) == []
    record_property(
        "figures", f"{len(known)} migrations down and up, {kept} rows looked for after a rollback"
    )


# --- tampering ---------------------------------------------------------------------------------


def definitions(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the type, name and SQL of everything that the migrations make."""
    for type_, name, _, sql in schema(path):
        if sql is not None:
            yield type_, name, sql


def checks_of(sql: str) -> Iterator[tuple[str, str]]:
    """Yield the name and text of every named CHECK in a CREATE TABLE."""
    for found in re.finditer(r"CONSTRAINT (\w+) CHECK \(", sql):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(sql[end], 0)
            end += 1
        yield found[1], sql[found.start() : end]


def mutations(path: Path) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield every single change: the type and name it must be told by, a word, the new SQL."""
    for type_, name, sql in definitions(path):
        if type_ != "table":
            yield type_, name, "missing", None
        if type_ == "index":
            other_way = sql.replace(" DESC", "") if " DESC" in sql else None
            descending = re.sub(r"(ON \w+ \(\w+)(?=[,)])", r"\1 DESC", sql, count=1)
            # The columns of some are expressions first.
            other = f"{sql} AND 1" if "WHERE" in sql else f"{sql} WHERE 1"
            yield type_, name, "different", other_way or descending.replace(sql, other)
            if "UNIQUE" in sql:
                yield type_, name, "different", sql.replace("UNIQUE ", "")
            if "WHERE" in sql:
                yield type_, name, "different", sql[: sql.index("WHERE")]
        if type_ == "trigger":
            yield type_, name, "different", re.sub(r"\bBEGIN\b", "BEGIN SELECT 1;", sql, count=1)
            if "WHEN" in sql:
                yield type_, name, "different", re.sub(r"\bWHEN\b", "WHEN 0 AND", sql, count=1)
        if type_ == "view":
            yield type_, name, "different", sql + " LIMIT 1"
        if type_ == "table":
            for constraint, text in checks_of(sql):
                loose = text.replace("CHECK (", "CHECK (1 OR (", 1) + ")"
                yield type_, name, constraint, sql.replace(text, loose)
                yield (
                    type_,
                    name,
                    constraint,
                    sql.replace(text, f"CONSTRAINT {constraint} CHECK (1)"),
                )
            for word in ("NOT NULL", "ON DELETE CASCADE", "ON DELETE RESTRICT", "STRICT"):
                if re.search(rf"\b{word}\b", sql):
                    yield type_, name, "different", re.sub(rf"\b{word}\b", "", sql, count=1)
            if "DEFAULT '" in sql:
                yield type_, name, "different", sql.replace("DEFAULT '", "DEFAULT 'x", 1)


def rounds(path: Path) -> Iterator[list[tuple[str, str, str, str | None]]]:
    """Yield all mutations, in rounds that change no object twice: to verify takes as long."""
    left = list(mutations(path))
    while left:
        of_each = {it[:2]: it for it in reversed(left)}
        left = [it for it in left if of_each[it[:2]] is not it]
        yield list(of_each.values())


@pytest.mark.parametrize(
    "every",
    [pytest.param(4, id="short"), pytest.param(1, id="torture", marks=pytest.mark.torture)],
)
def test_verify__names_each_mutation(
    tmp_path: Path, record_property: Callable[[str, object], None], every: int
) -> None:
    path = tmp_path / "metadata.db"
    write_template(path)
    assert migrations.verify(url_of(path)) == []
    pristine = path.read_bytes()
    counts: Counter[str] = Counter()
    alone = [[it] for it in random.Random(1).sample(list(mutations(path)), 4)]
    for chosen in [*list(rounds(path))[::every], *alone]:
        path.write_bytes(pristine)
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            for type_, name, _, sql in chosen:
                if sql is None:
                    connection.execute(f"DROP {type_} {name}")
            connection.execute("PRAGMA writable_schema = ON")
            connection.executemany(
                "UPDATE sqlite_schema SET sql = ? WHERE type = ? AND name = ?",
                [(sql, type_, name) for type_, name, _, sql in chosen if sql is not None],
            )
        told = {(it.type, it.name): str(it) for it in migrations.verify(url_of(path))}
        assert told.keys() == {(type_, name) for type_, name, *_ in chosen}
        for type_, name, word, sql in chosen:
            assert word in told[type_, name], sql
            counts[f"{type_} {word if word in ('missing', 'different') else 'check'}"] += 1
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert len(SqliteSchemaConnection(connection).objects(())) > 50
    record_property("figures", f"{counts.total()} mutations named: {dict(counts)}")
    assert counts.total() > 900 / every


def test_store__refuses_a_schema_that_is_newer_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    write_template(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) "
            "VALUES ('h', '9999-from-the-future', '2030-01-01')"
        )
    before = path.read_bytes()

    async def use(migrate: bool) -> None:
        async with MetadataStore.open(f"sqlite:///{path}", migrate=migrate):
            pass

    for migrate in (False, True):
        with pytest.raises(SchemaTooNew):
            asyncio.run(use(migrate))
    assert path.read_bytes() == before
