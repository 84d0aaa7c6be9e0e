"""A process of the claim battery: claims tasks and finishes them, and is killed or stopped.

Run as `python claim_worker.py DATABASE LEDGER SESSION SEED`. Every line of the ledger is written
before the next thing happens, so that a kill loses nothing that was acknowledged.
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

from metastore import LeaseLost, LeaseUnavailable, MetadataStore, MetastoreError, TaskLease

if TYPE_CHECKING:
    from collections.abc import Callable

TTL = timedelta(milliseconds=600)
WAIT = timedelta(seconds=2)
WORKERS = 3
TYPES = ("build", "test", "deploy")


class Worker:
    def __init__(
        self, store: MetadataStore, session_id: str, seed: int, write: Callable[[Any], None]
    ) -> None:
        self.store = store
        self.session_id = session_id
        self.name = f"worker-{os.getpid()}-{seed}"
        self.random = random.Random(seed)
        self.write = write

    def note(self, what: str, lease: TaskLease | None = None, **facts: Any) -> None:
        if lease is not None:
            facts |= {"task": lease.task_id, "fence": lease.fencing_number}
        self.write({"what": what, "at": datetime.now(UTC), **facts})

    async def run(self) -> None:
        while True:
            types = self.random.choice([None, None, self.random.sample(TYPES, 2)])
            try:
                lease = await self.store.tasks.claim(
                    owner=self.name,
                    ttl=TTL,
                    task_types=types,
                    spread=self.random.random() < 0.5,
                    wait=WAIT,
                )
            except LeaseUnavailable:
                self.note("unavailable")
                continue
            self.note("claimed", lease, until=lease.expires_at)
            try:
                await self.work(lease)
            except LeaseLost:
                # The whole process was stopped by one of its other workers, or waited too long.
                self.note("refused", lease, attempt="in good faith")
            except MetastoreError as error:
                self.note("error", lease, error=repr(error))

    async def work(self, lease: TaskLease) -> None:
        draw = self.random.random()
        if draw < 0.012:
            self.note("stopping", lease)
            os.kill(os.getpid(), signal.SIGSTOP)
            # The signal is delivered to some thread, soon.
            await asyncio.sleep(TTL.total_seconds() * 1.2)
            await self.act_late(lease)
        elif draw < 0.03:
            await asyncio.sleep(TTL.total_seconds() * 1.2)
            await self.act_late(lease)
        elif draw < 0.06:
            self.note("releasing", lease)
            await self.store.tasks.release(lease)
        else:
            await self.finish(lease, guarded=draw < 0.5)

    async def finish(self, lease: TaskLease, *, guarded: bool) -> None:
        """Complete the task together with its effect: an event, of which there must be one."""
        self.note("finishing", lease)
        async with self.store.transaction(lease=lease if guarded else None) as tx:
            await tx.tasks.complete_claim(lease, metadata={"by": self.name})
            await tx.events.append(
                self.session_id, "finished", lease.task_id, context={"fence": lease.fencing_number}
            )
        self.note("finished", lease)

    async def act_late(self, lease: TaskLease) -> None:
        """Try everything a holder may do, although the claim is over."""
        attempts: dict[str, Callable[[], Any]] = {
            "finish": lambda: self.finish(lease, guarded=False),
            "guarded finish": lambda: self.finish(lease, guarded=True),
            "complete": lambda: self.store.tasks.complete_claim(lease),
            "fail": lambda: self.store.tasks.fail_claim(lease, error="late"),
            "renew": lambda: self.store.tasks.renew(lease, ttl=TTL),
            "release": lambda: self.store.tasks.release(lease),
        }
        for name, attempt in attempts.items():
            try:
                await attempt()
            except LeaseLost:
                self.note("refused", lease, attempt=name)
            else:
                self.note("accepted late", lease, attempt=name)


async def main(database: str, ledger: str, session: str, seed: int) -> None:
    descriptor = os.open(ledger, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def write(entry: dict[str, Any]) -> None:
        os.write(descriptor, msgspec.json.encode(entry) + b"\n")

    async with MetadataStore.open(database) as store:
        workers = [Worker(store, session, seed * 10 + n, write) for n in range(WORKERS)]
        await asyncio.gather(*(worker.run() for worker in workers))


if __name__ == "__main__":
    database, ledger, session, seed = sys.argv[1:]
    asyncio.run(main(database, ledger, session, int(seed)))
