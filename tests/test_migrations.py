"""The migration layer: promises 11 and 12, and what is done to a file on the way (6 and 8)."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from metastore import migrations, resources, urls
from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.schema import SqliteSchema, SqliteSchemaConnection, read_state
from metastore.errors import (
    InvalidValue,
    MetastoreError,
    MigrationFailed,
    SchemaOutdated,
    SchemaTooNew,
    StoreBusy,
    StoreCorrupt,
    StoreReadOnly,
)
from metastore.migrations import operations
from metastore.migrations.bookkeeping import Bookkeeping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[[], object]

ROOT = Path(__file__).resolve().parents[1]

AUTHORS = """\
-- 0001-create-authors: who wrote; and what.
--
-- Why:      books need one; so do tests.
-- Rollback: drops the table; every author
--           is lost.

CREATE TABLE IF NOT EXISTS authors (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL, -- a comment; with a semicolon
    mood TEXT NOT NULL DEFAULT 'calm; or so',
    updated_at TEXT,
    CONSTRAINT authors_mood_check CHECK (mood IN ('calm; or so', 'wild'))
) STRICT;

CREATE TRIGGER IF NOT EXISTS authors_updated_at
AFTER UPDATE ON authors FOR EACH ROW WHEN NEW.updated_at IS OLD.updated_at
BEGIN
    UPDATE authors
    SET updated_at = CASE WHEN NEW.name = 'END;' THEN 'never' ELSE 'now' END
    WHERE id = NEW.id;
END;
"""
BOOKS = """\
-- 0002-create-books: what was written.
-- depends: 0001-create-authors

CREATE TABLE IF NOT EXISTS books (
    id INTEGER PRIMARY KEY,
    author_id INTEGER NOT NULL REFERENCES authors (id) ON DELETE CASCADE,
    title TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS ix_books_author_id ON books (author_id);
"""
VIEW = """\
-- 0003-create-shelf: both.
-- depends: 0002-create-books
CREATE VIEW IF NOT EXISTS shelf AS
SELECT books.title, authors.name FROM books INNER JOIN authors ON authors.id = books.author_id;
"""
AUTHORS_ID, BOOKS_ID, SHELF_ID = "0001-create-authors", "0002-create-books", "0003-create-shelf"
ALL = [AUTHORS_ID, BOOKS_ID, SHELF_ID]


class Folder:
    """A folder of migrations, and a database that they are applied to."""

    def __init__(self, directory: Path, database: Path) -> None:
        self.directory = directory
        self.database = database
        self.url = urls.resolve(f"sqlite:///{database}")

    def write(self, id_: str, sql: str, rollback: str = "DROP TABLE IF EXISTS none;") -> Path:
        path = self.directory / f"{id_}.sql"
        path.write_text(sql)
        path.with_name(f"{id_}.rollback.sql").write_text(rollback)
        return path

    def append(self, id_: str, sql: str) -> Path:
        """Write a migration that depends on the newest one."""
        return self.write(id_, f"-- depends: {self.ids()[-1]}\n{sql}")

    def ids(self) -> list[str]:
        return [migration.id for migration in migrations.known("sqlite", directory=self.directory)]

    def remove(self, id_: str) -> None:
        for path in self.directory.glob(f"{id_}.*"):
            path.unlink()

    def upgrade(self, revision: str | None = None) -> list[str]:
        return migrations.upgrade(self.url, revision, directory=self.directory)

    def downgrade(self, revision: str) -> list[str]:
        return migrations.downgrade(self.url, revision, directory=self.directory)

    def states(self) -> dict[str, str]:
        rows = migrations.status(self.url, directory=self.directory)
        return {row.id: row.state for row in rows}

    def verify(self) -> list[str]:
        return [str(it) for it in migrations.verify(self.url, directory=self.directory)]

    @contextlib.contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(database_file.connect(self.database)) as connection:
            yield connection

    def execute(self, sql: str) -> list[Any]:
        with self.connect() as connection:
            return connection.execute(sql).fetchall()

    def mutate(self, script: str) -> None:
        with self.connect() as connection:
            connection.executescript(script)

    def schema(self) -> list[Any]:
        return self.execute(
            "SELECT type, name, sql FROM sqlite_schema "
            "WHERE tbl_name NOT GLOB 'sqlite_*' AND tbl_name NOT GLOB '*yoyo_*' ORDER BY type, name"
        )

    def dump(self) -> list[str]:
        with self.connect() as connection:
            return list(connection.iterdump())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "migrations").mkdir()
    folder = Folder(tmp_path / "migrations", tmp_path / "data" / "metadata.db")
    folder.write(AUTHORS_ID, AUTHORS, "DROP TABLE IF EXISTS authors;")
    folder.write(BOOKS_ID, BOOKS, "DROP TABLE IF EXISTS books;")
    folder.write(SHELF_ID, VIEW, "DROP VIEW IF EXISTS shelf;")
    return folder


@pytest.fixture
def metastore(tmp_path: Path) -> Folder:
    """The project's own migrations."""
    return Folder(resources.migrations_directory("sqlite"), tmp_path / "metadata.db")


class TestFiles:
    def test_known__reads_headers_and_statements(self, folder: Folder) -> None:
        authors, books, _ = migrations.known("sqlite", directory=folder.directory)
        assert (authors.depends, books.depends) == (None, AUTHORS_ID)
        assert authors.loses == "drops the table; every author is lost."
        assert [(it.line, it.sql.split()[1]) for it in authors.statements] == [
            (7, "TABLE"),
            (15, "TRIGGER"),
        ]
        assert authors.statements[1].sql.endswith("END;")
        assert "".join(AUTHORS.split()).endswith("".join(authors.statements[1].sql.split()))
        assert migrations.head("sqlite", directory=folder.directory) == SHELF_ID

    @pytest.mark.parametrize(
        ("sql", "line", "message"),
        [
            ("CREATE TABLE IF NOT EXISTS x (a);\nCOMMIT;", 3, "COMMIT: each migration runs in one"),
            ("/* why */ bEgIn; SELECT 1;", 2, "BEGIN: each migration runs in one"),
            ("-- why\nROLLBACK;", 3, "ROLLBACK: each migration runs in one"),
            ("END TRANSACTION;", 2, "END: each migration runs in one"),
            ("SAVEPOINT a;", 2, "SAVEPOINT: each migration runs in one"),
            ("RELEASE a;", 2, "RELEASE: each migration runs in one"),
            ("PRAGMA foreign_keys = OFF;", 2, "PRAGMA: pragmas belong"),
            ("VACUUM;", 2, "VACUUM: it cannot run"),
            ("ATTACH 'other.db' AS other;", 2, "ATTACH: a migration changes one"),
            ("CREATE TABLE x (a);", 2, "CREATE: must say IF NOT EXISTS"),
            ("CREATE UNIQUE INDEX x ON y (a);", 2, "CREATE: must say IF NOT EXISTS"),
            ("DROP VIEW shelf;", 2, "DROP: must say IF EXISTS"),
            ("SELECT '\0';", None, "holds a NUL"),
            ("-- nothing but a comment;\n", None, "holds no statement"),
            ("-- transactional: false\nSELECT 1;", None, "must be transactional"),
        ],
    )
    def test_known__refuses_what_would_leave_a_database_half_way(
        self, folder: Folder, sql: str, line: int | None, message: str
    ) -> None:
        path = folder.append("0004-bad", sql)
        with pytest.raises(MigrationFailed, match=message) as caught:
            folder.upgrade()
        assert (caught.value.migration_id, caught.value.path) == ("0004-bad", path)
        assert caught.value.line == line
        assert not folder.database.exists()

    def test_known__checks_the_rollback_as_well(self, folder: Folder) -> None:
        path = folder.directory / f"{SHELF_ID}.rollback.sql"
        path.write_text("DROP VIEW IF EXISTS shelf;\nCOMMIT;\n")
        with pytest.raises(MigrationFailed, match="COMMIT: each migration runs in one") as caught:
            folder.upgrade()
        assert (caught.value.path, caught.value.line) == (path, 2)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda it: (it / f"{BOOKS_ID}.rollback.sql").unlink(), "rollback.sql: is missing"),
            (lambda it: (it / f"{SHELF_ID}.sql").unlink(), "rolls back a migration that is not"),
            (lambda it: (it / "0004-seed.py").touch(), "is not SQL"),
            (lambda it: (it / "0004_seed.sql").touch(), "is not named like"),
            (lambda it: (it / "post-apply.sql").touch(), "is not named like"),
            (lambda it: (it / f"{SHELF_ID}.sql").write_bytes(b"-- \xff"), "is not UTF-8"),
        ],
    )
    def test_known__refuses_a_folder_that_is_not_in_order(
        self, folder: Folder, spoil: Callable[[Path], None], message: str
    ) -> None:
        spoil(folder.directory)
        with pytest.raises(MigrationFailed, match=message):
            folder.upgrade()
        assert not folder.database.exists()

    @pytest.mark.parametrize(
        ("id_", "depends", "message"),
        [
            ("0004-second-head", BOOKS_ID, f"depends on {BOOKS_ID}, but must depend on {SHELF_ID}"),
            ("0004-no-parent", "0003-gone", "depends on 0003-gone, but must"),
            ("0004-second-root", "", "depends on nothing, but must"),
            ("0004-two-parents", f"{BOOKS_ID} {SHELF_ID}", "depends on more than one"),
            ("0003-etcetera", SHELF_ID, f"has the number of {SHELF_ID}"),
        ],
    )
    def test_known__refuses_all_but_one_chain(
        self, folder: Folder, id_: str, depends: str, message: str
    ) -> None:
        folder.write(id_, f"-- depends: {depends}\nSELECT 1;")
        with pytest.raises(MigrationFailed, match=message):
            folder.ids()

    def test_known__of_an_empty_folder(self, tmp_path: Path) -> None:
        for call in (migrations.known, migrations.head):
            with pytest.raises(MigrationFailed, match="holds no migration"):
                call("sqlite", directory=tmp_path)
        with pytest.raises(MigrationFailed, match="is not a folder"):
            migrations.known("sqlite", directory=tmp_path / "none")

    def test_new__writes_the_next_pair(self, folder: Folder) -> None:
        path, rollback = migrations.new(
            "Add pool to_worktrees!", "sqlite", directory=folder.directory
        )
        assert path == folder.directory / "0004-add-pool-to-worktrees.sql"
        assert rollback == folder.directory / "0004-add-pool-to-worktrees.rollback.sql"
        with pytest.raises(MigrationFailed, match="holds no statement"):
            folder.upgrade()
        for file in (path, rollback):
            file.write_text(file.read_text() + "SELECT 1;\n")
        assert folder.upgrade() == [*ALL, "0004-add-pool-to-worktrees"]

    def test_new__refuses_a_name_without_letters(self, folder: Folder) -> None:
        with pytest.raises(InvalidValue, match="no letters"):
            migrations.new(" / ", "sqlite", directory=folder.directory)


