"""Large deletes in pieces: others get in, history verifies throughout, and half is finished."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from docs.schema_page import migrated
from metastore import (
    InvalidTransition,
    LeaseUnavailable,
    MetadataStore,
    NewEvent,
    NotFound,
    deletion,
)
from metastore.audit.links import Chain, Entry, Finding, Raw, State, ToolExecutionsJudge
from metastore.repositories import RepositorySet
from metastore.repositories.base import Scope
from metastore.repositories.deletions import DeletedTable
from metastore.repositories.memory_files import CHUNK_BYTES, UPLOAD_TTL
from metastore.testing import Factories

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metastore.backends.base import Values
    from metastore.statements import Call
    from metastore.testing import Clock

PIECES = {name: getattr(deletion, name) for name in ("PIECE_ROWS", "PIECE_CHUNKS", "SMALL_ROWS")}
"""The pieces that users get: most tests here make do with small ones."""

ROWS = 11
"""Related rows of each kind; a piece takes 3."""

TTL = timedelta(minutes=1)
WORKER = Path(__file__).parent.parent / "batteries" / "delete_worker.py"

each_table = pytest.mark.parametrize("table", DeletedTable)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "PIECE_ROWS", 3)
    monkeypatch.setattr(deletion, "PIECE_CHUNKS", 1)
    monkeypatch.setattr(deletion, "SMALL_ROWS", 2)


class Interrupted(Exception):
    pass


class Between:
    """The store's backend, and what happens after each operation that changes something."""

    def __init__(self, store: MetadataStore, then: Callable[[], Awaitable[None]]) -> None:
        self._backend = store._backend
        self._then = then
        self.operations = 0
        self.repositories = RepositorySet(
            Scope(self, store._clock, store._backend, store._backend.columns)
        )

    async def erase(self) -> bool:
        return await self._backend.erase()

    async def run(self, call: Call) -> list[Values]:
        rows = await self._backend.run(call)
        if call.statement.writes:
            await self._happen()
        return rows

    async def run_all(self, *calls: Call) -> list[list[Values]]:
        answers = await self._backend.run_all(*calls)
        await self._happen()
        return answers

    async def _happen(self) -> None:
        self.operations += 1
        await self._then()


async def nothing() -> None:
    pass


async def large(store: MetadataStore, table: str) -> str:
    """Make a row of `table` with `ROWS` of everything that can belong to it."""
    make = Factories(store)
    match table:
        case "sessions":
            return await large_session(store, make)
        case "jobs":
            return await large_job(store, make)
        case "tasks":
            return await large_task(store, make)
        case "workflows":
            workflow = await make.workflow()
            for _ in range(ROWS):
                await make.workflow_task(workflow_id=workflow.id)
            return workflow.id
        case _:
            worktree = await make.worktree()
            for _ in range(ROWS):
                await make.session(repository_id=worktree.repository_id, worktree_id=worktree.id)
            return worktree.id


async def large_session(store: MetadataStore, make: Factories) -> str:
    session = await make.session(project_path=(await make.project()).path)
    for number in range(ROWS):
        await make.event(session_id=session.id)
        command = await make.command(session_id=session.id)
        await make.artifact(session_id=session.id, command_id=command.id)
        await make.step(session_id=session.id, sequence=number)
        await make.checkpoint(session_id=session.id)
    await make.lock(session_id=session.id)
    return session.id


async def large_job(store: MetadataStore, make: Factories) -> str:
    job = (await make.job(budget_usd=100)).id
    await store.jobs.start(job)
    for number in range(ROWS):
        name = f"{number}"
        await store.budget_reservations.reserve(job, request_id=name, amount_usd=1, ttl=TTL)
        await store.cost_entries.record(
            job,
            request_id=f"c{name}",
            provider="p",
            model="m",
            tokens_in=1,
            tokens_out=1,
            cost_usd=1,
        )
        step = await store.job_steps.create(job_id=job, name=name, step_type="t")
        await store.message_summaries.create(
            job_id=job, step_id=step.id, role="user", summary="s", tokens=1
        )
        await store.context_metrics.create(job_id=job, step_id=step.id, tokens_final=1)
        await store.memory_items.put(job, kind="k", key=name, content={})
        size = number % 3 * CHUNK_BYTES
        await store.memory_files.write(job, path=name, data=bytes(size))
    return job


