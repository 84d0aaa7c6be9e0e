"""jobs: what agents work on, and what it may cost."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from metastore import deletion, money
from metastore.codec import Id, Label, Row
from metastore.errors import (
    InvalidTransition,
    InvalidValue,
    JobCancelled,
    NotFound,
    StoreCorrupt,
)
from metastore.paging import DEFAULT_PAGE, Page, by_time, checked_limit, older_than
from metastore.repositories.base import TableRepository
from metastore.repositories.memory_files import MemoryFiles

if TYPE_CHECKING:
    from metastore.statement_types import JobsStatements
    from metastore.statements import Call

__all__ = ["Job", "JobProgress", "JobStatus", "JobStatusName", "JobStep", "JobStepStatus", "Jobs"]

MAX_LINK = 2048
"""The longest link, in characters."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Nano = Annotated[int, msgspec.Meta(ge=0, le=money.MAX_NANO)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class JobStatus(StrEnum):
    """The status of a job. The last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


JobStatusName = Literal["pending", "running", "paused", "completed", "failed", "cancelled"]
"""The same as text, so that a type checker sees a misspelt one."""


class Job(Row, frozen=True):
    """A job of an agent, or of several.

    Attributes:
        budget_nano_usd: what it may spend, as max_requests is how many model calls it may make and
            max_minutes how long after its start; None is no limit.
        model_cto: the model that plans.
        model_coder: the model that writes the code.
        cost_nano_usd: what it has spent, as the tokens and requests_made are the totals of its
            cost entries. No token is counted in two of them; tokens_in includes cache writes,
            and tokens_out reasoning.
        finished_at: when it ended.
        cancelled: whether cancellation was requested; its status tells whether it has ended.
        last_action: what the agent did last, in its own words.
        agents_hash: which version of AGENTS.md it ran under.
    """

    id: Id
    task: Text
    repo_owner: Label
    repo_name: Label
    branch_base: Label
    status: JobStatus
    budget_nano_usd: Nano | None
    max_requests: Count | None
    max_minutes: Annotated[int, msgspec.Meta(ge=0, le=5_256_000)] | None
    model_cto: str | None
    model_coder: str | None
    cost_nano_usd: Nano
    tokens_in: Count
    tokens_out: Count
    tokens_cached: Count
    requests_made: Count
    started_at: datetime | None
    finished_at: datetime | None
    cancelled: bool
    last_action: str | None
    pr_links: list[str]
    agents_hash: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def budget_usd(self) -> Decimal | None:
        """What it may spend, in dollars; None is no limit."""
        return None if self.budget_nano_usd is None else money.from_nano(self.budget_nano_usd)

    @property
    def cost_usd(self) -> Decimal:
        """What it has spent, in dollars."""
        return money.from_nano(self.cost_nano_usd)

    @property
    def deadline(self) -> datetime | None:
        """When its minutes are over; None before it has begun, or without a limit."""
        if self.started_at is None or self.max_minutes is None:
            return None
        try:
            return self.started_at + timedelta(minutes=self.max_minutes)
        except OverflowError as error:
            raise StoreCorrupt(
                "leads beyond every calendar", table="jobs", row_id=self.id, column="max_minutes"
            ) from error


# Rows of `job_steps`, whose repository builds on this one: a job's progress includes a step.


class JobStepStatus(StrEnum):
    """The status of a step. The last three are final."""

    PLANNED = "planned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


class JobStep(Row, frozen=True):
    """A step of a job.

    Attributes:
        step_type: what kind of step it is, in the agent's own words.
        details: free text about it.
        finished_at: when it ended.
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


class JobProgress(msgspec.Struct, frozen=True):
    """The progress of a job, by its steps.

    Attributes:
        total: how many steps it has.
        done: how many of them are completed or skipped.
        failed: how many have failed, which are not done.
        running: the running step; of several, the one planned first.
    """

    total: int
    done: int
    failed: int
    running: JobStep | None

    @property
    def fraction(self) -> float | None:
        """The share of the steps that are done; None, unknown, while nothing is planned."""
        return self.done / self.total if self.total else None


