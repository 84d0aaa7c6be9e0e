"""What has ended takes no more work: every parent, every state, every way to add to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from metastore import (
    InvalidReference,
    InvalidTransition,
    InvalidValue,
    JobCancelled,
    LeaseLost,
    LockHeld,
    MetadataStore,
    NotFound,
    ProjectLock,
    Session,
    TokenRejected,
)
from metastore.codec import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.conftest import Clock

MINUTE = timedelta(minutes=1)
WEEK = timedelta(days=7)
ACTIVE: dict[str, tuple[str, ...]] = {
    "pending": (),
    "in_progress": ("start",),
    "paused": ("start", "pause"),
}
ENDED: dict[str, tuple[str, ...]] = {
    "completed": ("start", "complete"),
    "failed": ("start", "fail"),
    "cancelled": ("start", "cancel"),
}
REASONS: dict[tuple[str, str], dict[str, Any]] = {
    ("sessions", "fail"): {"error_message": "it broke"},
    ("tasks", "fail"): {"error": "it broke"},
}


@pytest.fixture(params=["store", "transaction"])
async def repos(request: pytest.FixtureRequest, store: MetadataStore) -> AsyncIterator[Any]:
    """The repositories of the store, and those of a transaction."""
    if request.param == "store":
        yield store
    else:
        yield _InTransactions(store)


class _InTransactions:
    """Runs each operation in a transaction of its own."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store

    def __getattr__(self, table: str) -> Any:
        return _TableInTransactions(self._store, table)


class _TableInTransactions(NamedTuple):
    store: MetadataStore
    table: str

    def __getattr__(self, verb: str) -> Any:
        async def run(*args: Any, **values: Any) -> Any:
            async with self.store.transaction() as tx:
                return await getattr(getattr(tx, self.table), verb)(*args, **values)

        return run


async def advance(store: MetadataStore, table: str, row_id: str, *verbs: str) -> Any:
    """Bring a row into a state and return it."""
    for verb in verbs:
        await getattr(getattr(store, table), verb)(row_id, **REASONS.get((table, verb), {}))
    return await getattr(store, table).get(row_id)


async def everything(store: MetadataStore) -> list[Any]:
    """Return every row of the tables that a refusal must leave as they are."""
    rows: list[Any] = []
    for session in (await store.sessions.list_recent()).items:
        rows.append(session)
        for table in ("steps", "commands", "debugger_state"):
            rows += (await getattr(store, table).list_by_session(session.id)).items
        rows += await store.project_locks.list_by_session(session.id)
    for job in (await store.jobs.list_recent()).items:
        rows += [job, *(await store.job_steps.list_by_job(job.id)).items]
        rows += (await store.budget_reservations.list_by_job(job.id)).items
    for task in (await store.tasks.list_recent()).items:
        rows += [task, *(await store.tool_executions.list_by_task(task.id)).items]
    return rows


# Sessions


class Prepared(NamedTuple):
    """A session with a step and a command that have begun, and one of each that has not."""

    session: Session
    project_id: str
    pending_step: str
    running_step: str
    pending_command: str
    running_command: str

    @classmethod
    async def make(cls, store: MetadataStore, path: str) -> Prepared:
        project = await store.projects.ensure(path=path)
        session = await store.sessions.create(session_type="test_generation", project_path=path)
        steps = [await store.steps.create(session_id=session.id, name=name) for name in "ab"]
        commands = [
            await store.commands.create(
                session_id=session.id, argv=["make"], working_directory="/w"
            )
            for _ in range(2)
        ]
        await store.steps.start(steps[1].id)
        await store.commands.start(commands[1].id)
        return cls(session, project.id, steps[0].id, steps[1].id, commands[0].id, commands[1].id)


