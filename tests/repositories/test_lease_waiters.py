from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from metastore import MetadataStore, TransactionActive
from metastore.codec import new_id
from metastore.leasing import queue as leasing_queue
from metastore.leasing.limits import CLOCK_SKEW
from metastore.repositories.lease_waiters import LeasedResource, LeaseWaiter
from tests.patience import PATIENCE
from tests.repositories.queues import KINDS, ONE_OF_EACH, REFUSED, Queue, pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metastore import Repository
    from tests.conftest import Clock

MINUTE = timedelta(minutes=1)


async def test_line__is_read_page_by_page_in_order(
    store: MetadataStore, repository: Repository, clock: Clock
) -> None:
    tickets = [
        await store.lease_waiters._draw(new_id(), LeasedResource.WORKTREES, repository.id, f"w-{n}")
        for n in range(5)
    ]
    assert [ticket.position for ticket in tickets] == sorted(t.position for t in tickets)
    page = await store.lease_waiters.list_by_resource("worktrees", repository.id, limit=3)
    assert page.items == tickets[:3]
    assert page.next is not None
    rest = await store.lease_waiters.list_by_resource(
        "worktrees", repository.id, after=page.next, limit=3
    )
    assert (rest.items, rest.next) == (tickets[3:], None)
    clock.now += timedelta(seconds=6)
    line = await store.lease_waiters.list_by_resource("worktrees", repository.id)
    assert line.items == []


async def test_ticket__cleared_away_while_its_process_stood_still_is_drawn_again(
    store: MetadataStore, repository: Repository, clock: Clock
) -> None:
    ticket = await store.lease_waiters._draw(
        new_id(), LeasedResource.WORKTREES, repository.id, "slow"
    )
    clock.now += timedelta(seconds=6)
    other = await store.lease_waiters._draw(
        new_id(), LeasedResource.WORKTREES, repository.id, "other"
    )
    kept = await store.lease_waiters._keep(ticket)
    assert kept.position > other.position


async def test_wait__not_inside_a_transaction(store: MetadataStore, repository: Repository) -> None:
    async with store.transaction() as tx:
        with pytest.raises(TransactionActive):
            await tx.worktrees.acquire(repository.id, owner="a", ttl=MINUTE, wait=MINUTE)


async def test_wait__keeps_its_ticket_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing_queue, "KEEP_INTERVAL", 0.1)
    async with MetadataStore.open(f"sqlite:///{tmp_path}/x.db", migrate=True) as store:
        repository = await store.repositories.create(name="r", remote_url="")
        worktree = await store.worktrees.create(repository_id=repository.id, path="/w")
        await store.worktrees.reserve(worktree, owner="holder", ttl=MINUTE)
        waiting = asyncio.ensure_future(
            store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE, wait=MINUTE)
        )
        tickets: set[LeaseWaiter] = set()
        async with asyncio.timeout(PATIENCE):
            while len(tickets) < 3:
                await asyncio.sleep(0.01)
                line = await store.lease_waiters.list_by_resource("worktrees", repository.id)
                tickets |= set(line.items)
        assert len({(ticket.id, ticket.owner) for ticket in tickets}) == 1, "it was drawn again"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


DAY = timedelta(days=1)
INSTANT = timedelta(milliseconds=1)


async def queued(queue: Queue, count: int) -> list[LeaseWaiter]:
    """Wait until so many tickets count, and return them."""
    async with asyncio.timeout(PATIENCE):
        while len(tickets := await queue.tickets()) < count:
            await asyncio.sleep(0.005)
    return tickets


@pytest.mark.parametrize("kind", KINDS)
async def test_ticket__of_a_clock_that_was_ahead_blocks_nobody(
    store: MetadataStore, clock: Clock, kind: str
) -> None:
    own, other = await pair(kind, store)
    clock.tick = timedelta(0)
    honest = await other.draw("alive")
    await own._replace(resource_id=new_id()).draw("a bystander")
    clock.advance(DAY)
    await own.draw("dead")
    clock.advance(-DAY)
    assert await own.tickets() == []
    assert await other.tickets() == [honest]
    await own.take("a")
    with pytest.raises(REFUSED):
        await other.take("a")


@pytest.mark.parametrize("kind", KINDS)
async def test_ticket__of_a_clock_within_the_skew_is_believed(
    store: MetadataStore, clock: Clock, kind: str
) -> None:
    own, other = await pair(kind, store)
    clock.tick = timedelta(0)
    clock.advance(CLOCK_SKEW)
    ahead = await own.draw("ahead")
    clock.advance(INSTANT)
    await other.draw("too far ahead")
    clock.advance(-CLOCK_SKEW - INSTANT)
    assert await own.tickets() == [ahead]
    assert await other.tickets() == []
    await other.take("a")
    with pytest.raises(REFUSED):
        await own.take("a")


@pytest.mark.parametrize("kind", KINDS)
async def test_ticket__that_is_not_believed_is_cleared_by_the_next_to_draw(
    store: MetadataStore, clock: Clock, kind: str
) -> None:
    own, other = await pair(kind, store)
    clock.advance(DAY)
    for queue in (own, other):
        await queue.draw("dead")
    clock.advance(-DAY)
    await own.draw("alive")
    assert (await own.rows(), await other.rows()) == (["alive"], ["dead"])


