from __future__ import annotations

import inspect
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest

from metastore import IssuedToken, Lease, NotFound, Session, TaskLease, WorkflowTask
from metastore.repositories import repository_types
from metastore.testing import Factories

if TYPE_CHECKING:
    from metastore import MetadataStore

METHODS = [
    name
    for name, _ in inspect.getmembers(Factories, inspect.iscoroutinefunction)
    if not name.startswith("_")
]

NOT_MADE = {
    "deletions": "a mark that a large delete leaves until it is done",
    "audit_chains": "rows of what is audited make them",
    "client_sessions": "one call of its repository makes one",
    "configurations": "one call of its repository makes one",
    "lease_limits": "the migrations make its only row",
    "lease_waiters": "tickets are drawn by whoever waits",
    **dict.fromkeys(
        (
            "job_steps",
            "cost_entries",
            "budget_reservations",
            "memory_items",
            "memory_files",
            "memory_limits",
            "tool_executions",
            "message_summaries",
            "embedding_index",
            "context_metrics",
        ),
        "one call of its repository makes one from the id of a job or task",
    ),
}
"""Tables without a factory, and why."""


def table_of(made: Any) -> str:
    if isinstance(made, Lease):
        return "worktrees"
    if isinstance(made, IssuedToken):
        return "auth_tokens"
    module: str = type(made).__module__
    return module.rpartition(".")[2]


@pytest.mark.parametrize("name", METHODS)
async def test_factory__makes_one_after_the_other_from_nothing(
    store: MetadataStore, factories: Factories, name: str
) -> None:
    first, second = [await getattr(factories, name)() for _ in range(2)]
    assert first != second
    if not isinstance(first, Lease | TaskLease | IssuedToken):
        is_member = isinstance(first, WorkflowTask)
        key = (first.workflow_id, first.task_id) if is_member else (first.id,)
        assert await getattr(store, table_of(first)).get(*key) == first


async def test_factories__cover_every_table(factories: Factories) -> None:
    made = {table_of(await getattr(factories, name)()) for name in METHODS}
    tables = {repository.table for repository in repository_types()}
    assert made | NOT_MADE.keys() == tables
    assert made.isdisjoint(NOT_MADE)


def test_factories__say_what_they_return() -> None:
    assert get_type_hints(Factories.session, vars(inspect.getmodule(Session)))["return"] is Session


async def test_keywords__go_to_the_repository(store: MetadataStore, factories: Factories) -> None:
    repository = await factories.repository(name="shop", default_branch="trunk")
    worktree = await factories.worktree(repository_id=repository.id, commit_sha="c0ffee")
    lease = await factories.lease(worktree, owner="me", ttl=timedelta(seconds=5))
    session = await factories.session(repository_id=repository.id, worktree_id=worktree.id)
    command = await factories.command(session_id=session.id, argv=["true"])
    artifact = await factories.artifact(command_id=command.id, name="report")
    token = await factories.token("sessions:*", user_name="ops")
    assert (repository.name, repository.default_branch) == ("shop", "trunk")
    assert (lease.worktree_id, lease.owner) == (worktree.id, "me")
    assert lease.expires_at - lease.worktree.leased_at == timedelta(seconds=5)  # type: ignore[operator]
    assert session.worktree_id == worktree.id
    assert command.argv == ["true"]
    assert (artifact.session_id, artifact.command_id) == (session.id, command.id)
    assert (token.record.user_name, token.record.scopes) == ("ops", ["sessions:*"])
    assert len((await store.repositories.list()).items) == 1


async def test_session__is_of_a_project_if_its_path_is_given(factories: Factories) -> None:
    project = await factories.project()
    assert (await factories.session()).session_type == "debug"
    on_project = await factories.session(project_path=project.path)
    assert (on_project.session_type, on_project.project_path) == ("test_generation", project.path)
    maintenance = await factories.session(session_type="maven_maintenance")
    assert maintenance.project_path not in (None, project.path)
    lock = await factories.lock(session_id=maintenance.id)
    assert lock.session_id == maintenance.id


async def test_factories__work_in_a_transaction(store: MetadataStore) -> None:
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            session = await Factories(tx).session()
            assert await tx.sessions.get(session.id) == session
            raise ZeroDivisionError
    with pytest.raises(NotFound):
        await store.sessions.get(session.id)
