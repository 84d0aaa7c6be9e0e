from __future__ import annotations

import asyncio
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    Lease,
    LeaseLost,
    LeaseUnavailable,
    MetadataStore,
    NotFound,
    Repository,
    StoreClosed,
    Worktree,
    WorktreeState,
)
from metastore.codec import new_id
from metastore.leasing.limits import CLOCK_SKEW, MAX_TTL
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import Clock

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def worktree(store: MetadataStore, repository: Repository) -> Worktree:
    return await store.worktrees.create(repository_id=repository.id, path="/worktrees/1")


async def worktrees(store: MetadataStore, repository: Repository, count: int) -> list[Worktree]:
    return [
        await store.worktrees.create(repository_id=repository.id, path=f"/worktrees/{n}")
        for n in range(count)
    ]


# --- the registry ------------------------------------------------------------------------------


async def test_create__returns_what_get_and_find_return(
    store: MetadataStore, repository: Repository
) -> None:
    created = await store.worktrees.create(
        repository_id=repository.id,
        path="/worktrees/ä",
        branch="main",
        commit_sha="c0ffee",
        environment_hashes={"python": "b", "node": "a"},
    )
    assert created.state is WorktreeState.READY
    assert created.environment_hashes == {"node": "a", "python": "b"}
    assert (created.lease_owner, created.lease_token, created.lease_expires_at) == (None,) * 3
    assert await store.worktrees.get(created.id) == created
    assert await store.worktrees.find_by_path("/worktrees/ä") == created
    assert await store.worktrees.find_by_path("/elsewhere") is None


async def test_create__refusals(store: MetadataStore, repository: Repository) -> None:
    await store.worktrees.create(repository_id=repository.id, path="/worktrees/1")
    with pytest.raises(AlreadyExists) as exists:
        await store.worktrees.create(repository_id=repository.id, path="/worktrees/1")
    assert exists.value.columns == ("path",)
    with pytest.raises(InvalidReference) as reference:
        await store.worktrees.create(repository_id=new_id(), path="/worktrees/2")
    assert (reference.value.column, reference.value.references) == ("repository_id", "repositories")
    with pytest.raises(InvalidValue):
        await store.worktrees.create(repository_id=repository.id, path="")
    with pytest.raises(InvalidValue):
        await store.worktrees.create(
            repository_id=repository.id, path="/w", environment_hashes={"python": 5}  # type: ignore[dict-item]
        )  # fmt: skip


async def test_list_by_repository__walks_every_page(
    store: MetadataStore, repository: Repository
) -> None:
    made = await worktrees(store, repository, 7)
    walked: list[Worktree] = []
    after = None
    while True:
        page = await store.worktrees.list_by_repository(repository.id, after=after, limit=3)
        walked += page.items
        after = page.next
        if after is None:
            break
    assert walked == made


# --- reserve -----------------------------------------------------------------------------------


async def test_reserve__grants_a_lease_above_every_earlier_number(
    store: MetadataStore, worktree: Worktree, clock: Clock
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="runner-1", ttl=MINUTE)
    row = await store.worktrees.get(worktree.id)
    assert lease == Lease.of(row)
    assert (lease.owner, lease.worktree_id) == ("runner-1", worktree.id)
    assert lease.fencing_number > worktree.version
    assert lease.expires_at - MINUTE == row.leased_at == row.updated_at <= clock.now


async def test_reserve__one_of_many_racers_wins(store: MetadataStore, worktree: Worktree) -> None:
    results = await asyncio.gather(
        *(store.worktrees.reserve(worktree, owner=f"runner-{n}", ttl=MINUTE) for n in range(8)),
        return_exceptions=True,
    )
    [lease] = [result for result in results if isinstance(result, Lease)]
    lost = [result for result in results if isinstance(result, LeaseUnavailable)]
    assert len(lost) == 7
    assert all(
        error.worktree is not None and error.worktree.lease_token == lease.token for error in lost
    )


