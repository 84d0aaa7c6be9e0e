from __future__ import annotations

import asyncio
import base64
import json
import math
import pickle
import sqlite3
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from metastore import (
    InvalidValue,
    MetadataStore,
    NotFound,
    Secret,
    SecretKeyUnavailable,
    SecretRejected,
    StoreCorrupt,
    VersionConflict,
    migrations,
    urls,
)
from metastore.repositories.configurations import HIDDEN, ConfigurationTypeName
from metastore.secrets import KEY_FILE_VARIABLE, KEYS_VARIABLE, Keyring, generate_key, keyring

if TYPE_CHECKING:
    from pathlib import Path

    from metastore.testing import Clock

MINUTE = timedelta(minutes=1)
CANARY = "canary-7f3a-never-to-be-seen"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)


@pytest.fixture
def secret_key(monkeypatch: pytest.MonkeyPatch) -> str:
    key = generate_key()
    monkeypatch.setenv(KEYS_VARIABLE, key)
    return key


def database_of(url: str) -> sqlite3.Connection:
    return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)


# Values and their types


@pytest.mark.parametrize(
    ("value", "value_type", "text"),
    [
        ("", "string", ""),
        ("ä\n☃ 'quoted'", "string", "ä\n☃ 'quoted'"),
        (0, "integer", "0"),
        (-(1 << 63), "integer", str(-(1 << 63))),
        ((1 << 63) - 1, "integer", str((1 << 63) - 1)),
        (0.1, "float", "0.1"),
        (-1e300, "float", "-1e+300"),
        (True, "boolean", "true"),
        (False, "boolean", "false"),
        ({"a": [1, None, "x"]}, "json", '{"a":[1,null,"x"]}'),
        ([], "json", "[]"),
        (None, "json", "null"),
    ],
)
async def test_set__value_comes_back_with_its_type(
    store: MetadataStore, value: Any, value_type: str, text: str
) -> None:
    row = await store.configurations.set("key", value)
    assert (row.value_type, row.value, row.version) == (value_type, text, 1)
    assert await store.configurations.get("key") == row
    found = await store.configurations.value("key")
    assert (found, type(found)) == (value, type(value))
    with pytest.raises(InvalidValue):
        await store.configurations.reveal("key")


@pytest.mark.parametrize(
    ("value", "value_type"),
    [
        ("1", "integer"),
        (True, "integer"),
        (1, "boolean"),
        (1.5, "integer"),
        (1, "string"),
        ("x", "float"),
        (math.nan, None),
        (math.inf, "float"),
        (1 << 63, None),
        ("a\0b", None),
        ("\udc80", None),
        ({1: 2}, None),
        (object(), None),
        ("x", "text"),
        ("x", "STRING"),
    ],
)
async def test_set__refuses_what_is_not_of_the_type(
    store: MetadataStore, value: Any, value_type: Any
) -> None:
    with pytest.raises(InvalidValue) as refused:
        await store.configurations.set("key", value, value_type)
    assert refused.value.table == "configurations"
    with pytest.raises(NotFound):
        await store.configurations.get("key")


async def test_set__an_integer_is_a_float_where_one_is_asked_for(store: MetadataStore) -> None:
    await store.configurations.set("key", 3, "float")
    found = await store.configurations.value("key")
    assert (found, type(found)) == (3.0, float)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\0b"])
async def test_set__refuses_malformed_keys(store: MetadataStore, key: str) -> None:
    with pytest.raises(InvalidValue):
        await store.configurations.set(key, 1)


async def test_set__again_keeps_description_and_creation(
    store: MetadataStore, clock: Clock
) -> None:
    first = await store.configurations.set("key", 1, description="how many")
    clock.advance(MINUTE)
    second = await store.configurations.set("key", "many")
    assert (second.description, second.created_at) == ("how many", first.created_at)
    assert (second.version, second.value_type) == (2, "string")
    assert second.updated_at >= first.updated_at + MINUTE
    third = await store.configurations.set("key", "many", description="how many now")
    assert third.description == "how many now"


