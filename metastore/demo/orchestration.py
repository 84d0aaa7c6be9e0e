"""One run of the demo: its worktrees, its processes, the kill, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from metastore import Lease, LeaseLost, MetadataStore, SessionStatus, WorktreeState
from metastore.codec import new_id
from metastore.demo import check
from metastore.demo.fleet import Fleet, kill_command
from metastore.demo.ledger import Entry, Ledger
from metastore.demo.verification import RUN, Tally, verify
from metastore.demo.worker_process import Job, Setting
from metastore.resources import example

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from docs.examples import runner as example_runner
    from metastore import Repository, Worktree
    from metastore.demo.fleet import Member
    from metastore.urls import DatabaseUrl
else:
    example_runner = example("runner")

__all__ = ["Demo", "DemoError", "Display", "Outcome", "Plan"]

LEASE_TTL = 3.0
"""How long a lease outlives its holder, in seconds: short, for the take-over is waited for."""

COMMAND_TIMEOUT = 20.0
"""How long a command may take, in seconds."""

HAND_OUT_TIME = 16.0
"""How long jobs are handed out, in seconds, unless the take-over has yet to come."""

TIME_LIMIT = 48.0
"""When what still runs is called off, in seconds."""

DOOMED = "doomed"
"""The process that will be killed."""

EVENTS_BEFORE_THE_KILL = 3

LATE_WRITES = 4
"""How many writes are tried in the name of the dead worker."""

HEARTBEAT = """\
import time
for beat in range(600):
    print("still at work", beat, flush=True)
    time.sleep(0.1)
"""
"""The command of the worker that is killed: it must not end before its worker does."""


class DemoError(Exception):
    """Why the demo cannot be run, or go on."""


class Plan(msgspec.Struct, frozen=True):
    """What to run.

    Attributes:
        repository: a folder of the git repository.
        folder: where each run leaves its logs and other artifacts.
        argv: the command; empty for the one that comes with the demo.
    """

    url: DatabaseUrl
    repository: Path
    folder: Path
    argv: list[str]
    processes: int = 2
    workers: int = 4
    worktrees: int = 3
    commits: int = 4


class Outcome(msgspec.Struct):
    """What came of a run.

    Attributes:
        tally: what the database holds of it.
        problems: what was claimed or promised and is not so.
        preferred: how many leases were of a worktree that was at the commit already.
        waits: how long was waited for each lease, in seconds.
        take_overs: how many leases were of a worktree that nobody had given back.
        killed: the worker that was killed.
        taken_over_by: the worker that got its worktree.
        idle: how long nobody had it, from the kill on, in seconds.
        refused: the dead worker's late writes, each with its error.
        seconds: how long the workers were at work.
    """

    run: str
    repository: str
    database: str
    folder: str
    commits: int
    worktrees: int
    processes: int
    workers: int
    tally: Tally
    problems: list[str]
    leases: int = 0
    preferred: int = 0
    waits: list[float] = []
    take_overs: int = 0
    killed: str | None = None
    killed_lease: Lease | None = None
    killed_session: str | None = None
    taken_over_by: str | None = None
    taken_over_as: int | None = None
    idle: float | None = None
    refused: dict[str, str] = {}
    seconds: float = 0.0


class Display(Protocol):
    """Shows a run while it lasts."""

    def say(self, message: str) -> None:
        """Say something of the run as a whole."""

    def show(self, entry: Entry) -> None:
        """Show what a worker did."""


class _Victim:
    """The worker that is killed, and what becomes of its worktree.

    Attributes:
        lease: its lease, as it was told of it.
        killed: the last that was heard of it, when it is dead.
        expires_at: when its lease ends.
        heir: the first that was heard of the worker that got its worktree.
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
        """Take note of what it does, and tell whether it is in the middle of its command."""
        if entry.lease is not None:
            self.lease = entry.lease
        if entry.session is not None:
            self.session_id = entry.session.id
        if entry.pid is not None:
            self._command = entry.pid
        self._events += len(entry.event_ids)
        return self.killed is None and self._events >= EVENTS_BEFORE_THE_KILL

    async def kill(self, member: Member, store: MetadataStore) -> Entry:
        """Kill it, as if its machine had gone, and say so."""
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
        """Tell whether somebody just got the worktree of the dead."""
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
        """Tell whether its worktree is free to be taken over, and nobody has."""
        return (
            self.expires_at is not None
            and self.heir is None
            and datetime.now(UTC) >= self.expires_at
        )


