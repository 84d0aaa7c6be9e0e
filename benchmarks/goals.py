"""What was set out to be reached, and whether it was."""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import contenders
from benchmarks.processes import REFERENCE

if TYPE_CHECKING:
    from benchmarks.results import ProcessFigure, Results

__all__ = ["Outcome", "outcomes"]

TIMES = "\N{MULTIPLICATION SIGN}"

RAW = "raw sqlite3, one by one"
TUTORIAL = "tutorial aiosqlite"
SQLMODEL = "SQLModel"


class Ratio(NamedTuple):
    """Ours at an operation, in parts of a peer's rate at it.

    The raw driver has no tasks: whatever ours has, it is compared with one after the other.
    """

    operation: str
    tasks: int
    peer: str
    at_least: float


RATIOS = (
    Ratio("append", 64, SQLMODEL, 60),
    Ratio("append", 64, TUTORIAL, 18),
    Ratio("append", 64, RAW, 8),
    Ratio("reserve_release", 64, SQLMODEL, 25),
    Ratio("get", 64, SQLMODEL, 60),
    Ratio("get", 64, TUTORIAL, 8),
    Ratio("page", 64, SQLMODEL, 10),
    Ratio("page", 64, TUTORIAL, 1.5),
    Ratio("append", 1, RAW, 0.6),
    Ratio("append", 1, SQLMODEL, 4),
    Ratio("get", 1, SQLMODEL, 6),
    Ratio("append_many", 1, RAW, 0.8),
)


SINGLE_STATEMENTS = ("append", "get", "page")
"""Operations that are one statement each, and so one hop to a thread and back at most."""


class Outcome(NamedTuple):
    """A goal and what was measured.

    Attributes:
        processor: the same ratio of operations in a second of processor time, where there is one.
            It leaves out all waiting, and so what others did on the machine.
    """

    what: str
    goal: str
    measured: str
    reached: bool
    processor: str | None = None


def outcomes(results: Results) -> list[Outcome]:
    """Return every goal that the results say something about."""
    found = [_ratio(results, it) for it in RATIOS]
    return [
        *(it for it in found if it is not None),
        *_processes(results),
        *_growth(results),
        *_hops(results),
    ]


def _paired_ratios(results: Results, goal: Ratio) -> tuple[float, float] | None:
    """Return the medians of the rounds' ratios: a round's two windows saw the same machine.

    The first is of the rates, the second of those in processor time.
    """
    ours = results.best(contenders.OURS, goal.operation, goal.tasks)
    theirs = results.best(goal.peer, goal.operation, 1 if goal.peer == RAW else goal.tasks)
    if ours is None or theirs is None:
        return None
    pairs = list(zip(ours.rounds, theirs.rounds, strict=True))
    return (
        statistics.median(mine.rate / other.rate for mine, other in pairs),
        statistics.median(mine.processor_rate / other.processor_rate for mine, other in pairs),
    )


def _ratio(results: Results, goal: Ratio) -> Outcome | None:
    ratios = _paired_ratios(results, goal)
    if ratios is None:
        return None
    ratio, processor = ratios
    operation = goal.operation.replace("_", " + " if goal.operation == "reserve_release" else "_")
    return Outcome(
        f"{operation}, {_tasks(goal.tasks)}",
        f"≥ {goal.at_least:g} {TIMES} {goal.peer}",
        f"{ratio:.3g} {TIMES}",
        ratio >= goal.at_least,
        f"{processor:.3g} {TIMES}",
    )


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


def _processes(results: Results) -> list[Outcome]:
    figures = {(it.processes, it.tasks): it for it in results.processes}
    if (4, 16) not in figures:
        return []
    four, one = figures[4, 16], figures[REFERENCE]
    what = "4 processes appending, 16 tasks each"
    rate = _paired(four.rates, one.rates)
    p99 = _paired(four.p99s, one.p99s)
    locked = _locked(four)
    return [
        Outcome(
            what, f"≥ 0.7 {TIMES} one process with 64 tasks", f"{rate:.2f} {TIMES}", rate >= 0.7
        ),
        Outcome(what, '0 "database is locked"', str(locked), locked == 0),
        Outcome(
            what,
            f"slowest ≥ 0.5 {TIMES} fastest",
            f"{four.fairness:.2f} {TIMES}",
            four.fairness >= 0.5,
        ),
        Outcome(what, f"p99 ≤ 4 {TIMES} the one process's", f"{p99:.2f} {TIMES}", p99 <= 4),
    ]


def _paired(some: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


def _locked(figure: ProcessFigure) -> int:
    return sum(
        count
        for samples in figure.rounds
        for sample in samples
        for error, count in sample.errors.items()
        if "locked" in error or "Busy" in error
    )


def _hops(results: Results) -> list[Outcome]:
    """Return how often ours went to a thread: counted, and so the same in every run."""
    ours = {
        (it.operation, it.tasks): it.rounds
        for it in results.operations
        if it.contender == contenders.OURS
    }
    found = []
    for operation, tasks in itertools.product(SINGLE_STATEMENTS, (1, 64)):
        samples = ours.get((operation, tasks))
        if not samples:
            continue
        hops = sum(it.hops or 0 for it in samples) / sum(it.operations for it in samples)
        # A window's last operations may be fewer than a batch, and one alone is never less.
        found.append(
            Outcome(
                f"{operation}, {_tasks(tasks)}",
                "1 hop an operation" if tasks == 1 else "≤ 1 hop a batch, of many operations",
                f"{hops:.2g}",
                hops <= 1 if tasks == 1 else hops <= 0.5,
            )
        )
    return found


def _growth(results: Results) -> list[Outcome]:
    found = []
    for prefix in ("page", "acquire"):
        figures = [it for it in results.growth if it.what.startswith(prefix)]
        if not figures:
            continue
        worst = max(figures, key=lambda it: it.ratio)
        table = "events" if prefix == "page" else "worktrees"
        found.append(
            Outcome(
                f"{worst.what}, {worst.big:,} {table} against {worst.small:,}",
                f"≤ 1.5 {TIMES} the time",
                f"{worst.ratio:.2f} {TIMES}",
                worst.ratio <= 1.5,
            )
        )
    return found