SESSION_WORK: dict[str, tuple[str, Callable[[Any, Prepared], Awaitable[Any]]]] = {
    "steps.create": (
        "step",
        lambda repos, it: repos.steps.create(session_id=it.session.id, name="late"),
    ),
    "steps.create at a place": (
        "step",
        lambda repos, it: repos.steps.create(session_id=it.session.id, name="late", sequence=9),
    ),
    "steps.start": ("step", lambda repos, it: repos.steps.start(it.pending_step)),
    "commands.create": (
        "command",
        lambda repos, it: repos.commands.create(
            session_id=it.session.id, argv=["make"], working_directory="/w"
        ),
    ),
    "commands.start": ("command", lambda repos, it: repos.commands.start(it.pending_command)),
    "debugger_state.checkpoint": (
        "checkpoint",
        lambda repos, it: repos.debugger_state.checkpoint(it.session.id, {"line": 3}),
    ),
    "project_locks.acquire": (
        "lock",
        lambda repos, it: repos.project_locks.acquire(
            project_id=it.project_id, session_id=it.session.id, ttl=WEEK
        ),
    ),
}


@pytest.mark.parametrize("work", SESSION_WORK)
@pytest.mark.parametrize("state", ENDED)
async def test_session__that_ended_takes_no_work(
    store: MetadataStore, repos: Any, state: str, work: str
) -> None:
    it, other = [await Prepared.make(store, f"/projects/{n}") for n in (1, 2)]
    ended = await advance(store, "sessions", it.session.id, *ENDED[state])
    before = await everything(store)
    name, do = SESSION_WORK[work]
    with pytest.raises(InvalidTransition) as refused:
        await do(repos, it)
    assert (refused.value.table, refused.value.from_state) == ("sessions", state)
    assert (refused.value.to_state, refused.value.row) == (name, ended)
    verb = {
        "step": "start a step",
        "command": "run a command",
        "checkpoint": "take a checkpoint",
        "lock": "lock its project",
    }[name]
    assert str(refused.value) == f"a {state} session cannot {verb}"
    assert await everything(store) == before
    # The other session has not ended.
    assert (await do(repos, other)).id in {row.id for row in await everything(store)}


@pytest.mark.parametrize("work", SESSION_WORK)
@pytest.mark.parametrize("state", ACTIVE)
async def test_session__takes_work_until_it_ends(
    store: MetadataStore, repos: Any, state: str, work: str
) -> None:
    it, other = [await Prepared.make(store, f"/projects/{n}") for n in (1, 2)]
    await advance(store, "sessions", it.session.id, *ACTIVE[state])
    await advance(store, "sessions", other.session.id, *ENDED["cancelled"])
    done = await SESSION_WORK[work][1](repos, it)
    assert done.session_id == it.session.id
    assert done in await everything(store)


SESSION_RECORDS: dict[str, Callable[[Any, Prepared], Awaitable[Any]]] = {
    "steps.complete": lambda repos, it: repos.steps.complete(it.running_step, output=1),
    "steps.fail": lambda repos, it: repos.steps.fail(it.running_step, error_message="why"),
    "steps.fail one that has not begun": lambda repos, it: repos.steps.fail(
        it.pending_step, error_message="why"
    ),
    "steps.skip": lambda repos, it: repos.steps.skip(it.pending_step),
    "commands.finish": lambda repos, it: repos.commands.finish(it.running_command, exit_code=0),
    "commands.fail": lambda repos, it: repos.commands.fail(it.running_command, error_message="why"),
    "commands.time_out": lambda repos, it: repos.commands.time_out(it.running_command),
    "commands.cancel": lambda repos, it: repos.commands.cancel(it.pending_command),
    "events.append": lambda repos, it: repos.events.append(it.session.id, "end", "cancelled"),
    "artifacts.create": lambda repos, it: repos.artifacts.create(
        session_id=it.session.id,
        command_id=it.running_command,
        artifact_type="log",
        name="output.log",
        content_path="/artifacts/output.log",
    ),
}


@pytest.mark.parametrize("record", SESSION_RECORDS)
@pytest.mark.parametrize("state", ENDED)
async def test_session__what_happened_is_recorded_after_the_end(
    store: MetadataStore, repos: Any, state: str, record: str
) -> None:
    it = await Prepared.make(store, "/projects/1")
    await advance(store, "sessions", it.session.id, *ENDED[state])
    recorded = await SESSION_RECORDS[record](repos, it)
    table = record.partition(".")[0]
    rows = (await getattr(store, table).list_by_session(it.session.id)).items
    assert (getattr(recorded, "id", None) or recorded) in {row.id for row in rows}
    assert recorded in rows or table == "events"


