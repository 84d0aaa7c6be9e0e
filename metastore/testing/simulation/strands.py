"""Threads of which exactly one runs at a time: the one that holds the baton.

A hop is a plain function deep inside SQLite's driver, and only a thread can be suspended there.
The scheduler passes the baton to a strand and gets it back when the strand has suspended itself
or finished, so that nothing ever runs in parallel and every run can be repeated.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Killed", "Strand"]


class Killed(BaseException):
    """Raised in a suspended hop, and at each of its later statements, once its process is dead."""


class Strand:
    """A thread that runs one function at a time, under the control of the scheduler.

    Strands are pooled: starting a thread costs more than the hop it runs.
    """

    _idle: list[Strand] = []  # noqa: RUF012 - shared by design

    def __init__(self) -> None:
        self._work: Callable[[], None] | None = None
        self._go = threading.Lock()
        self._back = threading.Lock()
        self._go.acquire()
        self._back.acquire()
        threading.Thread(target=self._run, name="simulated-hops", daemon=True).start()

    @classmethod
    def of(cls, work: Callable[[], None]) -> Strand:
        """Return a strand that will run `work`, not yet started."""
        strand = cls._idle.pop() if cls._idle else cls()
        strand._work = work  # noqa: SLF001 - its own class
        return strand

    @property
    def is_finished(self) -> bool:
        """Whether the function has returned or raised."""
        return self._work is None

    def resume(self) -> None:
        """Let the function run until it suspends itself or finishes. Called by the scheduler."""
        self._go.release()
        self._back.acquire()
        if self._work is None:
            self._idle.append(self)

    def suspend(self) -> None:
        """Hand the baton back and wait for it. Called by the function, in its thread."""
        self._back.release()
        self._go.acquire()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            work = self._work
            try:
                if work is not None:
                    work()
            except BaseException:  # noqa: BLE001, S110 - what a thread of aiosqlite does with it
                pass
            finally:
                # Before passing the baton back, so that objects of the hop do not live on here.
                work = self._work = None
            self._back.release()
