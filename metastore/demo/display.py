"""The demo's output: a live table on a terminal, or lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Self

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metastore import SessionStatus

if TYPE_CHECKING:
    from types import TracebackType

    from metastore.demo.ledger import Entry

__all__ = ["Lines", "LiveTable", "printable"]

NEWS = 8
"""How many messages are shown below the table."""

STYLES = {"idle": "dim", "waits": "yellow", "runs": "green", "dead": "bold red"}

SHOWN_WHEN_PLAIN = ("leased", "finished")
"""Steps that get their own line, but are no news beside a table."""


def printable(text: str) -> str:
    """Return `text` without control characters: commands may print anything."""
    return "".join(character if character.isprintable() else " " for character in text)


def _sentence(entry: Entry) -> str | None:
    """Return the message for an entry, if it deserves a line."""
    lease, session, command = entry.lease, entry.session, entry.command
    match entry.step:
        case "leased" if lease is not None:
            return f"leased {_name(lease.worktree.path)}, fencing number {lease.fencing_number}"
        case "finished" if command is not None:
            files = ", ".join(artifact.name for artifact in entry.artifacts)
            what = "timed out" if command.exit_code is None else f"exit code {command.exit_code}"
            return f"its command ended: {what}; {files}"
        case "ended" if session is not None and session.status == SessionStatus.CANCELLED:
            return "its session was cancelled"
        case "killed" if lease is not None:
            return (
                f"KILLED in the middle of its command; its lease {lease.fencing_number} "
                f"on {_name(lease.worktree.path)} runs until {lease.expires_at:%H:%M:%S.%f}"[:-3]
            )
        case "took over" if session is not None:
            return f"found the session of a dead worker and failed it: {session.id}"
        case "refused":
            return f"would write too late: {entry.last_line} is refused with {entry.error}"
        case "lost":
            return "lost its lease: it was paused for too long"
    return None


def _name(path: str) -> str:
    return path.rpartition("/")[2]


class Lines:
    """Prints a line for each notable entry."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        self._begun = time.monotonic()
        self._to_stderr = to_stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing: every line has been printed."""

    def say(self, message: str) -> None:
        """Print a message about the whole run."""
        elapsed = time.monotonic() - self._begun
        click.echo(f"{elapsed:5.1f} s  {printable(message)}", err=self._to_stderr)

    def show(self, entry: Entry) -> None:
        """Show what a worker did."""
        if sentence := _sentence(entry):
            self.say(f"{entry.worker:<11} {sentence}")


class _Worker(msgspec.Struct):
    """A row of the table."""

    does: str = "idle"
    since: float = 0.0
    worktree: str = ""
    fencing_number: str = ""
    commit: str = ""
    last_line: str = ""


class LiveTable:
    """Shows a table of the workers, and the news below it."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._workers: dict[str, _Worker] = {}
        self._news: deque[str] = deque(maxlen=NEWS)
        self._live = Live(
            get_renderable=self._render, console=Console(), refresh_per_second=8, transient=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        """Print a message about the whole run."""
        self._news.append(f"{time.monotonic() - self._begun:5.1f} s  {printable(message)}")

    def show(self, entry: Entry) -> None:
        """Show what a worker did."""
        if entry.step == "ready":
            return
        worker = self._workers.setdefault(entry.worker, _Worker())
        match entry.step:
            case "waiting":
                self._turn(worker, "waits")
                worker.commit = (entry.commit or "")[:10]
            case "leased" if entry.lease is not None:
                self._turn(worker, "holds")
                worker.worktree = _name(entry.lease.worktree.path)
                worker.fencing_number = str(entry.lease.fencing_number)
            case "running":
                self._turn(worker, "runs")
            case "output":
                worker.last_line = printable(entry.last_line)
            case "releasing" | "idle":
                self._turn(worker, "idle")
                worker.worktree = worker.fencing_number = worker.commit = worker.last_line = ""
            case "killed":
                self._turn(worker, "dead")
        sentence = _sentence(entry)
        if sentence and entry.step not in SHOWN_WHEN_PLAIN:
            self.say(f"{entry.worker} {sentence}")

    @staticmethod
    def _turn(worker: _Worker, does: str) -> None:
        worker.does = does
        worker.since = time.monotonic()

    def _render(self) -> Group:
        now = time.monotonic()
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        for header, width in (
            ("worker", 11),
            ("", 5),
            ("for", 6),
            ("worktree", 11),
            ("fence", 5),
            ("commit", 10),
        ):
            table.add_column(header, width=width, no_wrap=True)
        table.add_column("last line of output", no_wrap=True, overflow="ellipsis", ratio=1)
        # Copies: the table is drawn in another thread.
        for name, worker in sorted(self._workers.copy().items()):
            table.add_row(
                name,
                Text(worker.does, style=STYLES.get(worker.does, "")),
                f"{now - worker.since:.1f} s" if worker.does != "idle" else "",
                worker.worktree,
                worker.fencing_number,
                worker.commit,
                Text(worker.last_line, style="dim"),
            )
        return Group(table, Text(), *(Text(news, no_wrap=True) for news in tuple(self._news)))