async def large_task(store: MetadataStore, make: Factories) -> str:
    """Make a task whose calls overlap: some never end, some end long after they began."""
    task = (await make.task()).id
    begun = []
    for number in range(ROWS):
        call = await store.tool_executions.start(
            task_id=task, tool_name="bash", arguments={"n": number}
        )
        begun.append(call.id)
        if number % 4 == 1:
            await store.tool_executions.complete(begun[-1], output={"n": number})
    for id_ in (begun[0], begun[10], begun[4]):
        await store.tool_executions.fail(id_, error="it broke")
    await make.workflow_task(task_id=task)
    await make.workflow_task(task_id=task)
    return task


RELATED: dict[str, dict[str, tuple[str, ...]]] = {
    "sessions": {
        "session_id": (
            "events",
            "artifacts",
            "commands",
            "steps",
            "debugger_state",
            "project_locks",
        ),
    },
    "jobs": {
        "job_id": (
            "memory_files",
            "memory_items",
            "message_summaries",
            "context_metrics",
            "job_steps",
            "cost_entries",
            "budget_reservations",
        )
    },
    "tasks": {"task_id": ("tool_executions", "workflow_tasks")},
    "workflows": {"workflow_id": ("workflow_tasks",)},
    "worktrees": {"worktree_id": ("sessions",)},
}


async def related(store: MetadataStore, table: str, id_: str) -> dict[str, int]:
    """How many rows belong to a row, by their table."""

    def count(connection: sqlite3.Connection) -> dict[str, int]:
        return {
            name: connection.execute(
                f"SELECT count(*) FROM {name} WHERE {column} = ?", (id_,)
            ).fetchone()[0]
            for column, names in RELATED[table].items()
            for name in names
        }

    backend: Any = store._backend
    counts: dict[str, int] = await backend._readers[0].call(count)
    return counts


async def rows(store: MetadataStore, table: str) -> int:
    backend: Any = store._backend
    count: int = await backend._readers[0].call(
        lambda connection: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    )
    return count


async def verified(store: MetadataStore, checkpoint: str | None = None) -> None:
    report = await store.audit_chains.verify(checkpoint=checkpoint)
    assert report.findings == []


def test_related__is_every_table_that_refers_to_the_row() -> None:
    # Uploads and limits are few, and gone with the job.
    with contextlib.closing(migrated()) as connection:
        for table, columns in RELATED.items():
            referring = {
                name
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_schema WHERE type = 'table'"
                ).fetchall()
                for _, _, referred, *_ in connection.execute(f"PRAGMA foreign_key_list({name})")
                if referred == table
            }
            named = {name for names in columns.values() for name in names}
            assert referring - {"memory_file_uploads", "memory_limits"} == named


@each_table
async def test_delete__takes_all_of_one_and_nothing_of_another(
    store: MetadataStore, table: str
) -> None:
    gone, stays = await large(store, table), await large(store, table)
    before = await related(store, table, stays)
    assert all(before.values())
    chunks = await rows(store, "memory_file_chunks")
    uploads_before = await rows(store, "memory_file_uploads")

    await getattr(store, table).delete(gone)

    assert not any((await related(store, table, gone)).values())
    assert await related(store, table, stays) == before
    with pytest.raises(NotFound):
        await getattr(store, table).get(gone)
    assert await rows(store, "memory_file_chunks") == chunks / 2
    assert await rows(store, "memory_file_uploads") == uploads_before == 0
    assert (await store.deletions.list(DeletedTable(table))).items == []
    await verified(store)
    with pytest.raises(NotFound):
        await getattr(store, table).delete(gone)


@each_table
async def test_delete__lets_others_in_and_keeps_history_whole_after_every_piece(
    file_store: MetadataStore, store_url: str, table: str
) -> None:
    gone, stays = await large(file_store, table), await large(file_store, table)
    other = await large_session(file_store, Factories(file_store))
    checkpoint = await file_store.audit_chains.checkpoint()
    appended: list[str] = []
    shrunk: list[int] = []

    # Another connection, as that of another process: it waits as long as the writer is held.
    async with MetadataStore.open(store_url) as neighbour:

        async def happen() -> None:
            await verified(neighbour)
            await verified(neighbour, checkpoint)
            event = await neighbour.events.append(other, "between", f"{len(appended)}")
            appended.append(event.id)
            shrunk.append(sum((await related(neighbour, table, gone)).values()))

        between = Between(file_store, happen)
        total = sum((await related(file_store, table, gone)).values())
        await getattr(between.repositories, table).delete(gone)
        seen = [
            event.id
            for event in (await neighbour.events.list_by_session(other, limit=1000)).items
            if event.event_type == "between"
        ]
    assert seen == appended
    assert len(appended) == between.operations >= total / 3
    assert shrunk == sorted(shrunk, reverse=True)
    # No operation removes more than a piece, of two statements at most.
    assert max(a - b for a, b in zip([total, *shrunk], shrunk, strict=False)) <= 3
    assert sum((await related(file_store, table, stays)).values()) > 0


