"""memory_limits: how much a job may remember."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec

from metastore.codec import Id, Row, expect, new_id
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import MemoryLimitsStatements

__all__ = ["JobMemoryLimits", "MemoryLimits"]

_Limit = Annotated[int, msgspec.Meta(ge=0)]


class MemoryLimits(Row, frozen=True):
    """How much a job may remember.

    Attributes:
        job_id: the job whose own limits they are, or None for the default of all others.
        max_items: memory items of a job.
        max_item_bytes: bytes of an item's content, as JSON.
        max_item_tags: tags of an item.
        max_files: memory files of a job.
        max_file_bytes: bytes of a file.
        max_job_file_bytes: bytes of all files of a job.
    """

    id: Id
    job_id: Id | None
    max_items: _Limit
    max_item_bytes: _Limit
    max_item_tags: _Limit
    max_files: _Limit
    max_file_bytes: _Limit
    max_job_file_bytes: _Limit
    created_at: datetime
    updated_at: datetime


class JobMemoryLimits(TableRepository[MemoryLimits]):
    """The limits of all jobs. A lower limit stops further writes; what is stored stays."""

    table = "memory_limits"
    row_type = MemoryLimits
    _sql: MemoryLimitsStatements

    async def get(self, job_id: Id) -> MemoryLimits:
        """Return the limits that apply to a job: its own, or else the default.

        Raises:
            InvalidValue: `job_id` is not a valid id.
        """
        return await self._one(self._sql.get_memory_limits(job_id=job_id), job_id)

    async def get_default(self) -> MemoryLimits:
        """Return the limits of the jobs that have none of their own."""
        return await self._one(self._sql.get_default_memory_limits(), None)

    async def set(
        self,
        job_id: Id,
        *,
        max_items: int | None = None,
        max_item_bytes: int | None = None,
        max_item_tags: int | None = None,
        max_files: int | None = None,
        max_file_bytes: int | None = None,
        max_job_file_bytes: int | None = None,
    ) -> MemoryLimits:
        """Set a job's own limits and return them; those not given stay as they apply to it.

        From then on the default no longer applies to the job.

        Raises:
            InvalidReference: there is no such job.
            InvalidValue: a limit is refused.
        """
        # The column may be NULL: the default's is.
        expect("job_id", job_id, str, "text")
        return await self._created(
            self._sql.set_memory_limits(
                id=new_id(),
                job_id=job_id,
                max_items=max_items,
                max_item_bytes=max_item_bytes,
                max_item_tags=max_item_tags,
                max_files=max_files,
                max_file_bytes=max_file_bytes,
                max_job_file_bytes=max_job_file_bytes,
                created_at=self._now(),
            )
        )

    async def set_default(
        self,
        *,
        max_items: int | None = None,
        max_item_bytes: int | None = None,
        max_item_tags: int | None = None,
        max_files: int | None = None,
        max_file_bytes: int | None = None,
        max_job_file_bytes: int | None = None,
    ) -> MemoryLimits:
        """Change the limits of the jobs that have none of their own, and return them.

        Those not given stay as they are.

        Raises:
            InvalidValue: a limit is refused.
        """
        return await self._created(
            self._sql.set_default_memory_limits(
                max_items=max_items,
                max_item_bytes=max_item_bytes,
                max_item_tags=max_item_tags,
                max_files=max_files,
                max_file_bytes=max_file_bytes,
                max_job_file_bytes=max_job_file_bytes,
                updated_at=self._now(),
            )
        )

    async def delete(self, job_id: Id) -> None:
        """Delete a job's own limits: the default applies to it again.

        Raises:
            NotFound: it has none.
            InvalidValue: `job_id` is not a valid id.
        """
        await self._one(self._sql.delete_memory_limits(job_id=job_id), job_id)
