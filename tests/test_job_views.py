"""The views that people read in the sqlite3 shell, against what the library says."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import MetadataStore
from metastore.money import MAX_NANO, from_nano

if TYPE_CHECKING:
    from pathlib import Path

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.db"
    # The views ask the real clock what has expired.
    now = datetime.now(UTC) - 10 * MINUTE
    async with MetadataStore.open(f"sqlite:///{path}", migrate=True, clock=lambda: now) as store:
        limits: dict[str, Any] = {"budget_usd": 4, "max_requests": 9}
        job = await store.jobs.create(task="one", repo_owner="o", repo_name="r", **limits)
        await store.jobs.create(task="two", repo_owner="o", repo_name="r")
        await store.jobs.start(job.id)
        steps = [
            await store.job_steps.create(job_id=job.id, name=f"step {n}", step_type="code")
            for n in range(4)
        ]
        await store.job_steps.skip(steps[0].id)
        await store.job_steps.start(steps[1].id)
        await store.job_steps.fail(steps[2].id)
        now += 365 * 24 * 60 * MINUTE
        await store.budget_reservations.reserve(
            job.id, request_id="of a clock that was ahead", amount_usd="0.5", ttl=MINUTE
        )
        now -= 365 * 24 * 60 * MINUTE
        for request_id, ttl in (("expired", MINUTE), ("live", 60 * MINUTE)):
            await store.budget_reservations.reserve(
                job.id, request_id=request_id, amount_usd="0.5", ttl=ttl
            )
        for n, model in enumerate(("large", "large", "small")):
            now = datetime(2026, 1, 1 + n // 2, 12, tzinfo=UTC)
            await store.cost_entries.record(
                job.id,
                request_id=f"{n}",
                provider="acme",
                model=model,
                tokens_in=10,
                tokens_out=3,
                tokens_cached=2,
                cost_usd="0.75",
            )
    return path


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


async def test_job_progress(path: Path) -> None:
    assert rows(
        path,
        "SELECT task, status, steps, steps_done, steps_failed, fraction, running_step "
        "FROM job_progress ORDER BY task",
    ) == [("one", "running", 4, 1, 1, 0.25, "step 1"), ("two", "pending", 0, 0, 0, None, None)]


async def test_job_costs(path: Path) -> None:
    assert rows(
        path,
        "SELECT task, budget_usd, cost_usd, reserved_usd, remaining_usd, requests_made, "
        "requests_reserved, tokens_in, tokens_cached, tokens_out FROM job_costs ORDER BY task",
    ) == [
        ("one", 4.0, 2.25, 0.5, 1.25, 3, 1, 30, 6, 9),
        ("two", None, 0.0, 0.0, None, 0, 0, 0, 0, 0),
    ]


async def test_cost_by_day(path: Path) -> None:
    assert rows(
        path,
        "SELECT day, provider, model, requests, tokens_in, tokens_cached, tokens_out, cost_usd "
        "FROM cost_by_day ORDER BY day",
    ) == [
        ("2026-01-01", "acme", "large", 2, 20, 4, 6, 1.5),
        ("2026-01-02", "acme", "small", 1, 10, 2, 3, 0.75),
    ]


async def test_cost_by_day__holds_what_the_api_holds(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    url = f"sqlite:///{path}"
    async with MetadataStore.open(url, migrate=True) as store:
        for request in ("1", "2", "3"):
            job = await store.jobs.create(task=request, repo_owner="acme", repo_name="shop")
            recorded = await store.cost_entries.record(
                job.id,
                request_id=request,
                provider="acme",
                model="large",
                tokens_in=1,
                tokens_out=1,
                tokens_cache_write=2,
                tokens_reasoning=3,
                cost_usd=from_nano(MAX_NANO),
            )
        await store.cost_entries.correct(recorded.entry.id, request_id="back", amount_usd="-0.25")
        [total] = await store.cost_entries.summary()
    [(requests, cache_write, reasoning, cost)] = rows(
        path, "SELECT requests, tokens_cache_write, tokens_reasoning, cost_usd FROM cost_by_day"
    )
    assert (requests, cache_write, reasoning) == (3, 6, 9)
    assert cost == pytest.approx(float(total.cost_usd))
