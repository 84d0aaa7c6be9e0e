"""Waiting for a turn, and giving back what a caller took and can use no more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, TypeVar

from metastore.errors import MetastoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from metastore.backends.base import Backend

__all__ = [
    "BACK_OF_QUEUE",
    "background_work",
    "finish_in_background",
    "give_back",
    "wait_for_turn",
]

BACK_OF_QUEUE = (1 << 63) - 1
"""The position of a caller without a ticket: behind everybody who waits."""

KEEP_INTERVAL = 1.5
"""How often a waiter keeps its ticket alive, in seconds."""

LOOK_INTERVAL = 0.25
"""How often a waiter looks without having noticed a commit, in seconds: leases also expire."""

RELEASE_PATIENCE = 1.0
"""How long an error or a cancellation waits for a release before it goes on, in seconds."""

Ticket = TypeVar("Ticket")
Taken = TypeVar("Taken")

_logger = logging.getLogger("metastore.leasing")

_background: dict[asyncio.Task[None], object] = {}
"""What is being finished in the background, and the backend it runs on."""


async def wait_for_turn(
    backend: Backend,
    *,
    wait: timedelta,
    draw: Callable[[], Awaitable[Ticket]],
    keep: Callable[[Ticket], Awaitable[Ticket]],
    leave: Callable[[], Awaitable[object]],
    is_available: Callable[[Ticket], Awaitable[bool]],
    take: Callable[[Ticket], Awaitable[Taken | None]],
) -> Taken | None:
    """Queue for up to `wait`, and take what is waited for; None when the time is up.

    `draw` draws a ticket and `keep` keeps it alive. `take` gives it back when it succeeds; however
    else the wait ends, `leave` does.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait.total_seconds()
    taken = None
    try:
        ticket = await draw()
        keep_at = loop.time() + KEEP_INTERVAL
        while True:
            seen = backend.changes
            if await is_available(ticket):
                taken = await take(ticket)
                if taken is not None:
                    return taken
            remaining = deadline - loop.time()
            if remaining <= 0:
                return None
            if loop.time() >= keep_at:
                ticket = await keep(ticket)
                keep_at = loop.time() + KEEP_INTERVAL
            await backend.wait_for_change(seen, min(remaining, LOOK_INTERVAL))
    finally:
        if taken is None:
            # A ticket that cannot be given back expires.
            await give_back(leave(), backend=backend)


def finish_in_background(work: Awaitable[object], *, backend: object) -> asyncio.Task[None]:
    """Run `work` to its end even if the caller moves on or is cancelled.

    `work` gives something back: if the store refuses, it is lost already or will expire.
    """

    async def finish() -> None:
        try:
            await work
        except MetastoreError as error:
            _logger.debug("not given back: %s", error)
        except Exception:
            _logger.exception("giving something back failed unexpectedly")

    task = asyncio.get_running_loop().create_task(finish())
    _background[task] = backend
    task.add_done_callback(_background.pop)
    return task


async def give_back(work: Awaitable[object], *, backend: object) -> None:
    """Run `work` before an error or a cancellation goes on, which it neither hides nor replaces.

    After `RELEASE_PATIENCE`, or when the caller is cancelled again, it goes on in the background.
    """
    await asyncio.wait([finish_in_background(work, backend=backend)], timeout=RELEASE_PATIENCE)


async def background_work(backend: object = None, *, timeout: float | None = None) -> None:
    """Wait until this loop has finished its background work, or that of one backend.

    After `timeout` seconds what remains is cancelled: it is lost, and expires.
    """
    loop = asyncio.get_running_loop()

    def remaining() -> list[asyncio.Task[None]]:
        return [
            task
            for task, its_backend in _background.items()
            if task.get_loop() is loop and (backend is None or its_backend is backend)
        ]

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while tasks := remaining():
                await asyncio.wait(tasks)
    if tasks := remaining():
        _logger.warning("%d releases were still under way and are abandoned", len(tasks))
        for task in tasks:
            task.cancel()
        # They only await the database, so one turn ends them. No wait without a bound.
        await asyncio.wait(tasks, timeout=RELEASE_PATIENCE)
