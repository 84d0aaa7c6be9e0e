"""Pages: how lists are read to their end."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from metastore import InvalidValue, NewEvent, Page, every
from metastore.paging import DEFAULT_PAGE, MAX_PAGE
from metastore.repositories import repository_types

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.store import MetadataStore

    ListPage = Callable[..., Awaitable[Page[Any, Any]]]

ROWS = 7

LISTS = [
    (repository.table, name)
    for repository in repository_types()
    for name, function in inspect.getmembers(repository, inspect.isfunction)
    if "Page[" in str(inspect.signature(function).return_annotation) and name[0] != "_"
]


@pytest.mark.parametrize(("table", "name"), LISTS)
def test_list__has_the_default_page(table: str, name: str) -> None:
    [repository] = [it for it in repository_types() if it.table == table]
    assert inspect.signature(getattr(repository, name)).parameters["limit"].default == DEFAULT_PAGE


def test_list__is_found_in_every_table_that_has_one() -> None:
    assert len(LISTS) > 45
    assert len({table for table, _ in LISTS}) > 20


async def fill(store: MetadataStore) -> str:
    """Make two of everything, mark all rows that belong to the second, return the first session."""
    sessions = []
    for mark in ("", "other "):
        session = await store.sessions.create(
            session_type="test_generation", project_path=f"/srv/{mark}"
        )
        sessions.append(session.id)
        for n in range(ROWS):
            await store.artifacts.create(
                session_id=session.id, artifact_type="log", name=f"{mark}{n}", content_path="/log"
            )
            await store.events.append(session.id, f"{mark}{n}", "m")
            # Places before the first are read, too.
            await store.steps.create(session_id=session.id, name=f"{mark}{n}", sequence=n - 3)
            await store.jobs.create(task=f"{mark}{n}", repo_owner="o", repo_name=f"r{mark}")
    for n in range(ROWS):
        await store.configurations.set(str(n), n)
    return sessions[0]


def lists(store: MetadataStore, session_id: str) -> dict[str, tuple[ListPage, tuple[str, ...]]]:
    """Return a list for each kind of cursor, with its arguments, by the column that tells rows."""
    return {
        "name of artifacts, by id": (store.artifacts.list_by_session, (session_id,)),
        "event_type, by position": (store.events.list_by_session, (session_id,)),
        "name of steps, by sequence": (store.steps.list_by_session, (session_id,)),
        "task, by time": (store.jobs.list_by_repo, ("o", "r")),
        "key, by itself": (store.configurations.list, ()),
    }


KINDS = [
    "name of artifacts, by id",
    "event_type, by position",
    "name of steps, by sequence",
    "task, by time",
    "key, by itself",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [None, 1, ROWS - 1, ROWS, ROWS + 1])
async def test_every__yields_each_row_once_in_the_order_of_the_list(
    store: MetadataStore, kind: str, limit: int | None
) -> None:
    list_page, arguments = lists(store, await fill(store))[kind]
    asked = {} if limit is None else {"limit": limit}
    column = kind.partition(",")[0].partition(" of ")[0]
    names = [row[column] async for row in every(list_page, *arguments, **asked)]
    expected = [str(n) for n in range(ROWS)]
    assert names == (expected[::-1] if kind == "task, by time" else expected)


@pytest.mark.parametrize("kind", KINDS)
async def test_every__reads_on_from_where_a_page_ended(store: MetadataStore, kind: str) -> None:
    list_page, arguments = lists(store, await fill(store))[kind]
    first = await list_page(*arguments, limit=3)
    rest = [row async for row in every(list_page, *arguments, after=first.next, limit=2)]
    assert first.items + rest == (await list_page(*arguments)).items
    assert len(rest) == ROWS - 3


async def test_every__reads_a_page_when_it_is_needed_and_the_largest_by_default(
    store: MetadataStore,
) -> None:
    session_id = await fill(store)
    asked: list[dict[str, Any]] = []

    async def list_page(session_id: str, *, after: int = 0, limit: int = 2) -> Page[Any, int]:
        asked.append({"after": after, "limit": limit})
        return await store.events.list_by_session(session_id, after=after, limit=limit)

    events = every(list_page, session_id, limit=3)
    assert [(await anext(events)).event_type for _ in range(3)] == ["0", "1", "2"]
    assert asked == [{"after": 0, "limit": 3}]
    assert (await anext(events)).event_type == "3"
    assert len(asked) == 2
    await events.aclose()
    asked.clear()
    assert len([it async for it in every(list_page, session_id)]) == ROWS
    assert asked == [{"after": 0, "limit": MAX_PAGE}]


async def test_every__reads_beyond_the_largest_page(store: MetadataStore) -> None:
    session_id = await fill(store)
    many = [NewEvent("t", str(n)) for n in range(MAX_PAGE)]
    await store.events.append_many(session_id, many)
    assert len([it async for it in every(store.events.list_by_session, session_id)]) == (
        ROWS + MAX_PAGE
    )


async def test_every__shows_one_moment_in_a_transaction(store: MetadataStore) -> None:
    session_id = await fill(store)
    async with store.transaction() as tx:
        events = [it async for it in every(tx.events.list_by_session, session_id, limit=2)]
        await tx.events.append(session_id, "last", "m")
        again = [it async for it in every(tx.events.list_by_session, session_id, limit=2)]
    assert [it.event_type for it in again] == [*(it.event_type for it in events), "last"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": MAX_PAGE + 1}, {"after": 1.5}], ids=str)
async def test_every__refuses_what_the_list_refuses(
    store: MetadataStore, kind: str, wrong: dict[str, Any]
) -> None:
    list_page, arguments = lists(store, await fill(store))[kind]
    with pytest.raises(InvalidValue):
        await anext(every(list_page, *arguments, **wrong))