async def test_reserve__a_row_that_moved_is_refused_although_free(
    store: MetadataStore, worktree: Worktree
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    released = await store.worktrees.release(lease)
    with pytest.raises(LeaseUnavailable) as moved:
        await store.worktrees.reserve(worktree, owner="b", ttl=MINUTE)
    assert moved.value.worktree == released
    again = await store.worktrees.reserve(released, owner="b", ttl=MINUTE)
    assert again.fencing_number > lease.fencing_number


async def test_reserve__a_row_that_was_read_under_a_lease_is_refused_after_its_release(
    store: MetadataStore, worktree: Worktree
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    released = await store.worktrees.release(lease)
    assert released.version > lease.fencing_number
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.reserve(lease.worktree, owner="b", ttl=MINUTE)


async def test_reserve__takes_over_at_the_expiry_and_not_before(
    store: MetadataStore, worktree: Worktree, clock: Clock
) -> None:
    first = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    clock.now = first.expires_at - timedelta(milliseconds=10)
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.reserve(first.worktree, owner="b", ttl=MINUTE)
    clock.now = first.expires_at
    second = await store.worktrees.reserve(first.worktree, owner="b", ttl=MINUTE)
    assert second.fencing_number > first.fencing_number


async def test_reserve__of_a_deleted_or_retired_worktree(
    store: MetadataStore, repository: Repository
) -> None:
    gone, retired = await worktrees(store, repository, 2)
    await store.worktrees.delete(gone.id)
    with pytest.raises(NotFound):
        await store.worktrees.reserve(gone, owner="a", ttl=MINUTE)
    retired = await store.worktrees.retire(retired.id)
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.reserve(retired, owner="a", ttl=MINUTE)
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.acquire(retired.repository_id, owner="a", ttl=MINUTE)
    ready = await store.worktrees.reinstate(retired.id)
    assert (await store.worktrees.reserve(ready, owner="a", ttl=MINUTE)).owner == "a"


@pytest.mark.parametrize("ttl", [timedelta(0), -MINUTE, MAX_TTL + MINUTE])
async def test_reserve__refuses_a_ttl_out_of_bounds(
    store: MetadataStore, worktree: Worktree, ttl: timedelta
) -> None:
    with pytest.raises(InvalidValue):
        await store.worktrees.reserve(worktree, owner="a", ttl=ttl)
    with pytest.raises(InvalidValue):
        await store.worktrees.acquire(worktree.repository_id, owner="a", ttl=ttl)
    assert await store.worktrees.get(worktree.id) == worktree


# --- what a holder may do ----------------------------------------------------------------------


def _forged(lease: Lease, **changes: Any) -> Lease:
    values = {name: getattr(lease, name) for name in lease.__struct_fields__}
    return Lease(**{**values, **changes})


HOLDER_WRITES: dict[str, Callable[[MetadataStore, Lease], Awaitable[object]]] = {
    "renew": lambda store, lease: store.worktrees.renew(lease, ttl=MINUTE),
    "release": lambda store, lease: store.worktrees.release(lease),
    "record_checkout": lambda store, lease: store.worktrees.record_checkout(
        lease, branch=None, commit_sha="abc"
    ),
    "transaction": lambda store, lease: _guarded(store, lease),
}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, {"uv.lock": "1"}),
        ({}, {}),
        ({"b": "2", "a": "1"}, {"a": "1", "b": "2"}),
    ],
)
async def test_record_checkout__without_hashes_keeps_them(
    store: MetadataStore, repository: Repository, given: Any, kept: dict[str, str]
) -> None:
    leases = []
    for path in ("/one", "/two"):
        worktree = await store.worktrees.create(
            repository_id=repository.id, path=path, environment_hashes={"uv.lock": "1"}
        )
        leases.append(await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE))
    lease = await store.worktrees.record_checkout(
        leases[0], branch="main", commit_sha="c", environment_hashes=given
    )
    assert (lease.worktree.branch, lease.worktree.commit_sha) == ("main", "c")
    assert (await store.worktrees.get(lease.worktree.id)).environment_hashes == kept
    other = await store.worktrees.get(leases[1].worktree.id)
    assert other.environment_hashes == {"uv.lock": "1"}


async def _guarded(store: MetadataStore, lease: Lease) -> None:
    async with store.transaction(lease=lease) as tx:
        await tx.repositories.create(name=f"guarded {lease.fencing_number}", remote_url="")


