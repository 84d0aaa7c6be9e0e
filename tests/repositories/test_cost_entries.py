from __future__ import annotations

import asyncio
import decimal
import itertools
import math
import random
import sqlite3
import sys
import threading
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    CostEntry,
    CostSummary,
    InvalidReference,
    InvalidValue,
    Job,
    MetadataStore,
    MigrationFailed,
    NotFound,
    PriceUnknown,
    RecordedCost,
    Totals,
    migrations,
    prices,
    urls,
)
from metastore.codec import new_id
from metastore.money import MAX_NANO, from_nano
from metastore.repositories.cost_entries import GROUPS
from metastore.rows import FEW_ROWS, convert
from metastore.statements import read_statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.conftest import Clock

CALL: dict[str, Any] = {
    "provider": "acme", "model": "large", "tokens_in": 100, "tokens_out": 20, "cost_usd": "0.0125",
}  # fmt: skip


async def a_running_job(store: MetadataStore, **limits: Any) -> Job:
    job = await store.jobs.create(task="fix it", repo_owner="acme", repo_name="shop", **limits)
    return await store.jobs.start(job.id)


@pytest.fixture
async def job(store: MetadataStore) -> Job:
    return await a_running_job(store)


async def record(
    store: MetadataStore, job: Job, request_id: str = "1", **values: Any
) -> RecordedCost:
    return await store.cost_entries.record(job.id, request_id=request_id, **{**CALL, **values})


async def test_record__stores_the_call_and_charges_the_job(
    store: MetadataStore, job: Job, clock: Clock
) -> None:
    recorded = await record(store, job, tokens_cached=7)
    assert recorded.charged
    entry = recorded.entry
    assert await store.cost_entries.get(entry.id) == entry
    assert await store.cost_entries.find_by_request(job.id, "1") == entry
    assert await store.cost_entries.find_by_request(job.id, "2") is None
    assert (entry.job_id, entry.request_id) == (job.id, "1")
    assert (entry.provider, entry.model) == ("acme", "large")
    assert (entry.tokens_in, entry.tokens_out, entry.tokens_cached) == (100, 20, 7)
    assert (entry.cost_nano_usd, entry.cost_usd) == (12_500_000, Decimal("0.0125"))
    assert entry.priced_by is None
    assert entry.created_at == clock.now
    await record(store, job, "2", cost_usd=2, tokens_in=1)
    charged = await store.jobs.get(job.id)
    assert charged.cost_usd == Decimal("2.0125")
    assert (charged.tokens_in, charged.tokens_out, charged.tokens_cached) == (101, 40, 7)
    assert charged.requests_made == 2
    assert charged.updated_at == clock.now
    assert recorded.job.cost_usd == entry.cost_usd


async def test_record__replaces_the_reservation_of_its_request(store: MetadataStore) -> None:
    job = await a_running_job(store, budget_usd=1)
    for request_id in ("1", "2"):
        await store.budget_reservations.reserve(
            job.id, request_id=request_id, amount_usd="0.5", ttl=timedelta(minutes=1)
        )
    await record(store, job, "1", cost_usd="0.4")
    [left] = (await store.budget_reservations.list_by_job(job.id)).items
    assert left.request_id == "2"
    budget = await store.budget_reservations.budget(job.id)
    assert (budget.spent, budget.reserved) == (Decimal("0.4"), Decimal("0.5"))


async def test_record__the_same_request_is_charged_once(store: MetadataStore, job: Job) -> None:
    first = await record(store, job)
    again = await record(store, job, cost_usd=5, tokens_in=9, model="other")
    assert (again.charged, again.entry, again.job) == (False, first.entry, first.job)
    other = await a_running_job(store)
    assert (await record(store, other)).charged


async def test_record__at_once_is_charged_once(store: MetadataStore, job: Job) -> None:
    results = await asyncio.gather(*(record(store, job) for _ in range(20)))
    assert sum(result.charged for result in results) == 1
    assert {result.entry for result in results} == {results[0].entry}
    assert (await store.jobs.get(job.id)).requests_made == 1


async def test_record__whatever_the_limits_and_the_state_are(store: MetadataStore) -> None:
    job = await a_running_job(store, budget_usd="0.01", max_requests=0, max_minutes=0)
    recorded = await record(store, job)
    assert recorded.job.cost_usd == Decimal("0.0125")
    assert not recorded.job.cancelled
    await store.jobs.cancel(job.id)
    recorded = await record(store, job, "2")
    assert (recorded.charged, recorded.job.cancelled) == (True, True)
    assert (await record(store, job, "2")).job.cancelled
    await store.jobs.acknowledge_cancel(job.id)
    assert (await record(store, job, "3")).job.status == "cancelled"


