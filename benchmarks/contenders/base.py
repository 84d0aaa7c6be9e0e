"""What a contender does, and what all of them are given to do it with.

The rules: the database is the one that metastore's migrations make, with every CHECK, index,
trigger and foreign key. A write has been committed when the await returns. Whatever is read comes
back as the program wants it: JSON as a dict, times as datetimes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from uuid_utils import uuid7

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BUSY_TIMEOUT",
    "CALL",
    "CONTEXT",
    "COST_NANO_USD",
    "EVENT",
    "MESSAGE",
    "OWNER",
    "TTL",
    "Contender",
    "NewEvent",
    "encode_time",
    "new_id",
    "new_token",
    "utc_now",
]

BUSY_TIMEOUT = 60.0
"""How long everybody waits for another connection's lock, in seconds."""

TTL = timedelta(hours=1)
OWNER = "runner-7"

EVENT = "step.progress"
MESSAGE = "Resolved 41 of 57 dependencies of the module"
CONTEXT = {
    "module": "billing-service",
    "attempt": 2,
    "elapsed_ms": 1834,
    "resolved": [17, 41, 57],
    "cached": True,
}

CALL = {
    "provider": "anthropic",
    "model": "large",
    "tokens_in": 1_834,
    "tokens_out": 412,
    "tokens_cached": 8_192,
}
"""A model call, and what was used in it."""

COST_NANO_USD = 12_345_000
"""What it did cost."""


class NewEvent(NamedTuple):
    """An event to append, one of many."""

    event_type: str
    message: str
    level: str
    context: dict[str, Any]


class Contender(Protocol):
    """One way to work with the database. Rows may be of any type; a handle is whatever it likes."""

    async def open(self, path: Path) -> None:
        """Connect to the migrated database at `path`."""

    async def close(self) -> None:
        """Disconnect."""

    async def pragma(self, name: str) -> Any:
        """Return a setting of a connection that writes."""

    async def append(self, session_id: str) -> Any:
        """Append one event and return it, with its position."""

    async def append_many(self, session_id: str, events: list[NewEvent]) -> None:
        """Append events, all or none."""

    async def get(self, worktree_id: str) -> Any:
        """Return a worktree."""

    async def page(self, session_id: str, after: int) -> list[Any]:
        """Return the 50 events of a session behind a position."""

    async def reserve(self, worktree: Any) -> Any:
        """Take a worktree that `get` or `release` returned, if nobody else has; return a handle."""

    async def release(self, held: Any) -> Any:
        """Set free what `reserve` or `acquire` returned, if it is still held; return its row."""

    async def acquire(self, repository_id: str) -> Any:
        """Take the least recently used of a repository's free worktrees; return a handle."""

    async def transaction(self, session_id: str, worktree_id: str) -> None:
        """In one transaction: get a worktree, append, reserve it, append, release it."""

    async def record_cost(self, job_id: str) -> Any:
        """Record a call under a new request id, in place of its reservation; return the job.

        The entry, the end of the reservation and the job's totals are one transaction.
        """

    async def claim(self) -> Any:
        """Take the oldest pending task, or one whose claim ran out; return a handle."""

    async def give_back(self, held: Any) -> Any:
        """Make a claimed task pending again, if it is still held; return its row."""


def utc_now() -> datetime:
    """Return the time, as an aware datetime."""
    return datetime.now(UTC)


def encode_time(moment: datetime) -> str:
    """Return a time as the tables hold it."""
    return f"{moment.astimezone(UTC).isoformat(timespec='milliseconds')[:23]}Z"


def new_id() -> str:
    """Return an id for a row."""
    return str(uuid7())


def new_token() -> str:
    """Return what tells one lease from the next."""
    return uuid7().hex