async def test_set__if_version_lets_one_of_many_writers_win(store: MetadataStore) -> None:
    row = await store.configurations.set("key", 0)
    results = await asyncio.gather(
        *(store.configurations.set("key", n, if_version=row.version) for n in range(1, 9)),
        return_exceptions=True,
    )
    lost = [result for result in results if isinstance(result, VersionConflict)]
    assert len(lost) == 7
    current = await store.configurations.get("key")
    assert current.version == 2
    assert all((error.expected, error.row) == (1, current) for error in lost)


async def test_set__if_version_zero_is_for_a_key_without_value(store: MetadataStore) -> None:
    await store.configurations.set("key", 1, if_version=0)
    with pytest.raises(VersionConflict):
        await store.configurations.set("key", 2, if_version=0)
    with pytest.raises(VersionConflict) as missing:
        await store.configurations.set("other", 2, if_version=3)
    assert missing.value.row is None


async def test_set__without_if_version_every_writer_gets_through(store: MetadataStore) -> None:
    rows = await asyncio.gather(*(store.configurations.set("key", n) for n in range(20)))
    assert sorted(row.version for row in rows) == list(range(1, 21))


async def test_set__in_a_transaction_is_undone_with_it(store: MetadataStore) -> None:
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.configurations.set("key", 1)
            assert await tx.configurations.value("key") == 1
            raise ZeroDivisionError
    with pytest.raises(NotFound):
        await store.configurations.value("key")


async def test_list__pages_by_key(store: MetadataStore) -> None:
    for key in ("c", "a", "b"):
        await store.configurations.set(key, key)
    first = await store.configurations.list(limit=2)
    assert [row.key for row in first.items] == ["a", "b"]
    last = await store.configurations.list(after=first.next, limit=2)
    assert ([row.key for row in last.items], last.next) == (["c"], None)


async def test_delete__forgets_the_key(store: MetadataStore) -> None:
    await store.configurations.set("key", 1)
    await store.configurations.delete("key")
    for verb in (
        store.configurations.delete,
        store.configurations.get,
        store.configurations.value,
        store.configurations.reveal,
    ):
        with pytest.raises(NotFound):
            await verb("key")


@pytest.mark.parametrize(
    ("constraint", "assignment"),
    [
        ("configurations_value_type_check", "value_type = 'text'"),
        ("configurations_is_secret_check", "is_secret = 2"),
        ("configurations_value_check", "value = 'x'"),
        ("configurations_value_check", "value = '1.0'"),
        ("configurations_value_check", "value_type = 'boolean'"),
        ("configurations_value_check", "value = '{', value_type = 'json'"),
        ("configurations_value_check", "value = 'inf', value_type = 'float'"),
        ("configurations_secret_key_id_check", "is_secret = 1"),
        ("configurations_secret_key_id_check", "secret_key_id = '0123456789abcdef'"),
        (
            "configurations_secret_key_id_check",
            "is_secret = 1, secret_key_id = '0123456789abcdef', value = 'plain text'",
        ),
        ("configurations_version_check", "version = 0"),
    ],
)
async def test_check__refuses_a_wrong_update_by_hand(
    file_store: MetadataStore, store_url: str, constraint: str, assignment: str
) -> None:
    await file_store.configurations.set("key", 1)
    await file_store.close()
    connection = database_of(store_url)
    with pytest.raises(sqlite3.IntegrityError, match=constraint):
        connection.execute(f"UPDATE configurations SET {assignment}")
    connection.close()


async def test_trigger__an_update_by_hand_is_another_version(
    file_store: MetadataStore, store_url: str
) -> None:
    before = await file_store.configurations.set("key", 1)
    await file_store.close()
    connection = database_of(store_url)
    connection.execute("UPDATE configurations SET value = '2'")
    connection.close()
    async with MetadataStore.open(store_url) as store:
        after = await store.configurations.get("key")
        assert (after.value, after.version) == ("2", before.version + 1)
        assert after.updated_at > before.updated_at


# Documents

DOCUMENT: dict[str, Any] = {
    "text": 'ä "q" \\ \n\r\t\x01\x7f',
    "number": -5,
    "real": 1e-7,
    "whole": 2.0,
    "flag": True,
    "deep": {"a": [None, 1, {"b": "c"}]},
    "nothing": None,
    "json text": "x",
    "dotted.key with 'quotes\"": 1,
}


