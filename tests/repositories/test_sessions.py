from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidTransition,
    InvalidValue,
    MetadataStore,
    NotFound,
    Repository,
    Session,
    SessionMode,
    SessionStatus,
    SessionType,
)
from metastore.codec import new_id
from metastore.testing.template import write_template
from tests.repositories.states import check_pair, reach

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Clock

VERBS: dict[str, Any] = {
    "start": lambda table, id_: table.start(id_),
    "pause": lambda table, id_: table.pause(id_),
    "resume": lambda table, id_: table.resume(id_),
    "complete": lambda table, id_: table.complete(id_, result={"coverage": 0.85}),
    "fail": lambda table, id_: table.fail(id_, error_message="it broke"),
    "cancel": lambda table, id_: table.cancel(id_),
}
WANTED = {
    "start": "in_progress", "pause": "paused", "resume": "in_progress",
    "complete": "completed", "fail": "failed", "cancel": "cancelled",
}  # fmt: skip
PATHS: dict[str, tuple[str, ...]] = {
    "pending": (),
    "in_progress": ("start",),
    "paused": ("start", "pause"),
    "completed": ("start", "complete"),
    "failed": ("fail",),
    "cancelled": ("cancel",),
}
ALLOWED = {
    ("pending", "start"), ("pending", "fail"), ("pending", "cancel"),
    ("in_progress", "pause"), ("in_progress", "complete"), ("in_progress", "fail"),
    ("in_progress", "cancel"),
    ("paused", "resume"), ("paused", "fail"), ("paused", "cancel"),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", PATHS)
async def test_status__every_state_and_verb(
    store: MetadataStore, session: Session, clock: Clock, state: str, verb: str
) -> None:
    row = await reach(store.sessions, VERBS, PATHS[state], session.id)
    becomes = WANTED[verb] if (state, verb) in ALLOWED else None
    moved = await check_pair(store.sessions, VERBS, row, verb, becomes, WANTED[verb])
    if becomes in ("completed", "failed", "cancelled"):
        assert moved.completed_at == moved.updated_at
        assert moved.result == ({"coverage": 0.85} if verb == "complete" else None)
        assert moved.error_message == ("it broke" if verb == "fail" else None)
    elif becomes:
        assert moved.completed_at is None


async def test_create__debug_and_workflow(store: MetadataStore, repository: Repository) -> None:
    debug = await store.sessions.create(
        session_type="debug",
        repository_id=repository.id,
        mode="autonomous",
        config={"timeout_seconds": 300},
        metadata={"client": {"name": "ä"}},
    )
    assert debug.session_type is SessionType.DEBUG
    assert debug.status is SessionStatus.PENDING
    assert debug.mode is SessionMode.AUTONOMOUS
    assert (debug.config, debug.metadata) == ({"timeout_seconds": 300}, {"client": {"name": "ä"}})
    assert await store.sessions.get(debug.id) == debug
    for kind in ("maven_maintenance", "test_generation", "docker_deployment"):
        made = await store.sessions.create(session_type=kind, project_path="/p")
        assert (made.session_type, made.project_path, made.mode) == (kind, "/p", "interactive")


async def test_create__registers_its_project_and_touches_it_later(store: MetadataStore) -> None:
    first = await store.sessions.create(session_type="test_generation", project_path="/p")
    project = await store.projects.find_by_path("/p")
    assert project is not None
    assert project.created_at == project.updated_at == first.created_at
    second = await store.sessions.create(session_type="test_generation", project_path="/p")
    touched = await store.projects.get(project.id)
    assert (touched.created_at, touched.updated_at) == (first.created_at, second.created_at)


async def test_create__a_refused_session_registers_no_project(store: MetadataStore) -> None:
    with pytest.raises(InvalidReference) as error:
        await store.sessions.create(
            session_type="test_generation", project_path="/new", worktree_id=new_id()
        )
    assert (error.value.column, error.value.references) == ("worktree_id", "worktrees")
    assert await store.projects.find_by_path("/new") is None


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ({"session_type": "debug"}, "repository_id"),
        ({"session_type": "debug", "project_path": "/p"}, "repository_id"),
        ({"session_type": "test_generation"}, "project_path"),
        ({"session_type": "unknown", "project_path": "/p"}, "session_type"),
        ({"session_type": "test_generation", "project_path": "/p", "mode": "fast"}, "mode"),
        ({"session_type": "test_generation", "project_path": ""}, "project_path"),
        ({"session_type": "test_generation", "project_path": "/" * 4097}, "project_path"),
        ({"session_type": "test_generation", "project_path": "/p", "config": []}, "config"),
        (
            {"session_type": "test_generation", "project_path": "/p", "config": {"x": math.nan}},
            "config",
        ),
        ({"session_type": "test_generation", "project_path": "/p", "id": "x"}, "id"),
    ],
)
async def test_create__refusals_store_nothing(
    store: MetadataStore, values: dict[str, Any], column: str
) -> None:
    with pytest.raises(InvalidValue) as error:
        await store.sessions.create(**values)
    assert error.value.column == column
    assert (await store.sessions.list_recent()).items == []
    assert (await store.projects.list()).items == []


