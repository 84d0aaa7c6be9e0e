from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from metastore import (
    InvalidReference,
    InvalidValue,
    LeaseLost,
    LockHeld,
    MetadataStore,
    NotFound,
    Project,
    ProjectLock,
    Session,
)
from metastore.codec import new_id
from metastore.leasing.limits import MAX_TTL
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Clock

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def project(store: MetadataStore) -> Project:
    return await store.projects.ensure(path="/projects/1")


async def session_of(store: MetadataStore) -> Session:
    return await store.sessions.create(session_type="test_generation", project_path="/projects/1")


@pytest.fixture
async def first(store: MetadataStore, project: Project) -> Session:
    return await session_of(store)


@pytest.fixture
async def second(store: MetadataStore, project: Project) -> Session:
    return await session_of(store)


async def test_acquire__locks_until_the_ttl(
    store: MetadataStore, project: Project, first: Session, clock: Clock
) -> None:
    lock = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    assert (lock.project_id, lock.session_id) == (project.id, first.id)
    assert lock.expires_at - lock.acquired_at == MINUTE
    assert lock.acquired_at <= clock.now
    assert await store.project_locks.get(lock.id) == lock
    assert await store.project_locks.find_by_project(project.id) == lock


async def test_acquire__another_session_and_the_same_are_refused(
    store: MetadataStore, project: Project, first: Session, second: Session
) -> None:
    lock = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    for session in (first, second):
        with pytest.raises(LockHeld) as held:
            await store.project_locks.acquire(
                project_id=project.id, session_id=session.id, ttl=MINUTE
            )
        assert (held.value.project_id, held.value.lock) == (project.id, lock)


async def test_acquire__one_of_many_racers_wins(
    store: MetadataStore, project: Project, first: Session
) -> None:
    results = await asyncio.gather(
        *(
            store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
            for _ in range(16)
        ),
        return_exceptions=True,
    )
    [lock] = [result for result in results if isinstance(result, ProjectLock)]
    lost = [result for result in results if isinstance(result, LockHeld)]
    assert len(lost) == 15
    assert all(error.lock == lock for error in lost)


async def test_acquire__takes_over_what_ran_out(
    store: MetadataStore, project: Project, first: Session, second: Session, clock: Clock
) -> None:
    old = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    clock.now = old.expires_at - timedelta(milliseconds=10)
    with pytest.raises(LockHeld):
        await store.project_locks.acquire(project_id=project.id, session_id=second.id, ttl=MINUTE)
    clock.now = old.expires_at
    assert (await store.project_locks.list_expired()).items == [old]
    new = await store.project_locks.acquire(project_id=project.id, session_id=second.id, ttl=MINUTE)
    assert new.fencing_number > old.fencing_number
    assert new.id != old.id
    assert (await store.project_locks.list_expired()).items == []


async def test_acquire__fencing_numbers_grow_over_releases_and_deletes(
    store: MetadataStore, project: Project, first: Session
) -> None:
    numbers = []
    for _ in range(3):
        lock = await store.project_locks.acquire(
            project_id=project.id, session_id=first.id, ttl=MINUTE
        )
        numbers.append(lock.fencing_number)
        await store.project_locks.release(lock)
    lock = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    await store.sessions.delete(first.id)
    assert await store.project_locks.find_by_project(project.id) is None
    session = await session_of(store)
    again = await store.project_locks.acquire(
        project_id=project.id, session_id=session.id, ttl=MINUTE
    )
    numbers += [lock.fencing_number, again.fencing_number]
    assert numbers == sorted(set(numbers))


async def test_acquire__refusals(store: MetadataStore, project: Project, first: Session) -> None:
    with pytest.raises(InvalidReference):
        await store.project_locks.acquire(project_id=new_id(), session_id=first.id, ttl=MINUTE)
    with pytest.raises(InvalidReference):
        await store.project_locks.acquire(project_id=project.id, session_id=new_id(), ttl=MINUTE)
    for ttl in (timedelta(0), MAX_TTL * 2):
        with pytest.raises(InvalidValue):
            await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=ttl)
    assert await store.project_locks.find_by_project(project.id) is None


HOLDER_WRITES: dict[str, Callable[[MetadataStore, ProjectLock], Awaitable[object]]] = {
    "renew": lambda store, lock: store.project_locks.renew(lock, ttl=MINUTE),
    "release": lambda store, lock: store.project_locks.release(lock),
    "transaction": lambda store, lock: _guarded(store, lock),
}


async def _guarded(store: MetadataStore, lock: ProjectLock) -> None:
    async with store.transaction(lease=lock) as tx:
        await tx.events.append(lock.session_id, "guarded", "")


@pytest.mark.parametrize("write", HOLDER_WRITES)
async def test_holder__may_write_while_the_lock_runs(
    store: MetadataStore, project: Project, first: Session, clock: Clock, write: str
) -> None:
    lock = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    clock.now = lock.expires_at - timedelta(milliseconds=100)
    await HOLDER_WRITES[write](store, lock)


