from __future__ import annotations

import math
from typing import Any

import pytest

from metastore import InvalidTransition, InvalidValue, MetadataStore, NotFound, Session
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
    ("verbs", "active"),
    [
        ((), True),
        (("start",), True),
        (("start", "pause"), True),
        (("start", "complete"), False),
        (("cancel",), False),
    ],
)
async def test_checkpoint__only_of_an_active_session(
    store: MetadataStore, session: Session, verbs: tuple[str, ...], active: bool
) -> None:
    for verb in verbs:
        await getattr(store.sessions, verb)(session.id)
    if active:
        await store.debugger_state.checkpoint(session.id, {})
        return
    with pytest.raises(InvalidTransition) as refused:
        await store.debugger_state.checkpoint(session.id, {})
    assert refused.value.row == await store.sessions.get(session.id)
    with pytest.raises(NotFound):
        await store.debugger_state.latest(session.id)


async def test_checkpoint__refusals(store: MetadataStore, session: Session) -> None:
    with pytest.raises(NotFound) as missing:
        await store.debugger_state.checkpoint(new_id(), {})
    assert missing.value.table == "sessions"
    for state in (math.inf, {"x": object()}, (1,)):
        with pytest.raises(InvalidValue):
            await store.debugger_state.checkpoint(session.id, state)
    with pytest.raises(InvalidValue):
        await store.debugger_state.checkpoint(session.id, {}, label="")
