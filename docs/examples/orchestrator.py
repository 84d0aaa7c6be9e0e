"""An orchestrator: workers that claim the tasks of a workflow and run them as shell commands.

    python docs/examples/orchestrator.py --workers 4 -- "make lint" "make test" "make build"

makes a workflow of three tasks and runs it: each of the workers claims the oldest task that is
left, runs its command, and ends the task together with what came of it. Start it in as many
processes as you like with `--join NAME`; they share the work. A worker may be killed at any point:
its claim runs out, and the next worker takes the task over.

Only what `import metastore` offers is used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metastore import (
    LeaseLost,
    LeaseUnavailable,
    MetadataStore,
    NotFound,
    TaskStatus,
    WorkflowStatus,
    clean_environment,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from metastore import Task, TaskLease, Transaction, Workflow

TASK_TYPE = "command"
"""The type of the tasks that these workers can run."""

HEARTBEAT = timedelta(seconds=5)
"""The interval of a worker's heartbeats."""

LONGEST_OUTPUT = 10_000
"""How much of a command's output is stored with its task, in characters."""


async def plan(
    store: MetadataStore, name: str, commands: Sequence[str], *, workspace: Path
) -> Workflow:
    """Create a workflow of shell commands, all or nothing, and activate it."""
    async with store.transaction() as tx:
        workflow = await tx.workflows.create(name=name, definition={"commands": list(commands)})
        for command in commands:
            task = await tx.tasks.create(
                title=command[:255],
                task_type=TASK_TYPE,
                config={"command": command},
                workspace_path=str(workspace),
            )
            await tx.workflow_tasks.add(workflow.id, task.id)
        return await tx.workflows.activate(workflow.id)