async def test_record__in_a_transaction_with_the_rest(store: MetadataStore, job: Job) -> None:
    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.cost_entries.record(job.id, request_id="1", **CALL)
            again = await tx.cost_entries.record(job.id, request_id="1", **CALL)
            assert not again.charged
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert (await store.jobs.get(job.id)) == job
    assert (await store.cost_entries.list_by_job(job.id)).items == []


async def test_record__refusals(store: MetadataStore, job: Job) -> None:
    with pytest.raises(InvalidReference) as reference:
        await store.cost_entries.record(new_id(), request_id="1", **CALL)
    assert (reference.value.column, reference.value.references) == ("job_id", "jobs")
    for column, value in (
        ("request_id", ""),
        ("provider", ""),
        ("model", "x" * 256),
        ("tokens_in", -1),
        ("tokens_in", 1_000_000_001),
        ("tokens_out", 1.5),
        ("tokens_cached", True),
        ("cost_usd", 0.25),
        ("cost_usd", "-1"),
        ("cost_usd", "0.0000000001"),
    ):
        with pytest.raises(InvalidValue) as refused:
            await store.cost_entries.record(job.id, **{"request_id": "1", **CALL, column: value})
        assert (refused.value.table, refused.value.column) == ("cost_entries", column)
    entry = (await record(store, job)).entry
    with pytest.raises(AlreadyExists) as exists:
        await record(store, job, "2", id=entry.id)
    assert exists.value.columns == ("id",)
    assert (await store.jobs.get(job.id)).requests_made == 1


async def test_record__totals_that_a_job_cannot_hold(store: MetadataStore, job: Job) -> None:
    await record(store, job, "1", cost_usd=from_nano(MAX_NANO))
    with pytest.raises(InvalidValue):
        await record(store, job, "2", cost_usd=from_nano(1))
    assert (await store.jobs.get(job.id)).cost_nano_usd == MAX_NANO
    assert await store.cost_entries.find_by_request(job.id, "2") is None
    other = await a_running_job(store)
    await record(store, other, "2", cost_usd=from_nano(MAX_NANO))
    # A sum over jobs may be larger than an integer of the database.
    [total] = await store.cost_entries.summary(by=())
    assert total.totals.cost_nano_usd == 2 * MAX_NANO
    assert await store.cost_entries.discrepancies() == []


async def test_list_by_job__walks_every_page(store: MetadataStore, job: Job) -> None:
    made = [(await record(store, job, f"{9 - n}")).entry for n in range(5)]
    await record(store, await a_running_job(store))
    walked: list[CostEntry] = []
    after = None
    while True:
        page = await store.cost_entries.list_by_job(job.id, after=after, limit=2)
        walked += page.items
        after = page.next
        if after is None:
            break
    assert walked == made
    with pytest.raises(NotFound):
        await store.cost_entries.get(new_id())


# Corrections


async def test_correct__is_an_entry_of_its_own(
    store: MetadataStore, job: Job, clock: Clock
) -> None:
    other = await a_running_job(store)
    await record(store, other, cost_usd=5)
    call = (await record(store, job, cost_usd=3, tokens_cached=7)).entry
    clock.advance(timedelta(days=2))
    corrected = await store.cost_entries.correct(call.id, request_id="refund", amount_usd="-1.5")
    entry = corrected.entry
    assert (entry.corrects, entry.cost_usd) == (call.id, Decimal("-1.50"))
    assert (entry.job_id, entry.provider, entry.model) == (job.id, call.provider, call.model)
    assert (entry.tokens_in, entry.tokens_out, entry.tokens_cached) == (0, 0, 0)
    assert entry.created_at == clock.now
    assert await store.cost_entries.get(call.id) == call
    more = await store.cost_entries.correct(call.id, request_id="more", amount_usd="0.25")
    assert (more.job.cost_usd, more.job.requests_made) == (Decimal("1.75"), 1)
    # A correction is none of a correction, though there would be enough to take back.
    for corrected_before in (entry, more.entry):
        with pytest.raises(InvalidValue) as refused:
            await store.cost_entries.correct(corrected_before.id, request_id="x", amount_usd="-0.1")
        assert refused.value.column == "corrects"
    assert (await store.jobs.get(other.id)).cost_usd == 5
    [day, later] = await store.cost_entries.summary(by="day")
    assert (day.cost_usd, day.totals.requests) == (Decimal(8), 2)
    assert (later.cost_usd, later.totals.requests) == (Decimal("-1.25"), 0)
    assert await store.cost_entries.discrepancies() == []
    budget = await store.budget_reservations.budget(job.id)
    assert budget.spent == Decimal("1.75")
    # They go with their job.
    await store.jobs.delete(job.id)
    with pytest.raises(NotFound):
        await store.cost_entries.get(entry.id)


