"""A runner: it leases worktrees of a git repository and runs a command in them.

    python docs/examples/runner.py --repo . --workers 4 --worktrees 2 -- make test

runs `make test` at the five newest commits: four workers compete for two worktrees, and each
prefers one that is at its commit already. The store then has a session for each commit, with its
command and exit code, every line of output as an event, and every file that the command left in
the folder `$ARTIFACTS`, with its size and SHA-256. A worker may be killed at any point: its lease
runs out, the next worker takes the worktree over and fails the sessions that the dead one left.

Only what `import metastore` offers is used. `metastore demo` runs this `Runner` in several
processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metastore import (
    ArtifactType,
    InvalidTransition,
    LeaseUnavailable,
    MetadataStore,
    MetastoreError,
    NewEvent,
    SessionMode,
    SessionStatus,
    SessionType,
    clean_environment,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from metastore import Lease, Session, Transaction, Worktree

# The output of commands ends up in events, so they must not see the store's keys. If this runs
# from a git hook, GIT_DIR would point every git command at the wrong place.
ENVIRONMENT = {
    name: value for name, value in clean_environment().items() if not name.startswith("GIT_")
}

ARTIFACT_TYPES = {".log": ArtifactType.LOG, ".xml": ArtifactType.JUNIT_XML}
"""The type of an artifact by its suffix; any other is a report."""

FOLDER_PREFIX = "metastore-worktrees-"
"""The prefix of the temporary folders for worktrees."""

LONGEST_LINE = 8192
"""Longer lines of output become several events."""


class GitError(Exception):
    """git failed; the message is its own."""


async def git(*arguments: str | Path, cwd: str | Path) -> str:
    """Run git and return its output, without the user's hooks and large files.

    Raises:
        GitError: it failed.
    """
    process = await asyncio.create_subprocess_exec(
        *("git", "-c", "core.hooksPath=/dev/null", *arguments),
        cwd=cwd,
        env=ENVIRONMENT | {"GIT_LFS_SKIP_SMUDGE": "1", "GIT_TERMINAL_PROMPT": "0"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()  # it cleans up after itself
            await process.wait()
    if process.returncode:
        raise GitError(errors.decode(errors="replace").strip() or f"git {arguments[0]} failed")
    return output.decode(errors="surrogateescape").rstrip("\n")


async def newest_commits(top: Path, count: int) -> list[str]:
    """Return the newest commits of the branch checked out at `top`, at most `count`."""
    commits = await git("rev-list", "--first-parent", f"--max-count={count}", "HEAD", cwd=top)
    return commits.splitlines()


@contextlib.asynccontextmanager
async def checkouts(
    store: MetadataStore, repository_id: str, top: Path, commits: Sequence[str]
) -> AsyncIterator[list[Worktree]]:
    """Create and register a git worktree for each of `commits`; remove them all at the end.

    In the store they are retired, not deleted, so that the sessions go on saying where they ran.
    """
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    paths = [folder / f"worktree-{number}" for number in range(1, len(commits) + 1)]
    worktrees: list[Worktree] = []
    try:
        for path, commit in zip(paths, commits, strict=True):
            await git("worktree", "add", "--quiet", "--detach", path, commit, cwd=top)
            worktrees.append(
                await store.worktrees.create(
                    repository_id=repository_id, path=str(path), commit_sha=commit
                )
            )
        yield worktrees
    finally:
        for worktree in worktrees:
            await retire(store, worktree)
        # Before git forgets them: it keeps a worktree whose creation was interrupted.
        shutil.rmtree(folder, ignore_errors=True)
        for path in paths:
            with contextlib.suppress(GitError):
                await git("worktree", "remove", "--force", "--force", path, cwd=top)


async def retire(store: MetadataStore, worktree: Worktree) -> None:
    """Retire a worktree as soon as nobody holds it."""
    while True:
        try:
            await store.worktrees.retire(worktree.id)
        except LeaseUnavailable:
            await asyncio.sleep(0.1)
        else:
            return


class Runner:
    """Runs commands one after the other, each in a leased worktree and its own session.

    Attributes:
        ttl: how long a lease outlives its holder.
        wait: how long to queue for a worktree.
        timeout: how long a command may take.
    """

    ttl = timedelta(seconds=30)
    wait = timedelta(hours=1)
    timeout = timedelta(minutes=30)

    def __init__(
        self,
        store: MetadataStore,
        repository_id: str,
        *,
        name: str,
        folder: Path,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Make a runner.

        Args:
            store: where everything is recorded.
            repository_id: whose worktrees it leases.
            name: who holds the leases.
            folder: where each session gets a folder for its log and its other artifacts.
            metadata: what every session is marked with.
        """
        self.store = store
        self.repository_id = repository_id
        self.name = name
        self.folder = folder.absolute()
        self.metadata = metadata or {}

    def report(self, step: str, **facts: Any) -> None:
        """Hook for subclasses that show or check each step."""

    async def run(self, commit: str, argv: Sequence[str]) -> Session:
        """Run a command at a commit and return its final session.

        Raises:
            LeaseUnavailable: no worktree became free in time.
        """
        session = None
        self.report("waiting", commit=commit)
        try:
            async with self.store.worktrees.lease(
                self.repository_id,
                owner=self.name,
                ttl=self.ttl,
                prefer_commit=commit,
                wait=self.wait,
            ) as lease:
                self.report("leased", lease=lease)
                await self.take_over(lease)
                session = await self.begin(lease, commit, argv)
                await self.check_out(lease, commit)
                session = await self.execute(lease, session, argv)
                self.report("releasing", lease=lease)
        except asyncio.CancelledError:
            if session is not None:
                session = await abandon(self.store, session.id, None)
                self.report("ended", session=session)
            raise
        except (MetastoreError, GitError, OSError) as error:
            if session is None:
                raise
            session = await abandon(self.store, session.id, f"{type(error).__name__}: {error}")
        self.report("ended", session=session)
        return session

    async def take_over(self, lease: Lease) -> None:
        """Fail the sessions of earlier holders of this worktree, who died or lost their lease."""
        page = await self.store.sessions.list_by_status(SessionStatus.IN_PROGRESS, limit=1000)
        for left in page.items:
            if left.worktree_id == lease.worktree.id:
                reason = f"its runner is gone, {self.name} took the worktree over"
                async with self.store.transaction(lease=lease) as tx:
                    ended = await abandon(tx, left.id, reason)
                self.report("took over", session=ended)

    async def begin(self, lease: Lease, commit: str, argv: Sequence[str]) -> Session:
        """Open a session in the leased worktree."""
        async with self.store.transaction(lease=lease) as tx:
            session = await tx.sessions.create(
                session_type=SessionType.DEBUG,
                mode=SessionMode.AUTONOMOUS,
                repository_id=self.repository_id,
                worktree_id=lease.worktree.id,
                config={"commit": commit, "argv": list(argv)},
                metadata=self.metadata,
            )
            session = await tx.sessions.start(session.id)
        self.report("began", session=session)
        return session

    async def check_out(self, lease: Lease, commit: str) -> None:
        """Check out `commit` in the worktree, unless it is already there."""
        if lease.worktree.commit_sha == commit:
            return
        path = lease.worktree.path
        # Unknown until git is done: if this runner dies in between, the old value would be wrong.
        # The same goes for the hashes: `git clean` removes the prepared environment.
        await self.store.worktrees.record_checkout(
            lease, branch=None, commit_sha=None, environment_hashes={}
        )
        await git("checkout", "--quiet", "--force", "--detach", commit, cwd=path)
        await git("clean", "--quiet", "-ffdx", cwd=path)
        await self.store.worktrees.record_checkout(lease, branch=None, commit_sha=commit)
        self.report("checked out", lease=lease, commit=commit)

    async def execute(self, lease: Lease, session: Session, argv: Sequence[str]) -> Session:
        """Run the command, record its outcome, and return the final session."""
        folder = self.folder / session.id
        # Output and artifacts are readable by this user only.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        log = folder / "output.log"
        async with self.store.transaction(lease=lease) as tx:
            command = await tx.commands.create(
                session_id=session.id,
                argv=list(argv),
                working_directory=lease.worktree.path,
                log_path=str(log),
            )
            command = await tx.commands.start(command.id)
        self.report("started", command=command)
        exit_code = await self.run_command(lease, session, argv, log)
        # Large files take time, so they are read before the transaction.
        files = await asyncio.to_thread(describe, folder)
        async with self.store.transaction(lease=lease) as tx:
            if exit_code is None:
                command = await tx.commands.time_out(command.id)
            else:
                command = await tx.commands.finish(command.id, exit_code=exit_code)
            artifacts = [
                await tx.artifacts.create(session_id=session.id, command_id=command.id, **file)
                for file in files
            ]
            if exit_code == 0:
                session = await tx.sessions.complete(session.id, result={"exit_code": 0})
            else:
                what = "the command took too long" if exit_code is None else f"code {exit_code}"
                session = await tx.sessions.fail(session.id, error_message=what)
        self.report("finished", session=session, command=command, artifacts=artifacts)
        return session

    async def run_command(
        self, lease: Lease, session: Session, argv: Sequence[str], log: Path
    ) -> int | None:
        """Run a command in the worktree and stream its output; return its exit code.

        None means that it timed out. Nothing that the command started outlives this call: after
        the lease, the worktree belongs to another runner.
        """
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=lease.worktree.path,
            env=ENVIRONMENT | {"ARTIFACTS": str(log.parent)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self.report("running", session=session, pid=process.pid)
        try:
            async with asyncio.timeout(self.timeout.total_seconds()):
                async for lines in read_lines(process, log):
                    async with self.store.transaction(lease=lease) as tx:
                        ids = await tx.events.append_many(
                            session.id, [NewEvent("output", line) for line in lines]
                        )
                    self.report("output", session=session, event_ids=ids, last_line=lines[-1])
                return await process.wait()
        except TimeoutError:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def read_lines(process: asyncio.subprocess.Process, log: Path) -> AsyncIterator[list[str]]:
    """Write the output to `log`, and yield its lines as they arrive.

    While the caller stores some of them, the next ones gather in the pipe: they go together.
    """
    assert process.stdout is not None  # noqa: S101 - it was asked for
    rest = b""
    append(log, b"")
    while chunk := await process.stdout.read(LONGEST_LINE):
        append(log, chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) >= LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        if lines:
            yield [text_of(line) for line in lines]
    if rest:
        yield [text_of(rest)]


def append(log: Path, chunk: bytes) -> None:
    """Append to a file."""
    log.touch(mode=0o600)
    with log.open("ab") as file:
        file.write(chunk)


def text_of(line: bytes) -> str:
    """Decode a line of output, whatever its bytes are."""
    return line.decode(errors="replace").rstrip("\r").replace("\0", "\N{REPLACEMENT CHARACTER}")


def describe(folder: Path) -> list[dict[str, Any]]:
    """Make the files in `folder` private, and return an artifact's columns for each."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fchmod(file.fileno(), 0o600)
                digest = hashlib.file_digest(file, "sha256")
                size = file.tell()
            kind = ARTIFACT_TYPES.get(path.suffix, ArtifactType.REPORT)
            facts = {"size_bytes": size, "sha256": digest.hexdigest(), "content_path": str(path)}
            files.append({"artifact_type": kind, "name": path.name, **facts})
    return files


async def abandon(
    store: MetadataStore | Transaction, session_id: str, reason: str | None
) -> Session:
    """End a session that cannot continue, and its command; ended ones are left unchanged.

    Without a `reason` it is cancelled, otherwise it fails.
    """
    for command in (await store.commands.list_by_session(session_id)).items:
        with contextlib.suppress(InvalidTransition):
            if reason is None:
                await store.commands.cancel(command.id)
            else:
                await store.commands.fail(command.id, error_message=reason)
    try:
        if reason is None:
            return await store.sessions.cancel(session_id)
        return await store.sessions.fail(session_id, error_message=reason)
    except InvalidTransition as refused:
        ended: Session = refused.row
        return ended


async def main() -> int:
    """Run a command at the newest commits of a repository; return 0 if it succeeded at each."""
    parser = argparse.ArgumentParser(description="Run a command at recent commits, recorded.")
    parser.add_argument("--repo", default=".", help="a folder of the git repository")
    parser.add_argument("--db", metavar="URL", help="the database, else METASTORE_DB_URL")
    parser.add_argument("--folder", type=Path, default=".artifacts/runs", help="for artifacts")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--worktrees", type=int, default=2)
    parser.add_argument("--commits", type=int, default=5)
    parser.add_argument("command", nargs="+", help="what to run, behind --")
    options = parser.parse_args()
    top = Path(await git("rev-parse", "--show-toplevel", cwd=options.repo))
    commits = await newest_commits(top, options.commits)
    places = [commits[number % len(commits)] for number in range(options.worktrees)]
    # Every worker draws from this one iterator, so each commit goes to one of them.
    waiting = iter(commits)
    statuses = []

    async def work(runner: Runner) -> None:
        for commit in waiting:
            session = await runner.run(commit, options.command)
            statuses.append(session.status)
            print(runner.name, commit[:10], session.status, session.error_message or "")  # noqa: T201

    async with MetadataStore.open(options.db, migrate=True) as store:
        repository = await store.repositories.find_by_name(
            str(top)
        ) or await store.repositories.create(name=str(top), remote_url=top.as_uri())
        async with (
            checkouts(store, repository.id, top, places),
            asyncio.TaskGroup() as group,
        ):
            for number in range(1, options.workers + 1):
                name = f"runner {os.getpid()}.{number}"
                group.create_task(
                    work(Runner(store, repository.id, name=name, folder=options.folder))
                )
    return int(any(status != SessionStatus.COMPLETED for status in statuses))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
