"""Lanes: a connection and the operations that wait for it.

Operations that arrive while the connection's thread is busy share the next hop. Writes that
share one are committed together: each caller gets its own result or error, and nobody is
answered before COMMIT has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import random
import sqlite3
import time
from asyncio import _get_running_loop
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.errors import translate
from metastore.errors import MetastoreError, StoreClosed, StoreFailed, StoreReplaced, WrongLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from metastore.backends.base import Values
    from metastore.backends.sqlite.connection import Connection
    from metastore.statements import Call

__all__ = [
    "Holder",
    "Lane",
    "Operation",
    "ReaderLane",
    "WriterLane",
    "closed",
    "error_for_caller",
    "execute",
    "roll_back",
]

MAX_BATCH = 256
"""Operations that share one commit at most."""

MAX_QUEUE = 4096
"""Operations that wait for a connection at most; beyond it, callers wait before they queue."""

MAX_HOLD = 0.020
"""How long a batch runs before it commits and lets other processes write, in seconds."""

CHECKPOINT_AFTER = 4_000
"""Row changes after which the WAL is checkpointed."""

CHECKPOINT_PATIENCE = 0.020
"""How long a checkpoint waits for the write lock before it is put off, in seconds."""

CLOSE_GRACE = 1.0
"""How long `close` lets a statement in flight run before it interrupts it, in seconds."""

CLOSE_LIMIT = 2.0
"""How long `close` then waits for each of its steps before it leaves the thread to itself, in
seconds."""

ASK_AGAIN = (0.0001, 0.0005)
"""The shortest and the longest pause before the write lock is asked for again, in seconds."""

INTERRUPT_INTERVAL = 0.05
"""How often `close` interrupts what is still running, in seconds."""

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


class Holder(Protocol):
    """Whoever has the writer to itself: an open transaction."""

    def abort(self, reason: str) -> object:
        """Refuse further statements, undo what was not committed, hand the writer on."""


class Operation:
    """What one caller asked for, and what became of it."""

    __slots__ = ("answers", "asked_at", "calls", "error", "future", "is_single")

    def __init__(
        self,
        calls: tuple[Call, ...],
        future: asyncio.Future[Any],
        asked_at: float,
        *,
        is_single: bool = False,
    ) -> None:
        self.calls = calls
        self.future = future
        self.asked_at = asked_at
        self.is_single = is_single
        self.answers: list[list[Values]] = []
        self.error: BaseException | None = None

    @property
    def is_atomic(self) -> bool:
        """Whether SQLite itself undoes all of it on an error: one statement, run once."""
        return len(self.calls) == 1 and not isinstance(self.calls[0].parameters, list)

    def fail(self, error: BaseException) -> None:
        """Note an error that is not this operation's own."""
        self.error = failure(error)

    def settle(self) -> None:
        """Tell the caller, unless it has gone away."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.answers[0] if self.is_single else self.answers)


class Lane:
    """A connection and the operations that wait for it.

    Operations that become ready in the same turn of the event loop, or while the thread is
    busy, share the next hop.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closed: Callable[[], MetastoreError] | None = None
        self.hops = 0
        self._loop = asyncio.get_running_loop()
        # Without the loop around it, for each operation asks. Simulated loops tell their own time.
        tells_real_time = type(self._loop).time is asyncio.BaseEventLoop.time
        self.time = time.monotonic if tells_real_time else self._loop.time
        self._queue: deque[Operation] = deque()
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._room: deque[asyncio.Future[None]] = deque()

    def run(self, call: Call) -> Awaitable[list[Values]]:
        """Queue one statement; the result, to be awaited, is its rows."""
        # The future itself where there is room: a coroutine around it costs a tenth of a `get`.
        future = self._loop.create_future()
        return self._submit(Operation((call,), future, self.time(), is_single=True))

    def run_all(self, calls: tuple[Call, ...]) -> Awaitable[list[list[Values]]]:
        """Queue statements as one operation; the result, to be awaited, is their answers."""
        return self._submit(self.operation(calls))

    def operation(self, calls: tuple[Call, ...]) -> Operation:
        """Make an operation that is asked for now."""
        return Operation(calls, self._loop.create_future(), self.time())

    def check_usable(self) -> None:
        """Refuse what the lane cannot run, before anything is queued.

        Raises:
            StoreClosed: the lane is closed.
            StoreReplaced: a file of the database was deleted or replaced.
            WrongLoop: the lane belongs to another event loop.
        """
        if self.closed is not None:
            raise self.closed()
        if _get_running_loop() is not self._loop:
            raise WrongLoop

    def _submit(self, operation: Operation) -> Awaitable[Any]:
        if self.closed is not None or _get_running_loop() is not self._loop:
            self.check_usable()
        if len(self._queue) >= MAX_QUEUE:
            return self._submit_later(operation)
        self._enqueue(operation)
        return operation.future

    async def _submit_later(self, operation: Operation) -> Any:
        while len(self._queue) >= MAX_QUEUE:
            await self._wait_for_room()
        self._enqueue(operation)
        return await operation.future

    async def _wait_for_room(self) -> None:
        room = self._loop.create_future()
        self._room.append(room)
        try:
            await room
        except BaseException:
            if room in self._room:
                self._room.remove(room)
            elif not room.cancelled():
                # Granted and cancelled in the same turn of the loop.
                self._grant_room()
            raise

    def _grant_room(self) -> None:
        """Let the first of the callers in who wait for room, if there is some."""
        while self._room and len(self._queue) < MAX_QUEUE:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)
                break

    def _enqueue(self, operation: Operation) -> None:
        if self.closed is not None:
            raise self.closed()
        self._queue.append(operation)
        if not self._busy:
            self._set_busy()
            # Deferred, so that every task that is ready in this turn of the loop joins.
            self._loop.call_soon(self._flush)

    def _set_busy(self) -> None:
        self._busy = True
        self._idle.clear()

    def _set_idle(self) -> None:
        self._busy = False
        self._idle.set()

    def _flush(self) -> None:
        """Send the next batch to the thread, or rest."""
        batch = self._next_batch()
        if batch:
            self._post_batch(batch)
        else:
            self._set_idle()

    def _post_batch(self, batch: list[Operation]) -> None:
        self.post(partial(self._run_batch, batch), partial(self._settle, batch), batch)

    def _next_batch(self) -> list[Operation]:
        batch: list[Operation] = []
        while self._queue and len(batch) < MAX_BATCH:
            operation = self._queue.popleft()
            if not operation.future.done():
                batch.append(operation)
        self._grant_room()
        return batch

    def post(
        self,
        work: Callable[[], None],
        done: Callable[[], None],
        operations: Sequence[Operation] = (),
    ) -> None:
        """Run `work` in the thread, then `done` on the loop, whatever `work` raises.

        What it raises is the error of each of its `operations`.
        """
        self.hops += 1

        def hop() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the callers are told
                for operation in operations:
                    operation.fail(error)
            self._call_on_loop(done)
            try:
                self._after_hop()
            except BaseException:
                _logger.exception("maintenance after a hop failed")

        self.connection.post(hop)

    def _call_on_loop(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            # A loop that was closed meanwhile has nobody left to be told.
            return

    def _after_hop(self) -> None:
        """Do in the thread what nobody waits for, once the callers have been answered."""

    async def call(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` on the connection, in its thread, and return what it returns.

        It does not wait in the queue: it comes between two batches, or two statements of an
        open transaction.

        Raises:
            StoreClosed: the lane is closed.
            WrongLoop: the lane belongs to another event loop.
            MetastoreError: the database refused.
        """
        self.check_usable()
        operation = self.operation(())
        results: list[Result] = []

        def run() -> None:
            try:
                results.append(work(self.connection.raw))
            except Exception as error:  # noqa: BLE001 - the caller is told
                operation.error = error_for_caller(error, self.connection.raw, None)

        self.post(run, operation.settle, (operation,))
        await operation.future
        return results[0]

    def _run_batch(self, batch: list[Operation]) -> None:
        raise NotImplementedError

    def _settle(self, batch: list[Operation]) -> None:
        for operation in batch:
            operation.settle()
        self._flush()

    def refuse(self, refusal: Callable[[], MetastoreError]) -> None:
        """Refuse whatever is asked from now on, and what waits in the queue."""
        if self.closed is None:
            self.closed = refusal
        settle(self._queue, self.closed())
        self._queue.clear()
        for room in self._room:
            if not room.done():
                room.set_result(None)

    async def close(self) -> None:
        """Refuse what waits, let the hop in flight end, close the connection.

        A statement that is still running after `CLOSE_GRACE` is interrupted. What does not end
        within `CLOSE_LIMIT` after that is left to its thread, which closes the connection then.
        """
        self.refuse(closed)
        self._before_close()
        if not await self._becomes_idle(CLOSE_GRACE):
            deadline = self.time() + CLOSE_LIMIT
            while self.time() < deadline:
                # Again and again: an interrupt between two statements has no effect.
                self.connection.interrupt_now()
                if await self._becomes_idle(INTERRUPT_INTERVAL):
                    break
        await self.connection.close_within(CLOSE_LIMIT)

    async def _becomes_idle(self, timeout: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        return self._idle.is_set()

    def _before_close(self) -> None:
        pass


def closed() -> StoreClosed:
    """Return what is raised once the store has been closed."""
    return StoreClosed("the store is closed")


def settle(operations: Iterable[Operation], error: MetastoreError) -> None:
    """Tell the callers of `operations` that they failed."""
    for operation in operations:
        operation.fail(error)
        operation.settle()


def execute(connection: sqlite3.Connection, call: Call) -> list[Values]:
    """Run a statement and fetch what it returns: no cursor outlives the hop."""
    statement = call.statement
    parameters = call.parameters if statement.places is None else call.bound
    if isinstance(parameters, list):
        connection.executemany(statement.sql, parameters)
        return []
    cursor = connection.execute(statement.sql, parameters)
    return [(cursor.lastrowid,)] if statement.returns_row_number else cursor.fetchall()


def error_for_caller(
    error: Exception, connection: sqlite3.Connection, call: Call | None
) -> BaseException:
    """Return what the caller of a failed statement gets."""
    try:
        return translate(error, connection, call)
    except sqlite3.Error as untranslated:
        # A fault of the program, which the driver names best.
        return untranslated
    except Exception as unforeseen:  # noqa: BLE001 - whatever it is, it belongs to the caller
        return failure(unforeseen)


def failure(error: BaseException) -> MetastoreError:
    """Return an error of its own for each caller of what failed with `error`."""
    if isinstance(error, MetastoreError):
        return copy.copy(error)
    failed = StoreFailed(f"the backend failed: {error!r}")
    failed.__cause__ = error
    return failed


class ReaderLane(Lane):
    """A connection that only reads. Operations of a batch see the same snapshot.

    It is taken when the batch begins to run, after each of its callers has asked, and so holds
    whatever they were told before that was written.
    """

    def _run_batch(self, batch: list[Operation]) -> None:
        connection = self.connection.raw
        if len(batch) == 1:
            self._read(connection, batch)
            return
        try:
            # SQLite's locks are taken once, not for each statement.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("BEGIN")
            self._read(connection, batch)
        finally:
            roll_back(connection)

    @staticmethod
    def _read(connection: sqlite3.Connection, batch: list[Operation]) -> None:
        for operation in batch:
            [call] = operation.calls
            try:
                operation.answers = [execute(connection, call)]
            except Exception as error:  # noqa: BLE001 - one reader's error is its own
                operation.error = error_for_caller(error, connection, call)

    async def data_version(self) -> int:
        """Return a number that changes when another connection has committed."""
        version = self._loop.create_future()
        read: list[int] = []

        def work() -> None:
            with contextlib.suppress(sqlite3.Error):
                read.extend(self.connection.raw.execute("PRAGMA data_version").fetchone())

        def done() -> None:
            if not version.done():
                version.set_result(read[0] if read else -1)

        self.check_usable()
        self.post(work, done)
        number: int = await version
        return number


class BatchLostError(Exception):
    """The whole transaction of a batch is gone; the reason is the cause."""


class WriterLane(Lane):
    """The connection that writes. Operations of a batch are committed together."""

    def __init__(self, connection: Connection, path: Path) -> None:
        super().__init__(connection)
        self.on_commit: Callable[[], None] = lambda: None
        self.on_replaced: Callable[[Callable[[], MetastoreError]], None] = self.refuse
        self.holder: Holder | None = None
        self.busy_timeout_ms = database_file.BUSY_TIMEOUT_MS
        self.files = database_file.OpenedFiles(path, connection.raw)
        self._path = path
        self._checkpointer: sqlite3.Connection | None = None
        self._checkpointed_at = 0
        self._busy_since: float | None = None
        self._unfinished: list[Operation] = []

    # A transaction waits in the queue like any operation. When it comes to the front, the
    # writer is its own until it ends.

    async def take_turn(self) -> None:
        """Wait for the writer and keep it. `release_turn` hands it on."""
        self.check_usable()
        turn = self.operation(())
        while len(self._queue) >= MAX_QUEUE:
            await self._wait_for_room()
        self._enqueue(turn)
        try:
            await turn.future
        except BaseException:
            # Granted and cancelled in the same turn of the loop.
            if turn.future.done() and not turn.future.cancelled() and not turn.error:
                self.release_turn()
            raise

    def release_turn(self) -> None:
        """Hand the writer on."""
        self.holder = None
        self._flush()

    def _next_batch(self) -> list[Operation]:
        batch: list[Operation] = []
        while self._queue and len(batch) < MAX_BATCH:
            is_turn = not self._queue[0].calls
            if is_turn and batch:
                break
            operation = self._queue.popleft()
            if operation.future.done():
                continue
            batch.append(operation)
            if is_turn:
                break
        self._grant_room()
        return batch

    def _flush(self) -> None:
        batch = self._next_batch()
        if not batch:
            self._set_idle()
        elif not batch[0].calls:
            batch[0].future.set_result(None)
        else:
            self._post_batch(batch)

    def _settle(self, batch: list[Operation]) -> None:
        if self._unfinished:
            self._queue.extendleft(reversed(self._unfinished))
            self._unfinished = []
            if self.closed is not None:
                self.refuse(self.closed)
        super()._settle(batch)
        self.on_commit()

    def _run_batch(self, batch: list[Operation]) -> None:
        connection = self.connection.raw
        if len(batch) == 1:
            self._run_alone(connection, batch[0])
            return
        try:
            self._run_together(connection, batch)
        except BatchLostError:
            # No caller is told of a neighbour's fault: each tries for itself.
            for operation in batch:
                operation.error = None
                if self.closed is None:
                    self._run_alone(connection, operation)
                else:
                    operation.fail(self.closed())

    def _run_together(self, connection: sqlite3.Connection, batch: list[Operation]) -> None:
        """Run a batch in one transaction. A failed operation fails only its caller.

        What was not run within `MAX_HOLD` leaves the batch, to be put back into the queue.

        Raises:
            BatchLostError: the transaction did not survive; nothing of the batch is stored.
            StoreReplaced: the database's files are not in place; the same.
        """
        self._begin_for(connection, batch)
        if not batch:
            return
        now = self.time
        ends_at = now() + MAX_HOLD
        try:
            for index, operation in enumerate(batch):
                if now() > ends_at:
                    self._unfinished = batch[index:]
                    del batch[index:]
                    break
                self.run_in_transaction(connection, operation)
                # Some errors (disk full, I/O, interrupt) end the whole transaction. The next
                # statement would then commit by itself, and its neighbours be lost.
                if not connection.in_transaction:
                    raise BatchLostError from operation.error
            self.check_files()
            connection.execute("COMMIT")
        except BaseException as error:
            roll_back(connection)
            if isinstance(error, sqlite3.Error):
                raise BatchLostError from error
            raise

    def _begin_for(self, connection: sqlite3.Connection, batch: list[Operation]) -> None:
        """Begin the transaction of a batch.

        While another process holds the write lock, each operation is told so, and leaves the
        batch, when it has waited as long as the busy timeout.
        """
        while batch:
            try:
                self.begin(connection, batch[0].asked_at)
            except sqlite3.Error as error:
                waited = self._has_waited(error)
                failed = [operation for operation in batch if waited(operation)]
                for operation in failed:
                    operation.error = error_for_caller(error, connection, None)
                del batch[: len(failed)]
                self._call_on_loop(partial(_settle_all, failed))
            else:
                return

    def _has_waited(self, error: sqlite3.Error) -> Callable[[Operation], bool]:
        """Return which operations a failed BEGIN fails: those who have waited, if it is busy."""
        if not _is_busy(error) or self.closed is not None:
            return lambda _: True
        now = self.time()
        return lambda operation: self._deadline(operation.asked_at) <= now

    def run_in_transaction(self, connection: sqlite3.Connection, operation: Operation) -> None:
        """Run one operation inside a transaction that goes on whatever becomes of it."""
        if operation.is_atomic:
            [call] = operation.calls
            try:
                operation.answers = [execute(connection, call)]
            except Exception as error:  # noqa: BLE001 - the caller is told
                operation.error = error_for_caller(error, connection, call)
            return
        connection.execute("SAVEPOINT operation")
        if not self._run_calls(connection, operation) and connection.in_transaction:
            connection.execute("ROLLBACK TO operation")
        if connection.in_transaction:
            connection.execute("RELEASE operation")

    def _run_alone(self, connection: sqlite3.Connection, operation: Operation) -> None:
        """Run one operation in its own transaction; one statement needs no BEGIN."""
        call: Call | None = None
        try:
            if operation.is_atomic:
                [call] = operation.calls
                run = partial(self._run_in_place, connection, call)
                deadline = self._deadline(operation.asked_at)
                operation.answers = [self._when_free(connection, run, deadline)]
                return
            self.begin(connection, operation.asked_at)
            if self._run_calls(connection, operation):
                self.check_files()
                connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the caller is told
            operation.error = error_for_caller(error, connection, call)
        finally:
            roll_back(connection)

    def _run_in_place(self, connection: sqlite3.Connection, call: Call) -> list[Values]:
        """Run a statement that commits by itself, if the files are still in place."""
        self.check_files()
        return execute(connection, call)

    @staticmethod
    def _run_calls(connection: sqlite3.Connection, operation: Operation) -> bool:
        """Run the operation's statements in order; tell whether they are to be kept."""
        operation.answers = []
        for call in operation.calls:
            try:
                rows = execute(connection, call)
            except Exception as error:  # noqa: BLE001 - the caller is told
                operation.error = error_for_caller(error, connection, call)
                return False
            operation.answers.append(rows)
            if not rows and call.statement.expects_row:
                return False
        return True

    # Waiting for the write lock. SQLite's own way starves: it sleeps for ever longer, up to
    # 100 ms, and whoever has the lock takes it again meanwhile. Who asks often, at random times,
    # finds the moment between two batches of another, however many ask.

    def begin(self, connection: sqlite3.Connection, asked_at: float) -> None:
        """Begin a transaction that writes, for a caller who asked for it at `asked_at`.

        Raises:
            sqlite3.Error: the lock did not come free in time, or the database refused.
        """
        # Left open only where a ROLLBACK failed.
        roll_back(connection)
        begin = partial(connection.execute, "BEGIN IMMEDIATE")
        self._when_free(connection, begin, self._deadline(asked_at))

    def _deadline(self, asked_at: float) -> float:
        """Return until when a caller waits for the lock.

        The time counts from when it asked, or from when the lock was first found taken, however
        many batches have failed since.
        """
        since = self.time() if self._busy_since is None else self._busy_since
        return max(asked_at, since) + self.busy_timeout_ms / 1000

    def _when_free(
        self, connection: sqlite3.Connection, work: Callable[[], Result], deadline: float
    ) -> Result:
        """Run `work`, which takes the write lock, when no other connection has it."""
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    result = work()
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise
                    now = self.time()
                    if self._busy_since is None:
                        self._busy_since = now
                    if now >= deadline or self.closed is not None:
                        raise
                else:
                    self._busy_since = None
                    return result
                self.connection.pause(random.uniform(*ASK_AGAIN))  # noqa: S311 - any number will do
        finally:
            connection.execute(f"PRAGMA busy_timeout = {self.busy_timeout_ms}")

    def check_files(self) -> None:
        """Stop the store when a file of its database is not in place. Run before a commit.

        Raises:
            StoreReplaced: a file was deleted, moved or replaced.
            StoreFailed: the files cannot be looked at.
        """
        try:
            self.files.check()
        except StoreReplaced as error:
            refusal = partial(copy.copy, error)
            self.closed = refusal
            if _get_running_loop() is self._loop:
                self.on_replaced(refusal)
            else:
                self._call_on_loop(lambda: self.on_replaced(refusal))
            raise

    def _after_hop(self) -> None:
        """Checkpoint the WAL when it has grown."""
        connection = self.connection.raw
        changes = connection.total_changes
        # When SQLite begins the log anew it cuts it down to half of this.
        is_large = self.files.wal_bytes >= 2 * database_file.WAL_SIZE_LIMIT
        if not is_large and changes - self._checkpointed_at < CHECKPOINT_AFTER:
            return
        if not connection.in_transaction:
            with contextlib.suppress(sqlite3.Error, MetastoreError):
                self._checkpoint(connection)
                self._checkpointed_at = changes

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Copy the WAL into the database file while nobody writes.

        SQLite before 3.51.3 may damage the file when one connection checkpoints while another
        writes, so a second connection checkpoints while this one holds the write lock.
        """
        begin = partial(connection.execute, "BEGIN IMMEDIATE")
        self._when_free(connection, begin, self.time() + CHECKPOINT_PATIENCE)
        try:
            self.check_files()
            if self._checkpointer is None:
                self._checkpointer = database_file.connect(self._path, read_only=True)
                self.connection.adopt(self._checkpointer)
            self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            roll_back(connection)

    def empty_wal(self, connection: sqlite3.Connection) -> bool:
        """Checkpoint the WAL and cut it down to a frame; tell whether no reader was in the way.

        Not `wal_checkpoint(TRUNCATE)`, which goes on beside a writer when it does not get the
        write lock. The first commit after a complete checkpoint begins the WAL anew, and then cuts
        off what is longer than the limit.
        """
        self._checkpoint(connection)
        begin = partial(connection.execute, "BEGIN IMMEDIATE")
        connection.execute("PRAGMA journal_size_limit = 0")
        try:
            self._when_free(connection, begin, self._loop.time() + CHECKPOINT_PATIENCE)
            [version] = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {version}")
            self.check_files()
            connection.execute("COMMIT")
        finally:
            roll_back(connection)
            connection.execute(f"PRAGMA journal_size_limit = {database_file.WAL_SIZE_LIMIT}")
        self.check_files()
        [page_bytes] = connection.execute("PRAGMA page_size").fetchone()
        return self.files.wal_bytes < 2 * int(page_bytes)

    def _before_close(self) -> None:
        if self.holder is not None:
            self.holder.abort("the store is closed")


def _settle_all(operations: list[Operation]) -> None:
    for operation in operations:
        operation.settle()


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def roll_back(connection: sqlite3.Connection) -> None:
    """Undo the open transaction, if there is one."""
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