class Worker:
    """Claims tasks and runs them, one after the other.

    Attributes:
        ttl: how long a claim outlives its holder.
        wait: how long to queue for a task before checking whether any are left.
        timeout: how long a command may take.
    """

    ttl = timedelta(seconds=30)
    wait = timedelta(seconds=1)
    timeout = timedelta(minutes=30)

    def __init__(self, store: MetadataStore, workflow_id: str, *, name: str) -> None:
        """Create a worker that runs until the workflow has no task left.

        Args:
            store: where everything is recorded.
            workflow_id: the workflow; while it is paused, no task is claimed.
            name: who holds the claims.
        """
        self.store = store
        self.workflow_id = workflow_id
        self.name = name

    def report(self, step: str, **facts: Any) -> None:
        """Hook for subclasses that show or check each step."""

    async def run(self) -> int:
        """Work until the workflow has ended, and return how many tasks this worker finished."""
        await self.configure()
        ended = 0
        async with self.connected():
            while await self.has_work():
                try:
                    ended += await self.run_one()
                except LeaseUnavailable:
                    continue
                except LeaseLost as lost:
                    # It was taken over or cancelled, so this run leaves no record.
                    self.report("lost", task_id=lost.resource_id)
        return ended

    async def has_work(self) -> bool:
        """Wait while the workflow is paused; return whether it has open tasks."""
        while True:
            workflow = await self.store.workflows.get(self.workflow_id)
            if workflow.status is not WorkflowStatus.PAUSED:
                break
            await asyncio.sleep(self.wait.total_seconds())
        counts = (await self.store.workflows.progress(self.workflow_id)).by_status
        return bool(counts[TaskStatus.PENDING] or counts[TaskStatus.RUNNING])

    async def run_one(self) -> int:
        """Claim a task, run it, and end it; return 1.

        Raises:
            LeaseUnavailable: no task came in time.
            LeaseLost: the task was taken over or cancelled.
        """
        async with self.store.tasks.hold(
            owner=self.name, ttl=self.ttl, task_types=[TASK_TYPE], wait=self.wait, spread=True
        ) as lease:
            self.report("claimed", lease=lease)
            execution = await self.audit_start(lease)
            exit_code, output = await self.execute(lease.task)
            # The result is stored together with the end of the task, or not at all.
            async with self.store.transaction(lease=lease) as tx:
                await self.audit_end(tx, execution, exit_code, output)
                task = await self.end(tx, lease, exit_code, output)
            self.report("ended", task=task)
        return 1

    async def end(
        self, tx: Transaction, lease: TaskLease, exit_code: int | None, output: str
    ) -> Task:
        """End a task according to its exit code; None means that it timed out."""
        if exit_code == 0:
            return await tx.tasks.complete_claim(lease, metadata={"output": output})
        what = "took too long" if exit_code is None else f"ended with code {exit_code}"
        return await tx.tasks.fail_claim(lease, error=f"the command {what}\n{output}".rstrip())

    async def execute(self, task: Task) -> tuple[int | None, str]:
        """Run a task's command; return its exit code, None if it timed out, and its output."""
        process = await asyncio.create_subprocess_shell(
            task.config["command"],
            cwd=task.workspace_path,
            # Its output ends up in the database, so it must not see the store's keys.
            env=clean_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self.report("running", task=task, pid=process.pid)
        output = b""
        try:
            async with asyncio.timeout(self.timeout.total_seconds()):
                output, _ = await process.communicate()
        except TimeoutError:
            return None, ""
        finally:
            # Nothing that the command started may outlive the claim.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        text = output.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
        return process.returncode, text[-LONGEST_OUTPUT:]

    # What else an orchestrator keeps in the store.

    async def configure(self) -> None:
        """Apply the setting of `metastore config set worker.timeout_seconds 60`."""
        try:
            seconds = await self.store.configurations.value("worker.timeout_seconds")
        except NotFound:
            return
        self.timeout = timedelta(seconds=seconds)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Register as connected while the body runs, and close stale connections."""
        await self.store.client_sessions.close_stale(older_than=3 * HEARTBEAT)
        client = await self.store.client_sessions.open(
            client_id=self.name, connection_type="grpc", metadata={"workflow": self.workflow_id}
        )

        async def beat() -> None:
            while True:
                await asyncio.sleep(HEARTBEAT.total_seconds())
                await self.store.client_sessions.heartbeat(client.id)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
            await self.store.client_sessions.close(client.id)

    async def audit_start(self, lease: TaskLease) -> str:
        """Record the start of the shell, and return the id of the record."""
        execution = await self.store.tool_executions.start(
            task_id=lease.task.id, tool_name="shell", arguments=lease.task.config
        )
        return execution.id

    async def audit_end(
        self, tx: Transaction, execution: str, exit_code: int | None, output: str
    ) -> None:
        """Record the end of the shell. Without it, the record stays open."""
        if exit_code == 0:
            await tx.tool_executions.complete(execution, output={"text": output})
        elif exit_code is None:
            await tx.tool_executions.time_out(execution)
        else:
            await tx.tool_executions.fail(execution, error=f"code {exit_code}\n{output}".rstrip())


async def main() -> int:
    """Run a workflow, or join one; return 0 if all of its tasks are done."""
    parser = argparse.ArgumentParser(description="Run shell commands as a workflow.")
    parser.add_argument("--db", metavar="URL", help="the database, else METASTORE_DB_URL")
    parser.add_argument("--name", default="commands", help="what to call the workflow")
    parser.add_argument("--workspace", type=Path, default=".", help="where the commands run")
    parser.add_argument("--workers", type=int, default=2, help="how many in this process")
    parser.add_argument("--join", metavar="NAME", help="help with the newest workflow of this name")
    parser.add_argument("commands", nargs="*", help="what to run, behind --")
    options = parser.parse_args()
    if bool(options.join) == bool(options.commands):
        parser.error("give commands, or the workflow to join")
    async with MetadataStore.open(options.db, migrate=True) as store:
        if options.join:
            workflow = await store.workflows.find_by_name(options.join)
            if workflow is None:
                parser.error(f"no workflow is named {options.join}")
        else:
            workspace = await asyncio.to_thread(options.workspace.resolve)
            workflow = await plan(store, options.name, options.commands, workspace=workspace)
        async with asyncio.TaskGroup() as group:
            for number in range(1, options.workers + 1):
                worker = Worker(store, workflow.id, name=f"worker {os.getpid()}.{number}")
                group.create_task(worker.run())
        for task in (await store.tasks.list_by_workflow(workflow.id, limit=1000)).items:
            print(f"{task.status:9} {task.title}")  # noqa: T201 - it is what this program is for
        progress = await store.workflows.progress(workflow.id)
        print(f"{progress.done} of {progress.total} done")  # noqa: T201 - the same
        return int(progress.done < progress.total)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