@pytest.mark.parametrize(("table", "verb"), [("steps", "start"), ("commands", "start")])
async def test_start__of_what_has_begun_names_its_own_state(
    store: MetadataStore, table: str, verb: str
) -> None:
    """Both refuse: the row that is running, and the session that has ended."""
    it = await Prepared.make(store, "/projects/1")
    await advance(store, "sessions", it.session.id, *ENDED["cancelled"])
    row_id = it.running_step if table == "steps" else it.running_command
    with pytest.raises(InvalidTransition) as refused:
        await getattr(getattr(store, table), verb)(row_id)
    assert (refused.value.table, refused.value.from_state) == (table, "running")
    with pytest.raises(NotFound):
        await getattr(getattr(store, table), verb)(new_id())


@pytest.mark.parametrize(
    ("work", "column"),
    [
        ("steps.create", "session_id"),
        ("steps.create at a place", "session_id"),
        ("commands.create", "session_id"),
        ("project_locks.acquire", "session_id"),
    ],
)
async def test_session__that_does_not_exist(
    store: MetadataStore, repos: Any, work: str, column: str
) -> None:
    it = await Prepared.make(store, "/projects/1")
    await store.sessions.delete(it.session.id)
    with pytest.raises(InvalidReference) as missing:
        await SESSION_WORK[work][1](repos, it)
    assert (missing.value.table, missing.value.column) == (work.partition(".")[0], column)
    assert missing.value.references == "sessions"


# Locks of projects


async def test_acquire__for_a_session_of_another_project(store: MetadataStore, repos: Any) -> None:
    it, other = [await Prepared.make(store, f"/projects/{n}") for n in (1, 2)]
    repository = await store.repositories.create(name="app", remote_url="git@example.com:app.git")
    of_none = await store.sessions.create(session_type="debug", repository_id=repository.id)
    debug = await store.sessions.create(
        session_type="debug", repository_id=repository.id, project_path="/projects/1"
    )
    for session in (other.session, of_none):
        with pytest.raises(InvalidValue) as refused:
            await repos.project_locks.acquire(
                project_id=it.project_id, session_id=session.id, ttl=MINUTE
            )
        assert (refused.value.table, refused.value.column) == ("project_locks", "session_id")
        assert await store.project_locks.find_by_project(it.project_id) is None
    with pytest.raises(InvalidReference) as missing:
        await repos.project_locks.acquire(project_id=new_id(), session_id=it.session.id, ttl=MINUTE)
    assert (missing.value.column, missing.value.references) == ("project_id", "projects")
    lock = await repos.project_locks.acquire(
        project_id=it.project_id, session_id=debug.id, ttl=MINUTE
    )
    assert await store.project_locks.find_by_project(it.project_id) == lock


@pytest.mark.parametrize("state", ENDED)
async def test_acquire__an_ended_session_does_not_take_over_a_lock_that_ran_out(
    store: MetadataStore, clock: Clock, state: str
) -> None:
    it = await Prepared.make(store, "/projects/1")
    late = await store.sessions.create(session_type="test_generation", project_path="/projects/1")
    old = await store.project_locks.acquire(
        project_id=it.project_id, session_id=it.session.id, ttl=MINUTE
    )
    await advance(store, "sessions", late.id, *ENDED[state])
    # While it is held, and after it ran out; waiting would change nothing.
    for wait in (None, timedelta(hours=1)):
        with pytest.raises(InvalidTransition):
            await store.project_locks.acquire(
                project_id=it.project_id, session_id=late.id, ttl=MINUTE, wait=wait
            )
    clock.now = old.expires_at
    with pytest.raises(InvalidTransition):
        await store.project_locks.acquire(project_id=it.project_id, session_id=late.id, ttl=MINUTE)
    assert await store.project_locks.find_by_project(it.project_id) == old
    assert await store.lease_waiters.list_by_resource("project_locks", it.project_id) == (
        await store.lease_waiters.list_by_resource("project_locks", new_id())
    )


