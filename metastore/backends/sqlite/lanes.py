"""Lanes: a connection and the queue of operations for it.

Operations that arrive while the connection's thread is busy share the next hop. Writes that
share a hop are committed together (group commit): each caller gets its own result or error, and
nobody is answered before COMMIT has returned.
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
"""The most operations that share one commit."""

MAX_QUEUE = 4096
"""The most operations queued for a connection; beyond it, callers wait before they queue."""

MAX_HOLD = 0.020
"""How long a batch runs before it commits and lets other processes write, in seconds."""

CHECKPOINT_AFTER = 4_000
"""Row changes after which the WAL is checkpointed."""

CHECKPOINT_PATIENCE = 0.020
"""How long a checkpoint waits for the write lock before it is postponed, in seconds."""

CLOSE_GRACE = 1.0
"""How long `close` lets a statement in flight run before it interrupts it, in seconds."""

CLOSE_LIMIT = 2.0
"""How long `close` then waits for each of its steps before it abandons the thread, in seconds."""

ASK_AGAIN = (0.0001, 0.0005)
"""The shortest and longest pause before the write lock is retried, in seconds."""

INTERRUPT_INTERVAL = 0.05
"""The interval at which `close` interrupts running statements, in seconds."""

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


class Holder(Protocol):
    """The exclusive user of the writer: an open transaction."""

    def abort(self, reason: str) -> object:
        """Refuse further statements, roll back what was not committed, pass the writer on."""


class Operation:
    """The request of one caller, and its outcome."""

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
        """Whether SQLite itself rolls it back on an error: one statement, run once."""
        return len(self.calls) == 1 and not isinstance(self.calls[0].parameters, list)

    def fail(self, error: BaseException) -> None:
        """Record an error that this operation did not cause."""
        self.error = failure(error)

    def settle(self) -> None:
        """Answer the caller, unless it has gone away."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.answers[0] if self.is_single else self.answers)


class Lane:
    """A connection and the queue of operations for it.

    Operations that become ready in the same turn of the event loop, or while the thread is
    busy, share the next hop.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closed: Callable[[], MetastoreError] | None = None
        self.hops = 0
        self._loop = asyncio.get_running_loop()
        # Every operation reads it, so skip the loop's wrapper. Simulated loops have their own time.
        has_real_time = type(self._loop).time is asyncio.BaseEventLoop.time
        self.time = time.monotonic if has_real_time else self._loop.time
        self._queue: deque[Operation] = deque()
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._room: deque[asyncio.Future[None]] = deque()

    def run(self, call: Call) -> Awaitable[list[Values]]:
        """Queue one statement; await the result for its rows."""
        # The bare future if there is room: a coroutine around it costs a tenth of a `get`.
        future = self._loop.create_future()
        return self._submit(Operation((call,), future, self.time(), is_single=True))

    def run_all(self, calls: tuple[Call, ...]) -> Awaitable[list[list[Values]]]:
        """Queue statements as one operation; await the result for their answers."""
        return self._submit(self.operation(calls))

    def operation(self, calls: tuple[Call, ...]) -> Operation:
        """Make an operation requested now."""
        return Operation(calls, self._loop.create_future(), self.time())

    def check_usable(self) -> None:
        """Refuse a request that the lane cannot run, before it is queued.

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
        """Admit the first caller that waits for room, if there is room."""
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
            # Deferred, so that every task ready in this turn of the loop joins the batch.
            self._loop.call_soon(self._flush)

    def _set_busy(self) -> None:
        self._busy = True
        self._idle.clear()

    def _set_idle(self) -> None:
        self._busy = False
        self._idle.set()

    def _flush(self) -> None:
        """Send the next batch to the thread, or go idle."""
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

        An exception of `work` becomes the error of each of `operations`.
        """
        self.hops += 1

        def hop() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the callers get it
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
            # The loop was closed meanwhile: nobody is left to answer.
            return

    def _after_hop(self) -> None:
        """Do maintenance in the thread, after the callers have been answered."""

    async def call(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` on the connection, in its thread, and return what it returns.

        It bypasses the queue: it runs between two batches, or two statements of an open
        transaction.

        Raises:
            StoreClosed: the lane is closed.
            WrongLoop: the lane belongs to another event loop.
            MetastoreError: the database returned an error.
        """
        self.check_usable()
        operation = self.operation(())
        results: list[Result] = []

        def run() -> None:
            try:
                results.append(work(self.connection.raw))
            except Exception as error:  # noqa: BLE001 - the caller gets it
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
        """Refuse every later request, and everything in the queue."""
        if self.closed is None:
            self.closed = refusal
        settle(self._queue, self.closed())
        self._queue.clear()
        for room in self._room:
            if not room.done():
                room.set_result(None)

    async def close(self) -> None:
        """Refuse what is queued, let the hop in flight end, close the connection.

        A statement still running after `CLOSE_GRACE` is interrupted. If it does not end within
        `CLOSE_LIMIT` after that, its thread is abandoned, and closes the connection later.
        """
        self.refuse(closed)
        self._before_close()
        if not await self._becomes_idle(CLOSE_GRACE):
            deadline = self.time() + CLOSE_LIMIT
            while self.time() < deadline:
                # Repeatedly: an interrupt between two statements has no effect.
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
    """Return the error for requests to a closed store."""
    return StoreClosed("the store is closed")


