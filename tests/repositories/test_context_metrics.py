"""Context metrics: what became of each context, and what a job's come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from metastore.errors import AlreadyExists, InvalidReference, InvalidValue, NotFound
from metastore.repositories.context_metrics import ContextTotals

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


async def test_create__notes_a_context(
    store: MetadataStore, clock: Clock, job_id: str, step_id: str
) -> None:
    before = clock.now
    metric = await store.context_metrics.create(
        job_id=job_id,
        step_id=step_id,
        tokens_final=8_000,
        tokens_clipped=500,
        compact_ops=2,
        details={"window": 8192},
    )
    assert before <= metric.created_at <= clock.now
    assert dict(metric) == {
        "id": metric.id,
        "job_id": job_id,
        "step_id": step_id,
        "tokens_final": 8_000,
        "tokens_clipped": 500,
        "compact_ops": 2,
        "details": {"window": 8192},
        "created_at": metric.created_at,
    }
    assert await store.context_metrics.get(metric.id) == metric


async def test_create__what_is_left_out_is_nothing(store: MetadataStore, job_id: str) -> None:
    metric = await store.context_metrics.create(job_id=job_id, tokens_final=1)
    assert (metric.tokens_clipped, metric.compact_ops, metric.details) == (0, 0, {})
    assert metric.step_id is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("tokens_final", -1),
        ("tokens_final", None),
        ("tokens_clipped", -1),
        ("tokens_clipped", 1 << 54),
        ("compact_ops", "1"),
        ("details", [1]),
        ("job_id", "job"),
    ],
)
async def test_create__refuses(store: MetadataStore, job_id: str, column: str, value: Any) -> None:
    values: dict[str, Any] = {"job_id": job_id, "tokens_final": 1} | {column: value}
    with pytest.raises(InvalidValue) as refused:
        await store.context_metrics.create(**values)
    assert refused.value.column == column
    assert (await store.context_metrics.totals(job_id)).contexts == 0


@pytest.mark.parametrize(("column", "table"), [("job_id", "jobs"), ("step_id", "job_steps")])
async def test_create__needs_its_job_and_step(
    store: MetadataStore, job_id: str, column: str, table: str
) -> None:
    values: dict[str, Any] = {"job_id": job_id, "tokens_final": 1} | {column: UNKNOWN}
    with pytest.raises(InvalidReference) as refused:
        await store.context_metrics.create(**values)
    assert (refused.value.column, refused.value.references) == (column, table)


async def test_create__is_not_repeated(store: MetadataStore, job_id: str) -> None:
    await store.context_metrics.create(job_id=job_id, tokens_final=1, id=UNKNOWN)
    with pytest.raises(AlreadyExists):
        await store.context_metrics.create(job_id=job_id, tokens_final=1, id=UNKNOWN)


async def test_get__wants_a_metric_that_is_there(store: MetadataStore) -> None:
    with pytest.raises(NotFound):
        await store.context_metrics.get(UNKNOWN)


async def test_lists__walk_page_by_page_oldest_first(
    store: MetadataStore, job_id: str, step_id: str
) -> None:
    other = await store.jobs.create(task="Another", repo_owner="acme", repo_name="shop")
    await store.context_metrics.create(job_id=other.id, tokens_final=99)
    made = [
        await store.context_metrics.create(
            job_id=job_id, tokens_final=number, step_id=step_id if number % 2 else None
        )
        for number in range(7)
    ]
    for lister, key, expected in (
        (store.context_metrics.list_by_job, job_id, made),
        (store.context_metrics.list_by_step, step_id, made[1::2]),
    ):
        walked = []
        page = await lister(key, limit=2)
        walked += page.items
        while page.next is not None:
            page = await lister(key, after=page.next, limit=2)
            walked += page.items
        assert walked == expected


async def test_totals__add_up_one_job(store: MetadataStore, job_id: str) -> None:
    assert await store.context_metrics.totals(job_id) == ContextTotals(0, 0, 0, 0, 0)
    other = await store.jobs.create(task="Another", repo_owner="acme", repo_name="shop")
    await store.context_metrics.create(job_id=other.id, tokens_final=99, tokens_clipped=99)
    for final, clipped, compactions in ((100, 0, 0), (300, 40, 1), (200, 2, 3)):
        await store.context_metrics.create(
            job_id=job_id,
            tokens_final=final,
            tokens_clipped=clipped,
            compact_ops=compactions,
        )
    assert await store.context_metrics.totals(job_id) == ContextTotals(
        contexts=3, tokens_final=600, tokens_clipped=42, compactions=4, largest=300
    )


async def test_metrics__go_with_their_job(store: MetadataStore, job_id: str) -> None:
    await store.context_metrics.create(job_id=job_id, tokens_final=1)
    await store.jobs.delete(job_id)
    assert await store.context_metrics.totals(job_id) == ContextTotals(0, 0, 0, 0, 0)
