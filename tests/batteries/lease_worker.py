"""A process of the lease battery: takes leases, writes under them, and is killed or stopped.

Run as `python lease_worker.py DATABASE LEDGER REPOSITORY SESSION SEED`. Every line of the ledger is
written before the next thing happens, so that a kill loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from metastore import Lease, LeaseLost, LeaseUnavailable, MetadataStore, MetastoreError

if TYPE_CHECKING:
    from collections.abc import Callable

TTL = timedelta(milliseconds=400)
WAIT = timedelta(seconds=5)


class Worker:
    def __init__(
        self,
        store: MetadataStore,
        repository_id: str,
        session_id: str,
        seed: int,
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        self.store = store
        self.repository_id = repository_id
        self.session_id = session_id
        self.name = f"worker-{os.getpid()}-{seed}"
        self.random = random.Random(seed)
        self.write = write

    def note(self, what: str, lease: Lease | None = None, **facts: Any) -> None:
        if lease is not None:
            facts |= {"worktree": lease.worktree_id, "fence": lease.fencing_number}
        self.write({"what": what, "at": datetime.now(UTC), **facts})

    async def run(self) -> None:
        while True:
            try:
                lease = await self.store.worktrees.acquire(
                    self.repository_id, owner=self.name, ttl=TTL
                )
            except LeaseUnavailable:
                self.note("unavailable")
                try:
                    lease = await self.store.worktrees.acquire(
                        self.repository_id, owner=self.name, ttl=TTL, wait=WAIT
                    )
                except LeaseUnavailable:
                    continue
            self.note("granted", lease, until=lease.expires_at)
            try:
                await self.hold(lease)
            except LeaseLost:
                # The whole process was stopped by its other worker.
                self.note("refused", lease, attempt="in good faith")
            except MetastoreError as error:
                self.note("error", lease, error=repr(error))

    async def hold(self, lease: Lease) -> None:
        await self.guarded_write(lease)
        draw = self.random.random()
        if draw < 0.03:
            self.note("stopping", lease)
            os.kill(os.getpid(), signal.SIGSTOP)
            # The signal is delivered to some thread, soon.
            await asyncio.sleep(TTL.total_seconds() * 1.2)
            await self.write_late(lease)
            return
        if draw < 0.06:
            await asyncio.sleep(TTL.total_seconds() * 1.2)
            await self.write_late(lease)
            return
        await asyncio.sleep(self.random.uniform(0, 0.01))
        await self.guarded_write(lease)
        self.note("releasing", lease)
        await self.store.worktrees.release(lease)

    async def guarded_write(self, lease: Lease) -> None:
        async with self.store.transaction(lease=lease) as tx:
            await tx.events.append(
                self.session_id,
                "held",
                lease.worktree_id,
                context={"fence": lease.fencing_number, "owner": self.name},
            )

    async def write_late(self, lease: Lease) -> None:
        """Try everything a holder may do, although the lease is over."""
        attempts: dict[str, Callable[[], Any]] = {
            "guarded write": lambda: self.guarded_write(lease),
            "renew": lambda: self.store.worktrees.renew(lease, ttl=TTL),
            "release": lambda: self.store.worktrees.release(lease),
        }
        for name, attempt in attempts.items():
            try:
                await attempt()
            except LeaseLost:
                self.note("refused", lease, attempt=name)
            else:
                self.note("accepted late", lease, attempt=name)


async def main(database: str, ledger: str, repository: str, session: str, seed: int) -> None:
    descriptor = os.open(ledger, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def write(entry: dict[str, Any]) -> None:
        os.write(descriptor, msgspec.json.encode(entry) + b"\n")

    async with MetadataStore.open(database) as store:
        workers = [Worker(store, repository, session, seed * 10 + n, write) for n in range(2)]
        await asyncio.gather(*(worker.run() for worker in workers))


if __name__ == "__main__":
    database, ledger, repository, session, seed = sys.argv[1:]
    asyncio.run(main(database, ledger, repository, session, int(seed)))
