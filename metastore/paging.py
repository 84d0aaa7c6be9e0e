"""Keyset pages: a list is read page by page, each from where the last one ended."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from metastore.codec import FIRST_ID, timestamp
from metastore.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FIRST_ID", "MAX_PAGE", "NEWEST", "Page", "TimeCursor", "checked_limit", "page_of"]

MAX_PAGE = 1_000
"""The most items a page may have."""

_LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"

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
