from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    Event,
    EventLevel,
    InvalidReference,
    InvalidValue,
    MetadataStore,
    NewEvent,
    NotFound,
    Session,
    StoreClosed,
    TransactionActive,
)
from metastore.codec import new_id
from metastore.paging import MAX_PAGE
from metastore.repositories.events import MAX_EVENTS
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


async def test_append__returns_what_is_read(store: MetadataStore, session: Session) -> None:
    event = await store.events.append(
        session.id, "step", "begun", level="warning", context={"step": 1, "ä": [None, 1.5]}
    )
    assert event.level is EventLevel.WARNING
    assert event.context == {"step": 1, "ä": [None, 1.5]}
    assert await store.events.get(event.id) == event
    plain = await store.events.append(session.id, "step", "")
    assert (plain.level, plain.context, plain.message) == ("info", {}, "")
    assert plain.position > event.position


async def test_append_many__all_in_order_or_none(store: MetadataStore, session: Session) -> None:
    own = new_id()
    ids = await store.events.append_many(
        session.id,
        [NewEvent("a", "1"), NewEvent("b", "2", level="error", context={"x": 1}, id=own)],
    )
    events = (await store.events.list_by_session(session.id)).items
    assert [event.id for event in events] == ids
    assert (events[1].id, events[1].level, events[1].context) == (own, "error", {"x": 1})
    taken = [NewEvent("c", "3"), NewEvent("d", "4", id=own)]
    with pytest.raises(AlreadyExists):
        await store.events.append_many(session.id, taken)
    neighbour = store.events.append(session.id, "n", "eighbour")
    results = await asyncio.gather(
        store.events.append_many(session.id, taken), neighbour, return_exceptions=True
    )
    assert isinstance(results[0], AlreadyExists)
    assert isinstance(results[1], Event)
    events.append(results[1])
    async with store.transaction() as tx:
        with pytest.raises(AlreadyExists):
            await tx.events.append_many(session.id, taken)
    with pytest.raises(InvalidValue):
        await store.events.append_many(session.id, [NewEvent("c", "3"), NewEvent("", "4")])
    with pytest.raises(InvalidReference):
        await store.events.append_many(new_id(), [NewEvent("c", "3")])
    assert await store.events.append_many(session.id, []) == []
    assert (await store.events.list_by_session(session.id)).items == events


@pytest.mark.parametrize(
    "values",
    [
        {"event_type": ""},
        {"event_type": "x" * 51},
        {"level": "fatal"},
        {"message": None},
        {"message": "x" * (1 << 20) + "x"},
        {"context": "{}"},
        {"session_id": "nobody"},
    ],
)
async def test_append__refusals(
    store: MetadataStore, session: Session, values: dict[str, Any]
) -> None:
    good: dict[str, Any] = {"session_id": session.id, "event_type": "e", "message": "m"}
    with pytest.raises(InvalidValue):
        await store.events.append(**(good | values))
    assert (await store.events.list()).items == []


async def test_lists__walk_a_session_and_all(store: MetadataStore, session: Session) -> None:
    other = await store.sessions.create(session_type="test_generation", project_path="/p")
    made = [await store.events.append((session, other)[n % 2].id, "e", str(n)) for n in range(9)]

    async def walk(read: Any) -> list[Event]:
        events: list[Event] = []
        after: int | None = 0
        while after is not None:
            page = await read(after=after, limit=2)
            events += page.items
            after = page.next
        return events

    assert await walk(store.events.list) == made
    assert await walk(lambda **page: store.events.list_by_session(other.id, **page)) == made[1::2]


async def test_history__is_not_changed_by_hand(store: MetadataStore, session: Session) -> None:
    await store.events.append(session.id, "e", "as it was")
    path = store._backend.path  # type: ignore[attr-defined]
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    for statement in ("UPDATE events SET message = 'x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="history"):
            connection.execute(statement)
    connection.close()
    assert [event.message for event in (await store.events.list()).items] == ["as it was"]
    await store.sessions.delete(session.id)
    assert (await store.events.list()).items == []


async def test_position__does_not_come_back(store: MetadataStore, session: Session) -> None:
    last = await store.events.append(session.id, "e", "m")
    await store.sessions.delete(session.id)
    other = await store.sessions.create(session_type="test_generation", project_path="/p")
    assert (await store.events.append(other.id, "e", "m")).position > last.position


async def take(events: AsyncGenerator[Event, None], count: int) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(events) for _ in range(count)]


