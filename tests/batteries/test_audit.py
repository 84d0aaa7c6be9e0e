"""History edited, cut, padded and shuffled behind the store's back, and history left alone."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from metastore import MetadataStore, NewEvent
from metastore.codec import new_id
from metastore.testing.template import write_template

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COLUMNS = {
    "events": ["position", "id", "session_id", "event_type", "level", "message", "context"],
    "tool_executions": ["id", "task_id", "tool_name", "arguments", "output", "status", "error"],
}
COLUMNS["events"] += ["created_at", "hash"]
COLUMNS["tool_executions"] += ["created_at", "completed_at", "duration_ms", "sequence", "hash"]
COLUMNS["tool_executions"] += ["finished_sequence", "finished_hash"]
INTEGERS = {"position", "duration_ms", "sequence", "finished_sequence"}
KEY = {"events": "position", "tool_executions": "id"}

TAMPERINGS = 8
"""How many copies of one history are tampered with, before another is written."""


async def history(url: str, dice: random.Random) -> None:
    """Write a few sessions and tasks, as a store does."""
    async with MetadataStore.open(url) as store:
        repository = await store.repositories.create(name="app", remote_url="")
        sessions = [
            await store.sessions.create(session_type="debug", repository_id=repository.id)
            for _ in range(3)
        ]
        tasks = [new_id() for _ in range(3)]
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executemany(
                "INSERT INTO tasks (id, title, task_type) VALUES (?, 't', 'tool')",
                [(task,) for task in tasks],
            )
            connection.commit()

        async def call(n: int) -> None:
            begun = await store.tool_executions.start(
                task_id=dice.choice(tasks), tool_name="bash", arguments={"n": n}
            )
            match n % 5:
                case 0:
                    await store.tool_executions.fail(begun.id, error="it broke")
                case 1:
                    await store.tool_executions.time_out(begun.id)
                case 2 | 3:
                    await store.tool_executions.complete(begun.id, output={"n": n})

        await asyncio.gather(
            *(
                store.events.append(
                    dice.choice(sessions).id, "step", f"message {n}", context={"n": n}
                )
                for n in range(12)
            ),
            *(call(n) for n in range(15)),
        )
        await store.events.append_many(sessions[0].id, [NewEvent("a", "b"), NewEvent("c", "d")])
    if dice.random() < 0.3:
        # A purge is no tampering.
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("DELETE FROM sessions WHERE id = ?", (sessions[2].id,))
            connection.execute("DELETE FROM tasks WHERE id = ?", (tasks[2],))
            connection.commit()


class Tamperer:
    """Whoever can write to the file, with the sqlite3 module and the schema at hand."""

    def __init__(self, database: Path, dice: random.Random) -> None:
        self.connection = sqlite3.connect(database, isolation_level=None)
        self.connection.text_factory = bytes
        self.dice = dice

    def run(self) -> str:
        connection = self.connection
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
        ).fetchall()
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("BEGIN")
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name.decode()}")
        table = self.dice.choice(list(COLUMNS))
        kind = self.dice.choice(["edit", "edit", "delete", "insert", "swap"])
        while not getattr(self, kind)(table):
            pass
        for _, sql in triggers:
            connection.execute(sql.decode())
        connection.execute("COMMIT")
        connection.close()
        return kind

    def rows(self, table: str, count: int) -> list[Any]:
        keys = self.connection.execute(f"SELECT {KEY[table]} FROM {table}").fetchall()
        return [key for (key,) in self.dice.sample(keys, count)]

    def where(self, table: str) -> str:
        key = KEY[table]
        return f"{key} = ?" if key in INTEGERS else f"{key} = cast(? AS TEXT)"

    def edit(self, table: str) -> bool:
        """Change one byte of one column of one row."""
        column = self.dice.choice(COLUMNS[table])
        [key] = self.rows(table, 1)
        [(value,)] = self.connection.execute(
            f"SELECT {column} FROM {table} WHERE {self.where(table)}", (key,)
        ).fetchall()
        if value is None or value == b"":
            return False
        if column in INTEGERS:
            changed: Any = value + self.dice.choice([-1, 1, 256])
            new = "?"
        else:
            at = self.dice.randrange(len(value))
            byte = self.dice.choice([b for b in range(1, 256) if b != value[at]])
            changed = value[:at] + bytes([byte]) + value[at + 1 :]
            new = "cast(? AS TEXT)"
        try:
            self.connection.execute(
                f"UPDATE {table} SET {column} = {new} WHERE {self.where(table)}", (changed, key)
            )
        except sqlite3.IntegrityError:
            return False
        return True

    def delete(self, table: str) -> bool:
        [key] = self.rows(table, 1)
        self.connection.execute(f"DELETE FROM {table} WHERE {self.where(table)}", (key,))
        return True

    def insert(self, table: str) -> bool:
        """Copy a row under another key, with or without its hash."""
        [key] = self.rows(table, 1)
        columns = [column for column in COLUMNS[table] if column not in ("id", "position")]
        if self.dice.random() < 0.5:
            columns = [column for column in columns if "hash" not in column]
        listed = ", ".join(columns)
        try:
            self.connection.execute(
                f"INSERT INTO {table} (id, {listed}) "
                f"SELECT ?, {listed} FROM {table} WHERE {self.where(table)}",
                (new_id(), key),
            )
        except sqlite3.IntegrityError:
            return False
        return True

    def swap(self, table: str) -> bool:
        """Exchange what two rows say of one column, or their places."""
        first, second = self.rows(table, 2)
        column = self.dice.choice(COLUMNS[table])
        values = [
            self.connection.execute(
                f"SELECT {column} FROM {table} WHERE {self.where(table)}", (key,)
            ).fetchone()[0]
            for key in (first, second)
        ]
        if values[0] == values[1] or column in ("id", "position"):
            return False
        new = "?" if column in INTEGERS else "cast(? AS TEXT)"
        for key, value in zip((first, second), reversed(values), strict=True):
            self.connection.execute(
                f"UPDATE {table} SET {column} = {new} WHERE {self.where(table)}", (value, key)
            )
        return True


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(40, id="short"),
        pytest.param(500, id="torture", marks=pytest.mark.torture),
    ],
)
def test_audit__finds_every_tampering_and_nothing_else(
    tmp_path: Path, record_property: Callable[[str, object], None], times: int
) -> None:
    kinds: Counter[str] = Counter()
    missed: list[str] = []
    alarms = 0
    original, database = tmp_path / "original.db", tmp_path / "tampered.db"

    async def verify(path: Path) -> list[Any]:
        async with MetadataStore.open(f"sqlite:///{path}") as store:
            return (await store.audit_chains.verify()).findings

    for seed in range(times):
        dice = random.Random(seed)
        if seed % TAMPERINGS == 0:
            original.unlink(missing_ok=True)
            write_template(original)
            asyncio.run(history(f"sqlite:///{original}", dice))
            alarms += bool(asyncio.run(verify(original)))
        shutil.copyfile(original, database)
        kind = Tamperer(database, dice).run()
        kinds[kind] += 1
        if not asyncio.run(verify(database)):
            missed.append(f"{seed} {kind}")
        for leftover in tmp_path.glob("tampered.db*"):
            leftover.unlink()
    assert missed == []
    assert alarms == 0
    record_property(
        "figures",
        f"{times} tamperings {dict(kinds)}: all found; "
        f"{len(range(0, times, TAMPERINGS))} left alone, 0 alarms",
    )
