from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from metastore import LeaseUnavailable, MetadataStore
from metastore.testing import Fault, FaultKind, Process, SimulationFailed, simulate
from metastore.testing.simulation.shrink import shrink
from metastore.testing.simulation.simulate import image_of, run_once

if TYPE_CHECKING:
    import sqlite3

SECOND = timedelta(seconds=1)


async def two_worktrees(store: MetadataStore) -> None:
    for name in ("app", "lib"):
        repository = await store.repositories.create(name=name, remote_url="u")
        await store.worktrees.create(repository_id=repository.id, path=f"/{name}")


async def work(process: Process) -> None:
    store = process.store
    for repository in (await store.repositories.list()).items:
        session = await store.sessions.create(session_type="debug", repository_id=repository.id)
        try:
            lease = await store.worktrees.acquire(
                repository.id, owner=str(process), ttl=SECOND, wait=SECOND
            )
        except LeaseUnavailable:
            continue
        async with store.transaction(lease=lease) as tx:
            await tx.events.append(session.id, "work", str(process))
            await asyncio.sleep(0.2)


def test_simulate__a_program_that_holds() -> None:
    simulate(work, prepare=two_worktrees, seeds=range(10))


def test_simulate__a_lost_update_is_found_and_made_short() -> None:
    async def count(process: Process) -> None:
        configurations = process.store.configurations
        value = await configurations.value("n")
        await asyncio.sleep(0.01)
        await configurations.set("n", value + 1)

    async def prepare(store: MetadataStore) -> None:
        await store.configurations.set("n", 0)

    def check(database: sqlite3.Connection) -> None:
        query = "SELECT value, version FROM configurations WHERE key = 'n'"
        [value, version] = database.execute(query).fetchone()
        assert int(value) == version - 1, "two processes counted the same"

    with pytest.raises(SimulationFailed, match="counted the same") as failed:
        simulate(count, prepare=prepare, check=check, seeds=[5], processes=4)
    assert failed.value.seed == 5
    assert failed.value.faults == []


def test_simulate__what_fails_only_under_a_fault_names_it() -> None:
    async def program(process: Process) -> None:
        began = process.clock()
        await asyncio.sleep(2)
        assert process.clock() >= began, "the clock went back"

    with pytest.raises(SimulationFailed, match="the clock went back") as failed:
        simulate(program, seeds=range(200), faults=[FaultKind.CLOCK, FaultKind.BUSY])
    [fault] = failed.value.faults
    assert fault.kind is FaultKind.CLOCK
    assert fault.seconds < 0
    assert f"seeds=[{failed.value.seed}]" in str(failed.value)


def test_simulate__a_program_that_waits_for_ever_hangs() -> None:
    async def program(process: Process) -> None:
        if process.number == 1:
            await process.loop.create_future()

    with pytest.raises(SimulationFailed, match="nothing will ever happen again: p1"):
        simulate(program, seeds=[0], faults=[])


def test_simulate__a_stopped_process_does_not_run() -> None:
    longest: list[float] = []

    async def program(process: Process) -> None:
        before = process.clock(), process.uptime
        await asyncio.sleep(1)
        after = process.clock(), process.uptime
        longest.append((after[0] - before[0]).total_seconds() - (after[1] - before[1]))

    simulate(program, seeds=range(20), faults=[FaultKind.STOP])
    assert max(longest) > 1


def test_stop__of_a_stopped_process_makes_the_stop_longer() -> None:
    spans: list[tuple[float, float]] = []

    async def program(process: Process) -> None:
        began, uptime = process.clock(), process.uptime
        await asyncio.sleep(0.5)
        spans.append(((process.clock() - began).total_seconds(), process.uptime - uptime))

    faults = [Fault(0.1, FaultKind.STOP, 0, 1.0), Fault(0.3, FaultKind.STOP, 0, 2.0)]
    run_once(program, seed="0", faults=faults, processes=1, image=image_of())
    [(passed, ran)] = spans
    assert passed == pytest.approx(2.3, abs=0.01)
    assert ran == pytest.approx(0.1, abs=0.01)


def test_simulate__time_costs_nothing() -> None:
    async def program(process: Process) -> None:
        await asyncio.sleep(50)

    simulate(program, seeds=[0], faults=[])


@pytest.mark.parametrize("needed", [{3}, {0, 9}, {4, 5, 6}, set(range(10)), set()])
def test_shrink__leaves_what_is_needed(needed: set[int]) -> None:
    assert shrink(range(10), lambda items: needed <= set(items)) == sorted(needed)
