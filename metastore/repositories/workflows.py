"""workflows: ordered sets of tasks."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import msgspec

from metastore import deletion
from metastore.codec import Id, JsonObject, Label, Row
from metastore.errors import NotFound
from metastore.paging import DEFAULT_PAGE, Page, by_time, checked_limit, older_than
from metastore.repositories.base import TableRepository
from metastore.repositories.tasks import TaskStatus

if TYPE_CHECKING:
    from metastore.statement_types import WorkflowsStatements
    from metastore.statements import Call

__all__ = ["Workflow", "WorkflowProgress", "WorkflowStatus", "WorkflowStatusName", "Workflows"]


class WorkflowStatus(StrEnum):
    """Whether a workflow is at work. An archived one takes no more tasks."""

    DRAFT = "draft"
    ACTIVE = "active"
    ARCHIVED = "archived"
    PAUSED = "paused"


WorkflowStatusName = Literal["draft", "active", "archived", "paused"]
"""The same as text, so that a type checker sees a misspelt one."""


class Workflow(Row, frozen=True):
    """A workflow: a definition, and tasks in an order, see `workflow_tasks`.

    Attributes:
        name: what people call it; several may share a name.
        definition: what it is made from.
    """

    id: Id
    name: Label
    description: str | None
    definition: JsonObject
    status: WorkflowStatus
    created_at: datetime
    updated_at: datetime


class WorkflowProgress(msgspec.Struct, frozen=True):
    """The progress of a workflow's tasks.

    Attributes:
        done: how many are completed. Failed and cancelled ones have ended, but are not done.
        total: how many there are.
        fraction: `done` of `total`, from 0 to 1; None if there are no tasks.
        by_status: how many are in each status.
    """

    done: int
    total: int
    fraction: float | None
    by_status: dict[TaskStatus, int]

    @classmethod
    def of(cls, by_status: dict[TaskStatus, int]) -> WorkflowProgress:
        """Return the progress of tasks that are so many in each status."""
        done = by_status[TaskStatus.COMPLETED]
        total = sum(by_status.values())
        return cls(done, total, done / total if total else None, by_status)


class Workflows(TableRepository[Workflow]):
    """The workflows. A workflow's status says what people want of it; its tasks run on their own.

    Pausing or archiving one stops no task: whoever claims tasks for it asks for its status.
    """

    table = "workflows"
    row_type = Workflow
    _sql: WorkflowsStatements

    async def create(
        self,
        *,
        name: str,
        definition: JsonObject,
        description: str | None = None,
        id: Id | None = None,
    ) -> Workflow:
        """Create a workflow, as a draft.

        Raises:
            AlreadyExists: a workflow has this `id`.
            InvalidValue: an argument is invalid.
        """
        return await self._created(
            self._sql.create_workflow(
                id=self._id(id),
                name=name,
                description=description,
                definition=definition,
                created_at=self._now(),
            )
        )

    async def get(self, workflow_id: Id) -> Workflow:
        """Return a workflow.

        Raises:
            NotFound: no workflow has this id.
            InvalidValue: `workflow_id` is not a valid id.
        """
        return await self._one(self._sql.get_workflow(id=workflow_id), workflow_id)

    async def find_by_name(self, name: str) -> Workflow | None:
        """Return the newest workflow of this name, or None.

        Raises:
            InvalidValue: `name` is invalid.
        """
        return await self._find(self._sql.find_workflow_by_name(name=name))

    async def activate(self, workflow_id: Id) -> Workflow:
        """Activate a draft or a paused workflow.

        Raises:
            NotFound: no workflow has this id.
            InvalidTransition: it is active or archived.
            InvalidValue: `workflow_id` is not a valid id.
        """
        return await self._moved(
            self._sql.activate_workflow(id=workflow_id, now=self._now()),
            workflow_id,
            WorkflowStatus.ACTIVE,
        )

    async def pause(self, workflow_id: Id) -> Workflow:
        """Pause an active workflow.

        Raises:
            NotFound: no workflow has this id.
            InvalidTransition: it is not active.
            InvalidValue: `workflow_id` is not a valid id.
        """
        return await self._moved(
            self._sql.pause_workflow(id=workflow_id, now=self._now()),
            workflow_id,
            WorkflowStatus.PAUSED,
        )

    async def archive(self, workflow_id: Id) -> Workflow:
        """Archive a workflow, whatever its status: it takes no more tasks.

        Raises:
            NotFound: no workflow has this id.
            InvalidTransition: it is archived already.
            InvalidValue: `workflow_id` is not a valid id.
        """
        return await self._moved(
            self._sql.archive_workflow(id=workflow_id, now=self._now()),
            workflow_id,
            WorkflowStatus.ARCHIVED,
        )

    async def progress(self, workflow_id: Id) -> WorkflowProgress:
        """Return the progress of a workflow's tasks, all counted at one moment.

        Raises:
            NotFound: no workflow has this id.
            InvalidValue: `workflow_id` is not a valid id.
        """
        rows = await self._run(self._sql.workflow_progress(id=workflow_id))
        if not rows:
            raise NotFound(self.table, workflow_id)
        return WorkflowProgress.of(dict(zip(TaskStatus, rows[0], strict=True)))

    async def list(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Workflow, str]:
        """Return a page of all workflows, newest first.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_workflows(**older_than(after), limit=checked_limit(limit))
        return await self._page(call, limit, by_time)

    async def list_by_status(
        self,
        status: WorkflowStatus | WorkflowStatusName,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Workflow, str]:
        """Return a page of the workflows in one status, newest first.

        Raises:
            InvalidValue: `status`, `after` or `limit` is invalid.
        """
        call = self._sql.list_workflows_by_status(
            status=status, **older_than(after), limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_time)

    async def list_by_name(
        self, name: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Workflow, str]:
        """Return a page of the workflows that share a name, newest first.

        Raises:
            InvalidValue: `name`, `after` or `limit` is invalid.
        """
        call = self._sql.list_workflows_by_name(
            name=name, **older_than(after), limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_time)

    async def delete(self, workflow_id: Id) -> None:
        """Delete a workflow; its tasks stay.

        From one with many tasks they are taken out piece by piece, the last first, and other
        writers are served in between; it is in `deletions` until it is gone. A deletion that was
        cut short is finished by calling this again. In a transaction it is one statement.

        Raises:
            NotFound: no workflow has this id, or another caller has deleted it meanwhile.
            InvalidValue: `workflow_id` is not a valid id.
        """
        plan = deletion.Plan(
            weigh=self._sql.weigh_workflow(id=workflow_id, limit=deletion.SMALL_ROWS + 1),
            begin=(self._sql.mark_workflow_deletion(id=workflow_id, now=self._now()),),
            pieces=(
                (
                    self._sql.delete_last_tasks_of_workflow(
                        id=workflow_id, limit=deletion.PIECE_ROWS
                    ),
                ),
            ),
            whole=self._sql.delete_workflow(id=workflow_id),
        )
        if not await self._deleted(plan):
            raise NotFound(self.table, workflow_id)

    async def _moved(self, call: Call, workflow_id: Id, to_status: WorkflowStatus) -> Workflow:
        current = self._sql.get_workflow(id=workflow_id)
        return await self._advanced(call, current, workflow_id, to_status)