async def test_correct__of_many_refunds_at_once_none_takes_too_much(
    store: MetadataStore, job: Job
) -> None:
    call = (await record(store, job, cost_usd=1)).entry
    beside = (await record(store, job, "2", cost_usd=1)).entry
    results = await asyncio.gather(
        *(
            store.cost_entries.correct(call.id, request_id=f"refund {n}", amount_usd="-0.3")
            for n in range(8)
        ),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, InvalidValue)]
    assert (len(results), len(refused)) == (8, 5)
    assert {error.column for error in refused} == {"amount_usd"}
    assert (await store.jobs.get(job.id)).cost_usd == Decimal("1.1")
    await store.cost_entries.correct(beside.id, request_id="all of it", amount_usd=-1)
    assert (await store.jobs.get(job.id)).cost_usd == Decimal("0.1")
    assert await store.cost_entries.discrepancies() == []


async def test_correct__the_same_request_counts_once(store: MetadataStore, job: Job) -> None:
    call = (await record(store, job, "call", cost_usd=1)).entry
    beside = (await record(store, job, "beside", cost_usd=1)).entry
    results = await asyncio.gather(
        *(store.cost_entries.correct(call.id, request_id="refund", amount_usd=-1) for _ in range(5))
    )
    assert sum(result.charged for result in results) == 1
    assert {result.entry.id for result in results} == {results[0].entry.id}
    assert results[-1].job.cost_usd == 1
    for entry, request_id in ((beside, "refund"), (call, "call"), (call, "beside")):
        with pytest.raises(AlreadyExists):
            await store.cost_entries.correct(entry.id, request_id=request_id, amount_usd="0.1")
    # Nor is a call recorded that a correction has the name of.
    with pytest.raises(AlreadyExists):
        await record(store, job, "refund")
    assert (await store.jobs.get(job.id)).cost_usd == 1


async def test_correct__refusals(store: MetadataStore, job: Job) -> None:
    call = (await record(store, job, cost_usd=1)).entry
    full = (await record(store, job, "full", cost_usd=from_nano(MAX_NANO - 10**9))).entry
    with pytest.raises(NotFound):
        await store.cost_entries.correct(new_id(), request_id="x", amount_usd=-1)
    refund = (
        await store.cost_entries.correct(call.id, request_id="refund", amount_usd="-0.5")
    ).entry
    attempts: list[tuple[str, Any]] = [
        (call.id, 0),
        (call.id, -0.5),
        (call.id, "-0.500000001"),
        (call.id, Decimal("-1e999999")),
        (full.id, from_nano(5 * 10**8 + 1)),
        (refund.id, "0.1"),
        (refund.id, "-0.1"),
    ]
    for entry_id, amount in attempts:
        with pytest.raises(InvalidValue):
            await store.cost_entries.correct(entry_id, request_id="x", amount_usd=amount)
    assert await store.cost_entries.find_by_request(job.id, "x") is None
    assert (await store.jobs.get(job.id)).cost_nano_usd == MAX_NANO - 5 * 10**8
    # What is left can be taken back, and the column be filled to the brim.
    await store.cost_entries.correct(full.id, request_id="x", amount_usd="0.5")
    assert (await store.jobs.get(job.id)).cost_nano_usd == MAX_NANO
    await store.cost_entries.correct(call.id, request_id="y", amount_usd="-0.5")


async def test_record__names_are_the_same_however_they_are_written(
    store: MetadataStore, job: Job
) -> None:
    for n, (provider, model) in enumerate(
        [("Acme", "Large"), (" acme ", "Large\n"), ("ACME", "\tLarge"), ("acme", "large")]
    ):
        await record(store, job, f"{n}", provider=provider, model=model)
    groups = await store.cost_entries.summary()
    # Models are told apart by case: it is their name.
    assert [(it.provider, it.model, it.totals.requests) for it in groups] == [
        ("acme", "Large", 3),
        ("acme", "large", 1),
    ]
    for column in ("provider", "model"):
        with pytest.raises(InvalidValue) as refused:
            await record(store, job, "x", **{column: " \n"})
        assert refused.value.column == column


