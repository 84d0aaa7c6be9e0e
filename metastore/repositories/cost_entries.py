"""cost_entries: what each model call has cost."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec

from metastore import money, prices
from metastore.codec import Id, Label, Row, listed
from metastore.errors import AlreadyExists, InvalidReference, InvalidValue
from metastore.paging import DEFAULT_PAGE, MAX_PAGE, Page, by_id, checked_limit
from metastore.repositories.base import Scope, TableRepository
from metastore.repositories.jobs import Job
from metastore.rows import convert

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metastore.backends.base import Columns, Values
    from metastore.statement_types import CostEntriesStatements

__all__ = [
    "CostDiscrepancy",
    "CostEntries",
    "CostEntry",
    "CostSummary",
    "RecordedCost",
    "Totals",
]

GROUPS = ("provider", "model", "job", "day")
"""What costs are summed up by, in the order in which a summary is sorted."""

MAX_TOKENS = 1_000_000_000
"""The most tokens that one call may have of a kind."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]

_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
_END = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
_WHOLE = 1_000_000_000
_JOB_TOTALS = 6


class CostEntry(Row, frozen=True):
    """A model call that was paid for, or a correction of what one has cost.

    Attributes:
        request_id: the caller's name for the call, or for the correction.
        provider: in lower case.
        tokens_in: input that was read in full; no token is counted twice.
        tokens_out: output without what `tokens_reasoning` counts.
        tokens_cached: input that was read from the provider's cache.
        tokens_cache_write: input that was read in full and written to the provider's cache.
        tokens_reasoning: output that the model spent on reasoning.
        cost_nano_usd: what it cost; below zero only in a correction.
        priced_by: which price list the cost was worked out with; None if the caller knew it.
        corrects: the entry that this one corrects; None in that of a call.
    """

    id: Id
    job_id: Id
    request_id: Label
    provider: Label
    model: Label
    tokens_in: Tokens
    tokens_out: Tokens
    tokens_cached: Tokens
    tokens_cache_write: Tokens
    tokens_reasoning: Tokens
    cost_nano_usd: Annotated[int, msgspec.Meta(ge=-money.MAX_NANO, le=money.MAX_NANO)]
    priced_by: str | None
    corrects: Id | None
    created_at: datetime

    @property
    def cost_usd(self) -> Decimal:
        """What it cost, in dollars."""
        return money.from_nano(self.cost_nano_usd)


class RecordedCost(msgspec.Struct, frozen=True):
    """What came of recording a call.

    Attributes:
        entry: the call's entry, the first one if it was recorded before.
        job: the job with its totals; `job.cancelled` tells its agent to end it.
        charged: whether this recording was the one that was added to the totals.
    """

    entry: CostEntry
    job: Job
    charged: bool


class Totals(msgspec.Struct, frozen=True, gc=False):
    """Model calls and their corrections added up.

    Attributes:
        requests: how many calls; corrections are none.
    """

    requests: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    cost_nano_usd: int
    tokens_cache_write: int = 0
    tokens_reasoning: int = 0

    @property
    def cost_usd(self) -> Decimal:
        """What they cost, in dollars."""
        return money.from_nano(self.cost_nano_usd)


class CostSummary(msgspec.Struct, frozen=True, gc=False):
    """What one group of calls has cost.

    Attributes:
        provider: the provider of all of them, or None if the sums are not grouped by it; likewise
            `model`, `job_id` and `day`, which is a day in UTC.
        totals: what they add up to.
    """

    provider: str | None
    model: str | None
    job_id: str | None
    day: date | None
    totals: Totals

    @property
    def cost_usd(self) -> Decimal:
        """What they cost, in dollars."""
        return self.totals.cost_usd


class CostDiscrepancy(msgspec.Struct, frozen=True):
    """A job whose totals are not the sum of its entries.

    Attributes:
        job_id: the job.
        kept: the totals on the job.
        summed: the sum of its entries, counted as a job counts them: cache writes as input,
            reasoning as output.
    """

    job_id: str
    kept: Totals
    summed: Totals