async def test_acquire__a_session_that_ends_while_it_waits_stops_waiting(
    store: MetadataStore,
) -> None:
    it = await Prepared.make(store, "/projects/1")
    first, second = [
        await store.sessions.create(session_type="test_generation", project_path="/projects/1")
        for _ in range(2)
    ]
    held = await store.project_locks.acquire(
        project_id=it.project_id, session_id=it.session.id, ttl=MINUTE
    )
    waiting = [
        asyncio.create_task(
            store.project_locks.acquire(
                project_id=it.project_id,
                session_id=session.id,
                ttl=MINUTE,
                wait=timedelta(hours=1),
            )
        )
        for session in (first, second)
    ]
    while (
        len((await store.lease_waiters.list_by_resource("project_locks", it.project_id)).items) < 2
    ):
        await asyncio.sleep(0)
    cancelled = await advance(store, "sessions", first.id, "cancel")
    async with asyncio.timeout(60):
        with pytest.raises(InvalidTransition) as refused:
            await waiting[0]
    assert refused.value.row == cancelled
    # The place in the queue is given up, and the next one is served.
    [ticket] = (await store.lease_waiters.list_by_resource("project_locks", it.project_id)).items
    assert ticket.owner == second.id
    await store.project_locks.release(held)
    async with asyncio.timeout(60):
        assert (await waiting[1]).session_id == second.id


@pytest.mark.parametrize("state", ENDED)
async def test_renew__of_an_ended_session_is_refused_and_release_works(
    store: MetadataStore, repos: Any, clock: Clock, state: str
) -> None:
    it, other = [await Prepared.make(store, f"/projects/{n}") for n in (1, 2)]
    lock, others = [
        await store.project_locks.acquire(
            project_id=row.project_id, session_id=row.session.id, ttl=MINUTE
        )
        for row in (it, other)
    ]
    ended = await advance(store, "sessions", it.session.id, *ENDED[state])
    with pytest.raises(InvalidTransition) as refused:
        await repos.project_locks.renew(lock, ttl=WEEK)
    assert (refused.value.table, refused.value.to_state) == ("sessions", "lock")
    assert refused.value.row == ended
    assert await store.project_locks.find_by_project(it.project_id) == lock
    assert (await repos.project_locks.renew(others, ttl=WEEK)).expires_at > others.expires_at
    # What the session did is still written under its lock, and the lock goes back.
    async with store.transaction(lease=lock) as tx:
        await tx.commands.finish(it.running_command, exit_code=0)
    await repos.project_locks.release(lock)
    assert await store.project_locks.find_by_project(it.project_id) is None
    with pytest.raises(LeaseLost):
        await repos.project_locks.renew(lock, ttl=WEEK)


async def test_renew__of_a_lock_that_ran_out_is_lost_whatever_its_session(
    store: MetadataStore, clock: Clock
) -> None:
    it = await Prepared.make(store, "/projects/1")
    lock = await store.project_locks.acquire(
        project_id=it.project_id, session_id=it.session.id, ttl=MINUTE
    )
    await advance(store, "sessions", it.session.id, "cancel")
    clock.now = lock.expires_at
    with pytest.raises(LeaseLost):
        await store.project_locks.renew(lock, ttl=MINUTE)


async def test_hold__the_body_may_end_its_session_and_go_on_until_the_lock_runs_out(
    store: MetadataStore,
) -> None:
    it = await Prepared.make(store, "/projects/1")
    renewals: Counter[str] = Counter()
    renew = store.project_locks.renew

    async def counted(lock: ProjectLock, *, ttl: timedelta) -> ProjectLock:
        try:
            return await renew(lock, ttl=ttl)
        except InvalidTransition:
            renewals["refused"] += 1
            raise

    store.project_locks.renew = counted  # type: ignore[method-assign]
    ttl = timedelta(seconds=1.5)
    async with store.project_locks.hold(
        project_id=it.project_id, session_id=it.session.id, ttl=ttl
    ) as lock:
        await advance(store, "sessions", it.session.id, "start", "complete")
        async with asyncio.timeout(60):
            while not renewals["refused"]:
                await asyncio.sleep(0.01)
        await store.project_locks.get(lock.id)
    assert await store.project_locks.find_by_project(it.project_id) is None

    late = await store.sessions.create(session_type="test_generation", project_path="/projects/1")
    with pytest.raises(LeaseLost):
        async with (
            asyncio.timeout(60),
            store.project_locks.hold(
                project_id=it.project_id, session_id=late.id, ttl=timedelta(seconds=0.3)
            ),
        ):
            await store.sessions.cancel(late.id)
            await asyncio.Event().wait()
    assert renewals["refused"] == 2, "a renewal that an ended session refuses is not repeated"


