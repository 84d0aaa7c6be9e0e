"""The scheduler, which decides from one seed what happens next."""

from __future__ import annotations

import random
import sqlite3
import sys
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from metastore.backends.sqlite import database_file
from metastore.backends.sqlite.lanes import CLOSE_GRACE, CLOSE_LIMIT, roll_back
from metastore.testing.simulation.determinism import Tuning, repeatable
from metastore.testing.simulation.faults import FaultKind
from metastore.testing.simulation.loop import SimulatedLoop
from metastore.testing.simulation.process import PASSING_ERRORS, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from metastore.testing.simulation.connection import SimulatedConnection
    from metastore.testing.simulation.faults import Fault
    from metastore.testing.simulation.process import Program
    from metastore.testing.simulation.stage import Stage

__all__ = ["Judge", "Scheduler"]

STEP = 0.00002
"""The virtual time that a step takes, in seconds."""

COMMIT = 0.0004
"""The virtual time that a commit takes, in seconds."""

SLACK = 0.4
"""How much longer than promised an operation may take, because the scheduler may delay it."""

PATIENCE = 60.0
"""How long a run may continue after the last fault, in virtual seconds, until it counts as hung."""


class Judge(Protocol):
    """Checks the database after every commit, and at the end."""

    def committed(
        self, process: Process, connection: SimulatedConnection, tables: frozenset[str]
    ) -> None:
        """Check what `process` has just committed; raise on a violation."""

    def ended(self) -> None:
        """Check the final state; raise on a violation."""


