"""Run a program in several simulated processes, under one seed after another."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

from metastore.backends.sqlite.memory import MemoryFolder
from metastore.testing.simulation.faults import FaultKind, draw_faults
from metastore.testing.simulation.scheduler import Scheduler
from metastore.testing.simulation.shrink import shape_of, shrink
from metastore.testing.simulation.stage import Stage
from metastore.testing.template import write_template

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from metastore.store import MetadataStore
    from metastore.testing.simulation.faults import Fault
    from metastore.testing.simulation.process import Process, Program
    from metastore.testing.simulation.scheduler import Judge

    Prepare = Callable[[MetadataStore], Awaitable[object]]
    Check = Callable[[sqlite3.Connection], None]

__all__ = ["SimulationFailed", "image_of", "run_once", "simulate"]

FAULTS = 6
"""How many faults strike in a run, at most."""

UNTIL = 3.0
"""The time after which no fault strikes, in virtual seconds."""


class SimulationFailed(AssertionError):
    """A check failed, or a program hung, in a simulated run.

    Attributes:
        seed: the seed of the run; it fails with this seed every time.
        faults: the fewest faults with which it still fails.
    """

    def __init__(self, seed: int, faults: Sequence[Fault], trace: Sequence[str], what: str) -> None:
        self.seed = seed
        self.faults = list(faults)
        story = "\n".join(f"  {line}" for line in trace)
        super().__init__(
            f"{what}\n"
            f"seed {seed}: repeat it with simulate(…, seeds=[{seed}])\n"
            f"what happened, in virtual seconds:\n{story}"
        )


def simulate(
    program: Program,
    *,
    processes: int = 3,
    seeds: Iterable[int] = range(100),
    faults: Collection[FaultKind] = tuple(FaultKind),
    prepare: Prepare | None = None,
    check: Check | None = None,
) -> None:
    """Run `program` in each of several processes on one database, once for each seed.

    The seed decides what happens next, and which faults strike when. Time is virtual: a run takes
    milliseconds however long its programs sleep. A killed process is restarted, and its program
    runs from the start; the same goes for a program that lets a `MetastoreError`, an `OSError` or a
    `MemoryError` escape, as if a supervisor restarted it. Any other exception, such as a failed
    `assert`, fails the run.

    Args:
        program: called with its `Process`, whose `store` is open.
        processes: how many processes run it.
        seeds: one run each. A seed that failed fails again.
        faults: the kinds of faults that may strike.
        prepare: fills the database, without faults, before the first run.
        check: called after every commit with a connection to the database; raises on a violation.

    Raises:
        SimulationFailed: a check failed, or a program hung; carries the seed and the fewest faults
            that reproduce it.
    """
    with Stage(image_of(prepare)) as stage:
        _simulate(program, processes, seeds, faults, stage, check)


def _simulate(
    program: Program,
    processes: int,
    seeds: Iterable[int],
    faults: Collection[FaultKind],
    stage: Stage,
    check: Check | None,
) -> None:
    for seed in seeds:
        drawn = _draw(seed, processes, faults)
        first = _failure(program, seed, drawn, processes, stage, check)
        if first is None:
            continue
        shape = shape_of(first)
        fewest = shrink(
            drawn,
            lambda fewer, seed=seed, shape=shape: (  # type: ignore[misc]
                shape_of(_failure(program, seed, fewer, processes, stage, check)) == shape
            ),
        )
        trace: list[str] = []
        failure = _failure(program, seed, fewest, processes, stage, check, trace)
        raise SimulationFailed(seed, fewest, trace, str(failure)) from failure


def _draw(seed: int, processes: int, kinds: Collection[FaultKind]) -> list[Fault]:
    chance = random.Random(f"{seed} faults")  # noqa: S311 - no secret
    return draw_faults(
        chance,
        count=chance.randint(0, FAULTS),
        until=UNTIL,
        processes=processes,
        busy_timeout=1.0,
        kinds=kinds,
    )


def _failure(
    program: Program,
    seed: int,
    faults: Sequence[Fault],
    processes: int,
    stage: Stage,
    check: Check | None,
    trace: list[str] | None = None,
) -> Exception | None:
    """Return the failure of a run, if any."""
    try:
        run_once(
            program,
            seed=str(seed),
            faults=faults,
            processes=processes,
            stage=stage,
            judge=None if check is None else lambda scheduler: _Check(scheduler.connect(), check),
            trace=trace,
        )
    except Exception as error:  # noqa: BLE001 - whatever the program or the check raised
        return error
    return None


class _Check:
    """The judge of `simulate`: the user's `check` function."""

    def __init__(self, connection: sqlite3.Connection, check: Check) -> None:
        self._connection = connection
        self._check = check

    def committed(self, *_: object) -> None:
        self._check(self._connection)

    def ended(self) -> None:
        self._check(self._connection)


def run_once(
    program: Program,
    *,
    seed: str,
    faults: Sequence[Fault] = (),
    processes: int = 3,
    stage: Stage,
    judge: Callable[[Scheduler], Judge] | None = None,
    trace: list[str] | None = None,
) -> Scheduler:
    """Run `program` once on `stage`, which is reset; return the scheduler.

    Raises:
        AssertionError: a check failed.
    """
    chance = random.Random(f"{seed} clocks")  # noqa: S311 - no secret
    skews = [timedelta(seconds=chance.uniform(-0.02, 0.02)) for _ in range(processes)]
    stage.reset()
    scheduler = Scheduler(stage, seed, skews=skews)
    scheduler.trace = trace
    scheduler.run(program, faults, judge)
    return scheduler


def image_of(prepare: Prepare | None = None) -> bytes:
    """Return a migrated database, filled by `prepare`."""
    with MemoryFolder() as folder:
        path = folder.path / "metadata.db"
        write_template(path)
        image = path.read_bytes()
    if prepare is None:
        return image

    async def program(process: Process) -> None:
        await prepare(process.store)

    with Stage(image) as stage:
        Scheduler(stage, "prepare", skews=[timedelta(0)]).run(program)
        return stage.content()
