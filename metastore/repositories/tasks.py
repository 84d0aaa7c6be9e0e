"""tasks: the tasks of an orchestrator, claimed by workers and fenced by version."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from operator import itemgetter
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict, TypeVar
from uuid import UUID, uuid5

import msgspec

from metastore import deletion
from metastore.codec import MAX_TEXT, Id, JsonObject, Label, Row, expect, listed
from metastore.errors import InvalidTransition, InvalidValue, LeaseLost, LeaseUnavailable
from metastore.leasing.limits import (
    LONG_AGO,
    checked_ttl,
    checked_wait,
    latest_credible_expiry,
    latest_credible_ticket,
)
from metastore.paging import DEFAULT_PAGE, Page, by_time, checked_limit, older_than, page_of
from metastore.repositories.leasable import LeasableRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from metastore.backends.base import Values
    from metastore.statement_types import TasksStatements
    from metastore.statements import Call

__all__ = ["Task", "TaskLease", "TaskStatus", "TaskStatusName", "Tasks"]

Step = TypeVar("Step")

MAX_TYPES = 100
"""How many types of task a claim may name; each costs a look into the index."""

_QUEUES = UUID("5b0c4a5e-6f0f-4f0e-9a37-3f1d5c0a9e61")
"""The namespace of the ids of queues, see `Tasks.claim`."""


class TaskStatus(StrEnum):
    """The status of a task. The last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TaskStatusName = Literal["pending", "running", "completed", "failed", "cancelled"]
"""The same as text, so that a type checker sees a misspelt one."""


class Task(Row, frozen=True):
    """A task of an orchestrator.

    Attributes:
        task_type: what a worker must be able to do to run it.
        config: what is to be done.
        metadata: what its creator or its worker added.
        workspace_path: where it is done; `claim(spread=True)` takes turns between workspaces.
        started_at: when the run that counts began: the last one, after a take-over.
        completed_at: when it ended.
        version: the fencing number; it grows with every claim, release and cancellation.
    """

    id: Id
    title: Label
    description: str | None
    task_type: Label
    status: TaskStatus
    config: JsonObject
    metadata: JsonObject | None
    workspace_path: str | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error: str | None
    lease_owner: Label | None
    lease_token: str | None
    leased_at: datetime | None
    lease_expires_at: datetime | None
    version: int


class TaskLease(msgspec.Struct, frozen=True):
    """The right to run and end a task until it expires. Its holder presents it.

    Attributes:
        task: the row as it was when the task was claimed, or the claim last renewed.
        owner: who claimed it.
        token: tells this claim from every other of the same owner.
        fencing_number: larger than that of every earlier holder of the task.
        expires_at: when it ends unless it is renewed.
    """

    resource: ClassVar[str] = "tasks"

    task: Task
    owner: str
    token: str
    fencing_number: int
    expires_at: datetime

    @property
    def task_id(self) -> str:
        """The id of the claimed task."""
        return self.task.id

    @property
    def resource_id(self) -> str:
        """The same, as for everything that is leased."""
        return self.task.id

    @classmethod
    def of(cls, task: Task) -> TaskLease:
        """Return the lease that a claimed row describes."""
        if task.lease_owner is None or task.lease_token is None or task.lease_expires_at is None:
            raise ValueError("the task is not claimed")
        return cls(task, task.lease_owner, task.lease_token, task.version, task.lease_expires_at)


class _Held(TypedDict):
    """What a statement asks of a claim to know that it is still held."""

    id: str
    version: int
    lease_owner: str
    lease_token: str


class _Waiting(TypedDict):
    """Who asks for a task, and from which place in the queue."""

    line_id: str
    position: int
    now: datetime
    latest_credible_expiry: datetime
    latest_credible_ticket: datetime


class _Claim(_Waiting):
    """The same, and the lease to take."""

    lease_owner: str
    lease_token: str
    lease_expires_at: datetime