@each_table
@pytest.mark.parametrize("after", [1, 2, 4])
async def test_delete__that_was_cut_short_is_visible_and_is_finished_by_another(
    file_store: MetadataStore, store_url: str, table: str, after: int
) -> None:
    gone, stays = await large(file_store, table), await large(file_store, table)
    before = await related(file_store, table, stays)

    async def interrupt() -> None:
        if between.operations == after:
            raise Interrupted

    between = Between(file_store, interrupt)
    with pytest.raises(Interrupted):
        await getattr(between.repositories, table).delete(gone)

    await getattr(file_store, table).get(gone)
    assert [
        it.resource_id for it in (await file_store.deletions.list(DeletedTable(table))).items
    ] == [gone]
    await verified(file_store)
    async with MetadataStore.open(store_url) as another:
        await getattr(another, table).delete(gone)
        assert not any((await related(another, table, gone)).values())
    assert (await file_store.deletions.list(DeletedTable(table))).items == []
    assert await related(file_store, table, stays) == before
    await verified(file_store)


@each_table
async def test_delete__by_two_at_once_is_done_once(store: MetadataStore, table: str) -> None:
    gone = await large(store, table)
    results = await asyncio.gather(
        *(getattr(store, table).delete(gone) for _ in range(2)), return_exceptions=True
    )
    assert None in results
    assert all(result is None or isinstance(result, NotFound) for result in results)
    assert not any((await related(store, table, gone)).values())
    assert (await store.deletions.list(DeletedTable(table))).items == []


@each_table
async def test_delete__in_a_transaction_is_undone_with_it(store: MetadataStore, table: str) -> None:
    kept = await large(store, table)
    before = await related(store, table, kept)

    async def body() -> None:
        async with store.transaction() as tx:
            await getattr(tx, table).delete(kept)
            raise Interrupted

    with pytest.raises(Interrupted):
        await body()
    assert await related(store, table, kept) == before
    assert (await store.deletions.list(DeletedTable(table))).items == []
    backend: Any = store._backend
    async with store.transaction() as tx:
        await getattr(tx, table).get(kept)
        hops = backend._writer.hops
        await getattr(tx, table).delete(kept)
        assert backend._writer.hops == hops + 1
    assert not any((await related(store, table, kept)).values())
    await verified(store)


async def test_delete__of_what_is_held_removes_nothing(store: MetadataStore) -> None:
    worktree, task = await large(store, "worktrees"), await large(store, "tasks")
    await store.worktrees.reserve(await store.worktrees.get(worktree), owner="a", ttl=TTL)
    await store.tasks.claim(owner="a", ttl=TTL)
    before = await related(store, "worktrees", worktree), await related(store, "tasks", task)
    with pytest.raises(LeaseUnavailable):
        await store.worktrees.delete(worktree)
    with pytest.raises(InvalidTransition):
        await store.tasks.delete(task)
    assert before == (
        await related(store, "worktrees", worktree),
        await related(store, "tasks", task),
    )
    assert await rows(store, "deletions") == 0
    assert (await store.worktrees.get(worktree)).state == "ready"


async def test_delete__of_a_workflow_moves_no_task_up(store: MetadataStore) -> None:
    workflow = await large(store, "workflows")
    backend: Any = store._backend

    async def changes() -> int:
        count: int = await backend._writer.call(lambda connection: connection.total_changes)
        return count

    before = await changes()
    await store.workflows.delete(workflow)
    # Each task, the workflow, and the mark that came and went.
    assert await changes() - before == ROWS + 3


async def test_delete__takes_no_more_bytes_at_a_time_than_a_piece(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "PIECE_ROWS", 1_000)
    monkeypatch.setattr(deletion, "PIECE_BYTES", 2_000)
    session = await Factories(store).session()
    for size in (10, 10, 3_000, 900, 900, 900, 10):
        await store.events.append(session.id, "e", "x" * size)
    left = []

    async def happen() -> None:
        left.append((await related(store, "sessions", session.id))["events"])

    await Between(store, happen).repositories.sessions.delete(session.id)
    # Up to the row that reaches the limit: two of 10 with the one of 3,000, then three of 900.
    assert list(dict.fromkeys(left)) == [7, 4, 1, 0]


