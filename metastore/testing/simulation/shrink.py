"""Shrinks a failing list to a minimal one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["shape_of", "shrink"]

Item = TypeVar("Item")


def shape_of(error: BaseException | None) -> str | None:
    """Return what identifies a failure: its words, without names and numbers."""
    if error is None:
        return None
    words = re.sub(r"\S*\d\S*", "", str(error)).split()
    return f"{type(error).__name__}: {' '.join(words[:8])}"


def shrink(
    items: Sequence[Item], still_fails: Callable[[list[Item]], bool], *, attempts: int = 400
) -> list[Item]:
    """Return a minimal part of `items` that still fails.

    Halves are left out first, then quarters, in the end single items. With `attempts` used up,
    the shortest list so far is returned.
    """
    shortest = list(items)
    size = len(shortest)
    while size > 0:
        start, before = 0, len(shortest)
        while start < len(shortest) and attempts > 0:
            attempts -= 1
            without = shortest[:start] + shortest[start + size :]
            if still_fails(without):
                shortest = without
            else:
                start += size
        # An item that was needed at first may not be without those after it.
        if attempts == 0 or (size == 1 and len(shortest) == before):
            break
        size = max(1, size // 2)
    return shortest
