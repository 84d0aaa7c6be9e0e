"""A simulated process: a store, a clock, an event loop, and their faults."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from metastore.backends.sqlite.backend import SqliteBackend
from metastore.backends.sqlite.lanes import roll_back
from metastore.backends.sqlite.url import of_file
from metastore.errors import MetastoreError
from metastore.store import MetadataStore
from metastore.testing.simulation.connection import SimulatedConnection
from metastore.testing.simulation.faults import FaultKind, error_of
from metastore.testing.simulation.loop import SimulatedLoop

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Coroutine

    from metastore.testing.simulation.connection import StatementKind
    from metastore.testing.simulation.scheduler import Scheduler

    Program = Callable[["Process"], Coroutine[Any, Any, None]]

__all__ = ["Process", "Program"]

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The time of a clock without skew at virtual time zero."""

PASSING_ERRORS = (MetastoreError, OSError, MemoryError)
"""Errors after which a supervisor would restart a program."""


class Process:
    """One of the processes that share the database. When it dies, it is started again.

    Attributes:
        number: its number, from 0.
        life: how many times it was started.
        loop: its event loop.
        skew: the error of its clock.
        jumps: how many times its clock has jumped.
        stops: how many times it was stopped.
        stopped_until: when it resumes, while it is stopped.
    """

    loop: SimulatedLoop

    def __init__(self, scheduler: Scheduler, number: int, skew: timedelta) -> None:
        self.scheduler = scheduler
        self.number = number
        self.life = 0
        self.skew = skew
        self.jumps = 0
        self.stops = 0
        self.is_alive = False
        self.is_done = False
        self.is_doomed = False
        self.connections: list[SimulatedConnection] = []
        self.loops: list[SimulatedLoop] = []
        self._backends: list[SqliteBackend] = []
        self._store: MetadataStore | None = None
        self._cancellable: dict[asyncio.Task[Any], None] = {}
        self._armed: deque[FaultKind] = deque()
        self._aimed: tuple[object, Exception] | None = None
        self._stopped_at: float | None = None
        self.stopped_until: float | None = None
        self._stopped_for = 0.0

    def __str__(self) -> str:
        return f"p{self.number}.{self.life}"

    # Used by programs.

    @property
    def store(self) -> MetadataStore:
        """The store of the process, open while its program runs."""
        assert self._store is not None, "the process has not opened its store yet"  # noqa: S101
        return self._store

    def clock(self) -> datetime:
        """Return the time by the process's clock."""
        return START + self.skew + timedelta(seconds=self.scheduler.time)

    @property
    def uptime(self) -> float:
        """The virtual time for which the process has been running, without its stops."""
        now = self.scheduler.time if self._stopped_at is None else self._stopped_at
        return now - self._stopped_for

    def start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` in a task that the fault `cancel` may strike."""
        task = self.loop.create_task(work)
        self._cancellable[task] = None
        task.add_done_callback(lambda ended: self._cancellable.pop(ended, None))
        return task

    def second_loop(self) -> SimulatedLoop:
        """Return a second loop, as another thread of the process would run it."""
        if len(self.loops) == 1:
            self.loops.append(self._new_loop())
        return self.loops[1]

    def fail_next(self, parameter: object, error: Exception) -> None:
        """Let the next statement of this life with this parameter raise `error`.

        Unlike the other faults this one is aimed: at the renewals of one lease by its token, say.
        """
        self._aimed = parameter, error
        self.scheduler.strikes += 1

    # Used by the scheduler.

    def start(self, program: Program) -> None:
        """Start a life: open a store and run `program`."""
        self.life += 1
        self.is_alive = True
        self.is_doomed = False
        self.loop = self._new_loop()
        self.loops = [self.loop]
        self.connections = []
        self._store = None
        self._armed.clear()
        self._aimed = None
        self.loop.create_task(self._run(program)).add_done_callback(self._ended)

    def _new_loop(self) -> SimulatedLoop:
        return SimulatedLoop(self.scheduler, f"{self}.loop")

    async def _run(self, program: Program) -> None:
        while True:
            self._store = await self.open()
            try:
                await self.start_task(program(self))
            except (*PASSING_ERRORS, asyncio.CancelledError) as error:
                self.scheduler.record(self, "ended by", type(error).__name__)
            else:
                return
            finally:
                await self.close()

    async def open(self) -> MetadataStore:
        """Open a store of this process."""

        async def connect(
            connector: Callable[[], sqlite3.Connection],
        ) -> SimulatedConnection:
            await asyncio.sleep(0)
            name = f"{self}/{len(self.connections)}"
            connection = SimulatedConnection(self, connector(), name)
            self.connections.append(connection)
            return connection

        backend = await SqliteBackend.open(
            of_file(self.scheduler.path),
            durability="normal",
            connect=connect,  # type: ignore[arg-type]
        )
        self._backends.append(backend)
        return MetadataStore(backend, self.clock)

    async def close(self) -> None:
        """Close the store, which must not take long."""
        begun, store = self.uptime, self.store
        closing = self.loop.create_task(store.close())
        while not closing.done():
            await asyncio.wait([closing], timeout=0.1)
            took = self.uptime - begun
            if took > self.scheduler.longest_close:
                self.scheduler.fail(f"{self}: close() has taken {took:.3f} s and is still running")
                return
        closing.result()
        self.connections = [it for it in self.connections if not it.is_closed]

    def _ended(self, program: asyncio.Task[None]) -> None:
        self.is_done = True
        self.is_alive = False
        if not program.cancelled() and (error := program.exception()) is not None:
            self.scheduler.fail(f"{self}: the program raised {error!r}", error)

    def end(self) -> None:
        """Release everything at the end of the run."""
        if self.is_alive:
            self.kill()
        for backend in self._backends:
            backend.forbid()
        self.scheduler.bury(self.loops)

    # Faults.

    def strike(self, kind: FaultKind, seconds: float) -> None:
        """Apply a fault, or arm it for the statement that it waits for."""
        match kind:
            case FaultKind.KILL:
                self.kill()
            case FaultKind.STOP:
                self.stops += 1
                now = self.scheduler.time
                self._stopped_at = now if self._stopped_at is None else self._stopped_at
                self.stopped_until = max(self.stopped_until or 0.0, now + seconds)
            case FaultKind.CLOCK:
                self.skew += timedelta(seconds=seconds)
                self.jumps += 1
            case FaultKind.CANCEL:
                if self._cancellable:
                    self.scheduler.random.choice(list(self._cancellable)).cancel()
            case FaultKind.CLOSE:
                if self._store is not None:
                    self.loop.create_task(self.close())
            case _:
                self._armed.append(kind)

    def go_on(self) -> None:
        """Resume a stopped process."""
        if self._stopped_at is not None:
            self._stopped_for += self.scheduler.time - self._stopped_at
            self._stopped_at = self.stopped_until = None

    def kill(self) -> None:
        """End this life: its connections are dropped, and none of its code runs again."""
        self.is_alive = False
        self.go_on()
        for connection in self.connections:
            connection.kill()
        for connection in self.connections:
            connection.unwind()
        self.scheduler.bury(self.loops)
        self._cancellable = {}

    @property
    def is_armed(self) -> bool:
        """Whether a fault waits for a statement."""
        return bool(self._armed)

    def before(
        self, connection: SimulatedConnection, kind: StatementKind, parameters: Collection[object]
    ) -> None:
        """Hook before a statement, in its hop: others may run, and faults may strike."""
        scheduler = self.scheduler
        scheduler.pass_time(kind.verb)
        if scheduler.switches(connection):
            connection.suspend()
        if self._aimed is not None and self._aimed[0] in parameters:
            (_, error), self._aimed = self._aimed, None
            self.scheduler.record(self, "aimed", type(error).__name__, kind.verb)
            raise error
        if not self._armed or kind.verb == "ROLLBACK":
            return
        in_transaction = connection.raw.in_transaction
        commits = kind.verb == "COMMIT" or (bool(kind.tables) and not in_transaction)
        match self._armed[0]:
            case FaultKind.LOST_COMMIT if commits:
                self._die(connection)
            case FaultKind.FULL if commits:
                self._fail(connection)
            case FaultKind.DISK_ERROR if kind.tables and in_transaction:
                self._fail(connection)
            case FaultKind.OS_ERROR | FaultKind.MEMORY_ERROR as fault:
                self._armed.popleft()
                self.scheduler.record(self, fault, kind.verb)
                raise error_of(fault)

    def after_commit(self, connection: SimulatedConnection, tables: frozenset[str]) -> None:
        """Hook after a commit, in its hop: no caller has been answered yet."""
        scheduler = self.scheduler
        scheduler.committed(self, connection, tables)
        if self._armed and self._armed[0] is FaultKind.LOST_ANSWER:
            self._die(connection)
        elif scheduler.switches(connection):
            connection.suspend()

    def _fail(self, connection: SimulatedConnection) -> None:
        fault = self._armed.popleft()
        self.scheduler.record(self, fault)
        # As SQLite does: the transaction is rolled back when the error is reported.
        roll_back(connection.raw)
        raise error_of(fault)

    def _die(self, connection: SimulatedConnection) -> None:
        fault = self._armed.popleft()
        self.scheduler.record(self, fault)
        self.is_doomed = True
        connection.suspend()
