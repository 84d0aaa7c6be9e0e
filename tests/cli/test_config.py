"""`metastore config`: settings and secrets from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from metastore.cli import main
from metastore.repositories.configurations import HIDDEN
from metastore.secrets import KEY_FILE_VARIABLE, KEYS_VARIABLE, keyring
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]

CANARY = "canary-91bd-never-to-be-seen"


@pytest.fixture
def run(store_url: str) -> Run:
    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, ["config", *arguments, "--db", store_url], input=stdin)

    return run


@pytest.fixture(autouse=True)
def secret_key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    key = CliRunner().invoke(main, ["config", "generate-key"]).stdout.strip()
    monkeypatch.setenv(KEYS_VARIABLE, key)
    return key


def test_set__and_get_a_value(run: Run) -> None:
    assert run("set", "level", "info", "--description", "how much is logged").exit_code == 0
    assert run("get", "level").stdout == "info\n"
    document = json.loads(run("get", "level", "--json").stdout)
    assert (document["value_type"], document["version"]) == ("string", 1)
    assert run("set", "days", "30", "--type", "integer").exit_code == 0
    listed = json.loads(run("list", "--json").stdout)
    assert [(row["key"], row["value"]) for row in listed] == [("days", "30"), ("level", "info")]
    assert "how much is logged" in run("list").stdout
    assert run("unset", "days").exit_code == 0
    assert run("get", "days").exit_code == 1


def test_set__compares_the_version(run: Run) -> None:
    assert run("set", "key", "1", "--if-version", "0").exit_code == 0
    refused = run("set", "key", "2", "--if-version", "0")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
    assert run("set", "key", "2", "--if-version", "1").exit_code == 0


def test_set__refuses_a_value_of_another_type(run: Run) -> None:
    for value in ("x", "1.5", "true"):
        refused = run("set", "key", value, "--type", "integer")
        assert refused.exit_code != 0
    assert run("get", "key").exit_code == 1


def test_set__a_secret_comes_from_standard_input_and_is_shown_by_reveal_only(run: Run) -> None:
    done = run("set", "key", "--secret", "--json", stdin=f"{CANARY}\n")
    assert done.exit_code == 0, done.output
    shown = [
        done,
        run("get", "key"),
        run("get", "key", "--json"),
        run("list"),
        run("list", "--json"),
        run("dump"),
        run("dump", "--format", "json"),
        run("rotate-keys", "--json"),
    ]
    assert [result.exit_code for result in shown] == [0] * len(shown)
    assert CANARY not in "".join(result.output for result in shown)
    assert shown[1].stdout == f"{HIDDEN}\n"
    assert run("reveal", "key").stdout == f"{CANARY}\n"


def test_set__a_secret_is_no_argument(run: Run) -> None:
    refused = run("set", "key", CANARY, "--secret")
    assert refused.exit_code == 2
    assert CANARY not in refused.output
    assert run("get", "key").exit_code == 1


def test_set__a_refused_secret_is_not_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("integer", "json", "boolean"):
        refused = run("set", "key", "--secret", "--type", kind, stdin=CANARY)
        assert refused.exit_code != 0
        assert CANARY not in refused.output + repr(refused.exception)
    monkeypatch.delenv(KEYS_VARIABLE)
    refused = run("set", "key", "--secret", stdin=CANARY)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
    assert KEYS_VARIABLE in refused.stderr
    assert CANARY not in refused.output
    assert run("get", "key").exit_code == 1


def test_set__at_a_terminal_a_secret_is_asked_for_and_not_echoed(store_url: str, run: Run) -> None:
    ours, its = os.openpty()
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "metastore",
                "config",
                "set",
                "k",
                "--secret",
                "--db",
                store_url,
            ],
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
        os.close(its)
        seen = b""
        for prompt in (b"Value of k: ", b"confirmation: "):
            while not seen.endswith(prompt):
                seen += os.read(ours, 1)
            os.write(ours, f"{CANARY}\n".encode())
        assert process.wait(timeout=PATIENCE) == 0
    finally:
        os.close(ours)
    assert CANARY.encode() not in seen
    assert run("reveal", "k").stdout == f"{CANARY}\n"


def test_rotate_keys__leaves_the_old_key_without_use(
    run: Run, secret_key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run("set", "key", "--secret", stdin=CANARY)
    new = run_generate()
    file = tmp_path / "keys"
    file.write_text(f"{new}\n{secret_key}\n")
    file.chmod(0o600)
    monkeypatch.delenv(KEYS_VARIABLE)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(file))
    assert json.loads(run("rotate-keys", "--json").stdout) == {"rotated": 1}
    file.write_text(f"{new}\n")
    assert run("reveal", "key").stdout == f"{CANARY}\n"
    file.chmod(0o644)
    assert "chmod 600" in run("reveal", "key").stderr


def run_generate() -> str:
    result = CliRunner().invoke(main, ["config", "generate-key"])
    assert result.exit_code == 0
    key = result.stdout.strip()
    assert keyring({KEYS_VARIABLE: key}).newest
    return key


def test_load__takes_what_dump_prints(run: Run, tmp_path: Path) -> None:
    run("set", "level", "info")
    run("set", "days", "30", "--type", "integer")
    for form in ("toml", "json"):
        file = tmp_path / f"settings.{form}"
        file.write_text(run("dump", "--format", form).stdout)
        run("set", "days", "31", "--type", "integer")
        assert json.loads(run("load", str(file), "--json").stdout) == {"changed": 1}
        assert run("get", "days").stdout == "30\n"
    refused = run("load", "-", stdin="days = ")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