def settle(operations: Iterable[Operation], error: MetastoreError) -> None:
    """Fail `operations` with `error`, and answer their callers."""
    for operation in operations:
        operation.fail(error)
        operation.settle()


def execute(connection: sqlite3.Connection, call: Call) -> list[Values]:
    """Run a statement and fetch its rows: no cursor outlives the hop."""
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
    """Return the error that the caller of a failed statement gets."""
    try:
        return translate(error, connection, call)
    except sqlite3.Error as untranslated:
        # A bug in the program, which the driver describes best.
        return untranslated
    except Exception as unforeseen:  # noqa: BLE001 - the caller gets it, whatever it is
        return failure(unforeseen)


def failure(error: BaseException) -> MetastoreError:
    """Return a separate copy of `error` for each caller, as `StoreFailed` if it is a stray one."""
    if isinstance(error, MetastoreError):
        return copy.copy(error)
    failed = StoreFailed(f"the backend failed: {error!r}")
    failed.__cause__ = error
    return failed


class ReaderLane(Lane):
    """A connection that only reads. The operations of a batch see the same snapshot.

    The snapshot is taken when the batch starts to run, after all its callers have asked, so it sees
    every write acknowledged to them.
    """

    def _run_batch(self, batch: list[Operation]) -> None:
        connection = self.connection.raw
        if len(batch) == 1:
            self._read(connection, batch)
            return
        try:
            # Take SQLite's locks once, not for each statement.
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
            except Exception as error:  # noqa: BLE001 - it concerns this reader only
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
    """A batch lost its whole transaction; `__cause__` is the reason."""