# Jobs

JOB_WORK: dict[str, tuple[str, Callable[[Any, str, str], Awaitable[Any]]]] = {
    "job_steps.create": (
        "step",
        lambda repos, job, _: repos.job_steps.create(job_id=job, name="late", step_type="x"),
    ),
    "job_steps.start": ("step", lambda repos, _, planned: repos.job_steps.start(planned)),
    "budget_reservations.reserve": (
        "reserving",
        lambda repos, job, _: repos.budget_reservations.reserve(
            job, request_id="late", amount_usd=1, ttl=MINUTE
        ),
    ),
}


async def _job(store: MetadataStore) -> tuple[str, str, str]:
    """Make a job with a step that is planned and one that runs, and return their ids."""
    job = await store.jobs.create(task="fix it", repo_owner="acme", repo_name="shop")
    await store.jobs.start(job.id)
    planned, running = [
        await store.job_steps.create(job_id=job.id, name=name, step_type="x") for name in "ab"
    ]
    await store.job_steps.start(running.id)
    return job.id, planned.id, running.id


@pytest.mark.parametrize("work", JOB_WORK)
@pytest.mark.parametrize("verbs", [("complete",), ("fail",), ("cancel", "acknowledge_cancel")])
async def test_job__that_ended_takes_no_work(
    store: MetadataStore, repos: Any, verbs: tuple[str, ...], work: str
) -> None:
    (job_id, planned, _), (other, others_planned, _) = [await _job(store) for _ in range(2)]
    ended = await advance(store, "jobs", job_id, *verbs)
    before = await everything(store)
    name, do = JOB_WORK[work]
    if ended.cancelled:
        with pytest.raises(JobCancelled) as called_off:
            await do(repos, job_id, planned)
        assert called_off.value.job == ended
    else:
        with pytest.raises(InvalidTransition) as refused:
            await do(repos, job_id, planned)
        assert (refused.value.table, refused.value.from_state) == ("jobs", ended.status)
        assert (refused.value.to_state, refused.value.row) == (name, ended)
    assert await everything(store) == before
    await do(repos, other, others_planned)
    assert await everything(store) != before


@pytest.mark.parametrize("verbs", [(), ("start",), ("start", "pause")])
async def test_job__plans_and_begins_steps_until_it_ends(
    store: MetadataStore, verbs: tuple[str, ...]
) -> None:
    job = await store.jobs.create(task="fix it", repo_owner="acme", repo_name="shop")
    await advance(store, "jobs", job.id, *verbs)
    step = await store.job_steps.create(job_id=job.id, name="a", step_type="x")
    assert (await store.job_steps.start(step.id)).status == "running"


async def test_job_step__that_has_begun_names_its_own_state(store: MetadataStore) -> None:
    job_id, _, running = await _job(store)
    await store.jobs.complete(job_id)
    with pytest.raises(InvalidTransition) as refused:
        await store.job_steps.start(running)
    assert (refused.value.table, refused.value.from_state) == ("job_steps", "running")


