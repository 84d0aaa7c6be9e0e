"""context_metrics: the size of the context of each model call."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec

from metastore.codec import Id, JsonObject, Row
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import ContextMetricsStatements

__all__ = ["ContextMetric", "ContextMetrics", "ContextTotals"]

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53))]
"""A number of tokens or operations. A job's add up without overflow."""


class ContextMetric(Row, frozen=True):
    """The size of one assembled context.

    Attributes:
        step_id: the step it was assembled for, or None.
        tokens_final: tokens that were sent.
        tokens_clipped: tokens that were left out.
        compact_ops: how often messages were compacted for it.
    """

    id: Id
    job_id: Id
    step_id: Id | None
    tokens_final: _Count
    tokens_clipped: _Count
    compact_ops: _Count
    details: JsonObject
    created_at: datetime


class ContextTotals(msgspec.Struct, frozen=True):
    """The totals of a job's contexts.

    Attributes:
        contexts: how many there were.
        tokens_final: tokens that were sent.
        tokens_clipped: tokens that were left out.
        compactions: how often messages were compacted.
        largest: the tokens of the largest context that was sent.
    """

    contexts: int
    tokens_final: int
    tokens_clipped: int
    compactions: int
    largest: int


class ContextMetrics(TableRepository[ContextMetric]):
    """The contexts that the jobs' model calls were sent."""

    table = "context_metrics"
    row_type = ContextMetric
    _sql: ContextMetricsStatements

    async def create(
        self,
        *,
        job_id: Id,
        tokens_final: int,
        tokens_clipped: int = 0,
        compact_ops: int = 0,
        details: JsonObject | None = None,
        step_id: Id | None = None,
        id: Id | None = None,
    ) -> ContextMetric:
        """Record the size of an assembled context and return the metric.

        Raises:
            InvalidReference: there is no such job or step.
            AlreadyExists: a metric has this `id`.
            InvalidValue: an argument is invalid.
        """
        return await self._created(
            self._sql.create_context_metric(
                id=self._id(id),
                job_id=job_id,
                step_id=step_id,
                tokens_final=tokens_final,
                tokens_clipped=tokens_clipped,
                compact_ops=compact_ops,
                details={} if details is None else details,
                created_at=self._now(),
            )
        )

    async def get(self, metric_id: Id) -> ContextMetric:
        """Return a metric.

        Raises:
            NotFound: no metric has this id.
            InvalidValue: `metric_id` is not a valid id.
        """
        return await self._one(self._sql.get_context_metric(id=metric_id), metric_id)

    async def list_by_job(
        self, job_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[ContextMetric, str]:
        """Return a page of a job's metrics, oldest first.

        Raises:
            InvalidValue: `job_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_context_metrics_by_job(
            job_id=job_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def list_by_step(
        self, step_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[ContextMetric, str]:
        """Return a page of a step's metrics, oldest first.

        Raises:
            InvalidValue: `step_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_context_metrics_by_step(
            step_id=step_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def totals(self, job_id: Id) -> ContextTotals:
        """Return the totals of a job's contexts; all zero if it has none.

        Raises:
            InvalidValue: `job_id` is not a valid id.
        """
        [values] = await self._run(self._sql.total_context_metrics(job_id=job_id))
        return ContextTotals(*values)
