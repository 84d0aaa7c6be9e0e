from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    Budget,
    BudgetExceeded,
    BudgetReservation,
    InvalidTransition,
    InvalidValue,
    Job,
    JobCancelled,
    MetadataStore,
    NotFound,
    Reserved,
)
from metastore.codec import new_id
from metastore.leasing.limits import MAX_TTL
from metastore.money import MAX_NANO, from_nano

if TYPE_CHECKING:
    from tests.conftest import Clock

MINUTE = timedelta(minutes=1)
TICK = timedelta(milliseconds=1)


async def a_running_job(store: MetadataStore, **limits: Any) -> Job:
    job = await store.jobs.create(task="fix it", repo_owner="acme", repo_name="shop", **limits)
    return await store.jobs.start(job.id)


async def reserve(
    store: MetadataStore, job: Job, request_id: str, amount_usd: Any, **options: Any
) -> Reserved:
    return await store.budget_reservations.reserve(
        job.id, request_id=request_id, amount_usd=amount_usd, **{"ttl": MINUTE, **options}
    )


async def record(store: MetadataStore, job: Job, request_id: str, cost_usd: Any) -> None:
    await store.cost_entries.record(
        job.id,
        request_id=request_id,
        provider="acme",
        model="m",
        tokens_in=1,
        tokens_out=1,
        cost_usd=cost_usd,
    )


async def rows(store: MetadataStore, job: Job) -> list[BudgetReservation]:
    return (await store.budget_reservations.list_by_job(job.id)).items


async def test_reserve__returns_the_row_and_the_budget_with_it(
    store: MetadataStore, clock: Clock
) -> None:
    job = await a_running_job(store, budget_usd="1.00", max_requests=10, max_minutes=60)
    await record(store, job, "past", "0.1")
    await reserve(store, job, "other", "0.2")
    reserved = await reserve(store, job, "mine", "0.3")
    row = reserved.reservation
    assert row in await rows(store, job)
    assert (row.job_id, row.request_id) == (job.id, "mine")
    assert row.amount_usd == Decimal("0.30")
    assert row.expires_at - row.created_at == MINUTE
    assert row.created_at == clock.now
    assert reserved.budget == Budget(
        job_id=job.id,
        limit=Decimal("1.00"),
        spent=Decimal("0.10"),
        reserved=Decimal("0.50"),
        remaining=Decimal("0.40"),
        max_requests=10,
        requests_made=1,
        requests_reserved=2,
        deadline=(await store.jobs.get(job.id)).deadline,
        warnings=(),
    )
    assert not reserved.budget.warn
    assert await store.budget_reservations.budget(job.id) == reserved.budget


async def test_reserve__takes_the_last_nano_dollar_and_not_one_more(store: MetadataStore) -> None:
    job = await a_running_job(store, budget_usd="1")
    await record(store, job, "past", "0.4")
    await reserve(store, job, "flying", "0.5")
    with pytest.raises(BudgetExceeded) as exceeded:
        await reserve(store, job, "mine", "0.100000001")
    error = exceeded.value
    assert (error.job_id, error.resource) == (job.id, "budget_usd")
    assert (error.limit, error.spent) == (Decimal(1), Decimal("0.4"))
    assert (error.reserved, error.requested) == (Decimal("0.5"), Decimal("0.100000001"))
    assert [row.request_id for row in await rows(store, job)] == ["flying"]
    full = await reserve(store, job, "mine", "0.1")
    assert full.budget.remaining == 0
    await reserve(store, job, "free", 0)


async def test_reserve__counts_the_calls_in_flight(store: MetadataStore) -> None:
    job = await a_running_job(store, max_requests=3)
    await record(store, job, "1", 0)
    await reserve(store, job, "2", 0)
    await reserve(store, job, "3", 0)
    with pytest.raises(BudgetExceeded) as exceeded:
        await reserve(store, job, "4", 0)
    error = exceeded.value
    assert (error.resource, error.limit) == ("max_requests", 3)
    assert (error.spent, error.reserved, error.requested) == (1, 2, 1)
    await store.budget_reservations.release(job.id, "3")
    await reserve(store, job, "4", 0)


async def test_reserve__ends_with_the_minutes(store: MetadataStore, clock: Clock) -> None:
    job = await a_running_job(store, max_minutes=30)
    assert job.deadline is not None
    clock.now = job.deadline - 2 * TICK
    await reserve(store, job, "in time", 0)
    with pytest.raises(BudgetExceeded) as exceeded:
        await reserve(store, job, "late", 0)
    error = exceeded.value
    assert clock.now == job.deadline
    assert (error.resource, error.limit, error.spent) == ("max_minutes", 30, 30)


