from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from metastore import Lease, LeaseLost, MetadataStore
from metastore.testing import Clock, Factories, expire

if TYPE_CHECKING:
    from collections.abc import Callable

MINUTE = timedelta(minutes=1)


def stopped() -> Clock:
    return Clock(tick=timedelta(0))


def by_the_machine() -> datetime:
    return datetime.now(UTC)


@pytest.mark.parametrize(
    "clock", [Clock(), stopped(), by_the_machine], ids=lambda it: repr(it)[:20]
)
async def test_expire__ends_a_lease_and_no_other(clock: Callable[[], datetime]) -> None:
    async with MetadataStore.open("sqlite://", clock=clock) as store:
        factories = Factories(store)
        lease, other = await factories.lease(), await factories.lease(ttl=MINUTE)
        await expire(store, lease)
        for refused in (
            store.worktrees.renew(lease, ttl=MINUTE),
            store.worktrees.release(lease),
            expire(store, lease),
        ):
            with pytest.raises(LeaseLost):
                await refused
        await store.worktrees.renew(other, ttl=MINUTE)
        row = await store.worktrees.get(lease.worktree_id)
        assert row.lease_owner == lease.owner
        next_lease = await store.worktrees.reserve(row, owner="next", ttl=MINUTE)
        assert next_lease.fencing_number > lease.fencing_number


@pytest.mark.parametrize(
    "clock", [Clock(), stopped(), by_the_machine], ids=lambda it: repr(it)[:20]
)
async def test_expire__ends_a_claim_and_no_other(clock: Callable[[], datetime]) -> None:
    async with MetadataStore.open("sqlite://", clock=clock) as store:
        factories = Factories(store)
        lease, other = await factories.claim(), await factories.claim()
        await expire(store, lease)
        with pytest.raises(LeaseLost):
            await store.tasks.complete_claim(lease)
        await store.tasks.complete_claim(other)
        assert (await store.tasks.claim(owner="next", ttl=MINUTE)).task_id == lease.task_id


@pytest.mark.parametrize(
    "clock", [Clock(), stopped(), by_the_machine], ids=lambda it: repr(it)[:20]
)
async def test_expire__ends_a_lock(clock: Callable[[], datetime]) -> None:
    async with MetadataStore.open("sqlite://", clock=clock) as store:
        factories = Factories(store)
        lock = await factories.lock()
        await expire(store, lock)
        with pytest.raises(LeaseLost):
            await store.project_locks.release(lock)
        next_lock = await factories.lock(project_id=lock.project_id)
        assert next_lock.fencing_number > lock.fencing_number


async def test_expire__reaches_whoever_holds_the_lease(
    store: MetadataStore, factories: Factories
) -> None:
    worktree = await factories.worktree()
    with pytest.raises(LeaseLost):
        async with store.worktrees.lease(
            worktree.repository_id, owner="runner", ttl=timedelta(milliseconds=90)
        ):
            # What the holder has in its hands is not needed: the row says as much.
            await expire(store, Lease.of(await store.worktrees.get(worktree.id)))
            await asyncio.sleep(5)


async def test_expire__does_not_wait_for_ever_for_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metastore.testing.expiry.LONGEST_WAIT", timedelta(milliseconds=20))
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    async with MetadataStore.open("sqlite://", clock=lambda: moment) as store:
        lease = await Factories(store).lease()
        with pytest.raises(RuntimeError, match="stands still"):
            await expire(store, lease)
