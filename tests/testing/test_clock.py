from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from metastore.testing import Clock

if TYPE_CHECKING:
    from metastore import MetadataStore
    from metastore.testing import Factories

MILLISECOND = timedelta(milliseconds=1)
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_reading__is_aware_and_never_the_same_twice() -> None:
    clock = Clock()
    readings = [clock() for _ in range(100)]
    assert {reading.tzinfo for reading in readings} == {UTC}
    assert {later - earlier for earlier, later in pairwise(readings)} == {MILLISECOND}
    assert clock.now == readings[-1]


def test_now__is_set_and_advanced() -> None:
    clock = Clock(NOON)
    assert clock() == NOON + MILLISECOND
    clock.now = NOON
    assert clock.advance(timedelta(hours=1)) == NOON + timedelta(hours=1)
    assert clock.advance(-timedelta(hours=2)) == clock.now == NOON - timedelta(hours=1)
    assert clock() == clock.now == NOON - timedelta(hours=1) + MILLISECOND


def test_tick__zero_stops_it() -> None:
    clock = Clock(NOON, tick=timedelta(0))
    assert {clock() for _ in range(5)} == {NOON}


async def test_store__takes_its_time_from_it(
    store: MetadataStore, clock: Clock, factories: Factories
) -> None:
    clock.now = NOON
    repository = await factories.repository()
    assert NOON < repository.created_at <= clock.now
    # A millisecond apart, so that the trigger does not take the update for one made by hand.
    updated = await store.repositories.update(
        repository.id, remote_url="elsewhere", default_branch="main", metadata={}
    )
    assert updated.updated_at == clock.now > repository.updated_at
    assert await store.repositories.get(repository.id) == updated
