"""One run of the demo: its worktrees, its processes, the kill, and the outcome."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from metastore import MetadataStore, SessionStatus, WorktreeState, every
from metastore.demo import check
from metastore.demo.competition import LATE_WRITES, Competition, DemoError
from metastore.demo.ledger import Ledger
from metastore.demo.verification import RUN, Tally, verify
from metastore.resources import example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docs.examples import runner as example_runner
    from metastore import Repository
    from metastore.backends.base import DatabaseUrl
    from metastore.demo.competition import Display, Victim
else:
    example_runner = example("runner")

__all__ = ["Demo", "Outcome", "Plan"]


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
    """The outcome of a run.

    Attributes:
        tally: what the database holds of it.
        problems: claims and promises that do not hold.
        preferred: how many leases were of a worktree that was at the commit already.
        waits: how long was waited for each lease, in seconds.
        take_overs: how many leases were of a worktree that nobody had given back.
        killed: the worker that was killed.
        killed_as: the fencing number it held.
        taken_over_by: the worker that got its worktree.
        taken_over_as: the fencing number that one got.
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
    killed_as: int | None = None
    killed_session: str | None = None
    taken_over_by: str | None = None
    taken_over_as: int | None = None
    idle: float | None = None
    refused: dict[str, str] = {}
    seconds: float = 0.0


class Demo:
    """One run of the demo."""

    def __init__(self, plan: Plan, display: Display) -> None:
        self._plan = plan
        self._display = display
        self._run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
        self._folder = plan.folder.absolute() / self._run
        self._argv = plan.argv or [sys.executable, "-P", str(Path(check.__file__).resolve())]

    async def run(self) -> Outcome:
        """Run it and return the outcome. The worktrees are removed by then, however it ends.

        Raises:
            DemoError: it cannot run or continue.
        """
        try:
            return await self._run_it()
        except example_runner.GitError as error:
            raise DemoError(str(error)) from error

    async def _run_it(self) -> Outcome:
        plan = self._plan
        if plan.url.path is None:
            raise DemoError("several processes need a database in a file, as sqlite:///demo.db")
        database = plan.url.path.absolute()
        url = f"sqlite:///{database}"
        top = await _top_of(plan.repository)
        commits = await example_runner.newest_commits(top, plan.commits)
        places = [commits[number % len(commits)] for number in range(plan.worktrees)]
        async with MetadataStore.open(url, migrate=True) as store:
            with _alone(database.parent):
                plan.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._folder.mkdir(mode=0o700)
                ledger = Ledger(self._folder / "ledger.jsonl")
                repository = await _register(store, top)
                await self._clear_up(store, repository, top)
                self._display.say(f"Making {len(places)} worktrees of {top}")
                async with example_runner.checkouts(store, repository.id, top, places):
                    competition = Competition(
                        store,
                        ledger,
                        self._display,
                        self._folder,
                        commits=commits,
                        argv=self._argv,
                    )
                    await competition.run(
                        url,
                        repository.id,
                        processes=plan.processes,
                        workers=plan.workers,
                        metadata={RUN: self._run},
                    )
        # Independent of everything that took part in the run.
        async with MetadataStore.open(url) as fresh:
            tally = await verify(fresh, self._run, ledger)
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
            seconds=competition.seconds,
        )
        _count(ledger, outcome)
        _tell_fate(competition.victim, outcome)
        return outcome

    async def _clear_up(self, store: MetadataStore, repository: Repository, top: Path) -> None:
        """Remove what a run that was killed left behind."""
        left = [
            row
            async for row in every(store.worktrees.list_by_repository, repository.id)
            if row.state == WorktreeState.READY
        ]
        if not left:
            return
        self._display.say(f"Removing {len(left)} worktrees that an earlier run has left")
        for worktree in left:
            await example_runner.retire(store, worktree)
            path = Path(worktree.path)
            if path.parent.name.startswith(example_runner.FOLDER_PREFIX):
                shutil.rmtree(path.parent, ignore_errors=True)
            with contextlib.suppress(example_runner.GitError):
                await example_runner.git("worktree", "remove", "-f", "-f", path, cwd=top)
        retired = {worktree.id for worktree in left}
        async for session in every(store.sessions.list_by_status, SessionStatus.IN_PROGRESS):
            if session.worktree_id in retired:
                await example_runner.abandon(store, session.id, "its run of the demo was killed")


def _count(ledger: Ledger, outcome: Outcome) -> None:
    outcome.leases = len(ledger.holdings)
    outcome.preferred = sum(holding.preferred for holding in ledger.holdings)
    outcome.waits = [holding.waited for holding in ledger.holdings]
    outcome.take_overs = ledger.take_overs()
    outcome.refused = {entry.last_line: entry.error or "" for entry in ledger.refused}


def _tell_fate(victim: Victim, outcome: Outcome) -> None:
    """Report the fate of the killed worker, and what should have happened but did not."""
    if victim.killed is None or victim.lease is None:
        outcome.problems.append("no worker was killed: it had nothing to do in time")
        return
    outcome.killed = victim.killed.worker
    outcome.killed_as = victim.lease.fencing_number
    outcome.killed_session = victim.session_id
    if victim.heir is None or victim.heir.lease is None:
        outcome.problems.append("nobody took over the worktree of the worker that was killed")
        return
    outcome.taken_over_by = victim.heir.worker
    outcome.taken_over_as = victim.heir.lease.fencing_number
    outcome.idle = (victim.heir.at - victim.killed.at).total_seconds()
    if outcome.taken_over_as <= outcome.killed_as:
        outcome.problems.append("the fencing number did not grow when the worktree was taken over")
    if len(outcome.refused) < LATE_WRITES:
        outcome.problems.append("a late write of the worker that was killed was not refused")


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
    """Return the demo's own entry for a repository, which has no other worktrees."""
    name = f"demo:{top}"[-255:]
    known = await store.repositories.find_by_name(name)
    return known or await store.repositories.create(name=name, remote_url=top.as_uri())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs from using the databases in `folder`: they would clean up after a live run.

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
