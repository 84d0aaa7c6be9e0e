"""What clients do to the store, and what they tell the judge of it."""

from __future__ import annotations

import asyncio
import atexit
import sqlite3
from collections import defaultdict, deque
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from metastore import (
    LeaseLost,
    MetadataStore,
    MetastoreError,
    NewEvent,
    StoreClosed,
)
from metastore.testing.simulation.simulate import image_of
from metastore.testing.simulation.stage import Stage
from tests.simulation.plan import CLIENTS, PROCESSES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.testing.simulation import Process
    from tests.simulation.judge import Judge, Operation
    from tests.simulation.plan import Action, Plan

TTLS = (0.1, 0.25, 1.0, 30.0)
WAITS = (0.1, 0.4, 1.0)
TYPES = ("build", "test")
BUDGET = 2


class Boom(Exception):
    """What goes wrong in the body of a lease."""


class Facts(msgspec.Struct):
    """The ids of what every run begins with."""

    repositories: list[str]
    worktrees: list[str]
    projects: list[str]
    sessions: list[str]
    jobs: list[str]

    def project_of(self, session: str) -> str:
        """Return the project that a session works on: no other may it lock."""
        return self.projects[self.sessions.index(session) % 2]


@cache
def beginning() -> tuple[Stage, Facts]:
    """Return the database as every run begins with it, and what is in it."""
    facts = Facts([], [], [], [], [])

    async def prepare(store: MetadataStore) -> None:
        for name in ("app", "lib"):
            repository = await store.repositories.create(name=name, remote_url="u")
            facts.repositories.append(repository.id)
            for place in range(2):
                worktree = await store.worktrees.create(
                    repository_id=repository.id, path=f"/{name}/{place}"
                )
                facts.worktrees.append(worktree.id)
            project = await store.projects.ensure(path=f"/projects/{name}")
            facts.projects.append(project.id)
            job = await store.jobs.create(
                task="t", repo_owner="o", repo_name=name, budget_usd=BUDGET
            )
            facts.jobs.append((await store.jobs.start(job.id)).id)
        for number in range(PROCESSES * CLIENTS):
            path = f"/projects/{('app', 'lib')[number % 2]}"
            session = await store.sessions.create(session_type="test_generation", project_path=path)
            facts.sessions.append((await store.sessions.start(session.id)).id)
        for task_type in TYPES:
            for place in range(3):
                await store.tasks.create(title=str(place), task_type=task_type)

    stage = Stage(image_of(prepare))
    atexit.register(stage.close)
    return stage, facts


