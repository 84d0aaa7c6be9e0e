"""Every pair of a state and a verb: what is allowed moves the row, what is not changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from metastore import InvalidTransition, NotFound
from metastore.codec import new_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Verb = Callable[[Any, str], Awaitable[Any]]

__all__ = ["check_pair", "reach"]


async def reach(table: Any, verbs: dict[str, Verb], path: tuple[str, ...], row_id: str) -> Any:
    """Bring a fresh row into a state by the verbs that lead there, and return it."""
    for verb in path:
        await verbs[verb](table, row_id)
    return await table.get(row_id)


async def check_pair(
    table: Any, verbs: dict[str, Verb], row: Any, verb: str, becomes: str | None, wanted: str
) -> Any:
    """Try `verb` on `row`: it `becomes` another state, or is refused and stays as it is."""
    if becomes is None:
        with pytest.raises(InvalidTransition) as refused:
            await verbs[verb](table, row.id)
        assert refused.value.table == table.table
        assert (refused.value.from_state, refused.value.to_state) == (row.status, wanted)
        assert refused.value.row == row
        assert await table.get(row.id) == row
        return row
    moved = await verbs[verb](table, row.id)
    assert moved.status == becomes
    assert await table.get(row.id) == moved
    with pytest.raises(NotFound):
        await verbs[verb](table, new_id())
    return moved
