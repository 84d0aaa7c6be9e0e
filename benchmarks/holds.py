"""How long one operation holds the writer at a time, at sizes that hurt.

    python -m benchmarks.holds
    python -m benchmarks.holds sessions.delete --scale 0.1

A hold is one hop of the writer: from its BEGIN to its COMMIT, the fsync included. Nobody, in this
process or another, writes meanwhile. The checkpoint that may follow a batch is counted apart: it
depends on what was written before, not on the operation.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import closing, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from benchmarks import database
from metastore import InvalidValue, MetadataStore, NewEvent
from metastore.backends.sqlite import database_file
from metastore.codec import new_id
from metastore.repositories.embedding_index import NewEmbedding

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from metastore.backends.sqlite.lanes import Operation, WriterLane

__all__ = ["main"]

MIB = 1 << 20


class Holds(NamedTuple):
    """Holds of the writer, in seconds.

    Attributes:
        hops: of each hop, without its checkpoint.
        processor: the processor time of each hop, which a busy machine hardly changes.
        checkpoints: of each checkpoint.
    """

    hops: list[float]
    processor: list[float]
    checkpoints: list[float]


def watch(store: MetadataStore) -> Holds:
    """Time every hop of the store's writer from now on."""
    backend: Any = store._backend  # noqa: SLF001 - what is measured is hidden from users
    writer: WriterLane = backend._writer  # noqa: SLF001
    holds = Holds([], [], [])
    post, checkpoint = writer.post, writer._checkpoint  # noqa: SLF001 - the same

    def timed_post(
        work: Callable[[], None],
        done: Callable[[], None],
        operations: Sequence[Operation] = (),
    ) -> None:
        def timed() -> None:
            began, began_cpu = time.perf_counter(), time.thread_time()
            try:
                work()
            finally:
                holds.processor.append(time.thread_time() - began_cpu)
                holds.hops.append(time.perf_counter() - began)

        post(timed, done, operations)

    def timed_checkpoint(connection: sqlite3.Connection) -> None:
        began = time.perf_counter()
        checkpoint(connection)
        holds.checkpoints.append(time.perf_counter() - began)

    writer.post = timed_post  # type: ignore[method-assign]
    writer._checkpoint = timed_checkpoint  # type: ignore[method-assign]  # noqa: SLF001
    return holds


