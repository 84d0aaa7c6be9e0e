"""A process that deletes a session, one event at a time, and says so after each piece.

Run as `python delete_worker.py DATABASE SESSION`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from metastore import MetadataStore, deletion
from metastore.repositories.base import Scope
from metastore.repositories.sessions import Sessions

if TYPE_CHECKING:
    from metastore.backends.base import Values
    from metastore.statements import Call


async def main(database: str, session_id: str) -> None:
    deletion.PIECE_ROWS = 1
    async with MetadataStore.open(database) as store:
        backend = store._backend

        class Telling:
            async def run(self, call: Call) -> list[Values]:
                return await backend.run(call)

            async def run_all(self, *calls: Call) -> list[list[Values]]:
                answers = await backend.run_all(*calls)
                if calls[0].statement.name == "cut_events":
                    sys.stdout.write("piece\n")
                    sys.stdout.flush()
                return answers

            async def erase(self) -> bool:
                return await backend.erase()

        await Sessions(Scope(Telling(), store._clock, backend, backend.columns)).delete(session_id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
