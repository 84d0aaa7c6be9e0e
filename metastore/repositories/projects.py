"""projects: the projects that sessions work on."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec

from metastore.codec import Id, JsonObject, Label, Row, new_id
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import ProjectsStatements

__all__ = ["Project", "Projects"]


class Project(Row, frozen=True):
    """A project that sessions work on.

    Attributes:
        path: the canonical path, by which sessions refer to it.
        created_at: when it was first seen.
        updated_at: when something last happened to it.
    """

    id: Id
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    name: Label | None
    config: JsonObject
    created_at: datetime
    updated_at: datetime


class Projects(TableRepository[Project]):
    """The projects that sessions work on, one for each path."""

    table = "projects"
    row_type = Project
    _sql: ProjectsStatements

    async def ensure(
        self, *, path: str, name: str | None = None, config: JsonObject | None = None
    ) -> Project:
        """Register the project at `path`, or touch it if it is known, and return it.

        A `name` or `config` that is given replaces what is stored, one that is not leaves it as
        it is. Repeating the call is harmless.

        Raises:
            InvalidValue: an argument is invalid.
        """
        now = self._now()
        if config is None:
            return await self._created(
                self._sql.ensure_project(id=new_id(), path=path, name=name, created_at=now)
            )
        return await self._created(
            self._sql.ensure_configured_project(
                id=new_id(), path=path, name=name, config=config, created_at=now
            )
        )

    async def get(self, project_id: Id) -> Project:
        """Return a project.

        Raises:
            NotFound: no project has this id.
            InvalidValue: `project_id` is not a valid id.
        """
        return await self._one(self._sql.get_project(id=project_id), project_id)

    async def find_by_path(self, path: str) -> Project | None:
        """Return the project at this path, or None.

        Raises:
            InvalidValue: `path` is invalid.
        """
        return await self._find(self._sql.find_project_by_path(path=path))

    async def list(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Project, str]:
        """Return a page of the projects, in the order of their registration.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_projects(after_id=after, limit=checked_limit(limit))
        return await self._page(call, limit, by_id)

    async def delete(self, project_id: Id) -> None:
        """Delete a project that no session refers to, with its lock.

        Raises:
            NotFound: no project has this id.
            InvalidReference: sessions still refer to it.
            InvalidValue: `project_id` is not a valid id.
        """
        await self._one(self._sql.delete_project(id=project_id), project_id)
