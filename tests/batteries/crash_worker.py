"""A process of the crash battery: writes, and notes outside what was acknowledged, until killed.

Run as `python crash_worker.py DATABASE LEDGER SESSION SEED`.
"""

from __future__ import annotations

import asyncio
import os
import sys

from metastore import MetadataStore, NewEvent
from metastore.codec import new_id

BATCH = 10


async def main(database: str, ledger: str, session_id: str) -> None:
    descriptor = os.open(ledger, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def note(*ids: str) -> None:
        os.write(descriptor, "".join(f"{id_}\n" for id_ in ids).encode())

    async with MetadataStore.open(database) as store:

        async def singles() -> None:
            while True:
                event = await store.events.append(session_id, "single", "")
                note(event.id)

        async def batches() -> None:
            while True:
                batch = new_id()
                ids = await store.events.append_many(
                    session_id, [NewEvent("batch", batch) for _ in range(BATCH)]
                )
                note(*ids)

        async def transactions() -> None:
            while True:
                batch = new_id()
                async with store.transaction() as tx:
                    events = [
                        await tx.events.append(session_id, "batch", batch) for _ in range(BATCH)
                    ]
                note(*(event.id for event in events))

        await asyncio.gather(singles(), singles(), singles(), batches(), transactions())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
