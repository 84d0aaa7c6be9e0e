"""The store's answers to the demo's processes: the claims that are verified at the end."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the types of an entry's fields
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from metastore import Artifact, Command, Lease, Session  # noqa: TC001 - the same

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Entry", "Holding", "Ledger"]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step of a worker, with what the store had acknowledged by then.

    Attributes:
        worker: who did it.
        step: what was done.
        at: when, by the clock of the worker's process.
        event_ids: events that were appended, in their order.
        last_line: the last of the lines that these events hold.
        pid: the process of a command.
        error: what a refused write was refused with.
    """

    worker: str
    step: str
    at: datetime
    commit: str | None = None
    lease: Lease | None = None
    session: Session | None = None
    command: Command | None = None
    artifacts: list[Artifact] = []
    event_ids: list[str] = []
    last_line: str = ""
    pid: int | None = None
    error: str | None = None


class Holding(msgspec.Struct):
    """A period in which a worktree was held.

    Attributes:
        since: when its holder knew that it had the worktree.
        until: when its holder began to give it back, or its lease had run out; None if it is
            not known when.
        waited: how long its holder had waited for it, in seconds.
        preferred: whether the worktree was at its holder's commit already.
    """

    worker: str
    lease: Lease
    since: datetime
    waited: float
    preferred: bool
    until: datetime | None = None


class Ledger:
    """All entries of one run of the demo.

    Attributes:
        sessions: each session in its last known state, by id.
        commands: each command in its last known state, by id.
        artifacts: each artifact, by id.
        events: the ids of each session's events, in their order.
        holdings: all leases, in the order in which they were reported.
        refused: the writes that were refused, with their errors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: dict[str, Entry] = {}
        self._held: dict[str, Holding] = {}
        self.sessions: dict[str, Session] = {}
        self.commands: dict[str, Command] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.events: dict[str, list[str]] = {}
        self.holdings: list[Holding] = []
        self.refused: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Record an entry."""
        self._path.touch(mode=0o600)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
        self._note_rows(entry)
        if entry.step == "waiting":
            self._waiting[entry.worker] = entry
        elif entry.step == "leased" and entry.lease is not None:
            asked = self._waiting[entry.worker]
            holding = Holding(
                entry.worker,
                entry.lease,
                since=entry.at,
                waited=(entry.at - asked.at).total_seconds(),
                preferred=entry.lease.worktree.commit_sha == asked.commit,
            )
            self._held[entry.worker] = holding
            self.holdings.append(holding)
        elif entry.step == "releasing":
            self._held[entry.worker].until = entry.at
        elif entry.step == "killed" and entry.lease is not None:
            # A dead process does not renew: this is when the lease ends.
            self._held[entry.worker].until = entry.lease.expires_at
        elif entry.step == "refused":
            self.refused.append(entry)

    def successions(self) -> list[tuple[Holding, Holding]]:
        """Return each pair of successive holders of a worktree."""
        by_worktree: dict[str, list[Holding]] = {}
        for holding in self.holdings:
            by_worktree.setdefault(holding.lease.worktree_id, []).append(holding)
        return [
            pair
            for holdings in by_worktree.values()
            for pair in pairwise(sorted(holdings, key=lambda it: it.lease.fencing_number))
        ]

    def take_overs(self) -> int:
        """Return how many leases were taken over from a holder that had not released them.

        A release raises the fencing number too, so after a take-over the numbers are consecutive.
        """
        return sum(
            earlier.lease.fencing_number + 1 == later.lease.fencing_number
            for earlier, later in self.successions()
        )

    def _note_rows(self, entry: Entry) -> None:
        session, command = entry.session, entry.command
        if session is not None:
            known = self.sessions.get(session.id)
            # Processes are read one by one, so an entry may be older than another's.
            if known is None or known.updated_at <= session.updated_at:
                self.sessions[session.id] = session
        if command is not None:
            self.commands[command.id] = command
        for artifact in entry.artifacts:
            self.artifacts[artifact.id] = artifact
        if session is not None and entry.event_ids:
            self.events.setdefault(session.id, []).extend(entry.event_ids)
