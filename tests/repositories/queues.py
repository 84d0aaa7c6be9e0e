"""Everything that is leased and waited for, in one shape: tests run over all of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from metastore import Lease, LeaseUnavailable, LockHeld, MetadataStore, ProjectLock, TaskLease
from metastore.codec import new_id
from metastore.repositories.lease_waiters import LeasedResource, LeaseWaiter
from metastore.repositories.tasks import _queue_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

MINUTE = timedelta(minutes=1)
REFUSED = (LeaseUnavailable, LockHeld)

AnyLease = Lease | ProjectLock | TaskLease


class Queue(NamedTuple):
    """One thing to lease, and how.

    Attributes:
        resource: the table.
        resource_id: the queue in front of it.
        take: `take(owner, **options)`.
        hold: the same, for a body.
        release: gives a lease back.
    """

    store: MetadataStore
    resource: LeasedResource
    resource_id: str
    take: Callable[..., Coroutine[Any, Any, AnyLease]]
    hold: Callable[..., AbstractAsyncContextManager[AnyLease]]
    release: Callable[[Any], Awaitable[object]]

    async def draw(self, owner: str) -> LeaseWaiter:
        """Queue as a waiter that dies would leave it: with a ticket and nobody behind it."""
        return await self.store.lease_waiters._draw(
            new_id(), self.resource, self.resource_id, owner
        )

    async def tickets(self) -> list[LeaseWaiter]:
        """Return the live tickets."""
        page = await self.store.lease_waiters.list_by_resource(self.resource, self.resource_id)
        return page.items

    async def rows(self) -> list[str]:
        """Return the owners of all tickets that are stored, live or not."""
        backend = self.store._backend
        rows: list[tuple[str]] = await backend._readers[0].call(  # type: ignore[attr-defined]
            lambda connection: connection.execute(
                "SELECT owner FROM lease_waiters WHERE resource = ? AND resource_id = ?"
                " ORDER BY position",
                (self.resource, self.resource_id),
            ).fetchall()
        )
        return [owner for (owner,) in rows]

    async def holder(self) -> str | None:
        """Return who has the one thing that there is to lease here, expired or not."""
        if self.resource is LeasedResource.PROJECT_LOCKS:
            lock = await self.store.project_locks.find_by_project(self.resource_id)
            return None if lock is None else lock.session_id
        if self.resource is LeasedResource.WORKTREES:
            [worktree] = (await self.store.worktrees.list_by_repository(self.resource_id)).items
            return worktree.lease_owner
        running = (await self.store.tasks.list_by_status("running")).items
        return running[0].lease_owner if running else None


async def worktree(store: MetadataStore, name: str) -> Queue:
    repository = await store.repositories.create(name=name, remote_url="")
    await store.worktrees.create(repository_id=repository.id, path=f"/worktrees/{name}")

    def asked(owner: str, options: dict[str, Any]) -> dict[str, Any]:
        return {"owner": owner, "ttl": MINUTE} | options

    return Queue(
        store,
        LeasedResource.WORKTREES,
        repository.id,
        lambda owner, **options: store.worktrees.acquire(repository.id, **asked(owner, options)),
        lambda owner, **options: store.worktrees.lease(repository.id, **asked(owner, options)),
        store.worktrees.release,
    )


async def project_lock(store: MetadataStore, name: str) -> Queue:
    project = await store.projects.ensure(path=f"/projects/{name}")
    sessions: dict[str, str] = {}
    for owner in ("holder", "a", "b"):
        session = await store.sessions.create(
            session_type="test_generation", project_path=project.path
        )
        sessions[owner] = session.id

    def asked(owner: str, options: dict[str, Any]) -> dict[str, Any]:
        wanted = {"project_id": project.id, "session_id": sessions[owner], "ttl": MINUTE}
        return wanted | options

    return Queue(
        store,
        LeasedResource.PROJECT_LOCKS,
        project.id,
        lambda owner, **options: store.project_locks.acquire(**asked(owner, options)),
        lambda owner, **options: store.project_locks.hold(**asked(owner, options)),
        store.project_locks.release,
    )


def _task(*, typed: bool, spread: bool) -> Callable[[MetadataStore, str], Awaitable[Queue]]:
    async def make(store: MetadataStore, name: str) -> Queue:
        types = [name, f"{name} too"] if typed else None
        await store.tasks.create(title=name, task_type=name, workspace_path=f"/{name}")

        def asked(owner: str, options: dict[str, Any]) -> dict[str, Any]:
            wanted = {"owner": owner, "ttl": MINUTE, "task_types": types, "spread": spread}
            return wanted | options

        return Queue(
            store,
            LeasedResource.TASKS,
            _queue_of(types),
            lambda owner, **options: store.tasks.claim(**asked(owner, options)),
            lambda owner, **options: store.tasks.hold(**asked(owner, options)),
            store.tasks.release,
        )

    return make


KINDS: dict[str, Callable[[MetadataStore, str], Awaitable[Queue]]] = {
    "worktree": worktree,
    "project lock": project_lock,
    "task": _task(typed=False, spread=False),
    "task of types": _task(typed=True, spread=False),
    "task in turn": _task(typed=False, spread=True),
    "task of types in turn": _task(typed=True, spread=True),
}

ONE_OF_EACH = ["worktree", "project lock", "task of types"]
"""Where the statements do not matter, only the code around them."""


async def pair(kind: str, store: MetadataStore) -> tuple[Queue, Queue]:
    """Return two queues, with one thing to lease in each.

    They are of one kind where there can be two: whoever claims a task of any type has but one
    queue, and would take the task of a second as well.
    """
    second = "worktree" if kind in ("task", "task in turn") else kind
    return await KINDS[kind](store, "own"), await KINDS[second](store, "other")
