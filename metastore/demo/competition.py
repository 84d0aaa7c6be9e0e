"""The workers at work: who gets which job, which one is killed, who takes over its worktree."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import msgspec

from metastore import Lease, LeaseLost, SessionStatus
from metastore.codec import new_id
from metastore.demo.fleet import Fleet, kill_command
from metastore.demo.ledger import Entry
from metastore.demo.worker_process import Job, Setting
from metastore.resources import example

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from docs.examples import runner as example_runner
    from metastore import MetadataStore
    from metastore.demo.fleet import Member
    from metastore.demo.ledger import Ledger
else:
    example_runner = example("runner")

__all__ = ["LATE_WRITES", "Competition", "DemoError", "Display", "Victim"]

LEASE_TTL = 3.0
"""How long a lease outlives its holder, in seconds: short, as the demo waits for the take-over."""

COMMAND_TIMEOUT = 20.0
"""How long a command may take, in seconds."""

HAND_OUT_TIME = 16.0
"""How long jobs are handed out, in seconds; longer if the take-over is still to come."""

TIME_LIMIT = 48.0
"""When running commands are cancelled, in seconds."""

DOOMED = "doomed"
"""The process that will be killed."""

EVENTS_BEFORE_THE_KILL = 3

LATE_WRITES = 4
"""How many writes are attempted in the name of the dead worker."""

HEARTBEAT = """\
import time
for beat in range(600):
    print("still at work", beat, flush=True)
    time.sleep(0.1)
"""
"""The command of the doomed worker, which must outlive its worker."""


class DemoError(Exception):
    """The demo cannot run or continue."""


class Display(Protocol):
    """Shows a run in progress."""

    def say(self, message: str) -> None:
        """Print a message about the whole run."""

    def show(self, entry: Entry) -> None:
        """Show what a worker did."""


class Victim:
    """The worker that is killed, and the fate of its worktree.

    Attributes:
        lease: its lease, as the worker knew it.
        killed: the entry of its death, with its lease as the database had it.
        expires_at: when its lease expires.
        heir: the first entry of the worker that got its worktree.
    """

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.session_id: str | None = None
        self.killed: Entry | None = None
        self.expires_at: datetime | None = None
        self.heir: Entry | None = None
        self._command: int | None = None
        self._events = 0

    def hear(self, entry: Entry) -> bool:
        """Note what it does, and return whether it is in the middle of its command."""
        if entry.lease is not None:
            self.lease = entry.lease
        if entry.session is not None:
            self.session_id = entry.session.id
        if entry.pid is not None:
            self._command = entry.pid
        self._events += len(entry.event_ids)
        return self.killed is None and self._events >= EVENTS_BEFORE_THE_KILL

    async def kill(self, member: Member, store: MetadataStore) -> Entry:
        """Kill it, as if its machine had failed, and return the entry."""
        assert self.lease is not None  # noqa: S101 - it is at work
        await member.kill()
        if self._command is not None:
            kill_command(self._command)
        # It may have renewed its lease since; a dead process will not.
        lease = self.lease
        worktree = await store.worktrees.get(lease.worktree_id)
        if worktree.lease_token == lease.token:
            lease = Lease.of(worktree)
        self.expires_at = lease.expires_at
        self.killed = Entry(f"{DOOMED}.1", "killed", datetime.now(UTC), lease=lease)
        return self.killed

    def is_inherited(self, entry: Entry) -> bool:
        """Return whether another worker just got the dead worker's worktree."""
        if (
            self.killed is None
            or self.lease is None
            or self.heir is not None
            or entry.step != "leased"
            or entry.lease is None
            or entry.lease.worktree_id != self.lease.worktree_id
        ):
            return False
        self.heir = entry
        return True

    def awaits_heir(self) -> bool:
        """Return whether its worktree can be taken over and has not been."""
        return (
            self.expires_at is not None
            and self.heir is None
            and datetime.now(UTC) >= self.expires_at
        )


