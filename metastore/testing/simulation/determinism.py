"""Chance and time from one seed, for as long as a simulation runs."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import secrets
from typing import TYPE_CHECKING
from unittest import mock
from uuid import UUID

from metastore import codec
from metastore.backends import sqlite_file, sqlite_lanes, sqlite_watcher

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["Tuning", "repeatable"]


class Tuning:
    """The constants of the backend that a simulation makes small, so that little time shows much.

    Attributes:
        busy_timeout: how long a connection waits for the write lock, in seconds.
        poll_interval: how often a process looks for commits of others, in seconds.
        checkpoint_after: the row changes after which the WAL is checkpointed.
    """

    def __init__(self, random: random.Random) -> None:
        self.busy_timeout = random.choice((0.3, 0.6, 1.0))
        self.poll_interval = random.choice((0.03, 0.1, 0.2))
        self.checkpoint_after = random.choice((25, 200, 4_000))


@contextlib.contextmanager
def repeatable(
    seed: str, now: Callable[[], float], tuning: Tuning, opened: Callable[[sqlite3.Connection], Any]
) -> Iterator[None]:
    """Give the program chance and ids from `seed` within the body.

    `opened` is told of every connection that the backend makes.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    serials = itertools.count(chance.getrandbits(30) << 32)
    connect = sqlite_file.connect

    def uuid7() -> UUID:
        milliseconds = 1_767_000_000_000 + int(now() * 1000)
        return UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | next(serials))

    def connect_and_tell(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        opened(connection)
        return connection

    state = random.getstate()
    collects = gc.isenabled()
    with (
        mock.patch.object(codec, "uuid7", uuid7),
        mock.patch.object(secrets, "token_hex", lambda n=32: chance.randbytes(n).hex()),
        mock.patch.object(sqlite_file, "connect", connect_and_tell),
        mock.patch.object(sqlite_file, "BUSY_TIMEOUT_MS", round(tuning.busy_timeout * 1000)),
        mock.patch.object(sqlite_watcher, "POLL_INTERVAL", tuning.poll_interval),
        mock.patch.object(sqlite_lanes, "CHECKPOINT_AFTER", tuning.checkpoint_after),
    ):
        random.seed(seed)
        # The collector would end forgotten generators at times of its own.
        gc.disable()
        try:
            yield
        finally:
            random.setstate(state)
            if collects:
                gc.enable()
