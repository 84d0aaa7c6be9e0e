from __future__ import annotations

import asyncio
import sqlite3
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidTransition,
    InvalidValue,
    Job,
    JobCancelled,
    JobStatus,
    MetadataStore,
    NotFound,
    StoreCorrupt,
)
from metastore.codec import new_id
from tests.repositories.states import check_pair, reach

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import Clock

VERBS: dict[str, Any] = {
    "start": lambda table, id_: table.start(id_),
    "pause": lambda table, id_: table.pause(id_),
    "resume": lambda table, id_: table.resume(id_),
    "complete": lambda table, id_: table.complete(id_),
    "fail": lambda table, id_: table.fail(id_, last_action="the build broke"),
    "acknowledge_cancel": lambda table, id_: table.acknowledge_cancel(id_),
    "cancel": lambda table, id_: table.cancel(id_),
}
WANTED = {
    "start": "running", "pause": "paused", "resume": "running", "complete": "completed",
    "fail": "failed", "acknowledge_cancel": "cancelled", "cancel": "cancelled",
}  # fmt: skip
PATHS: dict[str, tuple[str, ...]] = {
    "pending": (),
    "running": ("start",),
    "paused": ("start", "pause"),
    "running, cancelled": ("start", "cancel"),
    "paused, cancelled": ("start", "pause", "cancel"),
    "completed": ("start", "complete"),
    "failed": ("fail",),
    "cancelled": ("cancel",),
}
BECOMES = {
    ("pending", "start"): "running",
    ("pending", "fail"): "failed",
    ("pending", "cancel"): "cancelled",
    ("running", "pause"): "paused",
    ("running", "complete"): "completed",
    ("running", "fail"): "failed",
    ("running", "cancel"): "running",
    ("paused", "resume"): "running",
    ("paused", "complete"): "completed",
    ("paused", "fail"): "failed",
    ("paused", "cancel"): "paused",
    ("running, cancelled", "pause"): "paused",
    ("running, cancelled", "complete"): "completed",
    ("running, cancelled", "fail"): "failed",
    ("running, cancelled", "cancel"): "running",
    ("running, cancelled", "acknowledge_cancel"): "cancelled",
    ("paused, cancelled", "complete"): "completed",
    ("paused, cancelled", "fail"): "failed",
    ("paused, cancelled", "cancel"): "paused",
    ("paused, cancelled", "acknowledge_cancel"): "cancelled",
}


async def a_job(store: MetadataStore, **values: Any) -> Job:
    return await store.jobs.create(
        **{"task": "fix it", "repo_owner": "acme", "repo_name": "shop", **values}
    )


@pytest.fixture
async def job(store: MetadataStore) -> Job:
    return await a_job(store)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", PATHS)
async def test_status__every_state_and_verb(
    store: MetadataStore, job: Job, state: str, verb: str
) -> None:
    row = await reach(store.jobs, VERBS, PATHS[state], job.id)
    if (state, verb) == ("paused, cancelled", "resume"):
        with pytest.raises(JobCancelled) as called_off:
            await store.jobs.resume(job.id)
        assert called_off.value.job == row == await store.jobs.get(job.id)
        return
    becomes = BECOMES.get((state, verb))
    moved = await check_pair(store.jobs, VERBS, row, verb, becomes, WANTED[verb])
    if becomes is None:
        return
    assert moved.cancelled == (", cancelled" in state or verb == "cancel")
    assert moved.last_action == ("the build broke" if verb == "fail" else None)
    assert (moved.started_at is None) == (moved.started_at == row.started_at is None)
    if becomes in ("completed", "failed", "cancelled"):
        assert moved.finished_at == moved.updated_at > row.updated_at
    else:
        assert moved.finished_at is None
    if verb == "start":
        assert moved.started_at == moved.updated_at
    else:
        assert moved.started_at == row.started_at


