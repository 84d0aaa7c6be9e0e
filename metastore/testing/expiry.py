"""Expires leases on demand."""

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
"""How long a clock may take to advance by a millisecond before it counts as standing still."""


async def expire(store: MetadataStore, held: Held) -> None:
    """Let a lease, a project's lock or a task's claim expire, as if its holder had died.

    It is renewed for a millisecond, which then passes: a `Clock` is moved, any other clock is
    waited for. No other lease is touched.

    Raises:
        LeaseLost: it was already over, or belongs to another holder.
        InvalidValue: `held` is not a lease, lock or claim.
        RuntimeError: the store's clock stands still and is not a `Clock`.
    """
    ends_at = (await keeper_of(held, leasable(store)).renew(held, ttl=TICK)).expires_at
    clock = store._clock  # noqa: SLF001 - not part of the public API
    if isinstance(clock, Clock):
        clock.now = max(clock.now, ends_at)
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LONGEST_WAIT.total_seconds()
    while clock() < ends_at:
        if loop.time() > deadline:
            raise RuntimeError(f"the lease ends at {ends_at}, and the store's clock stands still")
        await asyncio.sleep(TICK.total_seconds())
