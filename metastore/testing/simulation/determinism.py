"""Randomness and time from one seed, while a simulation runs."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import secrets
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from metastore import codec
from metastore.backends.sqlite import database_file, lanes, watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from metastore.testing.simulation.stage import Stage

__all__ = ["Tuning", "repeatable"]


class Tuning:
    """Constants of the backend that a simulation shrinks, so that more happens in less time.

    Attributes:
        busy_timeout: how long a connection waits for the write lock, in seconds.
        poll_interval: how often a process polls for commits of others, in seconds.
        checkpoint_after: the row changes after which the WAL is checkpointed.
    """

    def __init__(self, random: random.Random) -> None:
        self.busy_timeout = random.choice((0.3, 0.6, 1.0))
        self.poll_interval = random.choice((0.03, 0.1, 0.2))
        self.checkpoint_after = random.choice((25, 200, 4_000))


@contextlib.contextmanager
def repeatable(seed: str, now: Callable[[], float], tuning: Tuning, stage: Stage) -> Iterator[None]:
    """Within the body, take randomness and ids from `seed`, and connections from `stage`."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    serials = itertools.count(chance.getrandbits(30) << 32)
    connect = database_file.connect

    def uuid7() -> UUID:
        milliseconds = 1_767_000_000_000 + int(now() * 1000)
        return UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | next(serials))

    state = random.getstate()
    collects = gc.isenabled()
    patches: list[tuple[ModuleType, str, object]] = [
        (codec, "uuid7", uuid7),
        (secrets, "token_hex", lambda n=32: chance.randbytes(n).hex()),
        (database_file, "connect", partial(stage.connect, connect)),
        (database_file, "BUSY_TIMEOUT_MS", round(tuning.busy_timeout * 1000)),
        (watcher, "POLL_INTERVAL", tuning.poll_interval),
        (lanes, "CHECKPOINT_AFTER", tuning.checkpoint_after),
    ]
    originals = [(module, name, getattr(module, name)) for module, name, _ in patches]
    random.seed(seed)
    # The collector would finalise forgotten generators at unpredictable times.
    gc.disable()
    try:
        # Not mock.patch, which costs as much as dozens of steps.
        for module, name, value in patches:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in originals:
            setattr(module, name, value)
        random.setstate(state)
        if collects:
            gc.enable()
