"""Whatever text is stored, no command prints what a terminal would obey."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import pytest
from click.testing import CliRunner

from metastore import MetadataStore, cli
from metastore.cli import main
from metastore.testing import Factories
from metastore.testing.template import write_template

if TYPE_CHECKING:
    from collections.abc import Iterator

ESCAPES = {
    "C0": "\x1b]0;title\x07\x1b[2J\x08\r",
    "DEL": "\x7f",
    "C1": "\x9b31m\x85\x9d",
    "bidi": "\u202e\u2066\u200f\u2069",
    "separators": "\u2028\u2029",
    "tags": "\U000e0001\U000e0041",
}
HOSTILE = f"a{''.join(ESCAPES.values())}z"


class Stored(NamedTuple):
    """A database whose every text is hostile, and ids to ask for."""

    path: Path
    ids: dict[str, str]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    monkeypatch.setenv("METASTORE_SECRET_KEYS", "ab" * 32)
    path = tmp_path / "metadata.db"
    write_template(path)

    async def fill() -> dict[str, str]:
        async with MetadataStore.open(f"sqlite:///{path}") as store:
            make = Factories(store)
            token = await make.token("a:b", user_name=HOSTILE, name=HOSTILE)
            repository = await make.repository(name=HOSTILE, remote_url=HOSTILE)
            worktree = await make.worktree(repository_id=repository.id, path=f"/{HOSTILE}")
            await make.lease(worktree, owner=HOSTILE)
            session = await make.session(project_path=f"/{HOSTILE}", worktree_id=worktree.id)
            lock = await make.lock(session_id=session.id)
            command = await make.command(session_id=session.id, argv=[HOSTILE])
            await make.event(session_id=session.id, message=HOSTILE)
            job = await make.job(task=HOSTILE)
            await store.cost_entries.record(
                job.id,
                request_id=HOSTILE,
                provider=HOSTILE,
                model=HOSTILE,
                tokens_in=1,
                tokens_out=1,
                cost_usd=1,
            )
            await store.configurations.set(HOSTILE, HOSTILE, description=HOSTILE)
            await store.configurations.set("json", {HOSTILE: [HOSTILE]})
            await store.configurations.set("secret", HOSTILE, is_secret=True)
            await make.claim(owner=HOSTILE)
            return {
                "token": token.record.id,
                "repository": repository.id,
                "worktree": worktree.id,
                "session": session.id,
                "lock": lock.id,
                "project": lock.project_id,
                "command": command.id,
            }

    ids = asyncio.run(fill())
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        # By hand, what the store would refuse.
        connection.execute("UPDATE _yoyo_log SET username = ?, hostname = ?", (HOSTILE, HOSTILE))
        connection.execute(f'CREATE TABLE "{HOSTILE}" ("{HOSTILE}")')
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("UPDATE events SET message = 'other', event_type = ?", (HOSTILE,))
    return Stored(path, ids)


def commands(stored: Stored) -> Iterator[list[str]]:
    """Yield calls of every command there is, with stored text in what it prints or asks."""
    yield ["migrate", "status"]
    yield ["migrate", "history"]
    yield ["migrate", "verify"]
    yield ["migrate", "plan"]
    yield ["migrate", "upgrade"]
    yield ["migrate", "upgrade", HOSTILE]
    yield ["migrate", "downgrade", HOSTILE]
    yield ["migrate", "downgrade", "-1"]
    yield ["admin", "list-tokens"]
    yield ["admin", "list-tokens", "--user", HOSTILE]
    yield ["admin", "create-token", HOSTILE, "--name", HOSTILE]
    yield ["admin", "create-token", "ann", "--scope", HOSTILE]
    yield ["admin", "rotate-token", stored.ids["token"]]
    yield ["admin", "rotate-token", HOSTILE]
    yield ["admin", "revoke-token", stored.ids["token"]]
    yield ["admin", "revoke-token", stored.ids["token"], "--yes"]
    yield ["admin", "bootstrap"]
    yield ["config", "get", HOSTILE]
    yield ["config", "get", "json"]
    yield ["config", "get", HOSTILE + "?"]
    yield ["config", "list"]
    yield ["config", "dump"]
    yield ["config", "dump", "--format", "json"]
    yield ["config", "set", HOSTILE, HOSTILE]
    yield ["config", "set", HOSTILE, "7", "--if-version", "9"]
    yield ["config", "unset", HOSTILE + "?"]
    yield ["config", "reveal", HOSTILE + "?"]
    yield ["config", "load", str(stored.path.with_name("document.toml"))]
    yield ["config", "rotate-keys"]
    yield ["config", "generate-key"]
    yield ["costs", "--by", "provider"]
    yield ["audit", "verify"]
    yield ["audit", "verify", "--checkpoint", HOSTILE]
    yield ["audit", "checkpoint"]
    yield ["doctor"]
    yield ["doctor", "--integrity", "--audit"]
    for id_ in (*stored.ids.values(), HOSTILE):
        yield ["doctor", "--explain", id_]


ELSEWHERE = {
    ("sql",): "prints what is installed, and opens no database",
    ("demo",): "prints what it made itself",
    ("audit", "keygen"): "prints the key that it made",
    ("migrate", "new"): "names a file after its argument, in which only a to z and 0 to 9 are left",
    ("config", "reveal"): "hands a secret to a program as it is; see below for terminals",
}


def names(group: click.Group, *before: str) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from names(command, *before, name)
        else:
            yield (*before, name)


def obeyed(text: str) -> set[str]:
    return {it for it in text if not it.isprintable()} - {"\n"}


def test_escapes__every_command_is_walked(stored: Stored) -> None:
    called = {tuple(call) for call in commands(stored)}
    for name in names(main):
        assert name in ELSEWHERE or any(call[: len(name)] == name for call in called), name


def test_escapes__are_in_nothing_that_is_printed(stored: Stored) -> None:
    document = {HOSTILE + "!": {"value": HOSTILE, "nonsense": HOSTILE}}
    stored.path.with_name("document.toml").write_text(json.dumps(document))
    printed = ""
    for call in commands(stored):
        for json_option in ([], ["--json"]):
            result = CliRunner().invoke(
                main, [*call, *json_option, "--db", f"sqlite:///{stored.path}"]
            )
            if json_option and "No such option" in result.output:
                continue
            assert obeyed(result.output) == set(), f"{call}: {result.output!r}"
            assert result.exception is None or isinstance(result.exception, SystemExit), call
            printed += result.output
    # Each was there to be printed.
    for escape in "".join(ESCAPES.values()):
        assert escape.encode("unicode_escape").decode() in printed
        if ord(escape) > 0x7F:
            assert json.dumps(escape).strip('"') in printed


def invoke(stored: Stored, *call: str) -> str:
    result = CliRunner().invoke(main, [*call, "--db", f"sqlite:///{stored.path}"])
    assert result.exit_code == 0, result.output
    # As it is: `stdout` takes a carriage return for the end of a line.
    return result.stdout_bytes.decode()


def test_json__means_what_is_stored(stored: Stored) -> None:
    row: dict[str, Any] = json.loads(invoke(stored, "config", "get", HOSTILE, "--json"))
    assert (row["key"], row["value"], row["description"]) == (HOSTILE, HOSTILE, HOSTILE)
    for load, form in ((json.loads, "json"), (tomllib.loads, "toml")):
        document: Any = load(invoke(stored, "config", "dump", "--format", form))
        assert document[HOSTILE]["value"] == HOSTILE
    tokens = json.loads(invoke(stored, "admin", "list-tokens", "--json"))
    assert HOSTILE in {token["user_name"] for token in tokens}


def test_dump__is_loaded_again_as_it_was(stored: Stored, tmp_path: Path) -> None:
    for form in ("json", "toml"):
        path = tmp_path / f"dumped.{form}"
        path.write_text(invoke(stored, "config", "dump", "--format", form))
        assert json.loads(invoke(stored, "config", "load", str(path), "--json")) == {"changed": 0}


def test_value__of_several_lines_is_printed_in_lines(stored: Stored) -> None:
    invoke(stored, "config", "set", "lines", "one\n\ttwo\x1b[31m")
    assert invoke(stored, "config", "get", "lines") == "one\n\ttwo\\x1b[31m\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_reveal__escapes_for_terminals_and_is_exact_for_programs(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr("metastore.cli.config._is_watched", lambda: is_terminal)
    printed = invoke(stored, "config", "reveal", "secret")
    assert printed == (HOSTILE if not is_terminal else cli.printable(HOSTILE, keep="\n\t")) + "\n"
    assert bool(obeyed(printed)) != is_terminal


def test_commands__print_through_what_escapes() -> None:
    for module in Path(cli.__file__).parent.glob("*.py"):
        if module.stem not in ("__init__", "demo"):
            unescaped = [
                line
                for line in module.read_text().splitlines()
                if "click.echo(" in line and "printable(" not in line
            ]
            assert unescaped == EXACT.get(module.stem, []), module


EXACT = {
    "config": ["        click.echo(text, color=True)"],
    "migrate": [
        '    click.echo(migrations.plan(url, revision) or "-- nothing to apply\\n", nl=False)'
    ],
}
"""A secret for a program, and the SQL of the package's own files."""


@pytest.mark.parametrize("table", ["worktrees", "project_locks", "tasks", "_yoyo_migration"])
def test_doctor__does_not_read_a_view_without_end(tmp_path: Path, table: str) -> None:
    path = tmp_path / "metadata.db"
    write_template(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
        connection.execute(f"DROP TABLE {table}")
        listed = ", ".join(f"x AS {column}" for column in columns)
        connection.execute(
            f"CREATE VIEW {table} AS WITH RECURSIVE endless (x) AS"
            f" (SELECT 1 UNION ALL SELECT x + 1 FROM endless) SELECT {listed} FROM endless"
        )
    for call in (["doctor"], ["doctor", "--integrity", "--audit"], ["config", "list"]):
        result = CliRunner().invoke(main, [*call, "--db", f"sqlite:///{path}"])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        if table != "_yoyo_migration":
            assert f"{table}: is a view where a table belongs" in result.output
