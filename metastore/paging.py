"""Keyset pages: a list is read page by page, each from where the last one ended."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, ParamSpec, Protocol, TypedDict, TypeVar

import msgspec

from metastore.codec import FIRST_ID, timestamp
from metastore.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

__all__ = [
    "DEFAULT_PAGE",
    "FIRST_ID",
    "MAX_PAGE",
    "NEWEST",
    "Page",
    "TimeCursor",
    "by_id",
    "by_time",
    "checked_limit",
    "every",
    "older_than",
    "page_of",
]

DEFAULT_PAGE = 50
"""How many items a page has unless its reader asks for another number."""

MAX_PAGE = 1_000
"""The most items a page may have."""

_LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Cursor = TypeVar("Cursor", str, int)


class Page(msgspec.Struct, Generic[Item, Cursor], frozen=True):
    """Part of a list.

    Attributes:
        items: the rows, in the list's order.
        next: what to hand in as `after` to read on; None at the end of the list.
    """

    items: list[Item]
    next: Cursor | None


class TimeCursor(msgspec.Struct, frozen=True):
    """A place in a list that is ordered by time, newest first, then by id."""

    created_at: datetime
    id: str

    def __str__(self) -> str:
        return f"{timestamp(self.created_at)}/{self.id}"

    @classmethod
    def parse(cls, text: str | None) -> TimeCursor:
        """Return the cursor that `text` is; None is the newest end of the list.

        Raises:
            InvalidValue: no page gave this out.
        """
        if text is None:
            return NEWEST
        if isinstance(text, str):
            moment, _, row_id = text.partition("/")
            # Whatever is not written as a page writes it is refused, also what means the same.
            with contextlib.suppress(ValueError, OverflowError):
                cursor = cls(datetime.fromisoformat(moment), row_id)
                if str(cursor) == text:
                    return cursor
        raise InvalidValue(
            None, "after", "must be the `next` of a page", value_type=type(text).__name__
        )


NEWEST = TimeCursor(datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), _LAST_ID)


def checked_limit(limit: int, name: str = "limit") -> int:
    """Return the number of rows to read for a page of `limit`: one more, to know if it is the last.

    Raises:
        InvalidValue: `limit`, the argument `name`, is not from 1 to `MAX_PAGE`.
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_PAGE:
        raise InvalidValue(
            None,
            name,
            f"must be an integer from 1 to {MAX_PAGE}",
            value_type=type(limit).__name__,
        )
    return limit + 1


def page_of(rows: list[Item], limit: int, cursor: Callable[[Item], Cursor]) -> Page[Item, Cursor]:
    """Return the first `limit` of `rows` as a page, which has a next one if there are more."""
    items = rows[:limit]
    return Page(items, cursor(items[-1]) if len(rows) > limit else None)


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


class _HasTime(_HasId, Protocol):
    @property
    def created_at(self) -> datetime: ...


def by_id(row: _HasId) -> str:
    """Return where a list ordered by id reads on after `row`."""
    return row.id


def by_time(row: _HasTime) -> str:
    """Return where a list ordered by time, newest first, reads on after `row`."""
    return str(TimeCursor(row.created_at, row.id))


class _OlderThan(TypedDict):
    """What a statement that lists the newest rows first reads on from."""

    created_at: datetime
    after_id: str


def older_than(after: str | None) -> _OlderThan:
    """Return the parameters that `after` stands for in a list ordered by time, newest first.

    Raises:
        InvalidValue: no page gave out `after`.
    """
    cursor = TimeCursor.parse(after)
    return {"created_at": cursor.created_at, "after_id": cursor.id}


async def every(
    list_page: Callable[Arguments, Awaitable[Page[Item, Cursor]]],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> AsyncGenerator[Item, None]:
    """Yield every item of a list, which is read page by page as the caller goes on.

    ```python
    async for job in every(store.jobs.list_by_status, "failed"):
        ...
    ```

    The arguments are those of `list_page`. It reads from `after` on, if given, in pages of `limit`
    items, `MAX_PAGE` unless given. Each page is read for itself: what others change meanwhile may
    or may not be seen. In a transaction all pages show the same moment.

    Raises:
        InvalidValue: an argument is invalid.
    """
    kwargs.setdefault("limit", MAX_PAGE)
    while True:
        page = await list_page(*args, **kwargs)
        for item in page.items:
            yield item
        if page.next is None:
            return
        kwargs["after"] = page.next
