"""What waiters are told is free is what they would be given: nothing less, nothing more."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore.leasing import queue
from tests.patience import PATIENCE
from tests.repositories.queues import KINDS, MINUTE, Queue, pair

if TYPE_CHECKING:
    from metastore import MetadataStore, Repository
    from tests.conftest import Clock

DAYS = timedelta(days=30)
SHA = "a" * 40
HASHES = {"lock": "b"}

each_kind = pytest.mark.parametrize("kind", KINDS)


async def start_waiting(queue: Queue, owner: str) -> asyncio.Task[Any]:
    """Return a task that waits, when its ticket is there."""
    others = len(await queue.rows())
    waiting = asyncio.create_task(queue.take(owner, wait=MINUTE))
    async with asyncio.timeout(PATIENCE):
        while len(await queue.rows()) == others:
            await asyncio.sleep(0.005)
    return waiting


@each_kind
async def test_wait__sees_that_an_expiry_is_not_believed_any_more(
    store: MetadataStore, clock: Clock, kind: str
) -> None:
    own, other = await pair(kind, store)
    clock.advance(DAYS)
    await own.take("holder")
    await other.take("holder")
    waiting = await start_waiting(own, "a")
    clock.advance(-DAYS)
    await waiting
    assert (await own.tickets(), await other.tickets()) == ([], [])


@each_kind
async def test_wait__sees_that_a_lease_has_run_out(
    store: MetadataStore, clock: Clock, kind: str
) -> None:
    own, other = await pair(kind, store)
    await own.take("holder", ttl=MINUTE)
    await other.take("holder", ttl=2 * MINUTE)
    waiting = await start_waiting(own, "a")
    clock.advance(MINUTE)
    await waiting
    assert len(await other.tickets()) == 0


@each_kind
async def test_wait__is_not_held_up_by_those_who_wait_for_another(
    store: MetadataStore, clock: Clock, kind: str
) -> None:
    own, other = await pair(kind, store)
    for owner in ("dead", "dead too"):
        await other.draw(owner)
    held = await own.take("holder")
    waiting = await start_waiting(own, "a")
    await own.release(held)
    await waiting
    assert len(await other.tickets()) == 2


@each_kind
async def test_wait__tries_nothing_while_only_another_is_free(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind in ("task", "task in turn"):
        pytest.skip("whoever claims a task of any type has but one queue")
    own, other = await pair(kind, store)
    repository: Any = getattr(store, own.resource)
    held = await own.take("holder")
    looks = tries = 0
    look, attempt = repository._scalar, repository._take

    async def looking(call: Any) -> Any:
        nonlocal looks
        looks += 1
        return await look(call)

    async def trying(*arguments: Any, **named: Any) -> Any:
        nonlocal tries
        tries += 1
        return await attempt(*arguments, **named)

    monkeypatch.setattr(queue, "LOOK_INTERVAL", 0.005)
    waiting = await start_waiting(own, "a")
    monkeypatch.setattr(repository, "_scalar", looking)
    monkeypatch.setattr(repository, "_take", trying)
    async with asyncio.timeout(PATIENCE):
        while looks < 5:
            await asyncio.sleep(0.005)
    assert tries == 0
    await own.release(held)
    await waiting
    await other.take("a")


@each_kind
async def test_wait__that_is_cancelled_leaves_no_ticket(store: MetadataStore, kind: str) -> None:
    own, other = await pair(kind, store)
    await own.take("holder")
    await other.draw("stays")
    waiting = await start_waiting(own, "a")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await own.rows(), await other.rows()) == ([], ["stays"])


async def test_abandoned_worktree__is_the_one_alone(
    store: MetadataStore, repository: Repository
) -> None:
    for path in ("/a", "/b"):
        await store.worktrees.create(repository_id=repository.id, path=path)
    lost, kept = [
        await store.worktrees.acquire(repository.id, owner=owner, ttl=MINUTE)
        for owner in ("lost", "kept")
    ]
    await store.worktrees._abandon(store.worktrees._abandonment(repository.id, lost.token))
    owners = [
        it.lease_owner for it in (await store.worktrees.list_by_repository(repository.id)).items
    ]
    assert sorted(owners, key=str) == [None, "kept"]
    await store.worktrees.release(kept)


async def test_abandoned_task__is_the_one_alone_and_has_not_begun(store: MetadataStore) -> None:
    for title in ("a", "b"):
        await store.tasks.create(title=title, task_type="t")
    lost, kept = [await store.tasks.claim(owner=owner, ttl=MINUTE) for owner in ("lost", "kept")]
    await store.tasks._abandon(store.tasks._abandonment(lost.token))
    task = await store.tasks.get(lost.task.id)
    assert (task.status, task.started_at, task.lease_owner) == ("pending", None, None)
    assert (await store.tasks.get(kept.task.id)).lease_owner == "kept"
    await store.tasks.release(kept)


async def test_expired_locks__that_ran_out_at_once_are_all_paged(
    store: MetadataStore, clock: Clock
) -> None:
    clock.tick = timedelta(0)
    locks = []
    for name in ("a", "b", "c"):
        project = await store.projects.ensure(path=f"/{name}")
        session = await store.sessions.create(
            session_type="test_generation", project_path=f"/{name}"
        )
        locks.append(
            await store.project_locks.acquire(
                project_id=project.id, session_id=session.id, ttl=MINUTE
            )
        )
    clock.advance(MINUTE)
    found = []
    page = await store.project_locks.list_expired(limit=1)
    while True:
        found += page.items
        if page.next is None:
            break
        page = await store.project_locks.list_expired(after=page.next, limit=1)
    assert sorted(found, key=lambda lock: lock.id) == sorted(locks, key=lambda lock: lock.id)


@pytest.mark.parametrize("commit", [None, SHA])
@pytest.mark.parametrize("environment", [None, HASHES])
async def test_acquire__takes_the_least_recently_used_of_those_that_fit_as_well(
    store: MetadataStore,
    repository: Repository,
    commit: str | None,
    environment: dict[str, str] | None,
) -> None:
    for path in ("/a", "/b", "/c"):
        await store.worktrees.create(
            repository_id=repository.id,
            path=path,
            commit_sha=commit,
            environment_hashes=environment or {},
        )
    order = []
    for _ in range(6):
        lease = await store.worktrees.acquire(
            repository.id,
            owner="a",
            ttl=MINUTE,
            prefer_commit=commit,
            prefer_environment=environment,
        )
        order.append((await store.worktrees.get(lease.worktree_id)).path)
        await store.worktrees.release(lease)
    assert order == ["/a", "/b", "/c"] * 2


@pytest.mark.parametrize("types", [None, ["x", "y"], ["x", "y", "none of these"]])
async def test_claim__spread_gives_each_workspace_its_turn(
    store: MetadataStore, types: list[str] | None
) -> None:
    for n in range(3):
        await store.tasks.create(title=f"busy {n}", task_type="x", workspace_path="/busy")
    for n in range(2):
        await store.tasks.create(title=f"quiet {n}", task_type="y", workspace_path="/quiet")
    claimed = []
    for _ in range(5):
        lease = await store.tasks.claim(owner="a", ttl=MINUTE, task_types=types, spread=True)
        claimed.append(lease.task.title)
    assert claimed == ["busy 0", "quiet 0", "busy 1", "quiet 1", "busy 2"]