class TestUpgrade:
    def test_creates_the_database_and_returns_what_it_applied(self, folder: Folder) -> None:
        assert folder.upgrade() == ALL
        assert folder.upgrade() == []
        assert folder.states() == dict.fromkeys(ALL, "applied")
        assert folder.execute("PRAGMA application_id") == [(database_file.APPLICATION_ID,)]
        assert folder.execute("PRAGMA journal_mode") == [("wal",)]
        assert folder.execute("PRAGMA integrity_check") == [("ok",)]

    def test_leaves_private_files_and_nothing_open(self, folder: Folder) -> None:
        previous = os.umask(0)
        try:
            folder.upgrade()
        finally:
            os.umask(previous)
        assert [it.name for it in folder.database.parent.iterdir()] == ["metadata.db"]
        assert stat.S_IMODE(folder.database.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.database.parent.stat().st_mode) == 0o700
        if Path("/proc/self/fd").is_dir():
            opened = [os.readlink(it) for it in Path("/proc/self/fd").iterdir() if it.is_symlink()]
            assert not [it for it in opened if it.startswith(str(folder.database))]

    def test_gives_wal_and_shm_the_same_mode(self, folder: Folder) -> None:
        folder.upgrade("0001")
        with folder.connect() as connection:
            connection.execute("SELECT * FROM authors").fetchall()
            folder.upgrade()
            files = sorted(folder.database.parent.iterdir())
            assert [it.name.removeprefix("metadata.db") for it in files] == ["", "-shm", "-wal"]
            assert {stat.S_IMODE(it.stat().st_mode) for it in files} == {0o600}

    @pytest.mark.parametrize("revision", [BOOKS_ID, "0002", "2", "0002-cr"])
    def test_up_to_a_revision(self, folder: Folder, revision: str) -> None:
        assert folder.upgrade(revision) == [AUTHORS_ID, BOOKS_ID]
        assert folder.states()[SHELF_ID] == "pending"
        assert folder.upgrade("head") == [SHELF_ID]

    @pytest.mark.parametrize("revision", ["0009", "9", "0002-q", "nonsense"])
    def test_up_to_an_unknown_revision(self, folder: Folder, revision: str) -> None:
        with pytest.raises(InvalidValue, match="names no migration"):
            folder.upgrade(revision)
        assert not folder.database.exists()

    def test_of_a_database_in_memory(self, folder: Folder) -> None:
        with pytest.raises(InvalidValue, match="in memory"):
            migrations.upgrade(urls.resolve("sqlite://"), directory=folder.directory)

    def test_takes_an_empty_file_and_makes_it_private(self, folder: Folder) -> None:
        folder.database.parent.mkdir()
        folder.database.touch(0o644)
        assert folder.upgrade() == ALL
        assert stat.S_IMODE(folder.database.stat().st_mode) == 0o600

    @pytest.mark.parametrize("name", ["a#b?c%20d.db", "with space.db", "ünïcode-✓.db"])
    def test_of_a_file_of_any_name(self, folder: Folder, tmp_path: Path, name: str) -> None:
        url = urls.resolve(f"sqlite:///{tmp_path}/names/{name}")
        assert migrations.upgrade(url, directory=folder.directory) == ALL
        assert [it.name for it in (tmp_path / "names").iterdir()] == [name]
        assert migrations.verify(url, directory=folder.directory) == []

    def test_refuses_the_file_of_another_program_untouched(self, folder: Folder) -> None:
        folder.database.parent.mkdir()
        with contextlib.closing(sqlite3.connect(folder.database)) as connection:
            connection.execute("CREATE TABLE theirs (a)")
        before = folder.database.read_bytes()
        for call in (folder.upgrade, folder.states, folder.verify, lambda: folder.downgrade("-1")):
            with pytest.raises(StoreCorrupt, match="of another program"):
                call()
        assert folder.database.read_bytes() == before

    def test_refuses_what_is_no_database(self, folder: Folder) -> None:
        folder.database.parent.mkdir()
        folder.database.write_bytes(b"once upon a time" * 512)
        for call in (folder.upgrade, folder.states, lambda: folder.downgrade("base")):
            with pytest.raises(StoreCorrupt, match=r"metadata\.db: file is not a database"):
                call()

    def test_refuses_a_folder(self, folder: Folder) -> None:
        folder.database.mkdir(parents=True)
        for call in (folder.upgrade, folder.states, lambda: folder.downgrade("base")):
            with pytest.raises(StoreCorrupt, match="is not a file"):
                call()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_refuses_a_folder_that_takes_no_file(self, folder: Folder) -> None:
        folder.database.parent.mkdir(mode=0o500)
        with pytest.raises(StoreReadOnly):
            folder.upgrade()

    def test_needs_no_name_for_the_user(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nameless() -> str:
            raise KeyError("getpwuid(): uid not found: 4711")

        monkeypatch.setattr(getpass, "getuser", nameless)
        folder.upgrade()
        assert {it.username for it in migrations.history(folder.url)} == {""}

    def test_of_a_database_that_is_busy(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder.upgrade("0001")
        monkeypatch.setattr(database_file, "BUSY_TIMEOUT_MS", 50)
        with folder.connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusy):
                folder.upgrade()
            with pytest.raises(StoreBusy):
                folder.downgrade("base")
        assert folder.upgrade() == [BOOKS_ID, SHELF_ID]


class TestFailure:
    @pytest.mark.parametrize("failing", range(5))
    def test_at_any_statement_leaves_nothing(self, folder: Folder, failing: int) -> None:
        statements = [
            "CREATE TABLE IF NOT EXISTS c (a TEXT) STRICT;",
            "INSERT INTO authors (name)\nVALUES ('Ann');",
            "CREATE INDEX IF NOT EXISTS ix_c ON c (a);",
            "ALTER TABLE books ADD COLUMN pages INTEGER;",
            "DROP VIEW IF EXISTS shelf;",
        ]
        line = 2 + "\n".join(statements[:failing]).count("\n") + (failing > 0)
        statements.insert(failing, "INSERT INTO nowhere\nVALUES (1);")
        folder.upgrade()
        before = folder.dump()
        path = folder.append("0004-fails", "\n".join(statements))
        with pytest.raises(MigrationFailed, match="no such table: nowhere, in: INSERT") as caught:
            folder.upgrade()
        error = caught.value
        assert (error.migration_id, error.path, error.line) == ("0004-fails", path, line)
        assert error.statement == "INSERT INTO nowhere\nVALUES (1);"
        assert str(error).startswith(f"{path}:{line}: ")
        assert folder.dump() == before
        folder.remove("0004-fails")
        del statements[failing]
        folder.append("0004-fails", "\n".join(statements))
        assert folder.upgrade() == ["0004-fails"]
        assert folder.verify() == []

    def test_of_the_first_migration_leaves_a_database_to_begin_with(self, folder: Folder) -> None:
        good = (folder.directory / f"{AUTHORS_ID}.sql").read_text()
        folder.write(AUTHORS_ID, good + "SELECT nonsense;", "SELECT 1;")
        with pytest.raises(MigrationFailed, match="no such column: nonsense"):
            folder.upgrade()
        assert folder.states() == dict.fromkeys(ALL, "pending")
        assert stat.S_IMODE(folder.database.stat().st_mode) == 0o600
        folder.write(AUTHORS_ID, good, "DROP TABLE IF EXISTS authors;")
        assert folder.upgrade() == ALL

    def test_keeps_the_migrations_before_it(self, folder: Folder) -> None:
        folder.append("0004-fails", "SELECT nonsense;")
        with pytest.raises(MigrationFailed):
            folder.upgrade()
        assert folder.states() == {**dict.fromkeys(ALL, "applied"), "0004-fails": "pending"}
        assert [it.migration_id for it in migrations.history(folder.url)] == ALL

    def test_of_a_rollback_leaves_everything(self, folder: Folder) -> None:
        folder.write(SHELF_ID, VIEW, "DROP VIEW IF EXISTS shelf;\n\nSELECT nonsense;\n")
        folder.upgrade()
        before = folder.dump()
        with pytest.raises(MigrationFailed) as caught:
            folder.downgrade("-1")
        assert caught.value.path == folder.directory / f"{SHELF_ID}.rollback.sql"
        assert caught.value.line == 3
        assert folder.dump() == before

    @pytest.mark.parametrize("step", ["mark_one", "unmark_one", "log_migration", "commit"])
    def test_of_the_bookkeeping_leaves_nothing(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("lost the disk")

        folder.upgrade(BOOKS_ID)
        before = folder.dump()
        monkeypatch.setattr(Bookkeeping, step, fail)
        if step != "unmark_one":
            with pytest.raises(StoreCorrupt, match="lost the disk"):
                folder.upgrade()
        if step != "mark_one":
            with pytest.raises(StoreCorrupt, match="lost the disk"):
                folder.downgrade("-1")
        assert folder.dump() == before

    def test_a_row_without_its_parent_is_one(self, folder: Folder) -> None:
        folder.upgrade()
        folder.mutate("INSERT INTO authors VALUES (1, 'Ann', 'wild', NULL);")
        folder.mutate("INSERT INTO books VALUES (1, 1, 'A'), (2, 1, 'B');")
        before = folder.dump()
        folder.append("0004-forget", "DELETE FROM authors;")
        with pytest.raises(MigrationFailed, match="2 of books without their row of authors"):
            folder.upgrade()
        assert folder.dump() == before

    def test_a_row_without_its_parent_is_one__also_of_a_rollback(self, folder: Folder) -> None:
        folder.append("0004-keep", "SELECT 1;")
        folder.append("0005-forget", "SELECT 1;")
        rollback = folder.directory / "0005-forget.rollback.sql"
        rollback.write_text("DELETE FROM authors WHERE id = 1;")
        folder.upgrade()
        folder.mutate(
            "INSERT INTO authors VALUES (1, 'Ann', 'wild', NULL), (2, 'Bo', 'wild', 'x');"
        )
        folder.mutate("INSERT INTO books VALUES (1, 1, 'A'), (2, 1, 'B'), (3, 2, 'C');")
        before = folder.dump()
        with pytest.raises(MigrationFailed, match="2 of books without their row of authors") as it:
            folder.downgrade("-2")
        assert it.value.migration_id == "0005-forget"
        assert folder.dump() == before

    def test_a_foreign_key_to_nowhere_is_one(self, folder: Folder) -> None:
        folder.append(
            "0004-mismatch",
            "CREATE TABLE IF NOT EXISTS c (name TEXT REFERENCES authors (name));"
            "INSERT INTO c VALUES ('x');",
        )
        with pytest.raises(MigrationFailed, match="foreign key mismatch"):
            folder.upgrade()
        assert folder.states()["0004-mismatch"] == "pending"


class TestDowngrade:
    @pytest.mark.parametrize(
        ("revision", "rolled_back"),
        [
            ("-1", [SHELF_ID]),
            ("-2", [SHELF_ID, BOOKS_ID]),
            ("0001", [SHELF_ID, BOOKS_ID]),
            (BOOKS_ID, [SHELF_ID]),
            ("head", []),
            ("-0", []),
            ("base", [SHELF_ID, BOOKS_ID, AUTHORS_ID]),
        ],
    )
    def test_to_a_revision(self, folder: Folder, revision: str, rolled_back: list[str]) -> None:
        folder.upgrade()
        doomed = migrations.rollbacks(folder.url, revision, directory=folder.directory)
        assert [migration.id for migration in doomed] == rolled_back
        assert folder.downgrade(revision) == rolled_back
        assert [id_ for id_ in ALL if folder.states()[id_] == "pending"] == rolled_back[::-1]
        assert folder.verify() == []

    @pytest.mark.parametrize(
        ("revision", "says"),
        [
            ("-4", "goes below base: 3 are applied"),
            ("0004", "names 0004-later, which is not applied"),
            ("nonsense", "names no migration"),
            ("", "names no migration"),
        ],
    )
    def test_to_an_unclear_revision(self, folder: Folder, revision: str, says: str) -> None:
        folder.upgrade()
        folder.append("0004-later", "SELECT 1;")
        with pytest.raises(InvalidValue, match=says):
            folder.downgrade(revision)
        assert folder.states()[SHELF_ID] == "applied"

    def test_of_nothing(self, folder: Folder) -> None:
        for call in (folder.downgrade, lambda it: migrations.rollbacks(folder.url, it)):
            with pytest.raises(SchemaOutdated):
                call("base")
        assert not folder.database.exists()
        folder.database.parent.mkdir()
        folder.database.touch()
        with pytest.raises(SchemaOutdated):
            folder.downgrade("base")
        assert folder.database.stat().st_size == 0

    def test_up_down_up_gives_the_same_schema(self, folder: Folder) -> None:
        folder.upgrade()
        first = folder.schema()
        folder.downgrade("base")
        assert [it for it in folder.schema() if it[1] in ("authors", "books", "shelf")] == []
        folder.upgrade()
        assert folder.schema() == first
        assert len(folder.execute("SELECT * FROM _metastore_checksum")) == 3

    def test_takes_the_checksums_away(self, folder: Folder) -> None:
        folder.upgrade()
        folder.downgrade("0001")
        assert folder.execute("SELECT migration_id FROM _metastore_checksum") == [(AUTHORS_ID,)]


class TestOwnMigrations:
    def test_each_rollback_restores_the_schema_before(self, metastore: Folder) -> None:
        schemas = {}
        for id_ in metastore.ids():
            schemas[id_] = metastore.schema() if metastore.database.exists() else None
            assert metastore.upgrade(id_) == [id_]
        full = metastore.schema()
        for id_ in reversed(metastore.ids()):
            assert metastore.downgrade("-1") == [id_]
            if schemas[id_] is not None:
                assert metastore.schema() == schemas[id_]
        assert metastore.upgrade() == metastore.ids()
        assert metastore.schema() == full
        assert metastore.verify() == []

    @pytest.mark.parametrize(
        "every",
        [
            pytest.param(7, id="short"),
            pytest.param(1, id="torture", marks=pytest.mark.torture),
        ],
    )
    def test_fail_at_each_statement_and_leave_nothing(
        self, metastore: Folder, tmp_path: Path, every: int
    ) -> None:
        broken = Folder(tmp_path / "broken", metastore.database)
        shutil.copytree(metastore.directory, broken.directory)
        for migration in migrations.known("sqlite", directory=metastore.directory):
            before = metastore.dump() if metastore.database.exists() else None
            path = broken.directory / migration.path.name
            *others, last = migration.statements
            for statement in (*others[::every], last):
                lines = migration.sql.splitlines(keepends=True)
                lines.insert(statement.line - 1, "SELECT nonsense;\n")
                path.write_text("".join(lines))
                with pytest.raises(MigrationFailed) as caught:
                    broken.upgrade(migration.id)
                assert caught.value.line == statement.line
                assert before is None or metastore.dump() == before
            path.write_text(migration.sql)
            assert broken.upgrade(migration.id) == [migration.id]


class TestTrust:
    def test_an_edited_migration_stops_every_other(self, folder: Folder) -> None:
        folder.upgrade(BOOKS_ID)
        path = folder.write(AUTHORS_ID, AUTHORS + "-- reviewed\n", "DROP TABLE IF EXISTS authors;")
        assert folder.states() == {AUTHORS_ID: "edited", BOOKS_ID: "applied", SHELF_ID: "pending"}
        assert folder.verify() == [f"migration {AUTHORS_ID} is edited"]
        for call in (folder.upgrade, lambda: folder.downgrade("base"), lambda: plan(folder)):
            with pytest.raises(MigrationFailed, match="was edited after it was applied") as caught:
                call()
            assert (caught.value.migration_id, caught.value.path) == (AUTHORS_ID, path)
        assert folder.states()[SHELF_ID] == "pending"
        folder.write(AUTHORS_ID, AUTHORS, "DROP TABLE IF EXISTS authors;")
        assert folder.upgrade() == [SHELF_ID]

    def test_other_line_endings_are_no_edit(self, folder: Folder) -> None:
        folder.upgrade()
        (folder.directory / f"{AUTHORS_ID}.sql").write_bytes(AUTHORS.replace("\n", "\r\n").encode())
        assert folder.states() == dict.fromkeys(ALL, "applied")

    def test_an_edited_rollback_is_reported_and_runs(self, folder: Folder) -> None:
        folder.write(SHELF_ID, VIEW, "DROP TABLE IF EXISTS shelf;")
        folder.upgrade()
        with pytest.raises(MigrationFailed, match="use DROP VIEW"):
            folder.downgrade("-1")
        folder.write(SHELF_ID, VIEW, "DROP VIEW IF EXISTS shelf;")
        rows = migrations.status(folder.url, directory=folder.directory)
        assert [(row.state, row.rollback_edited) for row in rows] == [
            ("applied", False),
            ("applied", False),
            ("applied", True),
        ]
        assert folder.upgrade() == []
        assert folder.downgrade("-1") == [SHELF_ID]

    def test_an_edit_without_effect_can_be_adopted(self, folder: Folder) -> None:
        folder.upgrade()
        folder.write(AUTHORS_ID, AUTHORS + "-- reviewed\n", "DROP TABLE IF EXISTS authors;")
        assert migrations.adopt(folder.url, directory=folder.directory) == [AUTHORS_ID]
        assert folder.verify() == []
        assert folder.upgrade() == []

    def test_an_edit_with_effect_cannot(self, folder: Folder) -> None:
        folder.upgrade()
        edited = AUTHORS.replace("name TEXT NOT NULL", "name TEXT")
        folder.write(AUTHORS_ID, edited, "DROP TABLE IF EXISTS authors;")
        assert len(folder.verify()) == 2
        with pytest.raises(MigrationFailed, match="not while table authors is different"):
            migrations.adopt(folder.url, directory=folder.directory)
        assert folder.states()[AUTHORS_ID] == "edited"

    def test_an_edit_cannot__if_the_schema_changes_before_the_lock_is_taken(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder.upgrade()
        folder.write(AUTHORS_ID, AUTHORS + "-- reviewed\n", "DROP TABLE IF EXISTS authors;")
        assert len(folder.verify()) == 1
        connect_to_write = operations.connect_to_write

        def somebody_is_faster(*arguments: Any, **options: Any) -> Any:
            folder.mutate("CREATE TABLE IF NOT EXISTS stray (id INTEGER PRIMARY KEY) STRICT;")
            return connect_to_write(*arguments, **options)

        monkeypatch.setattr(operations, "connect_to_write", somebody_is_faster)
        with pytest.raises(MigrationFailed, match="not while table stray"):
            migrations.adopt(folder.url, directory=folder.directory)
        assert folder.states()[AUTHORS_ID] == "edited"

    def test_a_missing_migration_is_named(self, folder: Folder) -> None:
        folder.upgrade()
        folder.append("0004-later", "SELECT 1;")
        folder.remove(SHELF_ID)
        folder.remove("0004-later")
        folder.write("0004-later", f"-- depends: {BOOKS_ID}\nSELECT 1;")
        assert folder.states()[SHELF_ID] == "missing"
        assert folder.verify() == [f"migration {SHELF_ID} is missing"]
        calls: list[Call] = [folder.upgrade, lambda: folder.downgrade("-1")]
        for call in calls:
            with pytest.raises(MigrationFailed, match="its file is gone") as caught:
                call()
            assert caught.value.migration_id == SHELF_ID

    def test_a_newer_migration_is_unknown(self, folder: Folder) -> None:
        folder.upgrade()
        before = folder.dump()
        folder.remove(SHELF_ID)
        assert folder.states()[SHELF_ID] == "unknown"
        assert folder.verify() == [f"migration {SHELF_ID} is unknown"]
        for call in (folder.upgrade, lambda: folder.downgrade("-1"), lambda: plan(folder)):
            with pytest.raises(SchemaTooNew) as caught:
                call()
            assert (caught.value.revision, caught.value.head) == (SHELF_ID, BOOKS_ID)
        assert folder.dump() == before

    def test_a_migration_out_of_order_is_refused(self, folder: Folder) -> None:
        folder.upgrade()
        folder.mutate(f"DELETE FROM _yoyo_migration WHERE migration_id = '{BOOKS_ID}';")
        before = folder.dump()
        for call in (folder.upgrade, lambda: plan(folder)):
            with pytest.raises(MigrationFailed, match=f"but {SHELF_ID} after it is: out of order"):
                call()
        assert folder.dump() == before

    def test_a_migration_that_another_applied_is_unverified(self, folder: Folder) -> None:
        folder.upgrade(BOOKS_ID)
        folder.mutate(f"DELETE FROM _metastore_checksum WHERE migration_id = '{BOOKS_ID}';")
        assert folder.states()[BOOKS_ID] == "unverified"
        calls: list[Call] = [folder.upgrade, lambda: folder.downgrade("-1")]
        for call in calls:
            with pytest.raises(MigrationFailed, match="verify --adopt"):
                call()
        assert folder.verify() == [f"migration {BOOKS_ID} is unverified"]
        assert migrations.adopt(folder.url, directory=folder.directory) == [BOOKS_ID]
        assert folder.upgrade() == [SHELF_ID]

    def test_a_database_of_yoyo_alone_can_be_adopted(self, folder: Folder) -> None:
        folder.database.parent.mkdir()
        yoyo("apply", "--batch", "-d", str(folder.url), str(folder.directory), cwd=folder.directory)
        with pytest.raises(StoreCorrupt, match="verify --adopt"):
            folder.upgrade()
        with pytest.raises(StoreCorrupt, match="verify --adopt"):
            folder.downgrade("base")
        assert folder.states() == dict.fromkeys(ALL, "unverified")
        assert migrations.adopt(folder.url, directory=folder.directory) == ALL
        assert folder.states() == dict.fromkeys(ALL, "applied")
        assert stat.S_IMODE(folder.database.stat().st_mode) == 0o600
        assert folder.execute("PRAGMA application_id") == [(database_file.APPLICATION_ID,)]
        assert folder.downgrade("-1") == [SHELF_ID]

    def test_a_lock_that_yoyo_left_behind_is_ignored(self, folder: Folder) -> None:
        folder.upgrade("0001")
        folder.mutate("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, '2020-01-01', 4711);")
        assert folder.upgrade() == [BOOKS_ID, SHELF_ID]
        assert folder.downgrade("base") == ALL[::-1]


class TestPlan:
    def test_creates_nothing(self, folder: Folder) -> None:
        assert plan(folder).count("COMMIT;") == 3
        assert not folder.database.parent.exists()

    def test_changes_nothing(self, folder: Folder) -> None:
        folder.upgrade("0001")
        before = folder.database.read_bytes()
        text = migrations.plan(folder.url, "0002", directory=folder.directory)
        assert BOOKS in text
        assert AUTHORS_ID not in text.replace(f"depends: {AUTHORS_ID}", "")
        assert SHELF_ID not in text
        assert folder.database.read_bytes() == before

    def test_is_sql_that_makes_the_schema(self, folder: Folder) -> None:
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(plan(folder))
            planned = connection.execute(
                "SELECT type, name, sql FROM sqlite_schema ORDER BY type, name"
            ).fetchall()
        folder.upgrade()
        assert plan(folder) == ""
        mine = [it for it in folder.schema() if "checksum" not in it[1]]
        assert mine == planned


class TestVerify:
    @pytest.mark.parametrize(
        ("script", "difference"),
        [
            (
                "DROP INDEX ix_books_author_id;",
                "index ix_books_author_id is missing: on books",
            ),
            (
                "DROP TRIGGER authors_updated_at;",
                "trigger authors_updated_at is missing: on authors",
            ),
            ("DROP VIEW shelf;", "view shelf is missing"),
            ("CREATE TABLE notes (a);", "table notes is extra"),
            ("CREATE INDEX ix_title ON books (title);", "index ix_title is extra: on books"),
            (
                "ALTER TABLE books ADD COLUMN pages INTEGER;",
                "table books is different: has pages integer",
            ),
            (
                "DROP VIEW shelf; ALTER TABLE books DROP COLUMN title;" + VIEW,
                "table books is different: lacks title text not null",
            ),
            (
                "DROP INDEX ix_books_author_id;"
                "CREATE INDEX ix_books_author_id ON books (author_id DESC);",
                "index ix_books_author_id is different: is create index ix_books_author_id on "
                "books ( author_id desc ), must be create index ix_books_author_id on books "
                "( author_id )",
            ),
            (
                "PRAGMA writable_schema = ON;"
                "UPDATE sqlite_schema SET sql = replace(sql, '''wild'')', '''wild'', ''sad'')')"
                "WHERE name = 'authors';",
                "table authors is different: lacks constraint authors_mood_check check ( mood in "
                "( 'calm; or so' , 'wild' ) ); has constraint authors_mood_check check ( mood in "
                "( 'calm; or so' , 'wild' , 'sad' ) )",
            ),
            (
                "PRAGMA writable_schema = ON;"
                "UPDATE sqlite_schema SET sql = replace(sql, ' ON DELETE CASCADE', '')"
                "WHERE name = 'books';",
                "table books is different: lacks author_id integer not null references authors "
                "( id ) on delete cascade; "
                "has author_id integer not null references authors ( id )",
            ),
            (
                "PRAGMA writable_schema = ON;"
                "UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '') WHERE name = 'books';",
                "table books is different: lacks strict",
            ),
        ],
    )
    def test_names_one_change(self, folder: Folder, script: str, difference: str) -> None:
        folder.upgrade()
        folder.mutate(script)
        assert folder.verify() == [difference]

    def test_names_a_changed_trigger_and_view(self, folder: Folder) -> None:
        folder.upgrade()
        folder.mutate(
            "DROP TRIGGER authors_updated_at;"
            "CREATE TRIGGER authors_updated_at AFTER UPDATE ON authors BEGIN SELECT 1; END;"
            "DROP VIEW shelf; CREATE VIEW shelf AS SELECT title FROM books;"
        )
        trigger, view = migrations.verify(folder.url, directory=folder.directory)
        assert (trigger.kind, trigger.type, trigger.name) == (
            "different",
            "trigger",
            "authors_updated_at",
        )
        assert trigger.detail.startswith("is create trigger authors_updated_at after update on")
        assert (view.kind, view.type, view.name) == ("different", "view", "shelf")

    def test_names_several_and_a_lost_table_with_what_is_on_it(self, folder: Folder) -> None:
        folder.upgrade(BOOKS_ID)
        folder.mutate("DROP TABLE books;")
        assert folder.verify() == [
            "index ix_books_author_id is missing: on books",
            "table books is missing",
        ]

    def test_sees_through_spelling(self, folder: Folder) -> None:
        folder.upgrade()
        folder.mutate(
            'DROP VIEW shelf; DROP INDEX ix_books_author_id; create  index "ix_books_author_id" '
            "on [books]  (Author_Id) -- as before\n;" + VIEW.replace("SELECT", "/* all */ select")
        )
        assert folder.verify() == []

    def test_compares_with_what_is_applied(self, folder: Folder) -> None:
        folder.upgrade("0001")
        assert folder.verify() == []
        folder.mutate(VIEW.replace("books.title, authors.name FROM books", "1 FROM books"))
        assert folder.verify() == ["view shelf is extra"]

    def test_changes_nothing(self, folder: Folder) -> None:
        folder.upgrade()
        before = folder.database.read_bytes()
        folder.verify()
        assert folder.database.read_bytes() == before

    def test_of_nothing(self, folder: Folder) -> None:
        with pytest.raises(SchemaOutdated):
            folder.verify()
        assert not folder.database.exists()


class TestCheck:
    def test_revision(self) -> None:
        migrations.check_revision("sqlite:///x.db", ALL, ALL)
        for applied, revision in (([], None), (ALL[:2], BOOKS_ID)):
            with pytest.raises(SchemaOutdated) as outdated:
                migrations.check_revision("sqlite:///x.db", applied, ALL)
            assert (outdated.value.revision, outdated.value.head) == (revision, SHELF_ID)
        with pytest.raises(SchemaTooNew) as new:
            migrations.check_revision("sqlite:///x.db", ALL, ALL[:2])
        assert (new.value.revision, new.value.head) == (SHELF_ID, BOOKS_ID)
        with pytest.raises(SchemaTooNew):
            migrations.check_revision("sqlite:///x.db", ALL, [AUTHORS_ID, SHELF_ID])

    def test_of_a_connection(self, metastore: Folder) -> None:
        empty = sqlite3.connect(":memory:")
        with contextlib.closing(empty), pytest.raises(SchemaOutdated):
            migrations.schema_check(metastore.url)(read_state(empty))
        metastore.upgrade()
        with metastore.connect() as connection:
            state = read_state(connection)
            migrations.schema_check(metastore.url)(state)
            assert state.applied == metastore.ids()


def test_history__tells_who_did_what(folder: Folder) -> None:
    assert migrations.history(folder.url, directory=folder.directory) == []
    folder.upgrade("0002")
    folder.downgrade("-1")
    entries = migrations.history(folder.url, directory=folder.directory)
    assert [(it.operation, it.migration_id) for it in entries] == [
        ("apply", AUTHORS_ID),
        ("apply", BOOKS_ID),
        ("rollback", BOOKS_ID),
    ]
    assert entries == sorted(entries, key=lambda it: it.at)
    assert {it.at.tzname() for it in entries} == {"UTC"}
    assert all(it.username and it.hostname for it in entries)


def test_rebuild__keeps_rows_references_views_and_triggers(folder: Folder) -> None:
    """The recipe of docs/migrations.md, as it stands there."""
    folder.upgrade()
    folder.mutate("INSERT INTO authors VALUES (1, 'Ann', 'wild', NULL);")
    folder.mutate("INSERT INTO books VALUES (1, 1, 'A'), (2, 1, 'B');")
    page = ROOT / "docs" / "migrations.md"
    [recipe] = re.findall(r"```sql\n(-- 0004-allow-sad-authors.*?)```", page.read_text(), re.DOTALL)
    folder.write("0004-allow-sad-authors", recipe)
    assert folder.upgrade() == ["0004-allow-sad-authors"]
    assert folder.verify() == []
    assert folder.execute("SELECT * FROM shelf") == [("A", "Ann"), ("B", "Ann")]
    folder.mutate("UPDATE authors SET mood = 'sad';")
    assert folder.execute("SELECT mood, updated_at FROM authors") == [("sad", "now")]
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        folder.execute("INSERT INTO books VALUES (3, 4711, 'C')")
    folder.mutate("DELETE FROM authors;")
    assert folder.execute("SELECT * FROM books") == []


def plan(folder: Folder) -> str:
    return migrations.plan(folder.url, directory=folder.directory)


class TestMeanwhile:
    """Another migrator acts between what this one saw and what it does."""

    @pytest.fixture
    def meanwhile(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def meanwhile(looks: str, act: Call) -> None:
            look = getattr(operations, looks)

            def look_and_let_act(*arguments: Any) -> Any:
                seen = look(*arguments)
                monkeypatch.setattr(operations, looks, look)
                act()
                return seen

            monkeypatch.setattr(operations, looks, look_and_let_act)

        return meanwhile

    def test_the_same_was_applied(self, folder: Folder, meanwhile: Callable[..., None]) -> None:
        folder.upgrade("0001")
        meanwhile("pending", lambda: folder.upgrade("0002"))
        assert folder.upgrade() == [SHELF_ID]
        assert [it.migration_id for it in migrations.history(folder.url)] == ALL

    def test_the_same_was_rolled_back(self, folder: Folder, meanwhile: Callable[..., None]) -> None:
        folder.upgrade()
        meanwhile("_to_roll_back", lambda: folder.downgrade("0002"))
        assert folder.downgrade("base") == [BOOKS_ID, AUTHORS_ID]
        assert len(migrations.history(folder.url)) == 6

    def test_what_it_needs_was_rolled_back(
        self, folder: Folder, meanwhile: Callable[..., None]
    ) -> None:
        folder.upgrade("0002")
        meanwhile("pending", lambda: folder.downgrade("0001"))
        with pytest.raises(MigrationFailed, match=f"needs {BOOKS_ID}, which is not applied"):
            folder.upgrade()
        assert folder.states()[SHELF_ID] == "pending"

    def test_a_later_one_was_applied(self, folder: Folder, meanwhile: Callable[..., None]) -> None:
        folder.upgrade()
        folder.append("0004-later", "ALTER TABLE books ADD COLUMN pages INTEGER;")
        meanwhile("_to_roll_back", folder.upgrade)
        with pytest.raises(MigrationFailed, match="cannot be rolled back before 0004-later"):
            folder.downgrade("-1")
        assert set(folder.states().values()) == {"applied"}


def test_commit__that_fails_leaves_no_transaction(folder: Folder) -> None:
    def refuse(action: int, what: str | None, *_: object) -> int:
        commits = action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT"
        return sqlite3.SQLITE_DENY if commits else sqlite3.SQLITE_OK

    folder.upgrade(BOOKS_ID)
    before = folder.dump()
    *_, shelf = migrations.known("sqlite", directory=folder.directory)
    with folder.connect() as connection:
        backend = Bookkeeping(SqliteSchema(), "sqlite", SqliteSchemaConnection(connection))
        connection.set_authorizer(refuse)
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            backend.apply_one(shelf)
        assert not connection.in_transaction
    assert folder.dump() == before


def test_recognising__looks_at_one_state(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a database that is made a metastore meanwhile looks like another program's."""
    recognise = database_file.is_metastore

    def in_a_snapshot(connection: sqlite3.Connection) -> bool:
        assert connection.in_transaction
        return recognise(connection)

    monkeypatch.setattr(database_file, "is_metastore", in_a_snapshot)
    assert folder.upgrade() == ALL
    assert folder.verify() == []


def test_reading__cannot_write(folder: Folder) -> None:
    folder.upgrade()
    reading = operations._reading(folder.url, folder.directory)
    with pytest.raises(StoreReadOnly), reading as backend:
        assert backend is not None
        backend.execute("DELETE FROM authors")


# --- several processes -------------------------------------------------------------------------

MIGRATOR = """
import sys
from pathlib import Path
from metastore import migrations, urls
url, directory, verb, revision = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
call = migrations.upgrade if verb == "upgrade" else migrations.downgrade
print(*call(urls.resolve(url), revision, directory=Path(directory)), flush=True)
"""


@contextlib.contextmanager
def migrators(folder: Folder, *verbs: tuple[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that have imported everything and wait for a line to begin."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATOR, str(folder.url), str(folder.directory), *verb],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for verb in verbs
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_race__each_migration_is_applied_once(folder: Folder) -> None:
    for number in range(4, 24):
        folder.append(f"{number:04}-more", f"CREATE TABLE IF NOT EXISTS t{number} (a);")
    with migrators(folder, *[("upgrade", "head")] * 6) as processes:
        for process in processes:
            begin(process)
        applied = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 6
    assert sorted(id_ for ids in applied for id_ in ids) == folder.ids()
    assert [it.migration_id for it in migrations.history(folder.url)] == folder.ids()
    assert folder.verify() == []


def test_race__up_and_down_at_once_end_in_one_whole_state(folder: Folder) -> None:
    folder.upgrade()
    with migrators(folder, *[("upgrade", "head"), ("downgrade", "base")] * 2) as processes:
        for process in processes:
            begin(process)
        for process in processes:
            process.communicate()
    assert folder.verify() == []
    assert set(folder.states().values()) <= {"applied", "pending"}
    folder.upgrade()
    assert folder.states() == dict.fromkeys(ALL, "applied")


def test_kill__in_the_middle_of_a_migration_leaves_nothing(folder: Folder) -> None:
    endless = (
        "CREATE TABLE IF NOT EXISTS t (n INTEGER) STRICT;\n"
        "INSERT INTO t WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
        "SELECT n FROM c;"
    )
    folder.append("0004-endless", endless)
    folder.upgrade(SHELF_ID)
    before = folder.dump()
    with migrators(folder, ("upgrade", "head")) as [process], folder.connect() as connection:
        connection.execute("PRAGMA busy_timeout = 0")
        begin(process)
        while not _is_locked(connection):
            pass
        wal = folder.database.with_name("metadata.db-wal")
        while wal.stat().st_size < 1_000_000:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert folder.dump() == before
    assert folder.states()["0004-endless"] == "pending"
    folder.remove("0004-endless")
    folder.append("0004-endless", endless.replace("FROM c;", "FROM c LIMIT 3;"))
    assert folder.upgrade() == ["0004-endless"]
    assert folder.execute("SELECT count(*) FROM t") == [(3,)]


def _is_locked(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    connection.execute("ROLLBACK")
    return False


def test_kill__at_any_moment_leaves_whole_migrations(folder: Folder) -> None:
    for number in range(4, 40):
        folder.write(
            f"{number:04}-more",
            f"-- depends: {folder.ids()[-1]}\n"
            f"CREATE TABLE IF NOT EXISTS t{number} (a); INSERT INTO t{number} VALUES (1);",
            f"DROP TABLE IF EXISTS t{number};",
        )
    killed = late = 0
    while killed < 4:
        assert late < 20, "every upgrade was faster than its kill"
        rows = (1, 4, 9, 16)[killed]
        with migrators(folder, ("upgrade", "head")) as [process]:
            begin(process)
            while process.poll() is None and _applied(folder) < rows:
                pass
            process.send_signal(signal.SIGKILL)
            process.communicate()
            came_in_time = process.returncode == -signal.SIGKILL
        applied = [id_ for id_, state in folder.states().items() if state == "applied"]
        tables = folder.execute("SELECT name FROM sqlite_schema WHERE name GLOB 't[0-9]*'")
        assert len(tables) == len([id_ for id_ in applied if id_.endswith("-more")])
        assert folder.verify() == []
        killed += came_in_time
        if not came_in_time:
            late += 1
            folder.downgrade("base")
    folder.upgrade()
    assert set(folder.states().values()) == {"applied"}


def _applied(folder: Folder) -> int:
    with contextlib.suppress(sqlite3.Error, MetastoreError):
        return list(folder.states().values()).count("applied")
    return 0


def test_looking__keeps_the_locks_of_this_process(folder: Folder) -> None:
    folder.upgrade()
    # Another process can empty the WAL only when this one has lost the lock of its reader.
    truncate = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], timeout=0);"
        "print(*connection.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone())"
    )
    with folder.connect() as reader, folder.connect() as writer:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM books").fetchall()
        writer.execute("INSERT INTO authors VALUES (1, 'Ann', 'wild', NULL)")
        folder.states()
        folder.verify()
        plan(folder)
        folder.upgrade()
        migrations.history(folder.url)
        done = subprocess.run(
            [sys.executable, "-c", truncate, str(folder.database)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split()[0] == "1"


# --- yoyo's own command line -------------------------------------------------------------------


def yoyo(
    *arguments: str, cwd: Path, url: str | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    environment = {key: it for key, it in os.environ.items() if key != "METASTORE_DB_URL"}
    if url is not None:
        environment["METASTORE_DB_URL"] = url
    done = subprocess.run(
        [sys.executable, "-m", "yoyo", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def checkout(folder: Folder, tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"
    shutil.copytree(folder.directory, root / "migrations" / "sqlite")
    shutil.copy(ROOT / "yoyo.ini", root)
    folder.directory = root / "migrations" / "sqlite"
    return root


class TestYoyo:
    @pytest.mark.parametrize("by_variable", [True, False])
    def test_apply_list_rollback(self, folder: Folder, checkout: Path, by_variable: bool) -> None:
        url = str(folder.url) if by_variable else None
        if not by_variable:
            folder.database = checkout / ".artifacts" / "data" / "metadata.db"
            folder.url = urls.resolve(f"sqlite:///{folder.database}")
        yoyo("apply", "--batch", cwd=checkout, url=url)
        assert stat.S_IMODE(folder.database.stat().st_mode) == 0o600
        assert folder.states() == dict.fromkeys(ALL, "applied")
        assert folder.verify() == []
        listed = yoyo("list", "--batch", cwd=checkout, url=url).stdout
        assert re.findall(r"^(A|U) +(\S+)", listed, re.MULTILINE) == [("A", it) for it in ALL]
        yoyo("rollback", "--batch", cwd=checkout, url=url)
        assert folder.states()[SHELF_ID] == "pending"
        yoyo("reapply", "--batch", "--all", cwd=checkout, url=url)
        assert folder.verify() == []
        assert folder.upgrade() == [SHELF_ID]
        yoyo("rollback", "--batch", "--all", cwd=checkout, url=url)
        assert folder.states() == dict.fromkeys(ALL, "pending")
        assert [it.operation for it in migrations.history(folder.url)].count("rollback") == 6

    def test_fails_in_one_line_and_leaves_nothing(self, folder: Folder, checkout: Path) -> None:
        folder.append("0004-fails", "CREATE TABLE IF NOT EXISTS c (a);\nSELECT nonsense;")
        done = yoyo("apply", "--batch", cwd=checkout, url=str(folder.url), code=2)
        assert done.stderr.splitlines()[-1] == (
            "yoyo: error: migrations/sqlite/0004-fails.sql:3: no such column: nonsense, "
            "in: SELECT nonsense;"
        )
        assert folder.states()["0004-fails"] == "pending"
        assert folder.verify() == []
        done = yoyo("apply", "--batch", "--force", cwd=checkout, url=str(folder.url), code=2)
        assert "--force would" in done.stderr

    def test_refuses_what_upgrade_refuses(self, folder: Folder, checkout: Path) -> None:
        folder.upgrade("0001")
        folder.write(AUTHORS_ID, AUTHORS + "-- reviewed\n", "DROP TABLE IF EXISTS authors;")
        url = str(folder.url)
        done = yoyo("apply", "--batch", cwd=checkout, url=url, code=2)
        assert "was edited after it was applied" in done.stderr
        done = yoyo("rollback", "--batch", cwd=checkout, url=url, code=2)
        assert "was edited after it was applied" in done.stderr
        folder.write(AUTHORS_ID, AUTHORS, "DROP TABLE IF EXISTS authors;")
        done = yoyo("apply", "--batch", "-m", "shelf", cwd=checkout, url=url, code=2)
        assert f"needs {BOOKS_ID}, which is not applied" in done.stderr
        assert folder.states() == {AUTHORS_ID: "applied", BOOKS_ID: "pending", SHELF_ID: "pending"}

    def test_marks_and_unmarks_with_checksums(self, folder: Folder, checkout: Path) -> None:
        yoyo("mark", "--batch", "--all", cwd=checkout, url=str(folder.url))
        assert folder.states() == dict.fromkeys(ALL, "applied")
        yoyo("unmark", "--batch", "--all", cwd=checkout, url=str(folder.url))
        assert folder.states() == dict.fromkeys(ALL, "pending")
        assert folder.execute("SELECT * FROM _metastore_checksum") == []

    def test_ignores_a_lock_that_was_left_behind(self, folder: Folder, checkout: Path) -> None:
        folder.upgrade("0001")
        folder.mutate("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, '2020-01-01', 4711);")
        yoyo("apply", "--batch", cwd=checkout, url=str(folder.url))
        assert folder.states() == dict.fromkeys(ALL, "applied")

    def test_names_a_file_itself(self, folder: Folder, checkout: Path) -> None:
        yoyo("apply", "--batch", "-d", "metastore:///here.db", cwd=checkout)
        yoyo("apply", "--batch", "-d", f"metastore:///{folder.database}", cwd=checkout)
        assert (checkout / "here.db").is_file()
        assert folder.states() == dict.fromkeys(ALL, "applied")
        for url in ("metastore://host/x.db", "metastore:///x.db?mode=ro"):
            done = yoyo("apply", "--batch", "-d", url, cwd=checkout, code=2)
            assert "METASTORE_DB_URL accepts any file name" in done.stderr
        done = yoyo("apply", "--batch", "--migration-table", "mine", cwd=checkout, code=2)
        assert "must be _yoyo_migration" in done.stderr
