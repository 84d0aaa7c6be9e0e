"""What the chains cost: events appended by 64 tasks with and without them, in turns.

Run as `python -m benchmarks.audit [--rounds N] [FOLDER]` on a quiet machine. It prints the
median of the rounds' ratios: the two stores of a round share the machine's mood.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from metastore import MetadataStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastore.statements import Statement

TASKS = 64
EVENTS = 100
"""Events that each task appends in a round."""

UNCHAINED = """
INSERT INTO events (id, session_id, event_type, level, message, context, created_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
"""


async def _sessions(store: MetadataStore) -> list[str]:
    repository = await store.repositories.create(name="app", remote_url="")
    sessions = [
        await store.sessions.create(session_type="debug", repository_id=repository.id)
        for _ in range(TASKS)
    ]
    return [session.id for session in sessions]


async def _append(store: MetadataStore, sessions: list[str]) -> tuple[float, float]:
    """Append, each task to a session of its own; return the seconds of wall clock and of CPU."""

    async def task(session_id: str) -> None:
        for n in range(EVENTS):
            await store.events.append(
                session_id, "step", "what an agent says of a step", context={"step": n}
            )

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(task, sessions))
    return time.perf_counter() - began, time.process_time() - cpu


@contextlib.contextmanager
def _without_chain(statement: Statement) -> Iterator[None]:
    """Let the store append without a hash, which the trigger then leaves alone."""
    chained = statement.sql
    statement.sql = UNCHAINED
    try:
        yield
    finally:
        statement.sql = chained


async def measure(folder: Path, rounds: int) -> None:
    """Print the figures."""
    stores = []
    async with contextlib.AsyncExitStack() as stack:
        for name in ("plain", "chained"):
            url = f"sqlite:///{folder}/{name}.db"
            store = await stack.enter_async_context(MetadataStore.open(url, migrate=True))
            stores.append((store, await _sessions(store)))
        (plain, plain_sessions), (chained, chained_sessions) = stores
        statement = cast("Statement", plain.events._sql.append_event)  # noqa: SLF001 - measured
        ratios: list[tuple[float, float]] = []
        rates: list[tuple[float, float]] = []
        for turn in range(rounds + 1):
            with _without_chain(statement):
                without = await _append(plain, plain_sessions)
            with_ = await _append(chained, chained_sessions)
            if turn:  # the first warms up
                ratios.append((with_[0] / without[0] - 1, with_[1] / without[1] - 1))
                rates.append((TASKS * EVENTS / without[0], TASKS * EVENTS / with_[0]))
        report = await chained.audit_chains.verify()
    wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
    before, after = (statistics.median(each) for each in zip(*rates, strict=True))
    sys.stdout.write(
        f"SQLite {sqlite3.sqlite_version}, {TASKS} tasks, {rounds} rounds, durability full\n"
        f"appends/s without {before:,.0f}, with the chain {after:,.0f}\n"
        f"cost: {wall:+.1%} of the time, {cpu:+.1%} of the CPU (medians of the rounds)\n"
        f"verified: {report.rows} rows, {len(report.findings)} faults\n"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where the databases are made")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        asyncio.run(measure(Path(folder), arguments.rounds))


if __name__ == "__main__":
    main()
