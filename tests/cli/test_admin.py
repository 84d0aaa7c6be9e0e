"""`metastore admin`: tokens from the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from metastore.cli import main
from metastore.cli._options import DURATION
from metastore.errors import TokenRejected
from metastore.repositories.auth_tokens import TOKEN_PATTERN
from metastore.store import MetadataStore
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from metastore.repositories.auth_tokens import AuthToken

    Run = Callable[..., Result]
    Terminal = Callable[..., tuple[int, str]]
    Created = dict[str, Any]

UNKNOWN = "0190a5a4-7f62-7000-8000-000000000000"


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/metadata.db"

    async def migrate() -> None:
        async with MetadataStore.open(url, migrate=True):
            pass

    asyncio.run(migrate())
    return url


@pytest.fixture
def run(url: str) -> Run:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["admin", *arguments, "--db", url])

    return run


@pytest.fixture
def terminal(url: str) -> Terminal:
    """Runs a command whose input is a terminal at which somebody types an answer."""

    def run(*arguments: str, answer: str) -> tuple[int, str]:
        ours, its = os.openpty()
        try:
            os.write(ours, f"{answer}\n".encode())
            done = subprocess.run(
                [sys.executable, "-m", "metastore", "admin", *arguments, "--db", url],
                stdin=its,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        finally:
            os.close(ours)
            os.close(its)
        return done.returncode, done.stdout

    return run


@pytest.fixture
def created(run: Run) -> Created:
    """A token made by `create-token`: its JSON document."""
    result = run("create-token", "ops", "--scope", "sessions:*", "--json")
    assert result.exit_code == 0, result.output
    document: Created = json.loads(result.stdout)
    return document


def verify(url: str, token: str, scope: str | None = None) -> AuthToken:
    async def verify() -> AuthToken:
        async with MetadataStore.open(url) as store:
            return await store.auth_tokens.verify(token, scope)

    return asyncio.run(verify())


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# bootstrap


def test_bootstrap__prints_the_first_admin_token_and_nothing_else(run: Run, url: str) -> None:
    result = run("bootstrap")
    assert result.exit_code == 0
    token = result.stdout.removesuffix("\n")
    assert re.fullmatch(TOKEN_PATTERN, token)
    assert token not in result.stderr
    assert "not shown again" in result.stderr
    assert verify(url, token, "any:thing").user_name == "admin"


def test_bootstrap__a_second_time_prints_no_secret(run: Run) -> None:
    token = run("bootstrap").stdout.strip()
    again = run("bootstrap")
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == "An admin token already exists; nothing was created.\n"
    assert token not in again.output


def test_bootstrap__json_says_whether_it_created_one(run: Run) -> None:
    first = json.loads(run("bootstrap", "--json").stdout)
    assert first["created"] is True
    assert first["record"]["scopes"] == ["*"]
    assert "token_hash" not in first["record"]
    again = run("bootstrap", "--json")
    assert json.loads(again.stdout) == {"created": False}
    assert again.exit_code == 0


def test_bootstrap__replaces_a_revoked_admin_token(run: Run) -> None:
    first = json.loads(run("bootstrap", "--json").stdout)
    assert run("revoke-token", first["record"]["id"], "--yes").exit_code == 0
    second = json.loads(run("bootstrap", "--json").stdout)
    assert second["created"] is True
    assert second["token"] != first["token"]


def test_bootstrap__of_processes_that_race_one_prints_a_token(url: str, run: Run) -> None:
    command = [sys.executable, "-m", "metastore", "admin", "bootstrap", "--db", url]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [racer.communicate(timeout=PATIENCE) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, answers
    [token] = [out.strip() for out, _ in answers if out]
    assert sum("nothing was created" in err for _, err in answers) == 3
    assert verify(url, token, "any:thing").user_name == "admin"
    assert len(json.loads(run("list-tokens", "--json").stdout)) == 1


# create-token


def test_create_token__prints_the_token_alone_on_stdout(run: Run, url: str) -> None:
    result = run(
        "create-token", "ops", "--scope", "sessions:read", "--scope", "events:*", "--ttl", "30d"
    )
    assert result.exit_code == 0
    token = result.stdout.removesuffix("\n")
    assert re.fullmatch(TOKEN_PATTERN, token)
    assert token not in result.stderr
    assert "sessions:read events:*" in result.stderr
    record = verify(url, token, "events:read")
    assert (record.user_name, record.name) == ("ops", "cli")
    assert record.scopes == ["sessions:read", "events:*"]
    assert record.expires_at == record.created_at + timedelta(days=30)


def test_create_token__user_may_be_an_option(run: Run, url: str) -> None:
    result = run("create-token", "--user", "ops", "--name", "nightly build")
    record = verify(url, result.stdout.strip())
    assert (record.user_name, record.name, record.expires_at) == ("ops", "nightly build", None)


def test_create_token__without_scopes_it_opens_nothing(run: Run, url: str) -> None:
    result = run("create-token", "ops")
    assert "scopes: none" in result.stderr
    token = result.stdout.strip()
    assert verify(url, token).scopes == []
    with pytest.raises(TokenRejected):
        verify(url, token, "sessions:read")


def test_create_token__json_carries_token_and_record(created: Created) -> None:
    assert re.fullmatch(TOKEN_PATTERN, created["token"])
    record = created["record"]
    assert record["user_name"] == "ops"
    assert record["token_prefix"] == created["token"][:12]
    assert record["scopes"] == ["sessions:*"]
    assert record["status"] == "active"
    assert "token_hash" not in record


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["ops", "--user", "ops"],
        ["ops", "--ttl", "soon"],
        ["ops", "--ttl", "30"],
    ],
)
def test_create_token__usage_errors_create_nothing(run: Run, arguments: list[str]) -> None:
    result = run("create-token", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(run("list-tokens", "--json").stdout) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [""],
        ["--user", ""],
        ["ops", "--name", ""],
        ["ops", "--scope", "Sessions"],
        ["ops", "--scope", ""],
        ["ops", "--ttl", "0s"],
        ["ops", "--ttl", "9999d"],
    ],
)
def test_create_token__refused_values_are_one_line_and_create_nothing(
    run: Run, arguments: list[str]
) -> None:
    result = run("create-token", *arguments)
    assert result.exit_code not in (0, 2)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(run("list-tokens", "--json").stdout) == []


# list-tokens


def test_list_tokens__goes_on_behind_the_first_page(run: Run, url: str) -> None:
    rows = [
        (f"00000000-0000-7000-8000-{n:012}", "ann" if n % 400 else "bob", f"{n:064x}")
        for n in range(1, 1_202)
    ]
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
        database.executemany(
            "INSERT INTO auth_tokens (id, user_name, name, token_prefix, token_hash, scopes)"
            " VALUES (?, ?, 'n', 'mst_', ?, '[]')",
            rows,
        )
    tokens = json.loads(run("list-tokens", "--json").stdout)
    assert [token["id"] for token in tokens] == [id_ for id_, *_ in rows]
    of_ann = json.loads(run("list-tokens", "--user", "ann", "--json").stdout)
    assert len(of_ann) == 1_198
    assert {token["user_name"] for token in of_ann} == {"ann"}


def test_list_tokens__shows_every_token_and_no_secret(run: Run, created: Created) -> None:
    other = json.loads(run("create-token", "dev", "--json").stdout)
    run("revoke-token", other["record"]["id"], "--yes")
    result = run("list-tokens")
    header, first, second = result.stdout.splitlines()
    assert header.split()[:2] == ["ID", "USER"]
    assert created["record"]["id"] in first
    assert "sessions:*" in first
    assert "active" in first
    assert other["record"]["id"] in second
    assert "revoked" in second
    for token in (created["token"], other["token"]):
        assert token[:12] in result.output
        assert token[12:] not in result.output


def test_list_tokens__of_one_user(run: Run, created: Created) -> None:
    run("create-token", "dev")
    tokens = json.loads(run("list-tokens", "--user", "ops", "--json").stdout)
    assert tokens == [created["record"]]


def test_list_tokens__json_leaves_token_and_hash_out(run: Run, created: Created) -> None:
    result = run("list-tokens", "--json")
    [token] = json.loads(result.stdout)
    assert token == created["record"]
    assert created["token"][12:] not in result.stdout
    assert re.search("[0-9a-f]{64}", result.stdout) is None


def test_list_tokens__none_is_no_error(run: Run) -> None:
    result = run("list-tokens")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "There are no tokens.\n"


def test_list_tokens__a_name_cannot_command_the_terminal(run: Run) -> None:
    run("create-token", "evil\x1b[2J\nfake", "--name", "a\rb")
    result = run("list-tokens")
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 2
    assert r"evil\x1b[2J\nfake" in result.stdout


# rotate-token


def test_rotate_token__prints_the_replacement_and_both_work(
    run: Run, url: str, created: Created
) -> None:
    result = run("rotate-token", created["record"]["id"], "--grace", "12h")
    assert result.exit_code == 0
    token = result.stdout.removesuffix("\n")
    assert re.fullmatch(TOKEN_PATTERN, token)
    assert created["record"]["id"] in result.stderr
    new = verify(url, token, "sessions:read")
    old = verify(url, created["token"], "sessions:read")
    assert old.replaced_by == new.id
    assert old.expires_at == new.created_at + timedelta(hours=12)


def test_rotate_token__grace_is_an_hour_unless_given(run: Run, created: Created) -> None:
    document = json.loads(run("rotate-token", created["record"]["id"], "--json").stdout)
    replaced = document["replaced"]
    assert replaced["id"] == created["record"]["id"]
    assert replaced["status"] == "replaced"
    assert moment(replaced["expires_at"]) - moment(document["record"]["created_at"]) == timedelta(
        hours=1
    )


def test_rotate_token__without_grace_the_old_one_ends(run: Run, url: str, created: Created) -> None:
    token = run("rotate-token", created["record"]["id"], "--grace", "0s").stdout.strip()
    assert verify(url, token).user_name == "ops"
    with pytest.raises(TokenRejected):
        verify(url, created["token"])


def test_rotate_token__a_second_time_is_one_line_of_error(run: Run, created: Created) -> None:
    run("rotate-token", created["record"]["id"])
    result = run("rotate-token", created["record"]["id"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "replaced" in result.stderr


# revoke-token


@pytest.mark.parametrize("answer", ["n", ""])
def test_revoke_token__asks_a_person_and_anything_but_yes_keeps_the_token(
    terminal: Terminal, url: str, created: Created, answer: str
) -> None:
    code, output = terminal("revoke-token", created["record"]["id"], answer=answer)
    assert code == 1
    assert created["token"][:12] in output
    assert created["token"][12:] not in output
    assert verify(url, created["token"]).user_name == "ops"


def test_revoke_token__asks_a_person_and_a_yes_ends_the_token(
    terminal: Terminal, url: str, created: Created
) -> None:
    code, output = terminal("revoke-token", created["record"]["id"], answer="y")
    assert (code, "was revoked at" in output) == (0, True)
    with pytest.raises(TokenRejected):
        verify(url, created["token"])


def test_revoke_token__where_nobody_can_be_asked_it_wants_a_yes(
    run: Run, url: str, created: Created
) -> None:
    result = run("revoke-token", created["record"]["id"])
    assert result.exit_code == 1
    assert "--yes" in result.stderr
    assert verify(url, created["token"]).user_name == "ops"


def test_revoke_token__with_yes_it_ends_the_token_unasked(
    run: Run, url: str, created: Created
) -> None:
    result = run("revoke-token", created["record"]["id"], "--yes")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "was revoked at" in result.stderr
    with pytest.raises(TokenRejected):
        verify(url, created["token"])


def test_revoke_token__repeated_it_asks_nothing_and_keeps_the_first_time(
    run: Run, created: Created
) -> None:
    first = json.loads(run("revoke-token", created["record"]["id"], "--yes", "--json").stdout)
    again = run("revoke-token", created["record"]["id"], "--json")
    assert again.exit_code == 0
    assert first["status"] == "revoked"
    assert json.loads(again.stdout) == first


@pytest.mark.parametrize("command", ["rotate-token", "revoke-token"])
@pytest.mark.parametrize("token_id", [UNKNOWN, "nonsense"])
def test_unknown_id__is_one_line_of_error(run: Run, command: str, token_id: str) -> None:
    result = run(command, token_id)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_a_database_that_is_not_there__is_one_line_of_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["admin", "bootstrap", "--db", f"sqlite:///{tmp_path}/none.db"]
    )
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "metastore migrate upgrade" in result.stderr
    assert list(tmp_path.iterdir()) == []


# Durations


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("30d", timedelta(days=30)),
        ("12h", timedelta(hours=12)),
        ("15m", timedelta(minutes=15)),
        ("30s", timedelta(seconds=30)),
        ("0s", timedelta(0)),
        ("90m", timedelta(hours=1, minutes=30)),
        ("1d12h", timedelta(days=1, hours=12)),
        ("1d 12h 15m 30s", timedelta(days=1, hours=12, minutes=15, seconds=30)),
        (" 2h 5s ", timedelta(hours=2, seconds=5)),
    ],
)
def test_duration__is_the_sum_of_its_parts(text: str, span: timedelta) -> None:
    assert DURATION.convert(text, None, None) == span


@pytest.mark.parametrize(
    "text",
    ["", " ", "30", "d", "1.5h", "-1h", "1h 1d", "1h1h", "1w", "1 d", "1D", "٣d", "9" * 30 + "d"],
)
def test_duration__refuses_anything_else(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)