async def test_record__every_kind_of_token_is_in_the_totals(store: MetadataStore, job: Job) -> None:
    kinds: dict[str, Any] = {
        "tokens_in": 1,
        "tokens_out": 10,
        "tokens_cached": 100,
        "tokens_cache_write": 1_000,
        "tokens_reasoning": 10_000,
    }
    recorded = await record(store, job, **kinds)
    await record(store, await a_running_job(store), tokens_reasoning=5)
    assert {name: recorded.entry[name] for name in kinds} == kinds
    # A job counts what was read and what was written; no token is left out.
    charged = await store.jobs.get(job.id)
    assert (charged.tokens_in, charged.tokens_out, charged.tokens_cached) == (1_001, 10_010, 100)
    own = {it.job_id: it.totals for it in await store.cost_entries.summary(by="job")}[job.id]
    assert {name: getattr(own, name) for name in kinds} == kinds
    assert await store.cost_entries.discrepancies() == []
    for name in kinds:
        for count in (-1, 10**9 + 1, 1.5, True):
            with pytest.raises(InvalidValue) as refused:
                await record(store, job, "x", **{name: count})
            assert refused.value.column == name


class TestPrices:
    """The extra `prices`, whose price list comes with it."""

    async def test_prices_the_call_and_remembers_it(self, store: MetadataStore, job: Job) -> None:
        genai_prices = pytest.importorskip("genai_prices")
        call = {"provider": "openai", "model": "gpt-4o", "cost_usd": None}
        plain = (await record(store, job, "1", tokens_in=1000, tokens_out=100, **call)).entry
        assert plain.priced_by == f"genai-prices {genai_prices.__version__}"
        expected = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1000, output_tokens=100),
            "gpt-4o",
            provider_id="openai",
            genai_request_timestamp=plain.created_at,
        )
        assert plain.cost_usd == expected.total_price > 0
        cached = await record(
            store, job, "2", tokens_in=600, tokens_cached=400, tokens_out=100, **call
        )
        assert 0 < cached.entry.cost_usd < plain.cost_usd
        assert cached.job.cost_usd == cached.entry.cost_usd + plain.cost_usd
        nothing = await record(store, job, "3", tokens_in=0, tokens_out=0, **call)
        assert nothing.entry.cost_usd == 0

    async def test_cache_writes_and_reasoning_have_prices_of_their_own(
        self, store: MetadataStore, job: Job
    ) -> None:
        pytest.importorskip("genai_prices")
        call = {"tokens_in": 0, "tokens_out": 0, "cost_usd": None}
        claude = call | {"provider": "anthropic", "model": "claude-sonnet-4-0"}
        read = (await record(store, job, "1", **claude | {"tokens_in": 1_000})).entry
        written = (await record(store, job, "2", **claude, tokens_cache_write=1_000)).entry
        assert (read.cost_usd, written.cost_usd) == (Decimal("0.003"), Decimal("0.00375"))
        gpt = call | {"provider": "openai", "model": "o3"}
        said = (await record(store, job, "3", **gpt | {"tokens_out": 1_000})).entry
        thought = (await record(store, job, "4", **gpt, tokens_reasoning=1_000)).entry
        assert said.cost_usd == thought.cost_usd > 0

    @pytest.mark.parametrize("name", ["precise", "coarse", "trapping", "tiny"])
    def test_every_model_is_exact_whatever_the_context(
        self, name: str, record_property: Callable[[str, object], None]
    ) -> None:
        pytest.importorskip("genai_prices")
        context = {
            "precise": decimal.Context(prec=100),
            "coarse": decimal.Context(prec=6, rounding=decimal.ROUND_DOWN),
            "trapping": decimal.Context(prec=28, traps=list(decimal.Context().traps)),
            "tiny": decimal.Context(prec=1, Emax=1, Emin=-1, traps=list(decimal.Context().traps)),
        }[name]
        dice, at, priced = random.Random(7), datetime(2026, 6, 1, tzinfo=UTC), 0
        for provider, model in priced_models():
            tokens = {kind: dice.randrange(10**9) for kind in KINDS}
            expected = exact_price(provider.id, model.id, tokens, at)
            with decimal.localcontext(context):
                try:
                    found = prices.price(provider.id, model.id, at=at, **tokens)
                except PriceUnknown:
                    assert expected is None
                    continue
            assert expected is not None
            assert found.nano_usd == math.ceil(expected * 10**9), (provider.id, model.id)
            priced += 1
        record_property("figures", f"{priced} models, priced exactly under a {name} context")
        assert priced >= 1_500

    async def test_the_date_of_a_list_that_was_fetched_since(
        self, store: MetadataStore, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        genai_prices = pytest.importorskip("genai_prices")
        from genai_prices import data_snapshot

        bundled = data_snapshot.get_snapshot()
        fetched = data_snapshot.DataSnapshot(
            providers=bundled.providers,
            from_auto_update=True,
            timestamp=datetime(2026, 3, 4, 12, tzinfo=UTC),
        )
        monkeypatch.setattr(data_snapshot, "get_snapshot", lambda: fetched)
        call: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "cost_usd": None}
        entry = (await record(store, job, **call)).entry
        assert entry.priced_by == f"genai-prices {genai_prices.__version__} of 2026-03-04"

    @pytest.mark.parametrize(
        ("provider", "model"),
        [("openai", "gpt-of-nobody"), ("nobody", "gpt-4o"), ("x-ai", "grok-voice-latest")],
    )
    async def test_an_unknown_model_is_an_error(
        self, store: MetadataStore, job: Job, provider: str, model: str
    ) -> None:
        pytest.importorskip("genai_prices")
        with pytest.raises(PriceUnknown) as unknown:
            await record(store, job, provider=provider, model=model, cost_usd=None)
        assert (unknown.value.provider, unknown.value.model) == (provider, model)
        assert (await store.jobs.get(job.id)).requests_made == 0
        assert (await record(store, job, provider=provider, model=model, cost_usd=0)).charged

    async def test_without_the_extra(
        self, store: MetadataStore, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "genai_prices", None)
        with pytest.raises(PriceUnknown, match=r"metastore\[prices\]"):
            await record(store, job, provider="openai", model="gpt-4o", cost_usd=None)

    @pytest.mark.parametrize(
        ("column", "value"),
        [("tokens_in", -1), ("tokens_cached", "1"), ("tokens_out", True), ("provider", None)],
    )
    async def test_refuses_what_has_no_price(
        self, store: MetadataStore, job: Job, column: str, value: object
    ) -> None:
        with pytest.raises(InvalidValue) as refused:
            await record(store, job, "1", **{"cost_usd": None, column: value})
        assert refused.value.column == column


