"""lease_limits: what every process agrees to believe of an expiry."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import LimitsMismatch, MetadataStore
from metastore.leasing import limits

if TYPE_CHECKING:
    from pathlib import Path


async def test_get__is_what_the_code_believes(store: MetadataStore) -> None:
    agreed = await store.lease_limits.get()
    assert (agreed.max_ttl, agreed.clock_skew) == (limits.MAX_TTL, limits.CLOCK_SKEW)


@pytest.mark.parametrize("name", ["MAX_TTL", "CLOCK_SKEW"])
@pytest.mark.parametrize("by", [timedelta(milliseconds=1), timedelta(milliseconds=-1)])
async def test_open__refuses_other_limits_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, by: timedelta
) -> None:
    url = f"sqlite:///{tmp_path}/metadata.db"
    async with MetadataStore.open(url, migrate=True):
        pass
    agreed = (limits.MAX_TTL, limits.CLOCK_SKEW)
    with monkeypatch.context() as other_release:
        other_release.setattr(limits, name, getattr(limits, name) + by)
        with pytest.raises(LimitsMismatch) as refused:
            await MetadataStore.open(url)
        error = refused.value
        assert (error.max_ttl, error.clock_skew) == agreed
        assert (error.code_max_ttl, error.code_clock_skew) == (limits.MAX_TTL, limits.CLOCK_SKEW)
    async with MetadataStore.open(url) as store:
        assert (await store.health()).healthy


async def test_health__of_a_release_with_other_limits_names_them(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_TTL", limits.MAX_TTL * 2)
    report = await store.health()
    assert report.leases is None
    [problem] = report.problems
    assert "14 days" in problem


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE lease_limits SET max_ttl_ms = max_ttl_ms + 1",
        "UPDATE lease_limits SET clock_skew_ms = clock_skew_ms + 1",
        "UPDATE lease_limits SET max_ttl_ms = 1, clock_skew_ms = 0",
        "DELETE FROM lease_limits",
        "INSERT INTO lease_limits VALUES (2, 1, 1)",
        "INSERT OR REPLACE INTO lease_limits VALUES (1, 1, 1)",
    ],
)
async def test_row__is_one_and_stays_while_stores_are_open(
    store: MetadataStore, tampering: str
) -> None:
    backend: Any = store._backend
    before = await store.lease_limits.get()
    with pytest.raises(Exception, match="lease_limits"):
        await backend._writer.call(lambda connection: connection.execute(tampering))
    assert await store.lease_limits.get() == before
