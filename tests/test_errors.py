"""Errors travel, as copies and pickles, and what they say is a sentence."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from metastore import errors
from metastore.errors import InvalidReference, InvalidTransition, LeaseLost
from metastore.repositories import repository_types

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from metastore.errors import MetastoreError
    from metastore.store import MetadataStore

MINUTE = timedelta(minutes=1)
UNKNOWN = "0190a5a4-7f62-7000-8000-000000000000"

KINDS = [getattr(errors, name) for name in errors.__all__]


def made(kind: type[MetastoreError]) -> MetastoreError:
    """Make an error of a kind, with something for each of its parameters."""
    parameters = inspect.signature(kind.__init__).parameters
    if "self" not in parameters or kind.__init__ is Exception.__init__:
        return kind("what happened")
    values: dict[str, Any] = {}
    for name, parameter in list(parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return kind("what happened")
        values[name] = _value(name)
    return kind(**values)


def _value(name: str) -> Any:
    if name in ("row", "worktree", "lock", "job", "parent"):
        return SimpleNamespace(
            id="i", session_id="s", owner="o", status="running",
            lease_owner="o", lease_expires_at=datetime(2026, 1, 1, tzinfo=UTC),
            expires_at=datetime(2026, 1, 1, tzinfo=UTC), state="ready", path="/p",
        )  # fmt: skip
    if name == "columns":
        return ("a", "b")
    if name.startswith("is_"):
        return True
    return name


def same(one: MetastoreError, other: MetastoreError) -> None:
    assert type(other) is type(one)
    assert other is not one
    assert str(other) == str(one)
    assert vars(other).keys() == vars(one).keys()
    assert {k: v for k, v in vars(other).items() if isinstance(v, str | bool)} == {
        k: v for k, v in vars(one).items() if isinstance(v, str | bool)
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors__are_copied_and_pickled_with_their_facts(kind: type[MetastoreError]) -> None:
    error = made(kind)
    same(error, copy.copy(error))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        same(error, pickle.loads(pickle.dumps(error, protocol)))


def _raise(name: str) -> None:
    raise made(getattr(errors, name))


def test_errors__of_a_worker_process_reach_the_caller_and_leave_the_pool_whole() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for kind in (errors.NotFound, errors.LeaseUnavailable, errors.StoreReplaced):
            with pytest.raises(kind):
                pool.submit(_raise, kind.__name__).result(60)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            InvalidTransition("sessions", "completed", "running", None),
            "a completed session cannot become running",
        ),
        (
            InvalidTransition("sessions", "in_progress", "in_progress", None),
            "the session is already active",
        ),
        (
            InvalidTransition("job_steps", "in_progress", "timeout", None),
            "an active job step cannot become timed-out",
        ),
        (
            InvalidTransition("auth_tokens", "expired", "replaced", None),
            "an expired auth token cannot be replaced",
        ),
        (
            InvalidTransition("tasks", "running", "deleted", None),
            "a running task cannot be deleted",
        ),
        (
            InvalidTransition("jobs", "pending", "reserving", None, is_work=True),
            "a pending job cannot reserve budget",
        ),
        (
            LeaseLost("worktrees", "i", 7),
            "the lease on worktree i with fencing number 7 is no longer held",
        ),
        (LeaseLost("tasks", "i", 7), "the claim on task i with fencing number 7 is no longer held"),
        (
            LeaseLost("project_locks", "i", 7),
            "the lock of project i with fencing number 7 is no longer held",
        ),
        (
            InvalidReference("steps", "session_id", "sessions"),
            "steps.session_id refers to a row of sessions that does not exist",
        ),
        (
            InvalidReference("steps", "session_id", "sessions", is_needed=True),
            "the row of sessions is still referenced by steps.session_id",
        ),
        (
            InvalidReference("steps"),
            "a row that steps refers to does not exist, or a row of it is still in use",
        ),
    ],
    ids=str,
)
def test_message__is_a_sentence(error: MetastoreError, says: str) -> None:
    assert str(error) == says


async def test_message__of_a_parent_that_refuses_work_names_parent_and_work(
    store: MetadataStore,
) -> None:
    repository = await store.repositories.create(name="app", remote_url="u")
    worktree = await store.worktrees.create(repository_id=repository.id, path="/w")
    await store.worktrees.retire(worktree.id)
    other = await store.worktrees.create(repository_id=repository.id, path="/v")
    project = await store.projects.ensure(path="/p")
    session = await store.sessions.create(session_type="test_generation", project_path="/p")
    await store.sessions.cancel(session.id)
    started = await store.sessions.create(session_type="test_generation", project_path="/p")
    await store.sessions.start(started.id)
    pending = await store.jobs.create(task="t", repo_owner="o", repo_name="r")
    ended = await store.jobs.create(task="t", repo_owner="o", repo_name="r")
    await store.jobs.fail(ended.id)
    task = await store.tasks.create(title="t", task_type="t")
    await store.tasks.start(task.id)
    await store.tasks.fail(task.id, error="e")
    workflow = await store.workflows.create(name="w", definition={})
    await store.workflows.archive(workflow.id)
    retired = await store.worktrees.get(worktree.id)
    moved = await store.worktrees.reserve(other, owner="o", ttl=MINUTE)
    free = await store.worktrees.release(moved)
    refusals: dict[str, Awaitable[Any]] = {
        "a cancelled session cannot start a step": store.steps.create(
            session_id=session.id, name="s"
        ),
        "a cancelled session cannot run a command": store.commands.create(
            session_id=session.id, argv=["a"], working_directory="/"
        ),
        "a cancelled session cannot take a checkpoint": store.debugger_state.checkpoint(
            session.id, {}
        ),
        "a cancelled session cannot lock its project": store.project_locks.acquire(
            project_id=project.id, session_id=session.id, ttl=MINUTE
        ),
        "a cancelled session cannot become active": store.sessions.start(session.id),
        "the session is already active": store.sessions.start(started.id),
        "a pending job cannot reserve budget": store.budget_reservations.reserve(
            pending.id, request_id="r", amount_usd="1", ttl=MINUTE
        ),
        "a pending job cannot become paused": store.jobs.pause(pending.id),
        "a failed job cannot start a step": store.job_steps.create(
            job_id=ended.id, name="s", step_type="t"
        ),
        "a failed task cannot call a tool": store.tool_executions.start(
            task_id=task.id, tool_name="t"
        ),
        "an archived workflow cannot add a task": store.workflow_tasks.add(workflow.id, task.id),
        "a retired worktree cannot be used by a session": store.sessions.create(
            session_type="debug", repository_id=repository.id, worktree_id=worktree.id
        ),
        f"worktree {worktree.id} is retired": store.worktrees.reserve(
            retired, owner="o", ttl=MINUTE
        ),
        f"worktree {other.id} has changed since it was read: it is free, and at "
        f"version {free.version}": store.worktrees.reserve(other, owner="o", ttl=MINUTE),
        "the row of projects is still referenced by sessions.project_path": store.projects.delete(
            project.id
        ),
        "steps.session_id refers to a row of sessions that does not exist": store.steps.create(
            session_id=UNKNOWN, name="s"
        ),
    }
    said = {}
    for says, refused in refusals.items():
        with pytest.raises(errors.MetastoreError) as caught:
            await refused
        said[says] = str(caught.value)
    assert said == {says: says for says in refusals}


def kinds_of_work() -> set[str]:
    """Return the kinds of work that repositories name when a parent refuses it."""
    found = set()
    for repository in repository_types():
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[repository.__module__]))):
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func) == "self._refusal" or any(
                keyword.arg == "is_work" for keyword in node.keywords
            ):
                found.add(ast.literal_eval(node.args[2]))
    return found


def test_work__of_every_kind_has_its_verb() -> None:
    kinds = kinds_of_work()
    assert len(kinds) >= 8
    assert kinds <= errors._WORK.keys()
