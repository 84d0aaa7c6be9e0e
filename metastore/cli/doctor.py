"""`metastore doctor`: the state of a database, and what an id in it refers to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from metastore.cli import database_option, json_option, print_json, say, with_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from metastore.backends.base import DatabaseUrl
    from metastore.explain import Explanation
    from metastore.health import Health, LeaseCount

__all__ = ["doctor"]


@click.command()
@click.option("--integrity", is_flag=True, help="Read the whole database and report damage.")
@click.option("--audit", is_flag=True, help="Read all history and report tampering.")
@click.option(
    "--explain",
    "key",
    metavar="ID",
    help="Explain a worktree, lease, lock, session, command, token, project or repository.",
)
@database_option
@json_option
@click.pass_context
def doctor(
    ctx: click.Context,
    integrity: bool,
    audit: bool,
    key: str | None,
    url: DatabaseUrl,
    as_json: bool,
) -> None:
    """Report the state of the database, its problems, and what to do about them.

    Exits with code 0 if there is no problem, and 1 otherwise. Changes nothing.

    With --explain: what an id or a worktree's lease token refers to, who holds it, since when and
    until when, under which fencing number, what depends on it, and what would release it.
    """
    if key is not None:
        if integrity or audit:
            raise click.UsageError(
                "--explain is about one id, --integrity and --audit about everything."
            )
        from metastore.explain import explain

        asked = key.strip().lower()
        explanation = with_store(url, lambda store: explain(store, asked, now=datetime.now(UTC)))
        if as_json:
            print_json(explanation)
        else:
            _print_explanation(explanation)
        return
    import asyncio

    from metastore import health

    report = asyncio.run(health.diagnose(url, integrity=integrity, audit=audit))
    if as_json:
        import msgspec

        print_json({"healthy": report.healthy, **msgspec.structs.asdict(report)})
    else:
        _print_health(report)
    ctx.exit(0 if report.healthy else 1)


def _print_health(report: Health) -> None:
    revision = report.schema_revision or "unknown"
    is_head = report.schema_revision == report.schema_head
    _print_facts(
        ("database", report.url),
        ("reachable", _yes(report.reachable)),
        ("writable", _yes(report.writable)),
        ("schema", revision if is_head else f"{revision}; the code needs {report.schema_head}"),
        ("size", _size(report.database_bytes)),
        *_leases(report.leases),
        ("software", report.software or "unknown"),
        *_details(report.details),
        ("integrity", _findings(report.damage, "--integrity")),
        ("history", _findings(report.tampering, "--audit")),
    )
    _print_list("Damage", report.damage)
    _print_list("Tampering", map(str, report.tampering or ()))
    _print_list("Problems", report.problems)
    _print_list("Notes", report.notes)
    say()
    say("Nothing is wrong." if report.healthy else "Something is wrong.")


def _print_explanation(explanation: Explanation) -> None:
    say(f"{explanation.kind} {explanation.id} is {explanation.state}")
    fence = explanation.fencing_number
    _print_facts(
        ("what", explanation.what),
        ("held by", explanation.held_by or "nobody"),
        ("since", _moment(explanation.since)),
        ("until", _moment(explanation.until)),
        ("fence", "-" if fence is None else str(fence)),
    )
    _print_list("Dependents", explanation.dependents or ["nothing"])
    _print_list("Released by", explanation.released_by)


def _print_facts(*facts: tuple[str, str]) -> None:
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        say(f"{name:<{width}}  {value}")


def _details(details: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in details.items():
        if isinstance(value, dict):
            for key, one in value.items():
                yield name.replace("_", " ").removesuffix("s"), f"{one} {key}"
        elif name.endswith("_bytes"):
            yield name.removesuffix("_bytes").replace("_", " "), _size(value)
        else:
            yield name.replace("_", " "), "unknown" if value is None else str(value)


def _print_list(title: str, lines: Iterable[str] | None) -> None:
    listed = list(lines or ())
    if not listed:
        return
    say()
    say(f"{title}:")
    for line in listed:
        say(f"- {line}")


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    amount: Any = size
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:,.1f} {unit}" if unit != "B" else f"{size} B"


def _leases(leases: dict[str, LeaseCount] | None) -> list[tuple[str, str]]:
    if leases is None:
        return [("leases", "unknown")]
    return [
        (leased, f"{count.live} held, {count.expired} expired") for leased, count in leases.items()
    ]


def _findings(findings: Sequence[object] | None, flag: str) -> str:
    if findings is None:
        return f"not checked, see {flag}"
    return f"{len(findings)} findings" if findings else "ok"


def _moment(moment: datetime | None) -> str:
    from metastore.codec import timestamp

    if moment is None:
        return "-"
    distance = moment - datetime.now(UTC)
    relative = f"in {_span(distance)}" if distance > timedelta(0) else f"{_span(-distance)} ago"
    return f"{timestamp(moment)} ({relative})"


def _span(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