class Jobs(TableRepository[Job]):
    """The jobs of agents."""

    table = "jobs"
    row_type = Job
    _sql: JobsStatements

    async def create(
        self,
        *,
        task: str,
        repo_owner: str,
        repo_name: str,
        branch_base: str = "main",
        budget_usd: money.Amount | None = None,
        max_requests: int | None = None,
        max_minutes: int | None = None,
        model_cto: str | None = None,
        model_coder: str | None = None,
        agents_hash: str | None = None,
        id: Id | None = None,
    ) -> Job:
        """Create a pending job. A limit of None is no limit.

        A caller that passes its own `id` can safely retry a call whose answer was lost.

        Raises:
            AlreadyExists: a job has this `id`.
            InvalidValue: an argument is invalid. Money is a Decimal, an int or a str, not a float.
        """
        return await self._created(
            self._sql.create_job(
                id=self._id(id),
                task=task,
                repo_owner=repo_owner,
                repo_name=repo_name,
                branch_base=branch_base,
                budget_nano_usd=self._nano(budget_usd),
                max_requests=max_requests,
                max_minutes=max_minutes,
                model_cto=model_cto,
                model_coder=model_coder,
                agents_hash=agents_hash,
                created_at=self._now(),
            )
        )

    async def get(self, job_id: Id) -> Job:
        """Return a job.

        Raises:
            NotFound: no job has this id.
            InvalidValue: `job_id` is not a valid id.
        """
        return await self._one(self._sql.get_job(id=job_id), job_id)

    async def start(self, job_id: Id) -> Job:
        """Start a pending job.

        Raises:
            NotFound: no job has this id.
            InvalidTransition: it is not pending.
            InvalidValue: `job_id` is not a valid id.
        """
        return await self._moved(
            self._sql.start_job(id=job_id, now=self._now()), job_id, JobStatus.RUNNING
        )

    async def pause(self, job_id: Id) -> Job:
        """Pause a running job: no budget is reserved for it until it resumes.

        Raises:
            NotFound: no job has this id.
            InvalidTransition: it is not running.
            InvalidValue: `job_id` is not a valid id.
        """
        return await self._moved(
            self._sql.pause_job(id=job_id, now=self._now()), job_id, JobStatus.PAUSED
        )

    async def resume(self, job_id: Id) -> Job:
        """Resume a paused job.

        Raises:
            NotFound: no job has this id.
            InvalidTransition: it is not paused.
            JobCancelled: it was cancelled while it was paused.
            InvalidValue: `job_id` is not a valid id.
        """
        try:
            return await self._moved(
                self._sql.resume_job(id=job_id, now=self._now()), job_id, JobStatus.RUNNING
            )
        except InvalidTransition as refused:
            if refused.from_state == JobStatus.PAUSED and refused.row.cancelled:
                raise JobCancelled(refused.row) from None
            raise

    async def complete(self, job_id: Id) -> Job:
        """Complete a running or paused job.

        Raises:
            NotFound: no job has this id.
            InvalidTransition: it is neither running nor paused.
            InvalidValue: `job_id` is not a valid id.
        """
        return await self._moved(
            self._sql.complete_job(id=job_id, now=self._now()), job_id, JobStatus.COMPLETED
        )

    async def fail(self, job_id: Id, *, last_action: str | None = None) -> Job:
        """Fail a job that has not ended; `last_action` may say what went wrong.

        Raises:
            NotFound: no job has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `job_id` or `last_action` is invalid.
        """
        return await self._moved(
            self._sql.fail_job(id=job_id, last_action=last_action, now=self._now()),
            job_id,
            JobStatus.FAILED,
        )

    async def cancel(self, job_id: Id) -> Job:
        """Cancel a job.

        A pending one is cancelled at once. One that has started only has `cancelled` set: its agent
        learns of it from `JobCancelled` when it reserves budget or starts a step, and from the job
        that its other writes return, and ends it with `acknowledge_cancel`, `complete` or `fail`.

        Raises:
            NotFound: no job has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `job_id` is not a valid id.
        """
        return await self._moved(
            self._sql.cancel_job(id=job_id, now=self._now()), job_id, JobStatus.CANCELLED
        )

    async def acknowledge_cancel(self, job_id: Id) -> Job:
        """End a started job whose cancellation was requested: it is cancelled.

        Raises:
            NotFound: no job has this id.
            InvalidTransition: its cancellation was not requested, or it has already ended.
            InvalidValue: `job_id` is not a valid id.
        """
        return await self._moved(
            self._sql.acknowledge_job_cancel(id=job_id, now=self._now()),
            job_id,
            JobStatus.CANCELLED,
        )

    async def set_limits(
        self,
        job_id: Id,
        *,
        budget_usd: money.Amount | None,
        max_requests: int | None,
        max_minutes: int | None,
    ) -> Job:
        """Replace the limits of a job, started or not; None is no limit.

        What it has used stays, even above a new limit: then nothing more is reserved.

        Raises:
            NotFound: no job has this id.
            InvalidValue: a limit is refused.
        """
        return await self._one(
            self._sql.set_job_limits(
                id=job_id,
                budget_nano_usd=self._nano(budget_usd),
                max_requests=max_requests,
                max_minutes=max_minutes,
                now=self._now(),
            ),
            job_id,
        )

    async def set_last_action(self, job_id: Id, last_action: str | None) -> Job:
        """Set what the agent did last and return the job, which tells if it was cancelled.

        Raises:
            NotFound: no job has this id.
            InvalidValue: `job_id` or `last_action` is invalid.
        """
        return await self._one(
            self._sql.set_job_last_action(id=job_id, last_action=last_action, now=self._now()),
            job_id,
        )

    async def add_pr_link(self, job_id: Id, url: str) -> Job:
        """Append the link of a pull request, unless the job has it already, and return the job.

        Raises:
            NotFound: no job has this id.
            InvalidValue: `url` is not a text of 1 to 2048 characters.
        """
        if not isinstance(url, str) or not 1 <= len(url) <= MAX_LINK:
            raise InvalidValue(
                self.table,
                "pr_links",
                f"must be links of 1 to {MAX_LINK} characters",
                value_type=type(url).__name__,
            )
        return await self._one(
            self._sql.add_job_pr_link(id=job_id, link=url, now=self._now()), job_id
        )

    async def progress(self, job_id: Id) -> JobProgress:
        """Return the progress of a job, by its steps.

        Raises:
            NotFound: no job has this id.
            InvalidValue: `job_id` is not a valid id.
        """
        rows = await self._run(self._sql.get_job_progress(id=job_id))
        if not rows:
            raise NotFound(self.table, job_id)
        [(total, done, failed, *step)] = rows
        decode = self._decoder_of(JobStep, "job_steps")
        [running] = [None] if step[0] is None else decode([tuple(step)])
        return JobProgress(total, done, failed, running)

    async def list_by_status(
        self,
        status: JobStatus | JobStatusName,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Job, str]:
        """Return a page of the jobs in one status, newest first.

        Raises:
            InvalidValue: `status`, `after` or `limit` is invalid.
        """
        call = self._sql.list_jobs_by_status(
            status=status, **older_than(after), limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_time)

    async def list_by_repo(
        self,
        repo_owner: str,
        repo_name: str,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Job, str]:
        """Return a page of one repository's jobs, newest first.

        Raises:
            InvalidValue: `repo_owner`, `repo_name`, `after` or `limit` is invalid.
        """
        call = self._sql.list_jobs_by_repo(
            repo_owner=repo_owner,
            repo_name=repo_name,
            **older_than(after),
            limit=checked_limit(limit),
        )
        return await self._page(call, limit, by_time)

    async def list_recent(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Job, str]:
        """Return a page of all jobs, newest first.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_recent_jobs(**older_than(after), limit=checked_limit(limit))
        return await self._page(call, limit, by_time)

    async def delete(self, job_id: Id) -> None:
        """Delete a job with its steps, costs, reservations and memory.

        A large one goes piece by piece, and other writers are served in between. It is cancelled
        first if it has not ended, and is in `deletions` until it is gone. A deletion that was cut
        short, by a cancellation or a fault, is finished by calling this again. In a transaction it
        is one statement, which holds the writer as long as it takes.

        Raises:
            NotFound: no job has this id, or another caller has deleted it meanwhile.
            InvalidValue: `job_id` is not a valid id.
        """
        if not await self._deleted(self._deletion(job_id)):
            raise NotFound(self.table, job_id)

    def _deletion(self, job_id: Id) -> deletion.Plan:
        now = self._now()
        return deletion.Plan(
            weigh=self._sql.weigh_job(id=job_id, limit=deletion.SMALL_ROWS + 1),
            begin=(
                self._sql.cancel_job_to_delete(id=job_id, now=now),
                self._sql.mark_job_deletion(id=job_id, now=now),
            ),
            pieces=(
                *MemoryFiles(self._scope).pieces_of_job(job_id, now),
                (self._sql.delete_items_of_job(id=job_id, **deletion.cut()),),
                (self._sql.delete_summaries_of_job(id=job_id, **deletion.cut()),),
                (self._sql.delete_metrics_of_job(id=job_id, **deletion.cut()),),
                (self._sql.delete_steps_of_job(id=job_id, **deletion.cut()),),
                (self._sql.delete_costs_of_job(id=job_id, limit=deletion.PIECE_ROWS),),
                (self._sql.delete_reservations_of_job(id=job_id, limit=deletion.PIECE_ROWS),),
            ),
            whole=self._sql.delete_job(id=job_id),
        )

    def _nano(self, budget_usd: money.Amount | None) -> int | None:
        if budget_usd is None:
            return None
        return money.to_nano(budget_usd, table=self.table, column="budget_usd")

    async def _moved(self, call: Call, job_id: Id, to_status: JobStatus) -> Job:
        return await self._advanced(call, self._sql.get_job(id=job_id), job_id, to_status)
