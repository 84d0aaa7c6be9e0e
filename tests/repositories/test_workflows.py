from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidValue,
    MetadataStore,
    NotFound,
    TaskStatus,
    Workflow,
    WorkflowProgress,
)
from metastore.codec import new_id
from tests.repositories.states import check_pair, reach

if TYPE_CHECKING:
    from tests.conftest import Clock

VERBS: dict[str, Any] = {
    "activate": lambda table, id_: table.activate(id_),
    "pause": lambda table, id_: table.pause(id_),
    "archive": lambda table, id_: table.archive(id_),
}
WANTED = {"activate": "active", "pause": "paused", "archive": "archived"}
PATHS: dict[str, tuple[str, ...]] = {
    "draft": (),
    "active": ("activate",),
    "paused": ("activate", "pause"),
    "archived": ("archive",),
}
ALLOWED = {
    ("draft", "activate"), ("draft", "archive"),
    ("active", "pause"), ("active", "archive"),
    ("paused", "activate"), ("paused", "archive"),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", PATHS)
async def test_status__every_state_and_verb(store: MetadataStore, state: str, verb: str) -> None:
    workflow = await store.workflows.create(name="release", definition={})
    row = await reach(store.workflows, VERBS, PATHS[state], workflow.id)
    becomes = WANTED[verb] if (state, verb) in ALLOWED else None
    moved = await check_pair(store.workflows, VERBS, row, verb, becomes, WANTED[verb])
    if becomes is not None:
        assert moved.updated_at > row.updated_at


async def test_create__what_comes_back_is_what_was_given(store: MetadataStore) -> None:
    id_ = new_id()
    workflow = await store.workflows.create(
        id=id_, name="release", definition={"steps": ["build", 2]}, description="all of it"
    )
    assert await store.workflows.get(id_) == workflow
    assert (workflow.name, workflow.status) == ("release", "draft")
    assert (workflow.definition, workflow.description) == ({"steps": ["build", 2]}, "all of it")
    with pytest.raises(AlreadyExists):
        await store.workflows.create(id=id_, name="again", definition={})
    refused: list[dict[str, Any]] = [
        {"name": ""}, {"name": "x" * 256}, {"definition": None}, {"definition": []}, {"id": "x"},
    ]  # fmt: skip
    for values in refused:
        with pytest.raises(InvalidValue):
            await store.workflows.create(**{"name": "n", "definition": {}} | values)
    with pytest.raises(NotFound):
        await store.workflows.get(new_id())
    assert (await store.workflows.list()).items == [workflow]


async def test_find_by_name__finds_the_newest(store: MetadataStore) -> None:
    assert await store.workflows.find_by_name("release") is None
    old = await store.workflows.create(name="release", definition={"version": 1})
    new = await store.workflows.create(name="release", definition={"version": 2})
    await store.workflows.create(name="other", definition={})
    assert await store.workflows.find_by_name("release") == new
    assert (await store.workflows.list_by_name("release")).items == [new, old]


@pytest.mark.parametrize("verb", ["all", "status", "name"])
async def test_lists__are_read_page_by_page_newest_first(
    store: MetadataStore, clock: Clock, verb: str
) -> None:
    clock.tick = timedelta(0)
    made = []
    for n in range(7):
        clock.advance(timedelta(milliseconds=n % 2))
        made.append(await store.workflows.create(name="a", definition={"n": n}))
    if verb != "all":
        other = await store.workflows.create(name="b", definition={})
        await store.workflows.archive(other.id)
    pages: dict[str, Any] = {
        "all": lambda **at: store.workflows.list(**at),
        "status": lambda **at: store.workflows.list_by_status("draft", **at),
        "name": lambda **at: store.workflows.list_by_name("a", **at),
    }
    found: list[Workflow] = []
    after = None
    while True:
        page = await pages[verb](after=after, limit=3)
        found += page.items
        if (after := page.next) is None:
            break
    assert found == made[::-1]


async def test_progress__counts_the_tasks_in_each_status(store: MetadataStore) -> None:
    workflow = await store.workflows.create(name="release", definition={})
    none = dict.fromkeys(TaskStatus, 0)
    assert await store.workflows.progress(workflow.id) == WorkflowProgress(0, 0, None, none)
    with pytest.raises(NotFound):
        await store.workflows.progress(new_id())

    tasks = [await store.tasks.create(title=f"{n}", task_type="t") for n in range(8)]
    other = await store.workflows.create(name="other", definition={})
    for task in tasks:
        await store.workflow_tasks.add(workflow.id, task.id)
    await store.workflow_tasks.add(other.id, tasks[0].id)
    for task in tasks[:4]:
        await store.tasks.start(task.id)
    for task in tasks[:2]:
        await store.tasks.complete(task.id)
    await store.tasks.fail(tasks[2].id, error="no")
    await store.tasks.cancel(tasks[4].id)
    progress = await store.workflows.progress(workflow.id)
    assert (progress.done, progress.total, progress.fraction) == (2, 8, 0.25)
    assert progress.by_status == {
        "pending": 3, "running": 1, "completed": 2, "failed": 1, "cancelled": 1,
    }  # fmt: skip
    assert (await store.workflows.progress(other.id)).fraction == 1.0


async def test_delete__leaves_the_tasks(store: MetadataStore) -> None:
    workflow = await store.workflows.create(name="release", definition={})
    task = await store.tasks.create(title="t", task_type="t")
    await store.workflow_tasks.add(workflow.id, task.id)
    await store.workflows.delete(workflow.id)
    assert await store.tasks.get(task.id) == task
    assert (await store.workflow_tasks.list_by_task(task.id)).items == []
    with pytest.raises(NotFound):
        await store.workflows.delete(workflow.id)
