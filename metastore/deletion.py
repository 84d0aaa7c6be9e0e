"""Long work in pieces: nobody holds the writer for as long as a large delete takes.

Each piece is an operation of its own. It waits in the writer's queue like any other, so that
whoever came before it is served first. What can stop a deletion is asked before anything goes;
from then on the row is marked in `deletions` until it is gone, and a deletion that was cut short
is finished by the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    from metastore.backends.base import Executor
    from metastore.statements import Call

__all__ = [
    "PIECE_BYTES",
    "PIECE_CHUNKS",
    "PIECE_ROWS",
    "SMALL_BYTES",
    "SMALL_ROWS",
    "Cut",
    "Plan",
    "cut",
    "delete",
    "repeat",
]

PIECE_ROWS = 250
"""The most rows of one piece: 2 to 6 ms with `secure_delete`."""

PIECE_BYTES = 1 << 20
"""The bytes at which a piece ends: some 5 ms with `secure_delete`. Its last row may exceed it."""

PIECE_CHUNKS = 4
"""The most chunks of files in one piece, which are 1 MiB."""

SMALL_ROWS = 100
"""Up to how many related rows a row is deleted in one statement."""

SMALL_BYTES = 1 << 18
"""Up to how many bytes of related rows a row is deleted in one statement."""


class Cut(TypedDict):
    """Where a piece ends: at so many rows, or at so many bytes."""

    limit: int
    byte_limit: int


def cut() -> Cut:
    """Return the parameters of a statement that deletes one piece."""
    return {"limit": PIECE_ROWS, "byte_limit": PIECE_BYTES}


class Plan(NamedTuple):
    """How a row goes with all that belongs to it.

    Attributes:
        weigh: asks for the number and the bytes of the related rows, as far as `SMALL_ROWS`.
        begin: the first operation of a deletion in pieces: keeps new work off the row and marks
            it. Its first statement returns no row if the row is gone or cannot be deleted.
        pieces: operations that are repeated, one after the other, each until its first statement
            returns no row.
        whole: deletes the row, with what is left. No row: it is gone or cannot be deleted.
    """

    weigh: Call
    begin: tuple[Call, ...]
    pieces: tuple[tuple[Call, ...], ...]
    whole: Call


async def delete(executor: Executor, plan: Plan) -> bool:
    """Delete a row; False if it is gone or cannot be deleted.

    A small one goes in one statement. Of a large one the related rows go first, piece by piece.
    """
    [(rows, size)] = await executor.run(plan.weigh)
    if rows > SMALL_ROWS or size > SMALL_BYTES:
        begun, *_ = await executor.run_all(*plan.begin)
        if not begun:
            return False
        for piece in plan.pieces:
            await repeat(executor, *piece)
    return bool(await executor.run(plan.whole))


async def repeat(executor: Executor, *piece: Call) -> int:
    """Run a piece until its first statement returns no row; return how many rows that returned."""
    count = 0
    while rows := (await executor.run_all(*piece))[0]:
        count += len(rows)
    return count