@pytest.mark.parametrize("verbs", [("complete",), ("fail",), ("cancel", "acknowledge_cancel")])
async def test_job__what_happened_is_recorded_after_the_end(
    store: MetadataStore, repos: Any, verbs: tuple[str, ...]
) -> None:
    job_id, planned, running = await _job(store)
    await store.budget_reservations.reserve(job_id, request_id="1", amount_usd=2, ttl=MINUTE)
    await advance(store, "jobs", job_id, *verbs)
    assert (await repos.job_steps.complete(running)).status == "completed"
    assert (await repos.job_steps.skip(planned)).status == "skipped"
    charged = await repos.cost_entries.record(
        job_id, request_id="1", provider="p", model="m", tokens_in=1, tokens_out=1, cost_usd="1.50"
    )
    assert charged.job.cost_nano_usd == 1_500_000_000
    assert (await store.budget_reservations.list_by_job(job_id)).items == []
    item = await repos.memory_items.put(job_id, kind="note", key="lesson", content="read first")
    assert (await store.memory_items.search(job_id)).items == [item]
    file = await store.memory_files.write(job_id, path="report.md", data=b"done")
    read = await store.memory_files.read(job_id, path="report.md")
    assert (read.id, read.bytes) == (file.id, b"done")
    summary = await repos.message_summaries.create(
        job_id=job_id, step_id=running, role="user", summary="s", tokens=1
    )
    assert (await store.message_summaries.list_by_job(job_id)).items == [summary]


# Tasks and workflows


@pytest.mark.parametrize("state", ENDED)
async def test_task__that_ended_calls_no_tool(store: MetadataStore, repos: Any, state: str) -> None:
    task, other = [await store.tasks.create(title="t", task_type="tool") for _ in range(2)]
    await store.tasks.start(task.id)
    running = await store.tool_executions.start(task_id=task.id, tool_name="grep")
    ended = await advance(store, "tasks", task.id, ENDED[state][-1])
    before = await everything(store)
    with pytest.raises(InvalidTransition) as refused:
        await repos.tool_executions.start(task_id=task.id, tool_name="rm")
    assert (refused.value.table, refused.value.from_state) == ("tasks", state)
    assert (refused.value.to_state, refused.value.row) == ("tool execution", ended)
    assert await everything(store) == before
    # What was running may end, and the chain goes on without a gap.
    done = await repos.tool_executions.complete(running.id, output="found")
    assert (done.status, done.finished_sequence) == ("completed", 2)
    assert (await repos.tool_executions.start(task_id=other.id, tool_name="rm")).sequence == 1
    with pytest.raises(InvalidReference) as missing:
        await repos.tool_executions.start(task_id=new_id(), tool_name="rm")
    assert (missing.value.table, missing.value.column) == ("tool_executions", "task_id")


async def test_tool_execution__of_a_claimed_task_that_was_cancelled(store: MetadataStore) -> None:
    await store.tasks.create(title="t", task_type="tool")
    lease = await store.tasks.claim(owner="worker", ttl=MINUTE)
    await store.tool_executions.start(task_id=lease.task_id, tool_name="grep")
    await store.tasks.cancel(lease.task_id)
    with pytest.raises(InvalidTransition):
        await store.tool_executions.start(task_id=lease.task_id, tool_name="rm")


@pytest.mark.parametrize("sequence", [None, 1])
async def test_workflow__an_archived_one_takes_no_task_and_an_ended_task_is_listed(
    store: MetadataStore, repos: Any, sequence: int | None
) -> None:
    archived, active = [await store.workflows.create(name="w", definition={}) for _ in range(2)]
    kept, task = [await store.tasks.create(title="t", task_type="tool") for _ in range(2)]
    await store.workflow_tasks.add(archived.id, kept.id)
    await store.workflows.archive(archived.id)
    await advance(store, "tasks", task.id, "start", "complete")
    with pytest.raises(InvalidTransition) as refused:
        await repos.workflow_tasks.add(archived.id, task.id, sequence)
    assert (refused.value.table, refused.value.from_state) == ("workflows", "archived")
    assert refused.value.to_state == "add"
    [place] = (await store.workflow_tasks.list_by_workflow(archived.id)).items
    assert (place.task_id, place.sequence) == (kept.id, 1)
    # A workflow lists tasks, whatever became of them, and counts those that are done.
    assert (await repos.workflow_tasks.add(active.id, task.id, sequence)).sequence == 1
    assert (await store.workflows.progress(active.id)).fraction == 1


# Tokens and worktrees


