"""client_sessions: which clients are connected, and when each was last heard from."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from metastore import deletion
from metastore.codec import Id, JsonObject, Label, Row, duration
from metastore.errors import InvalidTransition
from metastore.leasing.limits import CLOCK_SKEW, MAX_TTL
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import ClientSessionsStatements

__all__ = [
    "HEARTBEAT_INTERVAL",
    "ClientConnectionType",
    "ClientConnectionTypeName",
    "ClientSession",
    "ClientSessions",
]

HEARTBEAT_INTERVAL = timedelta(seconds=10)
"""How often a heartbeat is written at most, unless the caller says otherwise."""

_LONGEST_SILENCE = timedelta(days=3650)


class ClientConnectionType(StrEnum):
    """How a client is connected."""

    WEBSOCKET = "websocket"
    HTTP = "http"
    GRPC = "grpc"


ClientConnectionTypeName = Literal["websocket", "http", "grpc"]
"""The same as text, so that a type checker sees a misspelt one."""


class ClientSession(Row, frozen=True):
    """A connection of a client.

    Attributes:
        client_id: which client it is; a client may have several sessions.
        user_id: the user who is logged in, or None.
        last_heartbeat: when the client was last heard from, to within the heartbeat interval.
    """

    id: Id
    client_id: Label
    user_id: Label | None
    connection_type: ClientConnectionType
    is_active: bool
    metadata: JsonObject | None
    created_at: datetime
    updated_at: datetime
    last_heartbeat: datetime


class ClientSessions(TableRepository[ClientSession]):
    """The connections of clients."""

    table = "client_sessions"
    row_type = ClientSession
    _sql: ClientSessionsStatements

    async def open(
        self,
        *,
        client_id: str,
        connection_type: ClientConnectionType | ClientConnectionTypeName,
        user_id: str | None = None,
        metadata: JsonObject | None = None,
        id: Id | None = None,
    ) -> ClientSession:
        """Record that a client has connected.

        Raises:
            AlreadyExists: a session has this `id`.
            InvalidValue: an argument is invalid.
        """
        return await self._created(
            self._sql.open_client_session(
                id=self._id(id),
                client_id=client_id,
                user_id=user_id,
                connection_type=connection_type,
                metadata=metadata,
                created_at=self._now(),
            )
        )

    async def get(self, session_id: Id) -> ClientSession:
        """Return a session.

        Raises:
            NotFound: no session has this id.
            InvalidValue: `session_id` is not a valid id.
        """
        return await self._one(self._sql.get_client_session(id=session_id), session_id)

    async def heartbeat(
        self, session_id: Id, *, interval: timedelta = HEARTBEAT_INTERVAL
    ) -> ClientSession:
        """Record a heartbeat of a client and return its session.

        However often it is called, and from however many processes, it writes at most once per
        `interval` and session; every other call only reads.

        Raises:
            NotFound: there is no session with this id.
            InvalidTransition: it is closed; the client has to open another.
            InvalidValue: `interval` is refused.
        """
        duration("interval", interval, longest=MAX_TTL)
        current = self._sql.get_client_session(id=session_id)
        row = _open(await self._one(current, session_id))
        now = self._now()
        if timedelta(0) <= now - row.last_heartbeat < interval:
            return row
        beat = await self._find(
            self._sql.beat_client_session(id=session_id, now=now, beaten_before=now - interval)
        )
        return beat or _open(await self._one(current, session_id))

    async def close(self, session_id: Id) -> ClientSession:
        """Record that a client has disconnected.

        Raises:
            NotFound: there is no session with this id.
            InvalidTransition: it is closed already.
            InvalidValue: `session_id` is not a valid id.
        """
        closed = await self._find(
            self._sql.close_client_session(id=session_id, updated_at=self._now())
        )
        if closed is None:
            row = await self.get(session_id)
            raise InvalidTransition(self.table, "closed", "closed", row)
        return closed

    async def close_stale(self, *, older_than: timedelta) -> int:
        """Close every session whose client was silent for `older_than`; return how many.

        A session whose last heartbeat lies further ahead than clocks may differ counts as stale:
        a clock that was ahead wrote it. A heartbeat that arrives before this replaces it.

        They are closed piece by piece, so that heartbeats are not kept waiting.

        Raises:
            InvalidValue: `older_than` is refused.
        """
        duration("older_than", older_than, longest=_LONGEST_SILENCE)
        now = self._now()
        return await deletion.repeat(
            self._scope.executor,
            self._sql.close_stale_client_sessions(
                beaten_before=now - older_than,
                latest_credible_beat=now + CLOCK_SKEW,
                now=now,
                limit=deletion.PIECE_ROWS,
            ),
        )

    async def list_active(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[ClientSession, str]:
        """Return a page of the open sessions, oldest first.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_active_client_sessions(after_id=after, limit=checked_limit(limit))
        return await self._page(call, limit, by_id)

    async def list_by_client(
        self, client_id: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[ClientSession, str]:
        """Return a page of a client's sessions, open or closed, the oldest first.

        Raises:
            InvalidValue: `client_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_client_sessions_by_client(
            client_id=client_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def list_by_user(
        self, user_id: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[ClientSession, str]:
        """Return a page of a user's sessions, open or closed, the oldest first.

        Raises:
            InvalidValue: `user_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_client_sessions_by_user(
            user_id=user_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def delete(self, session_id: Id) -> None:
        """Delete a session, open or closed.

        Raises:
            NotFound: no session has this id.
            InvalidValue: `session_id` is not a valid id.
        """
        await self._one(self._sql.delete_client_session(id=session_id), session_id)


def _open(row: ClientSession) -> ClientSession:
    if not row.is_active:
        raise InvalidTransition(ClientSessions.table, "closed", "open", row)
    return row
