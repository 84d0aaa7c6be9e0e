"""lease_limits: what every process agrees to believe of an expiry."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec

from metastore.codec import Row
from metastore.errors import LimitsMismatch
from metastore.leasing import limits
from metastore.repositories.base import TableRepository

if TYPE_CHECKING:
    from metastore.statement_types import LeaseLimitsStatements

__all__ = ["LeaseLimits", "LeaseLimitsRow"]

_MILLISECOND = timedelta(milliseconds=1)


class LeaseLimitsRow(Row, frozen=True):
    """The longest TTL in this database, and the clock skew that it tolerates."""

    id: int
    max_ttl_ms: Annotated[int, msgspec.Meta(gt=0)]
    clock_skew_ms: Annotated[int, msgspec.Meta(ge=0)]

    @property
    def max_ttl(self) -> timedelta:
        """The longest time that anything can be held for."""
        return self.max_ttl_ms * _MILLISECOND

    @property
    def clock_skew(self) -> timedelta:
        """How far a clock may be wrong."""
        return self.clock_skew_ms * _MILLISECOND


class LeaseLimits(TableRepository[LeaseLimitsRow]):
    """The limits of the database. They never change while a store is open."""

    table = "lease_limits"
    row_type = LeaseLimitsRow
    _sql: LeaseLimitsStatements

    async def get(self) -> LeaseLimitsRow:
        """Return the limits of the database.

        Raises:
            NotFound: somebody removed them behind the store's back.
        """
        return await self._one(self._sql.get_lease_limits(), 1)

    async def check(self) -> None:
        """Check that the code believes what the database and its other processes do.

        Raises:
            LimitsMismatch: it does not: it would take over what another process holds.
            NotFound: somebody removed the limits behind the store's back.
        """
        agreed = await self.get()
        if (agreed.max_ttl, agreed.clock_skew) != (limits.MAX_TTL, limits.CLOCK_SKEW):
            raise LimitsMismatch(
                agreed.max_ttl, agreed.clock_skew, limits.MAX_TTL, limits.CLOCK_SKEW
            )
