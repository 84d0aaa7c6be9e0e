"""The contenders side by side: in each round every one of them, in another order."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import contenders, database, operations
from benchmarks.results import OperationFigure
from benchmarks.worker import Sample, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.noise import Patience

__all__ = ["compare"]

QUICK_TASKS = (1, 64)


def compare(
    rounds: int, seconds: float, patience: Patience, *, quick: bool, say: Callable[[str], None]
) -> list[OperationFigure]:
    """Measure every operation with every contender, in windows of so many seconds."""
    template = database.scratch("template.db")
    database.fill(template)
    figures = []
    with contextlib.ExitStack() as stack:
        workers = {
            entry.key: stack.enter_context(Worker(entry.key))
            for entry in contenders.ALL.values()
            if entry.quick or not quick
        }
        _verify(workers, template)
        for name, operation in operations.ALL.items():
            for tasks in operation.tasks:
                if quick and tasks not in QUICK_TASKS:
                    continue
                say(f"{operation.title}, {tasks} tasks")
                chosen = {
                    key: worker
                    for key, worker in workers.items()
                    if tasks in contenders.ALL[key].tasks
                }
                samples = _measure(chosen, template, name, tasks, rounds, seconds, patience)
                figures += [
                    OperationFigure(name, tasks, key, taken) for key, taken in samples.items()
                ]
    return figures


def _verify(workers: dict[str, Worker], template: Path) -> None:
    for worker in workers.values():
        with _opened({worker.key: worker}, template):
            worker.verify()


def _measure(
    workers: dict[str, Worker],
    template: Path,
    operation: str,
    tasks: int,
    rounds: int,
    seconds: float,
    patience: Patience,
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = defaultdict(list)
    keys = list(workers)
    replenish = operations.ALL[operation].replenish
    with _opened(workers, template) as paths:
        for number in range(-1, rounds):
            first = number % len(keys)
            for key in keys[first:] + keys[:first]:
                if replenish is not None:
                    replenish(paths[key])
                if number < 0:
                    workers[key].run(operation, tasks, seconds / 4)
                    continue
                window = partial(workers[key].run, operation, tasks, seconds)
                samples[key].append(patience.measure(window, lambda sample: sample.cpu_seconds))
    return {key: samples[key] for key in keys}


@contextlib.contextmanager
def _opened(workers: dict[str, Worker], template: Path) -> Iterator[dict[str, Path]]:
    """Give each a database of its own, as fresh as the others'."""
    paths = {key: database.scratch(f"{key}.db") for key in workers}
    for key, worker in workers.items():
        database.copy(template, paths[key])
        worker.open(paths[key])
    yield paths
    for key, worker in workers.items():
        worker.close()
        database.remove(paths[key])
