from __future__ import annotations

from typing import Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    Job,
    JobCancelled,
    JobStep,
    JobStepStatus,
    MetadataStore,
)
from metastore.codec import new_id
from tests.repositories.states import check_pair, reach

VERBS: dict[str, Any] = {
    "start": lambda table, id_: table.start(id_),
    "complete": lambda table, id_: table.complete(id_, details="well"),
    "fail": lambda table, id_: table.fail(id_, details="badly"),
    "skip": lambda table, id_: table.skip(id_, details="no need"),
}
WANTED = {"start": "running", "complete": "completed", "fail": "failed", "skip": "skipped"}
PATHS: dict[str, tuple[str, ...]] = {
    "planned": (),
    "running": ("start",),
    "completed": ("start", "complete"),
    "failed": ("fail",),
    "skipped": ("skip",),
}
ALLOWED = {
    ("planned", "start"), ("planned", "fail"), ("planned", "skip"),
    ("running", "complete"), ("running", "fail"),
}  # fmt: skip


@pytest.fixture
async def job(store: MetadataStore) -> Job:
    return await store.jobs.create(task="fix it", repo_owner="acme", repo_name="shop")


@pytest.fixture
async def step(store: MetadataStore, job: Job) -> JobStep:
    return await store.job_steps.create(
        job_id=job.id, name="read", step_type="analysis", details="first"
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", PATHS)
async def test_status__every_state_and_verb(
    store: MetadataStore, step: JobStep, state: str, verb: str
) -> None:
    row = await reach(store.job_steps, VERBS, PATHS[state], step.id)
    becomes = WANTED[verb] if (state, verb) in ALLOWED else None
    moved = await check_pair(store.job_steps, VERBS, row, verb, becomes, WANTED[verb])
    if becomes == "running":
        assert (moved.details, moved.finished_at) == ("first", None)
        assert moved.started_at > moved.created_at
    elif becomes:
        assert moved.details == {"complete": "well", "fail": "badly", "skip": "no need"}[verb]
        assert moved.finished_at > moved.created_at
        assert moved.started_at == row.started_at


async def test_end__keeps_the_details_unless_there_are_others(
    store: MetadataStore, step: JobStep
) -> None:
    await store.job_steps.start(step.id)
    assert (await store.job_steps.complete(step.id)).details == "first"


async def test_create__returns_what_get_returns(store: MetadataStore, step: JobStep) -> None:
    assert await store.job_steps.get(step.id) == step
    assert step.status is JobStepStatus.PLANNED
    assert (step.name, step.step_type, step.details) == ("read", "analysis", "first")


async def test_create__refusals(store: MetadataStore, job: Job, step: JobStep) -> None:
    with pytest.raises(InvalidReference) as reference:
        await store.job_steps.create(job_id=new_id(), name="s", step_type="t")
    assert (reference.value.column, reference.value.references) == ("job_id", "jobs")
    with pytest.raises(AlreadyExists):
        await store.job_steps.create(job_id=job.id, name="s", step_type="t", id=step.id)
    for values in ({"name": ""}, {"name": "x" * 256}, {"step_type": ""}, {"details": 5}):
        with pytest.raises(InvalidValue):
            await store.job_steps.create(
                **{"job_id": job.id, "name": "s", "step_type": "t", **values}  # type: ignore[arg-type]
            )
    assert (await store.job_steps.list_by_job(job.id)).items == [step]


async def test_cancelled_job__begins_nothing_and_ends_what_has_begun(
    store: MetadataStore, job: Job, step: JobStep
) -> None:
    await store.jobs.start(job.id)
    begun = await store.job_steps.create(job_id=job.id, name="write", step_type="code")
    await store.job_steps.start(begun.id)
    called_off = await store.jobs.cancel(job.id)
    with pytest.raises(JobCancelled) as refused:
        await store.job_steps.create(job_id=job.id, name="test", step_type="code")
    assert refused.value.job == called_off
    with pytest.raises(JobCancelled) as refused:
        await store.job_steps.start(step.id)
    assert refused.value.job == called_off
    assert (await store.job_steps.get(step.id)).status == "planned"
    assert (await store.job_steps.complete(begun.id)).status == "completed"
    assert (await store.job_steps.skip(step.id)).status == "skipped"


async def test_list_by_job__walks_every_page_in_order(store: MetadataStore, job: Job) -> None:
    made = [
        await store.job_steps.create(job_id=job.id, name=f"{n}", step_type="code") for n in range(5)
    ]
    walked: list[JobStep] = []
    after = None
    while True:
        page = await store.job_steps.list_by_job(job.id, after=after, limit=2)
        walked += page.items
        after = page.next
        if after is None:
            break
    assert walked == made
