"""tool_executions: the audit log of tools."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from metastore.codec import Id, JsonObject, Label, Row
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository
from metastore.repositories.tasks import Tasks

if TYPE_CHECKING:
    from metastore.statement_types import ToolExecutionsStatements
    from metastore.statements import Call

__all__ = ["ToolExecution", "ToolExecutionStatus", "ToolExecutionStatusName", "ToolExecutions"]


class ToolExecutionStatus(StrEnum):
    """The status of a call. The last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"


ToolExecutionStatusName = Literal["pending", "running", "completed", "failed", "timeout"]
"""The same as text, so that a type checker sees a misspelt one."""


class ToolExecution(Row, frozen=True):
    """A call of a tool. It is history: it ends once, and nothing else of it changes.

    Attributes:
        output: what the tool gave, any JSON.
        duration_ms: from its beginning to its end.
        sequence: the place of its beginning in the chain of its task, and `hash` what covers it.
        finished_sequence: the place of its end, and `finished_hash` what covers it.
    """

    id: Id
    task_id: Id
    tool_name: Label
    arguments: JsonObject
    output: Any | None
    status: ToolExecutionStatus
    error: str | None
    created_at: datetime
    completed_at: datetime | None
    duration_ms: int | None
    sequence: int | None
    hash: str | None
    finished_sequence: int | None
    finished_hash: str | None


class ToolExecutions(TableRepository[ToolExecution]):
    """The calls of tools."""

    table = "tool_executions"
    row_type = ToolExecution
    _sql: ToolExecutionsStatements

    async def start(
        self,
        *,
        task_id: Id,
        tool_name: str,
        arguments: JsonObject | None = None,
        id: Id | None = None,
    ) -> ToolExecution:
        """Record that a task calls a tool.

        Raises:
            InvalidReference: there is no such task.
            InvalidTransition: the task has ended; carries the task.
            AlreadyExists: a call has this `id`.
            InvalidValue: an argument is invalid.
        """
        execution = await self._find(
            self._sql.start_tool_execution(
                id=self._id(id),
                task_id=task_id,
                tool_name=tool_name,
                arguments={} if arguments is None else arguments,
                created_at=self._now(),
            )
        )
        if execution is None:
            raise await self._refusal(
                Tasks(self._scope), task_id, "tool execution", column="task_id"
            )
        return execution

    async def get(self, execution_id: Id) -> ToolExecution:
        """Return a call.

        Raises:
            NotFound: no call has this id.
            InvalidValue: `execution_id` is not a valid id.
        """
        return await self._one(self._sql.get_tool_execution(id=execution_id), execution_id)

    async def complete(self, execution_id: Id, *, output: Any | None = None) -> ToolExecution:
        """Complete a call with its output.

        Raises:
            NotFound: there is no call with this id.
            InvalidTransition: it has already ended.
            InvalidValue: `output` is refused.
        """
        call = self._sql.complete_tool_execution(id=execution_id, output=output, now=self._now())
        return await self._ended(call, execution_id, ToolExecutionStatus.COMPLETED)

    async def fail(self, execution_id: Id, *, error: str) -> ToolExecution:
        """Fail a call.

        Raises:
            NotFound: there is no call with this id.
            InvalidTransition: it has already ended.
            InvalidValue: `execution_id` or `error` is invalid.
        """
        call = self._sql.fail_tool_execution(id=execution_id, error=error, now=self._now())
        return await self._ended(call, execution_id, ToolExecutionStatus.FAILED)

    async def time_out(self, execution_id: Id, *, error: str | None = None) -> ToolExecution:
        """Time out a call: the tool was stopped for taking too long.

        Raises:
            NotFound: there is no call with this id.
            InvalidTransition: it has already ended.
            InvalidValue: `execution_id` or `error` is invalid.
        """
        call = self._sql.time_out_tool_execution(id=execution_id, error=error, now=self._now())
        return await self._ended(call, execution_id, ToolExecutionStatus.TIMEOUT)

    async def list_by_task(
        self, task_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[ToolExecution, str]:
        """Return a page of a task's calls, in their order.

        Raises:
            InvalidValue: `task_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_tool_executions_by_task(
            task_id=task_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def list_by_tool(
        self, tool_name: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[ToolExecution, str]:
        """Return a page of a tool's calls, in their order.

        Raises:
            InvalidValue: `tool_name`, `after` or `limit` is invalid.
        """
        call = self._sql.list_tool_executions_by_tool(
            tool_name=tool_name, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def list_by_status(
        self,
        status: ToolExecutionStatus | ToolExecutionStatusName,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[ToolExecution, str]:
        """Return a page of the calls in `status`, in their order.

        Raises:
            InvalidValue: `status`, `after` or `limit` is invalid.
        """
        call = self._sql.list_tool_executions_by_status(
            status=status, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def _ended(
        self, call: Call, execution_id: Id, to_status: ToolExecutionStatus
    ) -> ToolExecution:
        current = self._sql.get_tool_execution(id=execution_id)
        return await self._advanced(call, current, execution_id, to_status)
