"""Hops to a connection's thread, counted: they cost more than most statements do.

An operation is one hop. Operations that are asked for together share one.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from metastore import NewEvent, repositories
from metastore.backends.sqlite.backend import SqliteBackend
from metastore.repositories import RepositorySet
from metastore.repositories.base import TableRepository
from metastore.testing import Factories

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from metastore import MetadataStore, Session

TTL = timedelta(minutes=1)

MORE_HOPS = {
    "auth_tokens.rotate": (2, "the new token takes over what is read of the old one"),
    "auth_tokens.verify": (2, "the use is noted, once a minute"),
    "configurations.set": (2, "a secret stays one, whatever is set"),
    "tasks.count_held": (2, "the live and the expired are two counts"),
    "embedding_index.search": (3, "dimensions, a block of the scope, the texts that were found"),
    **dict.fromkeys(
        ("sessions.delete", "jobs.delete", "tasks.delete", "workflows.delete", "worktrees.delete"),
        (2, "what goes with the row is weighed first"),
    ),
    "project_locks.count_held": (2, "the live and the expired are two counts"),
    "worktrees.count_held": (2, "the live and the expired are two counts"),
}
"""Operations of more than one statement that are not one transaction."""

NOT_COUNTED = {
    "audit_chains.checkpoint": "reads the chains that grew",
    "audit_chains.verify": "reads every chain",
    "audit_chains.schema_findings": "reads the schema, and compares it in a thread",
    "configurations.dump": "is a read for each page",
    "configurations.load": "is a write for each key",
    "configurations.reveal": "is value, for secrets",
    "configurations.rotate_keys": "is a read and a write for each batch",
    "tasks.hold": "is a claim and its end",
    "events.follow": "goes on for ever",
    "lease_waiters.wait_in_queue": "waits",
    "memory_files.export": "is a list and a read for each file",
    "memory_files.stream": "is a hop for each of its chunks",
    "project_locks.hold": "is an acquisition and a release",
    "worktrees.lease": "is an acquisition and a release",
}
"""Operations that are made of others, or have no end."""


def hops_of(store: MetadataStore) -> dict[str, int]:
    """How often the store went to a thread so far, by what for."""
    backend = store._backend
    assert isinstance(backend, SqliteBackend)
    return {
        "write": backend._writer.hops,
        "read": sum(reader.hops for reader in backend._readers),
        "scan": backend._scans.lane.hops if backend._scans.lane else 0,
    }


class Counting:
    """The store, noting how many hops each operation of its repositories took."""

    def __init__(self, store: MetadataStore) -> None:
        self.store = store
        self.hops: dict[str, int] = {}

    def __getattr__(self, table: str) -> Any:
        return _CountingTable(self, table)


class _CountingTable:
    def __init__(self, counting: Counting, table: str) -> None:
        self._counting = counting
        self._table = table

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        store = self._counting.store
        operation = getattr(getattr(store, self._table), verb)

        async def counted(*arguments: Any, **keywords: Any) -> Any:
            before = sum(hops_of(store).values())
            result = await operation(*arguments, **keywords)
            hops = sum(hops_of(store).values()) - before
            known = self._counting.hops.setdefault(f"{self._table}.{verb}", hops)
            assert known == hops, f"{self._table}.{verb} took {known} hops, then {hops}"
            return result

        return counted


def operations() -> set[str]:
    """Every operation of every repository, as `table.verb`."""
    namespace = vars(repositories)
    return {
        f"{table}.{verb}"
        for table, attribute in vars(RepositorySet).items()
        if isinstance(attribute, cached_property)
        for repository in [typing.get_type_hints(attribute.func, namespace)["return"]]
        if issubclass(repository, TableRepository)
        for verb, method in vars(repository).items()
        if not verb.startswith("_")
        if _is_operation(method)
    }


def _is_operation(method: object) -> bool:
    function = inspect.unwrap(method) if callable(method) else method
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


async def registry(store: Any, make: Factories) -> None:
    repository = await store.repositories.create(name="app", remote_url="app.git")
    await store.repositories.get(repository.id)
    await store.repositories.find_by_name("app")
    await store.repositories.list()
    await store.repositories.update(
        repository.id, remote_url="b.git", default_branch="b", metadata={}
    )
    worktree = await store.worktrees.create(repository_id=repository.id, path="/w")
    await store.worktrees.get(worktree.id)
    await store.worktrees.find_by_path("/w")
    await store.worktrees.list_by_repository(repository.id)
    lease = await store.worktrees.reserve(worktree, owner="a", ttl=TTL)
    await store.worktrees.find_by_lease_token(lease.token)
    await store.worktrees.count_held()
    lease = await store.worktrees.renew(lease, ttl=TTL)
    lease = await store.worktrees.record_checkout(lease, branch="main", commit_sha="c")
    await store.worktrees.release(lease)
    await store.worktrees.release(await store.worktrees.acquire(repository.id, owner="a", ttl=TTL))
    await store.lease_waiters.list_by_resource("worktrees", repository.id)
    await store.worktrees.retire(worktree.id)
    await store.worktrees.reinstate(worktree.id)
    await store.worktrees.delete(worktree.id)
    await store.repositories.delete(repository.id)
    project = await store.projects.ensure(path="/p")
    await store.projects.get(project.id)
    await store.projects.find_by_path("/p")
    await store.projects.list()
    session = await make.session(project_path="/p")
    lock = await store.project_locks.acquire(project_id=project.id, session_id=session.id, ttl=TTL)
    await store.project_locks.get(lock.id)
    await store.project_locks.find_by_project(project.id)
    await store.project_locks.list_by_session(session.id)
    await store.project_locks.list_expired()
    await store.project_locks.count_held()
    await store.lease_limits.get()
    await store.lease_limits.check()
    lock = await store.project_locks.renew(lock, ttl=TTL)
    await store.project_locks.release(lock)
    await store.projects.delete((await make.project()).id)


async def tokens(store: Any, _make: Factories) -> None:
    await store.auth_tokens.bootstrap()
    issued = await store.auth_tokens.issue(user_name="u", name="n", scopes=["sessions:read"])
    await store.auth_tokens.get(issued.record.id)
    await store.auth_tokens.verify(issued.token)
    await store.auth_tokens.list()
    await store.auth_tokens.list_by_user("u")
    await store.auth_tokens.rotate(issued.record.id)
    await store.auth_tokens.revoke(issued.record.id)


async def sessions(store: Any, make: Factories) -> None:
    project = await make.project()
    worktree = await make.worktree()
    token = await make.token()
    debug = {"session_type": "debug", "repository_id": worktree.repository_id}
    session = await store.sessions.create(**debug)
    await store.sessions.create(session_type="docker_deployment", project_path=project.path)
    await store.sessions.get(session.id)
    await store.sessions.start(session.id)
    await store.sessions.pause(session.id)
    await store.sessions.resume(session.id)
    await store.sessions.complete(session.id)
    await store.sessions.fail((await make.session()).id, error_message="e")
    await store.sessions.cancel((await make.session()).id)
    await store.sessions.list_by_status("pending")
    await store.sessions.list_by_project(project.path)
    await store.sessions.list_recent()
    await store.sessions.list_active()
    await store.sessions.list_open_by_worktree(worktree.id)
    await store.sessions.count_open_by_auth_token(token.record.id)
    await store.deletions.list("sessions")
    await store.sessions.delete(session.id)


async def execution(store: Any, make: Factories) -> None:
    session = (await make.session()).id
    step = await store.steps.create(session_id=session, name="a")
    await store.steps.get(step.id)
    await store.steps.start(step.id)
    await store.steps.complete(step.id)
    await store.steps.skip((await make.step(session_id=session)).id)
    await store.steps.fail((await make.step(session_id=session)).id, error_message="e")
    await store.steps.list_by_session(session)
    event = await store.events.append(session, "t", "m")
    await store.events.append_many(session, [NewEvent("t", "m"), NewEvent("t", "m")])
    await store.events.get(event.id)
    await store.events.list_by_session(session)
    await store.events.list()
    command = await store.commands.create(session_id=session, argv=["x"], working_directory="/")
    await store.commands.get(command.id)
    await store.commands.start(command.id)
    await store.commands.finish(command.id, exit_code=0)
    started = [await make.command(session_id=session) for _ in range(2)]
    for it in started:
        await store.commands.start(it.id)
    await store.commands.fail(started[0].id, error_message="e")
    await store.commands.time_out(started[1].id)
    await store.commands.cancel((await make.command(session_id=session)).id)
    await store.commands.list_by_session(session)
    artifact = await store.artifacts.create(
        session_id=session, artifact_type="log", name="l", content_path="/l"
    )
    await store.artifacts.get(artifact.id)
    await store.artifacts.list_by_session(session)
    await store.artifacts.list_by_type("log")
    await store.artifacts.delete(artifact.id)
    checkpoint = await store.debugger_state.checkpoint(session, {})
    await store.debugger_state.get(checkpoint.id)
    await store.debugger_state.latest(session)
    await store.debugger_state.find_latest(session)
    await store.debugger_state.list_by_session(session)


async def jobs(store: Any, _make: Factories) -> None:
    job = (await _job(store)).id
    await store.jobs.get(job)
    await store.jobs.start(job)
    await store.jobs.set_limits(job, budget_usd=1, max_requests=9, max_minutes=9)
    await store.jobs.set_last_action(job, "a")
    await store.jobs.add_pr_link(job, "https://example.com/pull/1")
    await store.jobs.progress(job)
    await store.jobs.list_by_status("running")
    await store.jobs.list_by_repo("o", "r")
    await store.jobs.list_recent()
    reservations = store.budget_reservations
    await reservations.reserve(job, request_id="r", amount_usd="0.1", ttl=TTL)
    await reservations.budget(job)
    await reservations.list_by_job(job)
    await reservations.release(job, "r")
    recorded = await store.cost_entries.record(
        job, request_id="r", provider="p", model="m", tokens_in=1, tokens_out=1, cost_usd=0
    )
    await store.cost_entries.get(recorded.entry.id)
    await store.cost_entries.correct(recorded.entry.id, request_id="c", amount_usd=1)
    await store.cost_entries.find_by_request(job, "r")
    await store.cost_entries.list_by_job(job)
    await store.cost_entries.summary()
    await store.cost_entries.discrepancies()
    await store.jobs.pause(job)
    await store.jobs.resume(job)
    steps = [await store.job_steps.create(job_id=job, name="n", step_type="t") for _ in range(3)]
    await store.job_steps.get(steps[0].id)
    await store.job_steps.start(steps[0].id)
    await store.job_steps.complete(steps[0].id)
    await store.job_steps.start(steps[1].id)
    await store.job_steps.fail(steps[1].id)
    await store.job_steps.skip(steps[2].id)
    await store.job_steps.list_by_job(job)
    await store.jobs.cancel(job)
    await store.jobs.acknowledge_cancel(job)
    for end in (store.jobs.complete, store.jobs.fail):
        other = (await _job(store)).id
        await store.jobs.start(other)
        await end(other)
    await store.jobs.delete(job)


async def memory(store: Any, _make: Factories) -> None:
    job = (await _job(store)).id
    item = {"kind": "k", "key": "a"}
    await store.memory_items.put(job, **item, content={})
    await store.memory_items.get(job, **item)
    await store.memory_items.find(job, **item)
    await store.memory_items.list_by_job(job)
    await store.memory_items.search(job, tags=["t"])
    await store.memory_items.delete(job, **item)
    await store.memory_files.write(job, path="f", data=b"x")
    await store.memory_files.get(job, path="f")
    await store.memory_files.read(job, path="f")
    await store.memory_files.list_by_job(job)
    await store.memory_files.delete(job, path="f")
    await store.memory_limits.set(job, max_items=1)
    await store.memory_limits.get(job)
    await store.memory_limits.get_default()
    await store.memory_limits.set_default(max_items=1)
    await store.memory_limits.delete(job)
    summary = await store.message_summaries.create(job_id=job, role="user", summary="s", tokens=1)
    await store.message_summaries.get(summary.id)
    await store.message_summaries.list_by_job(job)
    await store.message_summaries.list_by_step(summary.id)
    metric = await store.context_metrics.create(job_id=job, tokens_final=1)
    await store.context_metrics.get(metric.id)
    await store.context_metrics.list_by_job(job)
    await store.context_metrics.list_by_step(metric.id)
    await store.context_metrics.totals(job)
    embedding = {"scope": "s", "ref_id": "r", "text": "t", "vector": [1.0, 0.0]}
    await store.embedding_index.upsert(**embedding)
    new = repositories.embedding_index.NewEmbedding("q", "t", [0.0, 1.0])
    await store.embedding_index.upsert_many(scope="s", embeddings=[new])
    await store.embedding_index.get(scope="s", ref_id="r")
    await store.embedding_index.search(scope="s", vector=[1.0, 1.0])
    await store.embedding_index.delete(scope="s", ref_id="r")


async def orchestration(store: Any, _make: Factories) -> None:
    workflow = (await store.workflows.create(name="w", definition={})).id
    await store.workflows.get(workflow)
    await store.workflows.find_by_name("w")
    await store.workflows.list()
    await store.workflows.list_by_name("w")
    await store.workflows.list_by_status("draft")
    await store.workflows.progress(workflow)
    ids = [(await store.tasks.create(title="t", task_type="t")).id for _ in range(3)]
    for task in ids[:2]:
        await store.workflow_tasks.add(workflow, task)
    await store.workflow_tasks.get(workflow, ids[0])
    await store.workflow_tasks.move(workflow, ids[0], 2)
    await store.workflow_tasks.list_by_workflow(workflow)
    await store.workflow_tasks.list_by_task(ids[0])
    await store.tasks.list_by_workflow(workflow)
    await store.workflow_tasks.remove(workflow, ids[0])
    await store.workflows.activate(workflow)
    await store.workflows.pause(workflow)
    await store.workflows.archive(workflow)
    await store.workflows.delete(workflow)
    await store.tasks.get(ids[0])
    await store.tasks.list_by_status("pending")
    await store.tasks.list_by_type("t")
    await store.tasks.list_by_workspace("/w")
    await store.tasks.list_recent()
    await store.tasks.start(ids[0])
    await store.tasks.complete(ids[0])
    await store.tasks.start(ids[1])
    await store.tasks.fail(ids[1], error="e")
    await store.tasks.cancel(ids[2])
    for end in ("complete_claim", "fail_claim", "release"):
        await store.tasks.create(title="t", task_type=end)
        lease = await store.tasks.claim(owner="o", ttl=TTL, task_types=[end])
        await store.tasks.renew(lease, ttl=TTL)
        if end == "fail_claim":
            await store.tasks.fail_claim(lease, error="e")
        else:
            await getattr(store.tasks, end)(lease)
    await store.tasks.count_held()
    tools = store.tool_executions
    task = (await store.tasks.create(title="t", task_type="t")).id
    for end in ("complete", "fail", "time_out"):
        run = (await tools.start(task_id=task, tool_name="t", arguments={})).id
        if end == "fail":
            await tools.fail(run, error="e")
        else:
            await getattr(tools, end)(run)
    await tools.get(run)
    await tools.list_by_status("completed")
    await tools.list_by_task(task)
    await tools.list_by_tool("t")
    await store.audit_chains.get("tool_executions", task)
    await store.audit_chains.list("tool_executions")
    await store.tasks.delete(ids[0])
    clients = store.client_sessions
    client = (await clients.open(client_id="c", connection_type="http", user_id="u")).id
    await clients.get(client)
    await clients.list_active()
    await clients.list_by_client("c")
    await clients.list_by_user("u")
    await clients.heartbeat(client)
    await clients.close(client)
    await clients.close_stale(older_than=TTL)
    await clients.delete(client)
    await store.configurations.set("k", 1)
    await store.configurations.get("k")
    await store.configurations.value("k")
    await store.configurations.list()
    await store.configurations.delete("k")


async def _job(store: Any) -> Any:
    return await store.jobs.create(task="t", repo_owner="o", repo_name="r")


async def test_operation__one_hop(store: MetadataStore) -> None:
    counting = Counting(store)
    for scene in (registry, tokens, sessions, execution, jobs, memory, orchestration):
        await scene(counting, Factories(store))
    expected = dict.fromkeys(operations() - NOT_COUNTED.keys(), 1)
    expected |= {name: hops for name, (hops, _) in MORE_HOPS.items()}
    assert counting.hops == expected


@pytest.mark.usefixtures("unhurried")
async def test_writes__together_share_one_hop(store: MetadataStore, session: Session) -> None:
    before = hops_of(store)
    await asyncio.gather(*(store.events.append(session.id, "t", "m") for _ in range(64)))
    after = hops_of(store)
    assert after["write"] - before["write"] == 1
    assert after["read"] == before["read"]


async def test_reads__together_share_one_hop(store: MetadataStore, session: Session) -> None:
    before = hops_of(store)
    await asyncio.gather(
        *(store.sessions.get(session.id) for _ in range(32)),
        *(store.events.list_by_session(session.id) for _ in range(32)),
    )
    after = hops_of(store)
    assert after["read"] - before["read"] == 1
    assert after["write"] == before["write"]


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("rounds", [20])
async def test_load__at_most_one_hop_for_each_batch(
    store: MetadataStore, session: Session, rounds: int
) -> None:
    async def repeat(operation: Callable[[], Awaitable[object]]) -> None:
        for _ in range(rounds):
            await operation()

    before = hops_of(store)
    await asyncio.gather(
        *(repeat(lambda: store.events.append(session.id, "t", "m")) for _ in range(64)),
        *(repeat(lambda: store.sessions.get(session.id)) for _ in range(64)),
    )
    after = hops_of(store)
    # Every task waits for its last operation: there is no more to share than one round.
    assert after["write"] - before["write"] == rounds
    assert after["read"] - before["read"] == rounds


async def test_transaction__one_hop_for_each_statement_and_one_for_its_end(
    store: MetadataStore, session: Session
) -> None:
    before = hops_of(store)
    async with store.transaction() as tx:
        await tx.sessions.get(session.id)
        await tx.events.append(session.id, "t", "m")
        await tx.events.append(session.id, "t", "m")
    after = hops_of(store)
    assert after["write"] - before["write"] == 3 + 1
    assert after["read"] == before["read"]
