from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from metastore import (
    AlreadyExists,
    MetadataStore,
    NewEvent,
    StoreBusy,
    StoreClosed,
    StoreFull,
    StoreIOError,
    StoreReadOnly,
)
from metastore.backends.sqlite import database_file
from metastore.testing import Factories, Faults
from metastore.testing.factories import TTL
from metastore.testing.faults import SHORT_WAIT
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Plant = Callable[[Faults], AbstractContextManager[None]]

FAULTS: dict[str, tuple[Plant, type[Exception]]] = {
    "busy": (lambda faults: faults.busy(), StoreBusy),
    "full": (lambda faults: faults.full(), StoreFull),
    "read_only": (lambda faults: faults.read_only(), StoreReadOnly),
    "lost_commit": (lambda faults: faults.lost_commit(), StoreIOError),
}

each_fault = pytest.mark.parametrize(("plant", "error"), FAULTS.values(), ids=FAULTS)


async def in_transaction(store: MetadataStore, name: str) -> None:
    async with store.transaction() as tx:
        await tx.repositories.create(name=name, remote_url="")


async def many(store: MetadataStore, session_id: str) -> None:
    await store.events.append_many(session_id, [NewEvent("a", "1"), NewEvent("b", "2")])


async def names(store: MetadataStore) -> list[str]:
    return [repository.name for repository in (await store.repositories.list()).items]


@each_fault
async def test_fault__every_write_is_refused_and_nothing_stored(
    store: MetadataStore, factories: Factories, faults: Faults, plant: Plant, error: type[Exception]
) -> None:
    session = await factories.session()
    before = await names(store)
    with plant(faults):
        alone = await asyncio.gather(factories.repository(), return_exceptions=True)
        batch = await asyncio.gather(
            *(factories.repository() for _ in range(3)),
            factories.session(project_path="/projects/1"),
            return_exceptions=True,
        )
        transaction = await asyncio.gather(in_transaction(store, "tx"), return_exceptions=True)
        of_many = await asyncio.gather(many(store, session.id), return_exceptions=True)
        # Reads go on.
        assert await names(store) == before
    answers = [*alone, *batch, *transaction, *of_many]
    assert [type(answer) for answer in answers] == [error] * 7
    assert await names(store) == before
    assert (await store.events.list_by_session(session.id)).items == []
    assert await store.projects.find_by_path("/projects/1") is None


@each_fault
async def test_fault__is_gone_behind_the_body(
    store: MetadataStore, factories: Factories, faults: Faults, plant: Plant, error: type[Exception]
) -> None:
    with pytest.raises(ZeroDivisionError), plant(faults):
        with pytest.raises(error):
            await factories.repository()
        raise ZeroDivisionError
    repository = await factories.repository()
    await in_transaction(store, "tx")
    assert await names(store) == [repository.name, "tx"]
    assert (await store.health(integrity=True)).problems == []


@each_fault
async def test_fault__is_gone_behind_a_cancelled_body(
    store: MetadataStore, factories: Factories, faults: Faults, plant: Plant, error: type[Exception]
) -> None:
    refused = asyncio.Event()

    async def body() -> None:
        with plant(faults):
            with pytest.raises(error):
                await factories.repository()
            refused.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(body())
    await refused.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    repository = await factories.repository()
    assert await names(store) == [repository.name]


@pytest.mark.parametrize("fault", ["busy", "full", "read_only"])
async def test_fault__health_tells_it(store: MetadataStore, faults: Faults, fault: str) -> None:
    plant, _ = FAULTS[fault]
    with plant(faults):
        health = await store.health()
    assert (health.reachable, health.writable) == (True, False)
    [problem] = health.problems
    assert problem.startswith("The database cannot be written: ")
    assert (await store.health()).healthy


async def test_faults__leave_other_errors_as_they_are(
    store: MetadataStore, factories: Factories, faults: Faults
) -> None:
    repository = await factories.repository()
    with faults.lost_commit():
        with pytest.raises(AlreadyExists):
            await factories.repository(name=repository.name)
        # Nothing was changed, so there is nothing to commit.
        async with store.transaction() as tx:
            assert (await tx.repositories.get(repository.id)) == repository


