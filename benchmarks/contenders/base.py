"""What a contender does, and what all of them are given to do it with.

The rules: the database is the one that metastore's migrations make, with every CHECK, index,
trigger and foreign key. A write has been committed when the await returns. Whatever is read comes
back as the program wants it: JSON as a dict, times as datetimes. Each event is chained to the one
before it in its session, as `MetadataStore.audit_chains` verifies afterwards. What the program
knows already need not be read back: of an event it appended that is all but the position.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from uuid_utils import uuid7

from metastore.audit.links import link_hash

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "AMOUNT_NANO_USD",
    "BUSY_TIMEOUT",
    "CALL",
    "CONTEXT",
    "COST_NANO_USD",
    "EVENT",
    "MESSAGE",
    "OWNER",
    "TTL",
    "BudgetExceededError",
    "Contender",
    "NewEvent",
    "chain",
    "check_budget",
    "encode_json",
    "encode_time",
    "link",
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

CALL: dict[str, Any] = {
    "provider": "anthropic",
    "model": "large",
    "tokens_in": 1_834,
    "tokens_out": 412,
    "tokens_cached": 8_192,
}
"""A model call, and what was used in it."""

COST_NANO_USD = 12_345_000
"""What it did cost."""

AMOUNT_NANO_USD = 20_000_000
"""What is promised to it before: the most that it may cost."""


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

    async def reserve_budget(self, job_id: str) -> Any:
        """Promise money to a call under a new request id, if the job's limits leave room.

        What has expired is forgotten, the job and what is promised to others are read, and the
        reservation is stored, in one transaction. Return a handle.
        """

    async def record_cost(self, job_id: str, reserved: Any = None) -> Any:
        """Record a call, in place of its reservation if it has one; return the whole job.

        The entry, the end of the reservation and the job's totals are one transaction. A call
        that has no reservation gets a new request id.
        """

    async def claim(self) -> Any:
        """Take the oldest pending task, or one whose claim ran out; return a handle."""

    async def complete(self, held: Any) -> Any:
        """End a claimed task well, if it is still held; return its row."""


class BudgetExceededError(Exception):
    """A job's limits leave no room for a call, or it does not run."""


def check_budget(job: Any, reserved: int, requests: int) -> None:
    """Check that a job's limits leave room for a call, beside what is promised to others.

    `job` is a mapping, or has the columns as attributes.

    Raises:
        BudgetExceededError: they do not.
    """
    value = job.__getitem__ if isinstance(job, dict) else partial(getattr, job)
    limit, most, minutes = value("budget_nano_usd"), value("max_requests"), value("max_minutes")
    if (
        value("status") != "running"
        or value("cancelled")
        or (limit is not None and value("cost_nano_usd") + reserved + AMOUNT_NANO_USD > limit)
        or (most is not None and value("requests_made") + requests >= most)
        or (minutes is not None and value("started_at") + timedelta(minutes=minutes) <= utc_now())
    ):
        raise BudgetExceededError


def utc_now() -> datetime:
    """Return the time, as an aware datetime."""
    return datetime.now(UTC)


def encode_json(value: Any) -> str:
    """Return a document as text, without spaces."""
    return json.dumps(value, separators=(",", ":"))


def link(last: str, event: dict[str, Any]) -> str:
    """Return the hash of an event that follows `last`; for who cannot compute it in SQL."""
    return link_hash(
        last,
        *(event[name] for name in ("id", "session_id", "event_type", "level", "message")),
        encode_json(event["context"]),
        encode_time(event["created_at"]),
    )


def chain(last: str, position: int, events: list[dict[str, Any]]) -> None:
    """Give events that follow `last` their hashes, and the positions behind `position`."""
    for event in events:
        position += 1
        event["position"] = position
        event["hash"] = link(last, event)
        last = f"{position}:{event['hash']}"


def encode_time(moment: datetime) -> str:
    """Return a time as the tables hold it."""
    return f"{moment.astimezone(UTC).isoformat(timespec='milliseconds')[:23]}Z"


def new_id() -> str:
    """Return an id for a row."""
    return str(uuid7())


def new_token() -> str:
    """Return what tells one lease from the next."""
    return uuid7().hex