KINDS = ("tokens_in", "tokens_out", "tokens_cached", "tokens_cache_write", "tokens_reasoning")


def priced_models() -> Iterable[tuple[Any, Any]]:
    from genai_prices import data_snapshot

    return [
        (provider, model)
        for provider in data_snapshot.get_snapshot().providers
        for model in provider.models
    ]


def exact_price(
    provider_id: str, model_id: str, tokens: dict[str, int], at: datetime
) -> Fraction | None:
    """Return the price of a call worked out in fractions from the list's own numbers, or None."""
    from genai_prices import data_snapshot, types

    try:
        provider, model = data_snapshot.get_snapshot().find_provider_model(
            model_id, None, provider_id, None
        )
    except LookupError:
        # The list does not find every one of its own models by its id.
        return None
    tiny = types.Usage(input_tokens=1)
    listed = vars(model.calc_price(tiny, provider, genai_request_timestamp=at).model_price)
    read = tokens["tokens_in"] + tokens["tokens_cached"] + tokens["tokens_cache_write"]

    def per_token(name: str) -> Fraction | None:
        value = listed.get(name)
        if value is None:
            return None
        if isinstance(value, types.TieredPrices):
            reached = [tier.price for tier in value.tiers if read > tier.start]
            value = reached[-1] if reached else value.base
        return Fraction(value) / 10**6

    def either(name: str, other: str) -> Fraction | None:
        found = per_token(name)
        return per_token(other) if found is None else found

    by_direction: dict[str, Fraction | None] = {}
    for direction, rates in {
        "input": {
            "tokens_in": per_token("input_mtok"),
            "tokens_cached": either("cache_read_mtok", "input_mtok"),
            "tokens_cache_write": either("cache_write_mtok", "input_mtok"),
        },
        "output": {
            "tokens_out": per_token("output_mtok"),
            "tokens_reasoning": either("output_reasoning_mtok", "output_mtok"),
        },
    }.items():
        by_direction[direction] = sum(
            (tokens[kind] * (rate or Fraction(0)) for kind, rate in rates.items()), Fraction(0)
        )
    if not all(by_direction.values()):
        return None
    # What is sold by the request comes on top, once.
    flat = listed.get("requests_kcount")
    assert flat is None or not isinstance(flat, types.TieredPrices)
    total = sum((part for part in by_direction.values() if part is not None), Fraction(0))
    return total + (Fraction(flat) / 1000 if flat is not None else 0)