@pytest.mark.parametrize("form", ["toml", "json"])
async def test_dump__loads_into_an_empty_store_as_it_was(
    store: MetadataStore, secret_key: str, form: Any
) -> None:
    for key, value in DOCUMENT.items():
        kind: ConfigurationTypeName | None = "json" if key == "json text" else None
        await store.configurations.set(key, value, kind, description=f"about {key}")
    await store.configurations.set("secret", CANARY, is_secret=True)
    document = await store.configurations.dump(form)
    assert CANARY not in document
    assert "secret" not in document
    async with MetadataStore.open("sqlite://") as other:
        assert await other.configurations.load(document, form) == len(DOCUMENT)
        for key, value in DOCUMENT.items():
            found = await other.configurations.value(key)
            assert (found, type(found)) == (value, type(value))
            assert (await other.configurations.get(key)).description == f"about {key}"
        assert await other.configurations.load(document, form) == 0
        assert await other.configurations.dump(form) == document


async def test_load__takes_bare_values(store: MetadataStore) -> None:
    assert await store.configurations.load('days = 30\nlevel = "info"\n') == 2
    assert await store.configurations.value("days") == 30
    assert await store.configurations.load('days = 31\nlevel = "info"\n') == 1
    assert (await store.configurations.get("level")).version == 1


@pytest.mark.parametrize(
    ("document", "form"),
    [
        ("a = 1\nb =", "toml"),
        ("a = 1\n[b]\ntype = 'x'", "toml"),
        ("a = 1\nb = 2026-01-01", "toml"),
        ("a = 1\n[b]\nvalue = 'x'\nvalue_type = 'integer'", "toml"),
        ("a = 1\n[b]\nvalue = '{'\nvalue_type = 'json'", "toml"),
        ("a = 1\n[b]\nvalue = 'x'\nis_secret = true", "toml"),
        ("a = 1\n'' = 2", "toml"),
        ('{"a": 1', "json"),
        ("[]", "json"),
        ('{"a": 1, "b": NaN}', "json"),
        ('{"a": 1, "b": {"value": 1, "description": 2}}', "json"),
    ],
)
async def test_load__of_a_bad_document_sets_nothing(
    store: MetadataStore, document: str, form: Any
) -> None:
    with pytest.raises(InvalidValue):
        await store.configurations.load(document, form)
    assert (await store.configurations.list()).items == []


async def test_load__does_not_make_a_secret_plain(store: MetadataStore, secret_key: str) -> None:
    await store.configurations.set("b", CANARY, is_secret=True)
    with pytest.raises(InvalidValue):
        await store.configurations.load('a = 1\nb = "plain"\n')
    assert [row.key for row in (await store.configurations.list()).items] == ["b"]
    assert await store.configurations.reveal("b") == CANARY


# Secrets


@pytest.mark.parametrize("value", [CANARY, 4711, 1.5, True, {"token": CANARY}, None])
async def test_secret__is_revealed_and_shown_nowhere_else(
    store: MetadataStore, secret_key: str, value: Any
) -> None:
    row = await store.configurations.set("key", value, description="d", is_secret=True)
    assert (row.value, row.is_secret) == (HIDDEN, True)
    assert await store.configurations.get("key") == row
    assert (await store.configurations.list()).items == [row]
    with pytest.raises(InvalidValue):
        await store.configurations.value("key")
    assert await store.configurations.reveal("key") == value


async def test_secret__without_a_key_is_an_error_and_nothing_is_stored(
    store: MetadataStore,
) -> None:
    with pytest.raises(SecretKeyUnavailable) as refused:
        await store.configurations.set("key", CANARY, is_secret=True)
    assert KEYS_VARIABLE in str(refused.value)
    assert CANARY not in "".join(traceback.format_exception(refused.value))
    assert (await store.configurations.list()).items == []


async def test_secret__stays_one(store: MetadataStore, secret_key: str) -> None:
    await store.configurations.set("key", "old", is_secret=True)
    with pytest.raises(InvalidValue) as refused:
        await store.configurations.set("key", CANARY)
    assert CANARY not in str(refused.value)
    row = await store.configurations.set("key", CANARY, is_secret=True)
    assert row.version == 2
    assert await store.configurations.reveal("key") == CANARY


