"""artifacts: the files that a session produced."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from metastore.codec import Id, JsonObject, Label, Row
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import ArtifactsStatements

__all__ = ["Artifact", "ArtifactType", "ArtifactTypeName", "Artifacts"]


class ArtifactType(StrEnum):
    """What kind of file it is."""

    LOG = "log"
    COVERAGE = "coverage"
    JUNIT_XML = "junit_xml"
    CRASH_DUMP = "crash_dump"
    TEST_FILE = "test_file"
    REPORT = "report"
    DIFF = "diff"
    BACKUP = "backup"


ArtifactTypeName = Literal[
    "log", "coverage", "junit_xml", "crash_dump", "test_file", "report", "diff", "backup"
]
"""The same as text, so that a type checker sees a misspelt one."""


class Artifact(Row, frozen=True):
    """A file that a session produced.

    Attributes:
        content_path: where it is.
        size_bytes: its size in bytes when it was recorded.
        sha256: its SHA-256 when it was recorded, 64 hexadecimal digits.
    """

    id: Id
    session_id: Id
    command_id: Id | None
    artifact_type: ArtifactType
    name: Label
    content_path: Annotated[str, msgspec.Meta(min_length=1)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)] | None
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")] | None
    metadata: JsonObject
    created_at: datetime


class Artifacts(TableRepository[Artifact]):
    """The files that sessions produced."""

    table = "artifacts"
    row_type = Artifact
    _sql: ArtifactsStatements

    async def create(
        self,
        *,
        session_id: Id,
        artifact_type: ArtifactType | ArtifactTypeName,
        name: str,
        content_path: str,
        command_id: Id | None = None,
        size_bytes: int | None = None,
        sha256: str | None = None,
        metadata: JsonObject | None = None,
        id: Id | None = None,
    ) -> Artifact:
        """Record a file, with its size and digest at this moment.

        Raises:
            InvalidReference: there is no such session or command.
            AlreadyExists: an artifact has this `id`.
            InvalidValue: an argument is invalid.
        """
        return await self._created(
            self._sql.create_artifact(
                id=self._id(id),
                session_id=session_id,
                command_id=command_id,
                artifact_type=artifact_type,
                name=name,
                content_path=content_path,
                size_bytes=size_bytes,
                sha256=sha256,
                metadata={} if metadata is None else metadata,
                created_at=self._now(),
            )
        )

    async def get(self, artifact_id: Id) -> Artifact:
        """Return an artifact.

        Raises:
            NotFound: no artifact has this id.
            InvalidValue: `artifact_id` is not a valid id.
        """
        return await self._one(self._sql.get_artifact(id=artifact_id), artifact_id)

    async def list_by_session(
        self, session_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Artifact, str]:
        """Return a page of a session's artifacts, oldest first.

        Raises:
            InvalidValue: `session_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_artifacts_by_session(
            session_id=session_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def list_by_type(
        self,
        artifact_type: ArtifactType | ArtifactTypeName,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Artifact, str]:
        """Return a page of the artifacts of one type, oldest first.

        Raises:
            InvalidValue: `artifact_type`, `after` or `limit` is invalid.
        """
        call = self._sql.list_artifacts_by_type(
            artifact_type=artifact_type, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def delete(self, artifact_id: Id) -> None:
        """Delete the record of a file; the file itself stays.

        Raises:
            NotFound: no artifact has this id.
            InvalidValue: `artifact_id` is not a valid id.
        """
        await self._one(self._sql.delete_artifact(id=artifact_id), artifact_id)
