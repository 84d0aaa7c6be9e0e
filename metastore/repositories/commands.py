"""commands: what a session runs, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import msgspec

from metastore.codec import Id, Row
from metastore.errors import InvalidTransition, InvalidValue
from metastore.paging import DEFAULT_PAGE, Page, checked_limit
from metastore.repositories.base import TableRepository
from metastore.repositories.sessions import Sessions

if TYPE_CHECKING:
    from metastore.statement_types import CommandsStatements
    from metastore.statements import Call

__all__ = ["Command", "CommandStatus", "Commands"]


class CommandStatus(StrEnum):
    """The status of a command. The last four are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


class Command(Row, frozen=True):
    """A command of a session.

    Attributes:
        sequence: its place in the session.
        argv: the program and its arguments; no shell splits them.
        exit_code: the exit code of the process; None if it did not exit by itself.
        log_path: the absolute path of its output.
    """

    id: Id
    session_id: Id
    sequence: int
    argv: list[str]
    working_directory: Annotated[str, msgspec.Meta(min_length=1)]
    status: CommandStatus
    exit_code: int | None
    log_path: (
        Annotated[str, msgspec.Meta(pattern=r"^(/|[A-Za-z]:[\\/])", description="an absolute path")]
        | None
    )
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


class Commands(TableRepository[Command]):
    """The commands of sessions."""

    table = "commands"
    row_type = Command
    _sql: CommandsStatements

    async def create(
        self,
        *,
        session_id: Id,
        argv: Sequence[str],
        working_directory: str,
        log_path: str | None = None,
        id: Id | None = None,
    ) -> Command:
        """Append a command to its session, pending.

        Raises:
            InvalidReference: there is no such session.
            InvalidTransition: the session has ended; carries the session.
            AlreadyExists: a command has this `id`.
            InvalidValue: an argument is invalid: `argv` is empty, `log_path` not absolute.
        """
        if not isinstance(argv, Sequence) or isinstance(argv, str | bytes) or not argv:
            raise InvalidValue(
                self.table, "argv", "must be a list of arguments", value_type=type(argv).__name__
            )
        command = await self._find(
            self._sql.create_command(
                id=self._id(id),
                session_id=session_id,
                argv=list(argv),
                working_directory=working_directory,
                log_path=log_path,
                created_at=self._now(),
            )
        )
        if command is None:
            raise await self._refusal(
                Sessions(self._scope), session_id, "command", column="session_id"
            )
        return command

    async def get(self, command_id: Id) -> Command:
        """Return a command.

        Raises:
            NotFound: no command has this id.
            InvalidValue: `command_id` is not a valid id.
        """
        return await self._one(self._sql.get_command(id=command_id), command_id)

    async def start(self, command_id: Id, *, log_path: str | None = None) -> Command:
        """Start a pending command; `log_path` if it was not known before.

        Raises:
            NotFound: no command has this id.
            InvalidTransition: it is not pending, or its session has ended; carries the one that
                refuses.
            InvalidValue: `log_path` is not absolute.
        """
        try:
            return await self._moved(
                self._sql.start_command(id=command_id, log_path=log_path, now=self._now()),
                command_id,
                CommandStatus.RUNNING,
            )
        except InvalidTransition as refused:
            if refused.from_state != CommandStatus.PENDING:
                raise
            session_id = refused.row.session_id
        raise await self._refusal(Sessions(self._scope), session_id, "command")

    async def finish(self, command_id: Id, *, exit_code: int) -> Command:
        """End a running command that exited: it is completed if `exit_code` is 0, else failed.

        Raises:
            NotFound: no command has this id.
            InvalidTransition: it is not running.
            InvalidValue: `exit_code` is no integer.
        """
        # A process that still runs has None, which the column would take.
        if exit_code is None:
            raise InvalidValue(self.table, "exit_code", "must be an integer", value_type="NoneType")
        return await self._moved(
            self._sql.finish_command(id=command_id, exit_code=exit_code, now=self._now()),
            command_id,
            CommandStatus.FAILED if exit_code else CommandStatus.COMPLETED,
        )

    async def fail(self, command_id: Id, *, error_message: str) -> Command:
        """Fail a command that could not run, or whose end nobody saw.

        Raises:
            NotFound: no command has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `command_id` or `error_message` is invalid.
        """
        return await self._moved(
            self._sql.fail_command(id=command_id, error_message=error_message, now=self._now()),
            command_id,
            CommandStatus.FAILED,
        )

    async def time_out(self, command_id: Id, *, error_message: str | None = None) -> Command:
        """Time out a running command: it was stopped for taking too long.

        Raises:
            NotFound: no command has this id.
            InvalidTransition: it is not running.
            InvalidValue: `command_id` or `error_message` is invalid.
        """
        return await self._moved(
            self._sql.time_out_command(id=command_id, error_message=error_message, now=self._now()),
            command_id,
            CommandStatus.TIMEOUT,
        )

    async def cancel(self, command_id: Id) -> Command:
        """Cancel a pending or running command.

        Raises:
            NotFound: no command has this id.
            InvalidTransition: it has already ended.
            InvalidValue: `command_id` is not a valid id.
        """
        return await self._moved(
            self._sql.cancel_command(id=command_id, now=self._now()),
            command_id,
            CommandStatus.CANCELLED,
        )

    async def list_by_session(
        self, session_id: Id, *, after: int = 0, limit: int = DEFAULT_PAGE
    ) -> Page[Command, int]:
        """Return a page of a session's commands in order, starting after sequence `after`.

        Raises:
            InvalidValue: `session_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_commands_by_session(
            session_id=session_id, after=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, lambda row: row.sequence)

    async def _moved(self, call: Call, command_id: Id, to_status: CommandStatus) -> Command:
        current = self._sql.get_command(id=command_id)
        return await self._advanced(call, current, command_id, to_status)
