from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidTransition,
    InvalidValue,
    MetadataStore,
    NotFound,
    Task,
    Workflow,
)
from metastore.codec import new_id
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture
async def workflow(store: MetadataStore) -> Workflow:
    return await store.workflows.create(name="w", definition={})


@pytest.fixture
async def tasks(store: MetadataStore) -> list[Task]:
    return [await store.tasks.create(title=f"{n}", task_type="t") for n in range(6)]


async def order(store: MetadataStore, workflow: Workflow) -> str:
    """Return the titles of the workflow's tasks in order, having looked at their places."""
    places = (await store.workflow_tasks.list_by_workflow(workflow.id, limit=1000)).items
    assert [place.sequence for place in places] == list(range(1, len(places) + 1))
    found = (await store.tasks.list_by_workflow(workflow.id, limit=1000)).items
    assert [task.id for task in found] == [place.task_id for place in places]
    return " ".join(task.title for task in found)


async def fill(store: MetadataStore, workflow: Workflow, tasks: list[Task]) -> None:
    for task in tasks:
        await store.workflow_tasks.add(workflow.id, task.id)


async def test_add__appends_or_inserts(
    store: MetadataStore, workflow: Workflow, tasks: list[Task]
) -> None:
    a, b, c, d, e, _ = tasks
    first = await store.workflow_tasks.add(workflow.id, a.id)
    assert (first.workflow_id, first.task_id, first.sequence) == (workflow.id, a.id, 1)
    assert await store.workflow_tasks.get(workflow.id, a.id) == first
    assert (await store.workflow_tasks.add(workflow.id, b.id)).sequence == 2
    assert (await store.workflow_tasks.add(workflow.id, c.id, 1)).sequence == 1
    assert await order(store, workflow) == "2 0 1"
    assert (await store.workflow_tasks.add(workflow.id, d.id, sequence=2)).sequence == 2
    assert (await store.workflow_tasks.add(workflow.id, e.id, sequence=5)).sequence == 5
    assert await order(store, workflow) == "2 3 0 1 4"


@pytest.mark.parametrize("sequence", [None, 1, 3])
async def test_add__refused_changes_nothing(
    store: MetadataStore, workflow: Workflow, tasks: list[Task], sequence: int | None
) -> None:
    await fill(store, workflow, tasks[:3])
    with pytest.raises(AlreadyExists) as twice:
        await store.workflow_tasks.add(workflow.id, tasks[1].id, sequence)
    assert twice.value.columns == ("workflow_id", "task_id")
    with pytest.raises(InvalidReference) as missing:
        await store.workflow_tasks.add(workflow.id, new_id(), sequence)
    assert (missing.value.column, missing.value.references) == ("task_id", "tasks")
    with pytest.raises(NotFound) as nowhere:
        await store.workflow_tasks.add(new_id(), tasks[3].id, sequence)
    assert nowhere.value.table == "workflows"
    archived = await store.workflows.archive(workflow.id)
    with pytest.raises(InvalidTransition) as refused:
        await store.workflow_tasks.add(workflow.id, tasks[3].id, sequence)
    assert (refused.value.table, refused.value.from_state) == ("workflows", "archived")
    assert refused.value.row == archived
    assert await order(store, workflow) == "0 1 2"


@pytest.mark.parametrize("sequence", [0, -1, 5, 1 << 62, 1 << 70, True, 1.0, "1"])
async def test_sequence__that_is_no_place_is_refused(
    store: MetadataStore, workflow: Workflow, tasks: list[Task], sequence: Any
) -> None:
    await fill(store, workflow, tasks[:3])
    with pytest.raises(InvalidValue):
        await store.workflow_tasks.add(workflow.id, tasks[3].id, sequence)
    with pytest.raises(InvalidValue):
        await store.workflow_tasks.move(workflow.id, tasks[0].id, sequence)
    assert await order(store, workflow) == "0 1 2"


