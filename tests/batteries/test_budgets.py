"""Processes that share a budget, never overspend it, and are charged once for each call."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from metastore import BudgetExceeded, Job, MetadataStore

if TYPE_CHECKING:
    from collections.abc import Callable

WORKER = Path(__file__).with_name("budget_worker.py")
PROCESSES = 4
# As in the worker.
MOST = Decimal("0.01")
TTL = timedelta(seconds=30)
REPLAYED = 50
TIMES = 10


def start(mode: str, database: str, job_id: str, seed: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, WORKER, mode, database, job_id, str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_all(mode: str, database: str, job_id: str) -> Counter[str]:
    """Run the processes to their end and return what they counted together."""
    processes = [start(mode, database, job_id, seed) for seed in range(PROCESSES)]
    counts: Counter[str] = Counter()
    try:
        for process in processes:
            out, errors = process.communicate(timeout=300)
            assert (process.returncode, errors) == (0, "")
            counts.update(msgspec.json.decode(out.splitlines()[-1], type=dict[str, int]))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return counts


async def set_up(database: str, **limits: Any) -> str:
    async with MetadataStore.open(database, migrate=True) as store:
        job = await store.jobs.create(task="spend", repo_owner="o", repo_name="r", **limits)
        await store.jobs.start(job.id)
        return job.id


async def look(database: str, job_id: str) -> Job:
    """Return the job when nothing is promised any more and its totals are those of its entries."""
    async with MetadataStore.open(database) as store:
        assert await store.cost_entries.discrepancies() == []
        assert (await store.budget_reservations.list_by_job(job_id)).items == []
        job = await store.jobs.get(job_id)
        [summed] = await store.cost_entries.summary(by="job")
        assert (summed.job_id, summed.cost_usd) == (job.id, job.cost_usd)
        assert summed.totals.requests == job.requests_made
        return job


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/metadata.db"


@pytest.mark.parametrize(
    "dollars",
    [
        pytest.param(2, id="short"),
        pytest.param(100, id="torture", marks=pytest.mark.torture),
    ],
)
def test_budget__64_tasks_spend_it_and_not_a_nano_dollar_more(
    database: str, record_property: Callable[[str, object], None], dollars: int
) -> None:
    job_id = asyncio.run(set_up(database, budget_usd=dollars))
    counts = run_all("spend", database, job_id)
    job = asyncio.run(look(database, job_id))
    left = dollars - job.cost_usd
    record_property("figures", f"{dict(counts)}, {left} of {dollars} dollars left")
    assert 0 <= left < MOST
    assert counts["charged"] == job.requests_made > dollars * 100
    assert counts["promised too much"] == 0
    assert counts["refused for the sake of calls in flight"] > 20, "hardly any competition"


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(600, id="short"),
        pytest.param(10_000, id="torture", marks=pytest.mark.torture),
    ],
)
def test_max_requests__64_tasks_make_them_all_and_not_one_more(
    database: str, record_property: Callable[[str, object], None], requests: int
) -> None:
    job_id = asyncio.run(set_up(database, max_requests=requests))
    counts = run_all("spend", database, job_id)
    job = asyncio.run(look(database, job_id))
    record_property("figures", f"{dict(counts)}")
    assert job.requests_made == counts["charged"] == requests
    assert counts["refused for the sake of calls in flight"] > 20, "hardly any competition"


def test_record__every_call_ten_times_from_each_process_is_charged_once(
    database: str, record_property: Callable[[str, object], None]
) -> None:
    job_id = asyncio.run(set_up(database))
    counts = run_all("replay", database, job_id)
    job = asyncio.run(look(database, job_id))
    record_property("figures", f"{dict(counts)}")
    assert counts["charged"] == REPLAYED == job.requests_made
    assert counts["charged before"] == REPLAYED * (TIMES * PROCESSES - 1)
    assert job.cost_usd == REPLAYED * MOST
    assert (job.tokens_in, job.tokens_out, job.tokens_cached) == (150, 100, 50)


def test_reserve__the_promise_of_a_killed_process_ends_when_it_expires(database: str) -> None:
    job_id = asyncio.run(set_up(database, budget_usd=1))
    process = start("hold", database, job_id)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
    finally:
        process.kill()
        process.communicate()

    async def survive() -> None:
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

    asyncio.run(survive())