class Demo:
    """One run of the demo."""

    def __init__(self, plan: Plan, display: Display) -> None:
        self._plan = plan
        self._display = display
        self._run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
        self._folder = plan.folder.absolute() / self._run
        self._argv = plan.argv or [sys.executable, "-P", str(Path(check.__file__).resolve())]
        self._victim = _Victim()
        self._seconds = 0.0

    async def run(self) -> Outcome:
        """Run it and return what came of it. The worktrees are gone by then, however it ends.

        Raises:
            DemoError: it cannot be run.
        """
        plan = self._plan
        if plan.url.path is None:
            raise DemoError("several processes need a database in a file, as sqlite:///demo.db")
        database = plan.url.path.absolute()
        url = f"sqlite:///{database}"
        top = await _top_of(plan.repository)
        commits = await example_runner.newest_commits(top, plan.commits)
        places = [commits[number % len(commits)] for number in range(plan.worktrees)]
        self._folder.mkdir(parents=True)
        with contextlib.closing(Ledger(self._folder / "ledger.jsonl")) as ledger:
            async with MetadataStore.open(url, migrate=True) as store:
                with _alone(database.parent):
                    repository = await _register(store, top)
                    await self._clear_up(store, repository, top)
                    self._display.say(f"Making {len(places)} worktrees of {top}")
                    async with example_runner.checkouts(store, repository.id, top, places):
                        fleet = Fleet(self._folder)
                        try:
                            await self._compete(fleet, store, url, repository, commits, ledger)
                        finally:
                            await self._disband(fleet, ledger)
            # Nobody who had a part in the run has a word in this.
            async with MetadataStore.open(url) as fresh:
                tally = await verify(fresh, self._run, ledger)
        return self._outcome(ledger, tally, top, database, commits)

    async def _compete(
        self,
        fleet: Fleet,
        store: MetadataStore,
        url: str,
        repository: Repository,
        commits: Sequence[str],
        ledger: Ledger,
    ) -> None:
        """Let the workers compete for the worktrees until everything was seen."""
        plan = self._plan
        setting = Setting(
            url=url,
            repository_id=repository.id,
            name=DOOMED,
            workers=1,
            folder=str(self._folder),
            ttl=LEASE_TTL,
            timeout=COMMAND_TIMEOUT,
            metadata={RUN: self._run},
        )
        victim = await fleet.start(setting)
        for number in range(1, plan.processes + 1):
            name = f"runner-{number}"
            await fleet.start(msgspec.structs.replace(setting, name=name, workers=plan.workers))
        for _ in fleet.members:
            await self._hear(fleet, store, ledger, timeout=None)
        begun = time.monotonic()
        victim.give(Job(commits[0], [sys.executable, "-c", HEARTBEAT]))
        jobs = self._jobs(commits, begun)
        others = [member for member in fleet.members if member is not victim]
        while True:
            await self._hear(fleet, store, ledger, timeout=0.1)
            self._seconds = time.monotonic() - begun
            if self._seconds > TIME_LIMIT:
                self._display.say("Out of time: what still runs is called off")
                return
            if self._victim.lease is None:
                continue
            for member in others:
                while member.jobs < member.workers and (job := next(jobs)) is not None:
                    member.give(job)
            if self._victim.heir is not None and not any(member.jobs for member in others):
                return

    def _jobs(self, commits: Sequence[str], begun: float) -> Iterator[Job | None]:
        """Yield the jobs, one by one; None when there is none for the moment."""
        planned = self._plan.processes * self._plan.workers + len(commits)
        for number, commit in enumerate(itertools.cycle(commits)):
            while number >= planned or time.monotonic() - begun > HAND_OUT_TIME:
                # More only if it takes more to get the worktree of the dead taken.
                if self._victim.awaits_heir():
                    break
                yield None
            yield Job(commit, self._argv)

    async def _hear(
        self, fleet: Fleet, store: MetadataStore, ledger: Ledger, *, timeout: float | None
    ) -> None:
        """Wait for a process to say something, and act on it."""
        try:
            member, entry = await asyncio.wait_for(fleet.heard.get(), timeout)
        except TimeoutError:
            return
        if entry is None:
            if member.name != DOOMED or self._victim.killed is None:
                code = member.process.returncode
                raise DemoError(f"{member.name} ended with code {code}, see {member.errors}")
            return
        self._note(ledger, entry)
        if entry.step == "idle":
            member.jobs -= 1
        if member.name == DOOMED:
            if self._victim.hear(entry):
                self._note(ledger, await self._victim.kill(member, store))
        elif self._victim.is_inherited(entry):
            for refused in [it async for it in self._late_writes(store)]:
                self._note(ledger, refused)

    def _note(self, ledger: Ledger, entry: Entry) -> None:
        ledger.add(entry)
        self._display.show(entry)

    async def _late_writes(self, store: MetadataStore) -> AsyncIterator[Entry]:
        """Do what the dead worker would do, had it only been asleep; yield what is refused."""
        lease, session_id = self._victim.lease, self._victim.session_id
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

    async def _disband(self, fleet: Fleet, ledger: Ledger) -> None:
        await fleet.stop()
        while not fleet.heard.empty():
            _, entry = fleet.heard.get_nowait()
            if entry is not None:
                self._note(ledger, entry)

    async def _clear_up(self, store: MetadataStore, repository: Repository, top: Path) -> None:
        """Remove what a run left that could not do it itself."""
        left: dict[str, Worktree] = {}
        after: str | None = None
        while True:
            page = await store.worktrees.list_by_repository(repository.id, after=after)
            left |= {row.id: row for row in page.items if row.state == WorktreeState.READY}
            after = page.next
            if after is None:
                break
        if not left:
            return
        self._display.say(f"Removing {len(left)} worktrees that an earlier run has left")
        for worktree in left.values():
            await example_runner.retire(store, worktree)
            path = Path(worktree.path)
            with contextlib.suppress(example_runner.GitError):
                await example_runner.git("worktree", "remove", "-f", "-f", path, cwd=top)
            if path.parent.name.startswith(example_runner.FOLDER_PREFIX):
                shutil.rmtree(path.parent, ignore_errors=True)
        active = await store.sessions.list_by_status(SessionStatus.IN_PROGRESS, limit=1000)
        for session in active.items:
            if session.worktree_id in left:
                await example_runner.abandon(store, session.id, "its run of the demo was killed")

    def _outcome(
        self, ledger: Ledger, tally: Tally, top: Path, database: Path, commits: Sequence[str]
    ) -> Outcome:
        plan, victim = self._plan, self._victim
        outcome = Outcome(
            run=self._run,
            repository=str(top),
            database=str(database),
            folder=str(self._folder),
            commits=len(commits),
            worktrees=plan.worktrees,
            processes=plan.processes,
            workers=plan.workers,
            tally=tally,
            problems=list(tally.problems),
            leases=len(ledger.holdings),
            preferred=sum(holding.preferred for holding in ledger.holdings),
            waits=[holding.waited for holding in ledger.holdings],
            take_overs=ledger.take_overs(),
            refused={entry.last_line: entry.error or "" for entry in ledger.refused},
            killed_session=victim.session_id,
            seconds=self._seconds,
        )
        if victim.killed is None:
            outcome.problems.append("no worker was killed: it had nothing to do in time")
        elif victim.heir is None or victim.heir.lease is None:
            outcome.problems.append("nobody took over the worktree of the worker that was killed")
        else:
            outcome.killed = victim.killed.worker
            outcome.killed_lease = victim.killed.lease
            outcome.taken_over_by = victim.heir.worker
            outcome.taken_over_as = victim.heir.lease.fencing_number
            outcome.idle = (victim.heir.at - victim.killed.at).total_seconds()
            if len(ledger.refused) < LATE_WRITES:
                outcome.problems.append("a late write of the worker that was killed was stored")
        return outcome


async def _top_of(folder: Path) -> Path:
    """Return the top folder of the git repository around `folder`; its own if it is a bare one.

    Raises:
        DemoError: there is none, or it has no commits.
    """
    git = example_runner.git
    try:
        bare = await git("rev-parse", "--is-bare-repository", cwd=folder)
        what = "--absolute-git-dir" if bare == "true" else "--show-toplevel"
        top = Path(await git("rev-parse", what, cwd=folder))
    except example_runner.GitError as error:
        raise DemoError(f"{folder}: {error}; name a git repository with --repo") from None
    try:
        await git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", cwd=top)
    except example_runner.GitError:
        raise DemoError(
            f"{top} has no commits yet; name another git repository with --repo"
        ) from None
    return top


async def _register(store: MetadataStore, top: Path) -> Repository:
    """Return the demo's own entry for a repository: nobody else's worktrees are in it."""
    name = f"demo:{top}"[-255:]
    known = await store.repositories.find_by_name(name)
    return known or await store.repositories.create(name=name, remote_url=top.as_uri())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs off the databases in `folder`: they would clear up behind a living run.

    Raises:
        DemoError: one is running.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"a demo is running on a database in {folder}") from None
        yield
    finally:
        os.close(descriptor)
