"""Message summaries: kept as they were made, listed by job and by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from metastore.errors import AlreadyExists, InvalidReference, InvalidValue, NotFound

if TYPE_CHECKING:
    from metastore.store import MetadataStore
    from tests.conftest import Clock

UNKNOWN = "0190a5a4-7f62-7000-8000-000000000000"


@pytest.fixture
async def job_id(store: MetadataStore) -> str:
    job = await store.jobs.create(task="Fix the build", repo_owner="acme", repo_name="shop")
    return job.id


@pytest.fixture
async def step_id(store: MetadataStore, job_id: str) -> str:
    step = await store.job_steps.create(job_id=job_id, name="plan", step_type="plan")
    return step.id


async def test_create__keeps_a_summary(
    store: MetadataStore, clock: Clock, job_id: str, step_id: str
) -> None:
    before = clock.now
    summary = await store.message_summaries.create(
        job_id=job_id, step_id=step_id, role="assistant", summary="Built it.", tokens=3
    )
    assert before <= summary.created_at <= clock.now
    assert dict(summary) == {
        "id": summary.id,
        "job_id": job_id,
        "step_id": step_id,
        "role": "assistant",
        "summary": "Built it.",
        "tokens": 3,
        "created_at": summary.created_at,
    }
    assert await store.message_summaries.get(summary.id) == summary


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("role", ""),
        ("role", "r" * 51),
        ("summary", "nul\0"),
        ("summary", None),
        ("tokens", -1),
        ("tokens", 1.0),
        ("step_id", "step"),
        ("job_id", "job"),
    ],
)
async def test_create__refuses(store: MetadataStore, job_id: str, column: str, value: Any) -> None:
    good: dict[str, Any] = {"job_id": job_id, "role": "user", "summary": "s", "tokens": 1}
    with pytest.raises(InvalidValue) as refused:
        await store.message_summaries.create(**(good | {column: value}))
    assert refused.value.column == column
    assert (await store.message_summaries.list_by_job(job_id)).items == []


@pytest.mark.parametrize(("column", "table"), [("job_id", "jobs"), ("step_id", "job_steps")])
async def test_create__needs_its_job_and_step(
    store: MetadataStore, job_id: str, column: str, table: str
) -> None:
    good: dict[str, Any] = {"job_id": job_id, "role": "user", "summary": "s", "tokens": 1}
    with pytest.raises(InvalidReference) as refused:
        await store.message_summaries.create(**(good | {column: UNKNOWN}))
    assert (refused.value.column, refused.value.references) == (column, table)


async def test_create__is_not_repeated(store: MetadataStore, job_id: str) -> None:
    await store.message_summaries.create(
        job_id=job_id, role="user", summary="s", tokens=1, id=UNKNOWN
    )
    with pytest.raises(AlreadyExists):
        await store.message_summaries.create(
            job_id=job_id, role="user", summary="s", tokens=1, id=UNKNOWN
        )


async def test_get__wants_a_summary_that_is_there(store: MetadataStore) -> None:
    with pytest.raises(NotFound):
        await store.message_summaries.get(UNKNOWN)


async def test_lists__walk_page_by_page_oldest_first(
    store: MetadataStore, job_id: str, step_id: str
) -> None:
    other = await store.jobs.create(task="Another", repo_owner="acme", repo_name="shop")
    await store.message_summaries.create(job_id=other.id, role="user", summary="s", tokens=1)
    made = [
        await store.message_summaries.create(
            job_id=job_id,
            role="user",
            summary=str(number),
            tokens=1,
            step_id=step_id if number % 2 else None,
        )
        for number in range(7)
    ]
    for lister, key, expected in (
        (store.message_summaries.list_by_job, job_id, made),
        (store.message_summaries.list_by_step, step_id, made[1::2]),
    ):
        walked = []
        page = await lister(key, limit=2)
        walked += page.items
        while page.next is not None:
            page = await lister(key, after=page.next, limit=2)
            walked += page.items
        assert walked == expected
        with pytest.raises(InvalidValue):
            await lister(key, limit=0)


async def test_summaries__go_with_their_job(store: MetadataStore, job_id: str) -> None:
    await store.message_summaries.create(job_id=job_id, role="user", summary="s", tokens=1)
    await store.jobs.delete(job_id)
    assert (await store.message_summaries.list_by_job(job_id)).items == []
