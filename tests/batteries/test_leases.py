"""Processes that compete for worktrees, are killed and stopped, and never hold one together."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter, defaultdict
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from metastore import MetadataStore
from tests.batteries.crew import Crew

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORKTREES = 3
PROCESSES = 8


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

    crew = Crew(
        "lease_worker.py", tmp_path / "ledgers", database, *asyncio.run(set_up()), pause=0.8
    )
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
