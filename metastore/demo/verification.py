"""Verifies that every claim of the demo is in the database, and that the leases held.

The rows are read again through a store that had no part in the run, and compared with what the
processes got when they wrote them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from metastore import CommandStatus, NotFound, SessionStatus, every
from metastore.paging import MAX_PAGE

if TYPE_CHECKING:
    from metastore import Artifact, Command, MetadataStore, Session
    from metastore.demo.ledger import Ledger

__all__ = ["RUN", "Tally", "verify"]

RUN = "demo_run"
"""The key in a session's metadata that names its run."""


class Tally(msgspec.Struct):
    """The rows of a run in the database, counted, and the problems found."""

    sessions: Counter[str] = msgspec.field(default_factory=Counter)
    commands: Counter[str] = msgspec.field(default_factory=Counter)
    exit_codes: Counter[str] = msgspec.field(default_factory=Counter)
    artifacts: Counter[str] = msgspec.field(default_factory=Counter)
    artifact_bytes: int = 0
    events: int = 0
    problems: list[str] = msgspec.field(default_factory=list)


async def verify(store: MetadataStore, run: str, ledger: Ledger) -> Tally:
    """Count the rows of a run in the database, and report what is missing or differs."""
    tally = Tally()
    sessions = await _sessions_of(store, run)
    for session_id, claimed in ledger.sessions.items():
        if session_id not in sessions:
            tally.problems.append(f"session {session_id} is not in the database")
        elif sessions[session_id] != claimed:
            tally.problems.append(
                f"session {session_id} is {sessions[session_id].status}, not {claimed.status} "
                "as it was left"
            )
    commands: dict[str, Command] = {}
    artifacts: dict[str, Artifact] = {}
    for session in sessions.values():
        tally.sessions[session.status] += 1
        commands |= await _commands_of(store, session, tally)
        artifacts |= await _artifacts_of(store, session, tally)
        await _check_events(store, session, ledger.events.get(session.id, []), tally)
        if session.completed_at is None:
            tally.problems.append(f"session {session.id} has not ended: it is {session.status}")
    for command_id, command in ledger.commands.items():
        found = commands.get(command_id)
        if found is None:
            tally.problems.append(f"command {command_id} is not in the database")
        elif found != command and command.status != CommandStatus.RUNNING:
            tally.problems.append(f"command {command_id} is not as it was left")
    for artifact_id, artifact in ledger.artifacts.items():
        if artifacts.get(artifact_id) != artifact:
            tally.problems.append(
                f"artifact {artifact_id} ({artifact.name} of session {artifact.session_id}) "
                "is not in the database"
            )
    for artifact in artifacts.values():
        if await asyncio.to_thread(_has_changed, artifact):
            tally.problems.append(f"artifact {artifact.id}: {artifact.content_path} has changed")
    await _check_leases(store, ledger, tally)
    await _check_refused(store, ledger, tally)
    return tally


async def _sessions_of(store: MetadataStore, run: str) -> dict[str, Session]:
    sessions: dict[str, Session] = {}
    after: str | None = None
    while True:
        page = await store.sessions.list_recent(after=after, limit=MAX_PAGE)
        found = {row.id: row for row in page.items if row.metadata.get(RUN) == run}
        sessions |= found
        after = page.next
        # Newest first, so that a run fills the first pages, even if others run beside it.
        if after is None or (sessions and not found):
            return sessions


async def _commands_of(store: MetadataStore, session: Session, tally: Tally) -> dict[str, Command]:
    commands = [it async for it in every(store.commands.list_by_session, session.id)]
    for command in commands:
        tally.commands[command.status] += 1
        tally.exit_codes["none" if command.exit_code is None else str(command.exit_code)] += 1
        if command.completed_at is None and session.status != SessionStatus.IN_PROGRESS:
            tally.problems.append(f"command {command.id} is {command.status}, its session ended")
    return {command.id: command for command in commands}


async def _artifacts_of(
    store: MetadataStore, session: Session, tally: Tally
) -> dict[str, Artifact]:
    artifacts = [it async for it in every(store.artifacts.list_by_session, session.id)]
    for artifact in artifacts:
        tally.artifacts[artifact.artifact_type] += 1
        tally.artifact_bytes += artifact.size_bytes or 0
    return {artifact.id: artifact for artifact in artifacts}


async def _check_events(
    store: MetadataStore, session: Session, claimed: list[str], tally: Tally
) -> None:
    events = [it async for it in every(store.events.list_by_session, session.id)]
    tally.events += len(events)
    found = [event.id for event in events]
    if missing := set(claimed).difference(found):
        tally.problems.append(
            f"{len(missing)} events of session {session.id} are not in the database"
        )
    elif found[: len(claimed)] != claimed:
        tally.problems.append(f"the events of session {session.id} are not in their order")


def _has_changed(artifact: Artifact) -> bool:
    try:
        content = Path(artifact.content_path).read_bytes()
    except OSError:
        return True
    return (len(content), hashlib.sha256(content).hexdigest()) != (
        artifact.size_bytes,
        artifact.sha256,
    )


async def _check_leases(store: MetadataStore, ledger: Ledger, tally: Tally) -> None:
    for earlier, later in ledger.successions():
        worktree_id, number = earlier.lease.worktree_id, earlier.lease.fencing_number
        if number == later.lease.fencing_number:
            tally.problems.append(f"worktree {worktree_id} was leased twice as {number}")
        if later.since < (earlier.until or earlier.since):
            tally.problems.append(
                f"worktree {worktree_id} had two holders: {earlier.worker} and {later.worker}"
            )
    newest = {holding.lease.worktree_id: 0 for holding in ledger.holdings}
    for holding in ledger.holdings:
        worktree_id = holding.lease.worktree_id
        newest[worktree_id] = max(newest[worktree_id], holding.lease.fencing_number)
    for worktree_id, number in newest.items():
        worktree = await store.worktrees.get(worktree_id)
        if worktree.version < number:
            tally.problems.append(f"the fencing number of worktree {worktree_id} went back")
        if worktree.lease_owner is not None:
            tally.problems.append(f"worktree {worktree_id} is still leased")


async def _check_refused(store: MetadataStore, ledger: Ledger, tally: Tally) -> None:
    """Look for traces of the refused writes."""
    for entry in ledger.refused:
        for event_id in entry.event_ids:
            try:
                await store.events.get(event_id)
            except NotFound:
                continue
            tally.problems.append(f"event {event_id} was refused and is in the database")
