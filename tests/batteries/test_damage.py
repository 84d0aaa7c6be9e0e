"""Damaged files and rows written by hand: whatever is read, the error is metastore's own.

A store that is filled in every table is damaged in a copy, one way at a time. Then everything is
read: by each operation that reads, by `health`, and by the commands that look for damage.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import re
import sqlite3
from bisect import bisect_left
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from click.testing import CliRunner

from metastore import MetadataStore, MetastoreError, StoreCorrupt
from metastore.cli import main
from metastore.codec import new_id
from metastore.repositories import repository_types
from metastore.testing import Clock, Factories
from metastore.testing.template import write_template
from tests.patience import PATIENCE
from tests.test_hops import operations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

READS = re.compile(
    r"(get|find|list|count|search|latest|progress|summary|discrepancies|totals|budget|read|stream"
    r"|export|value|reveal|dump|verify)(_|$)"
)
"""The verbs of operations that read. `auth_tokens.verify` also notes the use."""

NO_TABLE_OF_ITS_OWN = {
    "audit_changes",
    "audit_checkpoints",
    "audit_entries",
    "audit_heads",
    "fencing_floors",
    "memory_file_chunks",
    "memory_file_uploads",
    "task_turns",
}
"""Tables that the operations of another table's repository read."""


async def fill(store: MetadataStore) -> list[str]:
    """Put two rows with different parents into every table, and return two tokens."""
    make = Factories(store)
    tokens = []
    for number in range(2):
        name = f"filled-{number}"
        issued = await make.token("sessions:read", user_name=name)
        tokens.append(issued.token)
        lease = await make.lease()
        lock = await make.lock()
        project = await store.projects.get(lock.project_id)
        session = await make.session(
            project_path=project.path,
            worktree_id=lease.worktree_id,
            auth_token_id=issued.record.id,
            metadata={"a": [1, "é"]},
        )
        await make.session(repository_id=(await make.repository(metadata={"b": {}})).id)
        step = await make.step(session_id=session.id, input={"x": 1})
        await store.steps.start(step.id)
        command = await make.command(session_id=session.id)
        await make.artifact(command_id=command.id, size_bytes=number, metadata={"c": 1})
        for _ in range(3):
            await make.event(session_id=session.id, context={"n": number})
        await make.checkpoint(session_id=session.id)
        job = await make.job(budget_usd=5, max_requests=9)
        await store.jobs.start(job.id)
        await store.jobs.add_pr_link(job.id, f"https://example.com/pull/{number}")
        job_step = await store.job_steps.create(job_id=job.id, name=name, step_type="t")
        await store.job_steps.start(job_step.id)
        await store.budget_reservations.reserve(
            job.id, request_id="open", amount_usd="0.1", ttl=timedelta(minutes=5)
        )
        await store.cost_entries.record(
            job.id, request_id="r", provider="p", model="m", tokens_in=1, tokens_out=2, cost_usd=1
        )
        await store.memory_items.put(job.id, kind="k", key="a", content={"a": 1}, tags=["t"])
        await store.memory_files.write(job.id, path="small", data=b"x" * 100)
        await store.memory_files.write(job.id, path="large", data=b"y" * 600_000)
        await store.memory_limits.set(job.id, max_items=10)
        by_step: dict[str, Any] = {"job_id": job.id, "step_id": job_step.id}
        await store.message_summaries.create(**by_step, role="user", summary="s", tokens=1)
        await store.context_metrics.create(**by_step, tokens_final=1, details={"d": 1})
        for ref in ("r", "q"):
            await store.embedding_index.upsert(
                scope=name, ref_id=ref, text="t", vector=[1.0, float(number), 2.0]
            )
        workflow = await make.workflow(definition={"d": []})
        for _ in range(2):
            task = await make.task(workspace_path=f"/{name}", config={"c": 1})
            await make.workflow_task(workflow_id=workflow.id, task_id=task.id)
            run = await store.tool_executions.start(
                task_id=task.id, tool_name=name, arguments={"a": 1}
            )
            await store.tool_executions.complete(run.id, output={"o": 1})
        await make.claim()
        await store.client_sessions.open(
            client_id=name, connection_type="http", user_id=name, metadata={"m": 1}
        )
        for value in (number, "text", True, 1.5, {"j": [1]}):
            await store.configurations.set(f"{name}.{type(value).__name__}", value)
        await store.audit_chains.checkpoint()
    return tokens


