"""A clock for tests to move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["Clock"]

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The start time of a clock, by default."""

TICK = timedelta(milliseconds=1)
"""The resolution of time columns."""


class Clock:
    """A clock that stands still, except for a tick with each reading.

    By default the tick is a millisecond, so that no two operations have the same time.

    Attributes:
        now: the time of the last reading; set it to whatever the test needs.
        tick: how far each reading advances it; zero stops it.
    """

    def __init__(self, now: datetime = START, *, tick: timedelta = TICK) -> None:
        self.now = now
        self.tick = tick

    def __call__(self) -> datetime:
        """Advance by a tick, and return the time."""
        self.now += self.tick
        return self.now

    def advance(self, span: timedelta) -> datetime:
        """Move the clock by `span`, which may be negative, and return the new time."""
        self.now += span
        return self.now

    def __repr__(self) -> str:
        return f"Clock({self.now.isoformat()}, tick={self.tick})"
