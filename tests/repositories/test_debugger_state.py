from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from metastore import (
    AlreadyExists,
    InvalidTransition,
    InvalidValue,
    MetadataStore,
    NotFound,
    Session,
)
from metastore.codec import new_id


async def test_checkpoint__any_json_in_order(store: MetadataStore, session: Session) -> None:
    states: list[Any] = [{"line": 3}, [1, 2], "text", 1.5, True, None, {}]
    taken = [
        await store.debugger_state.checkpoint(session.id, state, label=f"at {n}")
        for n, state in enumerate(states)
    ]
    assert [row.state for row in taken] == states
    assert [row.sequence for row in taken] == list(range(1, 8))
    assert await store.debugger_state.latest(session.id) == taken[-1]
    assert await store.debugger_state.get(taken[0].id) == taken[0]
    page = await store.debugger_state.list_by_session(session.id, limit=4)
    rest = await store.debugger_state.list_by_session(session.id, after=page.next or 0, limit=4)
    assert page.items + rest.items == taken


@pytest.mark.parametrize(
    ("verbs", "status", "active"),
    [
        ((), "pending", True),
        (("start",), "in_progress", True),
        (("start", "pause"), "paused", True),
        (("start", "complete"), "completed", False),
        (("fail",), "failed", False),
        (("cancel",), "cancelled", False),
    ],
)
async def test_checkpoint__only_of_an_active_session(
    store: MetadataStore, session: Session, verbs: tuple[str, ...], status: str, active: bool
) -> None:
    for verb in verbs:
        reason = {"error_message": "it broke"} if verb == "fail" else {}
        await getattr(store.sessions, verb)(session.id, **reason)
    if active:
        taken = await store.debugger_state.checkpoint(session.id, {"line": 3})
        assert (taken.session_id, taken.sequence, taken.label) == (session.id, 1, None)
        assert await store.debugger_state.latest(session.id) == taken
        return
    with pytest.raises(InvalidTransition) as refused:
        await store.debugger_state.checkpoint(session.id, {})
    assert (refused.value.table, refused.value.from_state) == ("sessions", status)
    assert refused.value.to_state == "checkpoint"
    assert refused.value.row == await store.sessions.get(session.id)
    assert (await store.debugger_state.list_by_session(session.id)).items == []


async def test_latest__of_a_session_without_any(store: MetadataStore, session: Session) -> None:
    assert await store.debugger_state.find_latest(session.id) is None
    with pytest.raises(NotFound) as missing:
        await store.debugger_state.latest(session.id)
    assert (missing.value.table, missing.value.key) == ("debugger_state", session.id)
    taken = await store.debugger_state.checkpoint(session.id, {})
    assert await store.debugger_state.find_latest(session.id) == taken


async def test_checkpoint__racers_get_a_number_each(store: MetadataStore, session: Session) -> None:
    taken = await asyncio.gather(
        *(store.debugger_state.checkpoint(session.id, n) for n in range(40))
    )
    assert sorted(row.sequence for row in taken) == list(range(1, 41))


async def test_checkpoint__repeated_under_its_id_is_refused(
    store: MetadataStore, session: Session
) -> None:
    taken = await store.debugger_state.checkpoint(session.id, 1, id=new_id())
    with pytest.raises(AlreadyExists) as exists:
        await store.debugger_state.checkpoint(session.id, 2, id=taken.id)
    assert (exists.value.table, exists.value.columns) == ("debugger_state", ("id",))
    assert await store.debugger_state.latest(session.id) == taken


async def test_get__of_nothing(store: MetadataStore) -> None:
    with pytest.raises(NotFound) as missing:
        await store.debugger_state.get(new_id())
    assert missing.value.table == "debugger_state"


async def test_checkpoint__refusals(store: MetadataStore, session: Session) -> None:
    with pytest.raises(NotFound) as missing:
        await store.debugger_state.checkpoint(new_id(), {})
    assert missing.value.table == "sessions"
    for state in (math.inf, {"x": object()}, (1,)):
        with pytest.raises(InvalidValue):
            await store.debugger_state.checkpoint(session.id, state)
    with pytest.raises(InvalidValue):
        await store.debugger_state.checkpoint(session.id, {}, label="")
