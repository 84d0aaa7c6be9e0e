"""Transactions that stay open while their body awaits."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from metastore.backends.sqlite.lanes import Operation, error_for_caller, execute, roll_back
from metastore.errors import StoreClosed, TransactionActive

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from metastore.backends.base import Guard, Values
    from metastore.backends.sqlite.lanes import WriterLane
    from metastore.statements import Call

__all__ = ["OpenTransaction", "current_transaction", "refuse_inside_transaction"]


class OpenTransaction:
    """An open transaction, which owns the writer. Its first statement sends BEGIN along."""

    def __init__(self, lane: WriterLane, guard: Guard | None) -> None:
        self._lane = lane
        self._guard = guard
        self._begun = False
        self._ended: str | None = None
        self._released = False
        self.erases = False
        lane.holder = self

    @property
    def is_open(self) -> bool:
        """Whether the body may still run statements."""
        return self._ended is None

    def holds(self, lane: WriterLane) -> bool:
        """Return whether a write on `lane` would wait for this transaction."""
        return self.is_open and self._lane is lane

    async def run(self, call: Call) -> list[Values]:
        """Run one statement. See `Executor.run`."""
        [rows] = await self.run_all(call)
        return rows

    async def run_all(self, *calls: Call) -> list[list[Values]]:
        """Run several statements as one. See `Executor.run_all`."""
        answers: list[list[Values]] = await self._hop(calls, self._run)
        return answers

    async def erase(self) -> bool:
        """Have the WAL emptied after the commit. See `Executor.erase`."""
        self.erases = True
        return False

    async def check_guard(self) -> None:
        """Check the guard of the transaction, in the transaction itself."""
        if self._guard is not None and not await self.run(self._guard.check()):
            raise self._guard.error()

    async def commit(self) -> None:
        """Commit if the guard still holds; otherwise roll back and raise its error."""
        if self._begun:
            calls = () if self._guard is None else (self._guard.check(),)
            answers = await self._hop(calls, self._commit)
            # Committed or rolled back: passing the writer on needs no hop.
            self._begun = False
            if self._guard is not None and not answers[-1]:
                raise self._guard.error()
        self._ended = "the transaction has ended"

    async def end(self) -> None:
        """Roll back what was not committed and pass the writer on."""
        ended = self.abort("the transaction has ended")
        if ended is not None:
            await asyncio.shield(ended)

    def abort(self, reason: str) -> asyncio.Future[None] | None:
        """Refuse further statements, roll back what was not committed, pass the writer on.

        Nothing here awaits, so it completes however often the task is cancelled.
        """
        self._ended = self._ended or reason
        if self._released:
            return None
        self._released = True
        if not self._begun:
            self._lane.release_turn()
            return None
        ended = asyncio.get_running_loop().create_future()

        def done() -> None:
            self._lane.release_turn()
            if not ended.done():
                ended.set_result(None)

        self._lane.post(self._roll_back, done)
        return ended

    async def _hop(
        self, calls: tuple[Call, ...], work: Callable[[Operation], None]
    ) -> list[list[Values]]:
        self._lane.check_usable()
        if self._ended is not None:
            raise StoreClosed(self._ended)
        operation = self._lane.operation(calls)
        self._begun = True
        self._lane.post(partial(work, operation), operation.settle, (operation,))
        answers: list[list[Values]] = await operation.future
        return answers

    # In the writer's thread:

    def _run(self, operation: Operation) -> None:
        connection = self._lane.connection.raw
        if self._begin(connection, operation):
            self._lane.run_in_transaction(connection, operation)
            if not connection.in_transaction:
                self._lost = operation.error

    def _commit(self, operation: Operation) -> None:
        connection = self._lane.connection.raw
        if not self._begin(connection, operation):
            return
        try:
            operation.answers = [execute(connection, call) for call in operation.calls]
            held = all(operation.answers)
            if held:
                self._lane.check_files()
            connection.execute("COMMIT" if held else "ROLLBACK")
            self._begun_in_thread = False
        except Exception as error:  # noqa: BLE001 - the caller gets it
            operation.error = error_for_caller(error, connection, None)
            roll_back(connection)

    _begun_in_thread = False
    _lost: BaseException | None = None

    def _begin(self, connection: sqlite3.Connection, operation: Operation) -> bool:
        """Begin, unless already begun; return whether the transaction is open."""
        if not self._begun_in_thread:
            try:
                self._lane.begin(connection, operation.asked_at)
            except Exception as error:  # noqa: BLE001 - the caller gets it
                operation.error = error_for_caller(error, connection, None)
                return False
            self._begun_in_thread = True
        elif not connection.in_transaction:
            operation.error = self._lost or StoreClosed("the transaction is gone")
            return False
        return True

    def _roll_back(self) -> None:
        roll_back(self._lane.connection.raw)


current_transaction: ContextVar[OpenTransaction | None] = ContextVar(
    "metastore_transaction", default=None
)


def refuse_inside_transaction(lane: WriterLane) -> None:
    """Refuse a write that would wait for the transaction it is made in.

    Raises:
        TransactionActive: the running task has a transaction open on `lane`.
    """
    current = current_transaction.get()
    if current is not None and current.holds(lane):
        raise TransactionActive(
            "this task has a transaction open: use the transaction's repositories, not the store's"
        )