async def _tokens(store: MetadataStore, clock: Clock) -> dict[str, str]:
    """Return the id of a token in each state that a token can be in."""
    ids = {}
    for state, ttl in (
        ("active", None), ("revoked", None), ("expired", MINUTE), ("replaced", None),
        ("replaced and over", None),
    ):  # fmt: skip
        issued = await store.auth_tokens.issue(user_name="u", name=state, scopes=["*"], ttl=ttl)
        ids[state] = issued.record.id
    await store.auth_tokens.revoke(ids["revoked"])
    await store.auth_tokens.rotate(ids["replaced"], grace=timedelta(hours=1))
    await store.auth_tokens.rotate(ids["replaced and over"], grace=timedelta(0))
    clock.advance(2 * MINUTE)
    return ids


@pytest.mark.parametrize("project_path", [None, "/projects/new"])
@pytest.mark.parametrize(
    ("state", "works"),
    [
        ("active", True),
        ("replaced", True),
        ("revoked", False),
        ("expired", False),
        ("replaced and over", False),
    ],
)
async def test_token__one_that_does_not_work_opens_no_session(
    store: MetadataStore,
    repos: Any,
    clock: Clock,
    state: str,
    works: bool,
    project_path: str | None,
) -> None:
    repository = await store.repositories.create(name="app", remote_url="git@example.com:app.git")
    tokens = await _tokens(store, clock)
    values = {
        "session_type": "debug", "repository_id": repository.id, "project_path": project_path,
        "auth_token_id": tokens[state],
    }  # fmt: skip
    if works:
        session = await repos.sessions.create(**values)
        assert session.auth_token_id == tokens[state]
        assert await store.sessions.get(session.id) == session
        return
    with pytest.raises(TokenRejected):
        await repos.sessions.create(**values)
    assert (await store.sessions.list_recent()).items == []
    # Nor is the project registered.
    assert (await store.projects.list()).items == []


@pytest.mark.parametrize("state", ["revoked", "expired", "replaced", "replaced and over"])
async def test_token__one_that_ended_is_not_rotated(
    store: MetadataStore, repos: Any, clock: Clock, state: str
) -> None:
    tokens = await _tokens(store, clock)
    before = (await store.auth_tokens.list()).items
    with pytest.raises(InvalidTransition) as refused:
        await repos.auth_tokens.rotate(tokens[state])
    assert refused.value.row == await store.auth_tokens.get(tokens[state])
    assert (await store.auth_tokens.list()).items == before
    await repos.auth_tokens.rotate(tokens["active"])
    assert len((await store.auth_tokens.list()).items) == len(before) + 1


async def test_worktree__no_session_begins_in_a_retired_one(
    store: MetadataStore, repos: Any
) -> None:
    repository = await store.repositories.create(name="app", remote_url="git@example.com:app.git")
    retired, ready = [
        await store.worktrees.create(repository_id=repository.id, path=f"/w/{n}") for n in (1, 2)
    ]
    values: dict[str, Any] = {"session_type": "debug", "repository_id": repository.id}
    there = await store.sessions.create(**values, worktree_id=retired.id)
    elsewhere = await store.sessions.create(**values)
    retired = await store.worktrees.retire(retired.id)
    before = await everything(store)
    refusals: list[Callable[[], Awaitable[Session]]] = [
        lambda: repos.sessions.create(**values, worktree_id=retired.id),
        lambda: repos.sessions.create(
            **values, worktree_id=retired.id, project_path="/projects/new"
        ),
        lambda: repos.sessions.start(there.id),
        lambda: repos.sessions.start(elsewhere.id, worktree_id=retired.id),
    ]
    for begin in refusals:
        with pytest.raises(InvalidTransition) as refused:
            await begin()
        assert (refused.value.table, refused.value.from_state) == ("worktrees", "retired")
        assert (refused.value.to_state, refused.value.row) == ("session", retired)
    assert await everything(store) == before
    assert (await store.projects.list()).items == []
    started = await repos.sessions.start(there.id, worktree_id=ready.id)
    assert (started.status, started.worktree_id) == ("in_progress", ready.id)
    with pytest.raises(InvalidTransition) as running:
        await repos.sessions.start(there.id, worktree_id=retired.id)
    assert (running.value.table, running.value.from_state) == ("sessions", "in_progress")
    assert (await repos.sessions.start(elsewhere.id)).worktree_id is None
    # A session at work in a worktree that is retired meanwhile may end.
    await store.worktrees.retire(ready.id)
    assert (await repos.sessions.complete(there.id)).status == "completed"