async def _many_events(store: MetadataStore, make: Factories) -> str:
    session = await make.session()
    for _ in range(2):
        await store.events.append_many(session.id, [NewEvent("e", str(n)) for n in range(1_000)])
    return session.id


async def _large_events(store: MetadataStore, make: Factories) -> str:
    session = await make.session()
    for _ in range(8):
        await store.events.append(session.id, "e", "x" * 900_000)
    return session.id


async def _large_file(store: MetadataStore, make: Factories) -> str:
    job = (await make.job()).id
    await store.memory_files.write(job, path="f", data=bytes(24 * CHUNK_BYTES))
    return job


@pytest.mark.parametrize(
    ("fill", "table", "related_table", "most"),
    [
        pytest.param(_many_events, "sessions", "events", 500, id="rows"),
        pytest.param(_large_events, "sessions", "events", 2, id="bytes of rows"),
        pytest.param(_large_file, "jobs", "memory_file_chunks", 8, id="chunks of a file"),
    ],
)
async def test_delete__holds_the_writer_for_no_large_piece(
    store: MetadataStore,
    monkeypatch: pytest.MonkeyPatch,
    fill: Callable[[MetadataStore, Factories], Awaitable[str]],
    table: str,
    related_table: str,
    most: int,
) -> None:
    """With the pieces that users get: twice as large, they would still keep the promised time."""
    for name, size in PIECES.items():
        monkeypatch.setattr(deletion, name, size)
    make = Factories(store)
    gone, stays = await fill(store, make), await fill(store, make)
    left = [await rows(store, related_table)]

    async def happen() -> None:
        left.append(await rows(store, related_table))

    await getattr(Between(store, happen).repositories, table).delete(gone)
    assert left[-1] * 2 == left[0]
    assert max(before - after for before, after in itertools.pairwise(left)) <= most
    await getattr(store, table).get(stays)


async def test_delete__follows_the_queue_of_the_writer(store: MetadataStore) -> None:
    make = Factories(store)
    gone, other = await make.session(), await make.session()
    await store.events.append_many(gone.id, [NewEvent("e", str(n)) for n in range(300)])
    deleting = asyncio.create_task(store.sessions.delete(gone.id))
    answered = 0
    while not deleting.done():
        await store.events.append(other.id, "e", "m")
        answered += 1
    await deleting
    # 100 pieces: an append is answered with the piece behind the one that runs, at the latest.
    assert answered >= 30


async def test_follow__goes_on_while_a_session_is_deleted(store: MetadataStore) -> None:
    make = Factories(store)
    gone, other = await make.session(), await make.session()
    for number in range(ROWS):
        await store.events.append(gone.id, "e", str(number))
        await store.events.append(other.id, "e", str(number))
    expected = [it.id for it in (await store.events.list_by_session(other.id)).items]
    seen: list[str] = []
    following = store.events.follow()
    seen += [(await anext(following)).id for _ in range(4)]

    async def happen() -> None:
        if len([id_ for id_ in seen if id_ in expected]) < ROWS:
            seen.append((await anext(following)).id)

    await Between(store, happen).repositories.sessions.delete(gone.id)
    async with contextlib.aclosing(following):
        while len([id_ for id_ in seen if id_ in expected]) < ROWS:
            seen.append((await anext(following)).id)
    assert [id_ for id_ in seen if id_ in expected] == expected
    assert len(seen) == len(set(seen))
    # Positions are not used again.
    last = (await store.events.list_by_session(other.id)).items[-1].position
    assert (await store.events.append(other.id, "e", "m")).position > last


async def test_events__single_ones_stay_guarded_while_the_session_is_deleted(
    file_store: MetadataStore, store_url: str
) -> None:
    ids = [await large(file_store, "sessions") for _ in range(2)]

    async def interrupt() -> None:
        if between.operations == 2:
            raise Interrupted

    between = Between(file_store, interrupt)
    with pytest.raises(Interrupted):
        await between.repositories.sessions.delete(ids[0])
    with contextlib.closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as shell:
        for session in ids:
            with pytest.raises(sqlite3.IntegrityError, match="events are history"):
                shell.execute("DELETE FROM events WHERE session_id = ?", (session,))


