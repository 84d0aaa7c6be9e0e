"""aiosqlite as its README and the tutorials show it: one connection, a lock around the writes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiosqlite

from benchmarks.contenders import statements as sql
from benchmarks.contenders.base import BUSY_TIMEOUT, check_budget, new_id
from metastore.audit.links import link_hash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from benchmarks.contenders.base import NewEvent

__all__ = ["TutorialAiosqlite", "make"]


class TutorialAiosqlite:
    """A shared connection: execute, fetch, commit."""

    connection: aiosqlite.Connection

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def open(self, path: Path) -> None:
        """Connect. The driver begins a transaction with the first write."""
        self.connection = await aiosqlite.connect(path, timeout=BUSY_TIMEOUT)
        await self.connection.create_function("metastore_sha256", -1, link_hash, deterministic=True)
        await self.connection.execute("PRAGMA synchronous = FULL")
        await self.connection.execute("PRAGMA foreign_keys = ON")

    async def close(self) -> None:
        """Disconnect."""
        await self.connection.close()

    async def pragma(self, name: str) -> Any:
        """Return a setting."""
        [row] = await self.connection.execute_fetchall(f"PRAGMA {name}")
        return row[0]

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        async with self._lock:
            try:
                yield
            except BaseException:
                await self.connection.rollback()
                raise
            await self.connection.commit()

    async def append(self, session_id: str) -> dict[str, Any]:
        """Append."""
        async with self._writing():
            return await self._append(session_id)

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many."""
        rows = [sql.event_parameters(session_id, *it) for it in events]
        async with self._writing():
            await self.connection.executemany(sql.APPEND, rows)

    async def get(self, worktree_id: str) -> dict[str, Any]:
        """Get."""
        return await self._worktree(sql.GET, (worktree_id,))

    async def page(self, session_id: str, after: int) -> list[dict[str, Any]]:
        """Page."""
        async with self.connection.execute(sql.PAGE, (session_id, after)) as cursor:
            rows = await cursor.fetchall()
        return [sql.event(tuple(row)) for row in rows]

    async def reserve(self, worktree: dict[str, Any]) -> dict[str, Any]:
        """Reserve."""
        async with self._writing():
            return await self._worktree(sql.RESERVE, sql.reserve_parameters(worktree))

    async def release(self, held: dict[str, Any]) -> dict[str, Any]:
        """Release."""
        async with self._writing():
            return await self._worktree(sql.RELEASE, sql.release_parameters(held))

    async def acquire(self, repository_id: str) -> dict[str, Any]:
        """Acquire."""
        async with self._writing():
            return await self._worktree(sql.ACQUIRE, sql.acquire_parameters(repository_id))

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """Run the five statements."""
        async with self._writing():
            worktree = await self._worktree(sql.GET, (worktree_id,))
            await self._append(session_id)
            held = await self._worktree(sql.RESERVE, sql.reserve_parameters(worktree))
            await self._append(session_id)
            await self._worktree(sql.RELEASE, sql.release_parameters(held))

    async def reserve_budget(self, job_id: str) -> str:
        """Reserve."""
        forget, get, promised, promise = sql.promise_parameters(job_id)
        async with self._writing():
            await self.connection.execute(sql.FORGET, forget)
            job = sql.job(await self._row(sql.GET_JOB, get))
            check_budget(job, *await self._row(sql.PROMISED, promised))
            await self.connection.execute(sql.PROMISE, promise)
        request_id: str = promise[2]
        return request_id

    async def record_cost(self, job_id: str, reserved: str | None = None) -> dict[str, Any]:
        """Record."""
        entry, settled, charged = sql.record_parameters(job_id, reserved or new_id())
        async with self._writing():
            await self.connection.execute(sql.RECORD, entry)
            await self.connection.execute(sql.SETTLE, settled)
            return sql.job(await self._row(sql.CHARGE, charged))

    async def claim(self) -> dict[str, Any]:
        """Claim."""
        async with self._writing():
            return sql.task(await self._row(sql.CLAIM, sql.claim_parameters()))

    async def complete(self, held: dict[str, Any]) -> dict[str, Any]:
        """Complete."""
        async with self._writing():
            return sql.task(await self._row(sql.COMPLETE, sql.complete_parameters(held)))

    async def _append(self, session_id: str) -> dict[str, Any]:
        parameters = sql.event_parameters(session_id)
        cursor = await self.connection.execute(sql.APPEND, parameters)
        return sql.appended(cursor.lastrowid, parameters)

    async def _worktree(self, statement: str, parameters: tuple[Any, ...]) -> dict[str, Any]:
        return sql.worktree(await self._row(statement, parameters))

    async def _row(self, statement: str, parameters: tuple[Any, ...]) -> Any:
        async with self.connection.execute(statement, parameters) as cursor:
            row = await cursor.fetchone()
        if row is None:
            raise LookupError("no row: it is gone, or another's")
        return row


def make() -> TutorialAiosqlite:
    """Return the contender."""
    return TutorialAiosqlite()
