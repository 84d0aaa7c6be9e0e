"""Processes that claim tasks, are killed and stopped, and finish each task exactly once."""

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
from tests.batteries.claim_worker import TTL, TYPES, WORKERS
from tests.batteries.crew import Crew

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LATE = 6
"""How many attempts of one who is late are to be seen: all that there are, once."""


@pytest.mark.parametrize(
    ("tasks", "processes", "kills"),
    [
        pytest.param(200, 3, 3, id="short"),
        pytest.param(10_000, 8, 40, id="torture", marks=pytest.mark.torture),
    ],
)
async def test_claims__each_task_is_finished_exactly_once(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    tasks: int,
    processes: int,
    kills: int,
) -> None:
    database = f"sqlite:///{tmp_path}/metadata.db"
    began = time.monotonic()
    async with MetadataStore.open(database, migrate=True) as store:
        repository = await store.repositories.create(name="r", remote_url="")
        session = await store.sessions.create(session_type="debug", repository_id=repository.id)
        workflow = await store.workflows.create(name="all", definition={})

        async def add(number: int) -> str:
            task = await store.tasks.create(
                title=f"{number}",
                task_type=TYPES[number % len(TYPES)],
                workspace_path=f"/workspaces/{number % 7}" if number % 2 else "/workspaces/busy",
            )
            await store.workflow_tasks.add(workflow.id, task.id)
            return task.id

        made = await asyncio.gather(*(add(number) for number in range(tasks)))
        counts: Counter[str] = Counter()
        crew = Crew(
            "claim_worker.py",
            tmp_path / "ledgers",
            database,
            session.id,
            pause=TTL.total_seconds() * 1.5,
        )
        try:
            for _ in range(processes):
                crew.start()
            done = 0
            # On until all was seen that is to be seen, with more tasks if it takes more.
            while done < len(made) or crew.kills < kills or counts["refused"] < LATE:
                assert time.monotonic() - began < 300, f"the battery did not end in time: {counts}"
                if done == len(made):
                    made += await asyncio.gather(*(add(done + n) for n in range(tasks // 10)))
                await asyncio.sleep(0.05)
                crew.wake_the_stopped()
                done = (await store.workflows.progress(workflow.id)).done
                counts = Counter(entry["what"] for entry in crew.ledger())
                # All kills have fallen while there is work left to lose.
                if crew.kills < min(kills, kills * done / (tasks * 0.8)):
                    crew.kill_one()
        finally:
            crew.end()
        progress = await store.workflows.progress(workflow.id)
        claims = await store.tasks.count_held()

    ledger = crew.ledger()
    counts = Counter(entry["what"] for entry in ledger)
    unheard = len(made) - counts["finished"]
    record_property(
        "figures",
        f"{dict(counts)}, {crew.kills} kills, {crew.stops} stops, {unheard} finished by a process "
        f"that was killed before it noted the answer, {time.monotonic() - began:.1f} s",
    )

    assert "locked" not in crew.stderr()
    assert "Traceback" not in crew.stderr()
    assert not [entry for entry in ledger if entry["what"] == "error"]
    assert (progress.done, progress.total, claims) == (len(made), len(made), (0, 0))
    assert counts["accepted late"] == 0

    finished = Counter(entry["task"] for entry in ledger if entry["what"] == "finished")
    assert finished.keys() <= set(made)
    assert set(finished.values()) == {1}, "a finish was acknowledged twice"
    # A process may be killed when its finish is committed and its ledger does not have it yet;
    # at the end, all are.
    assert 0 <= unheard <= (crew.kills + processes) * WORKERS
    _assert_one_effect_each(tmp_path / "metadata.db", set(made))
    _assert_no_overlap(ledger)


def _assert_one_effect_each(path: Path, made: set[str]) -> None:
    """By the database: one event for each task, by the holder who finished it."""
    connection = sqlite3.connect(path)
    effects = connection.execute(
        "SELECT t.id, t.version, e.context ->> 'fence' FROM events AS e "
        "JOIN tasks AS t ON t.id = e.message"
    ).fetchall()
    statuses = connection.execute("SELECT status, count(*) FROM tasks GROUP BY status").fetchall()
    turns = connection.execute("SELECT sum(pending) FROM task_turns").fetchone()
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert statuses == [("completed", len(made))]
    assert turns == (0,)
    assert len(effects) == len(made)
    assert {task for task, _, _ in effects} == made
    assert all(version == fence for _, version, fence in effects)


def _assert_no_overlap(ledger: list[dict[str, Any]]) -> None:
    """By the holders' own books: no claim begins before the one before it is over."""
    ends: dict[tuple[str, int], datetime] = {}
    claims: dict[str, list[tuple[int, datetime]]] = defaultdict(list)
    for entry in ledger:
        at = datetime.fromisoformat(entry["at"])
        if entry["what"] == "claimed":
            claims[entry["task"]].append((entry["fence"], at))
            ends[entry["task"], entry["fence"]] = datetime.fromisoformat(entry["until"])
        elif entry["what"] == "releasing":
            key = entry["task"], entry["fence"]
            # Unless it has run out before.
            ends[key] = min(ends[key], at)
    for task, held in claims.items():
        assert len({fence for fence, _ in held}) == len(held), "a number was given out twice"
        by_number = sorted(held)
        for (fence, _), (_, claimed) in pairwise(by_number):
            assert claimed >= ends[task, fence], "two held the task"