async def test_move__every_place_to_every_place(
    store: MetadataStore, workflow: Workflow, tasks: list[Task]
) -> None:
    await fill(store, workflow, tasks)
    other = await store.workflows.create(name="other", definition={})
    await fill(store, other, tasks[::-1])
    expected = [task.title for task in tasks]
    for at in range(1, 7):
        for to in range(1, 7):
            title = expected.pop(at - 1)
            expected.insert(to - 1, title)
            moved = await store.workflow_tasks.move(workflow.id, tasks[int(title)].id, to)
            assert moved.sequence == to
            assert await order(store, workflow) == " ".join(expected), (at, to)
    assert await order(store, other) == "5 4 3 2 1 0"


async def test_move__refusals(store: MetadataStore, workflow: Workflow, tasks: list[Task]) -> None:
    await fill(store, workflow, tasks[:3])
    for arguments in ((workflow.id, tasks[3].id), (workflow.id, new_id()), (new_id(), tasks[0].id)):
        with pytest.raises(NotFound) as missing:
            await store.workflow_tasks.move(*arguments, 1)
        assert missing.value.key == arguments
    with pytest.raises(InvalidValue):
        await store.workflow_tasks.move(workflow.id, tasks[0].id, 4)
    assert await order(store, workflow) == "0 1 2"


async def test_remove__those_behind_move_up(
    store: MetadataStore, workflow: Workflow, tasks: list[Task]
) -> None:
    await fill(store, workflow, tasks)
    await store.workflow_tasks.remove(workflow.id, tasks[2].id)
    assert await order(store, workflow) == "0 1 3 4 5"
    with pytest.raises(NotFound):
        await store.workflow_tasks.remove(workflow.id, tasks[2].id)
    assert (await store.tasks.get(tasks[2].id)).status == "pending"
    # Also those behind a task that is deleted, in each of its workflows.
    other = await store.workflows.create(name="other", definition={})
    await fill(store, other, tasks[::-1])
    await store.tasks.delete(tasks[4].id)
    assert await order(store, workflow) == "0 1 3 5"
    assert await order(store, other) == "5 3 2 1 0"


async def test_list_by_task__is_read_page_by_page(store: MetadataStore, tasks: list[Task]) -> None:
    workflows = [await store.workflows.create(name=f"{n}", definition={}) for n in range(5)]
    for workflow in workflows:
        await fill(store, workflow, tasks[:2])
    page = await store.workflow_tasks.list_by_task(tasks[1].id, limit=3)
    rest = await store.workflow_tasks.list_by_task(tasks[1].id, after=page.next, limit=3)
    found = [*page.items, *rest.items]
    assert [row.workflow_id for row in found] == sorted(w.id for w in workflows)
    assert {row.sequence for row in found} == {2}
    assert rest.next is None


async def test_list_by_workflow__is_read_page_by_page(
    store: MetadataStore, workflow: Workflow, tasks: list[Task]
) -> None:
    await fill(store, workflow, tasks[:5])
    page = await store.workflow_tasks.list_by_workflow(workflow.id, limit=3)
    assert page.next == tasks[2].id
    rest = await store.workflow_tasks.list_by_workflow(workflow.id, after=page.next, limit=3)
    assert [row.task_id for row in [*page.items, *rest.items]] == [t.id for t in tasks[:5]]
    assert rest.next is None


async def read_while(
    store: MetadataStore,
    verb: str,
    workflow_id: str,
    between: Callable[[], Awaitable[object]],
) -> list[str]:
    """Return the ids of the tasks on all pages of two, with `between` called between them."""
    listed = getattr(store, verb).list_by_workflow
    page = await listed(workflow_id, limit=2)
    found = [*page.items]
    while page.next is not None:
        await between()
        page = await listed(workflow_id, after=page.next, limit=2)
        found += page.items
    return [row.task_id if verb == "workflow_tasks" else row.id for row in found]


