"""job_steps: what an agent does in a job, as far as it is planned."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from metastore.codec import Id, Label, Row, new_id
from metastore.errors import InvalidTransition, JobCancelled
from metastore.paging import Page, checked_limit, page_of
from metastore.repositories.base import TableRepository
from metastore.repositories.jobs import Jobs

if TYPE_CHECKING:
    from metastore.errors import MetastoreError
    from metastore.statement_types import JobStepsStatements
    from metastore.statements import Call

__all__ = ["JobStep", "JobStepStatus", "JobSteps"]


class JobStepStatus(StrEnum):
    """How far a step is. The last three are its ends."""

    PLANNED = "planned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


class JobStep(Row, frozen=True):
    """A step of a job.

    Attributes:
        step_type: what kind of step it is, in the agent's own words.
        details: what there is to tell about it.
        finished_at: when it ended, well or badly.
    """

    id: Id
    job_id: Id
    name: Label
    step_type: Label
    status: JobStepStatus
    details: str | None
    started_at: datetime | None
    finished_at: datetime | None
    created_at: datetime


class JobSteps(TableRepository[JobStep]):
    """The steps of jobs.

    In a job that has ended or was cancelled no step is planned or started; what has started may
    end.
    """

    table = "job_steps"
    row_type = JobStep
    _sql: JobStepsStatements

    async def create(
        self,
        *,
        job_id: str,
        name: str,
        step_type: str,
        details: str | None = None,
        id: str | None = None,
    ) -> JobStep:
        """Plan a step, behind the others of its job.

        Raises:
            JobCancelled: the job was called off.
            InvalidTransition: the job has ended; carries the job.
            InvalidReference: there is no such job.
            AlreadyExists: a step has this `id`.
            InvalidValue: a value is refused.
        """
        step = await self._find(
            self._sql.create_job_step(
                id=new_id() if id is None else id,
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

    async def get(self, step_id: str) -> JobStep:
        """Return a step.

        Raises:
            NotFound: there is none with this id.
        """
        return await self._one(self._sql.get_job_step(id=step_id), step_id)

    async def start(self, step_id: str) -> JobStep:
        """Begin a planned step.

        Raises:
            JobCancelled: its job was called off.
            NotFound: there is none with this id.
            InvalidTransition: it is not planned, or its job has ended; carries the one that
                refuses.
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

    async def complete(self, step_id: str, *, details: str | None = None) -> JobStep:
        """End a running step well; `details` replace those it has, if given.

        Raises:
            NotFound: there is none with this id.
            InvalidTransition: it is not running.
        """
        return await self._moved(
            self._sql.complete_job_step(id=step_id, details=details, now=self._now()),
            step_id,
            JobStepStatus.COMPLETED,
        )

    async def fail(self, step_id: str, *, details: str | None = None) -> JobStep:
        """End a planned or running step badly; `details` replace those it has, if given.

        Raises:
            NotFound: there is none with this id.
            InvalidTransition: it has ended already.
        """
        return await self._moved(
            self._sql.fail_job_step(id=step_id, details=details, now=self._now()),
            step_id,
            JobStepStatus.FAILED,
        )

    async def skip(self, step_id: str, *, details: str | None = None) -> JobStep:
        """Leave a planned step out; `details` replace those it has, if given.

        Raises:
            NotFound: there is none with this id.
            InvalidTransition: it is not planned.
        """
        return await self._moved(
            self._sql.skip_job_step(id=step_id, details=details, now=self._now()),
            step_id,
            JobStepStatus.SKIPPED,
        )

    async def list_by_job(
        self, job_id: str, *, after: str | None = None, limit: int = 50
    ) -> Page[JobStep, str]:
        """Return a page of a job's steps, in the order in which they were planned."""
        rows = await self._all(
            self._sql.list_job_steps_by_job(
                job_id=job_id, after_id=after, limit=checked_limit(limit)
            )
        )
        return page_of(rows, limit, lambda row: row.id)

    async def _refused_by_job(self, job_id: str, *, column: str | None = None) -> MetastoreError:
        error = await self._refusal(Jobs(self._scope), job_id, "step", column=column)
        if isinstance(error, InvalidTransition) and error.row.cancelled:
            return JobCancelled(error.row)
        return error

    async def _moved(self, call: Call, step_id: str, to_status: JobStepStatus) -> JobStep:
        return await self._advanced(call, self._sql.get_job_step(id=step_id), step_id, to_status)