async def test_lost_commit__once_is_retried_by_a_batch_and_told_to_a_lone_caller(
    store: MetadataStore, factories: Factories, faults: Faults
) -> None:
    with faults.lost_commit(times=1):
        made = await asyncio.gather(*(factories.repository() for _ in range(3)))
    assert await names(store) == [repository.name for repository in made]
    with faults.lost_commit(times=1):
        with pytest.raises(StoreIOError):
            await factories.repository()
        await factories.repository()
    assert len(await names(store)) == 4


async def test_lost_commit__of_a_transaction_that_was_open_before(
    store: MetadataStore, faults: Faults
) -> None:
    plant = faults.lost_commit()
    with pytest.raises(StoreIOError):
        async with store.transaction() as tx:
            await tx.repositories.create(name="lost", remote_url="")
            plant.__enter__()
    plant.__exit__(None, None, None)
    assert await names(store) == []


async def test_busy__waits_as_long_as_it_is_told(
    store: MetadataStore, factories: Factories, faults: Faults
) -> None:
    with faults.busy(wait=timedelta(seconds=PATIENCE)):
        writing = asyncio.create_task(factories.repository())
        await store.repositories.list()
    repository = await asyncio.wait_for(writing, PATIENCE)
    assert await names(store) == [repository.name]
    with faults.busy():
        # Not for as long as a store waits that was told nothing.
        async with asyncio.timeout(database_file.BUSY_TIMEOUT_MS / 1000 - 1):
            with pytest.raises(StoreBusy):
                await factories.repository()


async def test_busy__leaves_the_wait_as_it_was(store: MetadataStore, faults: Faults) -> None:
    lane = store._backend._writer  # type: ignore[attr-defined]
    before = lane.busy_timeout_ms
    for wait in (1, 2):
        with faults.busy(wait=timedelta(milliseconds=wait)):
            await store.repositories.list()
        # Behind whatever the fault has posted.
        await lane.call(lambda _: None)
        assert lane.busy_timeout_ms == before


async def test_busy__not_inside_the_stores_own_transaction(
    store: MetadataStore, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metastore.backends.sqlite.planted_faults.LONGEST_WAIT", SHORT_WAIT)
    async with store.transaction() as tx:
        await tx.repositories.create(name="a", remote_url="")
        with pytest.raises(StoreBusy), faults.busy():
            raise AssertionError
    assert await names(store) == ["a"]


async def test_faults__of_a_store_in_a_file(file_store: MetadataStore) -> None:
    faults, factories = Faults(file_store), Factories(file_store)
    with faults.busy(), faults.full(), pytest.raises(StoreBusy):
        await factories.repository()
    with faults.full(), faults.lost_commit(), pytest.raises(StoreIOError):
        await factories.repository()
    await factories.repository()
    assert len(await names(file_store)) == 1


# cancelled


async def test_cancelled__tells_what_became_of_it(store: MetadataStore, faults: Faults) -> None:
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise KeyError

    assert await faults.cancelled(answer(), after=5) == (42, None)
    failed = await faults.cancelled(fail(), after=5)
    assert isinstance(failed.error, KeyError)
    assert not failed.was_cancelled
    before = await faults.cancelled(answer(), after=0)
    assert before.was_cancelled
    assert before.result is None
    assert await names(store) == []


async def test_cancelled__at_any_point_a_write_is_there_or_not_and_a_lease_given_back(
    store: MetadataStore, factories: Factories, faults: Faults
) -> None:
    worktree = await factories.worktree()
    ends = set()
    for after in range(60):

        async def take(name: str = f"repository {after}") -> None:
            await store.repositories.create(name=name, remote_url="")
            async with store.worktrees.lease(worktree.repository_id, owner=name, ttl=TTL):
                await store.repositories.find_by_name(name)

        outcome = await faults.cancelled(take(), after=after)
        ends.add(outcome.was_cancelled)
        assert outcome.was_cancelled or outcome.error is None
        # Whatever was given back has been given back.
        assert (await store.worktrees.get(worktree.id)).lease_owner is None
    assert True in ends


async def test_cancelled__may_close_the_store(faults: Faults, store: MetadataStore) -> None:
    outcome = await faults.cancelled(store.close(), after=1)
    assert outcome.was_cancelled or outcome == (None, None)
    await store.close()
    with pytest.raises(StoreClosed):
        await store.repositories.list()
