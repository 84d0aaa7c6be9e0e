"""`metastore demo`: runs the store on a real git repository."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from metastore.cli import Refused, database_option, json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metastore.backends.base import DatabaseUrl
    from metastore.demo.display import Lines, LiveTable
    from metastore.demo.orchestration import Demo, Outcome

FOLDER = Path(".artifacts/demo")
"""Where runs leave their logs and other artifacts."""


@click.command()
@click.option(
    "--repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="A folder in the git repository. Default: the current folder.",
)
@click.option("--processes", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    help="Workers per process.",
)
@click.option(
    "--worktrees",
    type=click.IntRange(1, 64),
    default=3,
    show_default=True,
    help="Worktrees to compete for, fewer than workers.",
)
@click.option(
    "--commits",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="How many of the newest commits to run at.",
)
@database_option
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def demo(
    repo: Path,
    processes: int,
    workers: int,
    worktrees: int,
    commits: int,
    url: DatabaseUrl,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Run real workers on a git repository, and check the result.

    Workers in several processes compete for a few worktrees. Each leases one, runs COMMAND in it
    at a recent commit, and records everything: output, exit code, and the files that the command
    leaves in the folder $ARTIFACTS. Without COMMAND, the project is compiled and some of its tests
    run. One more worker is killed in the middle of its command, and its worktree is taken over.

    Commands are stopped after 20 seconds, and everything after a minute. Worktrees are created in
    a temporary folder and removed at the end; the database and the logs in .artifacts/demo stay.
    Exits with code 1 if a reported row is missing from the database.
    """
    if worktrees >= processes * workers:
        raise click.UsageError("There must be more workers than worktrees.")
    from metastore.demo.competition import DemoError
    from metastore.demo.orchestration import Demo, Plan

    plan = Plan(
        url, repo, FOLDER, list(command), processes, workers, worktrees=worktrees, commits=commits
    )
    with _display(as_json=as_json) as display:
        try:
            outcome = asyncio.run(_run(Demo(plan, display)))
        except DemoError as error:
            raise Refused(str(error)) from error
        except asyncio.CancelledError:
            raise Refused("stopped; the worktrees are removed") from None
    if as_json:
        print_json(outcome)
    else:
        _print_summary(outcome)
    if outcome.problems:
        raise Refused("; ".join(outcome.problems))


def _display(*, as_json: bool) -> Lines | LiveTable:
    from metastore.demo.display import Lines, LiveTable

    return LiveTable() if sys.stdout.isatty() and not as_json else Lines(to_stderr=as_json)


async def _run(demo: Demo) -> Outcome:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine that runs is run by a task
    # Like Ctrl-C: the worktrees must not be left behind.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(ending, task.cancel)
    return await demo.run()


def _print_summary(outcome: Outcome) -> None:
    tally = outcome.tally
    waited = [seconds for seconds in outcome.waits if seconds > 0.1]
    lines = {
        "sessions": _counted(tally.sessions),
        "commands": _counted(tally.commands),
        "exit codes": ", ".join(f"{n} x {code}" for code, n in sorted(tally.exit_codes.items())),
        "events": f"{tally.events:,}",
        "artifacts": f"{_counted(tally.artifacts)}; {tally.artifact_bytes:,} bytes",
        "leases": f"{outcome.leases}, {outcome.preferred} of them at the right commit already",
        "waits": f"{len(waited)}, the longest {max(waited, default=0.0):.1f} s",
        "take-overs": str(outcome.take_overs),
        "stale writes": f"{len(outcome.refused)} refused",
        "duration": f"{outcome.seconds:.1f} s",
    }
    click.echo(
        f"\n{outcome.processes} processes x {outcome.workers} workers, {outcome.worktrees} "
        f"worktrees, {outcome.commits} commits of {outcome.repository}\n"
    )
    for name, text in lines.items():
        click.echo(f"  {name:<13} {text}")
    if outcome.taken_over_by is not None:
        click.echo(
            f"\n  {outcome.killed} was killed while it held fencing number {outcome.killed_as}; "
            f"{outcome.idle:.1f} s later {outcome.taken_over_by} had its worktree, as "
            f"{outcome.taken_over_as}."
        )
    if not outcome.problems:
        click.echo("  Every reported row is in the database, and no worktree had two holders.")
    click.echo("\nLook into it:\n")
    for query in _queries(outcome):
        click.echo(f'  sqlite3 -header -column {shlex.quote(outcome.database)} "{query}"')
    click.echo(f"\nLogs and reports: {outcome.folder}")


def _counted(counts: Mapping[str, int]) -> str:
    parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{sum(counts.values())}: {parts}" if counts else "0"


def _queries(outcome: Outcome) -> list[str]:
    return [
        "SELECT id, status, events, artifacts, error_message FROM session_overview "
        f"ORDER BY created_at DESC LIMIT {outcome.tally.sessions.total()}",
        "SELECT what, owner, fencing_number, until, expired FROM active_leases",
        "SELECT name, size_bytes, sha256, content_path FROM artifacts ORDER BY id DESC LIMIT 9",
        "SELECT position, created_at, message FROM events "
        f"WHERE session_id = '{outcome.killed_session}'",
    ]
