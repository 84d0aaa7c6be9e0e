"""An event loop that is advanced step by step, in virtual time."""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import sys
from asyncio import events
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine
    from contextvars import Context

__all__ = ["SimulatedLoop"]


_TURNS = 4
"""How many turns a loop runs in one step of the scheduler."""

_ROUNDS = 50
"""How many times the tasks of a dead process are cancelled; some await in their `finally`."""


class _Future(asyncio.Future[Any]):
    """A future whose hash is the same in every run, unlike its address."""

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


class _Handle(asyncio.Handle):
    """A handle that does not ask the loop for its debug mode."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None


class _Timer(asyncio.TimerHandle):
    """A timer that is compared with timers only."""

    __slots__ = ()

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        return self._when < other._when  # type: ignore[attr-defined, no-any-return]


class _Clock(Protocol):
    """The source of virtual time."""

    time: float


class SimulatedLoop(asyncio.BaseEventLoop):
    """The event loop of a simulated process, which the scheduler advances."""

    # Private attributes of BaseEventLoop, which typeshed does not declare.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int
    _closed: bool

    def __init__(self, clock: _Clock, name: str) -> None:
        super().__init__()
        self.name = name
        self._clock = clock
        self.serials = itertools.count(1)
        self.unhandled: list[dict[str, Any]] = []
        self.set_task_factory(cast("Any", _create_task))
        self.set_exception_handler(lambda _, context: self.unhandled.append(context))

    def time(self) -> float:
        """Return the virtual time, which is monotonic and independent of clock jumps."""
        return self._clock.time

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call `callback` in the next turn."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    # Nothing blocks in a selector, so nothing needs to be woken.
    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call `callback` at the time `when`."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return _Future(loop=self)

    @property
    def next_at(self) -> float | None:
        """When it has something to do: now, at the time of a timer, or never."""
        if self._ready:
            return 0.0
        timers = self._scheduled
        while timers and timers[0]._cancelled:  # noqa: SLF001 - as _run_once does it
            self._timer_cancelled_count -= 1
            heapq.heappop(timers)._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
        return timers[0].when() if timers else None

    def turn(self) -> None:
        """Run up to `_TURNS` turns, until nothing is ready.

        Several turns lose no interleavings: processes only interact through the database.
        """
        outside = events._get_running_loop()  # noqa: SLF001 - a test may have a loop of its own
        # The scheduler restores what was set before the run.
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_firstiter_hook,  # type: ignore[attr-defined]
            finalizer=self._asyncgen_finalizer_hook,  # type: ignore[attr-defined]
        )
        events._set_running_loop(self)  # noqa: SLF001 - as run_forever does it
        try:
            for _ in range(_TURNS):
                self._run_due()
                if not self._ready:
                    break
        finally:
            events._set_running_loop(outside)  # noqa: SLF001 - the same

    def _run_due(self) -> None:
        """Do what asyncio's `_run_once` does, without I/O and slow-callback checks."""
        ready, timers, now = self._ready, self._scheduled, self._clock.time
        while timers and timers[0]._when < now:  # type: ignore[attr-defined]  # noqa: SLF001
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:  # noqa: SLF001
                handle._run()  # noqa: SLF001

    def end(self) -> None:
        """Cancel the remaining tasks of a dead process, and close the loop.

        A dead process runs no `finally`. Here each one runs, without effect, because Python
        complains about coroutines that are dropped half-way.
        """
        for _ in range(_ROUNDS):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                # A task that never started would leave its argument unawaited.
                if inspect.getcoroutinestate(cast("Any", task.get_coro())) != inspect.CORO_CREATED:
                    task.cancel()
            self.turn()
        self.close()


def _create_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> _Task:
    assert isinstance(loop, SimulatedLoop)  # noqa: S101 - for the type checker
    return _Task(coro, loop=loop, **options)
