"""sessions: what was executed, for whom, and with which result."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from metastore import deletion
from metastore.codec import Id, JsonObject, Row, expect, new_id
from metastore.errors import InvalidTransition, InvalidValue, NotFound, TokenRejected
from metastore.paging import DEFAULT_PAGE, Page, by_id, by_time, checked_limit, older_than
from metastore.repositories.auth_tokens import AuthTokens
from metastore.repositories.base import TableRepository
from metastore.repositories.worktrees import Worktrees, WorktreeState

if TYPE_CHECKING:
    from metastore.statement_types import SessionsStatements
    from metastore.statements import Call

__all__ = [
    "Session",
    "SessionMode",
    "SessionModeName",
    "SessionStatus",
    "SessionStatusName",
    "SessionType",
    "SessionTypeName",
    "Sessions",
]


class SessionType(StrEnum):
    """What a session is for: a debug session on a repository, or a workflow on a project."""

    DEBUG = "debug"
    MAVEN_MAINTENANCE = "maven_maintenance"
    TEST_GENERATION = "test_generation"
    DOCKER_DEPLOYMENT = "docker_deployment"


SessionTypeName = Literal["debug", "maven_maintenance", "test_generation", "docker_deployment"]
"""The same as text, so that a type checker sees a misspelt one."""


class SessionStatus(StrEnum):
    """The status of a session. The last three are final."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


SessionStatusName = Literal["pending", "in_progress", "paused", "completed", "failed", "cancelled"]
"""The same as text, so that a type checker sees a misspelt one."""


_ENDS = frozenset({SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.CANCELLED})


class SessionMode(StrEnum):
    """How autonomously a session works."""

    INTERACTIVE = "interactive"
    AUTONOMOUS = "autonomous"
    ANALYSIS_ONLY = "analysis_only"
    DEBUG = "debug"


SessionModeName = Literal["interactive", "autonomous", "analysis_only", "debug"]
"""The same as text, so that a type checker sees a misspelt one."""


