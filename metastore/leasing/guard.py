"""Which repository a held thing belongs to: the one that guards and renews it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from metastore.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from metastore.backends.base import Guard

__all__ = ["Leasable", "keeper_of"]


class Leasable(Protocol):
    """A repository whose rows are leased.

    Attributes:
        table: the table of the leases.
        held_type: what a holder shows.
        leased: what is leased, in the plural.
    """

    table: ClassVar[str]
    held_type: ClassVar[type[Any]]
    leased: ClassVar[str]

    def guard(self, held: Any, /) -> Guard:
        """Return the condition that `held` is still held, for a transaction."""

    async def renew(self, held: Any, /, *, ttl: timedelta) -> Any:
        """Let it run until `ttl` from now, and return it so.

        Raises:
            LeaseLost: it is over; nothing was changed.
        """

    async def count_held(self) -> tuple[int, int]:
        """Return how many are held, and how many expired without a release."""


AnyLeasable = TypeVar("AnyLeasable", bound=Leasable)


def keeper_of(held: object, repositories: Iterable[AnyLeasable]) -> AnyLeasable:
    """Return the repository that granted `held`.

    Raises:
        InvalidValue: none of them grants such a thing.
    """
    granted = []
    for repository in repositories:
        if isinstance(held, repository.held_type):
            return repository
        granted.append(repository.held_type.__name__)
    # Unguarded, a transaction would commit whatever became of what the caller holds.
    raise InvalidValue(
        None, "lease", f"must be one of {', '.join(granted)}", value_type=type(held).__name__
    )
