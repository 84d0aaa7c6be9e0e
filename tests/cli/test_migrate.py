"""`metastore migrate`, and what every command has from `metastore.cli`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from metastore import migrations, resources, urls
from metastore.backends.sqlite import database_file
from metastore.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]

TREES = """\
-- 0001-create-trees: what grows.
--
-- Rollback: fells every tree.
CREATE TABLE IF NOT EXISTS trees (height INTEGER CONSTRAINT trees_height_check CHECK (height > 0));
"""
NESTS = """\
-- 0002-create-nests: who lives there.
-- depends: 0001-create-trees
CREATE TABLE IF NOT EXISTS nests (tree INTEGER);
CREATE INDEX IF NOT EXISTS ix_nests_tree ON nests (tree);
"""
TREES_ID, NESTS_ID = "0001-create-trees", "0002-create-nests"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "migrations" / "sqlite"
    directory.mkdir(parents=True)
    (directory / f"{TREES_ID}.sql").write_text(TREES)
    (directory / f"{TREES_ID}.rollback.sql").write_text("DROP TABLE IF EXISTS trees;\n")
    (directory / f"{NESTS_ID}.sql").write_text(NESTS)
    (directory / f"{NESTS_ID}.rollback.sql").write_text("DROP TABLE IF EXISTS nests;\n")
    bookkeeping = resources.migrations_directory("sqlite") / "bookkeeping"
    (directory / "bookkeeping").symlink_to(bookkeeping)
    monkeypatch.setattr(resources, "migrations_directory", lambda _: directory)
    return directory


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/metadata.db"


@pytest.fixture
def run(directory: Path, url: str) -> Run:
    def run(*arguments: str, code: int = 0, **options: Any) -> Result:
        result = CliRunner().invoke(main, ["migrate", *arguments, "--db", url], **options)
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    assert directory.is_dir()
    return run


@pytest.mark.parametrize("arguments", [(), ("head",), ("0002",), (NESTS_ID,)])
def test_upgrade(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("upgrade", *arguments).stdout == f"applied {TREES_ID}\napplied {NESTS_ID}\n"
    assert run("upgrade", *arguments).stdout == "nothing to apply\n"


def test_upgrade__as_json(run: Run) -> None:
    assert json.loads(run("upgrade", "0001", "--json").stdout) == {"applied": [TREES_ID]}
    assert json.loads(run("upgrade", "--json").stdout) == {"applied": [NESTS_ID]}
    assert json.loads(run("upgrade", "--json").stdout) == {"applied": []}


def test_upgrade__failure_is_one_line(run: Run, directory: Path) -> None:
    path = directory / f"{NESTS_ID}.sql"
    path.write_text(NESTS + "INSERT INTO nests\nVALUES (nobody);\n")
    result = run("upgrade", code=1)
    assert result.stderr == (
        f"metastore: error: {path}:5: no such column: nobody, in: INSERT INTO nests\n"
    )
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("-1", "--yes"), ("--yes", "-1"), ("-1", "-y"), ("0001", "-y")]
)
def test_downgrade(run: Run, arguments: tuple[str, ...]) -> None:
    run("upgrade")
    result = run("downgrade", *arguments)
    assert result.stdout == f"rolled back {NESTS_ID}\n"
    assert run("downgrade", "0001", "--yes").stdout == "nothing to roll back\n"
    assert json.loads(run("downgrade", "base", "--yes", "--json").stdout) == {
        "rolled_back": [TREES_ID]
    }


def test_downgrade__refuses_when_nobody_can_be_asked(run: Run, url: str) -> None:
    run("upgrade")
    result = run("downgrade", "base", code=1)
    assert result.stderr == (
        f"metastore: error: Roll back 2 migrations of {url}? Nobody is there to ask: pass --yes.\n"
    )
    assert "fells every tree." in result.stdout
    assert run("upgrade").stdout == "nothing to apply\n"


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_downgrade__asks(
    run: Run, url: str, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    run("upgrade")
    monkeypatch.setattr("metastore.cli._is_interactive", lambda: True)
    result = run("downgrade", "-1", input=f"{answer}\n", code=code)
    assert f"Roll back 1 migration of {url}? [y/N]" in result.stdout
    assert (f"rolled back {NESTS_ID}" in result.stdout) == (answer == "y")
    states = [row.state for row in migrations.status(urls.resolve(url))]
    assert states == ["applied", "pending" if answer == "y" else "applied"]


def test_downgrade__needs_a_revision(run: Run) -> None:
    run("upgrade")
    assert "Missing argument" in run("downgrade", code=2).stderr
    assert "names no migration" in run("downgrade", "0009", "--yes", code=1).stderr
    assert "goes below base" in run("downgrade", "-3", "--yes", code=1).stderr


def test_status(run: Run, directory: Path) -> None:
    assert run("status").stdout == (
        "migration          state    applied at\n"
        "0001-create-trees  pending\n"
        "0002-create-nests  pending\n"
    )
    run("upgrade")
    (directory / f"{TREES_ID}.rollback.sql").write_text("DROP TABLE IF EXISTS trees; --\n")
    (directory / f"{NESTS_ID}.sql").write_text(NESTS + "--\n")
    header, first, second = run("status").stdout.splitlines()
    assert header.split("  ")[0] == "migration"
    assert "applied (rollback edited)  20" in first
    assert "edited" in second
    rows = json.loads(run("status", "--json").stdout)
    assert [(row["id"], row["state"], row["rollback_edited"]) for row in rows] == [
        (TREES_ID, "applied", True),
        (NESTS_ID, "edited", False),
    ]


def test_status__creates_nothing(run: Run, tmp_path: Path) -> None:
    for command in ("status", "history", "plan"):
        run(command)
    run("verify", code=1)
    assert not (tmp_path / "data").exists()


def test_history(run: Run) -> None:
    run("upgrade")
    run("downgrade", "-1", "--yes")
    lines = run("history").stdout.splitlines()
    assert [line.split()[1:3] for line in lines[1:]] == [
        ["apply", TREES_ID],
        ["apply", NESTS_ID],
        ["rollback", NESTS_ID],
    ]
    rows = json.loads(run("history", "--json").stdout)
    assert [row["operation"] for row in rows] == ["apply", "apply", "rollback"]


def test_plan(run: Run) -> None:
    assert run("plan").stdout.count("BEGIN IMMEDIATE;") == 2
    assert NESTS not in run("plan", "0001").stdout
    run("upgrade")
    assert run("plan").stdout == "-- nothing to apply\n"


def test_verify(run: Run, url: str) -> None:
    run("upgrade")
    assert run("verify").stdout == "the schema is what its migrations make\n"
    assert json.loads(run("verify", "--json").stdout) == {"differences": [], "adopted": []}
    mutate(url, "DROP INDEX ix_nests_tree")
    assert run("verify", code=1).stdout == "index ix_nests_tree is missing: on nests\n"
    [difference] = json.loads(run("verify", "--json", code=1).stdout)["differences"]
    assert difference == {
        "kind": "missing",
        "type": "index",
        "name": "ix_nests_tree",
        "detail": "on nests",
    }


def test_verify__adopts_when_nothing_else_differs(run: Run, url: str, directory: Path) -> None:
    run("upgrade")
    (directory / f"{TREES_ID}.sql").write_text(TREES + "-- reviewed\n")
    assert run("verify", code=1).stdout == f"migration {TREES_ID} is edited\n"
    mutate(url, "CREATE TABLE weeds (a)")
    assert "weeds is extra" in run("verify", "--adopt", code=1).stdout
    assert run("status").stdout.count("edited") == 1
    mutate(url, "DROP TABLE weeds")
    assert run("verify", "--adopt").stdout == (
        f"recorded {TREES_ID}\nthe schema is what its migrations make\n"
    )
    assert run("status").stdout.count("edited") == 0


def test_new(directory: Path) -> None:
    result = CliRunner().invoke(main, ["migrate", "new", "add", "height to nests"])
    path = directory / "0003-add-height-to-nests.sql"
    assert result.stdout.splitlines() == [
        os.path.relpath(path),
        os.path.relpath(path.with_name("0003-add-height-to-nests.rollback.sql")),
    ]
    assert path.read_text().startswith("-- 0003-add-height-to-nests: ")
    assert "-- depends: 0002-create-nests\n" in path.read_text()


def mutate(url: str, sql: str) -> None:
    path = urls.resolve(url).path
    assert path is not None
    with contextlib.closing(database_file.connect(path)) as connection:
        connection.execute(sql)


class TestEveryCommand:
    def test_takes_the_database_before_or_behind_its_name(
        self, directory: Path, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert directory.is_dir()
        monkeypatch.setenv("METASTORE_DB_URL", url)
        for arguments in (["migrate", "status"], ["--db", url, "migrate", "status"]):
            assert CliRunner().invoke(main, arguments).exit_code == 0
        CliRunner().invoke(
            main, ["--db", "sqlite:///nowhere.db", "migrate", "upgrade", "--db", url]
        )
        path = urls.resolve(url).path
        assert path is not None
        assert path.is_file()

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ("mysql://x", "url must begin with sqlite:// (got str)"),
            ("sqlite://", "url names a database in memory, which is migrated when it is opened"),
        ],
    )
    def test_answers_a_bad_url_in_one_line(self, given: str, says: str) -> None:
        result = CliRunner().invoke(main, ["migrate", "status", "--db", given])
        assert (result.exit_code, result.stderr) == (1, f"metastore: error: {says}\n")

    def test_answers_an_error_of_the_system_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", "/etc/secret")

        monkeypatch.setattr(migrations, "history", fail)
        result = CliRunner().invoke(main, ["migrate", "history"])
        assert (result.exit_code, result.stderr) == (
            1,
            "metastore: error: /etc/secret: Permission denied\n",
        )

    def test_has_help(self) -> None:
        result = CliRunner().invoke(main, ["--help"])
        assert "migrate" in result.stdout
        for command in main.list_commands(None):  # type: ignore[arg-type]  # it needs no context
            result = CliRunner().invoke(main, [command, "--help"])
            assert result.exit_code == 0
        assert CliRunner().invoke(main, ["nonsense"]).exit_code == 2

    def test_draws_a_table_on_a_terminal(self, tmp_path: Path) -> None:
        ours, theirs = pty.openpty()
        subprocess.run(
            [sys.executable, "-m", "metastore", "migrate", "status"],
            stdout=theirs,
            env={**os.environ, "METASTORE_DB_URL": f"sqlite:///{tmp_path}/x.db", "TERM": "xterm"},
            check=True,
        )
        os.close(theirs)
        output = os.read(ours, 65536).decode()
        os.close(ours)
        assert "\x1b[1m" in output
        assert "pending" in output

    def test_ends_quietly_when_its_reader_goes_away(self, tmp_path: Path) -> None:
        done = subprocess.run(
            f"{sys.executable} -m metastore migrate plan | head -n 1",
            shell=True,
            env={**os.environ, "METASTORE_DB_URL": f"sqlite:///{tmp_path}/x.db"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("BEGIN IMMEDIATE;\n", "")

    def test_tells_its_version(self) -> None:
        result = CliRunner().invoke(main, ["--version"])
        assert result.exit_code == 0
        assert result.stdout.startswith("metastore, version ")