class Session(Row, frozen=True):
    """An execution session.

    Attributes:
        config: what was asked for.
        result: its result, any JSON.
        metadata: what the client added.
        completed_at: when it ended.
    """

    id: Id
    session_type: SessionType
    status: SessionStatus
    mode: SessionMode
    project_path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)] | None
    repository_id: Id | None
    worktree_id: Id | None
    auth_token_id: Id | None
    config: JsonObject
    result: Any | None
    metadata: JsonObject
    error_message: str | None
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more work."""
        return self.status in _ENDS


class Sessions(TableRepository[Session]):
    """The execution sessions."""

    table = "sessions"
    row_type = Session
    _sql: SessionsStatements

    async def create(
        self,
        *,
        session_type: SessionType | SessionTypeName,
        repository_id: Id | None = None,
        project_path: str | None = None,
        worktree_id: Id | None = None,
        auth_token_id: Id | None = None,
        mode: SessionMode | SessionModeName = SessionMode.INTERACTIVE,
        config: JsonObject | None = None,
        metadata: JsonObject | None = None,
        id: Id | None = None,
    ) -> Session:
        """Create a pending session.

        A debug session has a `repository_id`, every other a `project_path`. The project is
        registered, or touched, in the same transaction.

        Raises:
            InvalidReference: there is no such repository, worktree or token.
            TokenRejected: the token is revoked or has expired.
            InvalidTransition: the worktree is retired; carries the worktree.
            AlreadyExists: a session has this `id`.
            InvalidValue: an argument is missing or invalid.
        """
        expect("session_type", session_type, str, "text")
        if session_type == SessionType.DEBUG and repository_id is None:
            raise InvalidValue(self.table, "repository_id", "must be given for a debug session")
        if session_type != SessionType.DEBUG and project_path is None:
            raise InvalidValue(self.table, "project_path", "must be given unless it is debug")
        now = self._now()
        create = self._sql.create_session(
            id=self._id(id),
            session_type=session_type,
            mode=mode,
            project_path=project_path,
            repository_id=repository_id,
            worktree_id=worktree_id,
            auth_token_id=auth_token_id,
            config={} if config is None else config,
            metadata={} if metadata is None else metadata,
            created_at=now,
        )
        if project_path is None:
            rows = await self._run(create)
        else:
            touch = self._sql.touch_project(project_id=new_id(), path=project_path, now=now)
            _, rows = await self._run_all(touch, create)
        if not rows:
            if auth_token_id is not None:
                token = await AuthTokens(self._scope).get(auth_token_id)
                if not token.is_live(now):
                    raise TokenRejected
            raise await self._worktree_retired(worktree_id)
        [session] = self._decode(rows)
        return session

    async def get(self, session_id: Id) -> Session:
        """Return a session.

        Raises:
            NotFound: no session has this id.
            InvalidValue: `session_id` is not a valid id.
        """
        return await self._one(self._sql.get_session(id=session_id), session_id)

    async def start(self, session_id: Id, *, worktree_id: Id | None = None) -> Session:
        """Start a pending session; `worktree_id` if it was not known before.

        Raises:
            NotFound: no session has this id.
            InvalidTransition: it is not pending, or its worktree is retired; carries the one that
                refuses.
            InvalidReference: there is no such worktree.
            InvalidValue: `session_id` or `worktree_id` is invalid.
        """
        try:
            return await self._moved(
                self._sql.start_session(id=session_id, worktree_id=worktree_id, now=self._now()),
                session_id,
                SessionStatus.IN_PROGRESS,
            )
        except InvalidTransition as refused:
            if refused.from_state != SessionStatus.PENDING:
                raise
            worktree_id = worktree_id or refused.row.worktree_id
        raise await self._worktree_retired(worktree_id)

    async def pause(self, session_id: Id) -> Session:
        """Pause a session that is in progress.

        Raises:
            NotFound: no session has this id.
            InvalidTransition: it is not in progress.
            InvalidValue: `session_id` is not a valid id.
        """
        return await self._moved(
            self._sql.pause_session(id=session_id, now=self._now()),
            session_id,
            SessionStatus.PAUSED,
        )

    async def resume(self, session_id: Id) -> Session:
        """Resume a paused session.

        Raises:
            NotFound: no session has this id.
            InvalidTransition: it is not paused.
            InvalidValue: `session_id` is not a valid id.
        """
        return await self._moved(
            self._sql.resume_session(id=session_id, now=self._now()),
            session_id,
            SessionStatus.IN_PROGRESS,
        )

    async def complete(self, session_id: Id, *, result: Any | None = None) -> Session:
        """Complete a session that is in progress.

        Raises:
            NotFound: no session has this id.
            InvalidTransition: it is not in progress.
            InvalidValue: `result` is not JSON.
        """
        return await self._moved(
            self._sql.complete_session(id=session_id, result=result, now=self._now()),
            session_id,
            SessionStatus.COMPLETED,
        )

    async def fail(self, session_id: Id, *, error_message: str) -> Session:
        """Fail a session that has not ended.

        Raises:
            NotFound: no session has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `session_id` or `error_message` is invalid.
        """
        return await self._moved(
            self._sql.fail_session(id=session_id, error_message=error_message, now=self._now()),
            session_id,
            SessionStatus.FAILED,
        )

    async def cancel(self, session_id: Id) -> Session:
        """Cancel a session that has not ended.

        Raises:
            NotFound: no session has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `session_id` is not a valid id.
        """
        return await self._moved(
            self._sql.cancel_session(id=session_id, now=self._now()),
            session_id,
            SessionStatus.CANCELLED,
        )

    async def list_by_status(
        self,
        status: SessionStatus | SessionStatusName,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Session, str]:
        """Return a page of the sessions in one status, newest first.

        Raises:
            InvalidValue: `status`, `after` or `limit` is invalid.
        """
        call = self._sql.list_sessions_by_status(
            status=status, **older_than(after), limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_time)

    async def list_by_project(
        self, project_path: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Session, str]:
        """Return a page of one project's sessions, newest first.

        Raises:
            InvalidValue: `project_path`, `after` or `limit` is invalid.
        """
        call = self._sql.list_sessions_by_project(
            project_path=project_path, **older_than(after), limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_time)

    async def list_recent(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Session, str]:
        """Return a page of all sessions, newest first.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_recent_sessions(**older_than(after), limit=checked_limit(limit))
        return await self._page(call, limit, by_time)

    async def list_active(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Session, str]:
        """Return a page of the sessions that are pending or in progress, oldest first.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_active_sessions(after_id=after, limit=checked_limit(limit))
        return await self._page(call, limit, by_id)

    async def list_open_by_worktree(self, worktree_id: Id) -> list[Session]:
        """Return the sessions in a worktree that have not ended.

        Raises:
            InvalidValue: `worktree_id` is not a valid id.
        """
        return await self._all(self._sql.list_open_sessions_by_worktree(worktree_id=worktree_id))

    async def count_open_by_auth_token(self, auth_token_id: Id) -> int:
        """Return how many sessions that a token opened have not ended.

        Raises:
            InvalidValue: `auth_token_id` is not a valid id.
        """
        count: int = await self._scalar(
            self._sql.count_open_sessions_by_auth_token(auth_token_id=auth_token_id)
        )
        return count

    async def delete(self, session_id: Id) -> None:
        """Delete a session with its steps, events, commands, artifacts, checkpoints and locks.

        A large one goes piece by piece, and other writers are served in between. It is cancelled
        first if it has not ended, and is in `deletions` until it is gone. A deletion that was cut
        short, by a cancellation or a fault, is finished by calling this again. In a transaction it
        is one statement, which holds the writer as long as it takes.

        Raises:
            NotFound: no session has this id, or another caller has deleted it meanwhile.
            InvalidValue: `session_id` is not a valid id.
        """
        if not await self._deleted(self._deletion(session_id)):
            raise NotFound(self.table, session_id)

    def _deletion(self, session_id: Id) -> deletion.Plan:
        now = self._now()
        return deletion.Plan(
            weigh=self._sql.weigh_session(id=session_id, limit=deletion.SMALL_ROWS + 1),
            begin=(
                self._sql.cancel_session_to_delete(id=session_id, now=now),
                self._sql.mark_session_deletion(id=session_id, now=now),
            ),
            pieces=(
                (
                    self._sql.cut_events(id=session_id, **deletion.cut()),
                    self._sql.purge_events_from_chain(id=session_id, now=now),
                    self._sql.delete_events_up_to_cut(id=session_id),
                ),
                (self._sql.delete_artifacts_of_session(id=session_id, **deletion.cut()),),
                (self._sql.delete_commands_of_session(id=session_id, **deletion.cut()),),
                (self._sql.delete_steps_of_session(id=session_id, **deletion.cut()),),
                (self._sql.delete_debugger_state_of_session(id=session_id, **deletion.cut()),),
                (self._sql.delete_locks_of_session(id=session_id, limit=deletion.PIECE_ROWS),),
            ),
            whole=self._sql.delete_session(id=session_id),
        )

    async def _worktree_retired(self, worktree_id: Id | None) -> InvalidTransition:
        """Return the error for a session that was refused because of its worktree."""
        worktree = await Worktrees(self._scope).get(worktree_id or "")
        return InvalidTransition(
            Worktrees.table, WorktreeState.RETIRED, "session", worktree, is_work=True
        )

    async def _moved(self, call: Call, session_id: Id, to_status: SessionStatus) -> Session:
        current = self._sql.get_session(id=session_id)
        return await self._advanced(call, current, session_id, to_status)
