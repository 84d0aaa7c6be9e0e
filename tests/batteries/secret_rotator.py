"""A process of the secrets battery: says when it begins, and rotates keys, a commit per secret.

Run as `python secret_rotator.py DATABASE`, with the keys in the environment.
"""

from __future__ import annotations

import asyncio
import sys

from metastore import MetadataStore


async def main(database: str) -> None:
    async with MetadataStore.open(database) as store:
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        await store.configurations.rotate_keys(batch=1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
