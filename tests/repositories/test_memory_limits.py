"""Memory limits: one row for all jobs, and one for each job that has its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from metastore.errors import InvalidReference, InvalidValue, NotFound

if TYPE_CHECKING:
    from metastore.store import MetadataStore

UNKNOWN = "0190a5a4-7f62-7000-8000-000000000000"
LIMITS = {
    "max_items": 1_000,
    "max_item_bytes": 64 << 10,
    "max_item_tags": 20,
    "max_files": 1_000,
    "max_file_bytes": 64 << 20,
    "max_job_file_bytes": 256 << 20,
}


@pytest.fixture
async def job_id(store: MetadataStore) -> str:
    job = await store.jobs.create(task="Fix the build", repo_owner="acme", repo_name="shop")
    return job.id


async def test_get_default__is_there_from_the_start(store: MetadataStore) -> None:
    limits = await store.memory_limits.get_default()
    assert limits.job_id is None
    assert {name: limits[name] for name in LIMITS} == LIMITS


async def test_get__falls_back_to_the_default(store: MetadataStore, job_id: str) -> None:
    assert await store.memory_limits.get(job_id) == await store.memory_limits.get_default()


@pytest.mark.parametrize("name", LIMITS)
async def test_set__changes_one_limit_of_one_job(
    store: MetadataStore, job_id: str, name: str
) -> None:
    default = await store.memory_limits.get_default()
    own = await store.memory_limits.set(job_id, **{name: 7})
    assert own.job_id == job_id
    assert {column: own[column] for column in LIMITS} == LIMITS | {name: 7}
    assert await store.memory_limits.get(job_id) == own
    assert await store.memory_limits.get_default() == default
    again = await store.memory_limits.set(job_id, max_items=8)
    assert {column: again[column] for column in LIMITS} == LIMITS | {name: 7} | {"max_items": 8}
    assert (again.id, again.created_at) == (own.id, own.created_at)
    assert again.updated_at > own.updated_at


@pytest.mark.parametrize("name", LIMITS)
async def test_set_default__changes_one_limit_of_the_others(
    store: MetadataStore, job_id: str, name: str
) -> None:
    other = await store.jobs.create(task="Another", repo_owner="acme", repo_name="shop")
    own = await store.memory_limits.set(other.id)
    changed = await store.memory_limits.set_default(**{name: 7})
    assert {column: changed[column] for column in LIMITS} == LIMITS | {name: 7}
    assert await store.memory_limits.get(job_id) == changed
    assert await store.memory_limits.get(other.id) == own


@pytest.mark.parametrize("value", [-1, 1.5, "1", True, 1 << 63])
async def test_set__refuses_what_is_no_limit(store: MetadataStore, job_id: str, value: Any) -> None:
    for name in LIMITS:
        with pytest.raises(InvalidValue) as refused:
            await store.memory_limits.set(job_id, **{name: value})
        assert refused.value.column == name
        with pytest.raises(InvalidValue):
            await store.memory_limits.set_default(**{name: value})


async def test_set__needs_the_job(store: MetadataStore) -> None:
    with pytest.raises(InvalidReference) as refused:
        await store.memory_limits.set(UNKNOWN, max_items=1)
    assert (refused.value.table, refused.value.column) == ("memory_limits", "job_id")


async def test_delete__brings_the_default_back(store: MetadataStore, job_id: str) -> None:
    await store.memory_limits.set(job_id, max_items=1)
    await store.memory_limits.delete(job_id)
    assert await store.memory_limits.get(job_id) == await store.memory_limits.get_default()
    with pytest.raises(NotFound):
        await store.memory_limits.delete(job_id)


async def test_limits__go_with_their_job(store: MetadataStore, job_id: str) -> None:
    await store.memory_limits.set(job_id, max_items=1)
    await store.jobs.delete(job_id)
    with pytest.raises(NotFound):
        await store.memory_limits.delete(job_id)


async def test_set__at_once_loses_no_change(store: MetadataStore, job_id: str) -> None:
    other = await store.jobs.create(task="Another", repo_owner="acme", repo_name="shop")
    await store.memory_limits.set(other.id, max_items=5)
    for round_ in range(1, 11):
        changes = {name: round_ * 10 + n for n, name in enumerate(LIMITS)}
        await asyncio.gather(
            *(store.memory_limits.set(job_id, **{name: n}) for name, n in changes.items()),
            *(store.memory_limits.set_default(**{name: n + 1}) for name, n in changes.items()),
        )
        own = await store.memory_limits.get(job_id)
        default = await store.memory_limits.get_default()
        assert {name: own[name] for name in LIMITS} == changes
        assert {name: default[name] - 1 for name in LIMITS} == changes
    assert (await store.memory_limits.get(other.id)).max_items == 5


@pytest.mark.parametrize("is_own", [True, False])
async def test_set__none_given_changes_nothing(
    store: MetadataStore, job_id: str, is_own: bool
) -> None:
    await store.memory_limits.set_default(max_files=3)
    if is_own:
        await store.memory_limits.set(job_id, max_items=0)
    expected = LIMITS | {"max_files": 3} | ({"max_items": 0} if is_own else {})
    own = await store.memory_limits.set(job_id)
    assert {name: own[name] for name in LIMITS} == expected


async def test_set__of_no_job_is_refused_and_the_default_stays(
    store: MetadataStore, job_id: str
) -> None:
    await store.memory_limits.set(job_id, max_items=7)
    default = await store.memory_limits.get_default()
    with pytest.raises(InvalidValue) as refused:
        await store.memory_limits.set(None, max_items=8)  # type: ignore[arg-type]
    assert refused.value.column == "job_id"
    assert await store.memory_limits.get_default() == default
    assert (await store.memory_limits.get(job_id)).max_items == 7
