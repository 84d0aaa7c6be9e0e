"""Explanations: what an id stands for, who holds it, what depends on it, what would release it."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from metastore import InvalidValue, LeaseUnavailable, MetadataStore, NotFound
from metastore.codec import new_id, timestamp
from metastore.explain import explain
from metastore.testing import Clock, Factories, expire

if TYPE_CHECKING:
    from metastore.explain import Explanation

MINUTE = timedelta(minutes=1)


class Ask:
    """Explains by the store's clock."""

    def __init__(self, store: MetadataStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def __call__(self, key: str) -> Explanation:
        return await explain(self._store, key, now=self._clock.now)


@pytest.fixture
def ask(store: MetadataStore, clock: Clock) -> Ask:
    return Ask(store, clock)


# Worktrees and their leases


async def test_worktree__that_is_free(ask: Ask, factories: Factories) -> None:
    repository = await factories.repository(name="shop")
    worktree = await factories.worktree(
        repository_id=repository.id, path="/srv/shop-1", commit_sha="c0ffee"
    )
    told = await ask(worktree.id)
    assert (told.kind, told.id, told.state) == ("worktree", worktree.id, "free")
    assert told.what == "the checkout /srv/shop-1 of repository 'shop', at commit c0ffee"
    assert (told.held_by, told.since, told.until) == (None, None, None)
    assert told.fencing_number == worktree.version
    assert told.dependents == []
    assert told.released_by == ["nothing: the next caller may lease it"]


async def test_worktree__that_is_held(store: MetadataStore, ask: Ask, factories: Factories) -> None:
    lease = await factories.lease(owner="runner-1")
    worktree = await store.worktrees.get(lease.worktree_id)
    session = await factories.session(repository_id=worktree.repository_id, worktree_id=worktree.id)
    await store.sessions.start(session.id)
    ended = await factories.session(repository_id=worktree.repository_id, worktree_id=worktree.id)
    await store.sessions.cancel(ended.id)
    told = await ask(worktree.id)
    assert (told.state, told.held_by) == ("held", "runner-1")
    assert (told.since, told.until) == (worktree.leased_at, lease.expires_at)
    assert told.fencing_number == lease.fencing_number
    assert told.dependents == [f"session {session.id} (debug, in_progress) runs in it"]
    assert len(told.released_by) == 2
    assert timestamp(lease.expires_at) in told.released_by[1]


async def test_worktree__its_waiters_depend_on_it(
    store: MetadataStore, ask: Ask, factories: Factories
) -> None:
    lease = await factories.lease()
    repository_id = lease.worktree.repository_id

    async def wait(owner: str) -> None:
        with contextlib.suppress(LeaseUnavailable):
            await store.worktrees.acquire(repository_id, owner=owner, ttl=MINUTE, wait=MINUTE)

    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(wait(f"waiter-{number}")))
        while await _length_of_line(store, repository_id) <= number:
            await asyncio.sleep(0)
    for key in (lease.worktree_id, repository_id):
        [queue] = [it for it in (await ask(key)).dependents if "queued for" in it]
        assert "3, first waiter-0 since" in queue
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (await ask(lease.worktree_id)).dependents == []


async def _length_of_line(store: MetadataStore, repository_id: str) -> int:
    return len((await store.lease_waiters.list_by_resource("worktrees", repository_id)).items)


async def test_worktree__whose_lease_ran_out(
    store: MetadataStore, ask: Ask, factories: Factories
) -> None:
    lease = await factories.lease(owner="runner-1")
    await expire(store, lease)
    told = await ask(lease.worktree_id)
    assert (told.state, told.held_by) == ("expired", "runner-1")
    assert told.released_by[0].startswith("nothing: the lease expired at ")


async def test_worktree__leased_by_a_clock_that_jumped_back(
    ask: Ask, factories: Factories, clock: Clock
) -> None:
    lease = await factories.lease()
    clock.advance(-timedelta(days=30))
    told = await ask(lease.worktree_id)
    assert told.state == "expired"
    assert "a wrong clock wrote that" in told.released_by[0]


async def test_worktree__that_is_retired(
    store: MetadataStore, ask: Ask, factories: Factories
) -> None:
    worktree = await factories.worktree()
    await store.worktrees.retire(worktree.id)
    told = await ask(worktree.id)
    assert told.state == "retired"
    assert "reinstate" in told.released_by[0]
    await store.worktrees.reinstate(worktree.id)
    assert (await ask(worktree.id)).state == "free"


async def test_lease__is_found_by_its_token_while_it_lasts(
    store: MetadataStore, ask: Ask, factories: Factories
) -> None:
    await factories.lease()
    lease = await factories.lease(owner="runner-1")
    told = await ask(lease.token)
    assert (told.kind, told.id, told.held_by) == ("lease", lease.worktree_id, "runner-1")
    assert lease.token not in str(told)
    await store.worktrees.release(lease)
    with pytest.raises(NotFound):
        await ask(lease.token)


# Locks and projects


async def test_lock__says_which_session_has_the_project(
    store: MetadataStore, ask: Ask, factories: Factories
) -> None:
    lock = await factories.lock()
    project = await store.projects.get(lock.project_id)
    told = await ask(lock.id)
    assert (told.kind, told.id, told.state) == ("lock", lock.id, "held")
    assert told.held_by == f"session {lock.session_id} (test_generation, pending)"
    assert project.path in told.what
    assert (told.since, told.until) == (lock.acquired_at, lock.expires_at)
    assert told.fencing_number == lock.fencing_number
    of_project = await ask(project.id)
    assert (of_project.kind, of_project.held_by) == ("project", told.held_by)
    assert lock.id in of_project.what
    assert any(lock.session_id in line for line in of_project.dependents)
    await expire(store, lock)
    assert (await ask(lock.id)).state == (await ask(project.id)).state == "expired"


