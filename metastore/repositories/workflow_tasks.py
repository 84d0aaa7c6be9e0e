"""workflow_tasks: which tasks a workflow has, and in which order."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from metastore.codec import Id, Row
from metastore.errors import InvalidTransition, InvalidValue
from metastore.paging import DEFAULT_PAGE, Page, checked_limit, page_of
from metastore.repositories.base import TableRepository
from metastore.repositories.workflows import Workflows, WorkflowStatus

if TYPE_CHECKING:
    from metastore.statement_types import WorkflowTasksStatements

__all__ = ["WorkflowTask", "WorkflowTasks"]


class WorkflowTask(Row, frozen=True):
    """A task's place in a workflow.

    Attributes:
        sequence: from 1 to the number of the workflow's tasks, without gaps.
        created_at: when the task was added.
    """

    workflow_id: Id
    task_id: Id
    sequence: int
    created_at: datetime


class WorkflowTasks(TableRepository[WorkflowTask]):
    """The order of tasks in workflows: every operation leaves the places 1 to n, each used once.

    The tasks themselves, in this order, are `tasks.list_by_workflow`.
    """

    table = "workflow_tasks"
    row_type = WorkflowTask
    key = ("workflow_id", "task_id")
    _sql: WorkflowTasksStatements

    async def add(self, workflow_id: Id, task_id: Id, sequence: int | None = None) -> WorkflowTask:
        """Append a task, or insert it at `sequence`: those from there on move back by one.

        Raises:
            NotFound: there is no such workflow.
            InvalidTransition: the workflow is archived; carries the workflow.
            InvalidReference: there is no such task.
            AlreadyExists: the workflow has the task already.
            InvalidValue: `sequence` is not from 1 to one more than the workflow has tasks.
        """
        now = self._now()
        if sequence is None:
            rows = await self._run(
                self._sql.append_workflow_task(
                    workflow_id=workflow_id, task_id=task_id, created_at=now
                )
            )
        else:
            *_, rows = await self._run_all(
                self._sql.make_room_for_workflow_task(
                    workflow_id=workflow_id, sequence=_checked(sequence)
                ),
                self._sql.show_moved_workflow_tasks(workflow_id=workflow_id),
                self._sql.insert_workflow_task(
                    workflow_id=workflow_id, task_id=task_id, sequence=sequence, created_at=now
                ),
            )
        if not rows:
            workflow = await Workflows(self._scope).get(workflow_id)
            if workflow.status is WorkflowStatus.ARCHIVED:
                raise InvalidTransition("workflows", workflow.status, "add", workflow, is_work=True)
            raise _no_such_place()
        [added] = self._decode(rows)
        return added

    async def get(self, workflow_id: Id, task_id: Id) -> WorkflowTask:
        """Return a task's place in a workflow.

        Raises:
            NotFound: the workflow has no such task.
            InvalidValue: `workflow_id` or `task_id` is invalid.
        """
        return await self._one(
            self._sql.get_workflow_task(workflow_id=workflow_id, task_id=task_id),
            (workflow_id, task_id),
        )

    async def move(self, workflow_id: Id, task_id: Id, sequence: int) -> WorkflowTask:
        """Move a task to `sequence`: those in between move by one towards its old place.

        Raises:
            NotFound: the workflow has no such task.
            InvalidValue: `sequence` is not from 1 to the number of the workflow's tasks.
        """
        answers = await self._run_all(
            self._sql.move_workflow_task(
                workflow_id=workflow_id, task_id=task_id, sequence=_checked(sequence)
            ),
            self._sql.show_moved_workflow_tasks(workflow_id=workflow_id),
            self._sql.get_workflow_task(workflow_id=workflow_id, task_id=task_id),
        )
        if not answers[-1]:
            await self.get(workflow_id, task_id)
            raise _no_such_place()
        [moved] = self._decode(answers[-1])
        return moved

    async def remove(self, workflow_id: Id, task_id: Id) -> None:
        """Remove a task from a workflow: those after it move up. The task itself stays.

        Raises:
            NotFound: the workflow has no such task.
            InvalidValue: `workflow_id` or `task_id` is invalid.
        """
        await self._one(
            self._sql.remove_workflow_task(workflow_id=workflow_id, task_id=task_id),
            (workflow_id, task_id),
        )

    async def list_by_workflow(
        self, workflow_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[WorkflowTask, str]:
        """Return a page of a workflow's places, in order if it has no more than `limit`.

        Of a longer workflow each page is in order, but which tasks it holds goes by their ids: a
        task that stays in the workflow is on exactly one page, however often tasks are moved,
        added and removed between two pages. Put the pages together by `sequence`.

        Raises:
            InvalidValue: `workflow_id`, `after` or `limit` is invalid.
        """
        rows = await self._all(
            self._sql.list_workflow_tasks(
                workflow_id=workflow_id, after_id=after, limit=checked_limit(limit)
            )
        )
        page = page_of(rows, limit, lambda row: row.task_id)
        return Page(sorted(page.items, key=lambda row: row.sequence), page.next)

    async def list_by_task(
        self, task_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[WorkflowTask, str]:
        """Return a page of a task's places in the workflows that it belongs to.

        Raises:
            InvalidValue: `task_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_workflow_tasks_by_task(
            task_id=task_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, lambda row: row.workflow_id)


def _checked(sequence: int) -> int:
    """Return a place that a workflow may have.

    Raises:
        InvalidValue: it is none.
    """
    if not isinstance(sequence, int) or isinstance(sequence, bool) or sequence < 1:
        raise _no_such_place(type(sequence).__name__)
    return sequence


def _no_such_place(value_type: str = "int") -> InvalidValue:
    return InvalidValue(
        WorkflowTasks.table,
        "sequence",
        "must be a place of the workflow, from 1 on without a gap",
        value_type=value_type,
    )