async def test_create__repeated_under_its_id_is_refused_and_touches_nothing(
    store: MetadataStore,
) -> None:
    own = new_id()
    made = await store.sessions.create(session_type="test_generation", project_path="/p", id=own)
    assert made.id == own
    with pytest.raises(AlreadyExists) as taken:
        await store.sessions.create(session_type="docker_deployment", project_path="/p", id=own)
    assert (taken.value.table, taken.value.columns) == ("sessions", ("id",))
    assert await store.sessions.get(own) == made
    project = await store.projects.find_by_path("/p")
    assert project is not None
    assert project.updated_at == made.created_at


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"session_type": "debug"}, "sessions_debug_needs_repository"),
        ({"session_type": "test_generation"}, "sessions_workflow_needs_project"),
    ],
)
def test_create__is_checked_by_the_database_too(
    tmp_path: Path, columns: dict[str, str], constraint: str
) -> None:
    write_template(tmp_path / "x.db")
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as connection,
        pytest.raises(sqlite3.IntegrityError, match=constraint),
    ):
        connection.execute(
            "INSERT INTO sessions (id, session_type) VALUES (:id, :session_type)",
            {"id": new_id(), **columns},
        )


async def test_complete__refuses_a_result_that_is_no_json(
    store: MetadataStore, session: Session
) -> None:
    started = await store.sessions.start(session.id)
    for result in (math.nan, {"x": object()}, (1,)):
        with pytest.raises(InvalidValue) as refused:
            await store.sessions.complete(session.id, result=result)
        assert (refused.value.table, refused.value.column) == ("sessions", "result")
    assert await store.sessions.get(session.id) == started


async def test_start__one_of_many_racers_begins_it(store: MetadataStore, session: Session) -> None:
    results = await asyncio.gather(
        *(store.sessions.start(session.id) for _ in range(8)), return_exceptions=True
    )
    [started] = [result for result in results if isinstance(result, Session)]
    lost = [result for result in results if isinstance(result, InvalidTransition)]
    assert len(lost) == 7
    assert all(error.row == started for error in lost)


async def test_get__of_nothing(store: MetadataStore) -> None:
    unknown = new_id()
    with pytest.raises(NotFound) as missing:
        await store.sessions.get(unknown)
    assert (missing.value.table, missing.value.key) == ("sessions", unknown)


async def test_lists__are_walked_newest_first(store: MetadataStore, repository: Repository) -> None:
    async with store.transaction() as tx:
        # One transaction, one time: only the id tells them apart.
        made = [
            await tx.sessions.create(session_type="test_generation", project_path=f"/{n % 2}")
            for n in range(7)
        ]
    started = [await store.sessions.start(row.id) for row in made[:3]]

    async def walk(read: Any) -> list[str]:
        ids, after = [], None
        while True:
            page = await read(after=after, limit=2)
            ids += [row.id for row in page.items]
            after = page.next
            if after is None:
                return ids

    newest = [row.id for row in reversed(made)]
    sessions = store.sessions
    assert await walk(sessions.list_recent) == newest
    assert await walk(lambda **page: sessions.list_by_status("pending", **page)) == newest[:4]
    assert await walk(lambda **page: sessions.list_by_status("in_progress", **page)) == [
        row.id for row in reversed(started)
    ]
    assert await walk(lambda **page: sessions.list_by_project("/0", **page)) == newest[0::2]
    assert await walk(sessions.list_active) == newest[::-1]
    with pytest.raises(InvalidValue):
        await sessions.list_recent(after="nonsense")
    await sessions.pause(started[0].id)
    await sessions.complete(started[1].id)
    assert await walk(sessions.list_active) == [row.id for row in made[2:]]
    for limit in (0, 1001, True, "5"):
        with pytest.raises(InvalidValue):
            await sessions.list_recent(limit=limit)  # type: ignore[arg-type]