class Filled(NamedTuple):
    """A filled store, as bytes, and what its rows hold."""

    image: bytes
    tokens: list[str]
    rows: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    path = tmp_path_factory.mktemp("filled") / "metadata.db"
    write_template(path)

    async def make() -> list[str]:
        async with MetadataStore.open(f"sqlite:///{path}", clock=Clock()) as store:
            return await fill(store)

    tokens = asyncio.run(make())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for resource, table in (("worktrees", "repositories"), ("project_locks", "projects")):
            [(resource_id,), *_] = connection.execute(f"SELECT id FROM {table}").fetchall()
            times = ("2026-01-01T00:00:00.000Z", "2999-01-01T00:00:00.000Z")
            connection.execute(
                "INSERT INTO lease_waiters (id, resource, resource_id, owner, created_at,"
                " expires_at) VALUES (?, ?, ?, 'o', ?, ?)",
                (new_id(), resource, resource_id, *times),
            )
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.row_factory = sqlite3.Row
        # As processes leave it that die while they delete something large.
        with connection:
            connection.execute(
                "INSERT INTO deletions (resource, resource_id)"
                " SELECT 'workflows', id FROM workflows"
            )
            # Noted at the next checkpoint.
            connection.execute("INSERT OR IGNORE INTO audit_changes SELECT id FROM tasks")
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
            if not name.startswith(("_", "yoyo"))
        ]
        rows = {
            table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
            for table in tables
        }
    return Filled(path.read_bytes(), tokens, rows)


def reads() -> list[tuple[str, str]]:
    """Return the table and verb of each operation that reads."""
    found = sorted(operations())
    return [(table, verb) for table, verb in (it.split(".") for it in found) if READS.match(verb)]