class Bench:
    """A store to measure on, and the rows that its cases need."""

    def __init__(self, store: MetadataStore, path: Path, scale: float) -> None:
        self.store = store
        self.path = path
        self.scale = scale

    def sized(self, count: int) -> int:
        """Return how many rows stand for `count` at the scale."""
        return max(1, round(count * self.scale))

    def fill(self, statement: str, rows: int, *values: object) -> None:
        """Run an INSERT for each number up to `rows`; an id and the number are its first values."""
        with closing(database_file.connect(self.path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                statement, ((new_id(), number, *values) for number in range(1, rows + 1))
            )
            connection.execute("COMMIT")

    async def session(self) -> str:
        """Open a session."""
        session = await self.store.sessions.create(
            session_type="test_generation", project_path="/p"
        )
        return session.id

    async def job(self) -> str:
        """Ask for a job, which may keep more than the default."""
        job = await self.store.jobs.create(task="t", repo_owner="acme", repo_name="shop")
        await self.store.memory_limits.set(
            job.id, max_file_bytes=1 << 30, max_job_file_bytes=1 << 31, max_files=10_000
        )
        return job.id

    async def file(self, job_id: str, path: str) -> None:
        """Write a file of 50 MB."""
        size = self.sized(50 * MIB)
        await self.store.memory_files.write(job_id, path=path, data=bytes(size))


async def _delete_session_of_events(bench: Bench) -> Callable[[], Awaitable[object]]:
    session = await bench.session()
    for _ in range(bench.sized(200)):
        await bench.store.events.append_many(
            session, [NewEvent("output", f"line {n} of the output") for n in range(1_000)]
        )
    return lambda: bench.store.sessions.delete(session)


async def _delete_session_of_large_events(bench: Bench) -> Callable[[], Awaitable[object]]:
    session = await bench.session()
    for _ in range(bench.sized(100)):
        await bench.store.events.append(session, "output", "x" * MIB)
    return lambda: bench.store.sessions.delete(session)


async def _delete_session_of_the_rest(bench: Bench) -> Callable[[], Awaitable[object]]:
    session = await bench.session()
    rows = bench.sized(20_000)
    bench.fill(
        "INSERT INTO steps (id, sequence, session_id, name) VALUES (?, ?, ?, 's')", rows, session
    )
    bench.fill(
        "INSERT INTO commands (id, sequence, session_id, argv, working_directory)"
        " VALUES (?, ?, ?, '[\"make\"]', '/w')",
        rows,
        session,
    )
    bench.fill(
        "INSERT INTO debugger_state (id, sequence, session_id, state) VALUES (?, ?, ?, '{}')",
        rows,
        session,
    )
    bench.fill(
        "INSERT INTO artifacts (id, size_bytes, session_id, artifact_type, name, content_path)"
        " VALUES (?, ?, ?, 'log', 'n', '/a')",
        rows,
        session,
    )
    return lambda: bench.store.sessions.delete(session)


async def _delete_job_of_files(bench: Bench) -> Callable[[], Awaitable[object]]:
    job = await bench.job()
    for number in range(bench.sized(9)):
        await bench.store.memory_files.write(job, path=f"{number}", data=bytes(9 * MIB))
    return lambda: bench.store.jobs.delete(job)


async def _delete_job_of_rows(bench: Bench) -> Callable[[], Awaitable[object]]:
    job = await bench.job()
    rows = bench.sized(50_000)
    bench.fill(
        "INSERT INTO cost_entries (id, request_id, job_id, provider, model, tokens_in, tokens_out,"
        " cost_nano_usd) VALUES (?, 'r' || ?, ?, 'p', 'm', 1, 1, 1)",
        rows,
        job,
    )
    bench.fill(
        "INSERT INTO memory_items (id, key, job_id, kind, content)"
        " VALUES (?, 'k' || ?, ?, 'note', '{\"text\": \"a note\"}')",
        rows,
        job,
    )
    bench.fill(
        "INSERT INTO job_steps (id, name, job_id, step_type) VALUES (?, 'n' || ?, ?, 't')",
        rows,
        job,
    )
    return lambda: bench.store.jobs.delete(job)


async def _delete_task(bench: Bench) -> Callable[[], Awaitable[object]]:
    task = await bench.store.tasks.create(title="t", task_type="t")
    executions = bench.store.tool_executions

    async def call() -> None:
        begun = await executions.start(task_id=task.id, tool_name="bash", arguments={"n": 1})
        await executions.complete(begun.id, output={"n": 1})

    for _ in range(bench.sized(200)):
        await asyncio.gather(*(call() for _ in range(200)))
    return lambda: bench.store.tasks.delete(task.id)


async def _delete_workflow(bench: Bench) -> Callable[[], Awaitable[object]]:
    workflow = await bench.store.workflows.create(name="w", definition={})
    rows = bench.sized(50_000)
    bench.fill("INSERT INTO tasks (id, title, task_type) VALUES (?, 't' || ?, 't')", rows)
    with closing(database_file.connect(bench.path)) as connection:
        connection.execute(
            "INSERT INTO workflow_tasks (workflow_id, task_id, sequence)"
            " SELECT ?, id, row_number() OVER (ORDER BY id) FROM tasks",
            (workflow.id,),
        )
    return lambda: bench.store.workflows.delete(workflow.id)


async def _delete_worktree(bench: Bench) -> Callable[[], Awaitable[object]]:
    repository = await bench.store.repositories.create(name="app", remote_url="")
    worktree = await bench.store.worktrees.create(repository_id=repository.id, path="/w")
    bench.fill(
        "INSERT INTO sessions (id, result, session_type, repository_id, worktree_id, status)"
        " VALUES (?, ?, 'debug', ?, ?, 'completed')",
        bench.sized(50_000),
        repository.id,
        worktree.id,
    )
    return lambda: bench.store.worktrees.delete(worktree.id)


async def _write_file(bench: Bench) -> Callable[[], Awaitable[object]]:
    job = await bench.job()
    return lambda: bench.file(job, "f")


async def _replace_file(bench: Bench) -> Callable[[], Awaitable[object]]:
    job = await bench.job()
    await bench.file(job, "f")
    return lambda: bench.store.memory_files.write(job, path="f", data=b"small")


async def _delete_file(bench: Bench) -> Callable[[], Awaitable[object]]:
    job = await bench.job()
    await bench.file(job, "f")
    return lambda: bench.store.memory_files.delete(job, path="f")


async def _abort_upload(bench: Bench) -> Callable[[], Awaitable[object]]:
    job = await bench.job()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(bench.sized(200)):
            yield bytes(MIB // 4)
        raise ConnectionError

    async def abort() -> None:
        with suppress(ConnectionError):
            await bench.store.memory_files.write(job, path="f", data=pieces())

    return abort


async def _close_stale(bench: Bench) -> Callable[[], Awaitable[object]]:
    bench.fill(
        "INSERT INTO client_sessions (id, client_id, connection_type, last_heartbeat, created_at)"
        " VALUES (?, 'c' || ?, 'websocket', ?, ?)",
        bench.sized(100_000),
        "2020-01-01T00:00:00.000Z",
        "2020-01-01T00:00:00.000Z",
    )
    return lambda: bench.store.client_sessions.close_stale(older_than=timedelta(minutes=1))


async def _append_many(bench: Bench) -> Callable[[], Awaitable[object]]:
    session = await bench.session()
    events = [NewEvent("output", f"line {n} of the output") for n in range(bench.sized(100_000))]
    return lambda: bench.store.events.append_many(session, events)


async def _append_as_many_as_allowed(bench: Bench) -> Callable[[], Awaitable[object]]:
    session = await bench.session()
    events = [NewEvent("output", f"line {n} of the output") for n in range(bench.sized(1_000))]
    return lambda: bench.store.events.append_many(session, events)


async def _embed(bench: Bench) -> Callable[[], Awaitable[object]]:
    embeddings = [
        NewEmbedding(f"r{n}", f"text {n}", [1.0] * 768) for n in range(bench.sized(1_000))
    ]
    return lambda: bench.store.embedding_index.upsert_many(scope="s", embeddings=embeddings)


CASES = {
    "sessions.delete, 200,000 events": _delete_session_of_events,
    "sessions.delete, 100 events of 1 MiB": _delete_session_of_large_events,
    "sessions.delete, 80,000 other rows": _delete_session_of_the_rest,
    "jobs.delete, 81 MiB of files": _delete_job_of_files,
    "jobs.delete, 150,000 rows": _delete_job_of_rows,
    "tasks.delete, 40,000 tool executions": _delete_task,
    "workflows.delete, 50,000 tasks": _delete_workflow,
    "worktrees.delete, 50,000 sessions": _delete_worktree,
    "memory_files.write, 50 MiB": _write_file,
    "memory_files.write over 50 MiB": _replace_file,
    "memory_files.delete, 50 MiB": _delete_file,
    "memory_files.write that fails after 50 MiB": _abort_upload,
    "client_sessions.close_stale, 100,000": _close_stale,
    "events.append_many, 100,000": _append_many,
    "events.append_many, 1,000": _append_as_many_as_allowed,
    "embedding_index.upsert_many, 1,000": _embed,
}


async def _measure(
    prepare: Callable[[Bench], Awaitable[Callable[[], Awaitable[object]]]], scale: float
) -> tuple[Holds, float, str]:
    path = database.scratch("holds.db")
    database.create(path)
    async with MetadataStore.open(database.url(path)) as store:
        operation = await prepare(Bench(store, path, scale))
        holds = watch(store)
        began = time.perf_counter()
        refused = ""
        try:
            await operation()
        except InvalidValue as error:
            refused = str(error)
        return holds, time.perf_counter() - began, refused


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--scale", default=1.0, help="Multiplies every size.")
def main(cases: tuple[str, ...], scale: float) -> None:
    """Print the longest hold of the writer for each operation, or those beginning with CASES."""
    click.echo(
        f"{'operation':<44}{'hops':>7}{'processor':>12}{'longest':>13}{'p99':>13}{'whole':>10}"
        f"{'checkpoint':>13}"
    )
    for name, prepare in CASES.items():
        if cases and not name.startswith(cases):
            continue
        holds, whole, refused = asyncio.run(_measure(prepare, scale))
        if refused:
            click.echo(f"{name:<44}  refused: {refused}")
            continue
        hops = sorted(holds.hops)
        p99 = hops[-1 - len(hops) // 100]
        checkpoint = max(holds.checkpoints, default=0)
        columns = (max(holds.processor), hops[-1], p99)
        click.echo(
            f"{name:<44}{len(hops):>7}{columns[0] * 1e3:>9,.1f} ms"
            + "".join(f"{seconds * 1e3:>10,.1f} ms" for seconds in columns[1:])
            + f"{whole:>8,.2f} s{checkpoint * 1e3:>10,.1f} ms"
        )


if __name__ == "__main__":
    main()