@pytest.mark.parametrize("verb", ["tasks", "workflow_tasks"])
@pytest.mark.parametrize("seed", range(5))
async def test_list_by_workflow__each_task_that_stays_is_on_one_page_while_others_move(
    store: MetadataStore, workflow: Workflow, verb: str, seed: int
) -> None:
    dice = random.Random(seed)
    tasks = [await store.tasks.create(title=f"{n}", task_type="t") for n in range(12)]
    other = await store.workflows.create(name="other", definition={})
    order = dice.sample(tasks, len(tasks))
    staying, coming = order[:-4], order[-2:]
    await fill(store, other, order)
    await fill(store, workflow, order[:-2])
    leaving = iter(order[-4:-2])
    joining = iter(coming)

    async def rearrange() -> None:
        places = [*range(1, len(staying) + 1)]
        for _ in range(3):
            await store.workflow_tasks.move(
                workflow.id, dice.choice(staying).id, dice.choice(places)
            )
        if (gone := next(leaving, None)) is not None:
            await store.workflow_tasks.remove(workflow.id, gone.id)
        if (new := next(joining, None)) is not None:
            await store.workflow_tasks.add(workflow.id, new.id, dice.choice(places))

    found = Counter(await read_while(store, verb, workflow.id, rearrange))
    assert {task.id: found[task.id] for task in staying} == {task.id: 1 for task in staying}
    assert set(found.values()) == {1}
    assert found.keys() <= {task.id for task in order}


EDITS = 20


async def edit(
    store: MetadataStore,
    workflow_id: str,
    tasks: list[Task],
    seed: int,
    is_enough: Callable[[int], bool] = lambda done: done >= EDITS,
) -> None:
    """Edit the order at random until there was something to do for enough of the edits."""
    dice = random.Random(seed)
    done = 0
    while not is_enough(done):
        task = dice.choice(tasks)
        try:
            match dice.randrange(4):
                case 0:
                    await store.workflow_tasks.add(workflow_id, task.id)
                case 1:
                    await store.workflow_tasks.add(workflow_id, task.id, dice.randint(1, 5))
                case 2:
                    await store.workflow_tasks.move(workflow_id, task.id, dice.randint(1, 5))
                case 3:
                    await store.workflow_tasks.remove(workflow_id, task.id)
        except (AlreadyExists, NotFound, InvalidValue):
            continue
        done += 1


async def test_order__survives_concurrent_tasks(store: MetadataStore, workflow: Workflow) -> None:
    tasks = [await store.tasks.create(title=f"{n}", task_type="t") for n in range(12)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(edit(store, workflow.id, tasks, seed) for seed in range(8)))
    await order(store, workflow)


EDITOR = """
import asyncio, sys
from metastore import MetadataStore
from tests.repositories.test_workflow_tasks import edit

async def main(url, workflow_id, seed):
    told_to_end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))

    def is_enough(done):
        print(done, flush=True)
        return told_to_end.done()

    async with MetadataStore.open(url) as store:
        tasks = (await store.tasks.list_recent(limit=100)).items
        await edit(store, workflow_id, tasks, seed, is_enough)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_order__survives_concurrent_processes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    async with MetadataStore.open(url, migrate=True) as store:
        workflow = await store.workflows.create(name="w", definition={})
        for n in range(12):
            await store.tasks.create(title=f"{n}", task_type="t")
        processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", EDITOR, url, workflow.id, str(seed)),
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for seed in range(4)
        ]
        done = []
        # While they edit, the order is whole at every moment.
        looking = asyncio.create_task(_look(store, workflow))
        async with asyncio.timeout(PATIENCE):
            # None ends before each has made so many: all edit at once.
            for process in processes:
                await _has_edited(process)
            for process in processes:
                output, errors = await process.communicate(b"end")
                assert process.returncode == 0, errors.decode()
                done.append(int(output.split()[-1]))
        looking.cancel()
        [looked] = await asyncio.gather(looking, return_exceptions=True)
        assert isinstance(looked, asyncio.CancelledError), looked
        await order(store, workflow)
    record_property("figures", f"{done} edits in four processes")


async def _has_edited(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    while line := await process.stdout.readline():
        if int(line) >= EDITS:
            return
    raise AssertionError((await process.stderr.read()).decode())


async def _look(store: MetadataStore, workflow: Workflow) -> None:
    while True:
        places = (await store.workflow_tasks.list_by_workflow(workflow.id)).items
        assert [place.sequence for place in places] == list(range(1, len(places) + 1))
        await asyncio.sleep(0.002)
