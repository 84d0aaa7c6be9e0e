"""A store belongs to the event loop that opened it."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import MetadataStore, StoreClosed, WrongLoop
from metastore.testing import Factories
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore import Session

Use = "Callable[[MetadataStore, Session], Awaitable[object]]"


async def _append(store: MetadataStore, session: Session) -> None:
    await store.events.append(session.id, "t", "foreign")


async def _append_together(store: MetadataStore, session: Session) -> None:
    await asyncio.gather(*(store.events.append(session.id, "t", "foreign") for _ in range(5)))


async def _several_statements(store: MetadataStore, session: Session) -> None:
    await store.sessions.create(session_type="docker_deployment", project_path="/foreign")


async def _get(store: MetadataStore, session: Session) -> None:
    await store.sessions.get(session.id)


async def _transact(store: MetadataStore, session: Session) -> None:
    async with store.transaction() as tx:
        await tx.events.append(session.id, "t", "foreign")


async def _follow(store: MetadataStore, session: Session) -> None:
    async for _ in store.events.follow(session.id):
        pass


async def _wait(store: MetadataStore, session: Session) -> None:
    await store._backend.wait_for_change(store._backend.changes, 0.01)


async def _acquire(store: MetadataStore, session: Session) -> None:
    assert session.repository_id is not None
    await store.worktrees.acquire(
        session.repository_id, owner="foreign", ttl=timedelta(1), wait=timedelta(1)
    )


async def _examine(store: MetadataStore, session: Session) -> None:
    await store.health(integrity=True)


async def _close(store: MetadataStore, session: Session) -> None:
    await store.close()


USES = [
    _append, _append_together, _several_statements, _get, _transact, _follow, _wait, _acquire,
    _examine, _close,
]  # fmt: skip


def _in_a_thread(use: Any, *args: Any) -> BaseException | None:
    """Run a coroutine in a loop of a thread of its own; return what it raised."""
    raised: list[BaseException | None] = []

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await use(*args)

    def run() -> None:
        try:
            asyncio.run(bounded())
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0]


@pytest.mark.parametrize("use", USES, ids=lambda it: it.__name__.strip("_"))
async def test_other_loop__is_refused_before_anything_is_queued(
    file_store: MetadataStore, use: Callable[[MetadataStore, Session], Awaitable[object]]
) -> None:
    session = await Factories(file_store).session()
    hops = [lane.hops for lane in file_store._backend._lanes]  # type: ignore[attr-defined]
    # Beside the thread, this loop runs on.
    raised = await asyncio.to_thread(_in_a_thread, use, file_store, session)
    assert isinstance(raised, WrongLoop)
    assert [lane.hops for lane in file_store._backend._lanes] == hops  # type: ignore[attr-defined]
    async with asyncio.timeout(PATIENCE):
        assert (await file_store.events.list_by_session(session.id)).items == []
        await file_store.events.append(session.id, "t", "own")
        async with file_store.transaction() as tx:
            await tx.events.append(session.id, "t", "own")
    assert len((await file_store.events.list()).items) == 2
    assert (await file_store.worktrees.count_held())[0] == 0


async def test_other_loop__inside_a_transaction_of_this_one(file_store: MetadataStore) -> None:
    session = await Factories(file_store).session()
    async with file_store.transaction() as tx:

        async def use() -> None:
            await tx.events.append(session.id, "t", "foreign")

        assert isinstance(await asyncio.to_thread(_in_a_thread, use), WrongLoop)
        await tx.events.append(session.id, "t", "own")
    [event] = (await file_store.events.list()).items
    assert event.message == "own"


async def test_other_loop__many_threads_at_once_store_nothing(file_store: MetadataStore) -> None:
    session = await Factories(file_store).session()
    errors: list[BaseException | None] = []

    async def hammer() -> None:
        refused = await asyncio.gather(
            *(_append(file_store, session) for _ in range(200)), return_exceptions=True
        )
        assert {type(error) for error in refused} == {WrongLoop}

    threads = [
        threading.Thread(target=lambda: errors.append(_in_a_thread(hammer))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    own = 0
    while any(thread.is_alive() for thread in threads):
        await file_store.events.append(session.id, "t", "own")
        own += 1
    assert errors == [None] * 4
    positions = [it.position async for it in _all_events(file_store)]
    assert len(positions) == own


async def _all_events(store: MetadataStore) -> Any:
    after: int | None = 0
    while after is not None:
        page = await store.events.list(after=after, limit=1_000)
        for event in page.items:
            yield event
        after = page.next


def test_later_loop__of_the_same_thread_is_refused(store_url: str) -> None:
    async def open_and_leave() -> tuple[MetadataStore, Session]:
        store = await MetadataStore.open(store_url)
        return store, await Factories(store).session()

    async def use_and_close(store: MetadataStore, session: Session) -> None:
        async with asyncio.timeout(PATIENCE):
            for use in USES[:-1]:
                with pytest.raises(WrongLoop):
                    await use(store, session)
            await store.close()
            with pytest.raises(StoreClosed):
                await store.sessions.get(session.id)

    asyncio.run(use_and_close(*asyncio.run(open_and_leave())))


async def test_two_stores__one_in_each_loop_work_side_by_side(
    file_store: MetadataStore, store_url: str
) -> None:
    session = await Factories(file_store).session()

    async def append() -> None:
        async with MetadataStore.open(store_url) as store:
            await asyncio.gather(
                *(store.events.append(session.id, "t", "other loop") for _ in range(50))
            )

    other = asyncio.create_task(asyncio.to_thread(_in_a_thread, append))
    for _ in range(50):
        await file_store.events.append(session.id, "t", "own")
    assert await other is None
    assert len([it async for it in _all_events(file_store)]) == 100
