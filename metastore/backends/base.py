"""What a backend offers to the store and its repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from metastore.errors import MetastoreError
    from metastore.statements import Call

__all__ = ["Backend", "Executor", "Guard", "Values"]

Values = tuple[Any, ...]
"""A row as the database returns it: one value for each column."""


class Guard(NamedTuple):
    """A condition that must hold when a transaction begins and when it commits.

    Attributes:
        check: makes the statement to ask; it returns a row while the condition holds. It is
            called anew each time, so that the time it asks for is the time of asking.
        error: makes what is raised when no row came back.
    """

    check: Callable[[], Call]
    error: Callable[[], MetastoreError]


class Executor(Protocol):
    """Where statements run: a backend, each operation for itself, or one open transaction."""

    async def run(self, call: Call) -> list[Values]:
        """Run one statement and return its rows.

        Raises:
            MetastoreError: the database refused; nothing was changed.
        """

    async def run_all(self, *calls: Call) -> list[list[Values]]:
        """Run several statements as one: all of them take effect or none.

        The operation ends, and is undone, at the first statement that expects a row (`^` and
        `<!`) and returns none. The answers up to there are returned, so that an answer shorter
        than the calls, or with an empty end, tells the caller where it stopped.

        Raises:
            MetastoreError: the database refused one of them; nothing was changed.
        """


class Backend(Executor, Protocol):
    """An open database."""

    def transaction(self, guard: Guard | None = None) -> AbstractAsyncContextManager[Executor]:
        """Open a transaction: committed at the end of the body, undone when it raises."""

    @property
    def changes(self) -> int:
        """A number that grows whenever anything may have been committed, by any process.

        Only `wait_for_change` keeps it up to date with other processes.
        """

    async def wait_for_change(self, seen: int, timeout: float) -> None:
        """Return when `changes` is not `seen` any more, at the latest after `timeout` seconds."""

    async def close(self) -> None:
        """Close the database. Operations in flight are answered; later ones are refused."""
