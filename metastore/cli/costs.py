"""`metastore costs`: the cost of model calls."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from metastore.cli import (
    database_option,
    json_option,
    print_json,
    print_table,
    say,
    with_store,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastore.backends.base import DatabaseUrl
    from metastore.repositories.cost_entries import CostSummary

__all__ = ["costs"]

GROUPS = ("provider", "model", "job", "day")
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
BAR = 24
"""The length of the longest bar, in characters."""

EIGHTHS = " ▏▎▍▌▋▊▉"


def _moment(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> datetime | None:
    """Parse a time in UTC, or a span before now."""
    if value is None:
        return None
    if span := re.fullmatch(r"(\d{1,5})([hdw])", value):
        return datetime.now(UTC) - int(span[1]) * UNITS[span[2]]
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a time like 12h, 30d, 8w, 2026-01-31 or 2026-01-31T12:00Z."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@click.command()
@click.option(
    "--by",
    multiple=True,
    default=("provider", "model"),
    type=click.Choice(GROUPS),
    help="What to group by; repeatable. Default: provider and model.",
)
@click.option(
    "--since",
    metavar="TIME",
    callback=_moment,
    help="Start: 12h, 30d or 8w ago, or 2026-01-31 (UTC).",
)
@click.option("--until", metavar="TIME", callback=_moment, help="End, exclusive, in the same form.")
@database_option
@json_option
def costs(
    by: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    url: DatabaseUrl,
    as_json: bool,
) -> None:
    """Show the cost of model calls, most expensive first, or day by day.

    Every sum is exact. No token is counted in two columns: tokens in were read in full, cached ones
    from the provider's cache. Cache writes and reasoning are shown where there are any.
    """
    groups = with_store(
        url, lambda store: store.cost_entries.summary(by=by, since=since, until=until)
    )
    columns = [name for name in GROUPS if name in by]
    if "day" not in columns:
        groups.sort(key=lambda group: -group.totals.cost_nano_usd)
    if as_json:
        print_json([_as_json(group, columns) for group in groups])
    elif groups:
        _print(groups, columns)
    else:
        say("no calls were recorded")


def _print(groups: Sequence[CostSummary], columns: Sequence[str]) -> None:
    from metastore.money import from_nano

    total = sum(group.totals.cost_nano_usd for group in groups)
    highest = max(group.totals.cost_nano_usd for group in groups)
    counts = {
        "tokens in": [group.totals.tokens_in for group in groups],
        "cached": [group.totals.tokens_cached for group in groups],
        "cache writes": [group.totals.tokens_cache_write for group in groups],
        "tokens out": [group.totals.tokens_out for group in groups],
        "reasoning": [group.totals.tokens_reasoning for group in groups],
    }
    for name in ("cache writes", "reasoning"):
        if not any(counts[name]):
            del counts[name]
    rows = [
        (
            *(_name(group, column) for column in columns),
            f"{group.totals.requests:,}",
            *(f"{values[index]:,}" for values in counts.values()),
            f"{group.cost_usd:,f}",
            _bar(group.totals.cost_nano_usd, highest),
        )
        for index, group in enumerate(groups)
    ]
    print_table((*columns, "calls", *counts, "USD", ""), rows)
    calls = sum(group.totals.requests for group in groups)
    say()
    say(f"{calls:,} calls, {from_nano(total):,f} USD")


def _bar(amount: int, highest: int) -> str:
    """Return a bar in proportion to `highest`, in eighths of a character."""
    if amount <= 0:
        # Nothing, or more refunds than costs.
        return ""
    full, eighths = divmod(amount * BAR * 8 // highest, 8)
    if not _writes("█▏"):
        return "#" * (full + (eighths >= 4))
    return "█" * full + EIGHTHS[eighths].strip()


def _writes(text: str) -> bool:
    """Return whether the output encoding has `text`."""
    import sys

    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _name(group: CostSummary, column: str) -> str:
    return str(getattr(group, "job_id" if column == "job" else column))


def _as_json(group: CostSummary, columns: Sequence[str]) -> dict[str, str | int]:
    totals = group.totals
    return {
        **{column: _name(group, column) for column in columns},
        "requests": totals.requests,
        "tokens_in": totals.tokens_in,
        "tokens_cached": totals.tokens_cached,
        "tokens_cache_write": totals.tokens_cache_write,
        "tokens_out": totals.tokens_out,
        "tokens_reasoning": totals.tokens_reasoning,
        # Text, because most readers parse JSON numbers as floats.
        "cost_usd": f"{group.cost_usd:f}",
    }
