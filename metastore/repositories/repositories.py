"""repositories: the upstream repositories whose worktrees are leased."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from metastore.codec import Id, JsonObject, Label, Row
from metastore.paging import DEFAULT_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import RepositoriesStatements

__all__ = ["Repositories", "Repository"]


class Repository(Row, frozen=True):
    """An upstream repository."""

    id: Id
    name: Label
    remote_url: str
    default_branch: Label
    metadata: JsonObject
    created_at: datetime
    updated_at: datetime


class Repositories(TableRepository[Repository]):
    """The upstream repositories whose worktrees are leased."""

    table = "repositories"
    row_type = Repository
    _sql: RepositoriesStatements

    async def create(
        self,
        *,
        name: str,
        remote_url: str,
        default_branch: str = "main",
        metadata: JsonObject | None = None,
        id: Id | None = None,
    ) -> Repository:
        """Register a repository under a name that no other has.

        A caller that passes its own `id` can safely retry a call whose answer was lost.

        Raises:
            AlreadyExists: another repository has this name, or this id.
            InvalidValue: an argument is invalid.
        """
        return await self._created(
            self._sql.create_repository(
                id=self._id(id),
                name=name,
                remote_url=remote_url,
                default_branch=default_branch,
                metadata={} if metadata is None else metadata,
                created_at=self._now(),
            )
        )

    async def get(self, repository_id: Id) -> Repository:
        """Return a repository.

        Raises:
            NotFound: no repository has this id.
            InvalidValue: `repository_id` is not a valid id.
        """
        return await self._one(self._sql.get_repository(id=repository_id), repository_id)

    async def find_by_name(self, name: str) -> Repository | None:
        """Return the repository of this name, or None.

        Raises:
            InvalidValue: `name` is invalid.
        """
        return await self._find(self._sql.find_repository_by_name(name=name))

    async def list(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Repository, str]:
        """Return a page of the repositories, in the order of their registration.

        Raises:
            InvalidValue: `after` or `limit` is invalid.
        """
        call = self._sql.list_repositories(after_id=after, limit=checked_limit(limit))
        return await self._page(call, limit, by_id)

    async def update(
        self,
        repository_id: Id,
        *,
        remote_url: str,
        default_branch: str,
        metadata: JsonObject,
    ) -> Repository:
        """Update a repository and return it.

        Raises:
            NotFound: no repository has this id.
            InvalidValue: an argument is invalid.
        """
        return await self._one(
            self._sql.update_repository(
                id=repository_id,
                remote_url=remote_url,
                default_branch=default_branch,
                metadata=metadata,
                updated_at=self._now(),
            ),
            repository_id,
        )

    async def delete(self, repository_id: Id) -> None:
        """Delete a repository that has no worktrees and no sessions.

        Raises:
            NotFound: no repository has this id.
            InvalidReference: worktrees or sessions still refer to it.
            InvalidValue: `repository_id` is not a valid id.
        """
        await self._one(self._sql.delete_repository(id=repository_id), repository_id)
