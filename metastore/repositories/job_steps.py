"""job_steps: the steps that an agent plans and runs in a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastore.errors import InvalidTransition, JobCancelled
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository
from metastore.repositories.jobs import Jobs, JobStep, JobStepStatus

if TYPE_CHECKING:
    from metastore.codec import Id
    from metastore.errors import MetastoreError
    from metastore.statement_types import JobStepsStatements
    from metastore.statements import Call

__all__ = ["JobStep", "JobStepStatus", "JobSteps"]


class JobSteps(TableRepository[JobStep]):
    """The steps of jobs.

    A job that has ended or was cancelled gets no new steps and starts none; running ones may
    end.
    """

    table = "job_steps"
    row_type = JobStep
    _sql: JobStepsStatements

    async def create(
        self,
        *,
        job_id: Id,
        name: str,
        step_type: str,
        details: str | None = None,
        id: Id | None = None,
    ) -> JobStep:
        """Append a step to its job, planned.

        Raises:
            JobCancelled: the job was cancelled.
            InvalidTransition: the job has ended; carries the job.
            InvalidReference: there is no such job.
            AlreadyExists: a step has this `id`.
            InvalidValue: an argument is invalid.
        """
        step = await self._find(
            self._sql.create_job_step(
                id=self._id(id),
                job_id=job_id,
                name=name,
                step_type=step_type,
                details=details,
                created_at=self._now(),
            )
        )
        if step is None:
            raise await self._refused_by_job(job_id, column="job_id")
        return step

    async def get(self, step_id: Id) -> JobStep:
        """Return a step.

        Raises:
            NotFound: no step has this id.
            InvalidValue: `step_id` is not a valid id.
        """
        return await self._one(self._sql.get_job_step(id=step_id), step_id)

    async def start(self, step_id: Id) -> JobStep:
        """Start a planned step.

        Raises:
            JobCancelled: its job was cancelled.
            NotFound: no step has this id.
            InvalidTransition: it is not planned, or its job has ended; carries the one that
                refuses.
            InvalidValue: `step_id` is not a valid id.
        """
        try:
            return await self._moved(
                self._sql.start_job_step(id=step_id, now=self._now()),
                step_id,
                JobStepStatus.RUNNING,
            )
        except InvalidTransition as refused:
            if refused.from_state != JobStepStatus.PLANNED:
                raise
            job_id = refused.row.job_id
        raise await self._refused_by_job(job_id)

    async def complete(self, step_id: Id, *, details: str | None = None) -> JobStep:
        """Complete a running step; `details`, if given, replace the existing ones.

        Raises:
            NotFound: no step has this id.
            InvalidTransition: it is not running.
            InvalidValue: `step_id` or `details` is invalid.
        """
        return await self._moved(
            self._sql.complete_job_step(id=step_id, details=details, now=self._now()),
            step_id,
            JobStepStatus.COMPLETED,
        )

    async def fail(self, step_id: Id, *, details: str | None = None) -> JobStep:
        """Fail a planned or running step; `details`, if given, replace the existing ones.

        Raises:
            NotFound: no step has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `step_id` or `details` is invalid.
        """
        return await self._moved(
            self._sql.fail_job_step(id=step_id, details=details, now=self._now()),
            step_id,
            JobStepStatus.FAILED,
        )

    async def skip(self, step_id: Id, *, details: str | None = None) -> JobStep:
        """Skip a planned step; `details`, if given, replace the existing ones.

        Raises:
            NotFound: no step has this id.
            InvalidTransition: it is not planned.
            InvalidValue: `step_id` or `details` is invalid.
        """
        return await self._moved(
            self._sql.skip_job_step(id=step_id, details=details, now=self._now()),
            step_id,
            JobStepStatus.SKIPPED,
        )

    async def list_by_job(
        self, job_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[JobStep, str]:
        """Return a page of a job's steps, in the order in which they were planned.

        Raises:
            InvalidValue: `job_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_job_steps_by_job(
            job_id=job_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def _refused_by_job(self, job_id: Id, *, column: str | None = None) -> MetastoreError:
        error = await self._refusal(Jobs(self._scope), job_id, "step", column=column)
        if isinstance(error, InvalidTransition) and error.row.cancelled:
            return JobCancelled(error.row)
        return error

    async def _moved(self, call: Call, step_id: Id, to_status: JobStepStatus) -> JobStep:
        return await self._advanced(call, self._sql.get_job_step(id=step_id), step_id, to_status)
