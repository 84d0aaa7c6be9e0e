"""An agent job: several agents share a budget, and every model call is paid for once.

    python docs/examples/agent_job.py --budget 0.02 --agents 4

summarises each page of the documentation, one step of the job for each: four agents take the steps
as they come, reserve what a call can cost at most, call a model, and record what it did cost. It
ends with the progress of the job, its budget, a table of the costs, and what it remembers: a
note, a file and a vector for each page. With too small a budget
there is money for some of the pages only: the agents leave the others out and overspend nothing.

Only what `import metastore` offers is used. The model is made up, so that the example runs offline;
`call_model` is where a real one goes.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import sys
import zlib
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from metastore import (
    BudgetExceeded,
    InvalidTransition,
    Job,
    JobCancelled,
    JobStep,
    JobStepStatus,
    MetadataStore,
)

DOCUMENTATION = Path(__file__).resolve().parents[1]

PROVIDER = "acme"
PLANNER = "acme-large"
WRITER = "acme-small"

CALL_TIME = timedelta(minutes=2)
"""The longest that a call can take: its reservation counts until then."""

MOST_TOKENS_OUT = 300

DIMENSIONS = 256

QUESTION = "how do I hold a worktree while others wait for it, and what is a fencing number?"


class Price(NamedTuple):
    """The prices of a model, in dollars per million tokens of each kind."""

    tokens_in: Decimal
    tokens_cached: Decimal
    tokens_out: Decimal


PRICES = {
    PLANNER: Price(Decimal("2.50"), Decimal("1.25"), Decimal("10.00")),
    WRITER: Price(Decimal("0.15"), Decimal("0.075"), Decimal("0.60")),
}


class Answer(NamedTuple):
    """What a model said. No token is counted in two of the three."""

    text: str
    tokens_in: int
    tokens_cached: int
    tokens_out: int


# The model.


async def call_model(model: str, instructions: str, text: str) -> Answer:
    """Ask a model. A real client goes here; this one returns the first lines of the text.

    The instructions are the same for every call, so they come from the provider's cache.
    """
    await asyncio.sleep(0.01)
    summary = " ".join(text.split()[:40])
    return Answer(
        f"{model}: {summary}",
        tokens_in=count_tokens(text),
        tokens_cached=count_tokens(instructions),
        tokens_out=min(count_tokens(summary), MOST_TOKENS_OUT),
    )


def count_tokens(text: str) -> int:
    """Return roughly how many tokens a text has."""
    return -(-len(text) // 4)


def cost_of(model: str, tokens_in: int, tokens_cached: int, tokens_out: int) -> Decimal:
    """Return what a call costs, in dollars."""
    price = PRICES[model]
    millionths = (
        tokens_in * price.tokens_in
        + tokens_cached * price.tokens_cached
        + tokens_out * price.tokens_out
    )
    return millionths / 1_000_000


# A call within the budget.


async def ask(
    store: MetadataStore, job: Job, request_id: str, model: str, instructions: str, text: str
) -> str:
    """Call a model if the job's budget has room for the highest possible cost of the call.

    Raises:
        BudgetExceeded: it has no room, also not when the calls in flight have been paid.
        JobCancelled: the job was cancelled.
    """
    most = cost_of(model, count_tokens(instructions + text), 0, MOST_TOKENS_OUT)
    while True:
        try:
            await store.budget_reservations.reserve(
                job.id, request_id=request_id, amount_usd=most, ttl=CALL_TIME
            )
            break
        except BudgetExceeded as exceeded:
            # Calls in flight often cost less than was reserved for them.
            if not exceeded.reserved or exceeded.spent + exceeded.requested > exceeded.limit:
                raise
            await asyncio.sleep(0.05)
    try:
        answer = await call_model(model, instructions, text)
    except Exception:
        await store.budget_reservations.release(job.id, request_id)
        raise
    tokens = (answer.tokens_in, answer.tokens_cached, answer.tokens_out)
    await store.cost_entries.record(
        job.id,
        request_id=request_id,
        provider=PROVIDER,
        model=model,
        tokens_in=answer.tokens_in,
        tokens_cached=answer.tokens_cached,
        tokens_out=answer.tokens_out,
        cost_usd=cost_of(model, *tokens),
    )
    return answer.text


# The job.


async def begin(store: MetadataStore, *, budget_usd: str, requests: int) -> Job:
    """Create the job and start it."""
    job = await store.jobs.create(
        task="Summarise the documentation",
        repo_owner="acme",
        repo_name="metastore",
        budget_usd=budget_usd,
        max_requests=requests,
        max_minutes=30,
        model_cto=PLANNER,
        model_coder=WRITER,
    )
    return await store.jobs.start(job.id)


async def plan(store: MetadataStore, job: Job, pages: list[Path]) -> None:
    """Plan a step for each page, shortest first, after showing their names to the large model."""
    names = "\n".join(page.name for page in pages)
    await ask(store, job, "plan", PLANNER, "In which order are these best read?", names)
    for page in sorted(pages, key=lambda page: page.stat().st_size):
        await store.job_steps.create(job_id=job.id, name=page.name, step_type="summary")
    await store.jobs.set_last_action(job.id, f"planned {len(pages)} summaries")


async def work(store: MetadataStore, job: Job, folder: Path) -> None:
    """Run planned steps until none is left; other agents take some of them."""
    while step := await take_step(store, job):
        page = await asyncio.to_thread((folder / step.name).read_text, encoding="utf-8")
        try:
            summary = await ask(
                store, job, f"summary of {step.name}", WRITER, "Summarise this page.", page
            )
        except BudgetExceeded as exceeded:
            await store.job_steps.fail(step.id, details=str(exceeded))
            await store.jobs.set_last_action(job.id, f"had no money for {step.name}")
        except JobCancelled:
            await store.job_steps.fail(step.id, details="the job was cancelled")
            return
        else:
            await remember(store, job, step.name, page, summary)
            await store.job_steps.complete(step.id, details=summary)
            await store.jobs.set_last_action(job.id, f"summarised {step.name}")


# What the job remembers.


async def remember(store: MetadataStore, job: Job, name: str, page: str, summary: str) -> None:
    """Store the summary as a note and a file, and index the page by meaning."""
    await store.memory_items.put(
        job.id, kind="summary", key=name, content={"summary": summary}, tags=["documentation"]
    )
    await store.memory_files.write(job.id, path=f"summaries/{name}", data=summary.encode())
    await store.embedding_index.upsert(
        scope=f"job-{job.id}", ref_id=name, text=summary, vector=embed(page)
    )


def embed(text: str) -> list[float]:
    """Return a vector for a text. A real embedding model goes here.

    This one counts the text's groups of four letters by their hash: texts with many words in
    common get vectors that point the same way.
    """
    vector = [0.0] * DIMENSIONS
    plain = " ".join(re.findall(r"[a-z]+", text.lower()))
    for start in range(max(len(plain) - 3, 1)):
        vector[zlib.crc32(plain[start : start + 4].encode()) % DIMENSIONS] += 1.0
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


async def pages_about(store: MetadataStore, job: Job, question: str) -> list[str]:
    """Return the pages closest to a question, closest first."""
    found = await store.embedding_index.search(
        scope=f"job-{job.id}", vector=embed(question), limit=3
    )
    return [f"{match.score:.2f}  {match.ref_id}" for match in found]


async def take_step(store: MetadataStore, job: Job) -> JobStep | None:
    """Start the first planned step and return it; None if none is left."""
    for step in (await store.job_steps.list_by_job(job.id, limit=1000)).items:
        if step.status == JobStepStatus.PLANNED:
            try:
                return await store.job_steps.start(step.id)
            except InvalidTransition:
                continue
            except JobCancelled:
                return None
    return None


async def end(store: MetadataStore, job: Job) -> Job:
    """End the job according to its outcome."""
    job = await store.jobs.get(job.id)
    progress = await store.jobs.progress(job.id)
    if job.cancelled:
        return await store.jobs.acknowledge_cancel(job.id)
    if progress.failed:
        return await store.jobs.fail(job.id, last_action=f"left {progress.failed} pages out")
    return await store.jobs.complete(job.id)


# The report.


async def report(store: MetadataStore, job: Job) -> list[str]:
    """Return a report on the job's progress and cost."""
    progress = await store.jobs.progress(job.id)
    share = "unknown" if progress.fraction is None else f"{progress.fraction:.0%}"
    budget = await store.budget_reservations.budget(job.id)
    lines = [
        f"{job.task}: {job.status}, {progress.done} of {progress.total} steps ({share})",
        f"{budget.spent:f} of {budget.limit or 0:f} dollars in {budget.requests_made} calls",
        *(f"warning: {resource} is nearly used up" for resource in budget.warnings),
        "",
        f"{'provider':10}{'model':12}{'calls':>6}{'in':>9}{'cached':>9}{'out':>9}{'USD':>14}",
    ]
    for group in await store.cost_entries.summary(by=("provider", "model")):
        totals = group.totals
        lines.append(
            f"{group.provider:10}{group.model:12}{totals.requests:>6}{totals.tokens_in:>9}"
            f"{totals.tokens_cached:>9}{totals.tokens_out:>9}{group.cost_usd:>14f}"
        )
    notes = (await store.memory_items.search(job.id, tags=["documentation"], limit=1000)).items
    files = (await store.memory_files.list_by_job(job.id, limit=1000)).items
    lines += ["", f"{len(notes)} notes and {len(files)} files are remembered"]
    if notes:
        lines += [f"closest to {QUESTION!r}:", *await pages_about(store, job, QUESTION)]
    return lines