async def test_reserve__ten_years_and_no_minutes(store: MetadataStore, clock: Clock) -> None:
    long = await a_running_job(store, max_minutes=5_256_000)
    none = await a_running_job(store, max_minutes=0)
    with pytest.raises(BudgetExceeded):
        await reserve(store, none, "1", 0)
    assert long.deadline is not None
    clock.now = long.deadline - 2 * TICK
    await reserve(store, long, "1", 0)


async def test_reserve__without_limits_stops_where_totals_end(store: MetadataStore) -> None:
    job = await a_running_job(store)
    first = await reserve(store, job, "1", from_nano(MAX_NANO - 1))
    assert (first.budget.limit, first.budget.remaining, first.budget.warn) == (None, None, False)
    await reserve(store, job, "2", from_nano(1))
    with pytest.raises(BudgetExceeded) as exceeded:
        await reserve(store, job, "3", from_nano(MAX_NANO))
    assert exceeded.value.limit == from_nano(MAX_NANO)
    limited = await store.jobs.set_limits(job.id, budget_usd=1, max_requests=None, max_minutes=None)
    assert limited.budget_usd == 1
    with pytest.raises(BudgetExceeded):
        await reserve(store, job, "3", 0)
    assert (await store.budget_reservations.budget(job.id)).reserved == from_nano(MAX_NANO)


async def test_reserve__the_same_request_refreshes_its_own(
    store: MetadataStore, clock: Clock
) -> None:
    job = await a_running_job(store, budget_usd=1, max_requests=1)
    first = await reserve(store, job, "1", 1)
    clock.now += MINUTE / 2
    second = await reserve(store, job, "1", "0.9")
    assert second.reservation.id == first.reservation.id
    assert second.reservation.expires_at > first.reservation.expires_at
    assert second.reservation.amount_usd == Decimal("0.9")
    assert (second.budget.reserved, second.budget.requests_reserved) == (Decimal("0.9"), 1)
    assert await rows(store, job) == [second.reservation]
    with pytest.raises(BudgetExceeded):
        await reserve(store, job, "1", "1.01")
    assert await rows(store, job) == [second.reservation]


async def test_reserve__an_expired_promise_is_free_again(
    store: MetadataStore, clock: Clock
) -> None:
    job = await a_running_job(store, budget_usd=1)
    left = (await reserve(store, job, "of the dead", 1)).reservation
    clock.now = left.expires_at - 2 * TICK
    with pytest.raises(BudgetExceeded):
        await reserve(store, job, "mine", 1)
    assert clock.now == left.expires_at - TICK
    mine = await reserve(store, job, "mine", 1)
    assert mine.budget.reserved == 1
    assert await rows(store, job) == [mine.reservation]


@pytest.mark.parametrize("limits", [{"budget_usd": 1}, {"max_requests": 1}], ids=str)
async def test_reserve__does_not_believe_an_expiry_too_far_ahead(
    store: MetadataStore, clock: Clock, limits: dict[str, Any]
) -> None:
    job, other = [await a_running_job(store, **limits) for _ in range(2)]
    beginning = clock.now
    clock.now += timedelta(days=365)
    await reserve(store, job, "by a wrong clock", 1, ttl=MAX_TTL)
    clock.now = beginning
    for each in (job, other):
        reserved = await reserve(store, each, "mine", 1)
        assert reserved.budget.reserved == 1
        assert reserved.budget.requests_reserved == 1


async def test_reserve__a_call_that_cost_more_leaves_less(store: MetadataStore) -> None:
    job = await a_running_job(store, budget_usd=1)
    await reserve(store, job, "1", "0.5")
    await record(store, job, "1", "1.25")
    budget = await store.budget_reservations.budget(job.id)
    assert (budget.spent, budget.reserved) == (Decimal("1.25"), Decimal(0))
    assert budget.remaining == Decimal("-0.25")
    with pytest.raises(BudgetExceeded):
        await reserve(store, job, "2", 0)


async def test_reserve__of_a_call_that_was_paid(store: MetadataStore) -> None:
    job = await a_running_job(store, budget_usd=1)
    await reserve(store, job, "1", 1)
    await record(store, job, "1", 1)
    assert await rows(store, job) == []
    with pytest.raises(AlreadyExists) as exists:
        await reserve(store, job, "1", 0)
    assert (exists.value.table, exists.value.columns) == ("cost_entries", ("job_id", "request_id"))
    assert await rows(store, job) == []


@pytest.mark.parametrize("state", ["pending", "paused", "completed", "failed"])
async def test_reserve__only_for_a_job_that_runs(store: MetadataStore, state: str) -> None:
    job = await store.jobs.create(task="t", repo_owner="o", repo_name="r")
    if state != "pending":
        await store.jobs.start(job.id)
    ends = {"paused": "pause", "completed": "complete", "failed": "fail"}
    if state in ends:
        await getattr(store.jobs, ends[state])(job.id)
    with pytest.raises(InvalidTransition) as refused:
        await reserve(store, job, "1", 0)
    assert (refused.value.table, refused.value.from_state) == ("jobs", state)
    assert refused.value.row == await store.jobs.get(job.id)


