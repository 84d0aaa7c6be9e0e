"""The standard library's sqlite3 in one thread, one operation after the other, without asyncio."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import statements as sql
from benchmarks.contenders.base import BUSY_TIMEOUT, check_budget, new_id
from metastore.audit.links import link_hash

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.base import NewEvent

__all__ = ["RawSqlite3", "make"]


class RawSqlite3:
    """A connection in autocommit mode, where one statement is one commit."""

    connection: sqlite3.Connection

    async def open(self, path: Path) -> None:
        """Connect."""
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT)
        self.connection.create_function("metastore_sha256", -1, link_hash, deterministic=True)
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("PRAGMA foreign_keys = ON")

    async def close(self) -> None:
        """Disconnect."""
        self.connection.close()

    async def pragma(self, name: str) -> Any:
        """Return a setting."""
        return self.connection.execute(f"PRAGMA {name}").fetchone()[0]

    async def append(self, session_id: str) -> dict[str, Any]:
        """Append."""
        parameters = sql.event_parameters(session_id)
        return sql.appended(self.connection.execute(sql.APPEND, parameters).lastrowid, parameters)

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append many: executemany in one transaction."""
        rows = [sql.event_parameters(session_id, *it) for it in events]
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self.connection.executemany(sql.APPEND, rows)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    async def get(self, worktree_id: str) -> dict[str, Any]:
        """Get."""
        return self._worktree(sql.GET, (worktree_id,))

    async def page(self, session_id: str, after: int) -> list[dict[str, Any]]:
        """Page."""
        rows = self.connection.execute(sql.PAGE, (session_id, after)).fetchall()
        return [sql.event(row) for row in rows]

    async def reserve(self, worktree: dict[str, Any]) -> dict[str, Any]:
        """Reserve."""
        return self._worktree(sql.RESERVE, sql.reserve_parameters(worktree))

    async def release(self, held: dict[str, Any]) -> dict[str, Any]:
        """Release."""
        return self._worktree(sql.RELEASE, sql.release_parameters(held))

    async def acquire(self, repository_id: str) -> dict[str, Any]:
        """Acquire."""
        return self._worktree(sql.ACQUIRE, sql.acquire_parameters(repository_id))

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """Run the five statements."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            worktree = self._worktree(sql.GET, (worktree_id,))
            await self.append(session_id)
            held = self._worktree(sql.RESERVE, sql.reserve_parameters(worktree))
            await self.append(session_id)
            self._worktree(sql.RELEASE, sql.release_parameters(held))
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    async def reserve_budget(self, job_id: str) -> str:
        """Reserve."""
        forget, get, promised, promise = sql.promise_parameters(job_id)
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self.connection.execute(sql.FORGET, forget)
            [row] = self.connection.execute(sql.GET_JOB, get).fetchall()
            [others] = self.connection.execute(sql.PROMISED, promised).fetchall()
            check_budget(sql.job(row), *others)
            self.connection.execute(sql.PROMISE, promise)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        request_id: str = promise[2]
        return request_id

    async def record_cost(self, job_id: str, reserved: str | None = None) -> dict[str, Any]:
        """Record."""
        entry, settled, charged = sql.record_parameters(job_id, reserved or new_id())
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self.connection.execute(sql.RECORD, entry)
            self.connection.execute(sql.SETTLE, settled)
            [row] = self.connection.execute(sql.CHARGE, charged).fetchall()
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        return sql.job(row)

    async def claim(self) -> dict[str, Any]:
        """Claim."""
        return self._task(sql.CLAIM, sql.claim_parameters())

    async def complete(self, held: dict[str, Any]) -> dict[str, Any]:
        """Complete."""
        return self._task(sql.COMPLETE, sql.complete_parameters(held))

    def _task(self, statement: str, parameters: tuple[Any, ...]) -> dict[str, Any]:
        [row] = self.connection.execute(statement, parameters).fetchall()
        return sql.task(row)

    def _worktree(self, statement: str, parameters: tuple[Any, ...]) -> dict[str, Any]:
        [row] = self.connection.execute(statement, parameters).fetchall()
        return sql.worktree(row)


def make() -> RawSqlite3:
    """Return the contender."""
    return RawSqlite3()
