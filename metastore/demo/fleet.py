"""The processes of the demo, as seen by their parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import msgspec

from metastore import clean_environment
from metastore.demo.ledger import Entry
from metastore.demo.worker_process import BOOT

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from pathlib import Path

    from metastore.demo.worker_process import Job, Setting

__all__ = ["Fleet", "Member", "kill_command"]

PATIENCE = 5.0
"""How long a process may take to stop, in seconds."""

LONGEST_ENTRY = 1 << 26
"""The longest message of a process, in bytes."""


class Member:
    """A process of runners.

    Attributes:
        workers: how many runners it has.
        jobs: how many jobs were given to it that it has not done.
        ended: whether everything it had to say was heard.
    """

    def __init__(self, setting: Setting, process: Process, errors: Path) -> None:
        self.name = setting.name
        self.workers = setting.workers
        self.jobs = 0
        self.ended = False
        self.errors = errors
        self.process = process
        self._write(setting)

    def give(self, job: Job) -> None:
        """Give it a job."""
        self.jobs += 1
        self._write(job)

    async def kill(self) -> None:
        """Kill it in the middle of whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """Stop it in an orderly way, so that it gives its worktrees back."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.process.wait()
            except TimeoutError:
                await self.kill()

    def _write(self, message: Setting | Job) -> None:
        assert self.process.stdin is not None  # noqa: S101 - it was asked for
        self.process.stdin.write(msgspec.json.encode(message) + b"\n")


class Fleet:
    """All processes of a run, and their messages.

    Attributes:
        members: the processes.
        heard: what each of them said; None when it has ended.
    """

    def __init__(self, folder: Path) -> None:
        self.members: list[Member] = []
        self.heard: asyncio.Queue[tuple[Member, Entry | None]] = asyncio.Queue()
        self._folder = folder
        self._listeners: list[asyncio.Task[None]] = []

    async def start(self, setting: Setting) -> Member:
        """Start a process."""
        path = self._folder / f"{setting.name}.stderr"
        path.touch(mode=0o600)
        with path.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", BOOT, msgspec.json.encode(sys.path).decode()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=clean_environment(),
                limit=LONGEST_ENTRY,
                # Ctrl-C is for the parent, which then stops them in order.
                start_new_session=True,
            )
        member = Member(setting, process, path)
        self.members.append(member)
        self._listeners.append(asyncio.create_task(self._listen(member)))
        return member

    async def stop(self) -> None:
        """Stop the running processes, and read their last messages."""
        await asyncio.gather(*(member.stop() for member in self.members))
        await asyncio.gather(*self._listeners)

    async def _listen(self, member: Member) -> None:
        assert member.process.stdout is not None  # noqa: S101 - it was asked for
        decode = msgspec.json.Decoder(Entry).decode
        while line := await member.process.stdout.readline():
            # A killed process may stop in the middle of a line.
            if line.endswith(b"\n"):
                self.heard.put_nowait((member, decode(line)))
        await member.process.wait()
        self.heard.put_nowait((member, None))


def kill_command(pid: int) -> None:
    """Kill a command and its children, which a killed runner leaves running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
