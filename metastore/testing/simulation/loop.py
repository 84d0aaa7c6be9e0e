"""An event loop that is turned by hand, in virtual time."""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import sys
from asyncio import events
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["SimulatedLoop"]


_TURNS = 4
"""How many turns a loop runs in one step of the scheduler."""

_ROUNDS = 50
"""How often the tasks of a dead process are cancelled; some await in their `finally`."""


class _Future(asyncio.Future[Any]):
    """A future that sets and dictionaries order alike in every run, not by its address."""

    _loop: SimulatedLoop

    def __new__(cls, *, loop: SimulatedLoop) -> Self:
        future = super().__new__(cls)
        future._serial = next(loop.serials)
        return future

    _serial: int

    def __hash__(self) -> int:
        return self._serial


class _Task(asyncio.Task[Any]):
    """A task with such a hash. It is hashed before its constructor has returned."""

    _serial: int

    def __new__(cls, *_: object, loop: SimulatedLoop, **__: object) -> Self:
        task = super().__new__(cls)
        task._serial = next(loop.serials)
        return task

    def __hash__(self) -> int:
        return self._serial


class _NoSelector:
    """There is no input and output: nothing is ever waited for."""

    def select(self, _: float | None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class SimulatedLoop(asyncio.BaseEventLoop):
    """The event loop of a simulated process. It runs one turn whenever the scheduler says so."""

    # What BaseEventLoop calls its own; typeshed does not know of it.
    _ready: Any
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int
    _run_once: Callable[[], None]

    def __init__(self, now: Callable[[], float], name: str) -> None:
        super().__init__()
        self.name = name
        self._now = now
        self._selector = _NoSelector()
        # Timers are due when their time has come, not a resolution earlier.
        self._clock_resolution = 0.0
        self.serials = itertools.count(1)
        self.unhandled: list[dict[str, Any]] = []
        self.set_task_factory(cast("Any", _create_task))
        self.set_exception_handler(lambda _, context: self.unhandled.append(context))

    def time(self) -> float:
        """Return the virtual time. It is monotonic: no jump of a clock moves it."""
        return self._now()

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return _Future(loop=self)

    @property
    def next_at(self) -> float | None:
        """When it has something to do: now, at the time of a timer, or never."""
        if self._ready:
            return self._now()
        timers = self._scheduled
        while timers and timers[0]._cancelled:  # noqa: SLF001 - as _run_once does it
            self._timer_cancelled_count -= 1
            heapq.heappop(timers)._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
        return timers[0].when() if timers else None

    def turn(self) -> None:
        """Run what is ready, and what that makes ready, as far as `_TURNS` go.

        Nothing is lost by that: processes meet in the database only.
        """
        outside = events._get_running_loop()  # noqa: SLF001 - a test may have a loop of its own
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_firstiter_hook,  # type: ignore[attr-defined]
            finalizer=self._asyncgen_finalizer_hook,  # type: ignore[attr-defined]
        )
        events._set_running_loop(self)  # noqa: SLF001 - as run_forever does it
        try:
            for _ in range(_TURNS):
                self._run_once()
                if not self._ready:
                    break
        finally:
            events._set_running_loop(outside)  # noqa: SLF001 - the same
            sys.set_asyncgen_hooks(*hooks)

    def end(self) -> None:
        """Cancel what is left of a dead process until nothing is, and close the loop.

        A dead process runs no `finally`; here each does, where nothing comes of it, for a
        coroutine that is dropped half-way complains.
        """
        for _ in range(_ROUNDS):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                # One that never began would leave what it was given unawaited.
                if inspect.getcoroutinestate(cast("Any", task.get_coro())) != inspect.CORO_CREATED:
                    task.cancel()
            self.turn()
        self.close()

    def _process_events(self, _: object) -> None:
        pass

    def _write_to_self(self) -> None:
        # Nobody blocks in a selector, so that nobody needs to be woken.
        pass


def _create_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> _Task:
    assert isinstance(loop, SimulatedLoop)  # noqa: S101 - for the type checker
    return _Task(coro, loop=loop, **options)