async def test_create__returns_what_get_returns(store: MetadataStore) -> None:
    job = await a_job(
        store,
        task="Ü: raise the coverage\nof everything",
        branch_base="develop",
        budget_usd=Decimal("12.345678901"),
        max_requests=40,
        max_minutes=90,
        model_cto="gpt-4o",
        model_coder="gpt-4o-mini",
        agents_hash="c0ffee",
    )
    assert await store.jobs.get(job.id) == job
    assert job.status is JobStatus.PENDING
    assert job.task == "Ü: raise the coverage\nof everything"
    assert (job.repo_owner, job.repo_name, job.branch_base) == ("acme", "shop", "develop")
    assert (job.budget_nano_usd, job.budget_usd) == (12_345_678_901, Decimal("12.345678901"))
    assert (job.max_requests, job.max_minutes) == (40, 90)
    assert (job.model_cto, job.model_coder, job.agents_hash) == ("gpt-4o", "gpt-4o-mini", "c0ffee")
    assert (job.cost_usd, job.requests_made) == (Decimal(0), 0)
    assert (job.tokens_in, job.tokens_out, job.tokens_cached) == (0, 0, 0)
    assert (job.pr_links, job.last_action, job.cancelled) == ([], None, False)
    assert (job.started_at, job.finished_at) == (None, None)
    unlimited = await a_job(store)
    assert (unlimited.budget_usd, unlimited.max_requests, unlimited.max_minutes) == (None,) * 3
    assert unlimited.branch_base == "main"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("task", ""),
        ("repo_owner", ""),
        ("repo_name", "x" * 256),
        ("branch_base", "\0"),
        ("budget_usd", 1.5),
        ("budget_usd", Decimal("-0.01")),
        ("budget_usd", Decimal("NaN")),
        ("budget_usd", "0.0000000001"),
        ("max_requests", -1),
        ("max_requests", True),
        ("max_minutes", 5_256_001),
        ("id", "no-uuid"),
    ],
)
async def test_create__refusals(store: MetadataStore, column: str, value: object) -> None:
    with pytest.raises(InvalidValue) as refused:
        await a_job(store, **{column: value})
    assert (refused.value.table, refused.value.column) == ("jobs", column)
    assert (await store.jobs.list_recent()).items == []


async def test_create__an_id_is_taken_once(store: MetadataStore, job: Job) -> None:
    with pytest.raises(AlreadyExists) as exists:
        await a_job(store, id=job.id)
    assert (exists.value.table, exists.value.columns) == ("jobs", ("id",))


async def test_deadline__runs_from_the_start(store: MetadataStore) -> None:
    job = await a_job(store, max_minutes=90)
    assert job.deadline is None
    job = await store.jobs.start(job.id)
    assert job.started_at is not None
    assert job.deadline == job.started_at + timedelta(minutes=90)


async def test_set_limits__replaces_all_three(store: MetadataStore) -> None:
    job = await a_job(store, budget_usd=1, max_requests=2, max_minutes=3)
    job = await store.jobs.set_limits(job.id, budget_usd="0.5", max_requests=None, max_minutes=6)
    assert (job.budget_usd, job.max_requests, job.max_minutes) == (Decimal("0.50"), None, 6)
    assert await store.jobs.get(job.id) == job
    with pytest.raises(InvalidValue):
        await store.jobs.set_limits(job.id, budget_usd=0.1, max_requests=1, max_minutes=1)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await store.jobs.set_limits(new_id(), budget_usd=1, max_requests=1, max_minutes=1)
    assert await store.jobs.get(job.id) == job


async def test_set_last_action__tells_the_agent_that_it_was_called_off(
    store: MetadataStore, job: Job
) -> None:
    await store.jobs.start(job.id)
    noted = await store.jobs.set_last_action(job.id, "reads the code")
    assert (noted.last_action, noted.cancelled) == ("reads the code", False)
    await store.jobs.cancel(job.id)
    noted = await store.jobs.set_last_action(job.id, "writes tests")
    assert (noted.last_action, noted.cancelled, noted.status) == ("writes tests", True, "running")
    failed = await store.jobs.fail(job.id)
    assert failed.last_action == "writes tests"
    with pytest.raises(NotFound):
        await store.jobs.set_last_action(new_id(), "")


async def test_add_pr_link__appends_each_once(store: MetadataStore, job: Job) -> None:
    links = ['https://example.com/pull/1?a="b"', "https://example.com/pull/2", "ä"]
    for link in (*links, links[0]):
        changed = await store.jobs.add_pr_link(job.id, link)
    assert changed.pr_links == links
    assert await store.jobs.get(job.id) == changed
    with pytest.raises(NotFound):
        await store.jobs.add_pr_link(new_id(), "https://example.com")
    refused: Any
    for refused in ("", "x" * 2049, 7, "\0", "\ud800"):
        with pytest.raises(InvalidValue):
            await store.jobs.add_pr_link(job.id, refused)
    assert await store.jobs.get(job.id) == changed


