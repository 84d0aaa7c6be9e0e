"""A clock for tests to move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["Clock"]

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""When a clock begins, unless it is told otherwise."""

TICK = timedelta(milliseconds=1)
"""The smallest step that a column keeps."""


class Clock:
    """A clock that stands still but for a tick with each reading.

    By default it ticks a millisecond, so that no two operations share one.

    Attributes:
        now: the time that it told last; set it to whatever the test needs.
        tick: how far it moves before each reading; zero stops it.
    """

    def __init__(self, now: datetime = START, *, tick: timedelta = TICK) -> None:
        self.now = now
        self.tick = tick

    def __call__(self) -> datetime:
        """Return the next moment."""
        self.now += self.tick
        return self.now

    def advance(self, span: timedelta) -> datetime:
        """Move the clock by `span`, which may be negative, and return where it is then."""
        self.now += span
        return self.now

    def __repr__(self) -> str:
        return f"Clock({self.now.isoformat()}, tick={self.tick})"