class Competition:
    """Workers in several processes compete for the worktrees of a repository.

    Attributes:
        victim: the worker that is killed.
        seconds: how long the workers have been at work.
    """

    def __init__(
        self,
        store: MetadataStore,
        ledger: Ledger,
        display: Display,
        folder: Path,
        *,
        commits: Sequence[str],
        argv: list[str],
    ) -> None:
        self.victim = Victim()
        self.seconds = 0.0
        self._store = store
        self._ledger = ledger
        self._display = display
        self._fleet = Fleet(folder)
        self._folder = folder
        self._commits = commits
        self._argv = argv
        self._planned = 0

    async def run(
        self,
        url: str,
        repository_id: str,
        *,
        processes: int,
        workers: int,
        metadata: dict[str, str],
    ) -> None:
        """Let the workers compete until everything worth seeing has happened.

        Raises:
            DemoError: a process ended that should not have.
        """
        self._planned = processes * workers + len(self._commits)
        setting = Setting(
            url=url,
            repository_id=repository_id,
            name=DOOMED,
            workers=1,
            folder=str(self._folder),
            ttl=LEASE_TTL,
            timeout=COMMAND_TIMEOUT,
            metadata=metadata,
        )
        others = [
            msgspec.structs.replace(setting, name=f"runner-{number}", workers=workers)
            for number in range(1, processes + 1)
        ]
        try:
            doomed = await self._fleet.start(setting)
            await self._drive(doomed, [await self._fleet.start(other) for other in others])
        finally:
            await self._disband()

    async def _drive(self, doomed: Member, others: list[Member]) -> None:
        # The first message of each says that it is ready.
        for _ in (doomed, *others):
            await self._hear()
        begun = time.monotonic()
        doomed.give(Job(self._commits[0], [sys.executable, "-c", HEARTBEAT]))
        jobs = self._jobs()
        while self.victim.heir is None or any(member.jobs for member in others):
            await self._hear(timeout=0.1)
            self.seconds = time.monotonic() - begun
            if self.seconds > TIME_LIMIT:
                self._display.say("Out of time: running commands are cancelled")
                return
            # The first worktree is for the doomed worker.
            if self.victim.lease is not None:
                for member in others:
                    while member.jobs < member.workers and (job := next(jobs)) is not None:
                        member.give(job)

    def _jobs(self) -> Iterator[Job | None]:
        """Yield the jobs one by one; None while there is none."""
        for number, commit in enumerate(itertools.cycle(self._commits)):
            while number >= self._planned or self.seconds > HAND_OUT_TIME:
                # More only if needed for the take-over of the dead worker's worktree.
                if self.victim.awaits_heir():
                    break
                yield None
            yield Job(commit, self._argv)

    async def _hear(self, *, timeout: float | None = None) -> None:
        """Wait for a message of a process, and act on it."""
        try:
            # Not wait_for: before Python 3.12 it may swallow a cancellation.
            async with asyncio.timeout(timeout):
                member, entry = await self._fleet.heard.get()
        except TimeoutError:
            return
        if entry is None:
            if member.name != DOOMED or self.victim.killed is None:
                code = member.process.returncode
                raise DemoError(f"{member.name} ended with code {code}, see {member.errors}")
            return
        self._note(entry)
        if entry.step == "idle":
            member.jobs -= 1
        if member.name == DOOMED:
            if self.victim.hear(entry):
                self._note(await self.victim.kill(member, self._store))
        elif self.victim.is_inherited(entry):
            for refused in [it async for it in self._late_writes()]:
                self._note(refused)

    def _note(self, entry: Entry) -> None:
        self._ledger.add(entry)
        self._display.show(entry)

    async def _late_writes(self) -> AsyncIterator[Entry]:
        """Do what the dead worker would do if it were only asleep; yield what is refused."""
        store, lease, session_id = self._store, self.victim.lease, self.victim.session_id
        assert lease is not None and session_id is not None  # noqa: PT018, S101 - it was at work
        event_id = new_id()

        async def append() -> None:
            async with store.transaction(lease=lease) as tx:
                await tx.events.append(session_id, "output", "still here", id=event_id)

        writes: dict[str, Callable[[], Awaitable[object]]] = {
            "an event in a guarded transaction": append,
            "a checkout": lambda: store.worktrees.record_checkout(
                lease, branch=None, commit_sha="0" * 40
            ),
            "a renewal": lambda: store.worktrees.renew(lease, ttl=example_runner.Runner.ttl),
            "a release": lambda: store.worktrees.release(lease),
        }
        for what, write in writes.items():
            try:
                await write()
            except LeaseLost as error:
                yield Entry(
                    f"{DOOMED}.1",
                    "refused",
                    datetime.now(UTC),
                    event_ids=[event_id] if write is append else [],
                    last_line=what,
                    error=type(error).__name__,
                )

    async def _disband(self) -> None:
        """Stop what still runs, and end the sessions of dead workers."""
        await self._fleet.stop()
        while not self._fleet.heard.empty():
            _, entry = self._fleet.heard.get_nowait()
            if entry is not None:
                self._note(entry)
        for session in list(self._ledger.sessions.values()):
            if session.status == SessionStatus.IN_PROGRESS:
                ended = await example_runner.abandon(
                    self._store, session.id, "its worker was killed"
                )
                self._ledger.add(Entry("demo", "ended", datetime.now(UTC), session=ended))