async def test_add_pr_link__loses_none_of_two_stores(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/metadata.db"
    async with (
        MetadataStore.open(url, migrate=True) as one,
        MetadataStore.open(url) as two,
    ):
        job = await a_job(one)
        await asyncio.gather(
            *(store.jobs.add_pr_link(job.id, f"{n}") for n, store in enumerate([one, two] * 40))
        )
        links = (await one.jobs.get(job.id)).pr_links
    assert sorted(links, key=int) == [str(n) for n in range(80)]


async def test_progress__is_unknown_while_nothing_is_planned(
    store: MetadataStore, job: Job
) -> None:
    progress = await store.jobs.progress(job.id)
    assert (progress.total, progress.done, progress.failed) == (0, 0, 0)
    assert progress.fraction is None
    assert progress.running is None
    with pytest.raises(NotFound):
        await store.jobs.progress(new_id())


async def test_progress__counts_what_is_done_and_names_what_runs(
    store: MetadataStore, job: Job
) -> None:
    other = await a_job(store)
    await store.job_steps.create(job_id=other.id, name="elsewhere", step_type="plan")
    steps = [
        await store.job_steps.create(job_id=job.id, name=f"step {n}", step_type="code")
        for n in range(8)
    ]
    for step in steps[:5]:
        await store.job_steps.start(step.id)
    await store.job_steps.complete(steps[0].id)
    await store.job_steps.complete(steps[1].id)
    await store.job_steps.fail(steps[2].id)
    await store.job_steps.skip(steps[7].id)
    progress = await store.jobs.progress(job.id)
    assert (progress.total, progress.done, progress.failed) == (8, 3, 1)
    assert progress.fraction == 3 / 8
    assert progress.running == await store.job_steps.get(steps[3].id)


async def walked(list_page: Callable[..., Awaitable[Any]], *arguments: str) -> list[Job]:
    jobs: list[Job] = []
    after = None
    while True:
        page = await list_page(*arguments, after=after, limit=2)
        jobs += page.items
        after = page.next
        if after is None:
            return jobs


async def test_lists__walk_every_page_newest_first(store: MetadataStore) -> None:
    made = [await a_job(store, repo_name=name) for name in ("a", "b", "a", "a", "b")]
    started = await store.jobs.start(made[1].id)
    assert await walked(store.jobs.list_recent) == [made[4], made[3], made[2], started, made[0]]
    assert await walked(store.jobs.list_by_status, "pending") == [
        made[4], made[3], made[2], made[0]
    ]  # fmt: skip
    assert await walked(store.jobs.list_by_status, "running") == [started]
    assert await walked(store.jobs.list_by_repo, "acme", "a") == [made[3], made[2], made[0]]
    assert await walked(store.jobs.list_by_repo, "else", "a") == []
    with pytest.raises(InvalidValue):
        await store.jobs.list_by_status("planned")  # type: ignore[arg-type]


async def test_delete__takes_all_that_belongs_to_it(store: MetadataStore, job: Job) -> None:
    await store.jobs.start(job.id)
    step = await store.job_steps.create(job_id=job.id, name="s", step_type="plan")
    await store.budget_reservations.reserve(
        job.id, request_id="1", amount_usd=1, ttl=timedelta(minutes=1)
    )
    recorded = await store.cost_entries.record(
        job.id, request_id="2", provider="p", model="m", tokens_in=1, tokens_out=1, cost_usd=1
    )
    await store.jobs.delete(job.id)
    for get, id_ in (
        (store.jobs.get, job.id),
        (store.job_steps.get, step.id),
        (store.cost_entries.get, recorded.entry.id),
        (store.jobs.delete, job.id),
    ):
        with pytest.raises(NotFound):
            await get(id_)
    assert (await store.budget_reservations.list_by_job(job.id)).items == []


async def test_table__stamps_an_update_by_hand_and_keeps_its_rules(
    tmp_path: Path, clock: Clock
) -> None:
    url = f"sqlite:///{tmp_path}/metadata.db"
    async with MetadataStore.open(url, migrate=True, clock=clock) as store:
        job = await a_job(store)
    connection = sqlite3.connect(tmp_path / "metadata.db")
    connection.execute("UPDATE jobs SET last_action = 'by hand'")
    [(stamped,)] = connection.execute("SELECT updated_at FROM jobs").fetchall()
    assert stamped > job.updated_at.isoformat()
    for assignment in (
        "status = 'cancelled'",
        "status = 'running'",
        "cost_nano_usd = -1",
        "tokens_in = -1",
        "tokens_out = -1",
        "tokens_cached = -1",
        "requests_made = -1",
        "budget_nano_usd = -1",
        "cancelled = 2",
        "pr_links = '{}'",
        "created_at = 'yesterday'",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(f"UPDATE jobs SET {assignment}")
    connection.close()


async def test_transition__names_both_states(store: MetadataStore, job: Job) -> None:
    with pytest.raises(InvalidTransition) as refused:
        await store.jobs.acknowledge_cancel(job.id)
    assert str(refused.value) == "a pending job cannot become cancelled"


async def test_deadline__beyond_every_calendar_is_damage(store: MetadataStore) -> None:
    jobs = [
        await store.jobs.create(task="t", repo_owner="o", repo_name="r", max_minutes=5)
        for _ in range(2)
    ]
    for job in jobs:
        await store.jobs.start(job.id)
    raw = store._backend._writer.connection  # type: ignore[attr-defined]
    await raw.execute("PRAGMA ignore_check_constraints = ON")
    await raw.execute("UPDATE jobs SET max_minutes = ? WHERE id = ?", (1 << 62, jobs[0].id))
    with pytest.raises(StoreCorrupt) as caught:
        await store.budget_reservations.budget(jobs[0].id)
    assert (caught.value.row_id, caught.value.column) == (jobs[0].id, "max_minutes")
    assert (await store.budget_reservations.budget(jobs[1].id)).deadline is not None
