"""How long anything may be held, and which expiries to believe."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from metastore.codec import duration

__all__ = [
    "CLOCK_SKEW",
    "LONG_AGO",
    "MAX_TTL",
    "TICKET_TTL",
    "checked_ttl",
    "checked_wait",
    "latest_credible_expiry",
    "latest_credible_ticket",
]

MAX_TTL = timedelta(days=7)
"""The longest time that anything can be leased, locked or reserved for."""

CLOCK_SKEW = timedelta(minutes=5)
"""How far a clock may be wrong. An expiry further ahead than `MAX_TTL` and this is not believed:
it was written by a clock that has jumped back since."""

TICKET_TTL = timedelta(seconds=5)
"""How long a ticket counts that nobody keeps alive."""

LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
"""Before every expiry."""


def checked_ttl(ttl: timedelta) -> timedelta:
    """Return `ttl` if something may be held for so long.

    Raises:
        InvalidValue: it is no span, shorter than a millisecond, or longer than `MAX_TTL`.
    """
    return duration("ttl", ttl, longest=MAX_TTL)


def checked_wait(wait: timedelta | None) -> timedelta | None:
    """Return `wait` if a caller may wait for so long; None does not wait at all.

    Raises:
        InvalidValue: it is no span, negative, or longer than `MAX_TTL`.
    """
    return wait if wait is None else duration("wait", wait, shortest=timedelta(0), longest=MAX_TTL)


def latest_credible_expiry(now: datetime) -> datetime:
    """Return the latest expiry to believe: no honest clock wrote a later one."""
    return now + MAX_TTL + CLOCK_SKEW


def latest_credible_ticket(now: datetime) -> datetime:
    """Return the latest expiry of a ticket to believe."""
    return now + TICKET_TTL + CLOCK_SKEW
