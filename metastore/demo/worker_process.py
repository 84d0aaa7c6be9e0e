"""A process of the demo: runners that read their jobs from standard input.

The first line of the input is the `Setting`, every other a `Job`; at the end of the input the
process ends, once its jobs are done. Its standard output is its ledger: an `Entry` a line.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from metastore import LeaseLost, MetadataStore
from metastore.demo.ledger import Entry
from metastore.resources import example

if TYPE_CHECKING:
    from docs.examples import runner as example_runner
else:
    example_runner = example("runner")

__all__ = ["BOOT", "Job", "Setting", "main"]

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from metastore.demo.worker_process import main; sys.exit(main())"
)
"""The code for `python -c` that becomes such a process, with the parent's module path."""

STOPPED = 75
"""The exit code of a process that was asked to stop."""


class Setting(msgspec.Struct, frozen=True):
    """The settings that a process starts with.

    Attributes:
        name: what the names of its workers begin with.
        ttl: how long a lease outlives its holder, in seconds.
        timeout: how long a command may take, in seconds.
        metadata: what its sessions are marked with.
    """

    url: str
    repository_id: str
    name: str
    workers: int
    folder: str
    ttl: float
    timeout: float
    metadata: dict[str, str]


class Job(msgspec.Struct, frozen=True):
    """A command to run, and the commit to run it at."""

    commit: str
    argv: list[str]


class ReportingRunner(example_runner.Runner):
    """The example runner, which writes each step to standard output."""

    def report(self, step: str, **facts: Any) -> None:
        """Record the step."""
        entry = Entry(worker=self.name, step=step, at=datetime.now(UTC), **facts)
        sys.stdout.buffer.write(msgspec.json.encode(entry) + b"\n")
        sys.stdout.buffer.flush()


def main() -> int:
    """Run a process of the demo."""
    try:
        asyncio.run(_main())
    except asyncio.CancelledError:
        return STOPPED
    return 0


async def _main() -> None:
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None  # noqa: S101 - a coroutine that runs is run by a task
    loop.add_signal_handler(signal.SIGTERM, this.cancel)
    lines = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    setting = msgspec.json.decode(await lines.readline(), type=Setting)
    jobs: asyncio.Queue[Job | None] = asyncio.Queue()
    try:
        async with MetadataStore.open(setting.url) as store, asyncio.TaskGroup() as workers:
            for number in range(1, setting.workers + 1):
                runner = _runner(store, setting, f"{setting.name}.{number}")
                workers.create_task(_work(runner, jobs))
            runner.report("ready")
            while line := await lines.readline():
                jobs.put_nowait(msgspec.json.decode(line, type=Job))
            for _ in range(setting.workers):
                jobs.put_nowait(None)
    finally:
        transport.close()


def _runner(store: MetadataStore, setting: Setting, name: str) -> ReportingRunner:
    runner = ReportingRunner(
        store,
        setting.repository_id,
        name=name,
        folder=Path(setting.folder),
        metadata=setting.metadata,
    )
    runner.ttl = timedelta(seconds=setting.ttl)
    runner.timeout = timedelta(seconds=setting.timeout)
    return runner


async def _work(runner: ReportingRunner, jobs: asyncio.Queue[Job | None]) -> None:
    while (job := await jobs.get()) is not None:
        try:
            await runner.run(job.commit, job.argv)
        except LeaseLost:
            # Before it had a session: this process was paused for longer than the lease.
            runner.report("lost")
        runner.report("idle")
