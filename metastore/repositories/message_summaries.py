"""message_summaries: summaries of messages that no longer fit the context."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec

from metastore.codec import Id, Row
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import MessageSummariesStatements

__all__ = ["MessageSummaries", "MessageSummary"]


class MessageSummary(Row, frozen=True):
    """A summary that an agent made of its messages.

    Attributes:
        step_id: the step in which it was made, or None.
        role: whose messages they were, such as `user` or `assistant`.
        tokens: the length of the summary.
    """

    id: Id
    job_id: Id
    step_id: Id | None
    role: Annotated[str, msgspec.Meta(min_length=1, max_length=50)]
    summary: str
    tokens: Annotated[int, msgspec.Meta(ge=0)]
    created_at: datetime


class MessageSummaries(TableRepository[MessageSummary]):
    """The summaries that agents made of their messages. They are deleted with their job."""

    table = "message_summaries"
    row_type = MessageSummary
    _sql: MessageSummariesStatements

    async def create(
        self,
        *,
        job_id: Id,
        role: str,
        summary: str,
        tokens: int,
        step_id: Id | None = None,
        id: Id | None = None,
    ) -> MessageSummary:
        """Store a summary and return it.

        Raises:
            InvalidReference: there is no such job or step.
            AlreadyExists: a summary has this `id`.
            InvalidValue: an argument is invalid.
        """
        return await self._created(
            self._sql.create_message_summary(
                id=self._id(id),
                job_id=job_id,
                step_id=step_id,
                role=role,
                summary=summary,
                tokens=tokens,
                created_at=self._now(),
            )
        )

    async def get(self, summary_id: Id) -> MessageSummary:
        """Return a summary.

        Raises:
            NotFound: no summary has this id.
            InvalidValue: `summary_id` is not a valid id.
        """
        return await self._one(self._sql.get_message_summary(id=summary_id), summary_id)

    async def list_by_job(
        self, job_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[MessageSummary, str]:
        """Return a page of a job's summaries, oldest first.

        Raises:
            InvalidValue: `job_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_message_summaries_by_job(
            job_id=job_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def list_by_step(
        self, step_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[MessageSummary, str]:
        """Return a page of a step's summaries, oldest first.

        Raises:
            InvalidValue: `step_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_message_summaries_by_step(
            step_id=step_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)