async def run_job(
    store: MetadataStore, folder: Path, *, budget_usd: str = "0.02", agents: int = 4
) -> Job:
    """Run the whole job and return its final state."""
    pages = await asyncio.to_thread(lambda: sorted(folder.glob("*.md")))
    job = await begin(store, budget_usd=budget_usd, requests=2 * len(pages) + 1)
    try:
        await plan(store, job, pages)
        async with asyncio.TaskGroup() as group:
            for _ in range(agents):
                group.create_task(work(store, job, folder))
    except (BudgetExceeded, JobCancelled) as refused:
        await store.jobs.set_last_action(job.id, str(refused))
        if isinstance(refused, BudgetExceeded):
            return await store.jobs.fail(job.id)
    return await end(store, job)


async def main() -> int:
    """Run the job and print its cost; return 0 if it was completed."""
    parser = argparse.ArgumentParser(description="Summarise a folder of pages within a budget.")
    parser.add_argument("--db", metavar="URL", default="sqlite://", help="default: in memory")
    parser.add_argument("--folder", type=Path, default=DOCUMENTATION, help="of Markdown pages")
    parser.add_argument("--budget", metavar="USD", default="0.02")
    parser.add_argument("--agents", type=int, default=4)
    options = parser.parse_args()
    async with MetadataStore.open(options.db, migrate=options.db != "sqlite://") as store:
        job = await run_job(store, options.folder, budget_usd=options.budget, agents=options.agents)
        for line in await report(store, job):
            print(line)  # noqa: T201 - that is what the example is for
    return 0 if job.status == "completed" else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
