"""Processes that share a budget, never overspend it, and are charged once for each call."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from metastore import BudgetExceeded, Job, MetadataStore
from tests.batteries.budget_worker import MOST, REPLAYED, TASKS, TIMES, TTL

if TYPE_CHECKING:
    from collections.abc import Callable

WORKER = Path(__file__).with_name("budget_worker.py")
PROCESSES = 4
TIMEOUT = 300
ROOM = 40
"""How many calls a job has room for at first: fewer than there are tasks."""

Process = asyncio.subprocess.Process


async def start(mode: str, database: str, seed: int = 0) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        WORKER,
        mode,
        database,
        str(seed),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def tell(process: Process, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    await process.stdin.drain()


async def expect(process: Process, line: str) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    if (heard := await process.stdout.readline()) != f"{line}\n".encode():
        raise AssertionError(f"{heard!r} instead of {line!r}: {await process.stderr.read()!r}")


async def run_all(mode: str, database: str, *job_ids: str) -> Counter[str]:
    """Let all processes begin each job together, and return what they counted together."""
    processes = [await start(mode, database, seed) for seed in range(PROCESSES)]
    counts: Counter[str] = Counter()
    try:
        async with asyncio.timeout(TIMEOUT):
            for process in processes:
                await expect(process, "ready")
            for job_id in job_ids:
                await cue(processes, job_id, "answered" if mode == "spend" else "ready")
                if mode == "spend":
                    await cue(processes, "go on", "ready")
            for process in processes:
                out, errors = await process.communicate(b"\n")
                assert (process.returncode, errors) == (0, b"")
                counts.update(msgspec.json.decode(out, type=dict[str, int]))
    finally:
        await end(*processes)
    return counts


async def cue(processes: list[Process], line: str, answer: str) -> None:
    for process in processes:
        await tell(process, line)
    for process in processes:
        await expect(process, answer)


async def end(*processes: Process) -> None:
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def set_up(database: str, jobs: int = 1, **limits: Any) -> list[str]:
    async with MetadataStore.open(database, migrate=True) as store:
        made = [
            await store.jobs.create(task="spend", repo_owner="o", repo_name="r", **limits)
            for _ in range(jobs)
        ]
        for job in made:
            await store.jobs.start(job.id)
        return [job.id for job in made]


async def look(database: str, *job_ids: str) -> list[Job]:
    """Return the jobs when nothing is promised any more and the totals are those of the entries."""
    async with MetadataStore.open(database) as store:
        assert await store.cost_entries.discrepancies() == []
        summed = {row.job_id: row for row in await store.cost_entries.summary(by="job")}
        jobs = [await store.jobs.get(job_id) for job_id in job_ids]
        for job in jobs:
            assert (await store.budget_reservations.list_by_job(job.id)).items == []
            assert summed[job.id].cost_usd == job.cost_usd
            assert summed[job.id].totals.requests == job.requests_made
        return jobs


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/metadata.db"


JOBS = pytest.mark.parametrize(
    "jobs",
    [
        pytest.param(3, id="short"),
        pytest.param(250, id="torture", marks=pytest.mark.torture),
    ],
)


@JOBS
async def test_budget__64_tasks_spend_it_and_not_a_nano_dollar_more(
    database: str, record_property: Callable[[str, object], None], jobs: int
) -> None:
    job_ids = await set_up(database, jobs, budget_usd=ROOM * MOST)
    counts = await run_all("spend", database, *job_ids)
    spent = await look(database, *job_ids)
    left = [ROOM * MOST - job.cost_usd for job in spent]
    record_property("figures", f"{dict(counts)}, at most {max(left)} of {ROOM * MOST} dollars left")
    assert 0 <= min(left) <= max(left) < MOST
    assert min(job.requests_made for job in spent) >= ROOM
    assert counts["charged"] == sum(job.requests_made for job in spent)
    assert counts["promised too much"] == 0
    assert counts["refused at the start"] == jobs * (PROCESSES * TASKS - ROOM)
    assert counts["refused for the sake of calls in flight"] >= counts["refused at the start"]


@JOBS
async def test_max_requests__64_tasks_make_them_all_and_not_one_more(
    database: str, record_property: Callable[[str, object], None], jobs: int
) -> None:
    job_ids = await set_up(database, jobs, max_requests=ROOM)
    counts = await run_all("spend", database, *job_ids)
    record_property("figures", f"{dict(counts)}")
    assert [job.requests_made for job in await look(database, *job_ids)] == [ROOM] * jobs
    assert counts["charged"] == jobs * ROOM
    assert counts["refused at the start"] == jobs * (PROCESSES * TASKS - ROOM)
    assert counts["refused for the sake of calls in flight"] >= counts["refused at the start"]


async def test_record__every_call_ten_times_from_each_process_is_charged_once(
    database: str, record_property: Callable[[str, object], None]
) -> None:
    [job_id] = await set_up(database)
    counts = await run_all("replay", database, job_id)
    [job] = await look(database, job_id)
    record_property("figures", f"{dict(counts)}")
    assert counts["charged"] == REPLAYED == job.requests_made
    assert counts["charged before"] == REPLAYED * (TIMES * PROCESSES - 1)
    assert job.cost_usd == REPLAYED * MOST
    assert (job.tokens_in, job.tokens_out, job.tokens_cached) == (150, 100, 50)


async def test_reserve__the_promise_of_a_killed_process_ends_when_it_expires(database: str) -> None:
    [job_id] = await set_up(database, budget_usd=1)
    process = await start("hold", database)
    try:
        async with asyncio.timeout(TIMEOUT):
            await expect(process, "ready")
            await tell(process, job_id)
            await expect(process, "held")
    finally:
        await end(process)

    now = datetime.now(UTC)
    async with MetadataStore.open(database, clock=lambda: now) as store:
        [left] = (await store.budget_reservations.list_by_job(job_id)).items
        assert left.request_id == "of the dead"
        now = left.expires_at - timedelta(milliseconds=1)
        with pytest.raises(BudgetExceeded) as exceeded:
            await store.budget_reservations.reserve(
                job_id, request_id="mine", amount_usd=MOST, ttl=TTL
            )
        assert (exceeded.value.spent, exceeded.value.reserved) == (0, 1)
        now = left.expires_at
        reserved = await store.budget_reservations.reserve(
            job_id, request_id="mine", amount_usd=1, ttl=TTL
        )
        assert reserved.budget.remaining == 0
        rows = (await store.budget_reservations.list_by_job(job_id)).items
        assert rows == [reserved.reservation]