async def test_session__with_a_dead_token_and_a_retired_worktree(store: MetadataStore) -> None:
    repository = await store.repositories.create(name="app", remote_url="git@example.com:app.git")
    worktree = await store.worktrees.create(repository_id=repository.id, path="/w/1")
    await store.worktrees.retire(worktree.id)
    issued = await store.auth_tokens.issue(user_name="u", name="n")
    await store.auth_tokens.revoke(issued.record.id)
    with pytest.raises(TokenRejected):
        await store.sessions.create(
            session_type="debug",
            repository_id=repository.id,
            worktree_id=worktree.id,
            auth_token_id=issued.record.id,
        )


# Races

CREATORS: dict[str, Callable[[MetadataStore, Prepared], Awaitable[Any]]] = {
    name: do
    for name, (_, do) in SESSION_WORK.items()
    if name in ("steps.create", "commands.create", "debugger_state.checkpoint")
}


async def _count(store: MetadataStore, session_id: str) -> list[int]:
    tables = ("steps", "commands", "debugger_state")
    return [
        len((await getattr(store, table).list_by_session(session_id, limit=1000)).items)
        for table in tables
    ]


@pytest.mark.parametrize("verb", ["complete", "fail", "cancel"])
async def test_end__no_row_is_created_after_it_whatever_races(
    store_url: str, verb: str, record_property: Callable[[str, object], None]
) -> None:
    """Two connections create while one of them ends the session.

    What was created before the end is there when the end is answered; had one been created
    later, there would be more at the end.
    """
    collisions = created = 0
    async with (
        MetadataStore.open(store_url) as store,
        MetadataStore.open(store_url) as elsewhere,
    ):
        for n in range(5):
            it = await Prepared.make(store, f"/projects/{n}")
            await store.sessions.start(it.session.id)
            ended = asyncio.Event()
            begun = asyncio.Event()

            async def create(
                where: MetadataStore, it: Prepared = it, begun: asyncio.Event = begun
            ) -> tuple[int, int]:
                made = refused = 0
                for do in list(CREATORS.values()) * 100:
                    in_flight = not ended.is_set()  # noqa: B023
                    try:
                        await do(where, it)
                    except InvalidTransition:
                        return made, refused + in_flight
                    made += 1
                    begun.set()
                return made, refused

            async def end(it: Prepared = it, ended: asyncio.Event = ended) -> list[int]:
                await advance(store, "sessions", it.session.id, verb)
                ended.set()
                return await _count(store, it.session.id)

            # Those of `store` stand on both sides of the end in its queue: they collide for sure.
            before = [asyncio.create_task(create(where)) for where in (store, elsewhere) * 4]
            await begun.wait()
            ending = asyncio.create_task(end())
            after = [asyncio.create_task(create(store)) for _ in range(4)]
            results = await asyncio.gather(*before, *after)
            assert await _count(elsewhere, it.session.id) == await ending
            created += sum(made for made, _ in results)
            collisions += sum(refused for _, refused in results)
    record_property("figures", f"{created} created, {collisions} refused in flight by the end")
    assert collisions >= 5 * 4
    assert created >= 5


async def test_end__a_lock_is_not_taken_after_it(store: MetadataStore) -> None:
    outcomes: Counter[str] = Counter()
    for n in range(6):
        it = await Prepared.make(store, f"/projects/{n}")
        take = SESSION_WORK["project_locks.acquire"][1]
        calls: list[Awaitable[Any]] = [take(store, it), store.sessions.cancel(it.session.id)]
        if n % 2:
            calls.reverse()
        results = await asyncio.gather(*calls, return_exceptions=True)
        [lock] = [it for it in results if not isinstance(it, Session)]
        outcomes[type(lock).__name__] += 1
        found = await store.project_locks.find_by_project(it.project_id)
        assert found == (lock if isinstance(lock, ProjectLock) else None)
        assert not isinstance(lock, LockHeld)
    assert outcomes == {"ProjectLock": 3, "InvalidTransition": 3}
