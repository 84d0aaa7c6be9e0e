"""The results as docs/performance.md shows them: tables between markers, and plots beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import contenders, goals, operations, plots
from benchmarks.processes import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.results import OperationFigure, Results

__all__ = ["PAGE", "render", "replace_section", "table", "write"]

PAGE = Path("docs/performance.md")

NOTHING = "\N{EN DASH}"


def render(results: Results) -> str:
    """Return all tables."""
    return "\n\n".join(f"### {name}\n\n{text}" for name, text in _sections(results).items())


def write(results: Results) -> None:
    """Write the tables and plots."""
    for name, text in _sections(results).items():
        replace_section(name, text)
    plots.draw(results, PAGE.with_suffix(""))


def replace_section(name: str, text: str) -> None:
    """Put `text` between the markers of a section of the page.

    Raises:
        LookupError: the page has no such section.
    """
    found = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    page, count = pattern.subn(lambda _: f"{begin}\n\n{text}\n\n{end}", found)
    if count != 1:
        raise LookupError(f"{PAGE} has {count} sections {name}")
    PAGE.write_text(page, encoding="utf-8")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _sections(results: Results) -> dict[str, str]:
    sections = {"machine": _machine(results), "goals": _goals(results)}
    if results.operations:
        sections["operations"] = _operations(results)
    if results.processes:
        sections["processes"] = _processes(results)
    if results.growth:
        sections["growth"] = _growth(results)
    return sections


def _machine(results: Results) -> str:
    machine, noise = results.machine, results.noise
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    return (
        f"Measured on {results.at:%Y-%m-%d} on {machine.cpus} cores ({machine.processor}) with "
        f"Python {machine.python} and SQLite {machine.sqlite}; the disk keeps 4 KiB in "
        f"{machine.sync_us:,.0f} µs (fdatasync). Peers: {packages}. Medians of {results.rounds} "
        f"interleaved rounds of {results.seconds:g} s each. While it was measured, other programs "
        f"used {noise.median:.2f} cores (median) to {noise.worst:.2f} (worst window); "
        f"{noise.repeated} disturbed windows were measured again."
    )


def _goals(results: Results) -> str:
    return table(
        ("", "goal", "measured", "", "in processor time"),
        (
            (
                it.what,
                it.goal,
                it.measured,
                "reached" if it.reached else "**not reached**",
                it.processor or NOTHING,
            )
            for it in goals.outcomes(results)
        ),
    )


def _operations(results: Results) -> str:
    peers = list(dict.fromkeys(it.peer for it in contenders.ALL.values()))
    return "\n\n".join(
        f"**{operation.title}**\n\n{_operation(results, name, peers)}"
        for name, operation in operations.ALL.items()
        if any(it.operation == name for it in results.operations)
    )


def _operation(results: Results, name: str, peers: list[str]) -> str:
    levels = sorted({it.tasks for it in results.operations if it.operation == name})
    return table(
        ["", *("1 task" if level == 1 else f"{level} tasks" for level in levels)],
        (
            [peer, *(_cell(results.best(peer, name, level)) for level in levels)]
            for peer in peers
            if any(results.best(peer, name, level) for level in levels)
        ),
    )


def _cell(figure: OperationFigure | None) -> str:
    if figure is None:
        return NOTHING
    failed = sum(sum(it.errors.values()) for it in figure.rounds)
    return (
        f"**{figure.rate:,.0f}**/s, {_time(figure.p50)}, {_time(figure.p99)}"
        f"{f', {failed} failed' if failed else ''}"
    )


def _time(microseconds: float) -> str:
    if microseconds < 1_000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1_000:.{1 if microseconds < 100_000 else 0}f} ms"


def _processes(results: Results) -> str:
    return table(
        ("", "together", "slowest / fastest", "p99", "longest", "failed"),
        (
            (
                _processes_and_tasks(it.processes, it.tasks),
                f"{sorted(it.rates)[len(it.rates) // 2]:,.0f}/s",
                NOTHING if it.processes == 1 else f"{it.fairness:.2f}",
                _time(sorted(it.p99s)[len(it.p99s) // 2]),
                _time(it.worst),
                str(it.errors),
            )
            for it in results.processes
        ),
    )


def _processes_and_tasks(processes: int, tasks: int) -> str:
    noun = "process" if processes == 1 else "processes"
    remark = ", for comparison" if (processes, tasks) == REFERENCE else ""
    return f"{processes} {noun} {goals.TIMES} {tasks} tasks{remark}"


def _growth(results: Results) -> str:
    return table(
        ("", "rows", "time", "rows", "time", "ratio"),
        (
            (
                it.what,
                f"{it.small:,}",
                _time(sorted(it.small_us)[len(it.small_us) // 2]),
                f"{it.big:,}",
                _time(sorted(it.big_us)[len(it.big_us) // 2]),
                f"{it.ratio:.2f}",
            )
            for it in results.growth
        ),
    )