async def test_sessions__that_are_being_deleted_have_ended(store: MetadataStore) -> None:
    session, job, task = [await large(store, table) for table in ("sessions", "jobs", "tasks")]

    async def interrupt() -> None:
        raise Interrupted

    for table, id_ in (("sessions", session), ("jobs", job), ("tasks", task)):
        with pytest.raises(Interrupted):
            await getattr(Between(store, interrupt).repositories, table).delete(id_)
        assert (await getattr(store, table).get(id_)).status == "cancelled"
    with pytest.raises(LeaseUnavailable):
        await store.tasks.claim(owner="a", ttl=TTL)
    ended = await Factories(store).session()
    await store.sessions.start(ended.id)
    await store.sessions.complete(ended.id)
    await store.events.append_many(ended.id, [NewEvent("e", "m")] * ROWS)
    with pytest.raises(Interrupted):
        await Between(store, interrupt).repositories.sessions.delete(ended.id)
    assert (await store.sessions.get(ended.id)).status == "completed"


@pytest.mark.parametrize("tampered", ["removed", "forged", "chain"])
async def test_delete__goes_through_where_history_was_tampered_with(
    file_store: MetadataStore, store_url: str, tampered: str
) -> None:
    session = await large(file_store, "sessions")
    with contextlib.closing(
        sqlite3.connect(store_url.removeprefix("sqlite:///"), isolation_level=None)
    ) as shell:
        match tampered:
            case "removed":
                shell.execute("DROP TRIGGER events_no_delete")
                shell.execute("DELETE FROM events WHERE position % 2 = 0")
            case "forged":
                shell.execute(
                    "INSERT INTO events (id, session_id, event_type, level, message)"
                    " SELECT replace(id, substr(id, 1, 1), 'f'), session_id, 'e', 'info', 'm'"
                    " FROM events"
                )
            case "chain":
                shell.execute("DELETE FROM audit_chains")
    await file_store.sessions.delete(session)
    assert not any((await related(file_store, "sessions", session)).values())


def test_check__a_row_inside_the_purged_part_was_inserted() -> None:
    task = "0" * 36
    begun = (b"task", b"id", b"bash", b"{}", None, b"running", None, b"now", None, None)
    ended = (b"task", b"id", b"bash", b"{}", b"1", b"completed", None, b"now", b"now", 1)
    state = State(length=6, purged=6, last="6:x;purged=6;at=now", base="6:x", purged_at="now")
    entries = [Entry(2, "chain", 0, 1, 0, "now"), Entry(3, "purge", 0, 6, 6, "now")]
    chain = Chain(state, [], entries)

    def verdict(rows: list[Raw]) -> Finding | None:
        judge = ToolExecutionsJudge(task, chain)
        judge.add(rows)
        return judge.verdict(chain)

    assert verdict([]) is None
    for row in (
        (*begun, 2, b"h", None, None),
        (*ended, 2, b"h", 3, b"h"),
        (*ended, 2, b"h", 9, b"h"),
    ):
        finding = verdict([row])
        assert finding is not None
        assert finding.row_id == "id"


# Files.


async def test_memory_files__a_deleted_file_is_gone_before_its_bytes_are(
    store: MetadataStore,
) -> None:
    make = Factories(store)
    job, other = (await make.job()).id, (await make.job()).id
    for each in (job, other):
        await store.memory_files.write(each, path="f", data=bytes(6 * CHUNK_BYTES))
    left: list[int] = []

    async def happen() -> None:
        with pytest.raises(NotFound):
            await store.memory_files.get(job, path="f")
        left.append(await rows(store, "memory_file_chunks"))

    await Between(store, happen).repositories.memory_files.delete(job, path="f")
    assert list(dict.fromkeys(left)) == [10, 9, 8, 7, 6, 5]
    assert await rows(store, "memory_file_uploads") == 0
    assert (await store.memory_files.read(other, path="f")).size_bytes == 6 * CHUNK_BYTES


