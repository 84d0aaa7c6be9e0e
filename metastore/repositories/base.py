"""What every table's repository has in common."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from metastore import codec, deletion
from metastore.backends.base import RowCheck
from metastore.errors import InvalidReference, InvalidTransition, NotFound
from metastore.paging import Cursor, Page, page_of
from metastore.statements import Catalogue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from datetime import datetime

    from metastore.backends.base import Backend, Columns, Executor, Values
    from metastore.errors import MetastoreError
    from metastore.statements import Call

__all__ = ["Scope", "TableRepository", "load_statements", "row_checks"]

AnyRow = TypeVar("AnyRow", bound=codec.Row)
OtherRow = TypeVar("OtherRow", bound=codec.Row)


class Scope(NamedTuple):
    """Where a repository's statements run, and what time it is there.

    Attributes:
        executor: the store's backend, where each operation commits by itself, or a transaction.
        now: the time of an operation; within a transaction it stands still.
        backend: the store's backend; None within a transaction, where nothing can be waited for.
        columns: how the backend holds values, and the dialect that it speaks.
    """

    executor: Executor
    now: Callable[[], datetime]
    backend: Backend | None
    columns: Columns


class Parents(Protocol):
    """A repository whose rows have a status, and others that belong to them."""

    table: ClassVar[str]

    def get(self, key: str, /) -> Awaitable[Any]:
        """Return a row.

        Raises:
            NotFound: there is none with this id.
        """


class TableRepository(Generic[AnyRow]):
    """The operations on one table. Subclasses name the table, its row type and its key."""

    table: ClassVar[str]
    row_type: type[AnyRow]
    key: ClassVar[tuple[str, ...]] = ("id",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._now = scope.now
        self._run = scope.executor.run
        self._run_all = scope.executor.run_all
        # Each subclass declares the type that `metastore.statement_types` has for its table.
        self._sql: Any = _catalogue(self.table, self.row_type, scope.columns)
        self._decode: Callable[[Sequence[Values]], list[AnyRow]] = _decoder(
            self.table, self.row_type, scope.columns, self.key
        )

    @classmethod
    def inspector(cls, columns: Columns) -> codec.Inspector:
        """Return the function that says what is wrong with a row of the table, if anything is."""
        return codec.inspector(cls.row_type, columns, table=cls.table, key=cls.key)

    def _decoder_of(
        self, row_type: type[OtherRow], table: str
    ) -> Callable[[Sequence[Values]], list[OtherRow]]:
        """Return what turns rows of another table, or in another shape, into `row_type`s."""
        decode: Callable[[Sequence[Values]], list[OtherRow]] = _decoder(
            table, row_type, self._scope.columns
        )
        return decode

    @staticmethod
    def _id(id: str | None) -> str:
        """Return the id that the caller chose for a row, or a fresh one for None.

        "" is not None: a caller that passes it by mistake is refused, and a retry stores nothing.
        """
        return codec.new_id() if id is None else id

    async def _all(self, call: Call) -> list[AnyRow]:
        """Run a statement that returns rows of the table."""
        return self._decode(await self._run(call))

    async def _page(
        self, call: Call, limit: int, cursor: Callable[[AnyRow], Cursor]
    ) -> Page[AnyRow, Cursor]:
        """Run a statement that reads `checked_limit(limit)` rows, and return a page of them.

        `cursor` returns where the list reads on after a row.
        """
        return page_of(self._decode(await self._run(call)), limit, cursor)

    async def _find(self, call: Call) -> AnyRow | None:
        """Run a statement that returns one row of the table, or none."""
        rows = self._decode(await self._run(call))
        return rows[0] if rows else None

    async def _one(self, call: Call, key: object) -> AnyRow:
        """Run a statement that returns the row that `key` names.

        Raises:
            NotFound: it returned none.
        """
        row = await self._find(call)
        if row is None:
            raise NotFound(self.table, key)
        return row

    async def _created(self, call: Call) -> AnyRow:
        """Run an INSERT and return its row."""
        [row] = self._decode(await self._run(call))
        return row

    async def _advanced(self, call: Call, current: Call, key: str, to_state: str) -> AnyRow:
        """Run a conditional UPDATE of the row's status and return the row.

        Raises:
            NotFound: `current` finds no such row.
            InvalidTransition: the row's status does not allow it.
        """
        row = await self._find(call)
        if row is None:
            row = await self._one(current, key)
            raise InvalidTransition(self.table, row["status"], to_state, row)
        return row

    async def _refusal(
        self, parents: Parents, key: str, work: str, *, column: str | None = None
    ) -> MetastoreError:
        """Return the error for `work` that the state of the parent row `key` refused.

        If there is no such row, that is `InvalidReference` in `column`, or else `NotFound`.
        """
        try:
            parent = await parents.get(key)
        except NotFound as missing:
            return (
                missing if column is None else InvalidReference(self.table, column, parents.table)
            )
        return InvalidTransition(parents.table, parent.status, work, parent, is_work=True)

    async def _deleted(self, plan: deletion.Plan) -> bool:
        """Delete a row with all that belongs to it; False if it is gone or cannot be deleted.

        Inside a caller's transaction it is one statement: pieces would let nobody in.
        """
        if self._scope.backend is None:
            return bool(await self._run(plan.whole))
        return await deletion.delete(self._scope.executor, plan)

    async def _scalar(self, call: Call) -> Any:
        """Run a statement that returns one value; None if it returned no row."""
        rows = await self._run(call)
        return rows[0][0] if rows else None


def load_statements(repositories: Iterable[type[TableRepository[Any]]], columns: Columns) -> None:
    """Read the statements of `repositories`' tables, unless this process has read them.

    A store that is open never reads them from disk: an upgrade of the package under a running
    process must not mix the statements of two releases.

    Raises:
        FileNotFoundError: the installation has lost its statement files.
    """
    for repository in repositories:
        row_type: type[codec.Row] = repository.row_type
        _catalogue(repository.table, row_type, columns)
        _decoder(repository.table, row_type, columns, repository.key)


def row_checks(
    repositories: Iterable[type[TableRepository[Any]]], columns: Columns
) -> dict[str, RowCheck]:
    """Return how the rows of each of `repositories`' tables are checked, by table."""
    return {
        it.table: RowCheck(it.row_type.__struct_fields__, it.inspector(columns))
        for it in repositories
    }


@cache
def _catalogue(table: str, row_type: type[codec.Row], columns: Columns) -> Catalogue:
    return Catalogue(table, row_type, columns)


@cache
def _decoder(
    table: str, row_type: type[AnyRow], columns: Columns, key: tuple[str, ...] = ("id",)
) -> Callable[[Sequence[Values]], list[AnyRow]]:
    return codec.decoder(row_type, columns, table=table, key=key)
