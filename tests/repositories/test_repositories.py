from __future__ import annotations

from typing import Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    MetadataStore,
    NotFound,
    Repository,
)
from metastore.codec import new_id


async def test_create__returns_what_get_and_find_return(store: MetadataStore) -> None:
    created = await store.repositories.create(
        name="app", remote_url="git@example.com:app.git", metadata={"team": "ä"}
    )
    assert (created.default_branch, created.metadata) == ("main", {"team": "ä"})
    assert created.created_at == created.updated_at
    assert await store.repositories.get(created.id) == created
    assert await store.repositories.find_by_name("app") == created
    assert await store.repositories.find_by_name("App") is None


async def test_create__a_name_is_taken_once(store: MetadataStore, repository: Repository) -> None:
    with pytest.raises(AlreadyExists) as taken:
        await store.repositories.create(name=repository.name, remote_url="")
    assert (taken.value.table, taken.value.columns) == ("repositories", ("name",))


async def test_create__repeated_under_its_id_is_refused(store: MetadataStore) -> None:
    created = await store.repositories.create(name="app", remote_url="", id=new_id())
    with pytest.raises(AlreadyExists) as taken:
        await store.repositories.create(name="other", remote_url="", id=created.id)
    assert (taken.value.table, taken.value.columns) == ("repositories", ("id",))
    assert (await store.repositories.list()).items == [created]


async def test_get__of_nothing(store: MetadataStore) -> None:
    unknown = new_id()
    with pytest.raises(NotFound) as missing:
        await store.repositories.get(unknown)
    assert (missing.value.table, missing.value.key) == ("repositories", unknown)


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": 5},
        {"remote_url": None},
        {"default_branch": ""},
        {"metadata": []},
        {"id": "1"},
    ],
)
async def test_create__refusals(store: MetadataStore, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue) as refused:
        await store.repositories.create(**({"name": "a", "remote_url": ""} | values))
    assert refused.value.column == next(iter(values))
    assert (await store.repositories.list()).items == []


async def test_list__walks_every_page(store: MetadataStore) -> None:
    made = [await store.repositories.create(name=str(n), remote_url="") for n in range(5)]
    page = await store.repositories.list(limit=3)
    rest = await store.repositories.list(after=page.next, limit=3)
    assert page.items + rest.items == made
    assert rest.next is None
    whole = await store.repositories.list(limit=5)
    assert (whole.items, whole.next) == (made, None)


async def test_update__changes_all_it_is_given(
    store: MetadataStore, repository: Repository
) -> None:
    updated = await store.repositories.update(
        repository.id, remote_url="new", default_branch="trunk", metadata={"x": 1}
    )
    assert (updated.remote_url, updated.default_branch, updated.metadata) == (
        "new", "trunk", {"x": 1}
    )  # fmt: skip
    assert updated.created_at == repository.created_at < updated.updated_at
    assert await store.repositories.get(repository.id) == updated
    with pytest.raises(NotFound):
        await store.repositories.update(new_id(), remote_url="", default_branch="main", metadata={})


async def test_delete__not_while_worktrees_or_sessions_need_it(
    store: MetadataStore, repository: Repository
) -> None:
    worktree = await store.worktrees.create(repository_id=repository.id, path="/w")
    with pytest.raises(InvalidReference) as needed:
        await store.repositories.delete(repository.id)
    assert (needed.value.table, needed.value.column) == ("worktrees", "repository_id")
    await store.worktrees.delete(worktree.id)
    session = await store.sessions.create(session_type="debug", repository_id=repository.id)
    with pytest.raises(InvalidReference) as needed:
        await store.repositories.delete(repository.id)
    assert needed.value.table == "sessions"
    await store.sessions.delete(session.id)
    await store.repositories.delete(repository.id)
    with pytest.raises(NotFound):
        await store.repositories.delete(repository.id)
