"""events: what happened in a session, in the order in which it became visible."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from metastore.codec import Id, JsonObject, Row, listed
from metastore.errors import InvalidValue, TransactionActive
from metastore.paging import DEFAULT_PAGE, MAX_PAGE, Page, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from metastore.statement_types import AppendEventsRow, EventsStatements

__all__ = ["MAX_EVENTS", "Event", "EventLevel", "EventLevelName", "Events", "NewEvent"]

MAX_EVENTS = 1_000
"""The most events of one call: all or none is one transaction, and these hold the writer for some
20 ms."""

RECHECK_INTERVAL = 1.0
"""How often a follower looks for itself, in seconds, should a commit not be noticed."""


class EventLevel(StrEnum):
    """How serious an event is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


EventLevelName = Literal["debug", "info", "warning", "error"]
"""The same as text, so that a type checker sees a misspelt one."""


class Event(Row, frozen=True):
    """Something that happened in a session. Events are history: they are never changed.

    Attributes:
        position: the place in the global order in which events became visible.
    """

    position: int
    id: Id
    session_id: Id
    event_type: Annotated[str, msgspec.Meta(min_length=1, max_length=50)]
    level: EventLevel
    message: str
    context: JsonObject
    created_at: datetime


class NewEvent(msgspec.Struct, frozen=True):
    """An event to append.

    Attributes:
        id: the caller's own id, so that a repeated call is refused and not stored twice.
    """

    event_type: str
    message: str
    level: str = EventLevel.INFO
    context: JsonObject | None = None
    id: str | None = None


class Events(TableRepository[Event]):
    """The events of all sessions."""

    table = "events"
    row_type = Event
    _sql: EventsStatements

    async def append(
        self,
        session_id: Id,
        event_type: str,
        message: str,
        level: EventLevel | EventLevelName = EventLevel.INFO,
        context: JsonObject | None = None,
        *,
        id: Id | None = None,
    ) -> Event:
        """Append an event and return it, with its position.

        Raises:
            InvalidReference: there is no such session.
            AlreadyExists: an event has this `id`.
            InvalidValue: an argument is invalid.
        """
        call = self._sql.append_event(
            id=self._id(id),
            session_id=session_id,
            event_type=event_type,
            level=level,
            message=message,
            context={} if context is None else context,
            created_at=self._now(),
        )
        [(position,)] = await self._run(call)
        [event] = self._decode([(position, *call.parameters)])
        return event

    async def append_many(self, session_id: Id, events: Iterable[NewEvent]) -> list[str]:
        """Append events in their order, all of them or none, and return their ids.

        At most `MAX_EVENTS` (1,000) at once, because others wait for the writer meanwhile. To store
        more of them together, append them in several calls inside a transaction.

        Raises:
            InvalidReference: there is no such session.
            AlreadyExists: an event has one of the ids.
            InvalidValue: an argument is invalid, or there are too many.
        """
        now = self._now()
        rows: list[AppendEventsRow] = [
            {
                "id": self._id(event.id),
                "session_id": session_id,
                "event_type": event.event_type,
                "level": event.level,
                "message": event.message,
                "context": {} if event.context is None else event.context,
                "created_at": now,
            }
            for event in listed(self.table, "events", events, "NewEvent", kind=NewEvent)
        ]
        if len(rows) > MAX_EVENTS:
            raise InvalidValue(self.table, "events", f"must be at most {MAX_EVENTS} at once")
        if rows:
            await self._run_all(self._sql.append_events.many(rows))
        return [row["id"] for row in rows]

    async def get(self, event_id: Id) -> Event:
        """Return an event.

        Raises:
            NotFound: no event has this id.
            InvalidValue: `event_id` is not a valid id.
        """
        return await self._one(self._sql.get_event(id=event_id), event_id)

    async def list_by_session(
        self, session_id: Id, *, after: int = 0, limit: int = DEFAULT_PAGE
    ) -> Page[Event, int]:
        """Return a page of a session's events, oldest first, starting after position `after`.

        Raises:
            InvalidValue: `session_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_events_by_session(
            session_id=session_id, after=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, lambda row: row.position)

    async def list(self, *, after: int = 0, limit: int = DEFAULT_PAGE) -> Page[Event, int]:
        """Return a page of all events, oldest first, starting after position `after`.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_events(after=after, limit=checked_limit(limit))
        return await self._page(call, limit, lambda row: row.position)

    async def follow(
        self, session_id: Id | None = None, *, after: int = 0
    ) -> AsyncGenerator[Event, None]:
        """Yield every event after position `after`, then each new one as it is committed.

        A follower that resumes from the position of the last event it saw misses none and sees
        none twice. It ends when the store is closed or its caller stops it.

        Raises:
            TransactionActive: a transaction sees no commits of others to follow.
            StoreClosed: the store was closed.
            InvalidValue: `session_id` or `after` is invalid.
        """
        backend = self._scope.backend
        if backend is None:
            raise TransactionActive("events are followed through the store, not a transaction")
        while True:
            seen = backend.changes
            page = (
                await self.list(after=after, limit=MAX_PAGE)
                if session_id is None
                else await self.list_by_session(session_id, after=after, limit=MAX_PAGE)
            )
            for event in page.items:
                yield event
                after = event.position
            if page.next is None:
                await backend.wait_for_change(seen, RECHECK_INTERVAL)