@pytest.mark.parametrize("how", ["delete", "replace", "abort"])
async def test_memory_files__what_nobody_lived_to_remove_is_swept(
    store: MetadataStore, clock: Clock, how: str
) -> None:
    make = Factories(store)
    job, other = (await make.job()).id, (await make.job()).id
    if how != "abort":
        await store.memory_files.write(job, path="f", data=bytes(4 * CHUNK_BYTES))
    dead = False

    async def die() -> None:
        if dead or (how != "abort" and await rows(store, "memory_file_chunks") == 2):
            raise asyncio.CancelledError

    async def produce() -> Any:
        nonlocal dead
        for _ in range(4):
            yield bytes(CHUNK_BYTES)
        dead = True
        raise Interrupted

    files = Between(store, die).repositories.memory_files
    with pytest.raises(Interrupted if how == "abort" else asyncio.CancelledError):
        match how:
            case "delete":
                await files.delete(job, path="f")
            case "replace":
                await files.write(job, path="f", data=b"small")
            case "abort":
                await files.write(job, path="f", data=produce())
    assert await rows(store, "memory_file_chunks") >= 2
    # A day later somebody else uploads to another job.
    clock.advance(UPLOAD_TTL + TTL)
    await store.memory_files.write(other, path="g", data=bytes(2 * CHUNK_BYTES))
    assert await rows(store, "memory_file_chunks") == 1
    assert await rows(store, "memory_file_uploads") == 0
    paths = [it.path for it in (await store.memory_files.list_by_job(job)).items]
    assert paths == (["f"] if how == "replace" else [])


async def test_memory_files__an_upload_ends_when_its_job_is_deleted(store: MetadataStore) -> None:
    job = await large(store, "jobs")
    went_on = False

    async def cut() -> None:
        if await rows(store, "memory_file_uploads WHERE discarded_at IS NULL") == 0:
            raise Interrupted

    async def produce() -> Any:
        nonlocal went_on
        for _ in range(3):
            yield bytes(CHUNK_BYTES)
        with pytest.raises(Interrupted):
            await Between(store, cut).repositories.jobs.delete(job)
        # The upload is discarded and still there: it takes no chunk more.
        assert await rows(store, "memory_file_uploads") > 0
        yield bytes(CHUNK_BYTES)
        went_on = True

    with pytest.raises(NotFound):
        await store.memory_files.write(job, path="new", data=produce())
    assert not went_on
    assert await rows(store, "memory_file_chunks") == 0
    assert await rows(store, "memory_file_uploads") == 0
    await store.jobs.delete(job)


# Other long operations.


async def test_close_stale__closes_in_pieces_and_spares_whom_it_hears_from(
    store: MetadataStore, clock: Clock
) -> None:
    opened = [
        await store.client_sessions.open(client_id=f"c{n}", connection_type="websocket")
        for n in range(ROWS)
    ]
    clock.advance(2 * TTL)
    fresh = await store.client_sessions.open(client_id="d", connection_type="websocket")
    active: list[int] = []

    async def happen() -> None:
        if not active:
            await store.client_sessions.heartbeat(opened[-1].id)
        active.append(len((await store.client_sessions.list_active()).items))

    between = Between(store, happen)
    assert await between.repositories.client_sessions.close_stale(older_than=TTL) == ROWS - 1
    assert active == [9, 6, 3, 2, 2]
    assert {it.id for it in (await store.client_sessions.list_active()).items} == {
        fresh.id,
        opened[-1].id,
    }


# A process that is killed.


def test_delete__is_finished_by_another_process_after_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/metadata.db"

    async def set_up() -> tuple[str, str]:
        async with MetadataStore.open(url, migrate=True) as store:
            sessions = [await Factories(store).session() for _ in range(2)]
            for session in sessions:
                await store.events.append_many(
                    session.id, [NewEvent("e", str(n)) for n in range(1_000)]
                )
            return sessions[0].id, sessions[1].id

    gone, stays = asyncio.run(set_up())
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), url, gone], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert worker.stdout is not None
        # Each line is a piece that was committed; it does not wait for us.
        assert [worker.stdout.readline() for _ in range(3)] == [b"piece\n"] * 3
    finally:
        worker.kill()
        _, errors = worker.communicate()
    assert errors == b""

    async def finish() -> None:
        async with MetadataStore.open(url) as store:
            left = (await related(store, "sessions", gone))["events"]
            assert 0 < left < 1_000
            assert (await store.sessions.get(gone)).status == "cancelled"
            assert [it.resource_id for it in (await store.deletions.list("sessions")).items] == [
                gone
            ]
            chain = await store.audit_chains.get("events", gone)
            assert chain.purged == 1_000 - left
            await verified(store)
            await store.sessions.delete(gone)
            assert await rows(store, "deletions") == 0
            assert (await related(store, "sessions", stays))["events"] == 1_000
            await verified(store)

    asyncio.run(finish())
