"""steps: the steps of a session, in order."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from metastore.codec import Id, Row
from metastore.errors import InvalidTransition
from metastore.paging import DEFAULT_PAGE, Page, checked_limit
from metastore.repositories.base import TableRepository
from metastore.repositories.sessions import Sessions

if TYPE_CHECKING:
    from metastore.statement_types import StepsStatements
    from metastore.statements import Call

__all__ = ["Step", "StepStatus", "Steps"]

_BEFORE_ALL = -(1 << 63)

_MAX_SEQUENCE = (1 << 31) - 1
"""Leaves room for the steps that are appended after it."""


class StepStatus(StrEnum):
    """The status of a step. The last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Step(Row, frozen=True):
    """A step of a session.

    Attributes:
        sequence: its place in the session.
        input: what it was given, any JSON.
        output: what it gave, any JSON.
    """

    id: Id
    session_id: Id
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    sequence: Annotated[int, msgspec.Meta(le=_MAX_SEQUENCE)]
    status: StepStatus
    input: Any | None
    output: Any | None
    error_message: str | None
    started_at: datetime | None
    completed_at: datetime | None


class Steps(TableRepository[Step]):
    """The steps of sessions."""

    table = "steps"
    row_type = Step
    _sql: StepsStatements

    async def create(
        self,
        *,
        session_id: Id,
        name: str,
        sequence: int | None = None,
        input: Any | None = None,
        id: Id | None = None,
    ) -> Step:
        """Plan a step, at `sequence` or else after the last one of its session.

        Raises:
            InvalidReference: there is no such session.
            InvalidTransition: the session has ended; carries the session.
            AlreadyExists: the session has a step at this `sequence`, or a step has this `id`.
            InvalidValue: an argument is invalid.
        """
        step_id = self._id(id)
        if sequence is None:
            create = self._sql.create_step(
                id=step_id, session_id=session_id, name=name, input=input
            )
        else:
            create = self._sql.create_step_at(
                id=step_id, session_id=session_id, name=name, sequence=sequence, input=input
            )
        step = await self._find(create)
        if step is None:
            raise await self._refusal(
                Sessions(self._scope), session_id, "step", column="session_id"
            )
        return step

    async def get(self, step_id: Id) -> Step:
        """Return a step.

        Raises:
            NotFound: no step has this id.
            InvalidValue: `step_id` is not a valid id.
        """
        return await self._one(self._sql.get_step(id=step_id), step_id)

    async def start(self, step_id: Id) -> Step:
        """Start a pending step.

        Raises:
            NotFound: no step has this id.
            InvalidTransition: it is not pending, or its session has ended; carries the one that
                refuses.
            InvalidValue: `step_id` is not a valid id.
        """
        try:
            return await self._moved(
                self._sql.start_step(id=step_id, now=self._now()), step_id, StepStatus.RUNNING
            )
        except InvalidTransition as refused:
            if refused.from_state != StepStatus.PENDING:
                raise
            session_id = refused.row.session_id
        raise await self._refusal(Sessions(self._scope), session_id, "step")

    async def complete(self, step_id: Id, *, output: Any | None = None) -> Step:
        """Complete a running step.

        Raises:
            NotFound: no step has this id.
            InvalidTransition: it is not running.
            InvalidValue: `output` is not JSON.
        """
        return await self._moved(
            self._sql.complete_step(id=step_id, output=output, now=self._now()),
            step_id,
            StepStatus.COMPLETED,
        )

    async def fail(self, step_id: Id, *, error_message: str) -> Step:
        """Fail a pending or running step.

        Raises:
            NotFound: no step has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `step_id` or `error_message` is invalid.
        """
        return await self._moved(
            self._sql.fail_step(id=step_id, error_message=error_message, now=self._now()),
            step_id,
            StepStatus.FAILED,
        )

    async def skip(self, step_id: Id) -> Step:
        """Skip a pending step.

        Raises:
            NotFound: no step has this id.
            InvalidTransition: it is not pending.
            InvalidValue: `step_id` is not a valid id.
        """
        return await self._moved(
            self._sql.skip_step(id=step_id, now=self._now()), step_id, StepStatus.SKIPPED
        )

    async def list_by_session(
        self, session_id: Id, *, after: int | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Step, int]:
        """Return a page of a session's steps in order, starting after sequence `after`.

        Raises:
            InvalidValue: `session_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_steps_by_session(
            session_id=session_id,
            after=_BEFORE_ALL if after is None else after,
            limit=checked_limit(limit),
        )
        return await self._page(call, limit, lambda row: row.sequence)

    async def _moved(self, call: Call, step_id: Id, to_status: StepStatus) -> Step:
        return await self._advanced(call, self._sql.get_step(id=step_id), step_id, to_status)
