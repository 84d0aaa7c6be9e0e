"""Secrets set through every door, looked for in every byte; a rotation of keys that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from metastore import MetadataStore
from metastore.cli import main
from metastore.secrets import KEYS_VARIABLE, generate_key, keyring
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

ROTATOR = Path(__file__).with_name("secret_rotator.py")


def _canary(n: int) -> str:
    return f"canary-{n}-5e0c-never-to-be-seen"


async def test_secrets__are_in_no_file_and_no_log(
    tmp_path: Path,
    store_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    key = generate_key()
    monkeypatch.setenv(KEYS_VARIABLE, key)
    caplog.set_level(logging.DEBUG)
    database = Path(store_url.removeprefix("sqlite:///"))
    (tmp_path / "copies").mkdir()
    async with MetadataStore.open(store_url) as store:
        await store.configurations.set("plain", "a-plain-marker")
        await store.configurations.set("api", _canary(0), is_secret=True)
        await store.configurations.set("json", {"token": _canary(1)}, is_secret=True)
        async with store.transaction() as tx:
            await tx.configurations.set("tx", _canary(2), is_secret=True)
        await asyncio.gather(
            *(store.configurations.set(f"k{n}", _canary(n), is_secret=True) for n in range(3, 40))
        )
        await store.configurations.set("api", _canary(40), is_secret=True)
        cli = await asyncio.to_thread(
            CliRunner().invoke,
            main,
            ["config", "set", "cli", "--secret", "--json", "--db", store_url],
            _canary(41),
        )
        assert cli.exit_code == 0
        assert await store.configurations.reveal("cli") == _canary(41)
        monkeypatch.setenv(KEYS_VARIABLE, f"{generate_key()},{key}")
        assert await store.configurations.rotate_keys() == 41
        await store.configurations.delete("tx")
        # By another process: this one must not open the files while it is connected.
        files = [f"{database}{suffix}" for suffix in ("", "-wal", "-shm")]
        subprocess.run(["cp", *files, str(tmp_path / "copies")], check=True)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM configurations").fetchone() == (41,)
        connection.execute("VACUUM INTO ?", (str(tmp_path / "copies" / "backup.db"),))
    contents = [file.read_bytes() for file in (database, *sorted((tmp_path / "copies").iterdir()))]
    assert len(contents) == 5
    canaries = [_canary(n) for n in range(42)]
    for secret in (*canaries, key):
        assert not any(secret.encode() in content for content in contents)
        assert secret not in caplog.text + cli.output
    # The search finds what is there, also in the WAL.
    assert sum(b"a-plain-marker" in content for content in contents) >= 3
    searched = sum(map(len, contents))
    record_property("figures", f"{len(canaries)} secrets, {searched} bytes searched, 0 found")


@pytest.mark.parametrize(
    ("secrets", "kills"),
    [
        pytest.param(300, 3, id="short"),
        pytest.param(3_000, 20, id="torture", marks=pytest.mark.torture),
    ],
)
def test_rotation__killed_half_way_goes_on(
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    secrets: int,
    kills: int,
) -> None:
    old, new = generate_key(), generate_key()
    monkeypatch.setenv(KEYS_VARIABLE, old)
    database = store_url.removeprefix("sqlite:///")

    async def set_up() -> None:
        async with MetadataStore.open(store_url) as store, store.transaction() as tx:
            for n in range(secrets):
                await tx.configurations.set(f"key {n}", _canary(n), is_secret=True)

    asyncio.run(set_up())
    monkeypatch.setenv(KEYS_VARIABLE, f"{new},{old}")
    watching = sqlite3.connect(database, timeout=30)

    def rotated() -> int:
        [count] = watching.execute(
            "SELECT count(*) FROM configurations WHERE secret_key_id = ?", (keyring().newest,)
        ).fetchone()
        return int(count)

    half_way = whole = 0
    dice = random.Random(11)
    while half_way < kills:
        assert whole < 10 * kills, "every rotation was faster than its kill"
        process = subprocess.Popen([sys.executable, ROTATOR, store_url], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        wanted = secrets * (half_way + 1) // (kills + 2) + dice.randrange(3)
        deadline = time.monotonic() + PATIENCE
        while rotated() < wanted and process.poll() is None:
            assert time.monotonic() < deadline
        process.kill()
        process.communicate()
        half_way += 0 < rotated() < secrets
        if rotated() == secrets:
            # The kill came too late: once more, with a key newer still.
            whole += 1
            new, old = generate_key(), new
            monkeypatch.setenv(KEYS_VARIABLE, f"{new},{old}")
    # Some have one key, some the other: all open meanwhile.
    left = secrets - rotated()

    async def finish() -> tuple[int, list[str]]:
        async with MetadataStore.open(store_url) as store:
            before = [await store.configurations.reveal(f"key {n}") for n in range(secrets)]
            count = await store.configurations.rotate_keys()
            monkeypatch.setenv(KEYS_VARIABLE, new)
            after = [await store.configurations.reveal(f"key {n}") for n in range(secrets)]
            assert before == after
            return count, after

    count, revealed = asyncio.run(finish())
    assert revealed == [_canary(n) for n in range(secrets)]
    assert count == left
    assert rotated() == secrets
    watching.close()
    record_property(
        "figures", f"{secrets} secrets, killed half-way {half_way} times, {left} left, 0 lost"
    )
