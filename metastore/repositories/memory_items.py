"""memory_items: what agents remember, one note for each kind and key."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from metastore.codec import Id, Label, Row, listed, new_id
from metastore.errors import InvalidValue, LimitExceeded
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import MemoryItemsStatements

__all__ = ["MemoryItem", "MemoryItems"]


class MemoryItem(Row, frozen=True):
    """A note of a job's agents.

    Attributes:
        kind: what sort of note it is.
        key: what it is found by, within its kind.
        content: any JSON value.
        tags: words to search by, each once.
    """

    id: Id
    job_id: Id
    kind: Label
    key: Label
    content: Any
    tags: list[Label]
    created_at: datetime
    updated_at: datetime


class _PageOfJob(TypedDict):
    """Which page of which job is read."""

    job_id: str
    after_id: str | None
    limit: int


class MemoryItems(TableRepository[MemoryItem]):
    """What the agents of all jobs noted, within the limits of `memory_limits`."""

    table = "memory_items"
    row_type = MemoryItem
    _sql: MemoryItemsStatements

    async def put(
        self, job_id: Id, *, kind: str, key: str, content: Any, tags: Iterable[str] = ()
    ) -> MemoryItem:
        """Store `content` under `kind` and `key`, replacing what was there, and return the note.

        Repeating the call is harmless. Of a tag that is given twice, one is kept.

        Raises:
            LimitExceeded: the job would have more items, or the item more bytes or tags, than
                the limits that hold for the job allow.
            InvalidReference: there is no such job.
            InvalidValue: an argument is invalid.
        """
        words = _words(tags)
        while True:
            row = await self._find(
                self._sql.put_memory_item(
                    id=new_id(),
                    job_id=job_id,
                    kind=kind,
                    key=key,
                    content=content,
                    tags=words,
                    created_at=self._now(),
                )
            )
            if row is not None:
                return row
            # Room was freed meanwhile; retry.
            [measured] = await self._run(
                self._sql.measure_memory_item(
                    job_id=job_id, kind=kind, key=key, content=content, tags=words
                )
            )
            max_bytes, item_bytes, max_tags, item_tags, max_items, items = measured
            for limit, maximum, actual in (
                ("max_item_bytes", max_bytes, item_bytes),
                ("max_item_tags", max_tags, item_tags),
                ("max_items", max_items, items),
            ):
                if actual > maximum:
                    raise LimitExceeded(job_id, limit=limit, maximum=maximum, actual=actual)

    async def get(self, job_id: Id, *, kind: str, key: str) -> MemoryItem:
        """Return a note.

        Raises:
            NotFound: the job has none under this kind and key.
            InvalidValue: `job_id`, `kind` or `key` is invalid.
        """
        return await self._one(
            self._sql.get_memory_item(job_id=job_id, kind=kind, key=key), (job_id, kind, key)
        )

    async def find(self, job_id: Id, *, kind: str, key: str) -> MemoryItem | None:
        """Return a note, or None if the job has none under this kind and key.

        Raises:
            InvalidValue: `job_id`, `kind` or `key` is invalid.
        """
        return await self._find(self._sql.get_memory_item(job_id=job_id, kind=kind, key=key))

    async def list_by_job(
        self,
        job_id: Id,
        *,
        kind: str | None = None,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[MemoryItem, str]:
        """Return a page of a job's notes, of one kind or all, oldest first.

        Raises:
            InvalidValue: `job_id`, `kind`, `after` or `limit` is invalid.
        """
        return await self.search(job_id, kind=kind, after=after, limit=limit)

    async def search(
        self,
        job_id: Id,
        *,
        tags: Iterable[str] = (),
        match: Literal["all", "any"] = "all",
        kind: str | None = None,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[MemoryItem, str]:
        """Return a page of a job's notes that have all of the tags, or any of them.

        Without tags, every note matches. The notes are ordered by when they were first stored.

        Raises:
            InvalidValue: `match` is neither, or a value is refused.
        """
        if not isinstance(match, str) or match not in ("all", "any"):
            raise InvalidValue(
                None, "match", "must be 'all' or 'any'", value_type=type(match).__name__
            )
        words = _words(tags)
        page: _PageOfJob = {"job_id": job_id, "after_id": after, "limit": checked_limit(limit)}
        if kind is None:
            if not words:
                call = self._sql.list_memory_items_by_job(**page)
            elif match == "all":
                call = self._sql.search_memory_items_with_all(tags=words, **page)
            else:
                call = self._sql.search_memory_items_with_any(tags=words, **page)
        elif not words:
            call = self._sql.list_memory_items_by_kind(kind=kind, **page)
        elif match == "all":
            call = self._sql.search_memory_items_of_kind_with_all(kind=kind, tags=words, **page)
        else:
            call = self._sql.search_memory_items_of_kind_with_any(kind=kind, tags=words, **page)
        return await self._page(call, limit, by_id)

    async def delete(self, job_id: Id, *, kind: str, key: str) -> None:
        """Delete a note.

        Raises:
            NotFound: the job has none under this kind and key.
            InvalidValue: `job_id`, `kind` or `key` is invalid.
        """
        await self._one(
            self._sql.delete_memory_item(job_id=job_id, kind=kind, key=key), (job_id, kind, key)
        )


def _words(tags: Iterable[str]) -> list[str]:
    """Return the tags in their order, each once."""
    words = listed("memory_items", "tags", tags, "texts")
    try:
        return list(dict.fromkeys(words))
    except TypeError:
        raise InvalidValue(
            "memory_items", "tags", "must be several texts", value_type=type(tags).__name__
        ) from None
