"""The faults of simulated processes."""

from __future__ import annotations

import sqlite3
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import random
    from collections.abc import Collection

__all__ = ["Fault", "FaultKind", "draw_faults", "error_of"]


class FaultKind(StrEnum):
    """The kinds of faults."""

    KILL = "kill"
    """The process dies between two statements, and a new one takes its place."""
    LOST_ANSWER = "lost_answer"
    """The process dies right after its next COMMIT, before any caller is answered."""
    LOST_COMMIT = "lost_commit"
    """The process dies right before its next COMMIT."""
    STOP = "stop"
    """The process is suspended for a while, as after SIGSTOP or on a closed laptop."""
    CLOCK = "clock"
    """The clock of the process jumps by `seconds`, forward or back."""
    BUSY = "busy"
    """Another program holds the write lock for a while."""
    FULL = "full"
    """The disk is full when the next write of the process commits."""
    DISK_ERROR = "disk_error"
    """A write in the middle of a transaction fails, and SQLite rolls it back."""
    OS_ERROR = "os_error"
    """The next statement of the process raises an OSError in its thread."""
    MEMORY_ERROR = "memory_error"
    """The next statement of the process raises a MemoryError in its thread."""
    CANCEL = "cancel"
    """A task of the process is cancelled."""
    CLOSE = "close"
    """The store is closed while it is in use, and opened again."""


class Fault(msgspec.Struct, frozen=True):
    """A fault at a point in time.

    Attributes:
        at: the virtual time, in seconds from the start.
        process: the number of the process that it strikes.
        seconds: how long it lasts, or how far a clock jumps.
    """

    at: float
    kind: FaultKind
    process: int
    seconds: float = 0.0

    def __str__(self) -> str:
        span = f" {self.seconds:+.3f} s" if self.seconds else ""
        return f"{self.at:8.4f}  p{self.process}  {self.kind}{span}"


_JUMPS = (-8 * 86400.0, -86400.0, -60.0, -2.0, -0.05, 0.05, 2.0, 60.0, 86400.0, 8 * 86400.0)


def draw_faults(
    random: random.Random,
    *,
    count: int,
    until: float,
    processes: int,
    busy_timeout: float,
    kinds: Collection[FaultKind] = tuple(FaultKind),
) -> list[Fault]:
    """Return `count` faults of these kinds that strike before `until`."""
    drawn = []
    for _ in range(count if kinds else 0):
        kind = random.choice(sorted(kinds))
        seconds = 0.0
        if kind is FaultKind.CLOCK:
            seconds = random.choice(_JUMPS)
        elif kind is FaultKind.STOP:
            seconds = random.choice((0.01, 0.3, 2.0, 8.0)) * random.random()
        elif kind is FaultKind.BUSY:
            seconds = random.choice((0.01, 0.5, 4.0)) * random.random() * busy_timeout
        at = round(random.random() * until, 4)
        drawn.append(Fault(at, kind, random.randrange(processes), round(seconds, 4)))
    return sorted(drawn, key=lambda fault: fault.at)


def error_of(kind: FaultKind) -> Exception:
    """Return the error that a fault makes a statement raise."""
    if kind is FaultKind.OS_ERROR:
        return OSError(5, "simulated")
    if kind is FaultKind.MEMORY_ERROR:
        return MemoryError("simulated")
    error = sqlite3.OperationalError("database or disk is full (simulated)")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    error.sqlite_errorname = "SQLITE_FULL"
    return error