class Scheduler:
    """Runs processes on one database, one step after another, in virtual time.

    Attributes:
        time: the virtual time, in seconds from the start; it is monotonic.
        path: the database.
        random: the source of its decisions. Nothing else may draw from it.
        sluggishness: the factor by which pauses take longer than requested.
        failure: the first thing that went wrong.
        steps: how many steps there were.
        strikes: how many faults have struck.
    """

    def __init__(
        self, stage: Stage, seed: str, *, skews: Sequence[timedelta], tuning: Tuning | None = None
    ) -> None:
        self.path = stage.path
        self._stage = stage
        self.time = 0.0
        self.random = random.Random(f"{seed} schedule")  # noqa: S311 - no secret
        self.tuning = tuning or Tuning(self.random)
        self.busy_timeout = self.tuning.busy_timeout
        self.longest_hop = self.busy_timeout + SLACK
        self.longest_close = CLOSE_GRACE + 2 * CLOSE_LIMIT + 2 * self.busy_timeout + SLACK
        self.sluggishness = self.random.choice((5, 40, 120))
        self.judge: Judge | None = None
        self.failure: BaseException | None = None
        self.steps = 0
        self.strikes = 0
        self.trace: list[str] | None = None
        self.processes = [Process(self, number, skew) for number, skew in enumerate(skews)]
        self._is_over = False
        self._seed = seed
        self._switch_rate = self.random.choice((0.01, 0.05, 0.25))
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._digest = blake2b(digest_size=16)
        self._buried: list[SimulatedLoop] = []
        self._outsider: sqlite3.Connection | None = None
        self._program: Program | None = None

    # Used by processes and judges.

    def record(self, *what: object) -> None:
        """Add an entry to the trace, by which runs are compared."""
        if self._is_over or self.trace is None:
            return
        line = f"{self.time:.6f} {' '.join(map(str, what))}"
        self._digest.update(line.encode())
        self.trace.append(line)

    @property
    def trace_hash(self) -> str:
        """A digest of the trace, equal for two runs if and only if they were the same."""
        return self._digest.hexdigest()

    def fail(self, what: str | AssertionError, cause: BaseException | None = None) -> None:
        """Record a failure: the run ends after this step."""
        if self.failure is None and not self._is_over:
            self.failure = AssertionError(what) if isinstance(what, str) else what
            self.failure.__cause__ = cause

    def committed(
        self, process: Process, connection: SimulatedConnection, tables: frozenset[str]
    ) -> None:
        """Let the judge check a commit."""
        self.record(connection.name, "committed", *sorted(tables))
        if self.judge is not None and self.failure is None and not self._is_over:
            try:
                self.judge.committed(process, connection, tables)
            except Exception as error:  # noqa: BLE001 - raised here it would reach the program
                self.failure = error

    def may_suspend(self, connection: SimulatedConnection) -> bool:
        """Decide whether a new hop can be suspended; it must be if it has to wait."""
        if (
            self.random.random() < self._switch_rate
            or connection.process.is_armed
            or (self._outsider is not None and self._outsider.in_transaction)
        ):
            return True
        for process in self.processes:
            for it in process.connections:
                if it.holds_lock and it is not connection:
                    return True
        return False

    def switches(self, connection: SimulatedConnection) -> bool:
        """Decide whether others run between two statements of a hop."""
        return connection.can_suspend and self.random.random() < self._switch_rate

    def pass_time(self, verb: str) -> None:
        """Advance time by the duration of a statement."""
        self.time += COMMIT if verb == "COMMIT" else STEP

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Schedule `act` for `time`."""
        heappush(self._agenda, (time, next(self._order), act))

    def bury(self, loops: Iterable[SimulatedLoop]) -> None:
        """Keep the loops of a dead process: if closed now, its tasks would run their `finally`."""
        self._buried.extend(loops)

    def connect(self) -> sqlite3.Connection:
        """Return an independent connection, valid until the next run starts."""
        connection = database_file.connect(self.path, durability="normal")
        connection.execute("PRAGMA busy_timeout = 0")
        return connection

    # The run.

    def run(
        self,
        program: Program,
        faults: Sequence[Fault] = (),
        judge: Callable[[Scheduler], Judge] | None = None,
    ) -> None:
        """Run `program` in every process until all have ended; `judge` makes the judge.

        Raises:
            AssertionError: a check failed.
        """
        self._program = program
        hooks = sys.get_asyncgen_hooks()
        with repeatable(self._seed, lambda: self.time, self.tuning, self._stage):
            self.judge = judge and judge(self)
            for fault in faults:
                self.at(fault.at, lambda fault=fault: self._strike(fault))  # type: ignore[misc]
            for process in self.processes:
                self._start(process)
            try:
                self._run(until=PATIENCE + max(map(_over_at, faults), default=0.0))
                if self.judge is not None and self.failure is None:
                    self.judge.ended()
            finally:
                self.record("ends after", self.steps, "steps, hash", self.trace_hash)
                self._dispose()
                sys.set_asyncgen_hooks(*hooks)
        if self.failure is not None:
            raise self.failure

    def _run(self, until: float) -> None:
        while self.failure is None:
            self.steps += 1
            self.time += STEP
            while self._agenda and self._agenda[0][0] <= self.time:
                heappop(self._agenda)[2]()
            for process in self.processes:
                if not process.is_done:
                    break
            else:
                return
            if self.time > until:
                self.fail(f"the run hangs: {self._waiting()}")
            elif not self._step():
                self.fail(f"nothing will ever happen again: {self._waiting()}")

    def _waiting(self) -> str:
        return ", ".join(str(it) for it in self.processes if not it.is_done)

    def _step(self) -> bool:
        """Run something that is ready, or advance time until something is."""
        now = self.time
        ready: list[tuple[Process, SimulatedConnection | SimulatedLoop]] = []
        at: float | None
        soonest = self._agenda[0][0] if self._agenda else None
        for process in self.processes:
            if not process.is_alive:
                continue
            at = process.stopped_until
            if at is not None:
                if at > now:
                    soonest = at if soonest is None else min(soonest, at)
                    continue
                process.go_on()
            for loop in process.loops:
                at = loop.next_at
                if at is None:
                    continue
                if at <= now:
                    ready.append((process, loop))
                elif soonest is None or at < soonest:
                    soonest = at
            # Inlined: at every step, most connections have nothing to do.
            for connection in process.connections:
                if connection.strand is not None:
                    if connection.wakes_at <= now:
                        ready.append((process, connection))
                    elif soonest is None or connection.wakes_at < soonest:
                        soonest = connection.wakes_at
                elif connection.posted:
                    ready.append((process, connection))
        if ready:
            # Not choice(): this is the hottest line.
            self._run_one(*ready[int(self.random.random() * len(ready))])
        elif soonest is None:
            return False
        else:
            self.time = max(now, soonest)
        return True

    def _run_one(self, process: Process, it: SimulatedConnection | SimulatedLoop) -> None:
        if self.trace is not None:
            self._digest.update(it.name.encode())
        if isinstance(it, SimulatedLoop):
            it.turn()
            for context in it.unhandled:
                self._report(process, context)
            it.unhandled.clear()
        else:
            it.step()
            took = process.uptime - it.hop_began_at
            if took > self.longest_hop:
                self.fail(f"{it.name}: a hop has taken {took:.3f} s")
        if process.is_doomed:
            process.kill()
            self._restart_later(process)

    def _report(self, process: Process, context: dict[str, Any]) -> None:
        """Fail on an exception that only the loop saw, unless a fault explains it."""
        error = context.get("exception")
        self.record(process, context.get("message"), type(error).__name__)
        if not isinstance(error, PASSING_ERRORS):
            self.fail(f"{process}: {context.get('message')}", error)

    def _strike(self, fault: Fault) -> None:
        process = self.processes[fault.process % len(self.processes)]
        self.record(process, fault.kind, fault.seconds)
        self.strikes += 1
        if fault.kind is FaultKind.BUSY:
            self._hold_lock(fault.seconds)
        elif process.is_alive:
            process.strike(fault.kind, fault.seconds)
            if fault.kind is FaultKind.KILL:
                self._restart_later(process)

    def _restart_later(self, process: Process) -> None:
        self.at(self.time + self.random.random() * 0.2, lambda: self._start(process))

    def _start(self, process: Process) -> None:
        assert self._program is not None  # noqa: S101 - for the type checker
        self.record(process, "starts")
        process.start(self._program)

    def _hold_lock(self, seconds: float) -> None:
        """Take the write lock for a while, from outside, as soon as it is free."""
        if self._outsider is None:
            self._outsider = self.connect()
        if self._outsider.in_transaction:
            return
        try:
            self._outsider.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            self.at(self.time + COMMIT, lambda: self._hold_lock(seconds))
        else:
            outsider = self._outsider
            self.at(self.time + seconds, lambda: roll_back(outsider))

    def _dispose(self) -> None:
        """End everything, without further checks."""
        self._is_over = True
        for process in self.processes:
            process.end()
        for loop in dict.fromkeys(self._buried):
            loop.end()


def _over_at(fault: Fault) -> float:
    return fault.at if fault.kind is FaultKind.CLOCK else fault.at + fault.seconds
