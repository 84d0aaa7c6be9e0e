"""`metastore doctor`: what it prints, and the code it ends with."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from metastore import MetadataStore, migrations, urls
from metastore.cli import main
from metastore.testing import Factories
from metastore.testing.template import write_template

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]
    Fill = Callable[[Callable[[MetadataStore], Awaitable[Any]]], Any]

HEAD = migrations.head("sqlite")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.db"
    write_template(path)
    return path


@pytest.fixture
def run(path: Path) -> Run:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["doctor", *arguments, "--db", f"sqlite:///{path}"])

    return run


@pytest.fixture
def fill(path: Path) -> Fill:
    """Do something in the database, by the machine's clock, before the command looks at it."""

    def fill(work: Callable[[MetadataStore], Awaitable[Any]]) -> Any:
        async def fill() -> Any:
            async with MetadataStore.open(f"sqlite:///{path}") as store:
                return await work(store)

        return asyncio.run(fill())

    return fill


def facts(output: str) -> dict[str, str]:
    """Return the lines of the first block, by their names."""
    lines = output.partition("\n\n")[0].splitlines()
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in lines if line[:1].islower())


def section(output: str, title: str) -> list[str]:
    """Return the lines below a title, or none."""
    _, _, rest = output.partition(f"\n{title}:\n")
    return [line.removeprefix("- ") for line in rest.partition("\n\n")[0].splitlines()]


def test_doctor__of_a_new_database(run: Run, path: Path) -> None:
    result = run("--integrity")
    assert result.exit_code == 0, result.output
    found = facts(result.output)
    assert found["reachable"] == found["writable"] == "yes"
    assert (found["schema"], found["journal mode"], found["synchronous"]) == (HEAD, "wal", "full")
    assert found["size"] == f"{path.stat().st_size / 1024:,.1f} KiB"
    assert found["worktrees"] == "0 held, 0 expired"
    assert found["integrity"] == "ok"
    assert section(result.output, "Problems") == []
    assert result.output.endswith("Nothing is wrong.\n")


def test_doctor__json_is_the_report(run: Run, path: Path) -> None:
    path.chmod(0o640)
    result = run("--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["healthy"] is False
    assert report["details"]["file_modes"][str(path)] == "0640"
    assert (report["schema_revision"], report["schema_head"]) == (HEAD, HEAD)
    assert report["damage"] is None
    assert len(report["problems"]) == 3
    path.chmod(0o600)
    result = run("--json")
    assert (result.exit_code, json.loads(result.stdout)["healthy"]) == (0, True)


def test_doctor__counts_leases_and_notes_expired_ones(run: Run, fill: Fill) -> None:
    async def lease(store: MetadataStore) -> None:
        factories = Factories(store)
        await factories.lease(ttl=timedelta(milliseconds=1))
        await factories.lease(ttl=timedelta(hours=1))
        await factories.lock(ttl=timedelta(hours=1))
        await factories.claim(ttl=timedelta(hours=1))

    fill(lease)
    result = run()
    assert result.exit_code == 0
    assert facts(result.output)["worktrees"] == "1 held, 1 expired"
    assert facts(result.output)["projects"] == "1 held, 0 expired"
    assert facts(result.output)["tasks"] == "1 held, 0 expired"
    assert any(
        line.startswith("1 of the leased worktrees") for line in section(result.output, "Notes")
    )


def test_doctor__of_an_old_schema(run: Run, path: Path) -> None:
    migrations.downgrade(urls.resolve(f"sqlite:///{path}"), "3")
    result = run()
    assert result.exit_code == 1
    assert facts(result.output)["schema"] == f"0003-create-projects; the code needs {HEAD}"
    [problem] = section(result.output, "Problems")
    assert f"metastore migrate upgrade --db sqlite:///{path}" in problem
    assert result.output.endswith("Something is wrong.\n")


def test_doctor__where_there_is_no_database(run: Run, path: Path) -> None:
    path.unlink()
    result = run()
    assert result.exit_code == 1
    assert facts(result.output)["reachable"] == "no"
    assert "metastore migrate upgrade" in section(result.output, "Problems")[0]
    assert not path.exists()


def test_doctor__of_a_damaged_database(run: Run, path: Path) -> None:
    # Of an index that nothing here reads.
    with closing(sqlite3.connect(path)) as connection:
        [(page,)] = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'ix_events_created_at'"
        )
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))
    assert run().exit_code == 0
    result = run("--integrity")
    assert result.exit_code == 1
    assert facts(result.output)["integrity"].endswith("findings")
    assert section(result.output, "Damage")
    assert "restore a backup" in section(result.output, "Problems")[0]


@pytest.mark.parametrize("flags", [[], ["--audit"]], ids=["plain", "audit"])
@pytest.mark.parametrize("name", ["helpful", "sqlite_helpful"])
def test_doctor__names_a_planted_trigger(
    run: Run, fill: Fill, path: Path, name: str, flags: list[str]
) -> None:
    """Also one that was named as SQLite names its own, which only a writable schema allows."""

    async def append(store: MetadataStore) -> str:
        return (await Factories(store).event()).id

    fill(append)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER helpful AFTER INSERT ON events BEGIN"
            " UPDATE sessions SET status = 'failed' WHERE id = new.session_id; END"
        )
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_schema SET name = ?1, sql = replace(sql, 'helpful', ?1)"
            " WHERE name = 'helpful'",
            (name,),
        )
    result = run(*flags)
    assert result.exit_code == 1
    [problem] = [it for it in section(result.output, "Problems") if "schema" in it]
    assert f"trigger {name} is extra: on events" in problem