async def test_secret__a_plain_value_may_become_one(store: MetadataStore, secret_key: str) -> None:
    await store.configurations.set("key", "plain")
    row = await store.configurations.set("key", CANARY, is_secret=True)
    assert (row.value, row.version) == (HIDDEN, 2)


MOVES = {
    "to another key": "UPDATE configurations SET value = (SELECT value FROM configurations"
    " WHERE key = 'other') WHERE key = 'key'",
    "to another version": "UPDATE configurations SET version = version + 1 WHERE key = 'key'",
    "to another type": "UPDATE configurations SET value_type = 'json' WHERE key = 'key'",
    "with its whole row": "UPDATE configurations SET key = 'moved' WHERE key = 'key';"
    "UPDATE configurations SET key = 'key' WHERE key = 'other'",
    "altered": "UPDATE configurations SET value = 'AAAA' || substr(value, 5) WHERE key = 'key'",
    "cut": "UPDATE configurations SET value = substr(value, 1, 40) WHERE key = 'key'",
}


@pytest.mark.parametrize("move", MOVES)
async def test_secret__a_ciphertext_that_moved_is_refused(
    file_store: MetadataStore, store_url: str, secret_key: str, move: str
) -> None:
    await file_store.configurations.set("key", CANARY, is_secret=True)
    await file_store.configurations.set("other", "another secret of mine", is_secret=True)
    await file_store.close()
    connection = database_of(store_url)
    connection.executescript(MOVES[move])
    connection.close()
    async with MetadataStore.open(store_url) as store:
        with pytest.raises(SecretRejected) as refused:
            await store.configurations.reveal("key")
        assert refused.value.__cause__ is None
        assert refused.value.__context__ is None
        with pytest.raises(SecretRejected):
            await store.configurations.reveal("key")


async def test_reveal__demands_a_secret(
    file_store: MetadataStore, store_url: str, secret_key: str
) -> None:
    for key in ("key", "other"):
        await file_store.configurations.set(key, CANARY, is_secret=True)
    await file_store.close()
    connection = database_of(store_url)
    connection.execute(
        "UPDATE configurations SET is_secret = 0, secret_key_id = NULL, value = 'planted'"
        " WHERE key = 'key'"
    )
    connection.close()
    async with MetadataStore.open(store_url) as store:
        with pytest.raises(InvalidValue) as refused:
            await store.configurations.reveal("key")
        assert refused.value.column == "key"
        assert await store.configurations.reveal("other") == CANARY


@pytest.mark.parametrize("again", [1, 2])
async def test_secret__an_old_ciphertext_does_not_come_back_after_a_deletion(
    file_store: MetadataStore, store_url: str, secret_key: str, again: int
) -> None:
    """Key, version and type are the same again, and the clock may be too."""
    for _ in range(again):
        await file_store.configurations.set("key", "old", is_secret=True)
    await file_store.configurations.set("other", "beside", is_secret=True)
    copy = "SELECT value FROM configurations WHERE key = 'key'"
    connection = database_of(store_url)
    [old] = connection.execute(copy).fetchone()
    connection.close()
    await file_store.configurations.delete("key")
    for _ in range(again):
        row = await file_store.configurations.set("key", "new", is_secret=True)
    assert row.version == again
    assert await file_store.configurations.reveal("key") == "new"
    await file_store.close()
    connection = database_of(store_url)
    connection.execute("UPDATE configurations SET value = ? WHERE key = 'key'", (old,))
    connection.close()
    async with MetadataStore.open(store_url) as store:
        with pytest.raises(SecretRejected):
            await store.configurations.reveal("key")
        assert await store.configurations.reveal("other") == "beside"