class Tasks(LeasableRepository[Task, TaskLease]):
    """The tasks of orchestrators.

    A worker claims a task and ends it with its claim. Whoever needs no claim, say because it
    runs all tasks itself, starts and ends them by id; such a task is never taken over.
    """

    table = "tasks"
    row_type = Task
    _sql: TasksStatements
    held_type = TaskLease
    leased = "tasks"

    async def create(
        self,
        *,
        title: str,
        task_type: str,
        config: JsonObject | None = None,
        description: str | None = None,
        metadata: JsonObject | None = None,
        workspace_path: str | None = None,
        id: Id | None = None,
    ) -> Task:
        """Create a pending task, after those that are pending.

        Raises:
            AlreadyExists: a task has this `id`.
            InvalidValue: an argument is invalid.
        """
        return await self._created(
            self._sql.create_task(
                id=self._id(id),
                title=title,
                description=description,
                task_type=task_type,
                config={} if config is None else config,
                metadata=metadata,
                workspace_path=workspace_path,
                created_at=self._now(),
            )
        )

    async def get(self, task_id: Id) -> Task:
        """Return a task.

        Raises:
            NotFound: no task has this id.
            InvalidValue: `task_id` is not a valid id.
        """
        return await self._one(self._sql.get_task(id=task_id), task_id)

    # Without a claim.

    async def start(self, task_id: Id) -> Task:
        """Start a pending task without a claim: nobody takes it over.

        Raises:
            NotFound: no task has this id.
            InvalidTransition: it is not pending.
            InvalidValue: `task_id` is not a valid id.
        """
        return await self._moved(
            self._sql.start_task(id=task_id, now=self._now()), task_id, TaskStatus.RUNNING
        )

    async def complete(self, task_id: Id, *, metadata: JsonObject | None = None) -> Task:
        """Complete a task that was started without a claim.

        With `metadata`, that takes the place of what the task had.

        Raises:
            NotFound: no task has this id.
            InvalidTransition: it is not running, or is claimed: then its holder ends it.
            InvalidValue: `task_id` or `metadata` is invalid.
        """
        return await self._moved(
            self._sql.complete_task(id=task_id, metadata=metadata, now=self._now()),
            task_id,
            TaskStatus.COMPLETED,
        )

    async def fail(self, task_id: Id, *, error: str) -> Task:
        """Fail a task that is pending, or was started without a claim.

        Raises:
            NotFound: no task has this id.
            InvalidTransition: it has ended already, or is claimed: then its holder ends it.
            InvalidValue: `task_id` or `error` is invalid.
        """
        return await self._moved(
            self._sql.fail_task(id=task_id, error=error, now=self._now()),
            task_id,
            TaskStatus.FAILED,
        )

    async def cancel(self, task_id: Id) -> Task:
        """Cancel a task that has not ended, claimed or not; what its holder still does is refused.

        Raises:
            NotFound: no task has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `task_id` is not a valid id.
        """
        return await self._moved(
            self._sql.cancel_task(id=task_id, now=self._now()), task_id, TaskStatus.CANCELLED
        )

    async def delete(self, task_id: Id) -> None:
        """Delete a task that nobody holds and remove it from its workflows.

        One with many tool executions goes piece by piece, and other writers are served in between.
        It is cancelled first if it has not ended, and is in `deletions` until it is gone. A
        deletion that was cut short, by a cancellation or a fault, is finished by calling this
        again. In a transaction it is one statement, which holds the writer as long as it takes.

        Raises:
            NotFound: no task has this id, or another caller has deleted it meanwhile.
            InvalidTransition: it is claimed; carries the row as it is now. Nothing was removed.
            InvalidValue: `task_id` is not a valid id.
        """
        if not await self._deleted(self._deletion(task_id)):
            task = await self.get(task_id)
            raise InvalidTransition(self.table, task.status, "deleted", task)

    def _deletion(self, task_id: Id) -> deletion.Plan:
        now = self._now()
        latest = latest_credible_expiry(now)
        return deletion.Plan(
            weigh=self._sql.weigh_task(id=task_id, limit=deletion.SMALL_ROWS + 1),
            begin=(
                self._sql.cancel_task_to_delete(id=task_id, now=now, latest_credible_expiry=latest),
                self._sql.mark_task_deletion(id=task_id, now=now),
            ),
            pieces=(
                (
                    self._sql.cut_tool_executions(id=task_id, **deletion.cut()),
                    self._sql.purge_tool_executions_from_chain(id=task_id, now=now),
                    self._sql.delete_tool_executions_up_to_cut(id=task_id),
                ),
                (self._sql.leave_workflow_to_delete_task(id=task_id),),
            ),
            whole=self._sql.delete_task(id=task_id, now=now, latest_credible_expiry=latest),
        )

    # With a claim.

    async def claim(
        self,
        *,
        owner: str,
        ttl: timedelta,
        task_types: Collection[str] | None = None,
        wait: timedelta | None = None,
        spread: bool = False,
    ) -> TaskLease:
        """Claim the oldest pending task for `owner` until `ttl` from now, and start it.

        A task whose claim expired comes before all others. With `task_types` only tasks of these
        types are looked at. With `spread` the task comes from the workspace whose last claim is
        longest ago, so that a busy workspace does not starve the others. With `wait`, the caller
        queues for that long when there is none: first come, first served, across processes,
        among those who ask for the same types.

        Raises:
            LeaseUnavailable: there is no such task, or came none in time.
            InvalidValue: an argument is invalid.
            TransactionActive: `wait` was given in a transaction.
        """
        checked_ttl(ttl)
        checked_wait(wait)
        expect("spread", spread, bool, "a boolean")
        types = None if task_types is None else _checked(task_types)
        line_id = _queue_of(types)
        token = secrets.token_hex(16)

        def attempt(position: int) -> Call:
            now = self._now()
            asked: _Claim = {
                "line_id": line_id,
                "position": position,
                "lease_owner": owner,
                "lease_token": token,
                "lease_expires_at": now + ttl,
                "now": now,
                "latest_credible_expiry": latest_credible_expiry(now),
                "latest_credible_ticket": latest_credible_ticket(now),
            }
            if types is None:
                if spread:
                    return self._sql.claim_task_in_turn(**asked)
                return self._sql.claim_task(**asked)
            if spread:
                return self._sql.claim_task_of_types_in_turn(task_types=types, **asked)
            return self._sql.claim_task_of_types(task_types=types, **asked)

        def is_available(position: int) -> Call:
            now = self._now()
            asked: _Waiting = {
                "line_id": line_id,
                "position": position,
                "now": now,
                "latest_credible_expiry": latest_credible_expiry(now),
                "latest_credible_ticket": latest_credible_ticket(now),
            }
            if types is None:
                return self._sql.task_is_available(**asked)
            return self._sql.task_of_types_is_available(task_types=types, **asked)

        lease = await self._take_in_turn(
            line_id,
            owner=owner,
            wait=wait,
            attempt=attempt,
            is_available=is_available,
            abandon=self._abandonment(token),
        )
        if lease is None:
            raise LeaseUnavailable(resource=self.table)
        return lease

    async def renew(self, lease: TaskLease, *, ttl: timedelta) -> TaskLease:
        """Extend a claim until `ttl` from now and return it.

        Raises:
            LeaseLost: it expired, went to another holder, or the task ended; nothing was changed.
            InvalidValue: `lease` is no claim, or another value is refused.
        """
        now = self._now()
        row = await self._unless_lost(
            lease,
            self._sql.renew_task_claim(
                **_held(lease),
                lease_expires_at=now + checked_ttl(ttl),
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
            ),
        )
        return TaskLease.of(row)

    async def complete_claim(self, lease: TaskLease, *, metadata: JsonObject | None = None) -> Task:
        """Complete a claimed task and return it.

        With `metadata`, that takes the place of what the task had.

        Raises:
            LeaseLost: it expired, went to another holder, or the task ended; nothing was changed.
            InvalidValue: `lease` is no claim, or another value is refused.
        """
        now = self._now()
        return await self._unless_lost(
            lease,
            self._sql.complete_task_claim(
                **_held(lease),
                metadata=metadata,
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
            ),
        )

    async def fail_claim(self, lease: TaskLease, *, error: str) -> Task:
        """Fail a claimed task and return it.

        Raises:
            LeaseLost: it expired, went to another holder, or the task ended; nothing was changed.
            InvalidValue: `lease` is no claim, or another value is refused.
        """
        now = self._now()
        return await self._unless_lost(
            lease,
            self._sql.fail_task_claim(
                **_held(lease),
                error=error,
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
            ),
        )

    async def release(self, lease: TaskLease) -> Task:
        """Give back a claimed task and return it: it is pending again, in its old place.

        Raises:
            LeaseLost: it expired, went to another holder, or the task ended; nothing was changed.
            InvalidValue: `lease` is no claim.
        """
        now = self._now()
        return await self._unless_lost(
            lease,
            self._sql.release_task_claim(
                **_held(lease), now=now, latest_credible_expiry=latest_credible_expiry(now)
            ),
        )

    @asynccontextmanager
    async def hold(
        self,
        *,
        owner: str,
        ttl: timedelta,
        task_types: Collection[str] | None = None,
        wait: timedelta | None = None,
        spread: bool = False,
    ) -> AsyncIterator[TaskLease]:
        """Run a task in a body: `claim`, renew in the background, end with the body.

        The task is completed when the body ends, has failed when the body raises, and is given
        back when it is cancelled. The body may also end it itself, say in a transaction with
        what came of it. When the claim is lost, the body is cancelled and `LeaseLost` raised in
        its place.

        Raises:
            LeaseUnavailable: there is no such task, or came none in time.
            LeaseLost: the claim was lost before the body ended, or the task was cancelled.
            TransactionActive: `wait` was given in a transaction.
            InvalidValue: an argument is invalid.
        """
        lease = await self.claim(
            owner=owner, ttl=ttl, task_types=task_types, wait=wait, spread=spread
        )

        async def end(error: BaseException | None) -> None:
            if error is None:
                await self._unless_ended(lease, self.complete_claim(lease))
            elif isinstance(error, Exception):
                await self.fail_claim(lease, error=_described(error))
            else:
                await self.release(lease)

        async with self._holding(
            lease,
            ttl,
            renew=lambda: self._unless_ended(lease, self.renew(lease, ttl=ttl)),
            end=end,
        ):
            yield lease

    # Lists.

    async def list_by_status(
        self,
        status: TaskStatus | TaskStatusName,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Task, str]:
        """Return a page of the tasks in one status, newest first.

        Raises:
            InvalidValue: `status`, `after` or `limit` is invalid.
        """
        call = self._sql.list_tasks_by_status(
            status=status,
            **older_than(after),
            limit=checked_limit(limit),
        )
        return await self._page(call, limit, by_time)

    async def list_by_type(
        self, task_type: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Task, str]:
        """Return a page of the tasks of one type, newest first.

        Raises:
            InvalidValue: `task_type`, `after` or `limit` is invalid.
        """
        call = self._sql.list_tasks_by_type(
            task_type=task_type,
            **older_than(after),
            limit=checked_limit(limit),
        )
        return await self._page(call, limit, by_time)

    async def list_by_workspace(
        self, workspace_path: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Task, str]:
        """Return a page of the tasks in one workspace, newest first.

        Raises:
            InvalidValue: `workspace_path`, `after` or `limit` is invalid.
        """
        call = self._sql.list_tasks_by_workspace(
            workspace_path=workspace_path,
            **older_than(after),
            limit=checked_limit(limit),
        )
        return await self._page(call, limit, by_time)

    async def list_recent(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Task, str]:
        """Return a page of all tasks, newest first.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_recent_tasks(**older_than(after), limit=checked_limit(limit))
        return await self._page(call, limit, by_time)

    async def list_by_workflow(
        self, workflow_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Task, str]:
        """Return a page of a workflow's tasks, in order if they are no more than `limit`.

        Of a longer workflow each page is in order, but which tasks it holds goes by their ids: a
        task that stays in the workflow is on exactly one page, however often tasks are moved,
        added and removed between two pages. `workflow_tasks.list_by_workflow` has their places.

        Raises:
            InvalidValue: `workflow_id`, `after` or `limit` is invalid.
        """
        rows = await self._run(
            self._sql.list_tasks_by_workflow(
                workflow_id=workflow_id, after_id=after, limit=checked_limit(limit)
            )
        )
        page = page_of(rows, limit, _id_of)
        in_order = sorted(page.items, key=_place_of)
        return Page(self._decode([row[:-1] for row in in_order]), page.next)

    async def _moved(self, call: Call, task_id: Id, to_status: TaskStatus) -> Task:
        return await self._advanced(call, self._sql.get_task(id=task_id), task_id, to_status)

    def _abandonment(self, token: str) -> Callable[[], Call]:
        return lambda: self._sql.abandon_task_claim(
            lease_token=token, after=LONG_AGO, now=self._now()
        )

    def _held_of(self, row: Task) -> TaskLease:
        return TaskLease.of(row)

    def _check(self, held: TaskLease, now: datetime) -> Call:
        # A holder who has ended the task holds it still: a transaction may end it together with
        # what came of it.
        return self._sql.task_is_claimed(
            **_held(held), now=now, latest_credible_expiry=latest_credible_expiry(now)
        )

    def _counts(self, now: datetime) -> tuple[Call, Call]:
        latest = latest_credible_expiry(now)
        return (
            self._sql.count_live_task_claims(now=now, latest_credible_expiry=latest),
            self._sql.count_expired_task_claims(now=now, latest_credible_expiry=latest),
        )

    async def _unless_ended(self, lease: TaskLease, step: Awaitable[Step]) -> Step | None:
        """Take a step under a claim; None if its holder has ended the task, which is no loss."""
        try:
            return await step
        except LeaseLost:
            task = await self._find(self._sql.get_task(id=lease.task.id))
            ended = (TaskStatus.COMPLETED, TaskStatus.FAILED)
            if task is None or task.status not in ended or task.version != lease.fencing_number:
                raise
            return None


def _checked(task_types: Collection[str]) -> list[str]:
    """Return the types that a claim looks at in the one order that makes equal sets equal queues.

    Raises:
        InvalidValue: they are none, too many, or no texts.
    """
    what = f"texts, 1 to {MAX_TYPES}"
    types = listed(Tasks.table, "task_types", task_types, what, kind=str)
    if not 1 <= len(types) <= MAX_TYPES or not all(map(_is_encodable, types)):
        raise InvalidValue(
            Tasks.table,
            "task_types",
            f"must be several {what}",
            value_type=type(task_types).__name__,
        )
    return sorted(set(types))


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _queue_of(task_types: list[str] | None) -> str:
    """Return the id of the queue of those who look at these types."""
    return str(uuid5(_QUEUES, msgspec.json.encode(task_types).decode()))


def _described(error: Exception) -> str:
    """Return what a task failed with, as text that a column takes."""
    text = f"{type(error).__name__}: {error}".replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode(errors="replace").decode()[:MAX_TEXT]


def _held(lease: TaskLease) -> _Held:
    expect("lease", lease, TaskLease, "a claim that was granted")
    return {
        "id": lease.task.id,
        "version": lease.fencing_number,
        "lease_owner": lease.owner,
        "lease_token": lease.token,
    }


_id_of: Callable[[Values], str] = itemgetter(0)
_place_of: Callable[[Values], int] = itemgetter(-1)
