"""Projects: one for each path, first seen once, touched ever after."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore.errors import InvalidReference, InvalidValue, NotFound
from metastore.paging import MAX_PAGE

if TYPE_CHECKING:
    from metastore.repositories.projects import Project
    from metastore.store import MetadataStore
    from tests.conftest import Clock

MINUTE = timedelta(minutes=1)
UNKNOWN = "0190a5a4-7f62-7000-8000-000000000000"


async def test_ensure__registers_a_path_that_is_seen_for_the_first_time(
    store: MetadataStore, clock: Clock
) -> None:
    before = clock.now
    project = await store.projects.ensure(path="/srv/shop", name="Shop", config={"jdk": 21})
    assert before <= project.created_at <= clock.now
    assert dict(project) == {
        "id": project.id,
        "path": "/srv/shop",
        "name": "Shop",
        "config": {"jdk": 21},
        "created_at": project.created_at,
        "updated_at": project.created_at,
    }
    assert await store.projects.get(project.id) == project


async def test_ensure__name_and_config_may_be_left_out(store: MetadataStore) -> None:
    project = await store.projects.ensure(path="/srv/shop")
    assert project.name is None
    assert project.config == {}
    assert await store.projects.get(project.id) == project


async def test_ensure__touches_a_known_path_and_keeps_when_it_was_first_seen(
    store: MetadataStore, clock: Clock
) -> None:
    first = await store.projects.ensure(path="/srv/shop", name="Shop", config={"jdk": 21})
    clock.now += MINUTE
    again = await store.projects.ensure(path="/srv/shop")
    assert again.id == first.id
    assert again.created_at == first.created_at
    assert first.updated_at + MINUTE <= again.updated_at <= clock.now
    assert again.name == "Shop"
    assert again.config == {"jdk": 21}
    assert await store.projects.get(first.id) == again


async def test_ensure__replaces_only_what_is_given(store: MetadataStore, clock: Clock) -> None:
    await store.projects.ensure(path="/srv/shop", name="Shop", config={"jdk": 21})
    clock.now += MINUTE
    renamed = await store.projects.ensure(path="/srv/shop", name="Store")
    assert (renamed.name, renamed.config) == ("Store", {"jdk": 21})
    clock.now += MINUTE
    configured = await store.projects.ensure(path="/srv/shop", config={"maven": "3.9"})
    assert (configured.name, configured.config) == ("Store", {"maven": "3.9"})
    clock.now += MINUTE
    both = await store.projects.ensure(path="/srv/shop", name="Shop", config={})
    assert (both.name, both.config) == ("Shop", {})
    assert await store.projects.get(both.id) == both


async def test_ensure__concurrent_callers_get_the_same_project(store: MetadataStore) -> None:
    projects = await asyncio.gather(*(store.projects.ensure(path="/srv/shop") for _ in range(8)))
    assert len({project.id for project in projects}) == 1
    page = await store.projects.list()
    assert [project.path for project in page.items] == ["/srv/shop"]


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ({"path": ""}, "path"),
        ({"path": "/srv/\0shop"}, "path"),
        ({"path": "/" + "x" * 4096}, "path"),
        ({"path": None}, "path"),
        ({"path": "/srv/shop", "name": ""}, "name"),
        ({"path": "/srv/shop", "name": "x" * 256}, "name"),
        ({"path": "/srv/shop", "config": ["jdk"]}, "config"),
        ({"path": "/srv/shop", "config": {"load": float("nan")}}, "config"),
    ],
)
async def test_ensure__refuses_what_it_cannot_store(
    store: MetadataStore, values: dict[str, Any], column: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        await store.projects.ensure(**values)
    assert (caught.value.table, caught.value.column) == ("projects", column)
    assert (await store.projects.list()).items == []


async def test_get__unknown_project_is_not_found(store: MetadataStore) -> None:
    with pytest.raises(NotFound) as caught:
        await store.projects.get(UNKNOWN)
    assert (caught.value.table, caught.value.key) == ("projects", UNKNOWN)


async def test_find_by_path__returns_the_project_or_none(store: MetadataStore) -> None:
    project = await store.projects.ensure(path="/srv/shop")
    assert await store.projects.find_by_path("/srv/shop") == project
    assert await store.projects.find_by_path("/srv/sho") is None


async def test_list__pages_walk_all_projects_in_the_order_first_seen(store: MetadataStore) -> None:
    created = [await store.projects.ensure(path=f"/srv/{n}") for n in range(7)]
    seen: list[Project] = []
    after: str | None = None
    while True:
        page = await store.projects.list(after=after, limit=3)
        assert len(page.items) <= 3
        seen += page.items
        after = page.next
        if after is None:
            break
    assert seen == created


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1, True, None])
async def test_list__refuses_a_limit_out_of_range(store: MetadataStore, limit: Any) -> None:
    with pytest.raises(InvalidValue):
        await store.projects.list(limit=limit)


async def test_delete__forgets_the_project(store: MetadataStore) -> None:
    project = await store.projects.ensure(path="/srv/shop")
    await store.projects.delete(project.id)
    assert await store.projects.find_by_path("/srv/shop") is None
    with pytest.raises(NotFound):
        await store.projects.delete(project.id)


async def test_delete__is_refused_while_sessions_refer_to_it(store: MetadataStore) -> None:
    session = await store.sessions.create(session_type="test_generation", project_path="/srv/shop")
    project = await store.projects.find_by_path("/srv/shop")
    assert project is not None
    with pytest.raises(InvalidReference) as caught:
        await store.projects.delete(project.id)
    assert caught.value.table == "sessions"
    assert await store.projects.get(project.id) == project
    assert (await store.sessions.get(session.id)).project_path == "/srv/shop"


async def test_delete__takes_the_lock_with_it(file_store: MetadataStore, store_url: str) -> None:
    store = file_store
    project = await store.projects.ensure(path="/srv/shop")
    await store.projects.ensure(path="/srv/other")
    session = await store.sessions.create(session_type="test_generation", project_path="/srv/shop")
    await store.project_locks.acquire(project_id=project.id, session_id=session.id, ttl=MINUTE)
    # A session of the project forbids the deletion: this one is moved to another project by hand.
    with contextlib.closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as shell, shell:
        shell.execute("UPDATE sessions SET project_path = '/srv/other'")
    await store.projects.delete(project.id)
    assert await store.project_locks.find_by_project(project.id) is None


async def test_transaction__what_it_ensured_is_undone_with_it(store: MetadataStore) -> None:
    class Abandoned(Exception):
        pass

    with pytest.raises(Abandoned):
        async with store.transaction() as tx:
            await tx.projects.ensure(path="/srv/shop")
            raise Abandoned
    assert await store.projects.find_by_path("/srv/shop") is None