@pytest.mark.parametrize("write", HOLDER_WRITES)
async def test_holder__may_write_while_the_lease_runs(
    store: MetadataStore, worktree: Worktree, clock: Clock, write: str
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    clock.now = lease.expires_at - timedelta(milliseconds=100)
    await HOLDER_WRITES[write](store, lease)


@pytest.mark.parametrize("write", HOLDER_WRITES)
@pytest.mark.parametrize("how", ["expired", "taken over", "released", "owner", "token", "version"])
async def test_holder__a_stale_or_forged_lease_changes_nothing(
    store: MetadataStore, worktree: Worktree, clock: Clock, write: str, how: str
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    match how:
        case "expired":
            clock.now = lease.expires_at
        case "taken over":
            clock.now = lease.expires_at
            await store.worktrees.reserve(lease.worktree, owner="b", ttl=MINUTE)
        case "released":
            await store.worktrees.release(lease)
        case "owner":
            lease = _forged(lease, owner="b")
        case "token":
            lease = _forged(lease, token="0" * 32)
        case "version":
            lease = _forged(lease, fencing_number=lease.fencing_number - 1)
    before = await store.worktrees.get(worktree.id)
    with pytest.raises(LeaseLost) as lost:
        await HOLDER_WRITES[write](store, lease)
    assert (lost.value.resource, lost.value.resource_id) == ("worktrees", worktree.id)
    assert lost.value.fencing_number == lease.fencing_number
    assert await store.worktrees.get(worktree.id) == before
    name = f"guarded {lease.fencing_number}"
    assert await store.repositories.find_by_name(name) is None


async def test_transaction__a_lease_that_ends_inside_undoes_it(
    store: MetadataStore, worktree: Worktree, clock: Clock
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    with pytest.raises(LeaseLost):
        async with store.transaction(lease=lease) as tx:
            await tx.repositories.create(name="too late", remote_url="")
            clock.now = lease.expires_at
    assert await store.repositories.find_by_name("too late") is None


async def test_renew__keeps_the_fencing_number(
    store: MetadataStore, worktree: Worktree, clock: Clock
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    clock.now += MINUTE / 2
    renewed = await store.worktrees.renew(lease, ttl=MINUTE)
    assert renewed.expires_at > lease.expires_at
    assert renewed.fencing_number == lease.fencing_number
    clock.now = lease.expires_at
    # What was handed out first is still the lease.
    await store.worktrees.release(lease)


async def test_clock__an_expiry_that_no_honest_clock_wrote_is_not_believed(
    store: MetadataStore, worktree: Worktree, clock: Clock
) -> None:
    before = clock.now
    clock.now = before + timedelta(days=400)
    immortal = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    clock.now = before
    taken = await store.worktrees.acquire(worktree.repository_id, owner="b", ttl=MINUTE)
    assert taken.worktree_id == worktree.id
    assert taken.fencing_number > immortal.fencing_number
    with pytest.raises(LeaseLost):
        await store.worktrees.renew(immortal, ttl=MINUTE)
    # One within what clocks may differ by is.
    await store.worktrees.release(taken)
    clock.now = before + CLOCK_SKEW / 2
    await store.worktrees.acquire(worktree.repository_id, owner="c", ttl=MAX_TTL)
    clock.now = before
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.acquire(worktree.repository_id, owner="d", ttl=MINUTE)


async def test_renew__after_the_clock_jumped_back_behind_the_take(
    store: MetadataStore, worktree: Worktree, clock: Clock
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    clock.now -= timedelta(hours=1)
    renewed = await store.worktrees.renew(lease, ttl=MINUTE)
    assert renewed.expires_at == lease.expires_at
    await store.worktrees.release(renewed)


async def test_fencing__numbers_are_not_given_out_again_after_a_delete(
    store: MetadataStore, worktree: Worktree
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    await store.worktrees.release(lease)
    await store.worktrees.delete(worktree.id)
    again = await store.worktrees.create(
        repository_id=worktree.repository_id, path=worktree.path, id=worktree.id
    )
    assert (
        await store.worktrees.reserve(again, owner="a", ttl=MINUTE)
    ).fencing_number > lease.fencing_number


async def test_retire_and_delete__not_while_it_is_held(
    store: MetadataStore, worktree: Worktree, clock: Clock
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
    for refused in (store.worktrees.retire, store.worktrees.delete):
        with pytest.raises(LeaseUnavailable) as held:
            await refused(worktree.id)
        assert held.value.worktree == lease.worktree
        with pytest.raises(NotFound):
            await refused(new_id())
    with pytest.raises(NotFound):
        await store.worktrees.reinstate(worktree.id)
    clock.now = lease.expires_at
    retired = await store.worktrees.retire(worktree.id)
    assert (retired.state, retired.lease_owner) == ("retired", None)
    await store.worktrees.delete(worktree.id)
    with pytest.raises(NotFound):
        await store.worktrees.get(worktree.id)


# --- acquire -----------------------------------------------------------------------------------


async def test_acquire__takes_the_best_first(store: MetadataStore, repository: Repository) -> None:
    async def make(path: str, commit: str | None, environment: dict[str, str]) -> Worktree:
        return await store.worktrees.create(
            repository_id=repository.id,
            path=path,
            commit_sha=commit,
            environment_hashes=environment,
        )

    this, that = {"python": "1", "node": "2"}, {"python": "9"}
    any_first = await make("/any/1", "b", that)
    any_second = await make("/any/2", None, {})
    environment = await make("/environment", "b", this)
    commit = await make("/commit", "a", that)
    both = await make("/both", "a", this)
    got = [
        await store.worktrees.acquire(
            repository.id,
            owner="a",
            ttl=MINUTE,
            prefer_commit="a",
            prefer_environment={"node": "2", "python": "1"},
        )
        for _ in range(5)
    ]
    assert [lease.worktree.path for lease in got] == [
        both.path,
        commit.path,
        environment.path,
        any_first.path,
        any_second.path,
    ]
    with pytest.raises(LeaseUnavailable) as none:
        await store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE)
    assert (none.value.repository_id, none.value.worktree) == (repository.id, None)


async def test_acquire__the_least_recently_used_then_the_longest_expired(
    store: MetadataStore, repository: Repository, clock: Clock
) -> None:
    first, second, third = await worktrees(store, repository, 3)
    for worktree in (third, first, second):
        await store.worktrees.release(
            await store.worktrees.reserve(worktree, owner="a", ttl=MINUTE)
        )
    order = [
        (await store.worktrees.acquire(repository.id, owner="b", ttl=MINUTE)).worktree_id
        for _ in range(3)
    ]
    assert order == [third.id, first.id, second.id]
    clock.now += 2 * MINUTE
    over = [
        (await store.worktrees.acquire(repository.id, owner="c", ttl=MINUTE)).worktree_id
        for _ in range(3)
    ]
    assert over == [third.id, first.id, second.id]


async def test_acquire__of_an_unknown_repository_is_unavailable(store: MetadataStore) -> None:
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.acquire(new_id(), owner="a", ttl=MINUTE)


async def test_acquire__racers_share_what_there_is(
    store: MetadataStore, repository: Repository
) -> None:
    made = await worktrees(store, repository, 5)
    results = await asyncio.gather(
        *(
            store.worktrees.acquire(repository.id, owner=f"runner-{n}", ttl=MINUTE)
            for n in range(40)
        ),
        return_exceptions=True,
    )
    leases = [result for result in results if isinstance(result, Lease)]
    assert sorted(lease.worktree_id for lease in leases) == sorted(w.id for w in made)
    assert sum(isinstance(result, LeaseUnavailable) for result in results) == 35


# --- waiting -----------------------------------------------------------------------------------


async def waiters(store: MetadataStore, repository: Repository, count: int) -> None:
    """Return when so many stand in line."""
    async with asyncio.timeout(PATIENCE):
        while True:
            line = await store.lease_waiters.list_by_resource("worktrees", repository.id)
            if len(line.items) == count:
                return
            await asyncio.sleep(0.005)


async def test_wait__first_come_first_served(
    store: MetadataStore, repository: Repository, worktree: Worktree
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="holder", ttl=MINUTE)
    served: list[str] = []

    async def wait(owner: str) -> None:
        got = await store.worktrees.acquire(repository.id, owner=owner, ttl=MINUTE, wait=MINUTE)
        served.append(owner)
        await store.worktrees.release(got)

    tasks = []
    for n in range(6):
        tasks.append(asyncio.ensure_future(wait(f"waiter-{n}")))
        await waiters(store, repository, n + 1)
    await store.worktrees.release(lease)
    await asyncio.gather(*tasks)
    assert served == [f"waiter-{n}" for n in range(6)]
    await waiters(store, repository, 0)


async def test_wait__who_comes_later_does_not_overtake(
    store: MetadataStore, repository: Repository, worktree: Worktree, clock: Clock
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="holder", ttl=MINUTE)
    waiting = asyncio.ensure_future(
        store.worktrees.acquire(repository.id, owner="patient", ttl=MINUTE, wait=MINUTE)
    )
    await waiters(store, repository, 1)
    release = asyncio.ensure_future(store.worktrees.release(lease))
    await release
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.acquire(repository.id, owner="impatient", ttl=MINUTE)
    assert (await waiting).owner == "patient"


async def test_wait__one_who_waits_leaves_the_others_what_is_more(
    store: MetadataStore, repository: Repository
) -> None:
    made = await worktrees(store, repository, 2)
    [first, second] = [
        await store.worktrees.reserve(worktree, owner="holder", ttl=MINUTE) for worktree in made
    ]
    now = store.worktrees._now()
    # The ticket of somebody who died in line.
    await store.lease_waiters._draw(new_id(), "worktrees", repository.id, "dead")
    await store.worktrees.release(first)
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE)
    await store.worktrees.release(second)
    lease = await store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE)
    assert lease.worktree.leased_at is not None
    assert lease.worktree.leased_at > now
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.acquire(repository.id, owner="b", ttl=MINUTE)


async def test_wait__the_dead_block_nobody(
    store: MetadataStore, repository: Repository, worktree: Worktree, clock: Clock
) -> None:
    await store.lease_waiters._draw(new_id(), "worktrees", repository.id, "dead")
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE)
    clock.now += timedelta(seconds=6)
    await store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE)


async def test_wait__ends_without_a_ticket_left(
    store: MetadataStore, repository: Repository, worktree: Worktree
) -> None:
    await store.worktrees.reserve(worktree, owner="holder", ttl=MINUTE)
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.acquire(
            repository.id, owner="a", ttl=MINUTE, wait=timedelta(milliseconds=50)
        )
    await waiters(store, repository, 0)
    waiting = asyncio.ensure_future(
        store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE, wait=MINUTE)
    )
    await waiters(store, repository, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await waiters(store, repository, 0)


async def test_wait__an_expiry_is_noticed(
    store: MetadataStore, repository: Repository, worktree: Worktree, clock: Clock
) -> None:
    lease = await store.worktrees.reserve(worktree, owner="holder", ttl=MINUTE)
    waiting = asyncio.ensure_future(
        store.worktrees.acquire(repository.id, owner="heir", ttl=MINUTE, wait=MINUTE)
    )
    await waiters(store, repository, 1)
    clock.now = lease.expires_at
    async with asyncio.timeout(PATIENCE):
        assert (await waiting).owner == "heir"


async def test_acquire__cancelled_in_flight_leaves_nothing_leased(
    store: MetadataStore, repository: Repository, worktree: Worktree
) -> None:
    taken = turns = 0
    while not taken:
        turns += 1
        assert turns < 3_000, "no cancelled caller had ever got the lease"
        task = asyncio.ensure_future(store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE))
        for _ in range(turns % 6):
            await asyncio.sleep(0.0005 * (turns % 3))
        task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, Lease):
            await store.worktrees.release(result)
            continue
        async with asyncio.timeout(PATIENCE):
            while (row := await store.worktrees.get(worktree.id)).lease_owner is not None:
                await asyncio.sleep(0.001)
        taken += row.version > worktree.version
        worktree = row