async def test_project__that_is_free(store: MetadataStore, ask: Ask, factories: Factories) -> None:
    lock = await factories.lock()
    await store.project_locks.release(lock)
    told = await ask(lock.project_id)
    assert (told.state, told.held_by) == ("free", None)
    with pytest.raises(NotFound):
        await ask(lock.id)


async def test_repository__counts_its_worktrees(
    store: MetadataStore, ask: Ask, factories: Factories
) -> None:
    repository = await factories.repository()
    worktrees = [await factories.worktree(repository_id=repository.id) for _ in range(4)]
    await factories.lease(worktrees[0])
    await expire(store, await factories.lease(worktrees[1]))
    await store.worktrees.retire(worktrees[2].id)
    told = await ask(repository.id)
    assert (told.kind, told.state) == ("repository", "registered")
    assert told.dependents == [
        "free worktrees: 1",
        "held worktrees: 1",
        "expired worktrees: 1",
        "retired worktrees: 1",
    ]


# Sessions and commands


async def test_session__with_everything_that_hangs_on_it(
    store: MetadataStore, ask: Ask, factories: Factories
) -> None:
    lease = await factories.lease(owner="runner-1")
    project = await factories.project()
    session = await factories.session(
        session_type="debug",
        project_path=project.path,
        repository_id=lease.worktree.repository_id,
        worktree_id=lease.worktree_id,
    )
    await store.sessions.start(session.id)
    done = await factories.command(session_id=session.id, argv=["make"])
    await store.commands.start(done.id)
    await store.commands.finish(done.id, exit_code=0)
    running = await factories.command(session_id=session.id, argv=["make", "test"])
    await store.commands.start(running.id)
    artifact = await factories.artifact(command_id=done.id, name="report")
    await factories.step(session_id=session.id)
    lock = await factories.lock(session_id=session.id)
    told = await ask(session.id)
    assert (told.kind, told.state, told.held_by) == ("session", "in_progress", "runner-1")
    assert (told.since, told.until) == (session.created_at, None)
    assert told.fencing_number == lease.fencing_number
    assert lease.worktree.path in told.what
    assert told.dependents == [
        f"lock {lock.id} of project {lock.project_id}, until {timestamp(lock.expires_at)}",
        f"command {running.id} (running): make test",
        "commands: 2",
        "steps: 1",
        "artifacts: 1",
    ]
    assert told.released_by == ["store.sessions.complete, fail or cancel ends it"]

    told = await ask(running.id)
    assert (told.kind, told.state, told.held_by) == ("command", "running", "runner-1")
    assert told.what == f"command 2 of session {session.id} (debug, in_progress): make test"
    assert told.fencing_number == lease.fencing_number
    assert "finish" in told.released_by[0]
    told = await ask(done.id)
    assert told.dependents == [f"artifact report ({artifact.id})"]
    assert told.released_by == ["it has ended: completed, exit code 0"]
    assert told.until is not None

    await expire(store, lease)
    assert "nobody holds its worktree (expired)" in (await ask(session.id)).released_by[1]
    await store.sessions.fail(session.id, error_message="gone")
    told = await ask(session.id)
    assert (told.state, told.fencing_number) == ("failed", None)
    assert told.until is not None
    assert told.released_by == ["it has ended: failed"]


async def test_session__without_a_worktree_is_its_users(ask: Ask, factories: Factories) -> None:
    token = await factories.token(user_name="ops")
    session = await factories.session(project_path="/srv/shop", auth_token_id=token.record.id)
    told = await ask(session.id)
    assert told.what == "a test_generation session on project /srv/shop"
    assert told.held_by == f"ops, by token {token.record.token_prefix}…"
    alone = await factories.session()
    assert (await ask(alone.id)).held_by is None


# Tokens


async def test_token__is_explained_and_never_shown(
    store: MetadataStore, ask: Ask, factories: Factories, clock: Clock
) -> None:
    token = await factories.token("sessions:*", user_name="ops", ttl=MINUTE)
    for _ in range(2):
        await factories.session(auth_token_id=token.record.id)
    told = await ask(token.record.id)
    assert (told.kind, told.state, told.held_by) == ("token", "active", "ops")
    assert told.what == f"the token {token.record.token_prefix}… (test), for sessions:*"
    assert (told.since, told.until) == (token.record.created_at, token.record.expires_at)
    assert told.dependents == ["open sessions that it created: 2"]
    assert f"revoke-token {token.record.id}" in told.released_by[0]
    assert len(told.released_by) == 2
    assert token.token not in str(told)
    assert token.record.token_hash not in str(told)

    replacement = await store.auth_tokens.rotate(token.record.id, grace=timedelta(seconds=30))
    told = await ask(token.record.id)
    assert told.state == "replaced"
    assert f"token {replacement.record.id}, which replaces it" in told.dependents
    clock.advance(MINUTE)
    assert (await ask(token.record.id)).released_by == ["it no longer grants anything: expired"]
    revoked = await store.auth_tokens.revoke(replacement.record.id)
    told = await ask(replacement.record.id)
    assert (told.state, told.until) == ("revoked", revoked.revoked_at)


# What is no id


async def test_unknown__is_not_found(ask: Ask) -> None:
    for key in (new_id(), "0" * 32):
        with pytest.raises(NotFound) as caught:
            await ask(key)
        assert caught.value.key == key


@pytest.mark.parametrize(
    "key", ["", "17", "mst_secret", "%", "0190A5A4-7F62-7000-8000-000000000000"]
)
async def test_malformed__is_refused_and_not_repeated(ask: Ask, key: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        await ask(key)
    assert not key or key not in str(caught.value)
