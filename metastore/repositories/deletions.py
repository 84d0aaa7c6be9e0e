"""deletions: rows that are being deleted in pieces."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from metastore.codec import Id, Row
from metastore.paging import DEFAULT_PAGE, Page, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import DeletionsStatements

__all__ = ["DeletedTable", "DeletedTableName", "Deletion", "Deletions"]


class DeletedTable(StrEnum):
    """The tables whose rows may be too large to be deleted at once."""

    SESSIONS = "sessions"
    JOBS = "jobs"
    TASKS = "tasks"
    WORKFLOWS = "workflows"
    WORKTREES = "worktrees"


DeletedTableName = Literal["sessions", "jobs", "tasks", "workflows", "worktrees"]
"""The same as text, so that a type checker sees a misspelt one."""


class Deletion(Row, frozen=True):
    """A row that is being deleted, or was left half deleted.

    Attributes:
        resource_id: the row. Deleting it again finishes a deletion that was cut short.
        cut: the place in its audit chain up to which its events or tool executions may go.
        created_at: when the deletion began.
    """

    resource: DeletedTable
    resource_id: Id
    cut: int
    created_at: datetime


class Deletions(TableRepository[Deletion]):
    """The deletions that are under way."""

    table = "deletions"
    key = ("resource", "resource_id")
    row_type = Deletion
    _sql: DeletionsStatements

    async def list(
        self,
        resource: DeletedTable | DeletedTableName,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Deletion, str]:
        """Return a page of the rows of a table that are being deleted, by id.

        Raises:
            InvalidValue: `resource`, `after` or `limit` is invalid.
        """
        call = self._sql.list_deletions(
            resource=resource, after_place=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, lambda row: row.resource_id)
