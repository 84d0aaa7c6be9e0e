"""A second process of the honest histories: lives on in a database until it is killed.

Run as `python history_worker.py URL KEY SEED`. It writes out the digest of each of its checkpoints.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from metastore import MetadataStore, deletion
from metastore.repositories import audit_chains
from metastore.sealing import Signer


async def main(url: str, key: str, seed: str) -> None:
    dice = random.Random(seed)
    # As many pieces, and so as many places to die at, as in the process that starts this one.
    audit_chains.PIECE, deletion.SMALL_ROWS, deletion.PIECE_ROWS = 2, 1, 2
    async with MetadataStore.open(url, durability="normal") as store:
        repository = await store.repositories.find_by_name("app")
        assert repository is not None
        while True:
            session = await store.sessions.create(session_type="debug", repository_id=repository.id)
            task = await store.tasks.create(title="t", task_type="tool")
            for n in range(dice.randrange(1, 6)):
                await store.events.append(session.id, "step", str(n))
                call = await store.tool_executions.start(task_id=task.id, tool_name="bash")
                if n % 2:
                    await store.tool_executions.complete(call.id)
            if dice.random() < 0.5:
                await asyncio.gather(store.sessions.delete(session.id), store.tasks.delete(task.id))
            digest = await store.audit_chains.checkpoint(signer=Signer(Path(key)))
            os.write(sys.stdout.fileno(), f"{digest}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
