"""metastore, through its public interface and with its defaults."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from benchmarks import database
from benchmarks.contenders.base import (
    AMOUNT_NANO_USD,
    CALL,
    CONTEXT,
    COST_NANO_USD,
    EVENT,
    MESSAGE,
    OWNER,
    TTL,
    new_id,
)
from metastore import MetadataStore
from metastore import NewEvent as OurNewEvent

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.base import NewEvent
    from metastore import Event, Job, Lease, Task, TaskLease, Worktree

__all__ = ["Ours", "make"]

COST = Decimal(COST_NANO_USD).scaleb(-9)
AMOUNT = Decimal(AMOUNT_NANO_USD).scaleb(-9)


class Ours:
    """The store's repositories."""

    store: MetadataStore

    async def open(self, path: Path) -> None:
        """Open the store."""
        self.store = await MetadataStore.open(database.url(path))

    async def close(self) -> None:
        """Close the store."""
        await self.store.close()

    async def pragma(self, name: str) -> Any:
        """Ask the writer's connection, which nothing in the public interface shows."""
        backend: Any = self.store._backend  # noqa: SLF001
        return await backend._writer.call(lambda it: it.execute(f"PRAGMA {name}").fetchone()[0])  # noqa: SLF001

    async def append(self, session_id: str) -> Event:
        """Append."""
        return await self.store.events.append(session_id, EVENT, MESSAGE, context=CONTEXT)

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many."""
        await self.store.events.append_many(
            session_id,
            [OurNewEvent(it.event_type, it.message, it.level, it.context) for it in events],
        )

    async def get(self, worktree_id: str) -> Worktree:
        """Get."""
        return await self.store.worktrees.get(worktree_id)

    async def page(self, session_id: str, after: int) -> list[Event]:
        """Page."""
        page = await self.store.events.list_by_session(session_id, after=after, limit=50)
        return page.items

    async def reserve(self, worktree: Worktree) -> Lease:
        """Reserve."""
        return await self.store.worktrees.reserve(worktree, owner=OWNER, ttl=TTL)

    async def release(self, held: Lease) -> Worktree:
        """Release."""
        return await self.store.worktrees.release(held)

    async def acquire(self, repository_id: str) -> Lease:
        """Acquire."""
        return await self.store.worktrees.acquire(repository_id, owner=OWNER, ttl=TTL)

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """Run the five statements."""
        async with self.store.transaction() as tx:
            worktree = await tx.worktrees.get(worktree_id)
            await tx.events.append(session_id, EVENT, MESSAGE, context=CONTEXT)
            lease = await tx.worktrees.reserve(worktree, owner=OWNER, ttl=TTL)
            await tx.events.append(session_id, EVENT, MESSAGE, context=CONTEXT)
            await tx.worktrees.release(lease)

    async def reserve_budget(self, job_id: str) -> str:
        """Reserve."""
        reserved = await self.store.budget_reservations.reserve(
            job_id, request_id=new_id(), amount_usd=AMOUNT, ttl=TTL
        )
        return reserved.reservation.request_id

    async def record_cost(self, job_id: str, reserved: str | None = None) -> Job:
        """Record."""
        recorded = await self.store.cost_entries.record(
            job_id, request_id=reserved or new_id(), cost_usd=COST, **CALL
        )
        return recorded.job

    async def claim(self) -> TaskLease:
        """Claim."""
        return await self.store.tasks.claim(owner=OWNER, ttl=TTL)

    async def complete(self, held: TaskLease) -> Task:
        """Complete."""
        return await self.store.tasks.complete_claim(held)


def make() -> Ours:
    """Return the contender."""
    return Ours()
