from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidReference,
    InvalidValue,
    MetadataStore,
    NotFound,
    Session,
)
from metastore.codec import new_id
from tests.repositories.states import check_pair, reach

VERBS: dict[str, Any] = {
    "start": lambda table, id_: table.start(id_),
    "complete": lambda table, id_: table.complete(id_, output=[1, None, "x"]),
    "fail": lambda table, id_: table.fail(id_, error_message="it broke"),
    "skip": lambda table, id_: table.skip(id_),
}
WANTED = {"start": "running", "complete": "completed", "fail": "failed", "skip": "skipped"}
PATHS: dict[str, tuple[str, ...]] = {
    "pending": (),
    "running": ("start",),
    "completed": ("start", "complete"),
    "failed": ("start", "fail"),
    "skipped": ("skip",),
}
ALLOWED = {
    ("pending", "start"), ("pending", "fail"), ("pending", "skip"),
    ("running", "complete"), ("running", "fail"),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", PATHS)
async def test_status__every_state_and_verb(
    store: MetadataStore, session: Session, state: str, verb: str
) -> None:
    step = await store.steps.create(session_id=session.id, name="analyse")
    row = await reach(store.steps, VERBS, PATHS[state], step.id)
    becomes = WANTED[verb] if (state, verb) in ALLOWED else None
    moved = await check_pair(store.steps, VERBS, row, verb, becomes, WANTED[verb])
    if becomes:
        assert moved.output == ([1, None, "x"] if verb == "complete" else None)
        assert moved.error_message == ("it broke" if verb == "fail" else None)
    match becomes:
        case "running":
            assert moved.started_at is not None
            assert moved.completed_at is None
        case "completed":
            assert moved.started_at is not None
            assert moved.completed_at > moved.started_at
        case "skipped":
            assert moved.started_at is None
            assert moved.completed_at is not None
        case "failed":
            assert moved.completed_at is not None


async def test_create__is_numbered_within_its_session(
    store: MetadataStore, session: Session
) -> None:
    first = await store.steps.create(session_id=session.id, name="a", input={"x": 1})
    assert (first.sequence, first.input, first.output) == (1, {"x": 1}, None)
    far = await store.steps.create(session_id=session.id, name="b", sequence=10)
    behind = await store.steps.create(session_id=session.id, name="c")
    assert (far.sequence, behind.sequence) == (10, 11)
    page = await store.steps.list_by_session(session.id, limit=2)
    assert page.items == [first, far]
    rest = await store.steps.list_by_session(session.id, after=page.next, limit=2)
    assert (rest.items, rest.next) == ([behind], None)


async def test_create__racers_get_a_number_each(store: MetadataStore, session: Session) -> None:
    made = await asyncio.gather(
        *(store.steps.create(session_id=session.id, name=str(n)) for n in range(40))
    )
    assert sorted(step.sequence for step in made) == list(range(1, 41))


async def test_create__refusals(store: MetadataStore, session: Session) -> None:
    await store.steps.create(session_id=session.id, name="a", sequence=5)
    with pytest.raises(AlreadyExists) as taken:
        await store.steps.create(session_id=session.id, name="b", sequence=5)
    assert taken.value.columns == ("session_id", "sequence")
    with pytest.raises(InvalidReference):
        await store.steps.create(session_id=new_id(), name="a")
    for name in ("", "x" * 101, None):
        with pytest.raises(InvalidValue):
            await store.steps.create(session_id=session.id, name=name)  # type: ignore[arg-type]
    # Beyond the largest, the next place would not fit into the column.
    for sequence in (1 << 31, 1.0, True):
        with pytest.raises(InvalidValue) as refused:
            await store.steps.create(session_id=session.id, name="a", sequence=sequence)  # type: ignore[arg-type]
        assert refused.value.column == "sequence"
    assert len((await store.steps.list_by_session(session.id)).items) == 1


async def test_create__goes_on_behind_the_largest_place(
    store: MetadataStore, session: Session
) -> None:
    largest = (1 << 31) - 1
    await store.steps.create(session_id=session.id, name="a", sequence=largest)
    behind = await store.steps.create(session_id=session.id, name="b")
    assert behind.sequence == largest + 1
    assert await store.steps.get(behind.id) == behind


async def test_create__repeated_under_its_id_is_refused(
    store: MetadataStore, session: Session
) -> None:
    step = await store.steps.create(session_id=session.id, name="a", id=new_id())
    with pytest.raises(AlreadyExists) as taken:
        await store.steps.create(session_id=session.id, name="b", id=step.id)
    assert (taken.value.table, taken.value.columns) == ("steps", ("id",))
    assert (await store.steps.list_by_session(session.id)).items == [step]


async def test_complete__refuses_an_output_that_is_no_json(
    store: MetadataStore, session: Session
) -> None:
    step = await store.steps.create(session_id=session.id, name="a")
    started = await store.steps.start(step.id)
    with pytest.raises(InvalidValue) as refused:
        await store.steps.complete(step.id, output=math.inf)
    assert refused.value.column == "output"
    assert await store.steps.get(step.id) == started


async def test_get__of_nothing(store: MetadataStore) -> None:
    with pytest.raises(NotFound) as missing:
        await store.steps.get(new_id())
    assert missing.value.table == "steps"
