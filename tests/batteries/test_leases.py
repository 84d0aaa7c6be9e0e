"""Processes that compete for worktrees, are killed and stopped, and never hold one together."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from metastore import MetadataStore

if TYPE_CHECKING:
    from collections.abc import Callable

WORKER = Path(__file__).with_name("lease_worker.py")
WORKTREES = 3
PROCESSES = 8


class Crew:
    """The processes, and what is done to them."""

    def __init__(self, database: str, folder: Path, repository: str, session: str) -> None:
        self.arguments = (database, repository, session)
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped: dict[int, float] = {}
        self.started = 0
        self.kills = 0
        self.stops = 0
        self.random = random.Random(7)

    def start(self) -> None:
        self.started += 1
        database, repository, session = self.arguments
        ledger = str(self.folder / f"{self.started}.jsonl")
        errors = (self.folder / f"{self.started}.stderr").open("wb")
        self.processes.append(
            subprocess.Popen(
                [sys.executable, WORKER, database, ledger, repository, session, str(self.started)],
                stderr=errors,
            )
        )
        errors.close()

    def kill_one(self) -> None:
        process = self.random.choice(self.processes)
        process.kill()
        process.wait()
        self.stopped.pop(process.pid, None)
        self.processes.remove(process)
        self.kills += 1
        self.start()

    def wake_the_stopped(self) -> None:
        """Let a stopped process go on when its leases have expired."""
        for process in self.processes:
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T" and process.pid not in self.stopped:
                self.stopped[process.pid] = time.monotonic() + 0.8
        for pid, when in list(self.stopped.items()):
            if time.monotonic() >= when:
                os.kill(pid, signal.SIGCONT)
                del self.stopped[pid]
                self.stops += 1

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def ledger(self) -> list[dict[str, Any]]:
        entries = [
            msgspec.json.decode(line)
            for file in self.folder.glob("*.jsonl")
            for line in file.read_bytes().split(b"\n")
            if line
        ]
        return sorted(entries, key=lambda entry: entry["at"])

    def stderr(self) -> str:
        return "".join(file.read_text() for file in self.folder.glob("*.stderr"))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("leases", "kills", "stale_writes"),
    [
        pytest.param(120, 2, 4, id="short"),
        pytest.param(2_000, 40, 20, id="torture", marks=pytest.mark.torture),
    ],
)
def test_leases__never_two_holders(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    leases: int,
    kills: int,
    stale_writes: int,
) -> None:
    database = f"sqlite:///{tmp_path}/metadata.db"

    async def set_up() -> tuple[str, str]:
        async with MetadataStore.open(database, migrate=True) as store:
            repository = await store.repositories.create(name="contested", remote_url="")
            for n in range(WORKTREES):
                await store.worktrees.create(repository_id=repository.id, path=f"/worktrees/{n}")
            session = await store.sessions.create(session_type="debug", repository_id=repository.id)
            return repository.id, session.id

    folder = tmp_path / "ledgers"
    folder.mkdir()
    crew = Crew(database, folder, *asyncio.run(set_up()))
    deadline = time.monotonic() + 300
    try:
        for _ in range(PROCESSES):
            crew.start()
        counts: Counter[str] = Counter()
        # On until all was seen that is to be seen: leases, competition, and some who were late.
        while (
            counts["granted"] < leases
            or counts["unavailable"] < leases / 20
            or counts["refused"] < stale_writes
            or crew.kills < kills
        ):
            assert time.monotonic() < deadline, f"the battery did not end in time: {counts}"
            time.sleep(0.05)
            crew.wake_the_stopped()
            counts = Counter(entry["what"] for entry in crew.ledger())
            if crew.kills < min(kills, kills * counts["granted"] / leases):
                crew.kill_one()
    finally:
        crew.end()

    ledger = crew.ledger()
    counts = Counter(entry["what"] for entry in ledger)
    record_property("figures", f"{dict(counts)}, {crew.kills} kills, {crew.stops} stops")

    assert "locked" not in crew.stderr()
    assert "Traceback" not in crew.stderr()
    assert not [entry for entry in ledger if entry["what"] == "error"]
    assert counts["accepted late"] == 0

    _assert_no_overlap(ledger)
    _assert_fences_grow_in_commit_order(tmp_path / "metadata.db")


def _assert_no_overlap(ledger: list[dict[str, Any]]) -> None:
    """By the holders' own books: no lease begins before the one before it is over."""
    ends: dict[tuple[str, int], datetime] = {}
    grants: dict[str, list[tuple[int, datetime]]] = defaultdict(list)
    for entry in ledger:
        at = _moment(entry["at"])
        if entry["what"] == "granted":
            grants[entry["worktree"]].append((entry["fence"], at))
            ends[entry["worktree"], entry["fence"]] = _moment(entry["until"])
        elif entry["what"] == "releasing":
            key = entry["worktree"], entry["fence"]
            # Unless it has run out before.
            ends[key] = min(ends[key], at)
    assert len(grants) == WORKTREES
    for worktree, held in grants.items():
        assert len({fence for fence, _ in held}) == len(held), "a number was given out twice"
        # Who was stopped between a grant and its note has noted it late.
        for (fence, _), (_, granted) in pairwise(sorted(held)):
            assert granted >= ends[worktree, fence], "two held the worktree"


def _assert_fences_grow_in_commit_order(path: Path) -> None:
    """By the database: no write of a holder is committed behind one of a later holder."""
    connection = sqlite3.connect(path)
    writes = connection.execute(
        "SELECT message, context ->> 'fence' FROM events ORDER BY position"
    ).fetchall()
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    newest: dict[str, int] = defaultdict(int)
    for worktree, fence in writes:
        assert fence >= newest[worktree], "a write of an earlier holder was let through"
        newest[worktree] = fence
    assert len(newest) == WORKTREES
