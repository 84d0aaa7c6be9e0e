"""A process of the budget battery. What it counted is its last line, in JSON.

Run as `python budget_worker.py MODE DATABASE SEED`. It says that it is ready, and again after each
job that it was given on a line of its own: `spend` spends the job's budget until there is none
left, `replay` records the same calls as its siblings, ten times each, and `hold` reserves all there
is, says so, and waits to be killed.
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

TTL = timedelta(minutes=10)
"""Longer than the battery takes on the slowest machine: no promise runs out unnoticed."""

REPLAYED = 50
TIMES = 10


class Worker:
    def __init__(self, store: MetadataStore, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()

    async def spend(self, job_id: str) -> None:
        """Make all tasks reserve a call, and spend no reservation before every process has.

        There is room for fewer calls than tasks: as many as there is no room for are refused,
        however fast or slow the processes are. Then all compete for the rest.
        """
        calls = [f"{os.getpid()}-{task}" for task in range(TASKS)]
        first = await asyncio.gather(*(self.reserve(job_id, f"{call}-0") for call in calls))
        self.counts["refused at the start"] += sum(left is not None for left in first)
        say("answered")
        await hear()
        await asyncio.gather(
            *(self.compete(job_id, call, left) for call, left in zip(calls, first, strict=True))
        )

    async def compete(self, job_id: str, call: str, refused: BudgetExceeded | None) -> None:
        number = 0
        while True:
            if refused is None:
                await self.record(job_id, f"{call}-{number}", self.cost())
                number += 1
            elif not refused.reserved:
                return
            await asyncio.sleep(self.random.uniform(0, 0.005))
            refused = await self.reserve(job_id, f"{call}-{number}")

    async def reserve(self, job_id: str, request_id: str) -> BudgetExceeded | None:
        try:
            reserved = await self.store.budget_reservations.reserve(
                job_id, request_id=request_id, amount_usd=MOST, ttl=TTL
            )
        except BudgetExceeded as exceeded:
            self.counts["refused"] += 1
            if exceeded.reserved and exceeded.spent + exceeded.requested <= exceeded.limit:
                self.counts["refused for the sake of calls in flight"] += 1
            return exceeded
        if reserved.budget.remaining is not None and reserved.budget.remaining < 0:
            self.counts["promised too much"] += 1
        return None

    async def replay(self, job_id: str) -> None:
        calls = [f"{n}" for n in range(REPLAYED)] * TIMES
        self.random.shuffle(calls)
        for start in range(0, len(calls), TASKS):
            await asyncio.gather(
                *(self.record(job_id, call, MOST) for call in calls[start : start + TASKS])
            )

    async def hold(self, job_id: str) -> None:
        budget = await self.store.budget_reservations.budget(job_id)
        assert budget.remaining is not None
        await self.store.budget_reservations.reserve(
            job_id, request_id="of the dead", amount_usd=budget.remaining, ttl=TTL
        )
        say("held")
        await asyncio.Event().wait()

    async def record(self, job_id: str, request_id: str, cost_usd: Decimal) -> None:
        recorded = await self.store.cost_entries.record(
            job_id,
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


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def hear() -> str:
    """Return the next line that this process is told; an empty one is the last."""
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


async def main(mode: str, database: str, seed: int) -> None:
    async with MetadataStore.open(database) as store:
        worker = Worker(store, seed)
        work = {"spend": worker.spend, "replay": worker.replay, "hold": worker.hold}[mode]
        say("ready")
        while job_id := await hear():
            await work(job_id)
            say("ready")
    say(msgspec.json.encode(worker.counts).decode())


if __name__ == "__main__":
    mode, database, seed = sys.argv[1:]
    asyncio.run(main(mode, database, int(seed)))
