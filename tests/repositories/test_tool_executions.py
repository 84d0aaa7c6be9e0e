from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    MetadataStore,
    ToolExecution,
    ToolExecutionStatus,
)
from metastore.codec import new_id
from tests.repositories.states import check_pair

if TYPE_CHECKING:
    from metastore.testing import Clock

VERBS: dict[str, Any] = {
    "complete": lambda table, key: table.complete(key, output=1),
    "fail": lambda table, key: table.fail(key, error="it broke"),
    "time_out": lambda table, key: table.time_out(key),
}
ENDS = {"complete": "completed", "fail": "failed", "time_out": "timeout"}


def by_hand(url: str, *statements: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        rows: list[Any] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        connection.commit()
        return rows


@pytest.fixture
def task(store_url: str) -> str:
    task = new_id()
    by_hand(store_url, f"INSERT INTO tasks (id, title, task_type) VALUES ('{task}', 't', 'tool')")
    return task


async def test_start__returns_what_get_returns(file_store: MetadataStore, task: str) -> None:
    row = await file_store.tool_executions.start(
        task_id=task, tool_name="bash", arguments={"argv": ["ls", "ä"]}
    )
    assert (row.status, row.arguments) == (ToolExecutionStatus.RUNNING, {"argv": ["ls", "ä"]})
    assert (row.output, row.error, row.completed_at, row.duration_ms) == (None,) * 4
    assert await file_store.tool_executions.get(row.id) == row
    with pytest.raises(AlreadyExists):
        await file_store.tool_executions.start(task_id=task, tool_name="bash", id=row.id)
    with pytest.raises(InvalidReference) as missing:
        await file_store.tool_executions.start(task_id=new_id(), tool_name="bash")
    assert (missing.value.column, missing.value.references) == ("task_id", "tasks")
    refused: list[dict[str, Any]] = [
        {"tool_name": ""},
        {"tool_name": "x" * 256},
        {"arguments": []},
        {"id": "1"},
    ]
    for values in refused:
        with pytest.raises(InvalidValue):
            await file_store.tool_executions.start(
                **({"task_id": task, "tool_name": "bash"} | values)
            )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", ["running", *ENDS])
async def test_verbs__end_a_call_once(
    file_store: MetadataStore, task: str, state: str, verb: str
) -> None:
    table = file_store.tool_executions
    begun = await table.start(task_id=task, tool_name="bash")
    if state in VERBS:
        await VERBS[state](table, begun.id)
    row = await table.get(begun.id)
    becomes = ENDS[verb] if state == "running" else None
    await check_pair(table, VERBS, row, verb, becomes, ENDS[verb])


@pytest.mark.parametrize("span", [0, 1, 999, 61_234, 86_400_000 * 40 + 7])
async def test_duration__is_the_time_between(
    file_store: MetadataStore, task: str, clock: Clock, span: int
) -> None:
    begun = await file_store.tool_executions.start(task_id=task, tool_name="bash")
    clock.advance(timedelta(milliseconds=span))
    ended = await file_store.tool_executions.complete(begun.id, output={"n": [1]})
    assert ended.completed_at is not None
    passed = (ended.completed_at - begun.created_at) // timedelta(milliseconds=1)
    assert passed >= span
    assert ended.duration_ms == passed
    assert ended.output == {"n": [1]}


async def test_duration__is_never_negative(
    file_store: MetadataStore, task: str, clock: Clock
) -> None:
    begun = await file_store.tool_executions.start(task_id=task, tool_name="bash")
    clock.advance(-timedelta(hours=1))
    ended = await file_store.tool_executions.fail(begun.id, error="no")
    assert (ended.duration_ms, ended.error) == (0, "no")


async def test_lists__page_in_order(file_store: MetadataStore, task: str) -> None:
    table = file_store.tool_executions
    rows = [await table.start(task_id=task, tool_name=f"tool {n % 2}") for n in range(5)]
    rows[4] = await table.complete(rows[4].id)
    lists: list[tuple[Any, list[ToolExecution]]] = [
        (lambda **page: table.list_by_task(task, **page), rows),
        (lambda **page: table.list_by_tool("tool 0", **page), rows[::2]),
        (lambda **page: table.list_by_status("running", **page), rows[:4]),
    ]
    for walk, expected in lists:
        found: list[ToolExecution] = []
        after = None
        while True:
            page = await walk(after=after, limit=2)
            found += page.items
            after = page.next
            if after is None:
                break
        assert found == expected


async def test_history__is_not_changed_by_hand_and_goes_with_its_task(
    file_store: MetadataStore, store_url: str, task: str
) -> None:
    running = await file_store.tool_executions.start(task_id=task, tool_name="bash")
    ended = await file_store.tool_executions.start(task_id=task, tool_name="bash")
    await file_store.tool_executions.complete(ended.id)
    for statement in (
        f"UPDATE tool_executions SET output = '1' WHERE id = '{ended.id}'",
        f"UPDATE tool_executions SET status = 'running' WHERE id = '{ended.id}'",
        f"UPDATE tool_executions SET tool_name = 'x' WHERE id = '{running.id}'",
        f"UPDATE tool_executions SET arguments = '{{}} ' WHERE id = '{running.id}'",
        f"DELETE FROM tool_executions WHERE id = '{ended.id}'",
        f"DELETE FROM tool_executions WHERE id = '{running.id}'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="history"):
            by_hand(store_url, statement)
    by_hand(store_url, f"DELETE FROM tasks WHERE id = '{task}'")
    assert (await file_store.tool_executions.list_by_task(task)).items == []