@pytest.mark.parametrize("exists", [False, True], ids=["new key", "known key"])
async def test_set__under_a_stranger_s_key_is_refused(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    ours, stranger = generate_key(), generate_key()
    monkeypatch.setenv(KEYS_VARIABLE, ours)
    known = [await store.configurations.set(key, CANARY, is_secret=True) for key in ("a", "b")]
    before = (await store.configurations.list()).items
    monkeypatch.setenv(KEYS_VARIABLE, stranger)
    with pytest.raises(SecretKeyUnavailable) as refused:
        await store.configurations.set("a" if exists else "c", "new", is_secret=True)
    assert refused.value.key_id == known[0].secret_key_id
    assert (await store.configurations.list()).items == before
    # Plain settings need no key; and who has the old key too may begin with another.
    await store.configurations.set("plain", 1)
    monkeypatch.setenv(KEYS_VARIABLE, f"{stranger},{ours}")
    await store.configurations.set("a" if exists else "c", "new", is_secret=True)
    monkeypatch.setenv(KEYS_VARIABLE, stranger)
    await store.configurations.set("c", "newer", is_secret=True)
    # Without secrets there are no strangers.
    for key in ("a", "b", "c"):
        await store.configurations.delete(key)
    monkeypatch.setenv(KEYS_VARIABLE, ours)
    await store.configurations.set("d", CANARY, is_secret=True)


async def test_set__of_two_keys_at_once_only_one_seals(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings = [keyring({KEYS_VARIABLE: generate_key()}) for _ in range(2)]
    turns = iter(rings * 10)
    monkeypatch.setattr("metastore.secrets.keyring", lambda: next(turns))
    results = await asyncio.gather(
        *(store.configurations.set(f"key {n}", CANARY, is_secret=True) for n in range(20)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, SecretKeyUnavailable)]
    assert len(refused) == 10
    rows = (await store.configurations.list()).items
    assert len(rows) == 10
    assert len({row.secret_key_id for row in rows}) == 1


async def test_migration__secrets_from_before_open_until_they_are_rotated(
    tmp_path: Path, secret_key: str
) -> None:
    path = tmp_path / "metadata.db"
    url = urls.resolve(f"sqlite:///{path}")
    migrations.upgrade(url, "0034-distrust-future-times-in-views")
    keys = keyring()
    connection = sqlite3.connect(path, isolation_level=None)
    for key in ("a", "b"):
        connection.execute(
            "INSERT INTO configurations (key, value, value_type, is_secret, secret_key_id)"
            " VALUES (?, ?, 'string', 1, ?)",
            (key, keys.seal(Secret(f"old {key}"), ("configurations", key, "1", "string")),
             keys.newest),
        )  # fmt: skip
    connection.close()
    migrations.upgrade(url)
    assert migrations.verify(url) == []
    async with MetadataStore.open(f"sqlite:///{path}") as store:
        await store.configurations.set("c", "new c", is_secret=True)
        assert (await store.configurations.get("a")).incarnation is None
        assert await store.configurations.reveal("a") == "old a"
        # It needs no other key to bind them.
        assert await store.configurations.rotate_keys() == 2
        assert await store.configurations.rotate_keys() == 0
        rows = (await store.configurations.list()).items
        assert len({row.incarnation for row in rows}) == 3
        assert None not in {row.incarnation for row in rows}
        for row, value in zip(rows, ("old a", "old b", "new c"), strict=True):
            assert await store.configurations.reveal(row.key) == value


async def test_secret__errors_tell_nothing_of_it(store: MetadataStore, secret_key: str) -> None:
    refusals: list[tuple[Any, dict[str, Any]]] = [
        (f"{CANARY}\0", {}),
        (f"{CANARY}\udc80", {}),
        (CANARY, {"value_type": "integer"}),
        (CANARY, {"value_type": "float"}),
        (CANARY, {"value_type": "boolean"}),
        ({"a": f"{CANARY}\udc80"}, {}),
        ({CANARY: math.nan}, {}),
        ({CANARY: {CANARY}}, {}),
        (CANARY, {"if_version": 7}),
    ]
    for value, options in refusals:
        with pytest.raises((InvalidValue, VersionConflict)) as refused:
            await store.configurations.set("key", value, is_secret=True, **options)
        error = refused.value
        assert error.__context__ is None
        shown = [
            repr(error),
            str(error),
            "".join(traceback.format_exception(error)),
            repr(vars(error)),
        ]
        assert CANARY not in "".join(shown)
        assert CANARY.encode() not in pickle.dumps(vars(error))


async def test_secret__rows_can_be_pickled_and_written_as_json(
    store: MetadataStore, secret_key: str
) -> None:
    row = await store.configurations.set("key", CANARY, is_secret=True)
    for shown in (repr(row).encode(), pickle.dumps(row), msgspec.json.encode(row)):
        assert CANARY.encode() not in shown
        assert secret_key.encode() not in shown
    assert json.loads(msgspec.json.encode(row))["updated_at"]


# Keys


def test_keyring__takes_base64_and_hex_newest_first(tmp_path: Path) -> None:
    key = bytes(range(200, 232))
    forms = [
        key.hex(),
        key.hex().upper(),
        base64.b64encode(key).decode(),
        base64.urlsafe_b64encode(key).decode().rstrip("="),
    ]
    newest = {keyring({KEYS_VARIABLE: form}).newest for form in forms}
    assert len(newest) == 1
    other = generate_key()
    assert keyring({KEYS_VARIABLE: f"{other}, {forms[0]}"}).newest not in newest
    path = tmp_path / "keys"
    path.write_text(f"# newest first\n{forms[2]}\n{other}\n")
    path.chmod(0o600)
    assert {keyring({KEY_FILE_VARIABLE: str(path)}).newest} == newest


@pytest.mark.parametrize(
    "keys",
    ["", " , ", "short", "x" * 44, generate_key()[:-3], f"{generate_key()},nonsense"],
    ids=["empty", "comma", "short", "no base64", "cut off", "one of two"],
)
def test_keyring__refuses_what_is_no_key_and_does_not_repeat_it(keys: str) -> None:
    with pytest.raises(SecretKeyUnavailable) as refused:
        keyring({KEYS_VARIABLE: keys})
    for word in keys.replace(",", " ").split():
        assert word not in str(refused.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700, 0o610])
def test_keyring__refuses_a_file_that_others_may_use(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.write_text(generate_key())
    path.chmod(mode)
    with pytest.raises(SecretKeyUnavailable, match="chmod 600"):
        keyring({KEY_FILE_VARIABLE: str(path)})
    path.chmod(0o600)
    keyring({KEY_FILE_VARIABLE: str(path)})


def test_keyring__refuses_missing_files_and_two_sources(tmp_path: Path) -> None:
    with pytest.raises(SecretKeyUnavailable):
        keyring({KEY_FILE_VARIABLE: str(tmp_path / "missing")})
    with pytest.raises(SecretKeyUnavailable):
        keyring({KEY_FILE_VARIABLE: str(tmp_path)})
    with pytest.raises(SecretKeyUnavailable, match="both"):
        keyring({KEY_FILE_VARIABLE: "x", KEYS_VARIABLE: generate_key()})


def test_keyring__shows_no_key() -> None:
    key = generate_key()
    keys = keyring({KEYS_VARIABLE: key})
    assert key not in repr(keys)
    with pytest.raises(TypeError):
        pickle.dumps(keys)


def test_keyring__seals_never_the_same_twice() -> None:
    keys = Keyring([Secret(b"k" * 32)])
    sealed = {keys.seal(Secret("x"), ("a",)) for _ in range(100)}
    assert len(sealed) == 100
    assert {keys.open(one, keys.newest, ("a",)).reveal() for one in sealed} == {"x"}
    with pytest.raises(SecretRejected):
        keys.open(sealed.pop(), keys.newest, ("b",))


async def test_rotate_keys__puts_every_secret_under_the_newest(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = generate_key(), generate_key()
    monkeypatch.setenv(KEYS_VARIABLE, old)
    for n in range(7):
        await store.configurations.set(f"key {n}", f"{CANARY} {n}", is_secret=True)
    await store.configurations.set("plain", 1)
    monkeypatch.setenv(KEYS_VARIABLE, f"{new},{old}")
    assert await store.configurations.reveal("key 3") == f"{CANARY} 3"
    await store.configurations.set("key 3", "changed", is_secret=True)
    assert await store.configurations.rotate_keys(batch=2) == 6
    assert await store.configurations.rotate_keys() == 0
    monkeypatch.setenv(KEYS_VARIABLE, new)
    for n in range(7):
        row = await store.configurations.get(f"key {n}")
        assert row.secret_key_id == keyring().newest
        assert row.version == (2 if n == 3 else 1)
        revealed = await store.configurations.reveal(f"key {n}")
        assert revealed == ("changed" if n == 3 else f"{CANARY} {n}")


async def test_rotate_keys__without_the_old_key_does_the_others_and_says_so(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, old, new = generate_key(), generate_key(), generate_key()
    monkeypatch.setenv(KEYS_VARIABLE, lost)
    lost_id = (await store.configurations.set("a", CANARY, is_secret=True)).secret_key_id
    monkeypatch.setenv(KEYS_VARIABLE, f"{old},{lost}")
    await store.configurations.set("b", CANARY, is_secret=True)
    monkeypatch.setenv(KEYS_VARIABLE, f"{new} {old}")
    with pytest.raises(SecretKeyUnavailable) as missing:
        await store.configurations.rotate_keys()
    assert missing.value.key_id == lost_id
    assert (await store.configurations.get("b")).secret_key_id == keyring().newest
    with pytest.raises(SecretKeyUnavailable):
        await store.configurations.reveal("a")


async def test_rotate_keys__leaves_a_secret_that_is_set_meanwhile(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = generate_key(), generate_key()
    monkeypatch.setenv(KEYS_VARIABLE, old)
    keys = [f"key {n}" for n in range(10)]
    for key in keys:
        await store.configurations.set(key, "first", is_secret=True)
    monkeypatch.setenv(KEYS_VARIABLE, f"{new},{old}")
    written = (store.configurations.set(key, "second", is_secret=True) for key in keys)
    await asyncio.gather(store.configurations.rotate_keys(batch=3), *written)
    assert [await store.configurations.reveal(key) for key in keys] == ["second"] * 10


@pytest.mark.parametrize("anew", [False, True], ids=["set", "deleted and set"])
async def test_rotate_keys__leaves_what_another_process_sets_under_the_old_key(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    old, new = generate_key(), generate_key()
    monkeypatch.setenv(KEYS_VARIABLE, old)
    for key in ("a", "b", "c"):
        await store.configurations.set(key, "first", is_secret=True)
    rotation = type(store.configurations)(store.configurations._scope)
    rewrite = rotation._run_all

    async def rewriting(*calls: Any) -> Any:
        # Between its look at the secrets and its write.
        with monkeypatch.context() as other:
            other.setenv(KEYS_VARIABLE, f"{old},{new}")
            for key in ("a", "b"):
                if anew:
                    await store.configurations.delete(key)
                await store.configurations.set(key, "second", is_secret=True)
        return await rewrite(*calls)

    monkeypatch.setattr(rotation, "_run_all", rewriting)
    monkeypatch.setenv(KEYS_VARIABLE, f"{new},{old}")
    await rotation.rotate_keys()
    found = [await store.configurations.reveal(key) for key in ("a", "b", "c")]
    assert found == ["second", "second", "first"]


@pytest.mark.parametrize(
    ("value", "damaged"),
    [(5, "hunter2"), (5, ""), (1.5, "hunter2"), (True, "hunter2"), (True, "1"), ({}, "hunter2")],
)
async def test_value__of_another_type_names_the_key_and_not_the_value(
    store: MetadataStore, value: Any, damaged: str
) -> None:
    for key in ("sound", "damaged"):
        await store.configurations.set(key, value)
    raw = store._backend._writer.connection  # type: ignore[attr-defined]
    await raw.execute("PRAGMA ignore_check_constraints = ON")
    await raw.execute("UPDATE configurations SET value = ? WHERE key = 'damaged'", (damaged,))
    for read in (
        store.configurations.value("damaged"),
        store.configurations.dump(),
    ):
        with pytest.raises(StoreCorrupt) as caught:
            await read
        error = caught.value
        assert (error.table, error.row_id, error.column) == ("configurations", "damaged", "value")
        assert "hunter2" not in str(error)
        assert error.__context__ is None
    assert await store.configurations.value("sound") == value
    # Reported as a row, not as a failure of the search.
    report = await store.health(integrity=True)
    assert str(error) in (report.damage or ())
