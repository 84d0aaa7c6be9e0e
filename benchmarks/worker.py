"""A contender in a process of its own, which does what it is told to and is timed.

Each contender has its own process, so that none inherits another's threads, adapters or garbage.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from benchmarks import contenders, operations
from benchmarks.verify import verify

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from benchmarks.contenders.base import Contender

__all__ = ["Sample", "Worker"]


class Sample(msgspec.Struct, frozen=True):
    """What was measured in one window.

    Attributes:
        operations: how many were finished.
        seconds: from the first one's start to the last one's end.
        p50: the median time of one, in microseconds; `p99` and `worst` likewise.
        cpu_seconds: how long the process kept a core busy.
        errors: how many failed, by what they raised.
        hops: how many times ours went to the writer's thread and the readers'.
    """

    operations: int
    seconds: float
    p50: float
    p99: float
    worst: float
    cpu_seconds: float
    errors: dict[str, int]
    hops: int | None = None

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def processor_rate(self) -> float:
        """Operations in a second of processor time, which others on the machine change less."""
        return self.operations / self.cpu_seconds


class Worker:
    """The handle of a contender's process."""

    def __init__(self, key: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.key = key
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(key, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begin(self, verb: str, *arguments: Any) -> None:
        """Send an order, without waiting for the answer."""
        self._pipe.send((verb, *arguments))

    def answer(self) -> Any:
        """Return the answer to the order that was begun."""
        answer, error = self._pipe.recv()
        if error is not None:
            raise RuntimeError(f"{self.key}: {error}")
        return answer

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Send an order and return the answer."""
        self.begin(verb, *arguments)
        return self.answer()

    def open(self, path: Path) -> None:
        """Connect the contender to a database."""
        self.ask("open", str(path))

    def close(self) -> None:
        """Disconnect it."""
        self.ask("close")

    def verify(self) -> None:
        """Check that it does the work that all of them have to do."""
        self.ask("verify")

    def run(self, operation: str, tasks: int, seconds: float) -> Sample:
        """Let `tasks` tasks repeat an operation for `seconds`, and return what was measured."""
        sample: Sample = self.ask("run", operation, tasks, seconds)
        return sample

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


def _serve(key: str, pipe: Connection) -> None:
    asyncio.run(_Server(key, pipe).serve())


class _Server:
    def __init__(self, key: str, pipe: Connection) -> None:
        self._key = key
        self._pipe = pipe
        self._contender: Contender

    async def serve(self) -> None:
        while True:
            try:
                verb, *arguments = self._pipe.recv()
            except EOFError:
                return
            try:
                answer = await getattr(self, verb)(*arguments)
            except Exception:  # noqa: BLE001 - the parent is told
                self._pipe.send((None, traceback.format_exc()))
            else:
                self._pipe.send((answer, None))

    async def open(self, path: str) -> None:
        self._path = Path(path)
        self._contender = contenders.make(self._key)
        await self._contender.open(self._path)

    async def close(self) -> None:
        await self._contender.close()

    async def verify(self) -> None:
        await verify(self._contender, self._path)

    async def run(
        self, name: str, tasks: int, seconds: float, start_at: float | None = None
    ) -> Sample:
        prepare = operations.ALL[name].prepare
        work = [await prepare(self._contender, task) for task in range(tasks)]
        durations: list[float] = []
        errors: Counter[str] = Counter()
        clock = time.perf_counter
        gc.collect()
        if start_at is not None:
            await asyncio.sleep(start_at - time.monotonic())
        hops = _hops(self._contender)
        cpu = time.process_time()
        started = clock()
        deadline = started + seconds

        async def repeat(once: operations.Once) -> None:
            begun = clock()
            # Once at least, however long the others kept it waiting.
            while True:
                try:
                    await once()
                except Exception as error:  # noqa: BLE001 - counted
                    errors[f"{type(error).__name__}: {error}"[:80]] += 1
                ended = clock()
                durations.append(ended - begun)
                begun = ended
                if begun >= deadline:
                    return

        await asyncio.gather(*map(repeat, work))
        elapsed = clock() - started
        durations.sort()
        return Sample(
            operations=len(durations) - errors.total(),
            seconds=elapsed,
            p50=_percentile(durations, 0.50) * 1e6,
            p99=_percentile(durations, 0.99) * 1e6,
            worst=durations[-1] * 1e6,
            cpu_seconds=time.process_time() - cpu,
            errors=dict(errors),
            hops=None if hops is None else (_hops(self._contender) or 0) - hops,
        )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _hops(contender: Contender) -> int | None:
    store = getattr(contender, "store", None)
    if store is None:
        return None
    backend = store._backend  # noqa: SLF001 - nothing public counts them
    lanes = (backend._writer, *backend._readers)  # noqa: SLF001
    return sum(int(lane.hops) for lane in lanes)