def expected_summary(
    entries: Iterable[tuple[CostEntry, Fraction]], by: tuple[str, ...]
) -> dict[tuple[Any, ...], tuple[int, int, int, int, int, int, Fraction]]:
    sums: dict[tuple[Any, ...], Any] = defaultdict(lambda: (0, 0, 0, 0, 0, 0, Fraction(0)))
    for entry, cost in entries:
        found = {
            "provider": entry.provider,
            "model": entry.model,
            "job": entry.job_id,
            "day": entry.created_at.date(),
        }
        key = tuple(found[name] if name in by else None for name in GROUPS)
        more = (
            int(entry.corrects is None),
            entry.tokens_in,
            entry.tokens_out,
            entry.tokens_cached,
            entry.tokens_cache_write,
            entry.tokens_reasoning,
            cost,
        )
        sums[key] = tuple(a + b for a, b in zip(sums[key], more, strict=True))
    return sums


def as_dict(summary: list[CostSummary]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    found = {
        (group.provider, group.model, group.job_id, group.day): (
            group.totals.requests,
            group.totals.tokens_in,
            group.totals.tokens_out,
            group.totals.tokens_cached,
            group.totals.tokens_cache_write,
            group.totals.tokens_reasoning,
            Fraction(group.cost_usd),
        )
        for group in summary
    }
    assert len(found) == len(summary)
    return found


EVERY_BY = [by for size in range(5) for by in itertools.combinations(GROUPS, size)]


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2_000, id="short"),
        pytest.param(100_000, id="torture", marks=pytest.mark.torture),
    ],
)
async def test_summary__equals_the_sum_of_fractions(
    store: MetadataStore, clock: Clock, count: int, record_property: Callable[[str, object], None]
) -> None:
    dice = random.Random(5)
    jobs = [await a_running_job(store) for _ in range(7)]
    entries: list[tuple[CostEntry, Fraction]] = []
    for block in range(0, count, 500):
        clock.now += timedelta(days=400 * 500 / count, seconds=dice.randrange(86_400))
        prices = [f"{dice.randrange(3)}.{dice.randrange(10**8):08}" for _ in range(500)]
        recorded = await asyncio.gather(
            *(
                record(
                    store,
                    dice.choice(jobs),
                    f"{block + n}",
                    provider=dice.choice("ab"),
                    model=dice.choice("xyz"),
                    tokens_in=dice.randrange(10_000),
                    tokens_out=dice.randrange(1_000),
                    tokens_cached=dice.randrange(100),
                    tokens_cache_write=dice.randrange(100),
                    tokens_reasoning=dice.randrange(100),
                    cost_usd=price,
                )
                for n, price in enumerate(prices)
            )
        )
        entries += [
            (result.entry, Fraction(price)) for result, price in zip(recorded, prices, strict=True)
        ]
        # Some are taken back, some cost more after all.
        for result, price in dice.sample(list(zip(recorded, prices, strict=True)), 3):
            for share in (Fraction(price) / -2, Fraction(1)):
                amount = from_nano(int(share * 10**9))
                corrected = (
                    await store.cost_entries.correct(
                        result.entry.id, request_id=f"{result.entry.id} {share}", amount_usd=amount
                    )
                    if amount
                    else None
                )
                if corrected:
                    entries.append((corrected.entry, Fraction(amount)))
    assert count < len(entries) <= count + 2 * 3 * count // 500
    entries.sort(key=lambda pair: pair[0].created_at)
    since, until = (entries[index][0].created_at for index in (count // 5, count // 2))
    within = [pair for pair in entries if since <= pair[0].created_at < until]
    assert 0 < len(within) < count / 2
    for by in EVERY_BY:
        assert as_dict(await store.cost_entries.summary(by=by)) == expected_summary(entries, by)
        partly = await store.cost_entries.summary(by=by, since=since, until=until)
        assert as_dict(partly) == expected_summary(within, by)
    total = sum((cost for _, cost in entries), Fraction(0))
    record_property("figures", f"{count} entries in {len(EVERY_BY)} groupings: {float(total)}")
    rows = [await store.jobs.get(job.id) for job in jobs]
    assert sum(row.requests_made for row in rows) == count
    kept = [row.cost_usd for row in rows]
    assert sum(map(Fraction, kept), Fraction(0)) == total
    assert await store.cost_entries.discrepancies() == []


async def test_summary__cuts_at_the_millisecond(
    store: MetadataStore, job: Job, clock: Clock
) -> None:
    clock.now = datetime(2026, 3, 31, 23, 59, 59, 997_000, tzinfo=UTC)
    made = [(await record(store, job, f"{n}")).entry for n in range(4)]
    assert [entry.created_at.day for entry in made] == [31, 31, 1, 1]

    async def requests(**times: datetime | None) -> list[int]:
        return [s.totals.requests for s in await store.cost_entries.summary(by="day", **times)]

    assert await requests() == [2, 2]
    assert await requests(since=made[1].created_at) == [1, 2]
    assert await requests(until=made[3].created_at) == [2, 1]
    assert await requests(since=made[1].created_at, until=made[2].created_at) == [1]
    assert await requests(since=made[2].created_at, until=made[2].created_at) == []
    days = [group.day for group in await store.cost_entries.summary(by=("day", "model"))]
    assert days == [date(2026, 3, 31), date(2026, 4, 1)]


async def test_summary__groups_in_order_and_leaves_the_rest_out(
    store: MetadataStore, job: Job
) -> None:
    for n, (provider, model) in enumerate([("b", "x"), ("a", "z"), ("a", "y"), ("a", "z")]):
        await record(store, job, f"{n}", provider=provider, model=model, cost_usd=n)
    groups = await store.cost_entries.summary(by=["model", "provider"])
    assert [(it.provider, it.model, int(it.cost_usd)) for it in groups] == [
        ("a", "y", 2), ("a", "z", 4), ("b", "x", 0)
    ]  # fmt: skip
    assert {(it.job_id, it.day) for it in groups} == {(None, None)}
    assert await store.cost_entries.summary() == groups
    [per_job] = await store.cost_entries.summary(by="job")
    assert (per_job.job_id, per_job.provider) == (job.id, None)
    refused: Any
    for refused in ("month", ("model", "jobs"), (7,)):
        with pytest.raises(InvalidValue):
            await store.cost_entries.summary(by=refused)
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - that is what is refused
    with pytest.raises(InvalidValue):
        await store.cost_entries.summary(since=naive)


async def test_summary__of_nothing(store: MetadataStore) -> None:
    for by in EVERY_BY:
        assert await store.cost_entries.summary(by=by) == []


@pytest.mark.parametrize("name", ["sum_costs", "sum_costs_by_job"])
async def test_summary__comes_from_an_index(tmp_path: Path, name: str) -> None:
    path = tmp_path / "metadata.db"
    migrations.upgrade(urls.resolve(f"sqlite:///{path}"))
    statement = read_statements("cost_entries", CostEntry, "sqlite")[name]
    connection = sqlite3.connect(path)
    plan = [
        row[3]
        for row in connection.execute(
            f"EXPLAIN QUERY PLAN {statement.sql}", dict.fromkeys(statement.parameters or ())
        )
    ]
    connection.close()
    [reading] = [line for line in plan if "cost_entries" in line]
    assert reading.startswith("SEARCH cost_entries USING COVERING INDEX ix_cost_entries_day")


@pytest.mark.parametrize("by", EVERY_BY, ids="+".join)
async def test_summary__reads_no_more_rows_than_it_answers(
    store: MetadataStore, clock: Clock, by: tuple[str, ...]
) -> None:
    """The groups are made in SQL, on a lane of their own, and come in their order."""
    jobs = [await a_running_job(store) for _ in range(2)]
    for n in range(32):
        clock.now += timedelta(days=n == 16)
        await record(
            store,
            jobs[n & 1],
            f"{n}",
            provider="ab"[n >> 1 & 1],
            model="xy"[n >> 2 & 1],
            # Together more than an integer of the database holds.
            cost_usd=1 if n > 1 else from_nano(MAX_NANO - 30 * 10**9),
        )
    backend: Any = store._backend
    read: list[list[Any]] = []
    run = backend.run

    async def noting(call: Any) -> Any:
        rows = await run(call)
        read.append(list(rows))
        return rows

    reader = backend._readers[0]
    hops = reader.hops
    repository = type(store.cost_entries)(store.cost_entries._scope)
    repository._run = noting
    groups = await repository.summary(by=by)
    assert [len(rows) for rows in read] == [len(groups)]
    assert reader.hops == hops
    names = [(it.provider, it.model, it.job_id, it.day) for it in groups]
    assert names == sorted(names, key=str)
    assert sum(it.totals.requests for it in groups) == 32
    assert sum(it.totals.cost_nano_usd for it in groups) == 2 * MAX_NANO - 30 * 10**9


@pytest.mark.parametrize("count", [FEW_ROWS, FEW_ROWS + 1])
async def test_convert__many_rows_in_a_thread(count: int) -> None:
    threads = set()

    def make(row: Any) -> Any:
        threads.add(threading.current_thread() is threading.main_thread())
        return row[0]

    rows = [(n,) for n in range(count)]
    assert await convert(make, rows) == list(range(count))
    assert threads == {count <= FEW_ROWS}
    assert rows == []


async def test_discrepancies__name_what_was_changed_by_hand(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/metadata.db"
    async with MetadataStore.open(url, migrate=True) as store:
        good, wrong, unpaid = [await a_running_job(store) for _ in range(3)]
        for job in (good, wrong):
            await record(store, job, "1", cost_usd="0.3", tokens_cached=5)
            await record(store, job, "2", cost_usd="1.7")
        assert await store.cost_entries.discrepancies() == []
    connection = sqlite3.connect(tmp_path / "metadata.db")
    connection.execute("UPDATE jobs SET cost_nano_usd = 1 WHERE id = ?", (wrong.id,))
    connection.execute("UPDATE jobs SET requests_made = 1 WHERE id = ?", (unpaid.id,))
    connection.commit()
    connection.close()
    async with MetadataStore.open(url) as store:
        first, second = await store.cost_entries.discrepancies()
        assert (first.job_id, second.job_id) == (wrong.id, unpaid.id)
        assert first.kept == Totals(2, 200, 40, 5, 1)
        assert first.summed == Totals(2, 200, 40, 5, 2_000_000_000)
        assert first.summed.cost_usd == 2
        assert second.kept == Totals(1, 0, 0, 0, 0)
        assert second.summed == Totals(0, 0, 0, 0, 0)
        assert await store.cost_entries.discrepancies(limit=1) == [first]


@pytest.mark.parametrize(
    "total", ["requests_made", "tokens_in", "tokens_out", "tokens_cached", "cost_nano_usd"]
)
async def test_discrepancies__name_one_wrong_total_of_any_kind(
    file_store: MetadataStore, store_url: str, total: str
) -> None:
    jobs = [await a_running_job(file_store) for _ in range(3)]
    for job in jobs:
        for request_id in ("1", "2"):
            await record(file_store, job, request_id, cost_usd="0.3", tokens_cached=5)
    await file_store.close()
    with sqlite3.connect(store_url.removeprefix("sqlite:///")) as connection:
        for job, by in ((jobs[0], 1), (jobs[2], -1)):
            connection.execute(f"UPDATE jobs SET {total} = {total} + ? WHERE id = ?", (by, job.id))
    connection.close()
    async with MetadataStore.open(store_url) as store:
        found = await store.cost_entries.discrepancies()
    assert [it.job_id for it in found] == [jobs[0].id, jobs[2].id]
    assert all(it.kept != it.summed for it in found)


CORRECT_COSTS = "0037-correct-costs"


async def test_migration__carries_the_entries_over_and_back(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    url = urls.resolve(f"sqlite:///{path}")
    migrations.upgrade(url, CORRECT_COSTS)
    async with MetadataStore.open(f"sqlite:///{path}", migrate=True) as store:
        first, second = await a_running_job(store), await a_running_job(store)
        made = [
            (await record(store, job, request_id, tokens_cached=n)).entry
            for job in (first, second)
            for n, request_id in enumerate(("1", "2"))
        ]
    migrations.downgrade(url, "0036-bind-secrets-to-incarnations")
    with sqlite3.connect(path) as connection:
        [count] = connection.execute("SELECT count(*) FROM cost_entries").fetchone()
        assert count == len(made)
        assert connection.execute("SELECT sum(cost_usd) FROM cost_by_day").fetchone() == (0.05,)
    connection.close()
    migrations.upgrade(url)
    assert migrations.verify(url) == []
    async with MetadataStore.open(f"sqlite:///{path}") as store:
        assert [await store.cost_entries.get(entry.id) for entry in made] == made
        refund = await store.cost_entries.correct(made[0].id, request_id="r", amount_usd="-0.01")
    # A refund has no place in the table as it was: nothing is undone.
    with pytest.raises(MigrationFailed):
        migrations.downgrade(url, "0036-bind-secrets-to-incarnations")
    async with MetadataStore.open(f"sqlite:///{path}", migrate=True) as store:
        assert await store.cost_entries.get(refund.entry.id) == refund.entry
