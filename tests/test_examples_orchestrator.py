"""docs/examples/orchestrator.py: a workflow of real commands, run by workers in two processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from docs.examples.orchestrator import Worker, plan
from metastore import MetadataStore
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from metastore import Workflow

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "docs" / "examples" / "orchestrator.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/metadata.db"


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), *arguments),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def test_program__two_processes_share_a_workflow(url: str, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    async with MetadataStore.open(url, migrate=True) as store:
        commands = [f"echo {n} >> ran; sleep 0.05; echo out {n}" for n in range(12)]
        workflow = await plan(store, "shared", commands, workspace=workspace)
        processes = [await start("--db", url, "--join", "shared", "--workers", "2") for _ in "ab"]
        for process in processes:
            output, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
            assert output.decode().endswith("12 of 12 done\n")
        tasks = (await store.tasks.list_by_workflow(workflow.id)).items
        assert [task.metadata for task in tasks] == [{"output": f"out {n}\n"} for n in range(12)]
        for task in tasks:
            [tool] = (await store.tool_executions.list_by_task(task.id)).items
            assert (tool.tool_name, tool.status) == ("shell", "completed")
            assert tool.duration_ms is not None
        assert (await store.client_sessions.list_active()).items == []
        assert (await store.audit_chains.verify()).findings == []
        assert sorted((workspace / "ran").read_text().split(), key=int) == [
            str(n) for n in range(12)
        ]


async def test_program__makes_a_workflow_and_tells_what_failed(url: str, tmp_path: Path) -> None:
    process = await start(
        "--db", url, "--workspace", str(tmp_path), "--", "echo fine", "echo bad; exit 3"
    )
    output, errors = await process.communicate()
    assert (process.returncode, errors) == (1, b"")
    assert re.sub(" +", " ", output.decode()) == (
        "completed echo fine\nfailed echo bad; exit 3\n1 of 2 done\n"
    )
    async with MetadataStore.open(url) as store:
        workflow = await store.workflows.find_by_name("commands")
        assert workflow is not None
        tasks = (await store.tasks.list_by_workflow(workflow.id)).items
        assert tasks[1].error == "the command ended with code 3\nbad"


class Impatient(Worker):
    ttl = timedelta(seconds=3)
    wait = timedelta(milliseconds=200)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.steps: list[str] = []

    def report(self, step: str, **facts: Any) -> None:
        self.steps.append(step)


async def test_worker__takes_over_what_a_killed_one_left(url: str, tmp_path: Path) -> None:
    async with MetadataStore.open(url, migrate=True) as store:
        marker = tmp_path / "running"
        command = f"if test -e {marker}; then echo second; else echo $PPID > {marker}; sleep 60; fi"
        workflow = await plan(store, "w", [command], workspace=tmp_path)
        script = (
            "import asyncio, sys\n"
            "from datetime import timedelta\n"
            "from docs.examples.orchestrator import Worker\n"
            "from metastore import MetadataStore\n"
            "async def main():\n"
            "    async with MetadataStore.open(sys.argv[1]) as store:\n"
            "        worker = Worker(store, sys.argv[2], name='doomed')\n"
            "        worker.ttl = timedelta(seconds=3)\n"
            "        await worker.run()\n"
            "asyncio.run(main())\n"
        )
        doomed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, url, workflow.id), env=ENVIRONMENT, cwd=ROOT
        )
        async with asyncio.timeout(PATIENCE):
            while not (marker.exists() and marker.read_text()):
                await asyncio.sleep(0.01)
        [task] = (await store.tasks.list_by_workflow(workflow.id)).items
        assert task.lease_owner == "doomed"
        doomed.kill()
        await doomed.wait()
        worker = Impatient(store, workflow.id, name="heir")
        assert await worker.run() == 1
        assert worker.steps == ["claimed", "running", "ended"]
        done = await store.tasks.get(task.id)
        assert (done.status, done.metadata) == ("completed", {"output": "second\n"})
        assert done.version > task.version
        # The command of a killed worker has nobody left to stop it.
        _end_commands(str(marker))


def _end_commands(marker: str) -> None:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if marker in command and "sleep 60" in command:
                os.killpg(int(folder.name), signal.SIGKILL)


async def test_worker__a_command_that_takes_too_long_fails(url: str, tmp_path: Path) -> None:
    async with MetadataStore.open(url, migrate=True) as store:
        workflow = await plan(store, "w", ["sleep 60 & wait"], workspace=tmp_path)
        worker = Impatient(store, workflow.id, name="w")
        worker.timeout = timedelta(milliseconds=200)
        assert await worker.run() == 1
        [task] = (await store.tasks.list_by_workflow(workflow.id)).items
        assert (task.status, task.error) == ("failed", "the command took too long")


async def test_worker__stops_what_was_called_off_and_waits_while_it_is_paused(
    url: str, tmp_path: Path
) -> None:
    async with MetadataStore.open(url, migrate=True) as store:
        workflow: Workflow = await plan(store, "w", ["sleep 60", "echo x"], workspace=tmp_path)
        await store.workflows.pause(workflow.id)
        worker = Impatient(store, workflow.id, name="w")
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.3)
        assert worker.steps == []
        await store.workflows.activate(workflow.id)
        async with asyncio.timeout(PATIENCE):
            while "running" not in worker.steps:
                await asyncio.sleep(0.01)
            [task, _] = (await store.tasks.list_by_workflow(workflow.id)).items
            await store.tasks.cancel(task.id)
            assert await running == 1
        assert worker.steps == ["claimed", "running", "lost", "claimed", "running", "ended"]
        progress = await store.workflows.progress(workflow.id)
        assert (progress.by_status["cancelled"], progress.by_status["completed"]) == (1, 1)  # type: ignore[index]


async def test_worker__reads_its_settings_and_strikes_off_who_is_gone(
    url: str, tmp_path: Path
) -> None:
    async with MetadataStore.open(url, migrate=True) as store:
        await store.configurations.set("worker.timeout_seconds", 0.2)
        gone = await store.client_sessions.open(client_id="gone", connection_type="grpc")
        workflow = await plan(store, "slow", ["sleep 30"], workspace=tmp_path)
        worker = Worker(store, workflow.id, name="w")
        await worker.run()
        assert worker.timeout == timedelta(seconds=0.2)
        [task] = (await store.tasks.list_by_workflow(workflow.id)).items
        [tool] = (await store.tool_executions.list_by_task(task.id)).items
        assert (task.status, tool.status) == ("failed", "timeout")
        # Not stale yet: nobody is struck off before three heartbeats are missed.
        assert [it.id for it in (await store.client_sessions.list_active()).items] == [gone.id]
        assert await store.client_sessions.close_stale(older_than=timedelta(milliseconds=1)) == 1
