"""budget_reservations: what is promised to a model call and not yet spent."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec

from metastore import money
from metastore.codec import Id, Label, Row, new_id
from metastore.errors import (
    AlreadyExists,
    BudgetExceeded,
    InvalidTransition,
    InvalidValue,
    JobCancelled,
    NotFound,
)
from metastore.leasing.limits import checked_ttl, latest_credible_expiry
from metastore.paging import DEFAULT_PAGE, Page, checked_limit
from metastore.repositories.base import TableRepository
from metastore.repositories.jobs import Job, JobStatus

if TYPE_CHECKING:
    from metastore.backends.base import Values
    from metastore.statement_types import BudgetReservationsStatements

__all__ = ["Budget", "BudgetReservation", "BudgetReservations", "Reserved"]

WARN_AT = Decimal("0.8")
"""The share of a limit from which on a budget warns, unless the caller says otherwise."""

# A share may have as many digits as any float. What is longer is refused: nobody means it.
_SHARES = Context(traps=[])
_SMALLEST_EXPONENT = -400
_MOST_DIGITS = 1_000

_NOTHING = ""
"""The request id that no request has."""

_MINUTE = timedelta(minutes=1)
_JOB_COLUMNS = len(Job.__struct_fields__)


class BudgetReservation(Row, frozen=True):
    """A promise of money to a call in flight. It counts as spent until it expires."""

    id: Id
    job_id: Id
    request_id: Label
    amount_nano_usd: Annotated[int, msgspec.Meta(ge=0, le=money.MAX_NANO)]
    expires_at: datetime
    created_at: datetime

    @property
    def amount_usd(self) -> Decimal:
        """The most that the call may cost, in dollars."""
        return money.from_nano(self.amount_nano_usd)


class Budget(msgspec.Struct, frozen=True):
    """The budget of a job: its limits, what is spent and what is reserved.

    Attributes:
        limit: what it may spend, in dollars; None is no limit, as for the two below.
        spent: what its cost entries add up to.
        reserved: what live reservations hold.
        remaining: what can still be reserved; None without a limit, below zero if calls cost more
            than was reserved for them.
        max_requests: how many model calls it may make.
        requests_made: how many it has paid for.
        requests_reserved: how many are in flight.
        deadline: until when it may make them.
        warnings: which limits are used up to the share that was asked for: `budget_usd`,
            `max_requests`, `max_minutes`. They warn, and refuse nothing.
    """

    job_id: str
    limit: Decimal | None
    spent: Decimal
    reserved: Decimal
    remaining: Decimal | None
    max_requests: int | None
    requests_made: int
    requests_reserved: int
    deadline: datetime | None
    warnings: tuple[str, ...]

    @property
    def warn(self) -> bool:
        """Whether a limit is nearly used up."""
        return bool(self.warnings)


class Reserved(msgspec.Struct, frozen=True):
    """A reservation that was made.

    Attributes:
        reservation: its row.
        budget: the job's budget with this reservation in it.
    """

    reservation: BudgetReservation
    budget: Budget


class BudgetReservations(TableRepository[BudgetReservation]):
    """The promises of money to calls in flight."""

    table = "budget_reservations"
    row_type = BudgetReservation
    _sql: BudgetReservationsStatements

    async def reserve(
        self,
        job_id: Id,
        *,
        request_id: str,
        amount_usd: money.Amount,
        ttl: timedelta,
        warn_at: Decimal | float = WARN_AT,
    ) -> Reserved:
        """Promise `amount_usd`, the most that a call may cost, to the call `request_id`.

        What was spent, what is promised to others and this must stay within the job's limits; the
        check and the reservation are one statement, so that no two callers get the same money.
        `cost_entries.record` replaces the reservation by what the call did cost. Without that it
        expires after `ttl`, which should be longer than the call can take.

        The same request may reserve again: the new amount and expiry replace the old ones.

        Raises:
            BudgetExceeded: a limit leaves no room for it; names the limit and what is used.
            JobCancelled: the job was cancelled.
            InvalidTransition: the job is not running.
            AlreadyExists: the cost of this request was recorded already: the call was made, and
                `cost_entries.find_by_request` returns its cost.
            NotFound: there is no such job.
            InvalidValue: an argument is invalid.
        """
        now = self._now()
        amount = money.to_nano(amount_usd, table=self.table, column="amount_usd")
        share = _share(warn_at)
        believed = latest_credible_expiry(now)
        # Bound first: it names what it refuses as the caller does.
        reserve = self._sql.reserve_budget(
            id=new_id(),
            job_id=job_id,
            request_id=request_id,
            amount_nano_usd=amount,
            expires_at=now + checked_ttl(ttl),
            created_at=now,
            latest_credible_expiry=believed,
        )
        answers = await self._run_all(
            self._sql.forget_expired_reservations(job_id=job_id, now=now),
            self._sql.get_budget(
                job_id=job_id, except_request=request_id, now=now, latest_credible_expiry=believed
            ),
            reserve,
        )
        if not answers[1]:
            raise NotFound("jobs", job_id)
        state = self._state(answers[1][0])
        if not answers[2]:
            state.refuse(amount, now)
        [reservation] = self._decode(answers[2])
        state.reserved += amount
        state.requests_reserved += 1
        return Reserved(reservation, state.budget(share, now))

    async def release(self, job_id: Id, request_id: str) -> None:
        """Release the reservation of a call that is not made; harmless if there is none.

        Raises:
            InvalidValue: `job_id` or `request_id` is invalid.
        """
        await self._run(self._sql.release_reservation(job_id=job_id, request_id=request_id))

    async def budget(self, job_id: Id, *, warn_at: Decimal | float = WARN_AT) -> Budget:
        """Return the budget of a job: its limits, what is spent and what is reserved.

        Raises:
            NotFound: there is no such job.
            InvalidValue: `warn_at` is not a share.
        """
        now = self._now()
        share = _share(warn_at)
        rows = await self._run(
            self._sql.get_budget(
                job_id=job_id,
                except_request=_NOTHING,
                now=now,
                latest_credible_expiry=latest_credible_expiry(now),
            )
        )
        if not rows:
            raise NotFound("jobs", job_id)
        return self._state(rows[0]).budget(share, now)

    async def list_by_job(
        self, job_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[BudgetReservation, str]:
        """Return a page of a job's reservations by request, also of some that have expired.

        Raises:
            InvalidValue: `job_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_reservations_by_job(
            job_id=job_id, after_request=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, lambda row: row.request_id)

    def _state(self, row: Values) -> _State:
        [job] = self._decoder_of(Job, "jobs")([row[:_JOB_COLUMNS]])
        return _State(job, *row[_JOB_COLUMNS:])


class _State:
    """What a reservation was decided on: the job, and what is promised to other requests."""

    def __init__(self, job: Job, reserved: int, requests_reserved: int, recorded: Any) -> None:
        self.job = job
        self.reserved = reserved
        self.requests_reserved = requests_reserved
        self.recorded = recorded

    def refuse(self, amount: int, now: datetime) -> NoReturn:
        """Raise why `amount` was not reserved: the conditions of `reserve_budget`, one by one."""
        job = self.job
        if job.cancelled:
            raise JobCancelled(job)
        if job.status != JobStatus.RUNNING:
            raise InvalidTransition("jobs", job.status, "reserving", job, is_work=True)
        if self.recorded:
            raise AlreadyExists("cost_entries", ("job_id", "request_id"))
        limit = money.MAX_NANO if job.budget_nano_usd is None else job.budget_nano_usd
        if self.reserved + job.cost_nano_usd + amount > limit:
            raise BudgetExceeded(
                job.id,
                resource="budget_usd",
                limit=money.from_nano(limit),
                spent=job.cost_usd,
                reserved=money.from_nano(self.reserved),
                requested=money.from_nano(amount),
            )
        if (
            job.max_requests is not None
            and job.requests_made + self.requests_reserved >= job.max_requests
        ):
            raise BudgetExceeded(
                job.id,
                resource="max_requests",
                limit=job.max_requests,
                spent=job.requests_made,
                reserved=self.requests_reserved,
                requested=1,
            )
        raise BudgetExceeded(
            job.id,
            resource="max_minutes",
            limit=job.max_minutes,
            spent=self._minutes(now),
            reserved=0,
            requested=1,
        )

    def budget(self, share: Fraction, now: datetime) -> Budget:
        """Return the budget, with a warning for each limit that is used up to `share`."""
        job = self.job
        limit = job.budget_nano_usd
        committed = job.cost_nano_usd + self.reserved
        used = {
            "budget_usd": (committed, limit),
            "max_requests": (job.requests_made + self.requests_reserved, job.max_requests),
            "max_minutes": (self._minutes(now), job.max_minutes),
        }
        return Budget(
            job_id=job.id,
            limit=job.budget_usd,
            spent=job.cost_usd,
            reserved=money.from_nano(self.reserved),
            remaining=None if limit is None else money.from_nano(limit - committed),
            max_requests=job.max_requests,
            requests_made=job.requests_made,
            requests_reserved=self.requests_reserved,
            deadline=job.deadline,
            warnings=tuple(
                resource
                for resource, (amount, most) in used.items()
                if most is not None and amount >= most * share
            ),
        )

    def _minutes(self, now: datetime) -> int:
        """Return how many whole minutes the job has run for."""
        return 0 if self.job.started_at is None else (now - self.job.started_at) // _MINUTE


def _share(warn_at: Decimal | float) -> Fraction:
    """Return `warn_at` as it is written: 0.8 is four fifths.

    Raises:
        InvalidValue: it is not a share from 0 to 1.
    """
    share = _fraction(warn_at)
    if share is None:
        raise InvalidValue(
            None, "warn_at", "must be a number from 0 to 1", value_type=type(warn_at).__name__
        )
    return share


def _fraction(warn_at: object) -> Fraction | None:
    """Return a share from 0 to 1 as it is written, or None if it is none.

    The range is checked before the fraction is made, which writes out every digit: of
    Decimal("1e999999999") there are a billion, and of a tiny share as many zeros.
    """
    if isinstance(warn_at, bool) or not isinstance(warn_at, Decimal | float | int):
        return None
    if isinstance(warn_at, int):
        return Fraction(warn_at) if 0 <= warn_at <= 1 else None
    with localcontext(_SHARES):
        share = Decimal(str(warn_at)) if isinstance(warn_at, float) else warn_at
        if not share.is_finite() or not 0 <= share <= 1:
            return None
        if not share:
            return Fraction(0)
        is_long = (
            share.adjusted() < _SMALLEST_EXPONENT or len(share.as_tuple().digits) > _MOST_DIGITS
        )
        return None if is_long else Fraction(share)
