"""Leases that end now."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from metastore.leasing.guard import keeper_of
from metastore.repositories import leasable
from metastore.testing.clock import TICK, Clock

if TYPE_CHECKING:
    from metastore.leasing.holding import Held
    from metastore.store import MetadataStore

__all__ = ["expire"]

LONGEST_WAIT = timedelta(seconds=1)
"""How long a clock may take for a millisecond before it is taken to stand still."""


async def expire(store: MetadataStore, held: Held) -> None:
    """Let a lease, a project's lock or a task's claim run out, as if its holder had died.

    It is renewed for a millisecond, and then that millisecond passes: a `Clock` is moved, any
    other clock waited for. No other lease is touched.

    Raises:
        LeaseLost: it was over already, or is another's.
        InvalidValue: `held` is nothing that is leased.
        RuntimeError: the store's clock stands still, and is none of the kit's.
    """
    ends_at = (await keeper_of(held, leasable(store)).renew(held, ttl=TICK)).expires_at
    clock = store._clock  # noqa: SLF001 - the store's users have no need to see it
    if isinstance(clock, Clock):
        clock.now = max(clock.now, ends_at)
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LONGEST_WAIT.total_seconds()
    while clock() < ends_at:
        if loop.time() > deadline:
            raise RuntimeError(f"the lease ends at {ends_at}, and the store's clock stands still")
        await asyncio.sleep(TICK.total_seconds())