class _Tokens(TypedDict):
    """The tokens of a call, by column."""

    tokens_in: int
    tokens_out: int
    tokens_cached: int
    tokens_cache_write: int
    tokens_reasoning: int


class _Sum(TypedDict):
    """What is added up, and into which groups."""

    by_provider: bool
    by_model: bool
    by_day: bool
    since_day: Any
    last_day: Any
    since: datetime
    until: datetime


class CostEntries(TableRepository[CostEntry]):
    """What model calls have cost."""

    table = "cost_entries"
    row_type = CostEntry
    _sql: CostEntriesStatements

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self._decode_jobs = self._decoder_of(Job, "jobs")

    async def record(
        self,
        job_id: Id,
        *,
        request_id: str,
        provider: str,
        model: str,
        tokens_in: int,
        tokens_out: int,
        tokens_cached: int = 0,
        tokens_cache_write: int = 0,
        tokens_reasoning: int = 0,
        cost_usd: money.Amount | None = None,
        id: Id | None = None,
    ) -> RecordedCost:
        """Record the cost of a call: it settles its reservation and is added to the job's totals.

        Entry, reservation and totals change together or not at all. The same request is charged
        once: recording it again returns the first entry. Calls are recorded whatever the job's
        limits and status, because the money is spent; see `RecordedCost.job`.

        No token belongs to two of `tokens_in`, `tokens_cached` and `tokens_cache_write`, nor of
        `tokens_out` and `tokens_reasoning`. Without `cost_usd` the extra `prices` prices the call,
        rounded up to a nano-dollar, and the entry remembers which price list it was. Blanks around
        `provider` and `model` are removed, and `provider` is put into lower case.

        Raises:
            InvalidReference: there is no such job.
            PriceUnknown: `cost_usd` is left out, and no price list knows this model.
            AlreadyExists: another entry has this `id`, or `request_id` names a correction.
            InvalidValue: an argument is invalid. Money is a Decimal, an int or a str, not a float.
                The job's totals hold nine billion dollars.
        """
        now = self._now()
        tokens: _Tokens = {
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "tokens_cached": tokens_cached,
            "tokens_cache_write": tokens_cache_write,
            "tokens_reasoning": tokens_reasoning,
        }
        # What is no text is refused below.
        if isinstance(provider, str) and isinstance(model, str):
            provider, model = provider.strip().lower(), model.strip()
        if cost_usd is None:
            nano, priced_by = await self._priced(provider, model, tokens, now)
        else:
            nano = money.to_nano(cost_usd, table=self.table, column="cost_usd")
            priced_by = None
        answers = await self._run_all(
            self._sql.create_cost_entry(
                id=self._id(id),
                job_id=job_id,
                request_id=request_id,
                provider=provider,
                model=model,
                cost_nano_usd=nano,
                priced_by=priced_by,
                created_at=now,
                **tokens,
            ),
            self._sql.settle_reservation(job_id=job_id, request_id=request_id),
            self._sql.charge_job(job_id=job_id, cost_nano_usd=nano, now=now, **tokens),
        )
        if not answers[0]:
            return await self._recorded_before(job_id, request_id)
        if not answers[2]:
            raise self._refused("cost_usd", "is more than the job's total can hold", cost_usd)
        [entry] = self._decode(answers[0])
        [job] = self._decode_jobs(answers[2])
        return RecordedCost(entry, job, charged=True)

    async def correct(
        self, entry_id: Id, *, request_id: str, amount_usd: money.Amount, id: Id | None = None
    ) -> RecordedCost:
        """Correct the cost of a call by `amount_usd`; a negative amount is a refund.

        The correction is an entry of its own that names the call's, on the day that it is made,
        and changes the job's total with it. A call never costs less than nothing, however many
        refunds race. Repeated under the same `request_id` it is counted once.

        Raises:
            NotFound: there is no such entry.
            AlreadyExists: `request_id` names a call or another correction of the job, or another
                entry has this `id`.
            InvalidValue: an argument is invalid; more is taken back than the call has cost; or
                `entry_id` names a correction.
        """
        nano = money.to_signed_nano(amount_usd, table=self.table, column="amount_usd")
        if nano == 0:
            raise self._refused("amount_usd", "must not be 0", amount_usd)
        now = self._now()
        answers = await self._run_all(
            self._sql.create_cost_correction(
                id=(correction_id := self._id(id)),
                corrects=entry_id,
                request_id=request_id,
                cost_nano_usd=nano,
                created_at=now,
            ),
            self._sql.charge_correction(id=correction_id, cost_nano_usd=nano, now=now),
        )
        if not answers[0]:
            return await self._corrected_before(entry_id, request_id, amount_usd)
        if not answers[1]:
            raise self._refused("amount_usd", "is more than the job's total can hold", amount_usd)
        [entry] = self._decode(answers[0])
        [job] = self._decode_jobs(answers[1])
        return RecordedCost(entry, job, charged=True)

    async def get(self, entry_id: Id) -> CostEntry:
        """Return an entry.

        Raises:
            NotFound: no entry has this id.
            InvalidValue: `entry_id` is not a valid id.
        """
        return await self._one(self._sql.get_cost_entry(id=entry_id), entry_id)

    async def find_by_request(self, job_id: Id, request_id: str) -> CostEntry | None:
        """Return the entry of a call, or None if none was recorded.

        Raises:
            InvalidValue: `job_id` or `request_id` is invalid.
        """
        return await self._find(
            self._sql.find_cost_entry_by_request(job_id=job_id, request_id=request_id)
        )

    async def list_by_job(
        self, job_id: Id, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[CostEntry, str]:
        """Return a page of a job's entries, in the order of recording.

        Raises:
            InvalidValue: `job_id`, `after` or `limit` is invalid.
        """
        call = self._sql.list_cost_entries_by_job(
            job_id=job_id, after_id=after, limit=checked_limit(limit)
        )
        return await self._page(call, limit, by_id)

    async def summary(
        self,
        *,
        by: str | Iterable[str] = ("provider", "model"),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[CostSummary]:
        """Return the exact cost of the calls from `since` to before `until`, in groups.

        `by` is any of `provider`, `model`, `job` and `day` (in UTC), or several, or none for one
        sum of all. The groups come in the order of what they are summed up by.

        Raises:
            InvalidValue: `by` names something else, or a time has no zone.
        """
        keys = _groups(by)
        first, end = _moment("since", since, _BEGINNING), _moment("until", until, _END)
        write_day = self._scope.columns.write_day
        asked: _Sum = {
            "by_provider": "provider" in keys,
            "by_model": "model" in keys,
            "by_day": "day" in keys,
            "since_day": write_day(first),
            "last_day": write_day(end),
            "since": first,
            "until": end,
        }
        if "job" in keys:
            rows = await self._run(self._sql.sum_costs_by_job(**asked))
        else:
            rows = await self._run(self._sql.sum_costs(**asked))
        return await convert(partial(_summary, self._scope.columns), rows)

    async def discrepancies(self, *, limit: int = MAX_PAGE) -> list[CostDiscrepancy]:
        """Return the jobs whose totals are not the sum of their entries: somebody edited them.

        Raises:
            InvalidValue: `limit` is invalid.
        """
        checked_limit(limit)
        rows = await self._run(self._sql.list_cost_discrepancies(limit=limit))
        return await convert(_discrepancy, rows)

    async def _priced(
        self, provider: str, model: str, tokens: _Tokens, now: datetime
    ) -> prices.Price:
        """Ask the price list, in a thread: the first time it takes a while to load."""
        for column, value in {"provider": provider, "model": model}.items():
            if not isinstance(value, str):
                raise self._refused(column, "must be text", value)
        for column, count in tokens.items():
            if type(count) is not int or not 0 <= count <= MAX_TOKENS:
                raise self._refused(column, f"must be an integer from 0 to {MAX_TOKENS}", count)
        return await asyncio.to_thread(prices.price, provider, model, at=now, **tokens)

    def _refused(self, column: str, reason: str, value: object) -> InvalidValue:
        return InvalidValue(self.table, column, reason, value_type=type(value).__name__)

    async def _recorded_before(self, job_id: Id, request_id: str) -> RecordedCost:
        entry = await self.find_by_request(job_id, request_id)
        jobs = self._decode_jobs(await self._run(self._sql.get_charged_job(job_id=job_id)))
        if entry is None or not jobs:
            # Deleted since, with its job.
            raise InvalidReference(self.table, "job_id", "jobs")
        if entry.corrects is not None:
            raise AlreadyExists(self.table, ("job_id", "request_id"))
        return RecordedCost(entry, jobs[0], charged=False)

    async def _corrected_before(
        self, entry_id: Id, request_id: str, amount_usd: money.Amount
    ) -> RecordedCost:
        """Return the correction that was recorded before, or raise why there is none."""
        corrected = await self.get(entry_id)
        if corrected.corrects is not None:
            raise self._refused("corrects", "must name the entry of a call", entry_id)
        entry = await self.find_by_request(corrected.job_id, request_id)
        jobs = self._decode_jobs(
            await self._run(self._sql.get_charged_job(job_id=corrected.job_id))
        )
        if entry is None or not jobs:
            raise self._refused("amount_usd", "takes back more than the call has cost", amount_usd)
        if entry.corrects != entry_id:
            raise AlreadyExists(self.table, ("job_id", "request_id"))
        return RecordedCost(entry, jobs[0], charged=False)


def _groups(by: str | Iterable[str]) -> tuple[str, ...]:
    names = (by,) if isinstance(by, str) else tuple(listed(None, "by", by, "groups"))
    for name in names:
        if not isinstance(name, str) or name not in GROUPS:
            raise InvalidValue(
                None, "by", f"must be of {', '.join(GROUPS)}", value_type=type(name).__name__
            )
    return names


def _moment(name: str, moment: datetime | None, default: datetime) -> datetime:
    if moment is None:
        return default
    reason = "must be a datetime with a time zone"
    if isinstance(moment, datetime) and moment.utcoffset() is not None:
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            reason = "must be in the years 1 to 9999 in UTC"
    raise InvalidValue(None, name, reason, value_type=type(moment).__name__)


def _summary(columns: Columns, row: Values) -> CostSummary:
    provider, model, job_id, day, *sums = row
    return CostSummary(
        provider=provider,
        model=model,
        job_id=job_id,
        day=None if day is None else columns.read_day(day),
        totals=_totals(*sums),
    )


def _totals(
    requests: int,
    tokens_in: int,
    tokens_out: int,
    tokens_cached: int,
    tokens_cache_write: int,
    tokens_reasoning: int,
    whole: int,
    rest: int,
) -> Totals:
    return Totals(
        requests,
        tokens_in,
        tokens_out,
        tokens_cached,
        whole * _WHOLE + rest,
        tokens_cache_write,
        tokens_reasoning,
    )


def _discrepancy(row: Values) -> CostDiscrepancy:
    job_id, cost, tokens_in, tokens_out, tokens_cached, requests = row[:_JOB_TOTALS]
    whole, rest, sum_in, sum_out, sum_cached, calls = row[_JOB_TOTALS:]
    return CostDiscrepancy(
        job_id=job_id,
        kept=Totals(requests, tokens_in, tokens_out, tokens_cached, cost),
        summed=Totals(calls, sum_in, sum_out, sum_cached, whole * _WHOLE + rest),
    )
