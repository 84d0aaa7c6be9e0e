"""Writers that are killed at any moment lose nothing that was acknowledged."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from metastore import MetadataStore
from metastore.codec import new_id
from tests.batteries.crash_worker import BATCH
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

WORKER = Path(__file__).with_name("crash_worker.py")
WRITERS = 3
LEAST = 20
"""How many writes of a writer are acknowledged before it is killed, on average."""

LINE = len(f"{new_id()}\n")


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(4, id="short"),
        pytest.param(200, id="torture", marks=pytest.mark.torture),
    ],
)
def test_crash__what_was_acknowledged_is_there(
    tmp_path: Path, record_property: Callable[[str, object], None], kills: int
) -> None:
    database = f"sqlite:///{tmp_path}/metadata.db"

    async def set_up() -> str:
        async with MetadataStore.open(database, migrate=True) as store:
            session = await store.sessions.create(session_type="test_generation", project_path="/p")
            return session.id

    session_id = asyncio.run(set_up())
    dice = random.Random(11)
    ledgers: list[Path] = []
    writers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start() -> None:
        ledger = tmp_path / f"{len(ledgers)}.ledger"
        ledger.touch()
        ledgers.append(ledger)
        arguments = [sys.executable, str(WORKER), database, str(ledger), session_id]
        writers.append((subprocess.Popen(arguments, stderr=subprocess.PIPE), ledger))

    seen = 0
    for _ in range(WRITERS):
        start()
    try:
        for _ in range(kills):
            writer, ledger = writers.pop(0)
            deadline = time.monotonic() + PATIENCE
            least = dice.randrange(1, 2 * LEAST)
            while ledger.stat().st_size < least * LINE:
                assert writer.poll() is None, writer.communicate()[1]
                assert time.monotonic() < deadline, "a writer did not get to write"
                time.sleep(0.002)
            seen += least
            time.sleep(dice.uniform(0, 0.05))
            writer.kill()
            _, errors = writer.communicate()
            assert errors == b""
            start()
    finally:
        for writer, _ in writers:
            writer.kill()
            writer.communicate()

    acknowledged = {line for ledger in ledgers for line in ledger.read_text().split("\n")[:-1]}
    connection = sqlite3.connect(tmp_path / "metadata.db")
    stored = {id_ for (id_,) in connection.execute("SELECT id FROM events")}
    sizes = connection.execute(
        "SELECT count(*), message FROM events WHERE event_type = 'batch' GROUP BY message"
    ).fetchall()
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()

    record_property(
        "figures",
        f"{kills} kills, {len(acknowledged)} acknowledged, {len(stored)} stored, "
        f"{len(sizes)} batches, {len(stored - acknowledged)} stored but not acknowledged",
    )
    assert len(acknowledged) >= seen
    assert acknowledged <= stored
    assert {size for size, _ in sizes} == {BATCH}, "a batch was stored in part"
