"""A process of the budget battery. What it counted is its last line, in JSON.

Run as `python budget_worker.py MODE DATABASE JOB SEED`: `spend` spends the job's budget until there
is none left, `replay` records the same calls as its siblings, ten times each, and `hold` reserves
all there is, says so, and waits to be killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from datetime import timedelta
from decimal import Decimal

import msgspec

from metastore import BudgetExceeded, MetadataStore

TASKS = 16
MOST = Decimal("0.01")
"""What is reserved for each call, which then costs a quarter of it at least."""

TTL = timedelta(seconds=30)
REPLAYED = 50
TIMES = 10


class Worker:
    def __init__(self, store: MetadataStore, job_id: str, seed: int) -> None:
        self.store = store
        self.job_id = job_id
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()

    async def spend(self, task: int) -> None:
        number = 0
        while True:
            request_id = f"{os.getpid()}-{task}-{number}"
            try:
                reserved = await self.store.budget_reservations.reserve(
                    self.job_id, request_id=request_id, amount_usd=MOST, ttl=TTL
                )
            except BudgetExceeded as exceeded:
                self.counts["refused"] += 1
                if not exceeded.reserved:
                    return
                if exceeded.spent + exceeded.requested <= exceeded.limit:
                    self.counts["refused for the sake of calls in flight"] += 1
                await asyncio.sleep(self.random.uniform(0.001, 0.005))
                continue
            budget = reserved.budget
            if budget.remaining is not None and budget.remaining < 0:
                self.counts["promised too much"] += 1
            await asyncio.sleep(self.random.uniform(0, 0.005))
            await self.record(request_id, self.cost())
            number += 1

    async def replay(self) -> None:
        calls = [f"{n}" for n in range(REPLAYED)] * TIMES
        self.random.shuffle(calls)
        for start in range(0, len(calls), TASKS):
            await asyncio.gather(
                *(self.record(call, MOST) for call in calls[start : start + TASKS])
            )

    async def hold(self) -> None:
        budget = await self.store.budget_reservations.budget(self.job_id)
        assert budget.remaining is not None
        await self.store.budget_reservations.reserve(
            self.job_id, request_id="of the dead", amount_usd=budget.remaining, ttl=TTL
        )
        sys.stdout.write("held\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    async def record(self, request_id: str, cost_usd: Decimal) -> None:
        recorded = await self.store.cost_entries.record(
            self.job_id,
            request_id=request_id,
            provider="acme",
            model="large",
            tokens_in=3,
            tokens_out=2,
            tokens_cached=1,
            cost_usd=cost_usd,
        )
        self.counts["charged" if recorded.charged else "charged before"] += 1

    def cost(self) -> Decimal:
        """Return what a call costs, with 8 decimals."""
        most = int(MOST * 10**8)
        return Decimal(self.random.randint(most // 4, most)) / 10**8


async def main(mode: str, database: str, job_id: str, seed: int) -> None:
    async with MetadataStore.open(database) as store:
        worker = Worker(store, job_id, seed)
        if mode == "spend":
            await asyncio.gather(*(worker.spend(task) for task in range(TASKS)))
        elif mode == "replay":
            await worker.replay()
        else:
            await worker.hold()
    sys.stdout.write(msgspec.json.encode(worker.counts).decode() + "\n")


if __name__ == "__main__":
    mode, database, job_id, seed = sys.argv[1:]
    asyncio.run(main(mode, database, job_id, int(seed)))
