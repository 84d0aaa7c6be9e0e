"""Compare metastore with its peers: the operations, several processes, growing tables."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import page, results
from benchmarks.compare import compare
from benchmarks.growth import measure_growth
from benchmarks.noise import Patience
from benchmarks.processes import measure_processes

PARTS = ("operations", "processes", "growth")


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rounds, tasks and rows: under two minutes.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Measure only this part.")
@click.option(
    "--patience",
    type=float,
    default=0,
    metavar="SECONDS",
    help="How long to measure windows again in which others kept the machine busy.",
)
@click.option("--write", is_flag=True, help="Write the tables and plots into docs/performance.md.")
@click.option(
    "--from",
    "files",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Measure nothing: take these results, for each part the newest that have it.",
)
def main(
    quick: bool, only: tuple[str, ...], patience: float, write: bool, files: tuple[Path, ...]
) -> None:
    """Compare metastore with its peers, and print what came out."""
    if files:
        found = results.merge([results.load(path) for path in files])
    else:
        found = measure(quick=quick, parts=only or PARTS, patience=Patience(patience))
        click.echo(f"\nwritten to {results.save(found)}\n")
    click.echo(page.render(found))
    if write:
        page.write(found)


def measure(*, quick: bool, parts: tuple[str, ...], patience: Patience) -> results.Results:
    """Measure the named parts."""
    rounds, seconds = (3, 0.1) if quick else (5, 0.2)
    begun = time.monotonic()

    def say(what: str) -> None:
        click.echo(f"{time.monotonic() - begun:7.1f} s  {what}", file=sys.stderr)

    machine = results.describe_machine()
    operations: list[results.OperationFigure] = []
    processes: list[results.ProcessFigure] = []
    growth: list[results.GrowthFigure] = []
    if "operations" in parts:
        operations = compare(rounds, seconds, patience, quick=quick, say=say)
    if "processes" in parts:
        processes = measure_processes(
            rounds if quick else 2 * rounds, 0.5 if quick else 1, patience, quick=quick, say=say
        )
    if "growth" in parts:
        growth = measure_growth(rounds, quick=quick, say=say)
    return results.Results(
        at=datetime.now(UTC),
        quick=quick,
        rounds=rounds,
        seconds=seconds,
        machine=machine,
        noise=results.Noise.of(patience),
        operations=operations,
        processes=processes,
        growth=growth,
    )


if __name__ == "__main__":
    main()