@pytest.mark.parametrize("kind", KINDS)
async def test_wait__behind_a_ticket_that_ceases_to_be_believed(
    store: MetadataStore, clock: Clock, kind: str
) -> None:
    own, other = await pair(kind, store)
    clock.advance(DAY)
    for queue in (own, other):
        await queue.draw("dead")
    waiting = asyncio.ensure_future(own.take("a", wait=MINUTE))
    await queued(own, 2)
    assert not waiting.done()
    clock.advance(-DAY)
    async with asyncio.timeout(PATIENCE):
        await waiting
    assert await own.rows() == ["dead"], "the waiter's own is gone, the dead one's awaits the next"


async def test_keep__after_the_clock_jumped_back_keeps_the_place(
    store: MetadataStore, repository: Repository, clock: Clock
) -> None:
    clock.advance(DAY)
    ticket, behind = [
        await store.lease_waiters._draw(new_id(), LeasedResource.WORKTREES, repository.id, owner)
        for owner in ("a", "b")
    ]
    clock.advance(-DAY)
    kept = await store.lease_waiters._keep(ticket)
    assert (kept.id, kept.position) == (ticket.id, ticket.position)
    line = await store.lease_waiters.list_by_resource("worktrees", repository.id)
    assert line.items == [kept]
    again = await store.lease_waiters._keep(behind)
    line = await store.lease_waiters.list_by_resource("worktrees", repository.id)
    assert line.items == [kept, again]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("cleared", [False, True])
async def test_wait__a_waiter_whose_clock_jumps_back_is_served(
    store: MetadataStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: str, cleared: bool
) -> None:
    monkeypatch.setattr(leasing_queue, "KEEP_INTERVAL", 0.05)
    own, other = await pair(kind, store)
    clock.advance(DAY)
    held = await own.take("holder", ttl=2 * DAY)
    waiting = asyncio.ensure_future(own.take("a", wait=10 * MINUTE))
    [before] = await queued(own, 1)
    clock.advance(-DAY)
    if cleared:
        # Another waiter comes first, does not believe the ticket, clears it away, and dies.
        await own.draw("b")
        clock.advance(timedelta(seconds=6))
    async with asyncio.timeout(PATIENCE):
        while not (mine := [each for each in await own.tickets() if each.id == before.id]):
            await asyncio.sleep(0.005)
    assert (mine[0].position > before.position) == cleared
    await own.release(held)
    async with asyncio.timeout(PATIENCE):
        await waiting
    assert await own.tickets() == []
    await other.take("a")


WAITER = """
import asyncio, sys, time
from datetime import timedelta
from metastore import MetadataStore

async def main(url, repository):
    async with MetadataStore.open(url) as store:
        while True:
            print("waiting", flush=True)
            lease = await store.worktrees.acquire(
                repository, owner="waiter", ttl=timedelta(minutes=1), wait=timedelta(minutes=1)
            )
            print(time.time(), flush=True)
            await store.worktrees.release(lease)
            sys.stdin.readline()

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def count_prompt(delays: list[float]) -> int:
    return sum(delay < 0.05 for delay in delays)


@pytest.mark.parametrize(
    ("rounds", "prompt", "most"),
    [
        # Where the machine may be busy with other things, a few, and they may take more rounds.
        pytest.param(20, 5, 60, id="short"),
        pytest.param(100, 95, 100, id="torture", marks=pytest.mark.torture),
    ],
)
async def test_wait__wakes_within_50_ms_of_a_release_in_another_process(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    rounds: int,
    prompt: int,
    most: int,
) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    async with MetadataStore.open(url, migrate=True) as store:
        repository = await store.repositories.create(name="r", remote_url="")
        await store.worktrees.create(repository_id=repository.id, path="/w")
        lease = await store.worktrees.acquire(repository.id, owner="holder", ttl=MINUTE)
        process = subprocess.Popen(
            [sys.executable, "-c", WAITER, url, repository.id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        delays: list[float] = []
        while len(delays) < rounds or (count_prompt(delays) < prompt and len(delays) < most):
            assert process.stdout.readline() == "waiting\n"
            async with asyncio.timeout(PATIENCE):
                while not (
                    await store.lease_waiters.list_by_resource("worktrees", repository.id)
                ).items:
                    await asyncio.sleep(0.01)
            await store.worktrees.release(lease)
            released = time.time()
            taken = float(await asyncio.to_thread(process.stdout.readline))
            delays.append(taken - released)
            lease = await store.worktrees.acquire(
                repository.id, owner="holder", ttl=MINUTE, wait=MINUTE
            )
            process.stdin.write("\n")
            process.stdin.flush()
        process.kill()
        process.communicate()
    delays.sort()
    median, p95 = (delays[int(len(delays) * part) - 1] for part in (0.5, 0.95))
    record_property("figures", f"woken after {median:.4f} s (median), {p95:.4f} s (p95)")
    assert count_prompt(delays) >= prompt
