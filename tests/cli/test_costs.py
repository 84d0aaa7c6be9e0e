"""`metastore costs`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from metastore import MetadataStore
from metastore.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

NOW = datetime.now(UTC)
CALLS: list[tuple[timedelta, str, str, str]] = [
    (timedelta(days=40), "acme", "large", "4"),
    (timedelta(days=2), "acme", "large", "1.00000001"),
    (timedelta(days=2), "acme", "small", "0.25"),
    (timedelta(hours=1), "beta", "small", "2"),
]


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/metadata.db"
    now = NOW

    async def record() -> None:
        nonlocal now
        async with MetadataStore.open(url, migrate=True, clock=lambda: now) as store:
            job = await store.jobs.create(task="t", repo_owner="o", repo_name="r")
            for number, (age, provider, model, cost) in enumerate(CALLS):
                now = NOW - age
                await store.cost_entries.record(
                    job.id,
                    request_id=f"{number}",
                    provider=provider,
                    model=model,
                    tokens_in=1000,
                    tokens_out=20,
                    tokens_cached=3,
                    cost_usd=cost,
                )

    asyncio.run(record())
    return url


def run(url: str, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["costs", *arguments, "--db", url])
    assert result.exit_code == code, result.output
    return result


def as_json(url: str, *arguments: str) -> Any:
    return json.loads(run(url, *arguments, "--json").stdout)


def test_costs__prints_a_table_with_bars_the_dearest_first(url: str) -> None:
    lines = run(url).stdout.splitlines()
    assert [line.rstrip() for line in lines] == [
        "provider  model  calls  tokens in  cached  tokens out  USD",
        "acme      large  2      2,000      6       40          5.00000001  " + "█" * 24,
        "beta      small  1      1,000      3       20          2.00        █████████▌",
        "acme      small  1      1,000      3       20          0.25        █▏",
        "",
        "4 calls, 7.25000001 USD",
    ]


def test_costs__by_model_since_30_days(url: str) -> None:
    assert as_json(url, "--by", "model", "--since", "30d") == [
        {
            "model": "small",
            "requests": 2,
            "tokens_in": 2000,
            "tokens_cached": 6,
            "tokens_cache_write": 0,
            "tokens_out": 40,
            "tokens_reasoning": 0,
            "cost_usd": "2.25",
        },
        {
            "model": "large",
            "requests": 1,
            "tokens_in": 1000,
            "tokens_cached": 3,
            "tokens_cache_write": 0,
            "tokens_out": 20,
            "tokens_reasoning": 0,
            "cost_usd": "1.00000001",
        },
    ]


def test_costs__by_day_in_the_order_of_days(url: str) -> None:
    days = [(row["day"], row["cost_usd"]) for row in as_json(url, "--by", "day")]
    expected = [f"{NOW - age:%Y-%m-%d}" for age in (CALLS[0][0], CALLS[1][0], CALLS[3][0])]
    assert days == list(zip(expected, ("4.00", "1.25000001", "2.00"), strict=True))


def test_costs__by_several_and_between_times(url: str) -> None:
    rows = as_json(url, "--by", "job", "--by", "provider", "--since", "8w", "--until", "12h")
    assert [(row["provider"], row["cost_usd"]) for row in rows] == [("acme", "5.25000001")]
    assert len(rows[0]["job"]) == 36
    assert as_json(url, "--since", f"{NOW:%Y-%m-%dT%H:%M:%S}Z") == []
    assert run(url, "--since", "9999-01-01").stdout == "no calls were recorded\n"


@pytest.fixture(params=["Pacific/Kiritimati", "America/Los_Angeles"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A time zone far from UTC, which this process is in."""
    with monkeypatch.context() as context:
        context.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_costs__takes_a_time_without_a_zone_as_utc(url: str, zone: str) -> None:
    assert time.timezone != 0, zone
    results = []
    for hours in range(0, 73, 6):
        moment = f"{NOW - timedelta(hours=hours):%Y-%m-%dT%H:%M:%S}"
        results.append(as_json(url, "--since", moment))
        assert results[-1] == as_json(url, "--since", f"{moment}Z")
    assert results[0] != results[-1]


@pytest.mark.parametrize("time", ["yesterday", "30", "d", "2026-13-01", "999999d"])
def test_costs__refuses_what_is_no_time(url: str, time: str) -> None:
    assert "is not a time" in run(url, "--since", time, code=2).stderr


def test_costs__draws_on_a_terminal(url: str) -> None:
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "metastore", "costs", "--by", "model", "--db", url],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONUTF8": "1"},
        check=True,
    )
    os.close(theirs)
    output = os.read(ours, 65536).decode()
    os.close(ours)
    assert "█" * 24 in output
    assert "5.00000001" in output


def test_costs__bars_where_there_are_no_blocks(url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metastore", "costs", "--by", "model", "--db", url],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"  " + b"#" * 24 + b"\n" in done.stdout


def test_costs__a_name_does_not_steer_the_terminal(url: str) -> None:
    async def record() -> None:
        async with MetadataStore.open(url) as store:
            [job] = (await store.jobs.list_recent()).items
            await store.cost_entries.record(
                job.id, request_id="x", provider="p", model="\x1b[2J", tokens_in=0, tokens_out=0,
                cost_usd=0,
            )  # fmt: skip

    asyncio.run(record())
    assert "\x1b" not in run(url).stdout
    assert r"\x1b[2J" in run(url).stdout
