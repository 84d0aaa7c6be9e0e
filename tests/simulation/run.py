"""Run a plan, and make one that fails as short as possible."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from metastore.testing.simulation.shrink import shape_of, shrink
from metastore.testing.simulation.simulate import run_once
from tests.simulation.judge import Judge
from tests.simulation.plan import PROCESSES, Plan, plan
from tests.simulation.workload import Workload, beginning

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metastore.testing.simulation.scheduler import Scheduler


def run(plan: Plan, trace: list[str] | None = None) -> tuple[Scheduler, Judge]:
    """Run a plan; raise what did not hold."""
    image, facts = beginning()
    workload = Workload(plan, facts)

    def judge(scheduler: Scheduler) -> Judge:
        workload.judge = Judge(scheduler, facts)
        return workload.judge

    scheduler = run_once(
        workload.program,
        seed=str(plan.seed),
        faults=plan.faults,
        processes=PROCESSES,
        image=image,
        judge=judge,
        trace=trace,
    )
    return scheduler, workload.judge


def failure_of(plan: Plan, trace: list[str] | None = None) -> Exception | None:
    """Return what did not hold in a run, if anything did not."""
    try:
        run(plan, trace)
    except Exception as error:
        return error
    return None


def first_failure(seeds: Iterable[int]) -> tuple[int, Exception] | None:
    """Return the first of the seeds whose run fails, and what did not hold in it."""
    for seed in seeds:
        if (failure := failure_of(plan(seed))) is not None:
            return seed, failure
    return None


def story_of(seed: int) -> str:
    """Return the shortest run of a seed that fails, step by step."""
    whole = plan(seed)
    first = failure_of(whole)
    if first is None:
        return f"seed {seed} holds"
    shape = shape_of(first)
    steps = shrink(
        whole.steps, lambda fewer: shape_of(failure_of(Plan(seed, tuple(fewer)))) == shape
    )
    shortest = Plan(seed, tuple(steps))
    trace: list[str] = []
    last = failure_of(shortest, trace)
    lines = [
        f"seed {seed}: {first}",
        f"replay: python -m tests.simulation.run {seed}",
        f"shortest run that fails ({len(steps)} of {len(whole.steps)} steps): {last}",
        *(f"  {step}" for step in steps),
        "what happened, in virtual seconds:",
        *(f"  {line}" for line in trace),
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Replay one seed, or run a range of them: `run 17`, `run 0 200`."""
    seeds = [int(each) for each in arguments]
    if len(seeds) == 1:
        sys.stdout.write(story_of(seeds[0]) + "\n")
        return int(failure_of(plan(seeds[0])) is not None)
    began, cpu, operations, failed = time.perf_counter(), time.process_time(), 0, []
    for seed in range(*seeds):
        try:
            _, judge = run(plan(seed))
            operations += judge.counts["operations"]
        except Exception as error:
            failed.append(seed)
            sys.stdout.write(f"{seed}: {type(error).__name__}: {error}\n")
    took, used = time.perf_counter() - began, time.process_time() - cpu
    sys.stdout.write(
        f"{operations} operations, {len(failed)} of {len(range(*seeds))} seeds failed, "
        f"{took:.1f} s, {used:.1f} s of cpu, {operations / used * 60:.0f} operations a cpu-minute\n"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