async def test_open__is_what_has_not_ended(store: MetadataStore, repository: Repository) -> None:
    worktree = await store.worktrees.create(repository_id=repository.id, path="/w")
    issued = await store.auth_tokens.issue(user_name="ada", name="ci", scopes=["sessions:write"])
    made = [
        await store.sessions.create(
            session_type="debug",
            repository_id=repository.id,
            worktree_id=worktree.id,
            auth_token_id=issued.record.id,
        )
        for _ in range(5)
    ]
    await store.sessions.create(session_type="debug", repository_id=repository.id)
    started = await store.sessions.start(made[1].id)
    await store.sessions.start(made[2].id)
    paused = await store.sessions.pause(made[2].id)
    await store.sessions.cancel(made[3].id)
    await store.sessions.fail(made[4].id, error_message="it broke")
    found = await store.sessions.list_open_by_worktree(worktree.id)
    assert sorted(found, key=lambda row: row.id) == [made[0], started, paused]
    assert await store.sessions.count_open_by_auth_token(issued.record.id) == 3
    assert await store.sessions.list_open_by_worktree(new_id()) == []
    assert await store.sessions.count_open_by_auth_token(new_id()) == 0


async def test_delete__takes_everything_with_it(
    store: MetadataStore, repository: Repository
) -> None:
    project = await store.projects.ensure(path="/p")
    session = await store.sessions.create(
        session_type="debug", repository_id=repository.id, project_path=project.path
    )
    await store.events.append(session.id, "e", "m")
    step = await store.steps.create(session_id=session.id, name="s")
    command = await store.commands.create(
        session_id=session.id, argv=["true"], working_directory="/"
    )
    artifact = await store.artifacts.create(
        session_id=session.id,
        command_id=command.id,
        artifact_type="log",
        name="out.log",
        content_path="/a/out.log",
    )
    checkpoint = await store.debugger_state.checkpoint(session.id, {})
    await store.project_locks.acquire(
        project_id=project.id, session_id=session.id, ttl=timedelta(minutes=1)
    )
    await store.sessions.delete(session.id)
    for get, key in (
        (store.sessions.get, session.id),
        (store.steps.get, step.id),
        (store.commands.get, command.id),
        (store.artifacts.get, artifact.id),
        (store.debugger_state.get, checkpoint.id),
        (store.sessions.delete, session.id),
    ):
        with pytest.raises(NotFound):
            await get(key)
    assert (await store.events.list_by_session(session.id)).items == []
    assert await store.project_locks.find_by_project(project.id) is None


async def test_projects__with_sessions_are_kept(store: MetadataStore) -> None:
    await store.sessions.create(session_type="test_generation", project_path="/p")
    project = await store.projects.ensure(path="/p")
    with pytest.raises(InvalidReference) as error:
        await store.projects.delete(project.id)
    assert (error.value.table, error.value.references) == ("sessions", "projects")


async def test_updated_at__is_stamped_for_a_hand_written_update(
    store: MetadataStore, session: Session
) -> None:
    path = store._backend.path  # type: ignore[attr-defined]
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE sessions SET error_message = 'by hand'")
    connection.close()
    row = await store.sessions.get(session.id)
    assert (row.error_message, row.created_at) == ("by hand", session.created_at)
    assert row.updated_at != session.updated_at


async def test_start__notes_the_worktree_that_was_found_for_it(
    store: MetadataStore, repository: Repository, session: Session
) -> None:
    worktree = await store.worktrees.create(repository_id=repository.id, path="/w")
    started = await store.sessions.start(session.id, worktree_id=worktree.id)
    assert started.worktree_id == worktree.id
    other = await store.sessions.create(session_type="debug", repository_id=repository.id)
    with pytest.raises(InvalidReference):
        await store.sessions.start(other.id, worktree_id=new_id())
    assert await store.sessions.get(other.id) == other
