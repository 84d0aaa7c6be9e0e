"""How long a heavy operation holds up everybody else.

Run as `python -m benchmarks.heavy [--scale FACTOR] [FOLDER]`. It fills a database with 300,000
cost entries, a session of 200,000 events, 100,000 vectors, a job of 50,000 steps and one of
100,000 reservations, a file of 50 MB and 5,000 secrets. While each heavy operation runs, a task
ticks every millisecond and another gets rows by id, one after the other. It prints how long the
operation took, the longest that the event loop was held, and the longest that a get took.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sqlite3
import sys
import tempfile
import time
from array import array
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from metastore import MetadataStore, NewEvent, secrets
from metastore.codec import new_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Operation = Callable[[], Awaitable[object]]

DIMENSIONS = 384
JOBS = 20_000


async def _fill(url: str, path: Path, scale: float) -> dict[str, str]:
    """Fill the database and return the ids that the operations need."""
    source = random.Random(7)  # noqa: S311 - data to read, no secret
    async with MetadataStore.open(url, migrate=True) as store:
        repository = await store.repositories.create(name="app", remote_url="")
        session = await store.sessions.create(session_type="debug", repository_id=repository.id)
        for _ in range(int(200 * scale)):
            await store.events.append_many(
                session.id,
                [NewEvent("step", f"message {n}", context={"n": n}) for n in range(1000)],
            )
        for start in range(0, int(5_000 * scale), 100):
            await asyncio.gather(
                *(
                    store.configurations.set(f"secret-{n}", "s" * 50, is_secret=True)
                    for n in range(start, start + 100)
                )
            )
    soon = f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%S.000Z}"
    jobs = [new_id() for _ in range(int(JOBS * scale))]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO jobs (id, task, repo_owner, repo_name, branch_base)"
            " VALUES (?, 't', 'o', 'r', 'main')",
            [(job,) for job in jobs],
        )
        connection.executemany(
            "INSERT INTO cost_entries (id, job_id, request_id, provider, model, tokens_in,"
            " tokens_out, cost_nano_usd, created_at) VALUES (?, ?, ?, ?, ?, 10, 20, ?, ?)",
            (
                (
                    new_id(),
                    source.choice(jobs),
                    f"r{n}",
                    f"p{n % 3}",
                    f"m{n % 4}",
                    source.randrange(10**9),
                    f"2026-01-{n % 28 + 1:02}T00:00:00.000Z",
                )
                for n in range(int(300_000 * scale))
            ),
        )
        connection.executemany(
            "INSERT INTO job_steps (id, job_id, name, step_type, status)"
            " VALUES (?, ?, 'n', 't', 'completed')",
            ((new_id(), jobs[0]) for _ in range(int(50_000 * scale))),
        )
        connection.executemany(
            "INSERT INTO budget_reservations (id, job_id, request_id, amount_nano_usd, expires_at)"
            " VALUES (?, ?, ?, 1, ?)",
            ((new_id(), jobs[0], f"r{n}", soon) for n in range(int(100_000 * scale))),
        )
        numbers = array("f", (source.gauss(0, 1) for _ in range(200_000)))
        connection.executemany(
            "INSERT INTO embedding_index (id, scope, ref_id, text, vector, dimensions)"
            f" VALUES (?, 's', ?, 't', ?, {DIMENSIONS})",
            (
                (new_id(), f"{n:07}", numbers[at : at + DIMENSIONS].tobytes())
                for n in range(int(100_000 * scale))
                for at in [n * 37 % (len(numbers) - DIMENSIONS)]
            ),
        )
        connection.executemany(
            "INSERT INTO memory_items (id, job_id, kind, key, content, tags)"
            " VALUES (?, ?, 'k', ?, '{}', ?)",
            (
                (new_id(), jobs[0], f"{n}", '["rare"]' if n % 10_000 == 0 else '["common"]')
                for n in range(int(50_000 * scale))
            ),
        )
        connection.execute("COMMIT")
    async with MetadataStore.open(url) as store:
        await store.memory_limits.set(jobs[1], max_file_bytes=1 << 30, max_job_file_bytes=1 << 30)
        await store.memory_files.write(jobs[1], path="f", data=os.urandom(int(50_000_000 * scale)))
    return {"session": session.id, "job": jobs[0], "files": jobs[1]}


def _operations(store: MetadataStore, ids: dict[str, str]) -> dict[str, Operation]:
    vector = [1.0] * DIMENSIONS

    async def nothing() -> None:
        await asyncio.sleep(1)

    async def list_events() -> None:
        after = 0
        for _ in range(20):
            page = await store.events.list_by_session(ids["session"], after=after, limit=1000)
            after = page.next or 0

    async def rotate_keys() -> None:
        keys = f"{secrets.generate_key()},{os.environ[secrets.KEYS_VARIABLE]}"
        os.environ[secrets.KEYS_VARIABLE] = keys
        await store.configurations.rotate_keys()

    costs = store.cost_entries
    return {
        "nothing, for comparison": nothing,
        "summary()": costs.summary,
        "summary(by='job')": lambda: costs.summary(by="job"),
        "summary(by='day')": lambda: costs.summary(by="day"),
        "summary(by=all four)": lambda: costs.summary(by=("provider", "model", "job", "day")),
        "discrepancies()": costs.discrepancies,
        "audit_chains.verify()": store.audit_chains.verify,
        "audit_chains.checkpoint()": store.audit_chains.checkpoint,
        "health(integrity=True)": lambda: store.health(integrity=True),
        "embedding_index.search": lambda: store.embedding_index.search(scope="s", vector=vector),
        "memory_files.read": lambda: store.memory_files.read(ids["files"], path="f"),
        "memory_items.search": lambda: store.memory_items.search(ids["job"], tags=["rare"]),
        "jobs.progress": lambda: store.jobs.progress(ids["job"]),
        "budget_reservations.budget": lambda: store.budget_reservations.budget(ids["job"]),
        "configurations.rotate_keys": rotate_keys,
        "configurations.dump": store.configurations.dump,
        "20 pages of 1,000 events": list_events,
    }


async def _beside(operation: Operation, get: Operation) -> tuple[float, float, float, int]:
    """Return how long it took, the longest hold of the loop, the longest get, and the gets."""
    done = False
    held = longest = 0.0
    gets = 0

    async def tick() -> None:
        nonlocal held
        while not done:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            held = max(held, time.perf_counter() - began - 0.001)

    async def ask() -> None:
        nonlocal longest, gets
        while not done:
            began = time.perf_counter()
            await get()
            longest = max(longest, time.perf_counter() - began)
            gets += 1
            await asyncio.sleep(0.002)

    tasks = [asyncio.ensure_future(tick()), asyncio.ensure_future(ask())]
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    result = await operation()
    took = time.perf_counter() - began
    # Whoever was held up learns of it now.
    await asyncio.sleep(0.01)
    done = True
    await asyncio.gather(*tasks)
    # Freed here: a result of 300,000 rows is the caller's own, and takes a while to free.
    del result
    return took, held, longest, gets


async def measure(folder: Path, scale: float, only: str) -> None:
    """Print the figures."""
    path = folder / "heavy.db"
    url = f"sqlite:///{path}"
    ids = await _fill(url, path, scale)
    sys.stdout.write(f"SQLite {sqlite3.sqlite_version}, Python {sys.version.split()[0]}\n")
    sys.stdout.write(f"{'':28}{'took':>10}{'loop held':>12}{'longest get':>13}{'gets':>8}\n")
    async with MetadataStore.open(url) as store:
        for name, operation in _operations(store, ids).items():
            if only in name:
                took, held, longest, gets = await _beside(
                    operation, lambda: store.sessions.get(ids["session"])
                )
                sys.stdout.write(
                    f"{name:28}{took * 1e3:7,.0f} ms{held * 1e3:9,.1f} ms"
                    f"{longest * 1e3:10,.1f} ms{gets:8,}\n"
                )
                sys.stdout.flush()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where the database is made")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument("--only", default="", help="operations whose name holds this")
    arguments = parser.parse_args()
    os.environ[secrets.KEYS_VARIABLE] = secrets.generate_key()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        asyncio.run(measure(Path(folder), arguments.scale, arguments.only))


if __name__ == "__main__":
    main()
