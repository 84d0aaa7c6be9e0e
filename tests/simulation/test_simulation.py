"""The store in simulated processes: every interleaving and fault from a seed, judged by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from metastore.testing.simulation import Fault, FaultKind
from tests.simulation.plan import Action, Plan, plan
from tests.simulation.run import failure_of, run, story_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Record = Callable[[str, object], None]

# `python -m tests.simulation.mutants` searches the first 200 seeds for each planted fault.
SHORT = [range(first, first + 15) for first in range(0, 60, 15)]
LONG = [range(first, first + 250) for first in range(1_000, 21_000, 250)]


def hold(seeds: range, record_property: Record) -> None:
    operations = 0
    for seed in seeds:
        try:
            _, judge = run(plan(seed))
        except Exception:
            pytest.fail(story_of(seed), pytrace=False)
        operations += judge.counts["operations"]
    record_property("figures", f"{operations} operations")


@pytest.mark.parametrize("seeds", SHORT, ids=str)
def test_simulation__every_promise_holds(seeds: range, record_property: Record) -> None:
    hold(seeds, record_property)


@pytest.mark.torture
@pytest.mark.parametrize("seeds", LONG, ids=str)
def test_simulation__every_promise_holds_for_long(seeds: range, record_property: Record) -> None:
    hold(seeds, record_property)


@pytest.mark.parametrize("seed", [3, 4])
def test_run__a_seed_repeats_itself_exactly(seed: int) -> None:
    traces: list[list[str]] = [[], []]
    assert plan(seed) == plan(seed)
    # What fails repeats itself as well.
    first, second = (str(failure_of(plan(seed), trace)) for trace in traces)
    assert first == second
    assert traces[0] == traces[1]
    assert "hash" in traces[0][-1]


def test_run__seeds_differ() -> None:
    last = []
    for seed in (3, 4):
        trace: list[str] = []
        failure_of(plan(seed), trace)
        last.append(trace[-1])
    assert last[0] != last[1]


@pytest.mark.parametrize("kind", FaultKind)
def test_run__every_kind_of_fault_strikes_and_is_survived(kind: FaultKind) -> None:
    actions = [
        Action(process, client, each, 0.002, n)
        for process in (0, 1)
        for client in (0, 1)
        for n, each in enumerate(("append", "acquire", "guarded", "release") * 5)
    ]
    faults = [Fault(0.01 + process / 100, kind, process, 0.05) for process in (0, 1)]
    trace: list[str] = []
    failure = failure_of(Plan(7, (*faults, *actions)), trace)
    assert failure is None
    assert sum(f" {kind}" in line for line in trace) >= 2
