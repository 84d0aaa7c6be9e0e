from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from metastore import (
    AlreadyExists,
    ClientConnectionType,
    ClientSession,
    InvalidTransition,
    InvalidValue,
    MetadataStore,
    NotFound,
)
from metastore.codec import new_id
from metastore.leasing.limits import CLOCK_SKEW
from metastore.testing import Clock

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def client(store: MetadataStore) -> ClientSession:
    return await store.client_sessions.open(client_id="editor", connection_type="websocket")


async def test_open__returns_what_get_returns(store: MetadataStore) -> None:
    row = await store.client_sessions.open(
        client_id="ci", connection_type="grpc", user_id="ada", metadata={"version": [1, "ä"]}
    )
    assert row.connection_type is ClientConnectionType.GRPC
    assert (row.is_active, row.metadata) == (True, {"version": [1, "ä"]})
    assert row.created_at == row.updated_at == row.last_heartbeat
    assert await store.client_sessions.get(row.id) == row
    with pytest.raises(AlreadyExists):
        await store.client_sessions.open(client_id="ci", connection_type="grpc", id=row.id)
    again = await store.client_sessions.open(client_id="ci", connection_type="http")
    assert (again.user_id, again.metadata) == (None, None)


@pytest.mark.parametrize(
    "values",
    [
        {"client_id": ""},
        {"client_id": "x" * 256},
        {"connection_type": "smtp"},
        {"user_id": ""},
        {"metadata": []},
        {"id": "1"},
    ],
)
async def test_open__refuses(store: MetadataStore, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        await store.client_sessions.open(
            **({"client_id": "ci", "connection_type": "http"} | values)
        )
    assert (await store.client_sessions.list_active()).items == []


async def test_heartbeat__is_written_once_per_interval(
    file_store: MetadataStore, store_url: str, clock: Clock
) -> None:
    store = file_store
    client = await store.client_sessions.open(client_id="editor", connection_type="http")
    connection = sqlite3.connect(store_url.removeprefix("sqlite:///"))
    with contextlib.closing(connection):

        def commits() -> int:
            [version] = connection.execute("PRAGMA data_version").fetchone()
            return int(version)

        writes = 0
        seen = commits()
        beaten = {client.last_heartbeat}
        for _ in range(100):
            # Everything that calls within one second, over a hundred seconds.
            clock.advance(SECOND)
            rows = await asyncio.gather(
                *(store.client_sessions.heartbeat(client.id, interval=10 * SECOND) for _ in "12345")
            )
            beaten |= {row.last_heartbeat for row in rows}
            writes += commits() != seen
            seen = commits()
        assert writes == len(beaten) - 1
        assert 9 <= writes <= 10


async def test_heartbeat__racers_write_once(
    store: MetadataStore, client: ClientSession, clock: Clock
) -> None:
    clock.advance(MINUTE)
    rows = await asyncio.gather(*(store.client_sessions.heartbeat(client.id) for _ in range(20)))
    assert len({row.last_heartbeat for row in rows}) == 1
    assert rows[0].last_heartbeat >= client.last_heartbeat + MINUTE
    assert await store.client_sessions.get(client.id) == rows[0]


async def test_heartbeat__of_a_clock_that_has_jumped_back_counts(
    store: MetadataStore, client: ClientSession, clock: Clock
) -> None:
    clock.advance(-MINUTE)
    beat = await store.client_sessions.heartbeat(client.id)
    assert beat.last_heartbeat < client.last_heartbeat


async def test_heartbeat__of_a_closed_or_unknown_session_is_refused(
    store: MetadataStore, client: ClientSession, clock: Clock
) -> None:
    closed = await store.client_sessions.close(client.id)
    for _ in range(2):
        with pytest.raises(InvalidTransition) as refused:
            await store.client_sessions.heartbeat(client.id)
        assert (refused.value.from_state, refused.value.row) == ("closed", closed)
        clock.advance(MINUTE)
    with pytest.raises(NotFound):
        await store.client_sessions.heartbeat(new_id())
    for interval in (timedelta(0), -SECOND, timedelta(days=8)):
        with pytest.raises(InvalidValue):
            await store.client_sessions.heartbeat(client.id, interval=interval)


async def test_close__once(store: MetadataStore, client: ClientSession, clock: Clock) -> None:
    clock.advance(MINUTE)
    closed = await store.client_sessions.close(client.id)
    assert (closed.is_active, closed.last_heartbeat) == (False, client.last_heartbeat)
    assert closed.updated_at > client.updated_at
    with pytest.raises(InvalidTransition) as refused:
        await store.client_sessions.close(client.id)
    assert refused.value.row == closed
    with pytest.raises(NotFound):
        await store.client_sessions.close(new_id())


async def test_close_stale__closes_who_has_fallen_silent(
    store: MetadataStore, client: ClientSession, clock: Clock
) -> None:
    silent = [client]
    silent.append(await store.client_sessions.open(client_id="b", connection_type="http"))
    closed = await store.client_sessions.open(client_id="c", connection_type="http")
    closed = await store.client_sessions.close(closed.id)
    lively = await store.client_sessions.open(client_id="d", connection_type="http")
    clock.advance(MINUTE)
    lively = await store.client_sessions.heartbeat(lively.id)
    assert await store.client_sessions.close_stale(older_than=2 * MINUTE) == 0
    assert await store.client_sessions.close_stale(older_than=30 * SECOND) == 2
    assert await store.client_sessions.close_stale(older_than=30 * SECOND) == 0
    assert (await store.client_sessions.list_active()).items == [lively]
    assert await store.client_sessions.get(closed.id) == closed
    for row in silent:
        assert not (await store.client_sessions.get(row.id)).is_active
    with pytest.raises(InvalidValue):
        await store.client_sessions.close_stale(older_than=timedelta(0))


async def test_close_stale__leaves_who_was_heard_from_just_so_long_ago(
    store: MetadataStore, clock: Clock
) -> None:
    clock.tick = timedelta(0)
    opened = [
        await store.client_sessions.open(client_id=name, connection_type="http") for name in "ab"
    ]
    clock.advance(MINUTE)
    assert await store.client_sessions.close_stale(older_than=MINUTE) == 0
    assert (await store.client_sessions.list_active()).items == opened
    clock.advance(timedelta(milliseconds=1))
    assert await store.client_sessions.close_stale(older_than=MINUTE) == 2


async def test_close_stale__does_not_believe_a_heartbeat_of_the_future(
    store: MetadataStore, clock: Clock
) -> None:
    clock.tick = timedelta(0)
    clock.advance(CLOCK_SKEW)
    within = await store.client_sessions.open(client_id="within the skew", connection_type="http")
    clock.advance(timedelta(milliseconds=1))
    ahead = await store.client_sessions.open(client_id="ahead", connection_type="http")
    alive = await store.client_sessions.open(client_id="alive", connection_type="grpc")
    closed = await store.client_sessions.open(client_id="closed", connection_type="grpc")
    closed = await store.client_sessions.close(closed.id)
    clock.advance(-CLOCK_SKEW - timedelta(milliseconds=1))
    # One that comes in takes the place of the one that is not believed.
    alive = await store.client_sessions.heartbeat(alive.id)
    assert alive.last_heartbeat == clock.now
    assert await store.client_sessions.close_stale(older_than=MINUTE) == 1
    assert not (await store.client_sessions.get(ahead.id)).is_active
    assert (await store.client_sessions.list_active()).items == [within, alive]
    assert await store.client_sessions.get(closed.id) == closed


async def test_lists__page_in_the_order_of_opening(store: MetadataStore) -> None:
    rows = [
        await store.client_sessions.open(
            client_id=f"client {n % 2}", user_id="ada" if n % 3 else None, connection_type="http"
        )
        for n in range(7)
    ]
    lists: list[tuple[Any, list[ClientSession]]] = [
        (store.client_sessions.list_active, rows),
        (
            lambda **page: store.client_sessions.list_by_client("client 0", **page),
            [row for row in rows if row.client_id == "client 0"],
        ),
        (
            lambda **page: store.client_sessions.list_by_user("ada", **page),
            [row for row in rows if row.user_id],
        ),
    ]
    for walk, expected in lists:
        found: list[ClientSession] = []
        after = None
        while True:
            page = await walk(after=after, limit=2)
            found += page.items
            after = page.next
            if after is None:
                break
        assert found == expected


async def test_delete__forgets_a_session(store: MetadataStore, client: ClientSession) -> None:
    await store.client_sessions.delete(client.id)
    for verb in (store.client_sessions.delete, store.client_sessions.get):
        with pytest.raises(NotFound):
            await verb(client.id)


async def test_stale_clients__shows_the_silent_ones(
    file_store: MetadataStore, store_url: str
) -> None:
    # The clock of the tests stands in the past of the machine's.
    silent = await file_store.client_sessions.open(client_id="a", connection_type="http")
    closed = await file_store.client_sessions.open(client_id="b", connection_type="http")
    await file_store.client_sessions.close(closed.id)
    async with MetadataStore.open(store_url) as store:
        await store.client_sessions.open(client_id="c", connection_type="http")
    for ahead in (CLOCK_SKEW / 2, CLOCK_SKEW * 2):
        now = datetime.now(UTC) + ahead
        async with MetadataStore.open(store_url, clock=Clock(now)) as store:
            last = await store.client_sessions.open(client_id="d", connection_type="http")
    with contextlib.closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as connection:
        rows = connection.execute("SELECT id, silent_seconds FROM stale_clients").fetchall()
    assert [row[0] for row in rows] == [silent.id, last.id]
    assert rows[0][1] >= 300
    assert rows[1][1] is None
