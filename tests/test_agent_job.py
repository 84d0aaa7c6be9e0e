"""The example of an agent job, run as a program and as a module."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

    from metastore import Job, MetadataStore

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "agent_job.py"
PAGES = 12


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agent_job", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(PAGES):
        (tmp_path / f"{number}.md").write_text(f"Page {number}. " * 200 * (number + 1))
    return tmp_path


async def check(store: MetadataStore, job: Job) -> None:
    assert await store.cost_entries.discrepancies() == []
    assert (await store.budget_reservations.list_by_job(job.id)).items == []
    assert job.budget_usd is not None
    assert job.cost_usd <= job.budget_usd


async def test_example__does_every_step_within_its_budget(
    store: MetadataStore, folder: Path, example: ModuleType
) -> None:
    job = await example.run_job(store, folder, budget_usd="0.02")
    await check(store, job)
    assert (job.status, job.requests_made) == ("completed", PAGES + 1)
    progress = await store.jobs.progress(job.id)
    assert (progress.done, progress.fraction) == (PAGES, 1.0)
    lines = await example.report(store, job)
    assert "completed, 12 of 12 steps (100%)" in lines[0]
    assert [line.split()[:3] for line in lines if line.startswith("acme")] == [
        ["acme", "acme-large", "1"],
        ["acme", "acme-small", "12"],
    ]
    assert f"{PAGES} notes and {PAGES} files are remembered" in lines
    page = (await store.job_steps.list_by_job(job.id)).items[0].name
    text = (folder / page).read_text(encoding="utf-8")
    [closest, *_] = await example.pages_about(store, job, text)
    assert closest == f"1.00  {page}"
    stored = await store.memory_files.read(job.id, path=f"summaries/{page}")
    note = await store.memory_items.get(job.id, kind="summary", key=page)
    assert note.content == {"summary": stored.bytes.decode()}


async def test_example__leaves_out_what_there_is_no_money_for(
    store: MetadataStore, folder: Path, example: ModuleType
) -> None:
    job = await example.run_job(store, folder, budget_usd="0.004", agents=8)
    await check(store, job)
    assert job.status == "failed"
    progress = await store.jobs.progress(job.id)
    assert 0 < progress.done < PAGES
    assert progress.done + progress.failed == PAGES
    assert job.last_action == f"left {progress.failed} pages out"
    assert "warning: budget_usd is nearly used up" in await example.report(store, job)


async def test_example__cannot_even_plan(
    store: MetadataStore, folder: Path, example: ModuleType
) -> None:
    job = await example.run_job(store, folder, budget_usd="0.000001")
    assert (job.status, job.cost_usd) == ("failed", Decimal(0))
    assert "steps (unknown)" in (await example.report(store, job))[0]


async def test_example__ends_when_it_is_called_off(
    store: MetadataStore, folder: Path, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_model = example.call_model

    async def called_off(*arguments: str) -> object:
        answer = await call_model(*arguments)
        [job] = (await store.jobs.list_recent()).items
        if job.requests_made >= 3 and not job.cancelled:
            await store.jobs.cancel(job.id)
        return answer

    monkeypatch.setattr(example, "call_model", called_off)
    job = await example.run_job(store, folder, agents=2)
    await check(store, job)
    assert (job.status, job.cancelled) == ("cancelled", True)
    assert 3 < job.requests_made < PAGES


def test_example__as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--db", f"sqlite:///{tmp_path}/metadata.db"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "acme-small" in done.stdout