async def test_follow__from_any_position_misses_none_and_sees_none_twice(
    store: MetadataStore, session: Session
) -> None:
    before = [await store.events.append(session.id, "e", str(n)) for n in range(3)]
    for after in range(4):
        position = before[after - 1].position if after else 0
        async with contextlib.aclosing(store.events.follow(after=position)) as following:
            assert await take(following, 3 - after) == before[after:]
    async with contextlib.aclosing(store.events.follow(session.id)) as following:
        assert await take(following, 3) == before
        waiting = asyncio.ensure_future(take(following, 2))
        await asyncio.sleep(0.05)
        appended = [await store.events.append(session.id, "e", str(n)) for n in (3, 4)]
        assert await waiting == appended


@pytest.mark.parametrize("place", ["store", "transaction"])
async def test_append_many__takes_a_thousand_and_no_more(
    store: MetadataStore, session: Session, place: str
) -> None:
    new = [NewEvent("e", str(n)) for n in range(MAX_EVENTS + 1)]

    async def append(repositories: Any) -> None:
        with pytest.raises(InvalidValue) as refused:
            await repositories.events.append_many(session.id, new)
        assert (refused.value.table, refused.value.column) == ("events", "events")
        assert (await repositories.events.list()).items == []
        # More of them together: several calls in a transaction.
        for part in (new[:-1], new[-1:]):
            await repositories.events.append_many(session.id, part)

    if place == "store":
        await append(store)
    else:
        async with store.transaction() as tx:
            await append(tx)
    page = await store.events.list(limit=MAX_EVENTS)
    last = await store.events.list(after=page.next or 0)
    assert [event.message for event in (*page.items, *last.items)] == [e.message for e in new]


async def test_follow__reads_a_long_history_without_a_pause(
    store: MetadataStore, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Were it to wait between two pages, it would wait for longer than `take` does.
    monkeypatch.setattr("metastore.repositories.events.RECHECK_INTERVAL", 2 * PATIENCE)
    count = 2 * MAX_PAGE + 1
    new = [NewEvent("e", str(n)) for n in range(count)]
    ids = [
        id_
        for start in range(0, count, MAX_EVENTS)
        for id_ in await store.events.append_many(session.id, new[start : start + MAX_EVENTS])
    ]
    async with contextlib.aclosing(store.events.follow()) as following:
        assert [event.id for event in await take(following, count)] == ids


WRITER = """
import asyncio, sys
from metastore import MetadataStore

async def main(url, session, count):
    async with MetadataStore.open(url) as store:
        for n in range(count):
            await asyncio.gather(*(store.events.append(session, "e", f"{n}.{k}") for k in range(5)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_follow__other_processes_that_write_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    async with MetadataStore.open(url, migrate=True) as store:
        session = await store.sessions.create(session_type="test_generation", project_path="/p")
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, url, session.id, "30"])
            for _ in range(3)
        ]
        async with contextlib.aclosing(store.events.follow()) as following:
            async with asyncio.timeout(PATIENCE):
                seen = [await anext(following) for _ in range(450)]
        assert [await asyncio.to_thread(writer.wait) for writer in writers] == [0, 0, 0]
        positions = [event.position for event in seen]
        assert positions == sorted(set(positions))
        assert [event.message for event in seen].count("0.0") == 3
        assert (await store.events.list(after=positions[-1])).items == []


async def test_follow__ends_with_the_store_and_is_not_for_transactions(tmp_path: Path) -> None:
    store = await MetadataStore.open(f"sqlite:///{tmp_path}/x.db", migrate=True)
    following = store.events.follow()
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0.05)
    await store.close()
    with pytest.raises(StoreClosed):
        async with asyncio.timeout(PATIENCE):
            await waiting
    async with MetadataStore.open("sqlite://") as other, other.transaction() as tx:
        with pytest.raises(TransactionActive):
            await anext(tx.events.follow())


async def test_get__of_nothing(store: MetadataStore) -> None:
    with pytest.raises(NotFound):
        await store.events.get(new_id())