async def test_reserve__of_a_job_that_was_called_off(store: MetadataStore) -> None:
    job = await a_running_job(store)
    await reserve(store, job, "1", 0)
    called_off = await store.jobs.cancel(job.id)
    for request_id in ("1", "2"):
        with pytest.raises(JobCancelled) as refused:
            await reserve(store, job, request_id, 0)
        assert refused.value.job == called_off
    ended = await store.jobs.acknowledge_cancel(job.id)
    with pytest.raises(JobCancelled) as refused:
        await reserve(store, job, "3", 0)
    assert refused.value.job == ended


async def test_reserve__refusals(store: MetadataStore) -> None:
    job = await a_running_job(store)
    with pytest.raises(NotFound) as missing:
        await store.budget_reservations.reserve(new_id(), request_id="1", amount_usd=1, ttl=MINUTE)
    assert missing.value.table == "jobs"
    for request_id, amount, options in (
        ("", 1, {}),
        ("x" * 256, 1, {}),
        ("1", 0.5, {}),
        ("1", -1, {}),
        ("1", 1, {"ttl": timedelta(0)}),
        ("1", 1, {"ttl": MAX_TTL * 2}),
        ("1", 1, {"warn_at": 1.1}),
        ("1", 1, {"warn_at": -0.1}),
        ("1", 1, {"warn_at": float("nan")}),
        ("1", 1, {"warn_at": None}),
        ("1", 1, {"warn_at": True}),
        ("1", 1, {"warn_at": Decimal("sNaN")}),
        ("1", 1, {"warn_at": Decimal("1e999999999")}),
        ("1", 1, {"warn_at": Decimal("1e-999999999")}),
        ("1", 1, {"warn_at": Decimal("-0.1")}),
    ):
        with pytest.raises(InvalidValue):
            await reserve(store, job, request_id, amount, **options)
    assert await rows(store, job) == []
    with pytest.raises(NotFound):
        await store.budget_reservations.budget(new_id())


async def test_warn__reports_and_refuses_nothing(store: MetadataStore, clock: Clock) -> None:
    job = await a_running_job(store, budget_usd=10, max_requests=10, max_minutes=10)
    assert not (await reserve(store, job, "1", "7.999999999")).budget.warn
    nearly = (await reserve(store, job, "2", "0.000000001")).budget
    assert (nearly.warn, nearly.warnings) == (True, ("budget_usd",))
    assert not (await store.budget_reservations.budget(job.id, warn_at=0.9)).warn
    assert (await store.budget_reservations.budget(job.id, warn_at=Decimal("0.2"))).warnings == (
        "budget_usd",
        "max_requests",
    )
    for n in range(6):
        await record(store, job, f"past {n}", 0)
    clock.now += 8 * MINUTE
    # The reservations have run out by then, the calls that were paid have not.
    assert (await store.budget_reservations.budget(job.id, warn_at=0.6)).warnings == (
        "max_requests",
        "max_minutes",
    )


async def test_release__gives_the_money_back(store: MetadataStore) -> None:
    job, other = await a_running_job(store, budget_usd=1), await a_running_job(store, budget_usd=1)
    await reserve(store, job, "1", 1)
    kept = await reserve(store, other, "1", 1)
    for _ in range(2):
        await store.budget_reservations.release(job.id, "1")
    assert await rows(store, job) == []
    assert await rows(store, other) == [kept.reservation]
    await reserve(store, job, "2", 1)


async def test_reserve__racers_share_what_there_is(store: MetadataStore) -> None:
    job = await a_running_job(store, budget_usd=5)
    results = await asyncio.gather(
        *(reserve(store, job, f"{n}", "0.7") for n in range(32)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, BudgetExceeded)]
    assert len(refused) == 25
    assert all(error.reserved == Decimal("4.9") for error in refused)
    assert (await store.budget_reservations.budget(job.id)).reserved == Decimal("4.9")


async def test_reserve__in_a_transaction_that_fails(store: MetadataStore) -> None:
    job = await a_running_job(store, budget_usd=1)

    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.budget_reservations.reserve(job.id, request_id="1", amount_usd=1, ttl=MINUTE)
            with pytest.raises(BudgetExceeded):
                await tx.budget_reservations.reserve(
                    job.id, request_id="2", amount_usd=1, ttl=MINUTE
                )
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert await rows(store, job) == []


async def test_list_by_job__walks_every_page(store: MetadataStore) -> None:
    job = await a_running_job(store)
    made = [(await reserve(store, job, f"{n}", n)).reservation for n in range(5)]
    walked: list[BudgetReservation] = []
    after = None
    while True:
        page = await store.budget_reservations.list_by_job(job.id, after=after, limit=2)
        walked += page.items
        after = page.next
        if after is None:
            break
    assert walked == made