class Client:
    """What one client of one life of a process has in its hands."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.leases: list[Any] = []
        self.locks: list[Any] = []
        self.claims: list[Any] = []
        self.requests: list[tuple[str, str]] = []


class Workload:
    """Runs the actions of a plan. What a process that died left undone, its next life does."""

    def __init__(self, plan: Plan, facts: Facts) -> None:
        self.facts = facts
        self.judge: Judge
        self.queues: dict[tuple[int, int], deque[Action]] = defaultdict(deque)
        for action in plan.actions:
            self.queues[action.process, action.client].append(action)

    async def program(self, process: Process) -> None:
        session = self.facts.sessions[process.number] if process.life % 2 else None
        self.judge.follows(process, session)
        follower = process.loop.create_task(self.follow(process, session))
        try:
            async with asyncio.TaskGroup() as clients:
                for number in range(CLIENTS):
                    if self.queues[process.number, number]:
                        clients.create_task(self.client(process, Client(number)))
            if any(self.queues[process.number, number] for number in range(CLIENTS)):
                raise StoreClosed("there is more to do")
            await self.judge.caught_up(process, follower)
            await self.judge.tickets_left()
        finally:
            follower.cancel()

    async def follow(self, process: Process, session: str | None) -> None:
        while True:
            try:
                async for event in process.store.events.follow(
                    session, after=self.judge.followed_to(process)
                ):
                    self.judge.saw(process, event.position)
            except StoreClosed:
                return
            except (MetastoreError, OSError, MemoryError):
                continue

    async def client(self, process: Process, client: Client) -> None:
        queue = self.queues[process.number, client.number]
        while queue:
            action = queue.popleft()
            await asyncio.sleep(action.rest)
            if await self.perform(process, client, action):
                return

    async def perform(self, process: Process, client: Client, action: Action) -> bool:
        """Do what an action says; tell whether the store was closed."""
        operation = self.judge.begin(process, client.number, action)
        act = getattr(self, action.kind)
        task = process.start_task(act(operation, process.store, client, action.n))
        if action.cancelled_after is not None:
            process.loop.call_later(action.cancelled_after, task.cancel)
        try:
            await task
        except MetastoreError as error:
            self.judge.refused(operation, error)
            return isinstance(error, StoreClosed)
        except RuntimeError as error:
            self.judge.refused(operation, error)
        except (OSError, MemoryError, sqlite3.ProgrammingError, Boom) as error:
            self.judge.unknown(operation, error)
        except asyncio.CancelledError as error:
            self.judge.unknown(operation, error)
            this = asyncio.current_task()
            if this is not None and this.cancelling():
                raise
        else:
            self.judge.answered(operation)
        return False

    # Events.

    def session(self, operation: Operation, n: int) -> str:
        return self.facts.sessions[n % 3]

    async def append(self, operation: Operation, store: MetadataStore, _: Client, n: int) -> None:
        [id_] = operation.will_append(1)
        event = await store.events.append(self.session(operation, n), "a", operation.name, id=id_)
        self.judge.appended(operation, event.position)

    async def append_many(
        self, operation: Operation, store: MetadataStore, _: Client, n: int
    ) -> None:
        ids = operation.will_append(2 + n % 4)
        await store.events.append_many(
            self.session(operation, n), [NewEvent("m", operation.name, id=id_) for id_ in ids]
        )

    async def plain_transaction(
        self, operation: Operation, store: MetadataStore, _: Client, n: int
    ) -> None:
        ids = operation.will_append(2)
        async with store.transaction() as tx:
            for id_ in ids:
                await tx.events.append(self.session(operation, n), "t", operation.name, id=id_)
                await asyncio.sleep(0)

    async def page(self, operation: Operation, store: MetadataStore, _: Client, n: int) -> None:
        known = self.judge.known_events(self.session(operation, n))
        page = await store.events.list_by_session(
            self.session(operation, n), after=known[-20] if len(known) > 20 else 0
        )
        self.judge.read(operation, known, [event.position for event in page.items])

    async def stranger(self, operation: Operation, store: MetadataStore, _: Client, n: int) -> None:
        [id_] = operation.will_append(1)
        loop = operation.process.second_loop()
        task = loop.create_task(self._as_stranger(store, self.session(operation, n), id_))
        for _turn in range(300):
            if task.done():
                break
            await asyncio.sleep(0.01)
        if not task.done():
            self.judge.violation(f"{operation}: a call from another loop was never answered")
        elif (error := task.exception()) is not None:
            raise error

    @staticmethod
    async def _as_stranger(store: MetadataStore, session: str, id_: str) -> None:
        await store.events.append(session, "s", "stranger", id=id_)

    # Worktrees.

    async def reserve(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        worktree = await store.worktrees.get(self.facts.worktrees[n % 4])
        operation.expects_version(worktree.version + 1)
        if n % 3 == 0:
            await asyncio.sleep(0.01)
        lease = await store.worktrees.reserve(
            worktree, owner=operation.name, ttl=_seconds(TTLS[n // 4 % 4])
        )
        self.judge.granted(operation, lease.worktree_id, lease.fencing_number)
        client.leases.append(lease)

    async def acquire(
        self,
        operation: Operation,
        store: MetadataStore,
        client: Client,
        n: int,
        wait: float | None = None,
    ) -> None:
        lease = await store.worktrees.acquire(
            operation.wants(self.facts.repositories[n % 2]),
            owner=operation.name,
            ttl=_seconds(TTLS[n // 4 % 4]),
            wait=None if wait is None else _seconds(wait),
        )
        self.judge.granted(operation, lease.worktree_id, lease.fencing_number)
        client.leases.append(lease)

    async def acquire_waiting(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        await self.acquire(operation, store, client, n, wait=WAITS[n % 3])

    async def renew(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.leases:
            lease = operation.uses(client.leases[n % len(client.leases)])
            await store.worktrees.renew(lease, ttl=_seconds(TTLS[n % 4]))

    async def release(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.leases:
            lease = operation.uses(client.leases.pop(n % len(client.leases)))
            await store.worktrees.release(lease)

    async def forged(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        """Show a lease that is right but for one thing."""
        if not client.leases:
            return
        lease = client.leases[n % len(client.leases)]
        wrong: dict[str, Any] = [
            {"token": "0" * 32}, {"owner": "nobody"}, {"fencing_number": lease.fencing_number - 1},
        ][n % 3]  # fmt: skip
        forged = msgspec.structs.replace(lease, **wrong)
        try:
            if n // 3 % 3 == 0:
                await store.worktrees.renew(forged, ttl=_seconds(1))
            elif n // 3 % 3 == 1:
                await store.worktrees.release(forged)
            else:
                async with store.transaction(lease=forged):
                    pass
        except LeaseLost:
            return
        self.judge.violation(f"{operation} was done with a forged lease: {wrong}")

    async def guarded(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.leases:
            lease = operation.guarded_by(client.leases[n % len(client.leases)])
            await self._guarded(operation, store, lease, n)

    async def _guarded(
        self, operation: Operation, store: MetadataStore, lease: Any, n: int
    ) -> None:
        ids = operation.will_append(2)
        async with store.transaction(lease=lease) as tx:
            for id_ in ids:
                await tx.events.append(self.session(operation, n), "g", operation.name, id=id_)
                await asyncio.sleep((0, 0.01, 0.1)[n % 3])

    async def lease(
        self,
        operation: Operation,
        store: MetadataStore,
        _: Client,
        n: int,
        turns: int = 8,
        disturb: Callable[[int], Awaitable[object]] | None = None,
    ) -> None:
        ttl = TTLS[n // 4 % 2]
        try:
            async with store.worktrees.lease(
                operation.wants(self.facts.repositories[n % 2]),
                owner=operation.name,
                ttl=_seconds(ttl),
                wait=_seconds(WAITS[n % 3]),
            ) as lease:
                operation.uses(lease)
                self.judge.granted(operation, lease.worktree_id, lease.fencing_number)
                self.judge.holds(operation, ttl)
                for turn in range(turns):
                    # Almost until the next renewal, which begins after a third.
                    await asyncio.sleep(ttl * 0.3)
                    self.judge.believes(operation)
                    if disturb is not None:
                        await disturb(turn)
        except Boom:
            self.judge.let_go(operation)
            raise

    async def failing_lease(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        """Raise in the body of a lease."""

        async def fail(turn: int) -> None:
            if turn == n % 5:
                raise Boom

        await self.lease(operation, store, client, n, disturb=fail)

    async def troubled_lease(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        """Let a renewal meet an error that it does not expect, and write until told to stop."""
        append = msgspec.structs.replace(operation.action, kind="append", cancelled_after=None)

        async def trouble(turn: int) -> None:
            if turn == n % 3:
                # The store gives it to its caller as it is: a fault of the program.
                error = sqlite3.ProgrammingError("simulated")
                operation.process.fail_next(operation.token, error)
            elif turn > n % 3:
                await self.perform(operation.process, client, append)

        await self.lease(operation, store, client, n, turns=16, disturb=trouble)

    # Projects.

    async def lock(
        self,
        operation: Operation,
        store: MetadataStore,
        client: Client,
        n: int,
        wait: float | None = None,
    ) -> None:
        lock = await store.project_locks.acquire(
            project_id=operation.wants(self.facts.project_of(operation.session)),
            session_id=operation.session,
            ttl=_seconds(TTLS[n // 4 % 4]),
            wait=None if wait is None else _seconds(wait),
        )
        self.judge.granted(operation, lock.project_id, lock.fencing_number)
        client.locks.append(lock)

    async def lock_waiting(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        await self.lock(operation, store, client, n, wait=WAITS[n % 3])

    async def renew_lock(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.locks:
            lock = operation.uses(client.locks[n % len(client.locks)])
            await store.project_locks.renew(lock, ttl=_seconds(TTLS[n % 4]))

    async def release_lock(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.locks:
            lock = operation.uses(client.locks.pop(n % len(client.locks)))
            await store.project_locks.release(lock)

    async def guarded_by_lock(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.locks:
            lock = operation.guarded_by(client.locks[n % len(client.locks)])
            await self._guarded(operation, store, lock, n)

    # Tasks.

    async def create_task(
        self, operation: Operation, store: MetadataStore, _: Client, n: int
    ) -> None:
        await store.tasks.create(title=operation.name, task_type=TYPES[n % 2])

    async def claim(
        self,
        operation: Operation,
        store: MetadataStore,
        client: Client,
        n: int,
        wait: float | None = None,
    ) -> None:
        lease = await store.tasks.claim(
            owner=operation.name,
            task_types=[operation.wants(TYPES[n % 2])],
            ttl=_seconds(TTLS[n // 4 % 4]),
            wait=None if wait is None else _seconds(wait),
            spread=n % 5 == 0,
        )
        self.judge.granted(operation, lease.task.id, lease.fencing_number)
        client.claims.append(lease)

    async def claim_waiting(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        await self.claim(operation, store, client, n, wait=WAITS[n % 3])

    async def renew_claim(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.claims:
            claim = operation.uses(client.claims[n % len(client.claims)])
            await store.tasks.renew(claim, ttl=_seconds(TTLS[n % 4]))

    async def complete(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.claims:
            claim = operation.uses(client.claims.pop(n % len(client.claims)))
            await store.tasks.complete_claim(claim)
            self.judge.completed(operation, claim.task.id)

    async def release_claim(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.claims:
            claim = operation.uses(client.claims.pop(n % len(client.claims)))
            await store.tasks.release(claim)

    # Budgets.

    async def reserve_budget(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        job = self.facts.jobs[n % 2]
        cents = 1 + n % 60
        reserved = await store.budget_reservations.reserve(
            job, request_id=operation.name, amount_usd=f"{cents / 100:.2f}",
            ttl=_seconds(TTLS[n // 4 % 4]),
        )  # fmt: skip
        self.judge.reserved(operation, operation.name, reserved.reservation.expires_at)
        client.requests.append((job, operation.name))

    async def record(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.requests:
            job, request = client.requests[n % len(client.requests)]
            await store.cost_entries.record(
                job, request_id=request, provider="p", model="m", tokens_in=1, tokens_out=1,
                cost_usd="0.01",
            )  # fmt: skip
            self.judge.recorded(operation, job, request)

    async def release_budget(
        self, operation: Operation, store: MetadataStore, client: Client, n: int
    ) -> None:
        if client.requests:
            job, request = client.requests.pop(n % len(client.requests))
            await store.budget_reservations.release(job, request)


def _seconds(span: float) -> timedelta:
    return timedelta(seconds=span)


__all__ = ["Facts", "Workload", "beginning"]