def arguments(filled: Filled, table: str, verb: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what an operation is called with: for two rows of its table, what they hold."""
    [repository] = [it for it in repository_types() if it.table == table]
    parameters = inspect.signature(getattr(repository, verb)).parameters.values()
    names = [it.name for it in parameters if it.default is it.empty and it.name != "self"]
    for number, row in enumerate((filled.rows[table][0], filled.rows[table][-1])):
        other: dict[str, Any] = {
            "directory": folder / f"export-{number}",
            "table": row.get("resource"),
            "token": filled.tokens[number],
            "vector": [1.0, 2.0, 3.0],
        }
        if verb == "list_by_workflow" and table == "tasks":
            other["workflow_id"] = filled.rows["workflows"][number]["id"]
        yield {
            name: row[name] if name in row else other[name] if name in other else row["id"]
            for name in names
        }


class Reader:
    """Reads all of a store in every way, and counts what comes of it."""

    def __init__(self, filled: Filled) -> None:
        self.filled = filled
        self.errors: Counter[str] = Counter()
        self.raw: list[str] = []
        self.corrupt: list[StoreCorrupt] = []

    def note(self, what: str, error: BaseException) -> None:
        if not isinstance(error, MetastoreError):
            self.raw.append(f"{what}: {type(error).__name__}: {error}")
            return
        self.errors[type(error).__name__] += 1
        if isinstance(error, StoreCorrupt):
            self.corrupt.append(error)

    async def read_all(self, path: Path, folder: Path) -> None:
        """Open the store and call every operation that reads."""
        try:
            async with MetadataStore.open(f"sqlite:///{path}", clock=Clock()) as store:
                await self.call_all(store, folder)
                await self.attempt("health", lambda: store.health(integrity=True, audit=True))
        except Exception as error:
            self.note("open", error)

    async def call_all(self, store: MetadataStore, folder: Path) -> None:
        """Call every operation that reads, all at once: they share their hops."""
        await asyncio.gather(
            *(
                self.attempt(
                    f"{table}.{verb}",
                    partial(_result, partial(getattr(getattr(store, table), verb), **values)),
                )
                for table, verb in reads()
                for values in arguments(self.filled, table, verb, folder)
            )
        )

    async def attempt(self, what: str, work: Callable[[], Any]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await work()
        except Exception as error:
            self.note(what, error)

    async def run_commands(self, path: Path) -> list[str]:
        """Run the commands that look for damage, and return what they print."""
        printed = []
        for command in (["doctor", "--integrity", "--audit"], ["audit", "verify"]):
            result = await asyncio.to_thread(
                CliRunner().invoke, main, [*command, "--db", f"sqlite:///{path}"]
            )
            printed.append(result.output)
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                self.note(" ".join(command), result.exception)
        return printed


def near(places: list[int], place: int) -> list[int]:
    """Return those of `places` that are in the same page as `place`."""
    first = place - place % 4096
    return places[bisect_left(places, first) : bisect_left(places, first + 4096)]


async def _result(operation: Callable[[], Any]) -> Any:
    result = operation()
    if inspect.isasyncgen(result):
        return [item async for item in result]
    return await result


def test_battery__fills_every_table_and_reads_by_every_operation(filled: Filled) -> None:
    assert {table: len(rows) for table, rows in filled.rows.items() if len(rows) < 2} == {
        "lease_limits": 1,
        "memory_file_uploads": 0,
    }
    assert {table for table, _ in reads()} == filled.rows.keys() - NO_TABLE_OF_ITS_OWN


async def test_battery__finds_nothing_in_an_undamaged_store(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(filled.image)
    path.chmod(0o600)
    reader = Reader(filled)
    await reader.read_all(path, tmp_path)
    assert reader.raw == []
    assert reader.corrupt == []
    async with MetadataStore.open(f"sqlite:///{path}", clock=Clock()) as store:
        report = await store.health(integrity=True, audit=True)
    assert (report.damage, report.tampering) == ([], [])


@pytest.mark.parametrize(
    "flips",
    [pytest.param(12, id="short"), pytest.param(400, id="torture", marks=pytest.mark.torture)],
)
async def test_flipped_bits__only_typed_errors_and_no_hang(
    filled: Filled,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    flips: int,
) -> None:
    path = tmp_path / "metadata.db"
    # Not the empty space of pages, nor the bytes of the large files: that says little.
    places = [place for place, byte in enumerate(filled.image) if byte not in b"\0y"]
    totals: Counter[str] = Counter()
    raw: list[str] = []
    for seed in range(flips):
        dice = random.Random(seed)
        image = bytearray(filled.image)
        first = dice.choice(places)
        for place in [first, *dice.choices(near(places, first), k=dice.choice([0, 3, 15]))]:
            image[place] ^= 1 << dice.randrange(8)
        for leftover in tmp_path.glob("metadata.db*"):
            leftover.unlink()
        path.write_bytes(image)
        path.chmod(0o600)
        reader = Reader(filled)
        await reader.read_all(path, tmp_path / f"exported-{seed}")
        printed = await reader.run_commands(path)
        raw += [f"seed {seed}: {line}" for line in reader.raw]
        totals["noticed by a read"] += bool(reader.corrupt)
        totals["noticed by doctor"] += "Nothing is wrong" not in printed[0]
        totals.update({f"met {name}": 1 for name in reader.errors})
    record_property("figures", f"{flips} damaged files: {dict(totals)}")
    assert not raw, "\n".join(raw)
    assert totals["noticed by doctor"] > flips / 4


HOSTILE = {
    "no timestamp": "'2026-99-99T99:99:99.999Z'",
    "no member": "'nonsense'",
    "half a document": "'{\"a\":'",
    "another shape": "'[1, [null]]'",
    "an object": "'{\"a\": 1}'",
    "empty": "''",
    "not UTF-8": "cast(x'41ff42' AS TEXT)",
    "negative": "-1",
    "huge": "9223372036854775807",
    "short blob": "x'00'",
    "vector of NaN": "x'0000c07f0000c07f0000c07f'",
    "other dimensions": "x'0000803f0000803f'",
    "NULL": "NULL",
}
"""What is written by hand, past every CHECK; STRICT tables still refuse other storage classes."""


KEYS = {repository.table: repository.key for repository in repository_types()}


class Tampered(NamedTuple):
    table: str
    column: str
    row: dict[str, Any]
    kind: str


def by_hand(connection: sqlite3.Connection, filled: Filled) -> Iterator[Tampered]:
    """Write each hostile value into each column that takes it, and take it back."""
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("PRAGMA foreign_keys = OFF")
    for (trigger,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for table, rows in sorted(filled.rows.items()):
        keys = [
            name
            for _, name, _, _, _, key in connection.execute(f"PRAGMA table_info({table})")
            if key
        ]
        for row in rows[:1]:
            for column, before in row.items():
                for kind, value in HOSTILE.items():
                    where = " AND ".join(f"{key} = ?" for key in keys)
                    now = " AND ".join(
                        f"{key} = {value}" if key == column else f"{key} = ?" for key in keys
                    )
                    its_keys = [row[key] for key in keys]
                    try:
                        connection.execute(
                            f"UPDATE {table} SET {column} = {value} WHERE {where}", its_keys
                        )
                    except sqlite3.IntegrityError:
                        continue
                    yield Tampered(table, column, row, kind)
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {now}",
                        [before, *(row[key] for key in keys if key != column)],
                    )


@pytest.mark.parametrize(
    "one_in",
    [pytest.param(60, id="short"), pytest.param(1, id="torture", marks=pytest.mark.torture)],
)
async def test_rows_by_hand__are_named_by_reads_and_by_doctor(
    filled: Filled, tmp_path: Path, record_property: Callable[[str, object], None], one_in: int
) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(filled.image)
    path.chmod(0o600)
    totals: Counter[str] = Counter()
    raw: list[str] = []
    unnamed: list[str] = []
    dice = random.Random(1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        async with MetadataStore.open(f"sqlite:///{path}", clock=Clock()) as store:
            for number, tampered in enumerate(by_hand(connection, filled)):
                totals["values"] += 1
                if dice.randrange(one_in):
                    continue
                table, column, row, kind = tampered
                what = f"{table}.{column} is {kind}"
                reader = Reader(filled)
                await reader.call_all(store, tmp_path / f"exported-{number}")
                raw += [f"{what}: {line}" for line in reader.raw]
                totals["read"] += 1
                damaged = [it for it in reader.corrupt if (it.table, it.column) == (table, column)]
                if not damaged:
                    continue
                totals["named by a read"] += 1
                report = await store.health(integrity=True, audit=True)
                lines = [*(report.damage or ()), *map(str, report.tampering or ())]
                # Those that read another table's rows may not know their key.
                if table in NO_TABLE_OF_ITS_OWN or column in KEYS[table]:
                    continue
                key = "/".join(str(row[name]) for name in KEYS[table])
                if not any(it.row_id is not None and it.row_id in key for it in damaged):
                    unnamed.append(f"{what}: no read names the row {key}")
                if not any(key in line and column in line for line in lines):
                    unnamed.append(f"{what}: doctor does not name the row {key}: {lines}")
    record_property("figures", f"by hand: {dict(totals)}")
    assert not raw, "\n".join(raw)
    assert not unnamed, "\n".join(unnamed)
    assert totals["named by a read"] > totals["read"] / 8
