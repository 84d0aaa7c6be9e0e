"""Several processes appending to one database."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import contenders, database
from benchmarks.results import ProcessFigure
from benchmarks.worker import Sample, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.noise import Patience

__all__ = ["REFERENCE", "measure_processes"]

REFERENCE = (1, 64)
"""Processes and tasks of what the others are compared with."""

FULL = (REFERENCE, (1, 16), (2, 16), (4, 16), (8, 16))
QUICK = (REFERENCE, (1, 16), (4, 16))


def measure_processes(
    rounds: int, seconds: float, patience: Patience, *, quick: bool, say: Callable[[str], None]
) -> list[ProcessFigure]:
    """Let 1 to 8 processes append to one database with 16 tasks each."""
    shapes = QUICK if quick else FULL
    path = database.scratch("processes.db")
    database.fill(path)
    figures = {shape: ProcessFigure(*shape, []) for shape in shapes}
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(contenders.OURS))
            for _ in range(max(processes for processes, _ in shapes))
        ]
        for worker in workers:
            worker.open(path)
        for number in range(rounds):
            say(f"processes, round {number + 1} of {rounds}")
            for processes, tasks in shapes[number % len(shapes) :] + shapes[: number % len(shapes)]:
                samples = patience.measure(
                    partial(_together, workers[:processes], tasks, seconds),
                    lambda samples: sum(it.cpu_seconds for it in samples),
                )
                figures[processes, tasks].rounds.append(samples)
        for worker in workers:
            worker.close()
    database.remove(path)
    return list(figures.values())


def _together(workers: list[Worker], tasks: int, seconds: float) -> list[Sample]:
    start_at = time.monotonic() + 0.2
    for worker in workers:
        worker.begin("run", "append", tasks, seconds, start_at)
    return [worker.answer() for worker in workers]
