"""The plots of docs/performance.md, as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import contenders, operations
from benchmarks.processes import REFERENCE

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.results import Results

__all__ = ["draw"]

COLOURS = {
    "metastore": "#c1121f",
    "raw sqlite3, one by one": "#003049",
    "tutorial aiosqlite": "#2a6f97",
    "SQLAlchemy Core": "#588157",
    "SQLModel": "#a3b18a",
    "Tortoise": "#bc6c25",
    "Piccolo": "#8d99ae",
    "Peewee": "#6d597a",
}

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metastore",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(results: Results, directory: Path) -> None:
    """Draw what the results have figures for."""
    import matplotlib as mpl

    mpl.use("svg")
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        if results.operations:
            _save(_peers(results), directory / "peers.svg")
            _save(_tasks(results), directory / "tasks.svg")
        if results.processes:
            _save(_processes(results), directory / "processes.svg")


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    return figure, list(axes.flat)


def _save(figure: Any, path: Path) -> None:
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _peers(results: Results) -> Any:
    """Draw each operation's rates at 64 tasks, as bars on a logarithmic scale."""
    names = [name for name in operations.ALL if results.best(contenders.OURS, name, 64) is not None]
    figure, axes = _figure(3, (len(names) + 2) // 3, 9, 2.2 * ((len(names) + 2) // 3))
    for number, (axis, name) in enumerate(zip(axes, names, strict=False)):
        for place, (peer, colour) in enumerate(reversed(COLOURS.items())):
            found = results.best(peer, name, 64) or results.best(peer, name, 1)
            if found is not None:
                axis.barh(place, found.rate, color=colour)
                axis.text(found.rate * 1.1, place, f"{found.rate:,.0f}", va="center", fontsize=7)
        labels = list(reversed(COLOURS)) if number % 3 == 0 else [""] * len(COLOURS)
        axis.set_yticks(range(len(COLOURS)), labels, fontsize=7)
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter("")
        axis.margins(x=0.25)
        axis.set_title(operations.ALL[name].title, fontsize=9)
    for axis in axes[len(names) :]:
        axis.remove()
    figure.suptitle("operations a second, 64 tasks (raw sqlite3 and Piccolo: one)", fontsize=10)
    return figure


def _tasks(results: Results) -> Any:
    """Draw how rates change with the number of tasks."""
    names = [
        name
        for name in ("append", "reserve_release", "get", "page")
        if len({it.tasks for it in results.operations if it.operation == name}) > 1
    ]
    figure, axes = _figure(len(names), 1, 9.5, 3)
    for axis, name in zip(axes, names, strict=True):
        levels = sorted({it.tasks for it in results.operations if it.operation == name})
        for peer, colour in COLOURS.items():
            figures = [(level, results.best(peer, name, level)) for level in levels]
            points = [(level, it.rate) for level, it in figures if it is not None]
            levels_and_rates = zip(*points, strict=True) if points else ([], [])
            axis.plot(*levels_and_rates, "o-", color=colour, label=peer, markersize=3)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(levels, [str(level) for level in levels])
        axis.yaxis.set_minor_formatter("")
        axis.set_title(operations.ALL[name].title, fontsize=9)
        axis.set_xlabel("tasks")
    axes[0].set_ylabel("operations a second")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    figure.subplots_adjust(bottom=0.3)
    figure.set_layout_engine("constrained")
    return figure


def _processes(results: Results) -> Any:
    """Draw what several processes append together, and how evenly."""
    figures = [it for it in results.processes if (it.processes, it.tasks) != REFERENCE]
    figure, [rates, shares] = _figure(2, 1, 7, 2.6)
    labels = [str(it.processes) for it in figures]
    rates.bar(labels, [sorted(it.rates)[len(it.rates) // 2] for it in figures], color="#c1121f")
    rates.set_title("appends a second, together", fontsize=9)
    shares.bar(labels, [it.fairness for it in figures], color="#003049")
    shares.set_ylim(0, 1)
    shares.set_title("slowest process / fastest", fontsize=9)
    for axis in (rates, shares):
        axis.set_xlabel("processes of 16 tasks")
    return figure
