"""Rows for tests, with defaults for whatever a test does not care about."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from metastore.repositories.artifacts import ArtifactType
from metastore.repositories.sessions import SessionType

if TYPE_CHECKING:
    from metastore.repositories import RepositorySet
    from metastore.repositories.artifacts import Artifact
    from metastore.repositories.auth_tokens import IssuedToken
    from metastore.repositories.commands import Command
    from metastore.repositories.debugger_state import DebuggerState
    from metastore.repositories.events import Event
    from metastore.repositories.jobs import Job
    from metastore.repositories.project_locks import ProjectLock
    from metastore.repositories.projects import Project
    from metastore.repositories.repositories import Repository
    from metastore.repositories.sessions import Session
    from metastore.repositories.steps import Step
    from metastore.repositories.tasks import Task, TaskLease
    from metastore.repositories.workflow_tasks import WorkflowTask
    from metastore.repositories.workflows import Workflow
    from metastore.repositories.worktrees import Lease, Worktree

__all__ = ["Factories"]

TTL = timedelta(minutes=1)
"""The default TTL of leases, locks and claims."""


_numbers = itertools.count(1)


class Factories:
    """Creates rows in a store, or in an open transaction.

    Each method takes the keywords of the repository's own method, and fills in missing ones. Names
    and paths are unique in the process. Parent rows are created first, unless their ids are given.
    """

    def __init__(self, store: RepositorySet) -> None:
        self._store = store

    async def repository(self, **values: Any) -> Repository:
        """Register a repository, see `repositories.create`."""
        name = _name("repository")
        remote_url = f"https://git.example.com/{name}.git"
        return await self._store.repositories.create(
            **_filled(values, name=name, remote_url=remote_url)
        )

    async def job(self, **values: Any) -> Job:
        """Create a job, see `jobs.create`."""
        task = _name("task")
        return await self._store.jobs.create(
            **_filled(values, task=task, repo_owner="acme", repo_name="shop")
        )

    async def worktree(self, **values: Any) -> Worktree:
        """Register a worktree, see `worktrees.create`."""
        if "repository_id" not in values:
            values["repository_id"] = (await self.repository()).id
        path = f"/worktrees/{_name('worktree')}"
        return await self._store.worktrees.create(**_filled(values, path=path))

    async def lease(self, worktree: Worktree | None = None, **values: Any) -> Lease:
        """Lease a worktree, see `worktrees.reserve`."""
        values = _filled(values, owner=_name("runner"), ttl=TTL)
        return await self._store.worktrees.reserve(worktree or await self.worktree(), **values)

    async def project(self, **values: Any) -> Project:
        """Register a project, see `projects.ensure`."""
        path = f"/projects/{_name('project')}"
        return await self._store.projects.ensure(**_filled(values, path=path))

    async def lock(self, **values: Any) -> ProjectLock:
        """Lock a project for a session that works on it, see `project_locks.acquire`."""
        if "project_id" not in values:
            path = None
            if "session_id" in values:
                path = (await self._store.sessions.get(values["session_id"])).project_path
            values["project_id"] = (await self.project(**({"path": path} if path else {}))).id
        if "session_id" not in values:
            project = await self._store.projects.get(values["project_id"])
            values["session_id"] = (await self.session(project_path=project.path)).id
        return await self._store.project_locks.acquire(**_filled(values, ttl=TTL))

    async def session(self, **values: Any) -> Session:
        """Create a session, see `sessions.create`: debug, or for a project if its path is given."""
        of_project = values.get("project_path") is not None
        session_type = SessionType.TEST_GENERATION if of_project else SessionType.DEBUG
        values = _filled(values, session_type=session_type)
        if values["session_type"] == SessionType.DEBUG:
            if "repository_id" not in values:
                values["repository_id"] = (await self.repository()).id
        elif "project_path" not in values:
            values["project_path"] = (await self.project()).path
        return await self._store.sessions.create(**values)

    async def step(self, **values: Any) -> Step:
        """Create a step, see `steps.create`."""
        values = await self._in_session(values)
        return await self._store.steps.create(**_filled(values, name=_name("step")))

    async def event(self, **values: Any) -> Event:
        """Append an event, see `events.append`."""
        values = await self._in_session(values)
        return await self._store.events.append(
            **_filled(values, event_type="test", message=_name("event"))
        )

    async def command(self, **values: Any) -> Command:
        """Create a command, see `commands.create`."""
        values = await self._in_session(values)
        return await self._store.commands.create(
            **_filled(values, argv=["make", _name("target")], working_directory="/worktrees")
        )

    async def artifact(self, **values: Any) -> Artifact:
        """Record an artifact, see `artifacts.create`; in its command's session, if one is given."""
        if values.get("command_id") is not None and "session_id" not in values:
            command = await self._store.commands.get(values["command_id"])
            values["session_id"] = command.session_id
        values = await self._in_session(values)
        name = f"{_name('artifact')}.log"
        return await self._store.artifacts.create(
            **_filled(
                values,
                artifact_type=ArtifactType.LOG,
                name=name,
                content_path=f"/artifacts/{name}",
            )
        )

    async def checkpoint(self, **values: Any) -> DebuggerState:
        """Save a debugger checkpoint, see `debugger_state.checkpoint`."""
        values = await self._in_session(values)
        return await self._store.debugger_state.checkpoint(
            **_filled(values, state={"breakpoint": _name("line")})
        )

    async def token(self, *scopes: str, **values: Any) -> IssuedToken:
        """Issue a token for these scopes, see `auth_tokens.issue`."""
        return await self._store.auth_tokens.issue(
            **_filled(values, user_name=_name("user"), name="test", scopes=scopes)
        )

    async def task(self, **values: Any) -> Task:
        """Create a task, see `tasks.create`."""
        return await self._store.tasks.create(
            **_filled(values, title=_name("task"), task_type="test")
        )

    async def claim(self, **values: Any) -> TaskLease:
        """Claim a task, by default a new one with its own type, see `tasks.claim`."""
        if "task_types" not in values:
            values["task_types"] = [(await self.task(task_type=_name("type"))).task_type]
        return await self._store.tasks.claim(**_filled(values, owner=_name("worker"), ttl=TTL))

    async def workflow(self, **values: Any) -> Workflow:
        """Create a workflow, see `workflows.create`."""
        return await self._store.workflows.create(
            **_filled(values, name=_name("workflow"), definition={})
        )

    async def workflow_task(self, **values: Any) -> WorkflowTask:
        """Add a task to a workflow, see `workflow_tasks.add`."""
        if "workflow_id" not in values:
            values["workflow_id"] = (await self.workflow()).id
        if "task_id" not in values:
            values["task_id"] = (await self.task()).id
        return await self._store.workflow_tasks.add(**values)

    async def _in_session(self, values: dict[str, Any]) -> dict[str, Any]:
        if "session_id" in values:
            return values
        return {"session_id": (await self.session()).id, **values}


def _name(what: str) -> str:
    return f"{what}-{next(_numbers)}"


def _filled(values: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | values
