"""Memory items: one note for each kind and key, found by tags, within limits that are data."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from metastore.errors import InvalidReference, InvalidValue, LimitExceeded, NotFound

if TYPE_CHECKING:
    from metastore.store import MetadataStore
    from tests.conftest import Clock

UNKNOWN = "0190a5a4-7f62-7000-8000-000000000000"


@pytest.fixture
async def job_id(store: MetadataStore) -> str:
    job = await store.jobs.create(task="Fix the build", repo_owner="acme", repo_name="shop")
    return job.id


async def test_put__notes_and_get_reads_it_back(
    store: MetadataStore, clock: Clock, job_id: str
) -> None:
    before = clock.now
    item = await store.memory_items.put(
        job_id, kind="notes", key="build", content={"tool": "make"}, tags=["ci", "build"]
    )
    assert before <= item.created_at <= clock.now
    assert dict(item) == {
        "id": item.id,
        "job_id": job_id,
        "kind": "notes",
        "key": "build",
        "content": {"tool": "make"},
        "tags": ["ci", "build"],
        "created_at": item.created_at,
        "updated_at": item.created_at,
    }
    assert await store.memory_items.get(job_id, kind="notes", key="build") == item
    assert await store.memory_items.find(job_id, kind="notes", key="build") == item


@pytest.mark.parametrize(
    "content", [None, True, 0, -1.5, "", "Größe 📏", [], [1, [None]], {}, {"a": {"b": [1]}}]
)
async def test_put__takes_any_json(store: MetadataStore, job_id: str, content: Any) -> None:
    await store.memory_items.put(job_id, kind="notes", key="k", content=content)
    item = await store.memory_items.get(job_id, kind="notes", key="k")
    assert item.content == content
    assert type(item.content) is type(content)


async def test_put__replaces_what_has_the_same_kind_and_key(
    store: MetadataStore, job_id: str
) -> None:
    first = await store.memory_items.put(job_id, kind="a", key="k", content=1, tags=["x"])
    second = await store.memory_items.put(job_id, kind="a", key="k", content=2, tags=["y"])
    other = await store.memory_items.put(job_id, kind="b", key="k", content=3)
    assert (second.id, second.created_at) == (first.id, first.created_at)
    assert (second.content, second.tags) == (2, ["y"])
    assert second.updated_at > first.updated_at
    assert other.id != first.id
    assert (await store.memory_items.list_by_job(job_id)).items == [second, other]


async def test_put__keeps_one_of_equal_tags(store: MetadataStore, job_id: str) -> None:
    item = await store.memory_items.put(job_id, kind="a", key="k", content=1, tags=["y", "x", "y"])
    assert item.tags == ["y", "x"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("kind", {"kind": ""}),
        ("key", {"key": "k" * 256}),
        ("key", {"key": "nul\0"}),
        ("content", {"content": float("nan")}),
        ("content", {"content": {1: 2}}),
        ("content", {"content": "\ud800"}),
        ("tags", {"tags": "ci"}),
        ("tags", {"tags": [1]}),
        ("tags", {"tags": [["ci"]]}),
        ("tags", {"tags": [""]}),
        ("tags", {"tags": 7}),
    ],
)
async def test_put__refuses_and_stores_nothing(
    store: MetadataStore, job_id: str, column: str, values: dict[str, Any]
) -> None:
    good: dict[str, Any] = {"kind": "a", "key": "k", "content": 1}
    with pytest.raises(InvalidValue) as refused:
        await store.memory_items.put(job_id, **(good | values))
    assert (refused.value.table, refused.value.column) == ("memory_items", column)
    assert (await store.memory_items.list_by_job(job_id)).items == []


async def test_put__needs_the_job(store: MetadataStore) -> None:
    with pytest.raises(InvalidReference) as refused:
        await store.memory_items.put(UNKNOWN, kind="a", key="k", content=1)
    assert (refused.value.column, refused.value.references) == ("job_id", "jobs")


# Limits.


@pytest.mark.parametrize(
    ("limit", "maximum", "content", "tags", "actual"),
    [
        ("max_item_bytes", 6, "ä234", [], 7),
        ("max_item_tags", 1, 1, ["a", "b"], 2),
        ("max_items", 0, 1, [], 1),
    ],
)
async def test_put__names_the_limit(
    store: MetadataStore,
    job_id: str,
    limit: str,
    maximum: int,
    content: Any,
    tags: list[str],
    actual: int,
) -> None:
    await store.memory_limits.set(job_id, **{limit: maximum})
    with pytest.raises(LimitExceeded) as refused:
        await store.memory_items.put(job_id, kind="a", key="k", content=content, tags=tags)
    error = refused.value
    assert (error.job_id, error.limit, error.maximum, error.actual) == (
        job_id,
        limit,
        maximum,
        actual,
    )
    assert str(error) == f"job {job_id} has a {limit} of {maximum}; this write needs {actual}"
    assert (await store.memory_items.list_by_job(job_id)).items == []
    await store.memory_limits.set(job_id, **{limit: actual})
    await store.memory_items.put(job_id, kind="a", key="k", content=content, tags=tags)


async def test_put__replaces_at_the_limit(store: MetadataStore, job_id: str) -> None:
    await store.memory_limits.set(job_id, max_items=1)
    await store.memory_items.put(job_id, kind="a", key="k", content=1)
    item = await store.memory_items.put(job_id, kind="a", key="k", content=2)
    assert item.content == 2
    with pytest.raises(LimitExceeded):
        await store.memory_items.put(job_id, kind="a", key="other", content=3)
    await store.memory_items.delete(job_id, kind="a", key="k")
    await store.memory_items.put(job_id, kind="a", key="other", content=3)


async def test_put__counts_each_job_for_itself(store: MetadataStore, job_id: str) -> None:
    other = await store.jobs.create(task="Another", repo_owner="acme", repo_name="shop")
    await store.memory_limits.set(job_id, max_items=1)
    for key in "ab":
        await store.memory_items.put(other.id, kind="a", key=key, content=1)
    await store.memory_items.put(job_id, kind="a", key="k", content=1)


async def test_put__racers_do_not_get_past_the_limit(store: MetadataStore, job_id: str) -> None:
    await store.memory_limits.set(job_id, max_items=10)
    results = await asyncio.gather(
        *(store.memory_items.put(job_id, kind="a", key=f"k{n}", content=n) for n in range(64)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, LimitExceeded)]
    assert len(refused) == 54
    assert {error.actual for error in refused} == {11}
    assert len((await store.memory_items.list_by_job(job_id)).items) == 10


# Finding.


@pytest.fixture
async def noted(store: MetadataStore, job_id: str) -> None:
    other = await store.jobs.create(task="Another", repo_owner="acme", repo_name="shop")
    for job in (job_id, other.id):
        for kind, key, tags in (
            ("fact", "1", ["red"]),
            ("fact", "2", ["red", "blue"]),
            ("plan", "3", ["blue", "red"]),
            ("plan", "4", []),
            ("fact", "5", ['quo"te', "red blue"]),
        ):
            await store.memory_items.put(job, kind=kind, key=key, content=key, tags=tags)


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ({}, "12345"),
        ({"kind": "plan"}, "34"),
        ({"kind": "none"}, ""),
        ({"tags": ["red"]}, "123"),
        ({"tags": ["blue", "red"]}, "23"),
        ({"tags": ["blue", "red"], "kind": "fact"}, "2"),
        ({"tags": ["red", "green"]}, ""),
        ({"tags": ["green", "blue"], "match": "any"}, "23"),
        ({"tags": ["red", 'quo"te'], "match": "any", "kind": "fact"}, "125"),
        ({"tags": ['quo"te']}, "5"),
        ({"tags": ["re"], "match": "any"}, ""),
        ({"match": "any"}, "12345"),
    ],
)
async def test_search__finds_by_tags_and_kind(
    store: MetadataStore, job_id: str, query: dict[str, Any], keys: str
) -> None:
    page = await store.memory_items.search(job_id, **query)
    assert [item.key for item in page.items] == list(keys)
    assert {item.job_id for item in page.items} <= {job_id}


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize("kind", [None, "fact", "plan"])
@pytest.mark.parametrize("match", ["all", "any"])
@pytest.mark.parametrize("tags", [[], ["red"]])
async def test_search__walks_page_by_page(
    store: MetadataStore, job_id: str, kind: str | None, match: Any, tags: list[str]
) -> None:
    whole = await store.memory_items.search(job_id, tags=tags, match=match, kind=kind)
    walked = []
    after = None
    while True:
        page = await store.memory_items.search(
            job_id, tags=tags, match=match, kind=kind, after=after, limit=1
        )
        walked += page.items
        after = page.next
        if after is None:
            break
    assert walked == whole.items
    assert whole.items


async def test_search__refuses_an_unknown_match(store: MetadataStore, job_id: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await store.memory_items.search(job_id, tags=["a"], match="none")  # type: ignore[arg-type]
    assert refused.value.column == "match"


@pytest.mark.usefixtures("noted")
async def test_list_by_job__lists_one_kind(store: MetadataStore, job_id: str) -> None:
    page = await store.memory_items.list_by_job(job_id, kind="plan", limit=1)
    assert [item.key for item in page.items] == ["3"]
    page = await store.memory_items.list_by_job(job_id, kind="plan", after=page.next)
    assert [item.key for item in page.items] == ["4"]


async def test_get_and_delete__want_a_note_that_is_there(store: MetadataStore, job_id: str) -> None:
    await store.memory_items.put(job_id, kind="a", key="k", content=1)
    await store.memory_items.delete(job_id, kind="a", key="k")
    for verb in (store.memory_items.get, store.memory_items.delete):
        with pytest.raises(NotFound) as missing:
            await verb(job_id, kind="a", key="k")
        assert missing.value.key == (job_id, "a", "k")
    assert await store.memory_items.find(job_id, kind="a", key="k") is None


async def test_items__go_with_their_job(store: MetadataStore, job_id: str) -> None:
    await store.memory_items.put(job_id, kind="a", key="k", content=1)
    await store.jobs.delete(job_id)
    assert (await store.memory_items.list_by_job(job_id)).items == []


async def test_transaction__undoes_notes(store: MetadataStore, job_id: str) -> None:
    async def body() -> None:
        async with store.transaction() as tx:
            await tx.memory_items.put(job_id, kind="a", key="k", content=1)
            assert (await tx.memory_items.search(job_id)).items
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await body()
    assert await store.memory_items.find(job_id, kind="a", key="k") is None