# --- held for a body ---------------------------------------------------------------------------


async def test_lease__is_released_at_the_end_and_on_an_error(
    store: MetadataStore, repository: Repository, worktree: Worktree
) -> None:
    async with store.worktrees.lease(repository.id, owner="a", ttl=MINUTE) as lease:
        assert (await store.worktrees.get(worktree.id)).lease_token == lease.token
    assert (await store.worktrees.get(worktree.id)).lease_owner is None
    with pytest.raises(ZeroDivisionError):
        async with store.worktrees.lease(repository.id, owner="a", ttl=MINUTE):
            raise ZeroDivisionError
    await free(store, worktree)


async def free(store: MetadataStore, worktree: Worktree) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await store.worktrees.get(worktree.id)).lease_owner is not None:
            await asyncio.sleep(0.001)


async def test_lease__is_released_when_the_task_is_cancelled(
    store: MetadataStore, repository: Repository, worktree: Worktree
) -> None:
    entered = asyncio.Event()

    async def body() -> None:
        async with store.worktrees.lease(repository.id, owner="a", ttl=MINUTE):
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.ensure_future(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await free(store, worktree)


async def test_lease__is_renewed_in_the_background(tmp_path: Path) -> None:
    async with MetadataStore.open(f"sqlite:///{tmp_path}/x.db", migrate=True) as store:
        repository = await store.repositories.create(name="r", remote_url="")
        await store.worktrees.create(repository_id=repository.id, path="/w")
        # A third of it passes before it is renewed, and the rest is for a machine that is busy.
        ttl = timedelta(seconds=3)
        async with store.worktrees.lease(repository.id, owner="a", ttl=ttl) as lease:
            async with asyncio.timeout(PATIENCE):
                while True:
                    row = await store.worktrees.get(lease.worktree_id)
                    assert row.lease_token == lease.token
                    assert row.lease_expires_at is not None
                    if row.lease_expires_at > lease.expires_at:
                        break
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("body", ["notices", "goes on", "fails"])
async def test_lease__lost_cancels_the_body(tmp_path: Path, body: str) -> None:
    path = tmp_path / "x.db"
    async with MetadataStore.open(f"sqlite:///{path}", migrate=True) as store:
        repository = await store.repositories.create(name="r", remote_url="")
        await store.worktrees.create(repository_id=repository.id, path="/w")
        ttl = timedelta(milliseconds=200)
        cancelled = False
        with pytest.raises(ZeroDivisionError if body == "fails" else LeaseLost):
            async with store.worktrees.lease(repository.id, owner="a", ttl=ttl):
                other = sqlite3.connect(path, isolation_level=None)
                other.execute("UPDATE worktrees SET version = version + 1")
                other.close()
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    cancelled = True
                    if body == "notices":
                        raise
                    if body == "fails":
                        raise ZeroDivisionError from None
        assert cancelled
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)


