"""Judges every commit against what was asked for, and every answer against what was committed."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from metastore import StoreClosed
from metastore.codec import timestamp
from metastore.errors import LeaseUnavailable, LockHeld
from metastore.leasing.limits import CLOCK_SKEW, MAX_TTL, TICKET_TTL
from metastore.testing.simulation.scheduler import SLACK

if TYPE_CHECKING:
    from datetime import datetime

    from metastore.testing.simulation import Process
    from metastore.testing.simulation.connection import SimulatedConnection
    from metastore.testing.simulation.scheduler import Scheduler
    from tests.simulation.plan import Action
    from tests.simulation.workload import Facts

BACK_OF_QUEUE = 1 << 62
"""Behind everybody who has a ticket."""

BUDGET = 2 * 10**9
BODIES = {"lease", "failing_lease", "troubled_lease"}
TAKES = {"reserve", "acquire", "acquire_waiting", *BODIES, "lock", "lock_waiting",
         "claim", "claim_waiting"}  # fmt: skip
QUEUED = TAKES - {"reserve"}
RETURNS = {"release", "release_lock", "release_claim", "complete", *BODIES}
RENEWS = {"renew", "renew_lock", "renew_claim", *BODIES}
TRANSACTIONS = {"plain_transaction", "guarded", "guarded_by_lock", "forged"}
PLAIN_WRITES = {"append", "append_many", "renew", "release", "renew_lock", "release_lock",
                "create_task", "renew_claim", "release_claim", "release_budget"}  # fmt: skip


class Violation(AssertionError):
    """The store broke a promise."""


class Row(NamedTuple):
    """Something that is leased: a worktree, a project or a task."""

    resource: str
    owner: str | None
    token: str | None
    expires_at: str | None
    version: int
    status: str


class Ticket(NamedTuple):
    """A place in a queue."""

    id: str
    position: int
    resource: str
    owner: str
    expires_at: str


class Operation:
    """Something that a client asked for, and what is known of it."""

    def __init__(self, judge: Judge, number: int, process: Process, client: int, action: Action):
        self.judge = judge
        self.number = number
        self.process = process
        self.action = action
        self.kind = action.kind
        self.name = f"{process}-{number}-{action.kind}"
        self.session = judge.session_of(process, client)
        self.began_at = process.uptime
        self.clock_at_begin = process.clock()
        self.time_at_begin = judge.scheduler.time
        self.jumps = process.jumps
        self.stops = process.stops
        self.strikes = judge.strikes
        self.wanted: str | None = None
        self.token: str | None = None
        self.version: int | None = None
        self.guard: Any = None
        self.event_ids: list[str] = []
        self.outcome: str | None = None
        self.transactions = judge.transactions[process.number]

    def __str__(self) -> str:
        return f"{self.name} (n={self.action.n})"

    @property
    def now(self) -> str:
        """The earliest time that the operation may have taken for its own."""
        return timestamp(self.clock_at_begin)

    @property
    def clock_is_honest(self) -> bool:
        return self.process.jumps == self.jumps

    def will_append(self, number: int) -> list[str]:
        ids = [f"{self.number:08x}-0000-7000-8000-{n:012x}" for n in range(number)]
        self.event_ids = ids
        for id_ in ids:
            self.judge.appends[id_] = self
        return ids

    def wants(self, resource: str) -> str:
        self.wanted = resource
        return resource

    def uses(self, held: Any) -> Any:
        """Note whose lease is renewed or released."""
        self.token = _token(held)
        self.judge.users[self.token].append(self)
        return held

    def guarded_by(self, held: Any) -> Any:
        self.guard = held
        return held

    def expects_version(self, version: int) -> None:
        self.version = version


class Judge:
    """Knows what was asked and answered, and reads what each commit made of it."""

    def __init__(self, scheduler: Scheduler, facts: Facts) -> None:
        self.scheduler = scheduler
        self.facts = facts
        self.operations: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self.appends: dict[str, Operation] = {}
        self.users: defaultdict[str, list[Operation]] = defaultdict(list)
        self.transactions: Counter[int] = Counter()
        self._open_transactions: Counter[Process] = Counter()
        self._database = scheduler.connect()
        self._sessions: dict[tuple[int, int], str] = {}
        self._numbers = count(1)
        # What the file holds, as of the last commit.
        self._positions: list[int] = []
        self._session_positions: defaultdict[str, list[int]] = defaultdict(list)
        self._event_at: dict[str, int] = {}
        self._rows: dict[str, dict[str, Row]] = {}
        self._known: defaultdict[str, dict[Any, Row]] = defaultdict(dict)
        self._highest: dict[str, int] = {}
        self._tickets: dict[str, Ticket] = {}
        self._reservations: dict[tuple[str, str], tuple[int, str]] = {}
        self._entries: dict[tuple[str, str], int] = {}
        self._taken: set[tuple[str, int]] = set()
        self._owners: set[str] = set()
        self._completed: dict[str, str] = {}
        self._touched_at: defaultdict[str, float] = defaultdict(float)
        self._beliefs: dict[str, tuple[Operation, float, float]] = {}
        self._followers: dict[int, tuple[Process, str | None, int, int]] = {}
        self._tickets_to_check: list[tuple[float, Operation]] = []
        for table in _LEASED:
            self._rows[table] = self._read_rows(table)
            for key, row in self._rows[table].items():
                self._highest[key] = row.version

    # What clients tell.

    @property
    def strikes(self) -> int:
        """How many faults have struck so far, anybody."""
        return self.scheduler.strikes

    def session_of(self, process: Process, client: int) -> str:
        key = process.number, client
        if key not in self._sessions:
            self._sessions[key] = self.facts.sessions[len(self._sessions)]
        return self._sessions[key]

    def begin(self, process: Process, client: int, action: Action) -> Operation:
        operation = Operation(self, next(self._numbers), process, client, action)
        self.operations.append(operation)
        if operation.kind in TRANSACTIONS:
            self.transactions[process.number] += 1
            self._open_transactions[process] += 1
        return operation

    def violation(self, what: str) -> None:
        """Note that a promise was broken, wherever that was noticed."""
        self.scheduler.fail(Violation(what))

    def answered(self, operation: Operation) -> None:
        self._end(operation, "answered")
        for id_ in operation.event_ids:
            if id_ not in self._event_at:
                self.violation(f"{operation} was acknowledged, and event {id_} is not stored")

    def refused(self, operation: Operation, error: Exception) -> None:
        self._end(operation, f"refused: {type(error).__name__}")
        for id_ in operation.event_ids:
            if id_ in self._event_at:
                self.violation(f"{operation} was refused ({error!r}), and event {id_} is stored")
        if isinstance(error, LeaseUnavailable | LockHeld) and operation.wanted is not None:
            self._check_refusal(operation, error)

    def unknown(self, operation: Operation, error: BaseException) -> None:
        self._end(operation, f"unknown: {type(error).__name__}")
        if operation.kind in QUEUED:
            # Time enough to leave the queue, if nothing else happens.
            at = self.scheduler.time + 3 * self.scheduler.busy_timeout + SLACK
            operation.strikes = self.strikes
            self._tickets_to_check.append((at, operation))

    def _end(self, operation: Operation, outcome: str) -> None:
        operation.outcome = outcome
        if operation.kind in TRANSACTIONS:
            self._open_transactions[operation.process] -= 1
        self._beliefs.pop(operation.name, None)
        self.counts[f"{operation.kind} {outcome}"] += 1
        self.counts["operations"] += 1
        self.scheduler.record(operation, outcome)
        self._check_wait(operation)
        self._check_left_tickets()

    def granted(self, operation: Operation, resource: str, version: int) -> None:
        if (resource, version) not in self._taken:
            self.violation(f"{operation} was granted {resource} as {version}, which nobody wrote")

    def completed(self, operation: Operation, task: str) -> None:
        if task not in self._completed:
            self.violation(f"{operation} was acknowledged, and task {task} is not completed")

    def appended(self, operation: Operation, position: int) -> None:
        if self._event_at.get(operation.event_ids[0]) != position:
            self.violation(f"{operation} was told position {position}, which is another event's")

    def reserved(self, operation: Operation, request: str, expires_at: datetime) -> None:
        # A process whose clock is ahead may have removed it again in the same commit.
        clocks = [process.clock() for process in self.scheduler.processes]
        if request not in self._owners and expires_at > max(clocks):
            self.violation(f"{operation} was acknowledged, and its reservation is not stored")

    def recorded(self, operation: Operation, job: str, request: str) -> None:
        if (job, request) not in self._entries:
            self.violation(f"{operation} was acknowledged, and its cost is not stored")

    def known_events(self, session: str) -> list[int]:
        return list(self._session_positions[session])

    def read(self, operation: Operation, known: list[int], page: list[int]) -> None:
        expected = known[-19:] if len(known) > 20 else known
        if page[: len(expected)] != expected[:50]:
            self.violation(f"{operation} did not read what was acknowledged: {page}, {expected}")

    # Bodies that hold a lease.

    def holds(self, operation: Operation, ttl: float) -> None:
        """Note that a body begins which believes that it has a lease."""
        until = operation.process.uptime + ttl + SLACK / 4
        self._beliefs[operation.name] = operation, ttl, until

    def believes(self, operation: Operation) -> None:
        """Judge a body that goes on: its last renewal must not be longer ago than its ttl."""
        _, ttl, until = self._beliefs[operation.name]
        if operation.process.uptime > until:
            self.violation(f"{operation} works on {ttl} s after its lease was last renewed")

    def let_go(self, operation: Operation) -> None:
        """Judge what a body left that raised: its lease is released before the caller sees that."""
        held = [key for key, row in self._rows["worktrees"].items() if row.owner == operation.name]
        if held and self.strikes == operation.strikes:
            self.violation(f"{operation} raised, and {held} is still its own")

    # Followers.

    def follows(self, process: Process, session: str | None) -> None:
        """Note that a follower begins at the events that there are."""
        seen = len(self._stream(session))
        last = self._stream(session)[-1] if seen else 0
        self._followers[process.number] = process, session, last, seen

    def followed_to(self, process: Process) -> int:
        return self._followers[process.number][2]

    def saw(self, process: Process, position: int) -> None:
        follower, session, _, seen = self._followers[process.number]
        stream = self._stream(session)
        if seen >= len(stream) or stream[seen] != position:
            expected = stream[seen] if seen < len(stream) else None
            self.violation(f"the follower of {process} saw {position} instead of {expected}")
        self._followers[process.number] = follower, session, position, seen + 1

    async def caught_up(self, process: Process, follower: asyncio.Task[None]) -> None:
        """Wait until the follower has seen what there is.

        Raises:
            StoreClosed: the store was closed, and the follower ended with it.
        """
        until = process.uptime + 5
        _, session, _, _ = self._followers[process.number]
        there = len(self._stream(session))
        strikes = self.strikes
        while self._followers[process.number][3] < there:
            if follower.done():
                raise StoreClosed("the follower has ended")
            if process.uptime > until and self.strikes == strikes:
                self.violation(f"the follower of {process} misses events")
                return
            if process.uptime > until:
                strikes, until = self.strikes, process.uptime + 5
            await asyncio.sleep(0.05)

    def _stream(self, session: str | None) -> list[int]:
        return self._positions if session is None else self._session_positions[session]

    # What was committed.

    def committed(
        self, process: Process, connection: SimulatedConnection, tables: frozenset[str]
    ) -> None:
        """Judge a commit by what it changed."""
        tickets = self._tickets
        if "lease_waiters" in tables:
            self._tickets = self._read_tickets()
            for id_ in tickets.keys() ^ self._tickets.keys():
                self._touched_at[(tickets.get(id_) or self._tickets[id_]).resource] = (
                    self.scheduler.time
                )
        if "events" in tables:
            # Before the rows: a guard is judged by the lease as it was.
            self._judge_events(process, connection)
        for table in _LEASED:
            if table in tables:
                self._judge_rows(process, table, tickets)
        if "cost_entries" in tables or "budget_reservations" in tables:
            self._judge_budgets(process)

    def _judge_events(self, process: Process, connection: SimulatedConnection) -> None:
        last = self._positions[-1] if self._positions else 0
        rows = self._database.execute(
            "SELECT position, id, session_id FROM events WHERE position > ? ORDER BY position",
            (last,),
        ).fetchall()
        new: defaultdict[int, list[str]] = defaultdict(list)
        for position, id_, session in rows:
            if id_ in self._event_at:
                raise Violation(f"event {id_} is stored twice")
            self._event_at[id_] = position
            self._positions.append(position)
            self._session_positions[session].append(position)
            new[self.appends[id_].number].append(id_)
        for ids in new.values():
            operation = self.appends[ids[0]]
            if ids != operation.event_ids:
                raise Violation(f"{operation} is stored in part: {ids}")
            if operation.outcome is not None and operation.outcome.startswith("refused"):
                raise Violation(f"{operation} was refused and stored later")
            if operation.outcome == "answered":
                raise Violation(f"{operation} was answered before it was committed")
            if operation.guard is not None:
                self._judge_guard(process, connection, operation)

    def _judge_guard(
        self, process: Process, connection: SimulatedConnection, operation: Operation
    ) -> None:
        held = operation.guard
        token = _token(held)
        for table in _LEASED:
            for row in self._rows[table].values():
                if row.token != token:
                    continue
                if not operation.clock_is_honest or process.stops != operation.stops:
                    return
                # The guard is asked in the hop that commits, by the time of a moment before.
                age = process.uptime - connection.hop_began_at + SLACK / 8
                then = timestamp(process.clock() - timedelta(seconds=age))
                if row.expires_at is None or row.expires_at <= then:
                    raise Violation(f"{operation} was committed at {then} under {row}")
                return
        raise Violation(f"{operation} was committed under a lease that is another's")

    # Leases.

    def _read_rows(self, table: str) -> dict[str, Row]:
        """Return the rows as they are now, the unchanged ones as they were read before."""
        found = self._database.execute(_LEASED[table]).fetchall()
        known, rows = self._known[table], {}
        for values in found:
            row = known.get(values)
            if row is None:
                row = known[values] = Row(*values[1:])
            rows[values[0]] = row
        return rows

    def _judge_rows(self, process: Process, table: str, tickets: dict[str, Ticket]) -> None:
        before, after = self._rows[table], self._read_rows(table)
        self._rows[table] = after
        changed = [
            (before.get(key), after.get(key), key)
            for key in before.keys() | after.keys()
            if before.get(key) is not after.get(key)
        ]
        if not changed:
            return
        for old, new, _ in changed:
            self._touched_at[(new or old).resource] = self.scheduler.time  # type: ignore[union-attr]
        released = Counter[str]()
        for old, new, _ in changed:
            if (
                old is not None
                and old.token is not None
                and (new is None or old.token != new.token)
            ):
                released[old.resource] += 1
        for old, new, key in sorted(changed, key=lambda it: it[2]):
            self._judge_row(process, table, key, old, new)
            if (
                new is not None
                and new.owner is not None
                and (old is None or old.token != new.token)
            ):
                self._judge_queue(process, table, new, before, tickets, released)

    def _judge_row(
        self, process: Process, table: str, key: str, old: Row | None, new: Row | None
    ) -> None:
        highest = self._highest.get(key, -1)
        if new is not None:
            if new.version < highest or (
                new.version == highest
                and new.token is not None
                and (old is None or new.token != old.token)
            ):
                raise Violation(f"{table} {key}: fencing number {new.version} was given out before")
            self._highest[key] = new.version
        if old is None:
            if new is not None and new.token is not None:
                self._taken.add((key, new.version))
                self._judge_taker(table, key, new)
            return
        if table == "tasks" and old.status == "completed":
            raise Violation(f"task {key} was completed and has changed since")
        if new is not None and new.token == old.token:
            if old.token is not None and new.expires_at != old.expires_at:
                self._judge_renewal(process, table, key, old, new)
            return
        if old.token is not None:
            self._judge_end(process, table, key, old, new)
        if new is None:
            return
        if new.status == "completed" and table == "tasks":
            self._completed[key] = "completed"
        if new.token is not None:
            self._taken.add((key, new.version))
            self._judge_taker(table, key, new)

    def _judge_taker(self, table: str, key: str, new: Row) -> None:
        operation = self._owner_of(table, new)
        if operation is None:
            raise Violation(f"{table} {key} was taken by {new.owner}, who did not ask for it")
        if operation.version is not None and new.version != operation.version:
            raise Violation(
                f"{operation} reserved version {operation.version} and got {new.version}"
            )
        if operation.outcome is not None and operation.outcome.startswith("refused"):
            raise Violation(f"{operation} was refused, and has taken {key}")

    def _owner_of(self, table: str, row: Row) -> Operation | None:
        if table != "project_locks":
            number = int((row.owner or "-0").split("-")[1])
            return self.operations[number - 1] if 0 < number <= len(self.operations) else None
        for operation in reversed(self.operations):
            if operation.session == row.owner and operation.kind in ("lock", "lock_waiting"):
                return operation
        return None

    def _judge_renewal(self, process: Process, table: str, key: str, old: Row, new: Row) -> None:
        users = [it for it in self.users[old.token or ""] if it.kind in RENEWS]
        if not users:
            raise Violation(f"{table} {key} was renewed, and nobody asked for it")
        for operation in users:
            if operation.name in self._beliefs:
                _, ttl, _ = self._beliefs[operation.name]
                until = operation.process.uptime + ttl + SLACK / 4
                self._beliefs[operation.name] = operation, ttl, until
        if not all(it.clock_is_honest for it in users):
            return
        begun = min(it.now for it in users if it.outcome is None or it is users[-1])
        if old.expires_at is not None and old.expires_at <= begun:
            raise Violation(f"{table} {key} was renewed after it had expired: {old} at {begun}")

    def _judge_end(self, process: Process, table: str, key: str, old: Row, new: Row | None) -> None:
        """Judge that a lease is over: it was given back, abandoned, or had expired."""
        users = [it for it in self.users[old.token or ""] if it.kind in RETURNS]
        owner = self._owner_of(table, old)
        if users or (
            owner is not None and owner.outcome is not None and "unknown" in owner.outcome
        ):
            self._judge_return(process, table, key, old, new, users)
            return
        if owner is not None and owner.outcome is None and owner.process is process:
            # Taken by a caller that is being cancelled.
            return
        if new is None or new.token is None:
            raise Violation(f"{table} {key} was set free, and nobody asked for it: {old}")
        taker = self._owner_of(table, new)
        if taker is None or not taker.clock_is_honest:
            return
        if not self._is_over(old, process.clock(), taker.clock_at_begin):
            raise Violation(f"{table} {key} was taken by {taker} from {old} at {process.clock()}")

    def _judge_return(
        self,
        process: Process,
        table: str,
        key: str,
        old: Row,
        new: Row | None,
        users: list[Operation],
    ) -> None:
        if new is not None and new.token is not None and new.version == old.version + 1:
            if table == "worktrees":
                # A release has a version of its own: this one was taken directly.
                taker = self._owner_of(table, new)
                if (
                    taker is not None
                    and taker.clock_is_honest
                    and not self._is_over(old, process.clock(), taker.clock_at_begin)
                ):
                    raise Violation(f"{table} {key} was taken by {taker} from {old}")
            return
        if not users or not all(it.clock_is_honest for it in users):
            return
        # Released, and not by the cancelled take's own clean-up: it must still have been held.
        begun = min(it.now for it in users)
        owner = self._owner_of(table, old)
        cancelled = owner is not None and owner.outcome is not None and "unknown" in owner.outcome
        freed = new is None or new.token is None
        if freed and not cancelled and old.expires_at is not None and old.expires_at <= begun:
            raise Violation(f"{table} {key} was released after it had expired: {old} at {begun}")

    @staticmethod
    def _is_over(row: Row, latest: datetime, earliest: datetime) -> bool:
        """Whether a lease is over, for somebody whose time is between these two."""
        return (
            row.expires_at is None
            or row.expires_at <= timestamp(latest)
            or row.expires_at > timestamp(earliest + MAX_TTL + CLOCK_SKEW)
        )

    # Queues.

    def _read_tickets(self) -> dict[str, Ticket]:
        rows = self._database.execute(
            "SELECT id, position, resource || resource_id, owner, expires_at FROM lease_waiters"
        ).fetchall()
        return {row[0]: Ticket(*row) for row in rows}

    def _judge_queue(
        self,
        process: Process,
        table: str,
        new: Row,
        before: dict[str, Row],
        tickets: dict[str, Ticket],
        released: Counter[str],
    ) -> None:
        """Judge a take by those who were there before and still wait."""
        taker = self._owner_of(table, new)
        if taker is None or taker.kind not in QUEUED or not taker.clock_is_honest:
            return
        queue = self._queue_of(table, new.resource, tickets)
        position = min(
            (it.position for it in queue if it.owner == new.owner), default=BACK_OF_QUEUE
        )
        ahead = [
            it
            for it in queue
            if it.position < position
            and it.id in self._tickets
            and it.owner != new.owner
            and _is_credible(it, taker.clock_at_begin, process.clock(), generous=False)
        ]
        if table == "project_locks":
            free = 1
        else:
            free = released[new.resource] + sum(
                row.resource == new.resource
                and row.status in ("ready", "pending", "running")
                and self._is_over(row, process.clock(), taker.clock_at_begin)
                for row in before.values()
            )
            if table == "tasks":
                free += sum(
                    row.resource == new.resource and key not in before
                    for key, row in self._rows[table].items()
                )
        if free <= len(ahead):
            raise Violation(
                f"{taker} took one of {free} at {table} before {[it.owner for it in ahead]}"
            )

    def _queue_of(self, table: str, resource: str, tickets: dict[str, Ticket]) -> list[Ticket]:
        if table != "tasks":
            name = f"{table}{resource}"
            return [it for it in tickets.values() if it.resource == name]
        return [
            it
            for it in tickets.values()
            if it.resource.startswith("tasks")
            and self.operations[int(it.owner.split("-")[1]) - 1].wanted == resource
        ]

    def _check_refusal(self, operation: Operation, error: Exception) -> None:
        """Judge a refusal: nothing was free, or those who wait came first."""
        table = {"lock": "project_locks", "claim": "tasks"}.get(
            operation.kind.removesuffix("_waiting"), "worktrees"
        )
        resource = operation.wanted or ""
        queue = [
            it
            for it in self._queue_of(table, resource, self._tickets)
            if it.owner != operation.name
        ]
        names = {resource, f"{table}{resource}", *(it.resource for it in queue)}
        unchanged = all(self._touched_at[name] < operation.time_at_begin for name in names)
        if not unchanged or not operation.clock_is_honest:
            return
        earliest, latest = operation.clock_at_begin, operation.process.clock()
        believed = [it for it in queue if _is_credible(it, earliest, latest, generous=True)]
        rows = [row for row in self._rows[table].values() if row.resource == resource]
        free = sum(
            row.expires_at is None
            or row.expires_at <= timestamp(earliest)
            or row.expires_at > timestamp(latest + MAX_TTL + CLOCK_SKEW)
            for row in rows
            if row.status in ("ready", "pending", "running")
        )
        if table == "project_locks" and not rows:
            free = 1
        if free > len(believed):
            raise_ = f"{operation} was refused with {free} free and {believed} waiting: {error!r}"
            self.violation(f"{raise_}; {[it for it in queue if it not in believed]} not believed")

    async def tickets_left(self) -> None:
        """Let the time pass within which those who were cancelled leave the queue."""
        while self._tickets_to_check:
            await asyncio.sleep(self.scheduler.busy_timeout)
            self._check_left_tickets()

    def _check_left_tickets(self) -> None:
        """Judge the tickets of those who were cancelled: they are given back."""
        now = self.scheduler.time
        due = [it for it in self._tickets_to_check if it[0] <= now]
        if not due:
            return
        self._tickets_to_check = [it for it in self._tickets_to_check if it[0] > now]
        owners = {ticket.owner for ticket in self._tickets.values()}
        for _, operation in due:
            if operation.strikes == self.strikes and operation.name in owners:
                self.violation(f"{operation} was cancelled and still waits in the queue")

    # Budgets.

    def _judge_budgets(self, process: Process) -> None:
        entries = {
            (job, request): cost
            for job, request, cost in self._database.execute(
                "SELECT job_id, request_id, cost_nano_usd FROM cost_entries"
            )
        }
        reservations = {
            (job, request): (amount, expires_at)
            for job, request, amount, expires_at in self._database.execute(
                "SELECT job_id, request_id, amount_nano_usd, expires_at FROM budget_reservations"
            )
        }
        spent = dict(self._database.execute("SELECT id, cost_nano_usd FROM jobs").fetchall())
        before, self._reservations = self._reservations, reservations
        unreserved = {job for job, request in entries.keys() - self._entries.keys()
                      if (job, request) not in before}  # fmt: skip
        self._entries = entries
        totals: Counter[str] = Counter()
        for (job, _), cost in entries.items():
            totals[job] += cost
        for job in self.facts.jobs:
            if spent[job] != totals[job]:
                raise Violation(f"job {job} has spent {spent[job]}, its entries are {totals[job]}")
        made = [key for key in reservations if key not in before]
        for job, request in made:
            self._owners.add(request)
            operation = self.operations[int(request.split("-")[1]) - 1]
            if operation.outcome is not None and operation.outcome.startswith("refused"):
                raise Violation(f"{operation} was refused, and its reservation is stored")
            if not operation.clock_is_honest or job in unreserved:
                continue
            earliest, latest = operation.clock_at_begin, process.clock()
            promised = sum(
                amount
                for (at, _), (amount, expires_at) in reservations.items()
                if at == job
                and timestamp(latest) < expires_at <= timestamp(earliest + MAX_TTL + CLOCK_SKEW)
            )
            if promised + spent[job] > BUDGET:
                raise Violation(
                    f"{operation} was promised money of {job} that is not there: "
                    f"{promised} + {spent[job]}"
                )

    # Time.

    def _check_wait(self, operation: Operation) -> None:
        process = operation.process
        if (
            operation.kind not in PLAIN_WRITES
            or self.transactions[process.number] != operation.transactions
            or self._open_transactions[process]
        ):
            return
        took = process.uptime - operation.began_at
        # The batch in flight may wait for the lock, and then its own.
        if took > 2 * self.scheduler.busy_timeout + SLACK:
            self.violation(f"{operation} took {took:.3f} s: {operation.outcome}")

    def ended(self) -> None:
        """Judge the file as it was left."""
        rows = self._database.execute(
            "SELECT position, id FROM events ORDER BY position"
        ).fetchall()
        if [position for position, _ in rows] != self._positions:
            raise Violation("events are missing that were there")
        for operation in self.operations:
            for id_ in operation.event_ids:
                if operation.outcome == "answered" and id_ not in self._event_at:
                    raise Violation(f"{operation} was acknowledged and is missing")
        for table in _LEASED:
            if self._read_rows(table) != self._rows[table]:
                raise Violation(f"{table} has changed without a commit")
        [damage] = self._database.execute("PRAGMA quick_check(1)").fetchone()
        if damage != "ok":
            raise Violation(f"the database is damaged: {damage}")


_LEASED = {
    "worktrees": (
        "SELECT id, repository_id, lease_owner, lease_token, lease_expires_at, version, state "
        "FROM worktrees"
    ),
    "project_locks": (
        "SELECT project_id, project_id, session_id, id, expires_at, fencing_number, 'ready' "
        "FROM project_locks"
    ),
    "tasks": (
        "SELECT id, task_type, lease_owner, lease_token, lease_expires_at, version, status "
        "FROM tasks"
    ),
}


def _token(held: Any) -> str:
    token: str = held.id if hasattr(held, "session_id") else held.token
    return token


@cache
def _span(generous: bool) -> timedelta:
    return TICKET_TTL + CLOCK_SKEW if generous else TICKET_TTL


def _is_credible(ticket: Ticket, earliest: datetime, latest: datetime, *, generous: bool) -> bool:
    """Whether a ticket counts for somebody whose time is between these two.

    The clocks of processes differ: a generous answer gives a ticket the benefit of the doubt.
    """
    if generous:
        return timestamp(earliest) < ticket.expires_at <= timestamp(latest + _span(True))
    return timestamp(latest) < ticket.expires_at <= timestamp(earliest + _span(False))


__all__ = ["Judge", "Operation", "Violation"]
