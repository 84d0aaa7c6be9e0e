"""A canary in every field that holds a secret, looked for in every kind of output."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
import math
import os
import pickle
import sqlite3
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import rich.console
import rich.traceback
from click.testing import CliRunner

from metastore import (
    InvalidValue,
    MetadataStore,
    MetastoreError,
    Secret,
    SecretKeyUnavailable,
    SecretRejected,
    TokenRejected,
    clean_environment,
)
from metastore.cli import main
from metastore.secrets import KEY_FILE_VARIABLE, KEYS_VARIABLE, generate_key, keyring

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent.parent
CANARY = "canary-93b1-never-to-be-seen"


@dataclass
class Cage:
    """What is secret in a scene, where no frame has it in a variable of its own."""

    keys: list[str] = field(default_factory=list, repr=False)
    tokens: list[str] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        return "<Cage>"

    @property
    def canaries(self) -> list[str]:
        return [CANARY, *self.keys, *self.tokens]


CAGE = Cage()


@pytest.fixture(autouse=True)
def cage(monkeypatch: pytest.MonkeyPatch) -> None:
    CAGE.keys[:] = [generate_key(), generate_key(), f"{CANARY}-malformed-key"]
    CAGE.tokens.clear()
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    monkeypatch.setenv(KEYS_VARIABLE, CAGE.keys[0])


class Shown:
    """All that was shown, and how often a canary was in it."""

    def __init__(self) -> None:
        self.size = 0
        self.places = 0

    def look(self, text: str | bytes, where: str = "") -> None:
        content = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
        self.size += len(content)
        self.places += 1
        for canary in CAGE.canaries:
            assert canary.encode() not in content, f"a canary is in {where}"

    def look_at_error(self, error: BaseException) -> None:
        """Look at all that tools show of an error: text, attributes, frames with variables."""
        self.look(repr(error) + str(error) + repr(error.args) + repr(vars(error)), "an error")
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.look("".join(shown.format()), "a traceback")
        console = rich.console.Console(file=io.StringIO(), width=400)
        console.print(
            rich.traceback.Traceback.from_exception(
                type(error),
                error,
                error.__traceback__,
                show_locals=True,
                locals_max_string=10_000,
                locals_max_length=10_000,
            )
        )
        assert isinstance(console.file, io.StringIO)
        self.look(console.file.getvalue(), "a traceback by rich")
        # What is not printed, but is there for whoever walks the chain.
        seen: BaseException | None = error
        while seen is not None:
            frames = traceback.walk_tb(seen.__traceback__)
            self.look("".join(repr(frame.f_locals) for frame, _ in frames), "a frame")
            seen = seen.__context__


def _set(value: Callable[[], Any], **options: Any) -> Any:
    async def scene(store: MetadataStore, _: pytest.MonkeyPatch) -> object:
        arguments: dict[str, Any] = {"key": "api", "is_secret": True} | options
        return await store.configurations.set(value=value(), **arguments)

    return scene


def _environment(**settings: Callable[[], str]) -> Any:
    """Return scenes that need keys, in an environment that gives none that are good."""

    async def scene(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> object:
        monkeypatch.delenv(KEYS_VARIABLE)
        for name, value in settings.items():
            monkeypatch.setenv(name, value())
        return await store.configurations.set("new", CANARY, is_secret=True)

    return scene


async def _given_environment(_: MetadataStore, __: pytest.MonkeyPatch) -> object:
    return keyring({KEYS_VARIABLE: CAGE.keys[2]})


async def _without_cryptography(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    return await store.configurations.set("new", CANARY, is_secret=True)


async def _reveal_without_cryptography(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> object:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    return await store.configurations.reveal("api")


async def _reveal_of_another_type(store: MetadataStore, _: pytest.MonkeyPatch) -> object:
    configurations: Any = store.configurations
    row = await configurations._find(configurations._sql.get_configuration(key="api"))
    from metastore.repositories.configurations import ConfigurationType, _place

    kind = ConfigurationType.INTEGER
    place = _place("api", row.version, kind, row.incarnation)
    await configurations._run(
        configurations._sql.update_configuration(
            key="api",
            value=keyring().seal(Secret(CANARY), (*place[:2], "2", *place[3:])),
            value_type=kind,
            description=None,
            is_secret=True,
            version=2,
            secret_key_id=row.secret_key_id,
            incarnation=row.incarnation,
            known_key_id=row.secret_key_id,
            updated_at=row.updated_at,
        )
    )
    return await store.configurations.reveal("api")


async def _closed(store: MetadataStore, _: pytest.MonkeyPatch) -> object:
    await store.close()
    return await store.configurations.set("api", CANARY, is_secret=True)


async def _closed_verify(store: MetadataStore, _: pytest.MonkeyPatch) -> object:
    await store.close()
    return await store.auth_tokens.verify(CAGE.tokens[0])


async def _cancelled(store: MetadataStore, _: pytest.MonkeyPatch) -> object:
    async with asyncio.timeout(0):
        return await store.configurations.set("api", CANARY, is_secret=True)


async def _cancelled_reveal(store: MetadataStore, _: pytest.MonkeyPatch) -> object:
    async with asyncio.timeout(0):
        return await store.configurations.reveal("api")


async def _inside_a_transaction(store: MetadataStore, _: pytest.MonkeyPatch) -> object:
    async with store.transaction():
        return await store.configurations.set("api", CANARY, is_secret=True)


async def _rotation(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv(KEYS_VARIABLE, CAGE.keys[1])
    return await store.configurations.rotate_keys()


async def _reveal_under_another_key(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> object:
    monkeypatch.setenv(KEYS_VARIABLE, CAGE.keys[1])
    return await store.configurations.reveal("api")


def _key_file(content: Callable[[], str], mode: int) -> Any:
    async def scene(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> object:
        path = Path(os.environ["CANARY_FOLDER"]) / "keys"
        path.write_text(content())
        path.chmod(mode)
        monkeypatch.delenv(KEYS_VARIABLE)
        monkeypatch.setenv(KEY_FILE_VARIABLE, str(path))
        return await store.configurations.reveal("api")

    return scene


def _verify(token: Callable[[], Any], **options: Any) -> Any:
    async def scene(store: MetadataStore, _: pytest.MonkeyPatch) -> object:
        return await store.auth_tokens.verify(token(), **options)

    return scene


SCENES: dict[str, tuple[type[BaseException], Any]] = {
    # Values.
    "NUL in a secret": (InvalidValue, _set(lambda: f"{CANARY}\0")),
    "surrogate in a secret": (InvalidValue, _set(lambda: f"{CANARY}\udc80")),
    "an integer that is none": (InvalidValue, _set(lambda: CANARY, value_type="integer")),
    "a float that is none": (InvalidValue, _set(lambda: CANARY, value_type="float")),
    "a boolean that is none": (InvalidValue, _set(lambda: CANARY, value_type="boolean")),
    "an unknown type": (InvalidValue, _set(lambda: CANARY, value_type="text")),
    "surrogate in JSON": (InvalidValue, _set(lambda: {"a": [f"{CANARY}\udc80"]})),
    "NaN in JSON": (InvalidValue, _set(lambda: {CANARY: math.nan})),
    "a set in JSON": (InvalidValue, _set(lambda: {CANARY: {CANARY}})),
    "an object": (InvalidValue, _set(lambda: Secret({CANARY}))),
    "a wrapped NUL": (InvalidValue, _set(lambda: Secret(f"{CANARY}\0"))),
    "a Secret for a plain value": (InvalidValue, _set(lambda: Secret(CANARY), is_secret=False)),
    "a plain value for a secret": (InvalidValue, _set(lambda: CANARY, is_secret=False)),
    "a malformed key name": (InvalidValue, _set(lambda: CANARY, key="")),
    "a malformed description": (InvalidValue, _set(lambda: CANARY, description=b"x")),
    "a version that moved": (MetastoreError, _set(lambda: CANARY, if_version=7)),
    # The store.
    "a closed store": (MetastoreError, _closed),
    "a transaction around it": (MetastoreError, _inside_a_transaction),
    "cancelled while it is set": (TimeoutError, _cancelled),
    "cancelled while it is revealed": (TimeoutError, _cancelled_reveal),
    # Keys.
    "no key": (SecretKeyUnavailable, _environment()),
    "a malformed key": (
        SecretKeyUnavailable,
        _environment(METASTORE_SECRET_KEYS=lambda: CAGE.keys[2]),
    ),
    "a malformed key in an environment that is given": (SecretKeyUnavailable, _given_environment),
    "one malformed key among good ones": (
        SecretKeyUnavailable,
        _environment(METASTORE_SECRET_KEYS=lambda: ",".join(CAGE.keys)),
    ),
    "keys in both variables": (
        SecretKeyUnavailable,
        _environment(
            METASTORE_SECRET_KEYS=lambda: CAGE.keys[0],
            METASTORE_SECRET_KEY_FILE=lambda: CAGE.keys[1],
        ),
    ),
    "a key for the path of a file": (
        SecretKeyUnavailable,
        _environment(METASTORE_SECRET_KEY_FILE=lambda: CAGE.keys[1]),
    ),
    "a malformed key for the path of a file": (
        SecretKeyUnavailable,
        _environment(METASTORE_SECRET_KEY_FILE=lambda: CAGE.keys[2]),
    ),
    "a long text for the path of a file": (
        SecretKeyUnavailable,
        _environment(METASTORE_SECRET_KEY_FILE=lambda: CANARY * 500),
    ),
    "a file of malformed keys": (SecretKeyUnavailable, _key_file(lambda: CAGE.keys[2], 0o600)),
    "a file that others may read": (SecretKeyUnavailable, _key_file(lambda: CAGE.keys[0], 0o644)),
    "a file with another key": (SecretKeyUnavailable, _key_file(lambda: CAGE.keys[1], 0o600)),
    "a stranger's key": (
        SecretKeyUnavailable,
        _environment(METASTORE_SECRET_KEYS=lambda: CAGE.keys[1]),
    ),
    "sealing without cryptography": (SecretKeyUnavailable, _without_cryptography),
    "opening without cryptography": (SecretKeyUnavailable, _reveal_without_cryptography),
    "opening under another key": (SecretKeyUnavailable, _reveal_under_another_key),
    "a rotation that lacks a key": (SecretKeyUnavailable, _rotation),
    "a text of another type": (SecretRejected, _reveal_of_another_type),
    # Tokens.
    "a token out of scope": (
        TokenRejected,
        _verify(lambda: CAGE.tokens[0], scope="sessions:write"),
    ),
    "a token and a malformed scope": (
        InvalidValue,
        _verify(lambda: CAGE.tokens[0], scope="not a scope"),
    ),
    "a token that was revoked": (TokenRejected, _verify(lambda: CAGE.tokens[1])),
    "a revoked token, wrapped": (TokenRejected, _verify(lambda: Secret(CAGE.tokens[1]))),
    "a token with a typing error": (TokenRejected, _verify(lambda: CAGE.tokens[2])),
    "a closed store and a token": (MetastoreError, _closed_verify),
}


async def _prepare(store: MetadataStore) -> None:
    await store.configurations.set("api", Secret(CANARY), is_secret=True)
    await store.configurations.set("plain", 1)
    for name in ("live", "revoked"):
        issued = await store.auth_tokens.issue(user_name="u", name=name, scopes=["sessions:read"])
        CAGE.tokens.append(issued.token)
    await store.auth_tokens.revoke(issued.record.id)
    CAGE.tokens.append(CAGE.tokens[0][:-1] + ("a" if CAGE.tokens[0][-1] != "a" else "b"))


async def _error_of(
    scene: Any, store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> BaseException:
    try:
        await scene(store, monkeypatch)
    except (Exception, asyncio.CancelledError) as error:
        return error
    raise AssertionError("there was no error")


@pytest.mark.parametrize("name", SCENES)
async def test_canary__is_in_no_traceback_with_locals(
    store: MetadataStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
    name: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CANARY_FOLDER", str(tmp_path))
    await _prepare(store)
    expected, scene = SCENES[name]
    error = await _error_of(scene, store, monkeypatch)
    assert isinstance(error, expected)
    shown = Shown()
    shown.look_at_error(error)
    shown.look(caplog.text, "the log")
    assert shown.size > 1_000
    record_property("figures", f"{shown.size / 1e6:.3f} MB, 0 found")


async def test_canary__is_in_nothing_that_is_printed(store: MetadataStore) -> None:
    await _prepare(store)
    issued = await store.auth_tokens.issue(user_name="u", name="n", scopes=["*"])
    CAGE.tokens.append(issued.token)
    row = await store.configurations.get("api")
    page = await store.configurations.list()
    verified = await store.auth_tokens.verify(Secret(CAGE.tokens[0]), scope="sessions:read")
    shown = Shown()
    holders: list[Any] = [
        Secret(CANARY),
        Secret({"a": CANARY}),
        {"deep": [Secret(CANARY)]},
        keyring(),
        issued,
        row,
        page,
        verified,
    ]
    for it in holders:
        shown.look(f"{it} {it!r} {it!s} {it!a}", "what is printed")
        console = rich.console.Console(file=io.StringIO(), width=400)
        console.print(it)
        assert isinstance(console.file, io.StringIO)
        shown.look(console.file.getvalue(), "what rich prints")
    for rows in (row, page.items, verified):
        shown.look(pickle.dumps(rows) + msgspec.json.encode(rows), "a row")
    for it in (Secret(CANARY), keyring(), issued):
        for work in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode):
            with pytest.raises(TypeError) as refused:
                work(it)
            shown.look(repr(refused.value), "a refusal")
    assert Secret(CANARY) != Secret(CANARY)
    assert Secret(CANARY).reveal() == CANARY
    assert shown.places > 30


async def test_canary__is_not_in_the_output_of_commands(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MetadataStore.open(store_url) as store:
        await _prepare(store)
    shown = Shown()

    def run(*arguments: str, given: str = "", code: int = 1) -> None:
        result = CliRunner().invoke(main, [*arguments, "--db", store_url], given)
        assert result.exit_code == code, result.output
        shown.look(result.output, " ".join(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            shown.look_at_error(result.exception)

    def in_thread() -> None:
        run("config", "set", "new", "--secret", given=CANARY, code=0)
        run("config", "set", "new", "--secret", "--type", "integer", given=CANARY, code=2)
        run("config", "set", "new", "--secret", given=f"{CANARY}\0")
        run("config", "set", "api", given=CANARY)
        run("config", "list", "--json", code=0)
        run("config", "get", "api", code=0)
        run("config", "dump", code=0)
        monkeypatch.setenv(KEYS_VARIABLE, ",".join(CAGE.keys))
        run("config", "reveal", "api")
        monkeypatch.setenv(KEYS_VARIABLE, CAGE.keys[1])
        run("config", "reveal", "api")
        run("config", "rotate-keys")
        run("config", "set", "other", "--secret", given=CANARY)
        run("admin", "list-tokens", code=0)

    await asyncio.to_thread(in_thread)


# Other programs


def test_clean_environment__has_none_of_the_store_s_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METASTORE_DB_URL", "postgresql://u:secret@host/db")
    monkeypatch.setenv("MY_METASTORE_", "kept")
    inherited = clean_environment()
    assert inherited["MY_METASTORE_"] == "kept"
    assert inherited["PATH"] == os.environ["PATH"]
    assert not [name for name in inherited if name.startswith("METASTORE_")]
    assert clean_environment({KEYS_VARIABLE: "x", "A": "b", "METASTORE_": ""}) == {"A": "b"}
    assert KEYS_VARIABLE in os.environ


def test_canary__is_not_in_what_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examples run commands that print their whole environment."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    repository = tmp_path / "repository"
    author = ("-c", "user.name=n", "-c", "user.email=e")
    commit = ("commit", "--quiet", "--allow-empty", "--message", "one")
    subprocess.run(["git", "init", "--quiet", repository], check=True)
    subprocess.run(["git", "-C", repository, *author, *commit], check=True)
    runs, database = tmp_path / "new" / "runs", tmp_path / "metadata.db"
    url = f"sqlite:///{database}"
    command = "env; echo $METASTORE_SECRET_KEYS; echo printed >&2; env > $ARTIFACTS/left"
    old_mask = os.umask(0)
    try:
        shell = ("--", "sh", "-c", command)
        for example, *arguments in (
            ("runner.py", "--repo", repository, "--folder", runs, "--commits", "1", *shell),
            ("orchestrator.py", "--workspace", tmp_path, "--", "env; echo printed"),
        ):
            program = [sys.executable, ROOT / "docs/examples" / example, "--db", url]
            subprocess.run([*map(str, (*program, *arguments))], check=True, capture_output=True)
    finally:
        os.umask(old_mask)
    shown = Shown()
    [session] = runs.iterdir()
    files = sorted(session.iterdir())
    assert [file.name for file in files] == ["left", "output.log"]
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        shown.look(file.read_bytes(), file.name)
        assert b"METASTORE_" not in file.read_bytes()
    for folder in (runs, session):
        assert folder.stat().st_mode & 0o777 == 0o700
    with sqlite3.connect(database) as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    assert dump.count("printed") >= 2
    shown.look(dump, "the database")
    assert "METASTORE_SECRET_KEYS=" not in dump


# Files


@pytest.mark.parametrize("way", ["deleted", "overwritten", "rotated", "deleted in a transaction"])
async def test_canary__is_not_in_the_files_of_an_open_store(
    store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    way: str,
) -> None:
    """What is searched for is the ciphertext: the key may be lost to someone later."""
    database = Path(store_url.removeprefix("sqlite:///"))
    copies = tmp_path / "copies"
    copies.mkdir()
    async with MetadataStore.open(store_url) as store:
        configurations: Any = store.configurations
        keys = [f"key {n}" for n in range(100)]
        await configurations.set("stays", "another secret", is_secret=True)
        await asyncio.gather(*(configurations.set(key, key * 9, is_secret=True) for key in keys))
        rows = await configurations._all(
            configurations._sql.list_secret_configurations(after_key="", limit=200)
        )
        kept = [row.value for row in rows if row.key == "stays"]
        gone = [row.value for row in rows if row.key != "stays"]
        if way == "deleted":
            for key in keys:
                await configurations.delete(key)
        elif way == "overwritten":
            for key in keys:
                await configurations.set(key, "new", is_secret=True)
        elif way == "rotated":
            monkeypatch.setenv(KEYS_VARIABLE, f"{CAGE.keys[1]},{CAGE.keys[0]}")
            assert await configurations.rotate_keys() == 101
            gone, kept = gone + kept, []
        else:
            async with store.transaction() as tx:
                for key in keys:
                    await tx.configurations.delete(key)
        # By another process: this one must not open the files while it is connected.
        files = [f"{database}{suffix}" for suffix in ("", "-wal", "-shm")]
        subprocess.run(["cp", *files, str(copies)], check=True)
    contents = [file.read_bytes() for file in sorted(copies.iterdir())]
    assert len(gone) >= 100
    # The middle of each: a tag or a nonce alone is no use to anyone.
    found = [value for value in gone if any(value[8:40].encode() in it for it in contents)]
    assert found == []
    # The search finds what is there.
    assert all(any(value[8:40].encode() in it for it in contents) for value in kept)
    record_property("figures", f"{len(gone)} {way}, {sum(map(len, contents))} bytes, 0 found")


async def test_canary__a_reader_in_the_way_does_not_fail_the_deletion(
    file_store: MetadataStore, store_url: str
) -> None:
    store = file_store
    await store.configurations.set("api", CANARY, is_secret=True)
    await store.configurations.set("other", CANARY, is_secret=True)
    program = (
        "import sqlite3, sys\n"
        f"c = sqlite3.connect({store_url.removeprefix('sqlite:///')!r}, isolation_level=None)\n"
        "c.execute('BEGIN'); c.execute('SELECT count(*) FROM configurations').fetchone()\n"
        "print('reading', flush=True); sys.stdin.read()\n"
    )
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    assert await reader.stdout.readline() == b"reading\n"
    await store.configurations.delete("api")
    assert [row.key for row in (await store.configurations.list()).items] == ["other"]
    await reader.communicate(b"")
    await store.configurations.delete("other")
    wal = Path(f"{store_url.removeprefix('sqlite:///')}-wal")
    assert wal.stat().st_size < 8192
