"""debugger_state: checkpoints of a debugger, taken while its session is active."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from metastore.codec import Id, Label, Row
from metastore.paging import DEFAULT_PAGE, Page, checked_limit
from metastore.repositories.base import TableRepository
from metastore.repositories.sessions import Sessions

if TYPE_CHECKING:
    from metastore.statement_types import DebuggerStateStatements

__all__ = ["DebuggerState", "DebuggerStates"]


class DebuggerState(Row, frozen=True):
    """A checkpoint.

    Attributes:
        sequence: its place in the session.
        state: what the debugger needs to resume from here, any JSON.
    """

    id: Id
    session_id: Id
    sequence: int
    label: Label | None
    state: Any
    created_at: datetime


class DebuggerStates(TableRepository[DebuggerState]):
    """The debugger checkpoints of sessions."""

    table = "debugger_state"
    row_type = DebuggerState
    _sql: DebuggerStateStatements

    async def checkpoint(
        self, session_id: Id, state: Any, *, label: str | None = None, id: Id | None = None
    ) -> DebuggerState:
        """Take a checkpoint of an active session: one that is pending, in progress or paused.

        Raises:
            NotFound: there is no such session.
            InvalidTransition: the session has ended; carries the session.
            AlreadyExists: a checkpoint has this `id`.
            InvalidValue: `state` is no JSON.
        """
        taken = await self._find(
            self._sql.checkpoint_session(
                id=self._id(id),
                session_id=session_id,
                label=label,
                state=state,
                created_at=self._now(),
            )
        )
        if taken is None:
            raise await self._refusal(Sessions(self._scope), session_id, "checkpoint")
        return taken

    async def get(self, checkpoint_id: Id) -> DebuggerState:
        """Return a checkpoint.

        Raises:
            NotFound: no checkpoint has this id.
            InvalidValue: `checkpoint_id` is not a valid id.
        """
        return await self._one(self._sql.get_checkpoint(id=checkpoint_id), checkpoint_id)

    async def latest(self, session_id: Id) -> DebuggerState:
        """Return the last checkpoint of a session.

        Raises:
            NotFound: the session has none.
            InvalidValue: `session_id` is not a valid id.
        """
        return await self._one(self._sql.latest_checkpoint(session_id=session_id), session_id)

    async def find_latest(self, session_id: Id) -> DebuggerState | None:
        """Return the last checkpoint of a session, or None.

        Raises:
            InvalidValue: `session_id` is not a valid id.
        """
        return await self._find(self._sql.latest_checkpoint(session_id=session_id))

    async def list_by_session(
        self, session_id: Id, *, after: int = 0, limit: int = DEFAULT_PAGE
    ) -> Page[DebuggerState, int]:
        """Return a page of a session's checkpoints, oldest first, starting after `after`.

        Raises:
            InvalidValue: `session_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_checkpoints_by_session(
            session_id=session_id, after=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, lambda row: row.sequence)