@pytest.mark.parametrize("write", HOLDER_WRITES)
@pytest.mark.parametrize("how", ["expired", "taken over", "released", "session", "number"])
async def test_holder__a_stale_or_forged_lock_changes_nothing(
    store: MetadataStore,
    project: Project,
    first: Session,
    second: Session,
    clock: Clock,
    write: str,
    how: str,
) -> None:
    lock = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)

    def forged(**changes: object) -> ProjectLock:
        return ProjectLock(**{**dict(lock), **changes})

    match how:
        case "expired":
            clock.now = lock.expires_at
        case "taken over":
            clock.now = lock.expires_at
            await store.project_locks.acquire(
                project_id=project.id, session_id=second.id, ttl=MINUTE
            )
        case "released":
            await store.project_locks.release(lock)
        case "session":
            lock = forged(session_id=second.id)
        case "number":
            lock = forged(fencing_number=lock.fencing_number - 1)
    before = await store.project_locks.find_by_project(project.id)
    with pytest.raises(LeaseLost) as lost:
        await HOLDER_WRITES[write](store, lock)
    assert (lost.value.resource, lost.value.resource_id) == ("project_locks", project.id)
    assert lost.value.fencing_number == lock.fencing_number
    assert await store.project_locks.find_by_project(project.id) == before
    assert (await store.events.list_by_session(first.id)).items == []


async def test_renew__keeps_the_number_and_moves_the_end(
    store: MetadataStore, project: Project, first: Session, clock: Clock
) -> None:
    lock = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    clock.now += MINUTE / 2
    renewed = await store.project_locks.renew(lock, ttl=MINUTE)
    assert renewed.expires_at > lock.expires_at
    assert renewed.fencing_number == lock.fencing_number
    await store.project_locks.release(lock)
    with pytest.raises(NotFound):
        await store.project_locks.get(lock.id)


async def test_renew__after_the_clock_jumped_back_behind_the_take(
    store: MetadataStore, project: Project, first: Session, clock: Clock
) -> None:
    lock = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    clock.now -= timedelta(hours=1)
    assert await store.project_locks.renew(lock, ttl=MINUTE) == lock
    await store.project_locks.release(lock)


async def test_wait__first_come_first_served(
    store: MetadataStore, project: Project, first: Session
) -> None:
    held = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    served: list[str] = []

    async def wait(session_id: str) -> None:
        async with store.project_locks.hold(
            project_id=project.id, session_id=session_id, ttl=MINUTE, wait=MINUTE
        ):
            served.append(session_id)

    tasks, order = [], []
    for n in range(5):
        session = await session_of(store)
        order.append(session.id)
        tasks.append(asyncio.ensure_future(wait(session.id)))
        async with asyncio.timeout(PATIENCE):
            while True:
                line = await store.lease_waiters.list_by_resource("project_locks", project.id)
                if len(line.items) == n + 1:
                    break
                await asyncio.sleep(0.005)
    assert [ticket.owner for ticket in line.items] == order
    await store.project_locks.release(held)
    await asyncio.gather(*tasks)
    assert served == order


async def test_wait__ends_in_time_with_the_holder(
    store: MetadataStore, project: Project, first: Session, second: Session
) -> None:
    lock = await store.project_locks.acquire(project_id=project.id, session_id=first.id, ttl=MINUTE)
    with pytest.raises(LockHeld) as held:
        await store.project_locks.acquire(
            project_id=project.id,
            session_id=second.id,
            ttl=MINUTE,
            wait=timedelta(milliseconds=50),
        )
    assert held.value.lock == lock
    line = await store.lease_waiters.list_by_resource("project_locks", project.id)
    assert line.items == []


async def test_hold__releases_at_the_end(
    store: MetadataStore, project: Project, first: Session
) -> None:
    async with store.project_locks.hold(
        project_id=project.id, session_id=first.id, ttl=MINUTE
    ) as lock:
        assert await store.project_locks.get(lock.id) == lock
    assert await store.project_locks.find_by_project(project.id) is None


async def test_list_expired__walks_every_page(store: MetadataStore, clock: Clock) -> None:
    made = []
    for n in range(5):
        session = await store.sessions.create(
            session_type="docker_deployment", project_path=f"/projects/{n}"
        )
        project = await store.projects.ensure(path=f"/projects/{n}")
        made.append(
            await store.project_locks.acquire(
                project_id=project.id, session_id=session.id, ttl=MINUTE * (5 - n)
            )
        )
    clock.now += timedelta(hours=1)
    walked, after = [], None
    while True:
        page = await store.project_locks.list_expired(after=after, limit=2)
        walked += page.items
        after = page.next
        if after is None:
            break
    assert walked == made[::-1]


async def test_list_expired__holds_what_counts_as_expired(
    store: MetadataStore, clock: Clock
) -> None:
    locks = []
    for n, ahead in enumerate((timedelta(0), MAX_TTL, timedelta(days=365))):
        path = f"/projects/{n}"
        session = await store.sessions.create(session_type="docker_deployment", project_path=path)
        project = await store.projects.ensure(path=path)
        clock.advance(ahead)
        locks.append(
            await store.project_locks.acquire(
                project_id=project.id, session_id=session.id, ttl=MINUTE
            )
        )
        clock.advance(-ahead)
    clock.advance(MINUTE)
    expired, live, not_believed = locks
    assert await store.project_locks.count_held() == (1, 2)
    assert (await store.project_locks.list_expired()).items == [expired, not_believed]
    page = await store.project_locks.list_expired(limit=1)
    assert page.items == [expired]
    rest = await store.project_locks.list_expired(after=page.next, limit=1)
    assert (rest.items, rest.next) == ([not_believed], None)
    assert await store.project_locks.get(live.id) == live