def test_doctor__finds_tampering(run: Run, fill: Fill, path: Path) -> None:
    async def append(store: MetadataStore) -> str:
        return (await Factories(store).event()).id

    event_id = fill(append)
    result = run("--audit")
    assert result.exit_code == 0
    assert facts(result.output)["history"] == "ok"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        name = "events_no_update"
        schema = "SELECT sql FROM sqlite_schema WHERE name = ?"
        [trigger] = connection.execute(schema, (name,)).fetchone()
        connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE events SET message = 'forged'")
        connection.execute(trigger)
    assert facts(run("--integrity").output)["history"] == "not checked, see --audit"
    result = run("--audit")
    assert result.exit_code == 1
    assert facts(result.output)["history"] == "1 findings"
    [line] = section(result.output, "Tampering")
    assert line.endswith(f"a row was edited at {event_id}")
    assert any(line in problem for problem in section(result.output, "Problems"))
    result = run("--audit", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["healthy"]) == (1, False)
    assert [finding["row_id"] for finding in report["tampering"]] == [event_id]


def test_doctor__while_another_process_writes(run: Run, path: Path) -> None:
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        result = run()
        other.communicate("")
    assert result.exit_code == 1
    assert facts(result.output)["reachable"] == "yes"
    assert facts(result.output)["writable"] == "no"
    assert run().exit_code == 0


def test_doctor__escapes_what_a_terminal_would_obey(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m.db"
    write_template(path)
    result = CliRunner().invoke(main, ["doctor", "--db", f"sqlite:///{path}"])
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "a\\x1b[31m.db" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--explain", "x", "--integrity"],
        ["--explain", "x", "--audit"],
        ["--nonsense"],
        ["--explain"],
    ],
)
def test_doctor__usage(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_doctor__not_in_memory() -> None:
    result = CliRunner().invoke(main, ["doctor", "--db", "sqlite://"])
    assert result.exit_code == 1
    assert result.stderr.startswith("metastore: error: url names a database in memory")


# --explain


def test_explain__prints_everything(run: Run, fill: Fill) -> None:
    async def work(store: MetadataStore) -> Any:
        factories = Factories(store)
        lease = await factories.lease(owner="runner-1\x1b[2J", ttl=timedelta(hours=1))
        session = await factories.session(
            repository_id=lease.worktree.repository_id, worktree_id=lease.worktree_id
        )
        return lease, session

    lease, session = fill(work)
    for key in (lease.worktree_id, lease.token, f" {lease.token.upper()} "):
        result = run("--explain", key)
        assert result.exit_code == 0, result.output
        kind = "worktree" if key == lease.worktree_id else "lease"
        assert result.output.splitlines()[0] == f"{kind} {lease.worktree_id} is held"
        assert "\nheld by  runner-1\\x1b[2J\n" in result.output
        assert f"\nfence    {lease.fencing_number}\n" in result.output
        assert "(in 59 min)" in result.output
        [dependent] = section(result.output, "Dependents")
        assert session.id in dependent
        assert len(section(result.output, "Released by")) == 2


def test_explain__json(run: Run, fill: Fill) -> None:
    lock = fill(lambda store: Factories(store).lock())
    document = json.loads(run("--explain", lock.id, "--json").stdout)
    assert (document["kind"], document["id"], document["state"]) == ("lock", lock.id, "held")
    assert document["fencing_number"] == lock.fencing_number
    assert datetime.fromisoformat(document["until"]) == lock.expires_at
    assert datetime.fromisoformat(document["since"]) < datetime.now(UTC)


def test_explain__of_something_free_or_past(run: Run, fill: Fill) -> None:
    async def work(store: MetadataStore) -> Any:
        factories = Factories(store)
        return await factories.worktree(), await factories.lease(ttl=timedelta(milliseconds=1))

    worktree, lease = fill(work)
    free = run("--explain", worktree.id).output
    assert "\nheld by  nobody\nsince    -\nuntil    -\n" in free
    assert section(free, "Dependents") == ["nothing"]
    assert " s ago)\n" in run("--explain", lease.worktree_id).output


def test_explain__of_something_unknown(run: Run) -> None:
    for key in ("0190a5a4-7f62-7000-8000-000000000000", "0" * 32):
        result = run("--explain", key)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"metastore: error: the database has no row '{key}'\n"
    secret = "mst_ThisOneWasTypedByMistake"
    result = run("--explain", secret)
    assert result.exit_code == 1
    assert secret.lower() not in result.stderr.lower()


def test_explain__needs_the_schema_of_the_code(run: Run, path: Path) -> None:
    migrations.downgrade(urls.resolve(f"sqlite:///{path}"), "3")
    result = run("--explain", "0190a5a4-7f62-7000-8000-000000000000")
    assert result.exit_code == 1
    assert "metastore migrate upgrade" in result.stderr