class WriterLane(Lane):
    """The connection that writes. The operations of a batch are committed together."""

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

    # A transaction waits in the queue like any operation. When its turn comes, it has the writer
    # to itself until it ends.

    async def take_turn(self) -> None:
        """Wait for exclusive use of the writer. `release_turn` passes it on."""
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
        """Pass the writer on."""
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
            # No caller gets a neighbour's error: each operation is retried alone.
            for operation in batch:
                operation.error = None
                if self.closed is None:
                    self._run_alone(connection, operation)
                else:
                    operation.fail(self.closed())

    def _run_together(self, connection: sqlite3.Connection, batch: list[Operation]) -> None:
        """Run a batch in one transaction. A failed operation fails only its caller.

        Operations that did not run within `MAX_HOLD` leave the batch, to be requeued.

        Raises:
            BatchLostError: the transaction was lost; nothing of the batch is stored.
            StoreReplaced: the database's files were replaced; nothing of the batch is stored.
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
                # statement would then commit by itself, without those before it.
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

        While another process holds the write lock, an operation that has waited for the busy
        timeout fails with `StoreBusy` and leaves the batch.
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
        """Return which operations a failed BEGIN fails: if busy, those past their timeout."""
        if not _is_busy(error) or self.closed is not None:
            return lambda _: True
        now = self.time()
        return lambda operation: self._deadline(operation.asked_at) <= now

    def run_in_transaction(self, connection: sqlite3.Connection, operation: Operation) -> None:
        """Run one operation inside a transaction that continues even if the operation fails."""
        if operation.is_atomic:
            [call] = operation.calls
            try:
                operation.answers = [execute(connection, call)]
            except Exception as error:  # noqa: BLE001 - the caller gets it
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
        except Exception as error:  # noqa: BLE001 - the caller gets it
            operation.error = error_for_caller(error, connection, call)
        finally:
            roll_back(connection)

    def _run_in_place(self, connection: sqlite3.Connection, call: Call) -> list[Values]:
        """Run a statement that commits by itself, if the files are still in place."""
        self.check_files()
        return execute(connection, call)

    @staticmethod
    def _run_calls(connection: sqlite3.Connection, operation: Operation) -> bool:
        """Run the operation's statements in order; return whether to keep their changes."""
        operation.answers = []
        for call in operation.calls:
            try:
                rows = execute(connection, call)
            except Exception as error:  # noqa: BLE001 - the caller gets it
                operation.error = error_for_caller(error, connection, call)
                return False
            operation.answers.append(rows)
            if not rows and call.statement.expects_row:
                return False
        return True

    # Waiting for the write lock. SQLite's busy handler starves: it sleeps longer and longer, up to
    # 100 ms, and the holder retakes the lock meanwhile. Asking often, at random intervals, hits the
    # gap between two batches of another process, however many compete.

    def begin(self, connection: sqlite3.Connection, asked_at: float) -> None:
        """Begin a write transaction for a caller who asked at `asked_at`.

        Raises:
            sqlite3.Error: the lock was not free in time, or BEGIN failed.
        """
        # Open only if an earlier ROLLBACK failed.
        roll_back(connection)
        begin = partial(connection.execute, "BEGIN IMMEDIATE")
        self._when_free(connection, begin, self._deadline(asked_at))

    def _deadline(self, asked_at: float) -> float:
        """Return when a caller stops waiting for the lock.

        The timeout runs from its request, or from when the lock was first found taken, however
        many batches have failed since.
        """
        since = self.time() if self._busy_since is None else self._busy_since
        return max(asked_at, since) + self.busy_timeout_ms / 1000

    def _when_free(
        self, connection: sqlite3.Connection, work: Callable[[], Result], deadline: float
    ) -> Result:
        """Run `work`, which takes the write lock, once no other connection holds it."""
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
        """Stop the store if a file of its database was replaced. Runs before a commit.

        Raises:
            StoreReplaced: a file was deleted, moved or replaced.
            StoreFailed: the files cannot be checked.
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
        # When SQLite restarts the WAL, it truncates it to half of this.
        is_large = self.files.wal_bytes >= 2 * database_file.WAL_SIZE_LIMIT
        if not is_large and changes - self._checkpointed_at < CHECKPOINT_AFTER:
            return
        if not connection.in_transaction:
            with contextlib.suppress(sqlite3.Error, MetastoreError):
                self._checkpoint(connection)
                self._checkpointed_at = changes

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Checkpoint the WAL while nobody writes.

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
        """Checkpoint the WAL and truncate it to one frame; return whether no reader prevented it.

        Not `wal_checkpoint(TRUNCATE)`, which proceeds beside a writer if it does not get the write
        lock. The first commit after a complete checkpoint restarts the WAL, and truncates it to
        `journal_size_limit`.
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
    """Roll back the open transaction, if any."""
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