async def test_lease__a_cancellation_from_outside_stays_one(
    store: MetadataStore, repository: Repository, worktree: Worktree
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            async with store.worktrees.lease(repository.id, owner="a", ttl=MINUTE):
                await asyncio.sleep(60)
    await free(store, worktree)


async def test_lease__ends_with_the_store(tmp_path: Path) -> None:
    store = await MetadataStore.open(f"sqlite:///{tmp_path}/x.db", migrate=True)
    repository = await store.repositories.create(name="r", remote_url="")
    await store.worktrees.create(repository_id=repository.id, path="/w")
    with pytest.raises((LeaseLost, StoreClosed)):
        async with store.worktrees.lease(repository.id, owner="a", ttl=timedelta(milliseconds=100)):
            await store.close()
            await asyncio.sleep(30)
    # It may have been lost while the store was being closed.
    await store.close()


async def test_acquire__cancelled_before_the_store_is_closed_leaves_nothing_leased(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    for turns in range(6):
        async with MetadataStore.open(url, migrate=True) as store:
            repository = await store.repositories.create(name=f"{turns}", remote_url="")
            worktree = await store.worktrees.create(repository_id=repository.id, path=f"/{turns}")
            task = asyncio.ensure_future(
                store.worktrees.acquire(repository.id, owner="a", ttl=MINUTE)
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with MetadataStore.open(url) as store:
            row = await store.worktrees.get(worktree.id)
            assert row.lease_owner is None or (task.done() and not task.cancelled())
