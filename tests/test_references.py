"""Rows refer to rows of the same session, job, project or repository; the database sees to it."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from metastore import InvalidReference, InvalidValue, MetadataStore
from metastore.codec import new_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from metastore import Transaction
    from metastore.testing import Factories


class World(NamedTuple):
    """Two of everything: what `ours` refers to may not be of `theirs`."""

    store: MetadataStore | Transaction
    ours: dict[str, str]
    theirs: dict[str, str]


@pytest.fixture
async def world(store: MetadataStore, factories: Factories) -> World:
    sides = []
    for _ in range(2):
        worktree = await factories.worktree()
        project = await factories.project()
        session = await factories.session(repository_id=worktree.repository_id)
        workflow = await factories.session(project_path=project.path)
        command = await factories.command(session_id=session.id)
        job = await factories.job()
        step = await store.job_steps.create(job_id=job.id, name="n", step_type="t")
        sides.append(
            {
                "repository": worktree.repository_id,
                "worktree": worktree.id,
                "project": project.id,
                "session": session.id,
                "workflow": workflow.id,
                "command": command.id,
                "job": job.id,
                "step": step.id,
            }
        )
    return World(store, *sides)


def create_session(world: World, other: dict[str, str]) -> Awaitable[object]:
    return world.store.sessions.create(
        session_type="debug", repository_id=world.ours["repository"], worktree_id=other["worktree"]
    )


def start_session(world: World, other: dict[str, str]) -> Awaitable[object]:
    return world.store.sessions.start(world.ours["session"], worktree_id=other["worktree"])


def create_artifact(world: World, other: dict[str, str]) -> Awaitable[object]:
    return world.store.artifacts.create(
        session_id=world.ours["session"],
        command_id=other["command"],
        artifact_type="log",
        name="n",
        content_path="p",
    )


def create_summary(world: World, other: dict[str, str]) -> Awaitable[object]:
    return world.store.message_summaries.create(
        job_id=world.ours["job"], step_id=other["step"], role="user", summary="s", tokens=1
    )


def create_metric(world: World, other: dict[str, str]) -> Awaitable[object]:
    return world.store.context_metrics.create(
        job_id=world.ours["job"], step_id=other["step"], tokens_final=1
    )


def lock_project(world: World, other: dict[str, str]) -> Awaitable[object]:
    return world.store.project_locks.acquire(
        project_id=world.ours["project"],
        session_id=other["workflow"],
        ttl=timedelta(minutes=1),
    )


REFERENCES: dict[Callable[[World, dict[str, str]], Awaitable[object]], tuple[str, str]] = {
    create_session: ("sessions", "worktree_id"),
    start_session: ("sessions", "worktree_id"),
    create_artifact: ("artifacts", "command_id"),
    create_summary: ("message_summaries", "step_id"),
    create_metric: ("context_metrics", "step_id"),
    lock_project: ("project_locks", "session_id"),
}
UNKNOWN = dict.fromkeys(("worktree", "command", "step", "workflow"), new_id())


@pytest.mark.parametrize("write", REFERENCES, ids=lambda it: it.__name__)
@pytest.mark.parametrize("in_transaction", [False, True], ids=["alone", "in a transaction"])
async def test_reference__to_a_row_of_another_parent_is_refused(
    world: World, write: Callable[..., Awaitable[object]], in_transaction: bool
) -> None:
    table, column = REFERENCES[write]
    with pytest.raises(InvalidValue) as refused:
        if in_transaction:
            assert isinstance(world.store, MetadataStore)
            async with world.store.transaction() as tx:
                await write(world._replace(store=tx), world.theirs)
        else:
            await write(world, world.theirs)
    assert (refused.value.table, refused.value.column) == (table, column)
    with pytest.raises(InvalidReference) as missing:
        await write(world, UNKNOWN)
    assert (missing.value.table, missing.value.column) == (table, column)
    row: Any = await write(world, world.ours)
    assert row[column] in world.ours.values()


async def test_reference__a_workflow_takes_any_worktree(world: World, factories: Factories) -> None:
    for side in (world.ours, world.theirs):
        project = await factories.project()
        session = await factories.session(project_path=project.path, worktree_id=side["worktree"])
        assert session.worktree_id == side["worktree"]


BY_HAND = {
    "sessions": "UPDATE sessions SET worktree_id = :worktree WHERE repository_id <> :repository",
    "sessions, the other way": (
        "UPDATE sessions SET repository_id = :repository"
        " WHERE worktree_id IS NOT NULL AND repository_id <> :repository"
    ),
    "artifacts": "UPDATE artifacts SET command_id = :command WHERE session_id <> :session",
    "artifacts, the other way": (
        "UPDATE artifacts SET session_id = :session WHERE session_id <> :session"
    ),
    "message_summaries": "UPDATE message_summaries SET step_id = :step WHERE job_id <> :job",
    "message_summaries, the other way": "UPDATE message_summaries SET job_id = :job",
    "context_metrics": "UPDATE context_metrics SET step_id = :step WHERE job_id <> :job",
    "context_metrics, the other way": "UPDATE context_metrics SET job_id = :job",
}


@pytest.mark.parametrize("statement", BY_HAND.values(), ids=BY_HAND)
async def test_reference__sql_by_hand_is_refused_too(world: World, statement: str) -> None:
    for write in (create_session, create_artifact, create_summary, create_metric):
        await write(world, world.ours)
    path: Path = world.store._backend.path  # type: ignore[union-attr]
    with (
        contextlib.closing(sqlite3.connect(path)) as connection,
        pytest.raises(sqlite3.IntegrityError, match="must be a"),
    ):
        connection.execute(statement, world.theirs)


async def test_reference__goes_when_its_row_is_deleted(world: World) -> None:
    artifact: Any = await create_artifact(world, world.ours)
    path: Path = world.store._backend.path  # type: ignore[union-attr]
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM commands WHERE id = :command", world.ours)
    assert (await world.store.artifacts.get(artifact.id)).command_id is None
