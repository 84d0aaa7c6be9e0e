"""Work on many rows, off the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from metastore.backends.base import Values

__all__ = ["convert", "off_loop"]

Result = TypeVar("Result")

FEW_ROWS = 200
"""Rows that are worked on sooner than a thread could be asked to: about a millisecond."""


async def off_loop(work: Callable[[list[Values]], Result], rows: list[Values]) -> Result:
    """Return what `work` makes of `rows`: in a thread, unless they are few."""
    if len(rows) <= FEW_ROWS:
        return work(rows)
    return await asyncio.to_thread(work, rows)


async def convert(make: Callable[[Values], Result], rows: list[Values]) -> list[Result]:
    """Return what `make` returns for each of `rows`, which are consumed.

    Freed one by one: to free a long list at once holds the interpreter, and with it the loop.
    """

    def work(rows: list[Values]) -> list[Result]:
        rows.reverse()
        results = []
        while rows:
            results.append(make(rows.pop()))
        return results

    return await off_loop(work, rows)
